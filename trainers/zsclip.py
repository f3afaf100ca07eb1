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
from torch import Tensor, nn

from adaptation.config import check_shared_keys
from adaptation.savings.memory import MemoryBound, image_bytes, text_bytes
from adaptation.templates import dataset_template, ensemble_templates, given_templates
from adaptation.texts import MAX_SEQUENCES, class_prompts, encode_templates
from adaptation.trainer import check_backbone, load_clip
from clip.encoders import Encoders
from clip.model import CLIP
from dassl.config import CfgNode
from dassl.engine import TRAINER_REGISTRY, TrainerX


class ZeroshotClassifier(nn.Module):
    """Classifier by scaled cosine similarity of images to fixed text features.

    Args:
        encoders: of the frozen model.
        text_features: ``(C, embed_dim)``, unit norm, float32.
        memory: memory bound of a batch; larger batches are split.
    """

    text_features: Tensor

    def __init__(
        self,
        encoders: Encoders,
        text_features: Tensor,
        memory: MemoryBound | None = None,
    ) -> None:
        super().__init__()
        self.clip, self.encoders, self.memory = encoders.clip, encoders, memory
        self.register_buffer("text_features", text_features)

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """Compute the logits ``(B, C)`` of normalised images ``(B, 3, side, side)``."""
        at_once = max(1, len(image))
        if self.memory:
            at_once = self.memory.how_many_fit(image_bytes(self.clip), "an image")
        encoded = [self.encoders.encode_image(part).float() for part in image.split(at_once)]
        features = F.normalize(torch.cat(encoded), dim=-1)  # (B, embed_dim)
        return self.clip.logit_scale.exp() * features @ self.text_features.t()


@TRAINER_REGISTRY.register()
class ZeroshotCLIP(TrainerX):
    """Zero-shot CLIP with one template: the first of DATASET.TEMPLATES, else the data set's own.

    No shots are drawn, whatever DATASET.NUM_SHOTS says.
    """

    splits_batches = True  # there is no loss

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
    ) -> ZeroshotClassifier:
        """Build a classifier from CLIP, on its device; no data set is needed.

        Args:
            cfg: the whole config.
            clip: model to freeze and use.
            classnames: the classes to tell apart.
            templates: templates in place of the data set's own.
        """
        clip.requires_grad_(False)
        if clip.logit_scale.device.type == "cpu":
            clip.float()
        encoders = Encoders(clip, cfg.MODEL.FAST_ENCODERS)
        texts, size = cls.templates(cfg, templates), MAX_SEQUENCES
        if memory := MemoryBound(cfg.MODEL.MEMORY_GB):
            prompts = (class_prompts(clip, classnames, text) for text in texts)
            bytes_each = max(text_bytes(clip, prompt) for prompt in prompts)
            size = min(size, memory.how_many_fit(bytes_each, "the text"))
        text = encode_templates(encoders, classnames, texts, unit=True, size=size)
        return ZeroshotClassifier(encoders, text, memory)

    def build_model(self) -> None:
        print(f"Loading CLIP (backbone: {self.cfg.MODEL.BACKBONE.NAME})")
        clip = load_clip(self.cfg, self.device)
        dataset = self.dm.dataset
        given = given_templates(self.cfg.DATASET.TEMPLATES, dataset.dataset_dir)
        print(f"Templates: {self.templates(self.cfg, given)}")
        self.model = self.build_classifier(self.cfg, clip, dataset.classnames, given)

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
