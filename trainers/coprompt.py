"""CoPrompt: MaPLe's prompts and an adapter of either feature, kept consistent with the frozen CLIP.

Roy and Etemad, "Consistency-guided Prompt Learning for Vision-Language Models", ICLR 2024, arXiv
2306.01195; code: ShuvenduRoy/CoPrompt. Two views of every training image are drawn
(``DATALOADER.K_TRANSFORMS`` 2): the learner classifies the first, and its features stay near the
frozen CLIP's of the second, as its text features do near those of sentences about the classes
(:mod:`adaptation.sentences`).

As in its code: prompts and template are MaPLe's for every data set; adapters have a quarter of the
features' width, no bias, a ReLU behind both layers, and a share of 0.1 (image) and 0.2 (text); the
distances are taken behind the adapters; a step draws one sentence number for all classes, from
Python's generator, and no average is ever taken; cross-entropy, too, sees images of the training
transform, squashed and without crops. Departures: settings have a node of their own (there: W and
DISTILL outside); the settings of a data set stand in the config files, and the command line wins
over them (there: it loses); sentences are read where they are needed, which is in training
(there: in tests as well), class names match in any case; everything learned is float32 (there:
prompts pass through half precision in every mode); transfer to other data sets works (there: it
stops, or drops prompts); RandAugment draws from PyTorch's generator, and its solarise-add runs
(there: an error with NumPy from 1.24 on). DISTILL takes "mse" (there:
any other text).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adaptation.learner import Prediction, Steps
from adaptation.learners import (
    FeatureAdapter,
    MappedPromptLearner,
    start_of_coupled_prompts,
)
from adaptation.losses import cosine_distance
from adaptation.sentences import find_sentences, read_sentences
from adaptation.trainer import PromptTrainer
from clip.model import CLIP
from dassl.config import CfgNode
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import check_availability

#: shares of the adapters in the features
IMAGE_SHARE, TEXT_SHARE = 0.1, 0.2
#: widths of features over that of the adapters' hidden layer
REDUCTION = 4

DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": cosine_distance,
    "mse": F.mse_loss,
}


class CoPromptLearner(MappedPromptLearner):
    """MaPLe's prompts, and an adapter behind either encoder.

    Args:
        embed_dim: width of the features.
        prompts: arguments of :class:`MappedPromptLearner`.
    """

    def __init__(self, embed_dim: int, **prompts: Any) -> None:
        super().__init__(**prompts)
        self.adapter_image = FeatureAdapter(embed_dim, REDUCTION, IMAGE_SHARE)
        self.adapter_text = FeatureAdapter(embed_dim, REDUCTION, TEXT_SHARE)

    def text_features(self, clip: Steps) -> Tensor:
        return F.normalize(self.adapter_text.mix(clip.encode_text(self.text_changes())), dim=-1)

    def image_features(self, clip: Steps, image: Tensor) -> Tensor:
        features = clip.encode_image(image, self.image_changes())
        return F.normalize(self.adapter_image.mix(features), dim=-1)

    def to_upstream(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        adapters = {key: value for key, value in weights.items() if key.startswith("adapter_")}
        prompts = {key: value for key, value in weights.items() if key not in adapters}
        return super().to_upstream(prompts) | adapters


@TRAINER_REGISTRY.register()
class CoPrompt(PromptTrainer):
    """Consistency-guided prompt learning."""

    node = "COPROMPT"
    model_name = "MultiModalPromptLearner"
    most_views = 2

    @staticmethod
    def extend_cfg(cfg: CfgNode) -> None:
        cfg.TRAINER.COPROMPT = node = CfgNode()
        #: prompt tokens per block
        node.N_CTX = 2
        #: words that the first text prompt starts from
        node.CTX_INIT = "a photo of a"
        node.PREC = "fp16"
        #: prompted blocks, input layer included
        node.PROMPT_DEPTH = 9
        #: weight of both distances to the frozen features
        node.W = 8.0
        #: the distance: cosine (one minus it) or mse
        node.DISTILL = "cosine"
        #: sentences about the classes, for training: a .json file, or a folder of files
        #: <data set>_prompt.json; relative to DATASET.ROOT, or else to the repository
        node.SENTENCES = "gpt_file"

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        check_availability(cfg.TRAINER.COPROMPT.DISTILL, DISTANCES, "TRAINER.COPROMPT.DISTILL")

    @classmethod
    def build_learner(cls, cfg: CfgNode, clip: CLIP, classnames: Sequence[str]) -> CoPromptLearner:
        prompts = start_of_coupled_prompts(clip, cfg.TRAINER[cls.node], cls.node, "CoPrompt")
        return CoPromptLearner(clip.text_projection.shape[1], **prompts)

    def build_model(self) -> None:
        super().build_model()
        self._sentences: tuple[list[str], list[list[str]]] | None = None
        #: (1,) number of the sentence that the step reads, drawn for every batch
        self.drawn = torch.zeros(1, dtype=torch.long, device=self.device)

    def sentences(self) -> list[list[str]]:
        """Return the sentences of the present classes, read from their file on first use.

        Raises:
            FileNotFoundError, ValueError: there is no file, or it does not fit.
        """
        names = self.model.classnames
        if self._sentences is None or self._sentences[0] != names:
            cfg, given = self.cfg.DATASET, self.node_cfg.SENTENCES
            path = find_sentences(given, cfg.ROOT, cfg.NAME, f"TRAINER.{self.node}.SENTENCES")
            length = self.model.clip.context_length
            self._sentences = list(names), read_sentences(path, names, length)
        return self._sentences[1]

    def before_train(self) -> None:
        self.sentences()  # what is wrong with them is said before anything is trained
        super().before_train()

    def parse_batch_train(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Move a batch to the device, and draw the number of its sentence."""
        self.drawn.fill_(random.randint(0, len(self.sentences()[0]) - 1))
        return super().parse_batch_train(batch)

    def loss(self, prediction: Prediction, label: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        bank = self.model.frozen_sentence_features(self.sentences())  # (S, C, embed_dim)
        taught = bank.index_select(0, self.drawn).squeeze(0)  # (C, embed_dim)
        distance, frozen = DISTANCES[self.node_cfg.DISTILL], prediction.frozen()
        ce = F.cross_entropy(prediction.logits, label)
        text = distance(prediction.text_features, taught)
        image = distance(prediction.image_features, frozen.image_features)
        loss = ce + self.node_cfg.W * (text + image)
        return loss, {"ce": ce, "text": text, "image": image}
