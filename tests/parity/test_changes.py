"""Changes inside of blocks against what published code computes: features, loss and gradients.

The methods themselves are not in this package. What they change is given to the encoders as data,
made here of the recorded parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clip.changes import BlockChange, Changes, LowRank, Prompt
from clip.model import CLIP
from clip.weights import build_model
from tests.parity.limits import FEATURES, GRADIENTS, LOGITS, LOSS
from tests.parity_files import PARITY_DIR, Recorded, recorded_clip, relative_error

#: logits of CLIP-LoRA are 100 times as large as their cosines: see the files' description
LOSS_OF_COSINES_TIMES_100 = 3e-5


@pytest.fixture(scope="module")
def clip() -> CLIP:
    return build_model(recorded_clip()).float().eval().requires_grad_(False)


def read(name: str) -> Recorded:
    if not (PARITY_DIR / f"{name}.npz").exists():
        pytest.skip(f"{name}.npz is not recorded")
    return Recorded(name)


def learned(recorded: Recorded) -> dict[str, Tensor]:
    return {key: value.requires_grad_() for key, value in recorded.named("param").items()}


def assert_gradients(
    recorded: Recorded, loss: Tensor, params: Mapping[str, Tensor], factor: float = 1.0
) -> None:
    """The recorded gradients are ``factor`` times those of the loss."""
    grads = recorded.named("grad")
    assert grads.keys() == params.keys()
    for key, grad in zip(params, torch.autograd.grad(loss, list(params.values())), strict=True):
        assert relative_error(factor * grad, grads[key]) < GRADIENTS, key


def low_rank_terms(params: Mapping[str, Tensor], config: dict) -> tuple[Changes, Changes]:
    """Text only: the chosen of queries, keys, values and the out-projection, in some blocks."""
    maps = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "proj"}
    maps = {part: name for part, name in maps.items() if part[0] in config["PARAMS"]}
    numbers = {int(key.split(".")[2]) for key in params}

    def term(block: int, name: str) -> LowRank:
        key = f"transformer.resblocks.{block}.attn.{name}.w_lora_"
        return LowRank(params[f"{key}A"], params[f"{key}B"], config["scaling"])

    blocks = {
        block: BlockChange(**{part: term(block, name) for part, name in maps.items()})
        for block in numbers
    }
    return Changes(blocks), Changes({})


def branches(params: Mapping[str, Tensor], config: dict) -> tuple[Changes, Changes]:
    """Adapters of both encoders with a map that they share; number ``i`` is that of block i - 1."""

    def branch(tower: str, i: int) -> Callable[[Tensor], Tensor]:
        def linear(x: Tensor, name: str) -> Tensor:
            return F.linear(x, params[f"{name}.weight"], params[f"{name}.bias"])

        def adapt(x: Tensor) -> Tensor:
            x = linear(x, f"{tower}_adapter.{i}.down.0").relu()
            x = linear(x, f"shared_adapter.{i}.0").relu()
            return config["ADAPTER_SCALE"] * linear(x, f"{tower}_adapter.{i}.up")

        return adapt

    numbers = range(config["ADAPTER_START"], config["ADAPTER_END"] + 1)
    text, image = (
        Changes({i - 1: BlockChange(branch=branch(tower, i)) for i in numbers})
        for tower in ("text", "visual")
    )
    return text, image


def layer_norms(params: Mapping[str, Tensor], config: dict) -> tuple[Changes, Changes]:
    """Both layer norms of every block of both encoders."""

    def norm(tower: str, block: int, name: str) -> tuple[Tensor, Tensor]:
        key = f"{tower}transformer.resblocks.{block}.{name}"
        return params[f"{key}.weight"], params[f"{key}.bias"]

    text, image = (
        Changes(
            {
                block: BlockChange(**{name: norm(tower, block, name) for name in ("ln_1", "ln_2")})
                for block in range(12)
            }
        )
        for tower in ("", "visual.")
    )
    return text, image


@pytest.mark.parametrize("plain", [False, True], ids=["fast", "plain"])
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("cliplora_text_qkvo_r4", low_rank_terms),
        ("mma_scale01", branches),
        ("twostage_stage1", layer_norms),
    ],
)
def test_inside_of_blocks(clip, name, make, plain):
    recorded = read(name)
    config, params = recorded.config, learned(recorded)
    text_changes, image_changes = make(params, config)
    text = clip.encode_text(recorded["tokenized_prompts"].long(), text_changes, plain)
    image = clip.encode_image(recorded["images"], image_changes, plain)
    assert relative_error(text, recorded["text_features_raw"]) < FEATURES
    assert relative_error(image, recorded["image_features_raw"]) < FEATURES
    scale = 100.0 if config.get("logit_scale_used") == 100 else clip.logit_scale.exp()
    logits = scale * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).t()
    assert relative_error(logits, recorded["logits_train"]) < LOGITS
    loss = F.cross_entropy(logits, recorded["labels"])
    limit = LOSS_OF_COSINES_TIMES_100 if scale == 100.0 else LOSS
    assert relative_error(loss, recorded["loss"]) < limit
    # what MMA's code leaves is divided by the scale of its branches
    assert_gradients(recorded, loss, params, 1 / config.get("ADAPTER_SCALE", 1.0))


def representations(
    recorded: Recorded, params: Mapping[str, Tensor], side: str
) -> tuple[Changes, Tensor]:
    """Tokens at places 1 to n of one encoder from the first listed layer on, and themselves.

    Args:
        recorded: counts layers from 1.
        params: space tokens, and for every layer a linear map or a low-rank change of a shared one.
        side: ``v`` or ``t``.
    """
    config, space = recorded.config, params["representation_learner.compound_rep_tokens"]
    layers, tokens = config["REP_LAYERS"], []
    for j in range(len(layers)):
        if "BETA" in config:
            key = f"representation_learner.srra_r2{side}proj"
            own = f"{key}.srra.{j}"
            weight = params[f"{key}.weight"] + params[f"{own}.A"] @ params[f"{own}.B"]
            bias = params[f"{own}.bias"]
        else:
            key = f"representation_learner.compound_rep_tokens_r2{side}proj.{j}"
            weight, bias = params[f"{key}.weight"], params[f"{key}.bias"]
        tokens.append(F.linear(space, weight, bias))
    keep = 1 - config.get("BETA", 1)
    blocks = {
        layer - 1: Prompt(each, at=1, drop=len(each), keep=keep)
        if j
        else Prompt(each, at=1, embedded=True)
        for j, (layer, each) in enumerate(zip(layers, tokens, strict=True))
    }
    return Changes.of(blocks), torch.stack(tokens)


@pytest.mark.parametrize("plain", [False, True], ids=["fast", "plain"])
@pytest.mark.parametrize(
    "name", ["mmrl_layers_1_2_12", "mmrl_layers_2_5_6_9", "mmrlplusplus_layers_2_5_6_9"]
)
def test_rows_beside_the_class_token(clip, name, plain):
    recorded = read(name)
    config, params = recorded.config, learned(recorded)
    text_changes, text_tokens = representations(recorded, params, "t")
    image_changes, image_tokens = representations(recorded, params, "v")
    assert relative_error(text_tokens, recorded["rep_tokens_text"]) < FEATURES
    assert relative_error(image_tokens, recorded["rep_tokens_visual"]) < FEATURES

    n_rows = 1 + config["N_REP_TOKENS"]
    rows = clip.visual(recorded["images"], image_changes, n_rows=n_rows, plain=plain)
    image = rows[:, 0] @ clip.visual.proj
    if "BETA" in config:
        low_rank = params["image_encoder.A"] @ params["image_encoder.B"]
        projection = clip.visual.proj + low_rank
    else:
        projection = params["image_encoder.proj_rep"]
    beside = rows[:, 1:].mean(1) @ projection
    text = clip.encode_text(recorded["tokenized_prompts"].long(), text_changes, plain)
    assert relative_error(image, recorded["image_features_raw"]) < FEATURES
    assert relative_error(beside, recorded["image_features_rep_raw"]) < FEATURES
    assert relative_error(text, recorded["text_features_raw"]) < FEATURES

    text, image, beside = (F.normalize(each, dim=-1) for each in (text, image, beside))
    losses = [
        F.cross_entropy(100 * features @ text.t(), recorded["labels"])
        for features in (image, beside)
    ]
    away = [
        1 - F.cosine_similarity(features, recorded[teacher]).mean()
        for features, teacher in ((image, "teacher_image"), (text, "teacher_text"))
    ]
    alpha = config["ALPHA"]
    loss = alpha * losses[0] + (1 - alpha) * losses[1] + config["REG_WEIGHT"] * sum(away)
    assert relative_error(loss, recorded["loss"]) < LOSS_OF_COSINES_TIMES_100
    assert_gradients(recorded, loss, params)
