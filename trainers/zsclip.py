"""Zero-shot CLIP: hand-written templates, nothing trained.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021,
arXiv 2103.00020; protocol as in CoOp's code.

Departures from CoOp's code: a data set without a template of its own gets "a photo of a {}."
(there: an error); building the ensemble twice in a process gives the same templates (there: the
data set's template is appended once more each time); on the CPU the model runs in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from adaptation.classifier import PromptedCLIP
from adaptation.config import check_shared_keys
from adaptation.learner import PromptLearner, Steps
from adaptation.templates import dataset_template, ensemble_templates, given_templates
from adaptation.trainer import check_backbone, load_clip
from clip.model import CLIP
from dassl.config import CfgNode
from dassl.engine import TRAINER_REGISTRY, TrainerX


class EnsembleLearner(PromptLearner):
    """Nothing to learn: text features are averages over the templates of the classifier."""

    def text_features(self, clip: Steps) -> Tensor:
        return F.normalize(clip.raw_text_features(unit=True), dim=-1)


@TRAINER_REGISTRY.register()
class ZeroshotCLIP(TrainerX):
    """Zero-shot CLIP with one template: the first of DATASET.TEMPLATES, else the data set's own.

    No shots are drawn, whatever DATASET.NUM_SHOTS says.
    """

    splits_batches = True  # there is no loss
    trains = False

    def __init__(self, cfg: CfgNode) -> None:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.DATASET.NUM_SHOTS = -1
        cfg.freeze()
        super().__init__(cfg)

    def check_cfg(self, cfg: CfgNode) -> None:
        check_backbone(cfg)
        check_shared_keys(cfg)

    @classmethod
    def templates(cls, cfg: CfgNode, given: Sequence[str] = ()) -> tuple[str, ...]:
        """Return the templates to average over: ``given`` ones, else the data set's own."""
        return tuple(given[:1]) or (dataset_template(cfg.DATASET.NAME),)

    @classmethod
    @torch.no_grad()
    def build_classifier(
        cls,
        cfg: CfgNode,
        clip: CLIP,
        classnames: Sequence[str],
        templates: Sequence[str] = (),
    ) -> PromptedCLIP:
        """Build a classifier from CLIP, on its device; no data set is needed.

        Args:
            cfg: the whole config.
            clip: model to freeze and use; off the CPU it computes in the type that it has.
            classnames: the classes to tell apart.
            templates: templates in place of the data set's own.
        """
        texts = cls.templates(cfg, templates)
        learner = PromptLearner() if len(texts) == 1 else EnsembleLearner()
        learner.template = texts[0]
        in_half = clip.logit_scale.device.type != "cpu" and clip.dtype == torch.float16
        model = PromptedCLIP(
            clip,
            learner,
            classnames,
            precision="fp16" if in_half else "fp32",
            teacher_templates=texts,
            fast=cfg.MODEL.FAST_ENCODERS,
            memory_gb=cfg.MODEL.MEMORY_GB,
        ).eval()
        model.text_features()  # at once, and by all processes of a run
        return model

    def build_model(self) -> None:
        print(f"Loading CLIP (backbone: {self.cfg.MODEL.BACKBONE.NAME})")
        clip = load_clip(self.cfg, self.device)
        dataset = self.dm.dataset
        self.given_templates = given_templates(self.cfg.DATASET.TEMPLATES, dataset.dataset_dir)
        print(f"Templates: {self.templates(self.cfg, self.given_templates)}")
        self.model = self.build_classifier(self.cfg, clip, dataset.classnames, self.given_templates)

    def train(self) -> None:  # type: ignore[override]  # as SimpleTrainer's
        """Test at once, since there is nothing to train."""
        print(f"{self.cfg.TRAINER.NAME} has nothing to train")
        self.test()

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Do nothing: no weights are trained, so none are saved."""


@TRAINER_REGISTRY.register()
class ZeroshotCLIP2(ZeroshotCLIP):
    """Ensemble: DATASET.TEMPLATES, else ImageNet's seven selected templates and the data set's own.

    Features are brought to unit norm, averaged over the templates, and brought to unit norm again.
    """

    @classmethod
    def templates(cls, cfg: CfgNode, given: Sequence[str] = ()) -> tuple[str, ...]:
        return tuple(given) or ensemble_templates(cfg.DATASET.NAME)
