"""Tip-Adapter and Tip-Adapter-F: a cache of training features beside CLIP's text classifier.

Zhang et al., "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification", ECCV 2022,
arXiv 2207.09519; code: gaopengcuhk/Tip-Adapter.

With unit features ``f``, text features ``t_k`` of class ``k``, and a key ``c_i`` of each training
image, the logit of class ``k`` is ``100 f.t_k + alpha sum_i exp(-beta (1 - f.c_i))`` over the
images ``i`` of the class. Tip-Adapter trains nothing; Tip-Adapter-F trains the keys.

As in the code: a key is the mean of the raw features of ten views, brought to unit norm; text
features are unit ones, averaged over seven texts on ImageNet; the factor is the number 100, not
CLIP's; (beta, alpha) come from a grid without its upper ends, of equal pairs the smallest beta and
then the smallest alpha, and (0, 0) if nothing is right; keys are not normalised again while they
are trained; the published settings per data set stand in ``configs/trainers``, where a class with
too few images is filled up and all validation images are read.

Departures: the pair is searched on validation images, on ImageNet (which has none) not at all, and
Tip-Adapter-F's epoch is the best on validation images (there: ImageNet's pair and every epoch are
chosen on test images, and of the two accuracies the larger is printed); ``SELECT_ON test`` and
``TEST.FINAL_MODEL best_test`` repeat these choices, and results say so. After a choice of the epoch
the searched pair always counts. Everything but CLIP is float32 in every precision (there: half).
Files of keys named after data set and shots alone, stale with another backbone, are not kept. Those
of the published code are read (``--model-dir caches/<data set>/keys_16shots.pt``, of
Tip-Adapter-F ``best_F_16shots.pt``, with ``values_16shots.pt`` beside it); they hold neither text
features, which come from the run's own CLIP, nor a pair, which is searched as after a training.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adaptation.features import FeaturePool, FeatureTrainer, PoolLoader
from adaptation.image_cache import CacheLearner, grid
from adaptation.published_caches import read_cache
from adaptation.starts import check_least
from adaptation.templates import IMAGENET_TEMPLATES_SELECT, dataset_template
from clip.model import CLIP
from dassl.config import CfgNode
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import SettingError, check_availability


class CacheTrainer(FeatureTrainer):
    """What Tip-Adapter and Tip-Adapter-F share."""

    node = "TIPADAPTER"
    #: start of the name of the published code's file of keys
    published_keys: str
    _is_published = False
    bound_settings = ("SCALE",)
    keeps_pool = False
    extends = False
    model_name = "tip_adapter"

    @staticmethod
    def extend_cfg(cfg: CfgNode) -> None:
        cfg.TRAINER.TIPADAPTER = node = CfgNode()
        #: sharpness of the cache in training, and where nothing is searched
        node.INIT_BETA = 1.0
        #: weight of the cache in training, and where nothing is searched
        node.INIT_ALPHA = 1.17
        #: search for the pair of sharpness and weight that is tested
        node.SEARCH = True
        #: images that the pair is searched on: val, or test as the published code does for ImageNet
        node.SELECT_ON = "val"
        #: upper ends of the searched values, of beta and of alpha
        node.SEARCH_SCALE = (7.0, 3.0)
        #: numbers of searched values, of beta and of alpha
        node.SEARCH_STEP = (200, 20)
        #: views of a training image that its key is the mean of
        node.AUGMENT_EPOCH = 10
        #: factor of the text classifier
        node.SCALE = 100.0
        #: train on a new view of every image in each epoch; False takes those of the keys in turn,
        #: so that nothing is encoded while Tip-Adapter-F trains
        node.FRESH_VIEWS = True
        node.PREC = "fp16"

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        node, name = cfg.TRAINER[self.node], f"TRAINER.{self.node}"
        check_availability(node.SELECT_ON, ["val", "test"], f"{name}.SELECT_ON")
        check_least(node, name, 1, "AUGMENT_EPOCH")
        for key, least in (("SEARCH_SCALE", 0.1), ("SEARCH_STEP", 1)):
            if len(node[key]) != 2 or min(node[key]) < least:
                raise ValueError(
                    f"{name}.{key} is {node[key]}: give two numbers, for beta and alpha, "
                    f"of at least {least}"
                )
        if not all(isinstance(number, int) for number in node.SEARCH_STEP):
            raise ValueError(
                f"{name}.SEARCH_STEP is {node.SEARCH_STEP}: give two whole numbers, as in (200, 20)"
            )

    @classmethod
    def build_learner(cls, cfg: CfgNode, clip: CLIP, classnames: Sequence[str]) -> CacheLearner:
        node, width = cfg.TRAINER[cls.node], clip.text_projection.shape[1]
        pair = (node.INIT_BETA, node.INIT_ALPHA)
        return CacheLearner(len(classnames), width, pair, node.SCALE, trained=cls.has_steps)

    @classmethod
    def teacher_templates(cls, cfg: CfgNode) -> Sequence[str]:
        name = cfg.DATASET.NAME
        return IMAGENET_TEMPLATES_SELECT if name == "ImageNet" else (dataset_template(name),)

    def passes(self) -> int:
        return self.node_cfg.AUGMENT_EPOCH

    @torch.no_grad()
    def start_from(self, pool: FeaturePool) -> None:
        learner = self.cache
        learner.keys.copy_(F.normalize(pool.features.mean(dim=0), dim=-1))
        learner.labels.copy_(pool.labels)

    @property
    def cache(self) -> CacheLearner:
        learner = self.model.learner
        assert isinstance(learner, CacheLearner)
        return learner

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        self._is_published = False
        super().load_model(directory, epoch)
        if self._is_published:
            self.finish()

    def read_file(self, path: str) -> Mapping[str, Any]:
        """Read a checkpoint, or the published code's file of keys with that of values beside it."""
        if not re.fullmatch(rf"{self.published_keys}_\d+shots\.pt", (file := Path(path)).name):
            return super().read_file(path)
        self.check_search()
        values = file.with_name(file.name.replace(self.published_keys, "values", 1))
        n_classes, width = self.cache.text_weights.shape
        keys, labels = read_cache(file, values, width, n_classes, in_columns=not self.has_steps)
        self._is_published = True
        state = {"keys": keys, "labels": labels, "pair": self._initial_pair}
        return {"state_dict": {**self.cache.state_dict(), **state}, "epoch": 0}

    def before_train(self) -> None:
        self.check_search()
        super().before_train()

    def check_search(self) -> None:
        """Check that there are images to search the pair on, if it is searched.

        Raises:
            SettingError: there are none.
        """
        node = self.node_cfg
        setting = f"TRAINER.{self.node}.SELECT_ON {node.SELECT_ON}"
        instead = f"TRAINER.{self.node}.SEARCH False keeps the initial pair"
        if node.SEARCH and node.SELECT_ON == "val":
            text = f"{instead}, or give the data set validation images of its own"
            self.check_validation(setting, text)
        elif node.SEARCH and self.test_loader is None:
            raise SettingError(f"{setting}: data set {self.cfg.DATASET.NAME} has none; {instead}")

    def before_epoch(self) -> None:
        self.cache.pair.copy_(self._initial_pair)  # a run that goes on may have searched before
        super().before_epoch()

    @property
    def _initial_pair(self) -> Tensor:
        return torch.tensor((self.node_cfg.INIT_BETA, self.node_cfg.INIT_ALPHA))

    def finish(self) -> bool:
        node = self.node_cfg
        if not node.SEARCH:
            return False
        betas, alphas = map(grid, node.SEARCH_SCALE, node.SEARCH_STEP)
        raw, labels = self.split_features(node.SELECT_ON)
        counts = self.cache.count_correct(raw, labels, betas, alphas)
        row, column = divmod(int(counts.argmax()), len(alphas))  # the first of equals
        pair = (betas[row], alphas[column]) if counts.max() else (0.0, 0.0)
        self.cache.pair.copy_(torch.tensor(pair))
        accuracy = 100.0 * int(counts.max()) / len(labels)
        self.run_notes.selection = {
            **{"on": node.SELECT_ON, "images": len(labels), "accuracy": accuracy},
            "values": {"beta": pair[0], "alpha": pair[1]},
        }
        print(
            f"Searched {counts.size:,} pairs on the {len(labels):,} {node.SELECT_ON} images: "
            f"beta {pair[0]:.6g}, alpha {pair[1]:.6g} ({accuracy:.2f} % right)"
        )
        return True


@TRAINER_REGISTRY.register()
class TipAdapter(CacheTrainer):
    """A cache of training features beside the text classifier; nothing is trained."""

    has_steps = False
    published_keys = "keys"


@TRAINER_REGISTRY.register()
class TipAdapterF(CacheTrainer):
    """Tip-Adapter's cache, with keys that are trained."""

    published_keys = "best_F"

    def steps_per_epoch(self) -> int:
        return -(-len(self.dm.dataset.train_x) // self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE)

    @property
    def keeps_pool(self) -> bool:  # type: ignore[override]
        return not self.node_cfg.FRESH_VIEWS

    def epoch_loader(self) -> PoolLoader:
        passes = self.passes()
        if self.node_cfg.FRESH_VIEWS:
            raw, labels = self.encode_pass(passes + self.epoch)
        else:
            raw, labels = self.pool.features[self.epoch % passes], self.pool.labels
        return PoolLoader(raw, labels, self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE)
