"""LoR-VP: low-rank visual prompting, a learned picture added to every image.

Jin, Li, Xing, Zhu, Wang, Zhang, "LoR-VP: Low-Rank Visual Prompting for Efficient Vision Model
Adaptation", ICLR 2025, arXiv 2502.00896.

Per colour channel ``k`` the picture is a product of two low-rank factors (the paper's "bars"),
``P[k] = left[k] right[k]`` with ``left`` of shape (3, L, r) and ``right`` (3, r, L), ``L`` the
image side: 6 L r trained numbers, 5 376 at L = 224 and r = 4. The same picture is added to every
image in [0, 1], before normalisation, neither scaled nor clamped.

The paper adapts image classifiers with a new linear head. Here the frozen model is CLIP, and
``HEAD`` chooses the classifier:

* ``text`` (default): CLIP's text features of "a photo of a <class>.", so that the prompt can be
  compared with the other methods and can classify new classes;
* ``lp``: a linear head on the image features (not normalised), trained with the prompt, as in the
  paper;
* ``flm``, ``ilm``: CLIP classifies among source classes, and every target class takes the logit of
  one of them, chosen by frequency on the training images: once before training (``flm``) or anew
  in every epoch (``ilm``).

The released code never builds its prompt (the command line says ``lor_vp``, the code compares with
``LoR_VP``) and trains a linear probe alone. This file follows the paper and the prompt class.
Departures from that code: image pipeline, batches and a schedule per epoch are those of the other
methods; features are CLIP's (512 wide on ViT-B/16; there 768, of another backbone), so the linear
head has 512 C + C parameters; the result is that of the last epoch, not of the best one on the test
images; the log-softmax before the cross-entropy is left out (it changes nothing); source classes
are ImageNet's names or those of a file, since CLIP has none of its own. Its linear map of source
logits (``fm``) is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.init import kaiming_uniform_, normal_, uniform_, xavier_uniform_, zeros_

from adaptation.label_mapping import frequency_mapping, source_names
from adaptation.learner import Prediction, PromptLearner, Steps
from adaptation.texts import encode_templates
from adaptation.trainer import PromptTrainer
from clip.encoders import Encoders
from clip.model import CLIP
from dassl.config import CfgNode
from dassl.data.data_manager import build_data_loader
from dassl.data.transforms import image_size
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import check_availability

#: start values of a bar
STARTS: dict[str, Callable[[Tensor], Tensor]] = {
    "zero": zeros_,
    "random": normal_,
    "xavier": xavier_uniform_,
    "kaiming": lambda bar: kaiming_uniform_(bar, nonlinearity="relu"),
    "uniform": lambda bar: uniform_(bar, -0.1, 0.1),
    "normal": lambda bar: normal_(bar, std=0.01),
}
HEADS = ("text", "lp", "flm", "ilm")


class PixelPromptLearner(PromptLearner):
    """Low-rank picture that is added to the pixels, with its classifier.

    Args:
        side: image side ``L`` in pixels.
        rank: rank ``r`` of the picture.
        starts: names of the start values of the left and the right bar, keys of ``STARTS``.
        pixel_std: standard deviations per channel that images are divided by.
        head: linear head on the image features, or ``None``.
        source: ``(S, embed_dim)`` text features of the source classes, of norm exp(logit scale),
            or ``None``.
        n_classes: number of target classes ``C``, for the mapping.
    """

    pixel_std: Tensor
    changes_pixels = True

    source: Tensor  # None without source classes, and no mapping then
    mapping: Tensor

    def __init__(
        self,
        side: int,
        rank: int,
        starts: tuple[str, str],
        pixel_std: Sequence[float],
        head: nn.Linear | None = None,
        source: Tensor | None = None,
        n_classes: int = 0,
    ) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.empty(3, side, rank))
        self.right = nn.Parameter(torch.empty(3, rank, side))
        for bar, start in zip((self.left, self.right), starts, strict=True):
            STARTS[start](bar)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(3, 1, 1), persistent=False)
        self.head = head
        self.class_specific = head is not None or source is not None
        self.register_buffer("source", source, persistent=False)
        if source is not None:
            self.register_buffer("mapping", torch.arange(n_classes))

    @property
    def picture(self) -> Tensor:
        """Picture ``(3, side, side)`` that is added to an image in [0, 1]."""
        return self.left @ self.right

    def change_image(self, image: Tensor) -> Tensor:
        """Add the picture to normalised images ``(B, 3, side, side)``."""
        # equals (x + P - mean) / std for the image x in [0, 1]
        return image + self.picture / self.pixel_std

    def source_logits(self, image_features: Tensor) -> Tensor:
        """Compute the logits ``(B, S)`` of the source classes from features, normalised here."""
        return F.normalize(image_features, dim=-1) @ self.source.t()

    def image_features(self, clip: Steps, image: Tensor) -> Tensor:
        return super().image_features(clip, self.change_image(image))

    def forward(self, clip: Steps, image: Tensor) -> Prediction:
        raw = clip.encode_image(self.change_image(image))
        image_features, text_features = F.normalize(raw, dim=-1), clip.text_features()
        if self.head is not None:
            logits = self.head(raw)
        elif self.source is not None:
            logits = self.source_logits(raw)[:, self.mapping]
        else:
            logits = clip.logits(image_features, text_features)
        return Prediction(image_features, text_features, logits)


@TRAINER_REGISTRY.register()
class LoRVP(PromptTrainer):
    """Low-rank prompting of pixels."""

    node = "LORVP"

    @staticmethod
    def extend_cfg(cfg: CfgNode) -> None:
        cfg.TRAINER.LORVP = node = CfgNode()
        #: rank of the picture ("bar width" in the released code)
        node.RANK = 4
        #: starts of the left and the right bar: zero, random, normal, uniform, xavier or kaiming
        node.INIT = "zero,normal"
        #: classifier: class texts (text), a linear layer (lp), or source classes that are mapped to
        #: these by frequency, once (flm) or in each epoch (ilm)
        node.HEAD = "text"
        #: file of source class names for flm and ilm; empty: ImageNet's
        node.SOURCE_NAMES = ""
        node.PREC = "fp16"

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        node, side = cfg.TRAINER.LORVP, min(image_size(cfg.INPUT))
        starts = node.INIT.split(",")
        if len(starts) != 2 or not set(starts) <= STARTS.keys():
            raise ValueError(
                f"TRAINER.LORVP.INIT is {node.INIT!r}: give the start of the left and the right "
                f"bar, like 'zero,normal', each one of {', '.join(STARTS)}"
            )
        if starts == ["zero", "zero"]:
            raise ValueError("TRAINER.LORVP.INIT is 'zero,zero': two zero bars get no gradient")
        check_availability(node.HEAD, HEADS, "TRAINER.LORVP.HEAD")
        if not 1 <= node.RANK <= side:
            raise ValueError(f"TRAINER.LORVP.RANK is {node.RANK}: use 1 to {side}, the image side")

    @classmethod
    def build_learner(
        cls, cfg: CfgNode, clip: CLIP, classnames: Sequence[str]
    ) -> PixelPromptLearner:
        node = cfg.TRAINER[cls.node]
        encoders = Encoders(clip, cfg.MODEL.FAST_ENCODERS)
        head = source = None
        if node.HEAD == "lp":
            head = nn.Linear(clip.text_projection.shape[1], len(classnames))
        elif node.HEAD in ("flm", "ilm"):
            names = source_names(node.SOURCE_NAMES, "TRAINER.LORVP.SOURCE_NAMES")
            if len(names) < len(classnames):
                raise ValueError(
                    f"TRAINER.LORVP.HEAD {node.HEAD!r} maps every class to one of its own: "
                    f"{len(names)} source classes for {len(classnames)} classes are too few; "
                    "name more in TRAINER.LORVP.SOURCE_NAMES"
                )
            template = [PromptLearner.template]
            source = encode_templates(encoders, names, template, unit=True)
            source = clip.logit_scale.exp() * source
        normalised = "normalize" in cfg.INPUT.TRANSFORMS
        return PixelPromptLearner(
            side=clip.visual.input_resolution,
            rank=node.RANK,
            starts=tuple(node.INIT.split(",")),
            pixel_std=cfg.INPUT.PIXEL_STD if normalised else [1.0, 1.0, 1.0],
            head=head,
            source=source,
            n_classes=len(classnames),
        )

    def before_train(self) -> None:
        super().before_train()
        if self.node_cfg.HEAD == "flm" and self.start_epoch == 0:
            self.map_classes(self.model.encode_image)

    def before_epoch(self) -> None:
        super().before_epoch()
        if self.node_cfg.HEAD == "ilm":
            self.map_classes(self.model.image_features)

    @torch.no_grad()
    def map_classes(self, encode: Callable[[Tensor], Tensor]) -> None:
        """Choose the source class of every class on the training images, without augmentation.

        Args:
            encode: computes the image features of a batch.
        """
        learner = self.model.learner
        assert isinstance(learner, PixelPromptLearner)
        loader = build_data_loader(
            self.cfg,
            data_source=self.dm.dataset.train_x,
            batch_size=self.cfg.DATALOADER.TEST.BATCH_SIZE,
            tfm=self.dm.tfm_test,
            is_train=False,
        )
        predicted, labels = [], []
        for batch in loader:
            image, label = self.parse_batch_test(batch)
            predicted.append(learner.source_logits(encode(image).float()).argmax(dim=-1).cpu())
            labels.append(label.cpu())
        mapping = frequency_mapping(
            torch.cat(predicted),
            torch.cat(labels),
            n_source=len(learner.source),
            n_target=len(learner.mapping),
        )
        learner.mapping.copy_(mapping)
