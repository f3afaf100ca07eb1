"""Memory that a run needs against what is free, before it starts.

Needs come from the estimates of ``adaptation.savings.memory``, brought to what was measured
(docs/reliability.md). A run is refused only if it needs more than is free even where the estimate
is too high by ``MARGIN``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from clip.changes import Changes
from clip.model import CLIP, VisionTransformer
from dassl.config import CfgNode
from dassl.utils import SettingError
from dassl.utils.random_state import get_random_state, set_random_state
from support.free_memory import Free, host_memory
from support.words import counted

from .savings.memory import (
    HELD,
    HELD_BY_RESNET,
    HELD_IN_HALF,
    HELD_WITH_GRADIENTS,
    LEARNER_COPIES,
    image_bytes,
    text_bytes,
)
from .texts import MAX_SEQUENCES

if TYPE_CHECKING:
    from .classifier import PromptedCLIP
    from .trainer import PromptTrainer

#: factor by which an estimate may be wrong
MARGIN = 1.3
#: share of what is free that MODEL.MEMORY_GB is proposed for
PROPOSED_SHARE = 0.9
SKIP = "MODEL.MEMORY_CHECK False skips this check"


def free_memory(device: torch.device) -> Free | None:
    """Return the free memory of a device; None where it cannot be known."""
    if device.type == "cpu":
        return host_memory()
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return Free(free + unused, f"the memory of {torch.cuda.get_device_name(device)}")


class Load:
    """Estimate of what a training step or a test batch holds beside the weights.

    Where a learner is trained on features, it is what encoding a batch of images holds.

    Args:
        model: the classifier.
        n_images: images of the batch, or of all runs that share the step.
        runs: number of runs that share the step.
        training: whether it is a training step.
        kept: bytes of features that the run keeps (``PromptTrainer.kept_bytes``).
    """

    def __init__(
        self,
        model: PromptedCLIP,
        n_images: int,
        runs: int = 1,
        training: bool = True,
        kept: float = 0.0,
    ) -> None:
        clip, learner, plain = model.clip, model.learner, not model.encoders.fast
        self.n_images, self.training, self.runs = n_images, training, runs
        self.bound, self.kept = model.memory.bytes, kept
        state = get_random_state()  # a learner of one's own may draw
        with torch.no_grad():
            text, image = Changes.of(learner.text_changes()), Changes.of(learner.image_changes())
        set_random_state(state)
        self.conditioned, self.on_features = learner.image_conditioned, learner.on_features
        #: whether images are encoded without gradients, in parts if necessary
        self.in_parts = not training or learner.on_features
        self.features = model.features_bytes()
        self.n_classes = len(model.text)
        # per text and per image: what its computation holds, and with what is kept for backward
        self.text_at_once = text_bytes(clip, model.text, text, plain=plain)
        if learner.class_rows:  # the learner has vectors in the place of text features
            self.text_at_once = 0.0
        self.image_at_once = image_bytes(clip, image, plain=plain)
        self.text, self.image = self.text_at_once, self.image_at_once
        if training and text:
            self.text = text_bytes(clip, model.text, text, for_backward=True, plain=plain)
        if training and (image or learner.changes_pixels):
            self.image = image_bytes(clip, image, for_backward=True, plain=plain)
        self.most_images, tower = n_images, clip.visual
        vit = isinstance(tower, VisionTransformer)
        on_cpu = model.text.device.type == "cpu"
        if isinstance(tower, VisionTransformer) and on_cpu and self.in_parts and not plain:
            self.most_images = min(n_images, tower.images_at_once())
        self.backward = training and bool(text or image or learner.changes_pixels)
        self.share = HELD_WITH_GRADIENTS if self.backward else HELD
        self.image_share = self.share
        if not vit:
            self.image_share = HELD_BY_RESNET
        if model.precision != "fp32":
            self.share *= HELD_IN_HALF
            self.image_share *= HELD_IN_HALF
        self.learner = 0.0
        if training:
            copies = LEARNER_COPIES * runs
            self.learner = copies * sum(p.nbytes for p in learner.parameters())

    def sets(self, n_images: int) -> int:
        """Return how often a batch has the class list encoded."""
        return n_images if self.conditioned else self.runs

    @property
    def bytes(self) -> float:
        """Bytes that are held at a time."""
        n_texts = self.n_classes * self.sets(self.n_images)
        at_once = n_texts if self.backward else min(n_texts, MAX_SEQUENCES)
        texts = self.share * at_once * self.text_at_once
        images = self.image_share * self.most_images * self.image_at_once
        kept = self.share * n_texts * (self.text - self.text_at_once)
        kept += self.image_share * self.n_images * (self.image - self.image_at_once)
        found = kept + max(texts, images) + self.share * self.sets(self.n_images) * self.features
        if self.bound:
            found = min(found, self.share * self.bound)
        return found + self.learner + self.kept

    def keeps_to(self, bound: float, n_images: int) -> bool:
        """Return whether a batch can be computed with this MODEL.MEMORY_GB, in bytes."""
        half = bound / 2
        if self.in_parts:
            per_image = self.image + self.conditioned * self.features
            return max(per_image, 2 * (self.text + self.features)) <= bound
        text = self.text + self.sets(n_images) * self.features
        return n_images * self.image <= half and text <= half

    def largest_batch(self, bound: float) -> int:
        """Return the largest number of images, up to the batch's, that keeps to a bound; or 0."""
        sizes = range(self.n_images, 0, -1)
        return next((size for size in sizes if self.keeps_to(bound, size)), 0)


