"""MMA: adapters beside the upper blocks of both encoders, with a map that the encoders share.

Yang et al., "MMA: Multi-Modal Adapter for Vision-Language Models", CVPR 2024;
code: ZjjConan/VLM-MultiModalAdapter.

As in its code: an adapter reads what a block's attention reads, and its result is added to the
block's; its gradients are divided by ``ADAPTER_SCALE``, what goes on to the block is not; adapters
before the first block (``ADAPTER_START`` 0) have neither; one text for all data sets.

Departures: the settings of its config file are the defaults (its code's own differ); an adapter as
wide as a tower is an adapter like others (there: it cannot run); the text features of an evaluation
are not kept for the next one; everything learned is float32, so every ``PREC`` works.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adaptation.learner import PromptLearner
from adaptation.starts import check_least, require_vit
from adaptation.trainer import PromptTrainer
from clip.changes import BlockChange, LayerChanges
from clip.model import CLIP
from dassl.config import CfgNode
from dassl.engine import TRAINER_REGISTRY


class _ScaledGradient(torch.autograd.Function):
    """The same values, with a gradient that is multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.factor * gradient, None


def linear(d_in: int, d_out: int) -> nn.Linear:
    """Return a linear map with weights from N(0, 2 / d_out) and a bias of zeros."""
    made = nn.Linear(d_in, d_out)
    nn.init.kaiming_normal_(made.weight, mode="fan_out")
    nn.init.zeros_(made.bias)
    return made


class Ends(nn.Module):
    """First and last map of an adapter of one encoder.

    Args:
        width: of the encoder.
        dim: of the adapter.
    """

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.down, self.up = nn.Sequential(linear(width, dim)), linear(dim, width)


class AdapterLearner(PromptLearner):
    """Adapters of both encoders.

    Args:
        numbers: of the adapters: 0 stands before the first block, ``i`` beside block ``i - 1``.
        dim: width of the adapters.
        scale: factor of what they add.
        widths: of the text and the image encoder.
        template: text with ``{}`` for the class name.
    """

    def __init__(
        self, numbers: Sequence[int], dim: int, scale: float, widths: tuple[int, int], template: str
    ) -> None:
        super().__init__()
        self.scale, self.template = scale, template

        def ends(width: int) -> nn.ModuleDict:
            return nn.ModuleDict({str(i): Ends(width, dim) for i in numbers})

        self.text_adapter, self.visual_adapter = map(ends, widths)
        self.shared_adapter = nn.ModuleDict(
            {str(i): nn.Sequential(linear(dim, dim)) for i in numbers}
        )

    def adapt(self, ends: nn.ModuleDict, number: str, x: Tensor) -> Tensor:
        """Return what adapter ``number`` adds for ``x``, both ``(..., d)``."""
        own: Any = ends[number]
        hidden = self.shared_adapter[number](own.down(x).relu()).relu()
        return self.scale * own.up(hidden)

    def beside(self, ends: nn.ModuleDict, number: str, x: Tensor) -> Tensor:
        """Return the same, with the adapter's gradients divided by the scale."""
        scaled = _ScaledGradient.apply(x, self.scale)
        return _ScaledGradient.apply(self.adapt(ends, number, scaled), 1 / self.scale)

    def _changes(self, ends: nn.ModuleDict) -> LayerChanges:
        changes: dict[int, BlockChange] = {}
        entry = functools.partial(self.adapt, ends, "0") if "0" in ends else None
        if entry is not None:
            changes[0] = BlockChange(entry=entry)
        for number in ends:
            if number != "0":
                branch = functools.partial(self.beside, ends, number)
                first = entry if number == "1" else None
                changes[int(number) - 1] = BlockChange(entry=first, branch=branch)
        return changes

    def text_changes(self) -> LayerChanges:
        return self._changes(self.text_adapter)

    def image_changes(self) -> LayerChanges:
        return self._changes(self.visual_adapter)


@TRAINER_REGISTRY.register()
class MMA(PromptTrainer):
    """Multi-modal adapters."""

    node = "MMADAPTER"
    model_name = "adapter_learner"
    changes_blocks = True
    bound_settings = ("ADAPTER_SCALE", "TEXT_CTX_INIT")

    @staticmethod
    def extend_cfg(cfg: CfgNode) -> None:
        cfg.TRAINER.MMADAPTER = node = CfgNode()
        #: words in front of the class name
        node.TEXT_CTX_INIT = "a photo of a"
        #: first adapter: 0 stands before the first block, i beside block i - 1
        node.ADAPTER_START = 5
        #: last adapter, counted so, included
        node.ADAPTER_END = 12
        #: width of the adapters
        node.ADAPTER_DIM = 32
        #: factor of what they add; their gradients are divided by it
        node.ADAPTER_SCALE = 0.001
        node.PREC = "amp"

    @classmethod
    def build_learner(cls, cfg: CfgNode, clip: CLIP, classnames: Sequence[str]) -> AdapterLearner:
        node, widths = cfg.TRAINER.MMADAPTER, require_vit(clip, "MMA")
        if not 0 <= node.ADAPTER_START <= node.ADAPTER_END <= widths.layers:
            raise ValueError(
                f"TRAINER.MMADAPTER.ADAPTER_START {node.ADAPTER_START} to ADAPTER_END "
                f"{node.ADAPTER_END}: this backbone takes 0 to {widths.layers}, both included"
            )
        check_least(node, "TRAINER.MMADAPTER", 1, "ADAPTER_DIM")
        if node.ADAPTER_SCALE <= 0:
            raise ValueError(
                f"TRAINER.MMADAPTER.ADAPTER_SCALE is {node.ADAPTER_SCALE}: gradients are divided "
                "by it, use more than 0"
            )
        return AdapterLearner(
            range(node.ADAPTER_START, node.ADAPTER_END + 1),
            node.ADAPTER_DIM,
            float(node.ADAPTER_SCALE),
            (widths.text, widths.vision),
            f"{node.TEXT_CTX_INIT} {{}}.".strip(),
        )
