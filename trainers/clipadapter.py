"""CLIP-Adapter: a small network on CLIP's image features, mixed with them.

Gao et al., "CLIP-Adapter: Better Vision-Language Models with Feature Adapters", IJCV 2024,
arXiv 2110.04544; code: gaopengcuhk/CLIP-Adapter. Two linear maps without bias and a hidden layer a
quarter as wide as the features.

As in its code: a ReLU also behind the second map; the network reads raw features, and its result is
mixed with raw features before they are brought to unit norm; one text per data set, and a ratio of
0.2 everywhere (the paper chooses it per data set and can adapt the text as well, of which the code
has nothing). Departures: the widths follow the backbone (there: 1024, so ResNet-50 only); the text
is encoded once (there: at every step, with the same result); every ``PREC`` works (there: float32).
The code has no settings of its own and points to CoOp's: those of its 50 epochs are shipped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor

from adaptation.learner import PromptLearner, Steps
from adaptation.learners import FeatureAdapter
from adaptation.templates import dataset_template
from adaptation.trainer import PromptTrainer
from clip.model import CLIP
from dassl.config import CfgNode
from dassl.engine import TRAINER_REGISTRY


class ImageAdapterLearner(FeatureAdapter, PromptLearner):
    """Adapter behind the image encoder.

    Args:
        width: of the features.
        reduction: how many times narrower the hidden layer is.
        share: of the adapter's result in the features, 0 to 1.
        template: frozen words around the class name.
    """

    def __init__(self, width: int, reduction: int, share: float, template: str) -> None:
        super().__init__(width, reduction, share)
        self.template = template

    def image_features(self, clip: Steps, image: Tensor) -> Tensor:
        return F.normalize(self.mix(clip.encode_image(image)), dim=-1)

    def from_upstream(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {key.removeprefix("adapter."): value for key, value in weights.items()}


@TRAINER_REGISTRY.register()
class CLIPAdapter(PromptTrainer):
    """Adapter on image features."""

    node = "CLIPADAPTER"
    model_name = "clip_adapter"
    bound_settings = ("RATIO",)

    @staticmethod
    def extend_cfg(cfg: CfgNode) -> None:
        cfg.TRAINER.CLIPADAPTER = node = CfgNode()
        #: share of the adapter's result in the image features, 0 to 1
        node.RATIO = 0.2
        #: how many times narrower the hidden layer is than the features
        node.REDUCTION = 4
        node.PREC = "fp32"

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        ratio = cfg.TRAINER.CLIPADAPTER.RATIO
        if not 0 < ratio <= 1:
            raise ValueError(
                f"TRAINER.CLIPADAPTER.RATIO is {ratio}: use more than 0, and at most 1"
            )

    @classmethod
    def build_learner(
        cls, cfg: CfgNode, clip: CLIP, classnames: Sequence[str]
    ) -> ImageAdapterLearner:
        node, width = cfg.TRAINER[cls.node], clip.text_projection.shape[1]
        if not 1 <= node.REDUCTION <= width:
            raise ValueError(
                f"TRAINER.CLIPADAPTER.REDUCTION is {node.REDUCTION}: this backbone, whose features "
                f"have {width} values, takes 1 to {width}"
            )
        template = dataset_template(cfg.DATASET.NAME)
        return ImageAdapterLearner(width, node.REDUCTION, node.RATIO, template)