def check_file(path: Path, go_on: bool = False) -> None:
    """Check that the content of a checkpoint fits into memory, before it is read.

    Args:
        path: the file.
        go_on: whether to check nothing.

    Raises:
        SettingError: it does not.
    """
    free, size = host_memory(), path.stat().st_size
    if free is not None and size > free.bytes and not go_on:
        raise SettingError(
            f"{path} takes {_gb(size)} and {_gb(free.bytes)} of {free.of} are free: use a smaller "
            f"backbone (MODEL.BACKBONE.NAME) or free some; {SKIP}"
        )


def to_device(clip: CLIP, device: torch.device, go_on: bool = False) -> CLIP:
    """Move a model to a device, after a check that its weights fit there.

    Args:
        clip: the model, on the CPU.
        device: where it goes.
        go_on: whether to check nothing.

    Raises:
        SettingError: they do not.
    """
    if device.type != "cpu" and not go_on:
        free, size = free_memory(device), sum(t.nbytes for t in clip.state_dict().values())
        if free is not None and size > free.bytes:
            raise SettingError(
                f"the weights of the backbone take {_gb(size)} and {_gb(free.bytes)} of {free.of} "
                f"are free: use another device, or a smaller backbone; {SKIP}"
            )
    return clip.to(device)


def check_runs(trainers: Sequence[PromptTrainer], training: bool) -> None:
    """Check that training steps, if there will be any, and test batches fit into memory.

    Args:
        trainers: of the runs that train together.
        training: whether they train; tests run one after the other.

    Raises:
        SettingError: they need more than is free, even if the estimate is too high by ``MARGIN``.
    """
    trainer, cfg = trainers[0], trainers[0].cfg
    if not cfg.MODEL.MEMORY_CHECK:
        return
    free = free_memory(trainer.device)
    if free is None:
        return
    if training:
        part = "TEST" if trainer.model.learner.on_features else "TRAIN_X"
        sizes = [_batch(cfg.DATALOADER[part].BATCH_SIZE, t.train_loader_x) for t in trainers]
        kept = trainer.kept_bytes(training=True)
        load = Load(trainer.model, sum(sizes), runs=len(trainers), kept=kept)
        _check(load, free, cfg, trainer.node, part, len(trainers))
    loader = trainer.loader_of(cfg.TEST.SPLIT)
    if loader is not None and not (training and cfg.TEST.NO_TEST):
        size = _batch(cfg.DATALOADER.TEST.BATCH_SIZE, loader)
        kept = trainer.kept_bytes(training)
        load = Load(trainer.model, size, training=False, kept=kept)
        _check(load, free, cfg, trainer.node, "TEST")


def _batch(size: int, loader: object) -> int:
    """Return the size of a batch: as set, or of all images if there are fewer."""
    images = getattr(loader, "dataset", None)
    return min(size, len(images)) if images else size


def _check(load: Load, free: Free, cfg: CfgNode, node: str, part: str, runs: int = 1) -> None:
    needed = load.bytes
    what = "a training step" if load.training else "a test batch"
    if load.training and load.on_features:  # they are encoded in batches as large as in a test
        what = "encoding a batch"
    classes = counted(load.n_classes, "class", "classes")
    what += f" of {counted(load.n_images, 'image')} and {classes}"
    if runs > 1:
        what += f" for {runs} seeds together"
    if load.kept:
        what += f", beside {_gb(load.kept)} of features that the run keeps,"
    text = f"{what} needs about {_gb(needed)}, and {_gb(free.bytes)} of {free.of} are free"
    if needed > MARGIN * free.bytes:
        advice = "; ".join([*_advice(load, free, cfg, node, part, runs), SKIP])
        raise SettingError(f"{text}: {advice}")
    if MARGIN * needed > free.bytes:
        print(f"Note: {text}: it may run out. MODEL.MEMORY_GB bounds it (docs/performance.md)")


def _advice(load: Load, free: Free, cfg: CfgNode, node: str, part: str, runs: int) -> list[str]:
    """Say what to change so that a batch fits, the settings that change no result first."""
    if not cfg.MODEL.FAST_ENCODERS:
        return ["leave out MODEL.FAST_ENCODERS False"]
    advice = []
    # what the learner and features take stays; the bound is to be kept with room to spare
    left = free.bytes - load.learner - load.kept
    bound = float(f"{max(0.0, PROPOSED_SHARE * left) / 1e9:.2g}") * 1e9
    batch = load.largest_batch(bound)
    if batch == load.n_images:
        advice.append(f"set MODEL.MEMORY_GB {bound / 1e9:g}")
    elif batch >= runs:
        key = f"DATALOADER.{part}.BATCH_SIZE {batch // runs}"
        advice.append(f"set MODEL.MEMORY_GB {bound / 1e9:g} and {key}")
    for key in ("PASSES", "AUGMENT_EPOCH") if load.kept else ():
        if cfg.TRAINER[node].get(key, 1) > 1:
            advice.append(f"keep fewer views of an image (TRAINER.{node}.{key})")
    if runs > 1:
        advice.append("train fewer seeds together")
    if cfg.TRAINER[node].PREC == "fp32":
        advice.append(f"TRAINER.{node}.PREC bf16 takes about {HELD_IN_HALF:g} of it")
    return advice or ["use a smaller backbone or another machine"]


def _gb(size: float) -> str:
    return f"{size / 1e9:.2g} GB" if size < 1e10 else f"{size / 1e9:,.0f} GB"
