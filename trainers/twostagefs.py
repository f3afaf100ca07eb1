"""2SFS: layer norms of both encoders first, then a classifier on their features.

Farina et al., "Rethinking Few-Shot Adaptation of Vision-Language Models in Two Stages", CVPR 2025,
arXiv 2503.11609; code: FarinaMatteo/rethinking_fewshot_vlms.

As in its code: weights and biases of both layer norms of every block learn in the first stage,
``ln_pre``, ``ln_post`` and ``ln_final`` do not (its optimiser has them, and their gradients are
switched off); the second stage begins with the text features of the first as rows of a cosine
classifier, with another optimiser and schedule, and trains the rows alone; 300 training steps for
each shot, of which the first stage has a share of 0.6; a test takes the rows of the classes it
knows by name, of equal names the last, and encodes the names of the others. One text and one
setting for all data sets.

Departures: of what may learn in the first stage, layer norms alone are offered (there also
CLIP-LoRA's terms, and biases); a step that automatic mixed precision skips counts (there: in the
first stage it does not); shots are drawn as for all methods here unless ``DATASET.SHARED_SHOTS``
takes those of its published lists.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaptation.learner import PromptLearner, Steps
from adaptation.starts import check_depth, require_vit
from adaptation.trainer import PromptTrainer
from clip.changes import BlockChange, LayerChanges, Norm
from clip.model import CLIP
from dassl.config import CfgNode
from dassl.engine import TRAINER_REGISTRY
from dassl.engine.length import iterations
from dassl.utils import check_availability

MODALITIES = ("text", "vision", "both")
UPSTREAM = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(ln_[12])\.(weight|bias)")


class NormsLearner(PromptLearner):
    """Layer norms, and from the second stage on a row for each class.

    Args:
        text, vision: block number -> name of a layer norm -> the layer norm that it starts from.
    """

    #: ``(C, embed_dim)``, in the second stage
    rows: nn.Parameter | None

    def __init__(
        self,
        text: Mapping[int, Mapping[str, nn.LayerNorm]],
        vision: Mapping[int, Mapping[str, nn.LayerNorm]],
        embed_dim: int,
    ) -> None:
        super().__init__()

        def copied(blocks: Mapping[int, Mapping[str, nn.LayerNorm]]) -> nn.ModuleDict:
            found = nn.ModuleDict({str(n): nn.ModuleDict(norms) for n, norms in blocks.items()})
            return copy.deepcopy(found).requires_grad_(True)

        self.text, self.vision, self.embed_dim = copied(text), copied(vision), embed_dim
        self.register_parameter("rows", None)
        self.row_names: tuple[str, ...] = ()

    def _changes(self, blocks: Any) -> LayerChanges | None:
        def norm(module: nn.LayerNorm) -> Norm:
            return module.weight, module.bias

        return {
            int(number): BlockChange(ln_1=norm(norms["ln_1"]), ln_2=norm(norms["ln_2"]))
            for number, norms in blocks.items()
        } or None

    def text_changes(self) -> LayerChanges | None:
        return self._changes(self.text)

    def image_changes(self) -> LayerChanges | None:
        return self._changes(self.vision)

    def image_features(self, clip: Steps, image: Tensor) -> Tensor:
        trains = torch.is_grad_enabled() and self.rows is None
        with torch.set_grad_enabled(trains):
            return super().image_features(clip, image)

    def text_features(self, clip: Steps) -> Tensor:
        if self.rows is None:
            return super().text_features(clip)
        rows = F.normalize(self.rows, dim=-1)
        if self.training:
            return rows
        features = self.class_features()
        known = [number for number, name in enumerate(clip.classnames) if name in features]
        if known and len(known) == len(clip.classnames):
            return torch.stack([features[name] for name in clip.classnames])
        text = super().text_features(clip).clone()
        for number in known:
            text[number] = features[clip.classnames[number]].to(text.dtype)
        return text

    def class_features(self) -> Mapping[str, Tensor]:
        if self.rows is None:
            return {}
        # the last of equal names
        return dict(zip(self.row_names, F.normalize(self.rows, dim=-1), strict=True))

    def begin_rows(self, start: Tensor, classnames: Sequence[str]) -> None:
        """Classify by rows of the classes from now on.

        Args:
            start: ``(C, embed_dim)``.
            classnames: the ``C`` classes.
        """
        self.rows, self.row_names = nn.Parameter(start.detach().clone()), tuple(classnames)

    def make_room(self, weights: Mapping[str, Tensor], classnames: Sequence[str]) -> None:
        if "rows" in weights:
            device = next((p.device for p in self.parameters()), None)
            self.begin_rows(torch.zeros(len(classnames), self.embed_dim, device=device), classnames)

    def from_upstream(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        for key, value in weights.items():
            if match := UPSTREAM.fullmatch(key):
                key = f"{'vision' if match[1] else 'text'}.{match[2]}.{match[3]}.{match[4]}"
            found["rows" if key == "classifier" else key] = value
        return found


@TRAINER_REGISTRY.register()
class TwoStageFS(PromptTrainer):
    """Two-stage few-shot adaptation (2SFS)."""

    node = "TWOSTAGE"
    model_name = "two_stage"
    changes_blocks = True
    bound_settings = ("LN_MODALITY", "LN_VISION_START", "LN_TEXT_START")
    extends = False

    @staticmethod
    def extend_cfg(cfg: CfgNode) -> None:
        cfg.TRAINER.TWOSTAGE = node = CfgNode()
        #: share of the run that trains the layer norms; with 1 there is no classifier
        node.N_ITERS_FRAC = 0.6
        #: encoders whose layer norms learn: text, vision or both
        node.LN_MODALITY = "both"
        #: first block of the image encoder whose layer norms learn, from 0
        node.LN_VISION_START = 0
        #: first block of the text encoder whose layer norms learn, from 0
        node.LN_TEXT_START = 0
        node.PREC = "amp"

    def check_cfg(self, cfg: CfgNode) -> None:
        node = cfg.TRAINER.TWOSTAGE
        check_availability(node.LN_MODALITY, MODALITIES, "TRAINER.TWOSTAGE.LN_MODALITY")
        if not 0 < node.N_ITERS_FRAC <= 1:
            raise ValueError(
                f"TRAINER.TWOSTAGE.N_ITERS_FRAC is {node.N_ITERS_FRAC}: use more than 0, up to 1"
            )
        super().check_cfg(cfg)

    @classmethod
    def build_learner(cls, cfg: CfgNode, clip: CLIP, classnames: Sequence[str]) -> NormsLearner:
        node = cfg.TRAINER.TWOSTAGE

        def norms(tower: str, transformer: Any) -> dict[int, dict[str, nn.LayerNorm]]:
            if node.LN_MODALITY not in (tower, "both"):
                return {}
            blocks, key = transformer.resblocks, f"LN_{tower.upper()}_START"
            check_depth(node[key], len(blocks) - 1, f"TRAINER.TWOSTAGE.{key}", lowest=0)
            return {
                n: {"ln_1": block.ln_1, "ln_2": block.ln_2}
                for n, block in enumerate(blocks)
                if n >= node[key]
            }

        if node.LN_MODALITY != "text":
            require_vit(clip, "TwoStageFS")
        vision = norms("vision", getattr(clip.visual, "transformer", None))
        text = norms("text", clip.transformer)
        return NormsLearner(text, vision, clip.text_projection.shape[1])

    def stages(self, length: int) -> Sequence[int]:
        whole = iterations(self.cfg) or self.cfg.OPTIM.MAX_EPOCH
        first = min(length, int(self.node_cfg.N_ITERS_FRAC * whole))
        return [first, length - first]

    def begin_stage(self, stage: int) -> None:
        model, learner = self.model, cast("NormsLearner", self.model.learner)
        learner.register_parameter("rows", None)
        with torch.no_grad():
            start = learner.text_features(model)
        learner.begin_rows(start, model.classnames)
        model.forget_text()
        self.new_optimiser([learner.rows], stage)
        print(f"Stage 2: a classifier of {start.numel():,} parameters")
