"""CLIP-LoRA: low-rank terms of attention's projections in both encoders, one setting for all data.

Zanella and Ben Ayed, "Low-Rank Few-Shot Adaptation of Vision-Language Models", CVPR Workshops 2024,
arXiv 2405.18541; code: MaxZanella/CLIP-LoRA.

As in its code: the factor of a term is alpha / sqrt(r); dropout of each term's input is drawn anew
for each projection, block, position and text; logits are cosines times 100, whatever CLIP's own
scale; 500 training steps for each shot, the learning rate changes with every step, the last batch
of an epoch may be short; one text for all data sets.

Departures: training and evaluation logits are on one scale (there: plain cosines in tests);
``DROPOUT`` 0 has the right gradients (there: the gradients that flow into a layer pass by the
terms); thirds and halves of the blocks are defined for any depth; terms stay apart from the
weights, in float32, so every ``PREC`` works; shots are drawn as for all methods here (there:
validation images first, and with replacement).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adaptation.learner import PromptLearner
from adaptation.starts import check_least, clip_widths, require_vit
from adaptation.trainer import PromptTrainer
from clip.changes import BlockChange, LayerChanges, LowRank
from clip.model import CLIP
from dassl.config import CfgNode
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import check_availability

ENCODERS = ("text", "vision", "both")
#: name of a group of blocks -> where it begins and ends, as shares of the depth
POSITIONS = {
    "all": (0, 1),
    "bottom": (0, 1 / 3),
    "mid": (1 / 3, 2 / 3),
    "up": (2 / 3, 1),
    "half-bottom": (0, 1 / 2),
    "half-up": (1 / 2, 1),
}
#: letter of a projection in PARAMS -> its field in a change, and its name in the published code
PROJECTIONS = {
    "q": ("query", "q_proj"),
    "k": ("key", "k_proj"),
    "v": ("value", "v_proj"),
    "o": ("out", "proj"),
}
UPSTREAM = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.attn\.(\w+)\.w_lora_([AB])")
#: settings that the published code keeps beside its weights, and their keys here
METADATA = {name: name.upper() for name in ("r", "alpha", "encoder", "params", "position")}


def chosen_blocks(position: str, n_blocks: int) -> range:
    """Return the numbers of the blocks that a position names."""
    if position == "top3":
        return range(max(0, n_blocks - 3), n_blocks)
    start, stop = POSITIONS[position]
    return range(round(start * n_blocks), round(stop * n_blocks))


class Term(nn.Module):
    """A low-rank term of one projection; it starts at zero.

    Args:
        width: of the encoder.
        rank: of the term.
        dropout: share of its input that is dropped in training.
    """

    def __init__(self, width: int, rank: int, dropout: float) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, width).uniform_(-(width**-0.5), width**-0.5))
        self.up = nn.Parameter(torch.zeros(width, rank))
        self.dropout, self.drop = dropout, nn.Dropout(dropout)

    def change(self, scale: float) -> LowRank:
        """Return the term as a change of a block."""
        draws = self.training and self.dropout > 0
        return LowRank(self.down, self.up, scale, self.drop if draws else None)


class LowRankLearner(PromptLearner):
    """Low-rank terms of the projections of some blocks.

    Args:
        text, vision: block number -> letters of its projections -> term, of either encoder.
        scale: factor of all terms.
    """

    #: that of OpenAI's models, for all
    logit_scale = 100.0

    def __init__(
        self,
        text: Mapping[int, Mapping[str, Term]],
        vision: Mapping[int, Mapping[str, Term]],
        scale: float,
    ) -> None:
        super().__init__()

        def modules(blocks: Mapping[int, Mapping[str, Term]]) -> nn.ModuleDict:
            return nn.ModuleDict({str(n): nn.ModuleDict(terms) for n, terms in blocks.items()})

        self.text, self.vision, self.scale = modules(text), modules(vision), scale

    def _changes(self, blocks: Any) -> LayerChanges | None:
        def change(terms: Any) -> BlockChange:
            of = {PROJECTIONS[p][0]: term.change(self.scale) for p, term in terms.items()}
            return BlockChange(**of)

        return {int(number): change(terms) for number, terms in blocks.items()} or None

    def places(self) -> list[str]:
        """Return the changed blocks by the published code's names, in its order."""
        text = [f"transformer.resblocks.{number}" for number in self.text]
        return text + [f"visual.transformer.resblocks.{number}" for number in self.vision]

    def text_changes(self) -> LayerChanges | None:
        return self._changes(self.text)

    def image_changes(self) -> LayerChanges | None:
        return self._changes(self.vision)

    def from_upstream(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        letters = {name: letter for letter, (_, name) in PROJECTIONS.items()}
        found = {}
        for key, value in weights.items():
            if (match := UPSTREAM.fullmatch(key)) and match[3] in letters:
                tower = "vision" if match[1] else "text"
                part = "down" if match[4] == "A" else "up"
                key = f"{tower}.{match[2]}.{letters[match[3]]}.{part}"
            found[key] = value
        return found

    def to_upstream(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        for key, value in weights.items():
            tower, number, letter, part = key.split(".")
            start = "visual." if tower == "vision" else ""
            name = f"{start}transformer.resblocks.{number}.attn.{PROJECTIONS[letter][1]}"
            found[f"{name}.w_lora_{'A' if part == 'down' else 'B'}"] = value
        return found


@TRAINER_REGISTRY.register()
class CLIPLoRA(PromptTrainer):
    """Low-rank adaptation of CLIP's attention."""

    node = "CLIPLORA"
    model_name = "clip_lora"
    changes_blocks = True
    bound_settings = ("R", "ALPHA", "ENCODER", "PARAMS", "POSITION")

    @staticmethod
    def extend_cfg(cfg: CfgNode) -> None:
        cfg.TRAINER.CLIPLORA = node = CfgNode()
        #: which encoders change: text, vision or both
        node.ENCODER = "both"
        #: which blocks: all, bottom, mid, up (thirds), half-bottom, half-up, top3
        node.POSITION = "all"
        #: projections of attention: some of q, k, v, o (output)
        node.PARAMS = ("q", "k", "v")
        #: rank of the terms
        node.R = 2
        #: a term's factor is ALPHA / sqrt(R)
        node.ALPHA = 1.0
        #: share of a term's input that is dropped in training
        node.DROPOUT = 0.25
        node.PREC = "amp"

    def check_cfg(self, cfg: CfgNode) -> None:
        node = cfg.TRAINER.CLIPLORA
        check_availability(node.ENCODER, ENCODERS, "TRAINER.CLIPLORA.ENCODER")
        check_availability(node.POSITION, [*POSITIONS, "top3"], "TRAINER.CLIPLORA.POSITION")
        if not node.PARAMS or len({*node.PARAMS}) < len(node.PARAMS):
            raise ValueError(
                f"TRAINER.CLIPLORA.PARAMS is {tuple(node.PARAMS)}: name each of some of "
                f"{', '.join(PROJECTIONS)} once"
            )
        for letter in node.PARAMS:
            check_availability(letter, PROJECTIONS, "TRAINER.CLIPLORA.PARAMS")
        check_least(node, "TRAINER.CLIPLORA", 1, "R")
        if not 0 <= node.DROPOUT < 1:
            raise ValueError(f"TRAINER.CLIPLORA.DROPOUT is {node.DROPOUT}: use 0 to below 1")
        super().check_cfg(cfg)

    @classmethod
    def draws_in_steps(cls, cfg: CfgNode) -> str | None:
        return "TRAINER.CLIPLORA.DROPOUT" if cfg.TRAINER.CLIPLORA.DROPOUT else None

    @classmethod
    def build_learner(cls, cfg: CfgNode, clip: CLIP, classnames: Sequence[str]) -> LowRankLearner:
        node, widths = cfg.TRAINER.CLIPLORA, clip_widths(clip)

        def terms(tower: str, width: int, n_blocks: int) -> dict[int, dict[str, Term]]:
            if node.ENCODER not in (tower, "both"):
                return {}
            blocks = chosen_blocks(node.POSITION, n_blocks)
            return {n: {p: Term(width, node.R, node.DROPOUT) for p in node.PARAMS} for n in blocks}

        if node.ENCODER != "text":
            require_vit(clip, "CLIPLoRA")
        text = terms("text", widths.text, widths.text_layers)
        vision = terms("vision", widths.vision, widths.vision_layers)
        return LowRankLearner(text, vision, node.ALPHA / node.R**0.5)

    def read_published(self, content: Mapping[str, Any], path: str) -> Mapping[str, Any]:
        """Read what the published code saves: its settings, and layers, those of the text first."""
        if not {"weights", "metadata"} <= content.keys():
            return content
        stored, layers = content["metadata"], content["weights"]
        if not isinstance(stored, Mapping) or not isinstance(layers, Mapping):
            raise ValueError(f"{path} is damaged: its weights and metadata are no tables")
        for name, key in METADATA.items():
            theirs, mine = stored.get(name), self.node_cfg[key]
            if isinstance(mine, tuple) and isinstance(theirs, tuple | list):
                theirs = tuple(theirs)
            if theirs != mine:
                raise ValueError(
                    f"{path} was trained with {name} {theirs}, this run has {mine}: set "
                    f"TRAINER.CLIPLORA.{key}"
                )
        weights = {}
        learner: Any = self.model.learner
        for number, place in enumerate(learner.places()):
            layer = layers.get(f"layer_{number}")
            for name, pair in layer.items() if isinstance(layer, Mapping) else ():
                for part, value in pair.items() if isinstance(pair, Mapping) else ():
                    weights[f"{place}.attn.{name}.{part}"] = value
        return {"state_dict": weights, "epoch": 0}

    @classmethod
    def write_published(cls, cfg: CfgNode, learner: Any) -> dict[str, Any]:
        """Return what the published code saves of a learner; inverse of ``read_published``."""
        weights = learner.to_upstream(learner.state_dict())
        layers: dict[str, dict[str, dict[str, Tensor]]] = {}
        for number, place in enumerate(learner.places()):
            layer = layers[f"layer_{number}"] = {}
            for key in (key for key in weights if key.startswith(f"{place}.attn.")):
                name, part = key.split(".")[-2:]
                layer.setdefault(name, {})[part] = weights[key]
        stored = {name: cfg.TRAINER.CLIPLORA[key] for name, key in METADATA.items()}
        return {"weights": layers, "metadata": stored | {"params": list(stored["params"])}}
