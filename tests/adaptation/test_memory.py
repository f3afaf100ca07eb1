"""MODEL.MEMORY_GB: what a step and a test batch hold stays below it, with the same results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from adaptation.classifier import PromptedCLIP
from adaptation.savings.memory import image_bytes
from clip import packed_attention
from clip.model import CLIP
from dassl.engine import TRAINER_REGISTRY, build_trainer
from tests.parity_files import relative_error

NAMES = [f"kind {i} of {'very ' * (i % 4)}small thing" for i in range(300)]
#: shared and own contexts, prompts that grow from block to block, prompts of every image
METHODS = {
    "PromptSRC": (),
    "CoOp": ("TRAINER.COOP.CSC", True),
    "MPL": (),
    "CoCoOp": (),
}


class Peak:
    """Largest amount of tensors allocated at a time, in bytes."""

    value = 0


@contextmanager
def allocated() -> Iterator[Peak]:
    peak, held = Peak(), 0
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        yield peak
    events = [e for e in run.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak.value = max(peak.value, held)


@pytest.fixture()
def model(make_cfg) -> Callable[..., PromptedCLIP]:
    """Function that gives a fresh model of a random CLIP with 150 classes, or so many."""

    def build(method: str, *pairs: object, n_cls: int = 150) -> PromptedCLIP:
        torch.manual_seed(1)
        cfg = make_cfg(method, *METHODS[method], *pairs)
        clip = CLIP(64, 32, 12, 64, 8, 77, 49408, 64, 1, 12)
        return TRAINER_REGISTRY.get(method).build_classifier(cfg, clip, NAMES[:n_cls])

    return build


def images(n: int) -> torch.Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def train_once(model: PromptedCLIP) -> torch.Tensor:
    """The logits of a step with its teacher and its backward pass."""
    logits = model.predict(images(2)).logits
    model.predict(images(2)).frozen()
    logits.square().sum().backward()
    return logits.detach()


@pytest.mark.parametrize("method", METHODS)
def test_step(model, method):
    free = model(method)
    with allocated() as peak:
        whole = train_once(free)
    bound = 0.5 * peak.value
    bounded = model(method, "MODEL.MEMORY_GB", bound / 1e9)
    with allocated() as lower:
        parts = train_once(bounded)
    assert lower.value < bound
    assert relative_error(parts, whole) < 1e-5
    bounded = dict(bounded.learner.named_parameters())
    for key, parameter in free.learner.named_parameters():
        assert relative_error(bounded[key].grad, parameter.grad) < 2e-4, key


def test_step_of_padded_sequences(model, monkeypatch):
    """Off the CPU every class takes as many places in attention as the longest one."""
    monkeypatch.setattr(packed_attention, "GROUPS_ON", ())
    bound = 30e6
    bounded = model("CoOp", "TRAINER.COOP.CSC", False, "MODEL.MEMORY_GB", bound / 1e9)
    bounded.set_classes(["very " * 30 + "small thing", *NAMES[1:100]])
    with allocated() as peak:
        train_once(bounded)
    assert 0.1 * bound < peak.value < bound


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_test_batch(model, method):
    free = model(method)
    with allocated() as peak:
        whole = free(images(20))
    bound = 0.5 * peak.value
    bounded = model(method, "MODEL.MEMORY_GB", bound / 1e9)
    with allocated() as lower:
        parts = bounded(images(20))
    assert lower.value < bound
    assert relative_error(parts, whole) < 1e-5


def test_zero_shot(make_cfg):
    """Three templates of 300 classes, and a batch of images."""
    texts = ("a photo of a {}.", "a {}.", "a bad picture of the {} in a dark and empty room.")

    def classify(gb: float) -> tuple[float, torch.Tensor]:
        torch.manual_seed(1)
        cfg = make_cfg("ZeroshotCLIP2", "MODEL.MEMORY_GB", gb)
        clip = CLIP(64, 32, 12, 64, 8, 77, 49408, 64, 1, 12)
        with torch.no_grad(), allocated() as peak:
            classify = TRAINER_REGISTRY.get("ZeroshotCLIP2").build_classifier
            logits = classify(cfg, clip, NAMES, texts)(images(60))
        return peak.value, logits

    peak, whole = classify(0)
    bound = 0.5 * peak
    lower, parts = classify(bound / 1e9)
    assert lower < bound
    assert relative_error(parts, whole) < 1e-5
    with pytest.raises(ValueError, match="too little for the text"):
        classify(1e-6)
    with pytest.raises(ValueError, match=r"MODEL\.MEMORY_GB is -1"):
        build_trainer(make_cfg("ZeroshotCLIP", "MODEL.MEMORY_GB", -1))


def test_resnet_with_gradients(make_cfg):
    """The estimate for images that are learned themselves."""
    clip = CLIP(64, 64, (1, 2, 2, 1), 16, None, 77, 49408, 64, 1, 2).requires_grad_(False).eval()
    image = images(2).repeat(1, 1, 2, 2).requires_grad_()
    clip.encode_image(image)
    with allocated() as peak:
        clip.encode_image(image).sum().backward()
    assert 0.2 < peak.value / (2 * image_bytes(clip, for_backward=True)) < 1
    with allocated() as peak, torch.no_grad():
        clip.encode_image(image)
    assert 0.2 < peak.value / (2 * image_bytes(clip)) < 1


def test_named_value_is_enough(model):
    for method in METHODS:
        for run in (train_once, torch.no_grad()(lambda model: model(images(2)))):
            value = 1e-5
            for _ in range(4):  # one after the other, the parts of a step say what they need
                try:
                    run(model(method, "MODEL.MEMORY_GB", value, n_cls=40))
                    break
                except ValueError as error:
                    named = float(str(error).split(": use ")[1].split()[0])
                    assert named > value
                    value = named
            else:
                pytest.fail(f"{method}: {value} is named, and not enough")


def test_too_little(model):
    with pytest.raises(ValueError, match=r"too little for the text: use 0\.00\d+ or more"):
        train_once(model("CoOp", "MODEL.MEMORY_GB", 5e-4))
    with pytest.raises(ValueError, match="too little for a training step of 2 images"):
        train_once(model("PromptSRC", "MODEL.MEMORY_GB", 1e-4))
    with pytest.raises(ValueError, match="too little for an image"), torch.no_grad():
        model("CoOp", "MODEL.MEMORY_GB", 1e-5)(images(2))
