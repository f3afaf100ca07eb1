"""Encoders in half precision: sums over many classes, and weights that are converted once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clip import packed_attention, tokenize
from clip.changes import Prompt, deep_prompts
from clip.model import CLIP
from clip.packing import PackedText
from clip.plain import PlainEncoders
from clip.weights import build_model, convert_weights
from tests.parity_files import recorded_clip, relative_error

CLASSES, WIDTH, LAYERS, VOCABULARY = 1000, 64, 3, 1000


def build() -> tuple[CLIP, PackedText]:
    torch.manual_seed(0)
    model = CLIP(64, 32, 2, 64, 8, 24, VOCABULARY, WIDTH, 1, LAYERS)
    ids = torch.zeros(CLASSES, 24, dtype=torch.long)
    ids[:, 0], ids[:, 1] = VOCABULARY - 2, 5
    for c in range(CLASSES):
        length = 7 + c % 3
        ids[c, 2 : 2 + length] = torch.randint(1, VOCABULARY - 2, (length,))
        ids[c, 2 + length] = VOCABULARY - 1
    return model.requires_grad_(False).eval(), PackedText(ids)


def gradients(place: str, precision: str) -> list[Tensor]:
    """Of shared prompts in every block that lie in the common prefix or behind the class names."""
    model, text = build()
    tokens = [torch.randn(2, WIDTH).mul_(0.02).requires_grad_() for _ in range(LAYERS)]
    if place == "prefix":
        prompts = deep_prompts(tokens, at=1)
    else:
        at = tuple(length - 1 for length in text.lengths)
        prompts = {i: Prompt(t, at=at, drop=2 if i else 0) for i, t in enumerate(tokens)}
    if precision == "fp16":
        convert_weights(model)
    half = {"amp": torch.float16, "bf16": torch.bfloat16}.get(precision)
    with torch.autocast("cpu", dtype=half, enabled=half is not None):
        features = model.encode_text(text, prompts)
    (20 * features.float() @ torch.ones(64)).mean().backward()
    return [token.grad for token in tokens]


@pytest.mark.parametrize("kinds", [("cpu",), ()], ids=["groups", "sequences"])
@pytest.mark.parametrize("place", ["prefix", "behind the names"])
@pytest.mark.parametrize(("precision", "limit"), [("amp", 2e-3), ("bf16", 2e-2), ("fp16", 2e-3)])
def test_sums_over_classes(monkeypatch, kinds, place, precision, limit):
    monkeypatch.setattr(packed_attention, "GROUPS_ON", kinds)
    for grad, exact in zip(gradients(place, precision), gradients(place, "fp32"), strict=True):
        assert relative_error(grad, exact) < limit


@pytest.mark.parametrize("vision", ["vit", "rn"])
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("plain", [False, True])
def test_converted_weights_are_those_of_autocast(vision, half, plain):
    """To the bit: features and gradients of prompts, and of the images themselves."""

    def run(convert: bool) -> list[Tensor]:
        model = build_model(recorded_clip(vision)).requires_grad_(False).float()
        if convert:
            convert_weights(model, half, convolutions=False)
            assert model.text_projection.dtype == half and model.dtype == torch.float32
        torch.manual_seed(0)
        encoders = PlainEncoders(model) if plain else model
        side = model.visual.input_resolution
        ctx = torch.randn(2, model.ln_final.weight.shape[0]).requires_grad_()
        image = torch.randn(2, 3, side, side).requires_grad_()
        text = torch.cat([tokenize(words) for words in ("a cat", "a golden retriever")])
        with torch.autocast("cpu", dtype=half):
            texts = encoders.encode_text(PackedText(text), {0: Prompt(ctx, at=1)})
            images = encoders.encode_image(image)
        (texts.float().sum() + images.float().sum()).backward()
        return [texts.detach(), images.detach(), ctx.grad, image.grad]

    for converted, autocast in zip(run(True), run(False), strict=True):
        assert converted.dtype == autocast.dtype
        assert torch.equal(converted, autocast)
