"""Features of the frozen image encoder, computed once, and training and evaluation on them.

A method whose learner leaves the image encoder alone sees an image only as the feature that CLIP
makes of it. Its trainer (:class:`FeatureTrainer`) encodes each view once, and takes its steps and
its evaluations on what came of that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler
from tqdm import tqdm

from dassl.data.rank_batches import dealt_batches, with_batches
from dassl.engine.going_on import Start
from dassl.utils import hides_bars, ranks
from dassl.utils.checkpoint import BEST
from dassl.utils.random_state import seeded_generators

from .classifier import PromptedCLIP
from .learner import Prediction, PromptLearner, Steps
from .trainer import PromptTrainer


class FeaturePool(NamedTuple):
    """Features of a list of images, in the order of the list.

    Attributes:
        features: ``(passes, N, embed_dim)`` float32, not normalised; each pass has a view of every
            image.
        labels: ``(N,)`` class indices.
    """

    features: Tensor
    labels: Tensor

    def flat(self) -> tuple[Tensor, Tensor]:
        """Return all views, one pass behind the other: ``(passes * N, embed_dim)``, and labels."""
        return self.features.flatten(0, 1), self.labels.repeat(len(self.features))


class PoolLoader:
    """Batches ``{"img", "label"}`` of features; each iteration is an epoch.

    Args:
        features: ``(M, embed_dim)``.
        labels: ``(M,)``.
        batch_size: features per batch; the last batch may be smaller. 0 gives all of them at once,
            in their order.
        steps: batches per epoch; by default as many as it takes to give every feature once.
        order: draws an order of so many features for an epoch, from a global random generator.
    """

    def __init__(
        self,
        features: Tensor,
        labels: Tensor,
        batch_size: int,
        steps: int | None = None,
        order: Callable[[int], Tensor] = torch.randperm,
    ) -> None:
        self.features, self.labels, self.order = features, labels, order
        self.batch_size = batch_size
        self.steps = -(-len(features) // (batch_size or len(features))) if steps is None else steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        if not self.batch_size:
            yield {"img": self.features, "label": self.labels}
            return
        order = self.order(len(self.features)).to(self.features.device)
        for step in range(self.steps):
            chosen = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield {"img": self.features[chosen], "label": self.labels[chosen]}


class FeatureLearner(PromptLearner):
    """Base class of a learner that sees an image only as the frozen CLIP's feature of it."""

    on_features = True

    def classify(self, clip: Steps, raw: Tensor) -> Prediction:
        """Classify images by their features.

        Args:
            clip: the frozen CLIP, with the classes to tell apart.
            raw: ``(B, embed_dim)`` float32, not normalised.
        """
        raise NotImplementedError

    def forward(self, clip: Steps, image: Tensor) -> Prediction:
        return self.classify(clip, clip.encode_image(image))


@torch.no_grad()
def encode_batches(
    model: PromptedCLIP, loader: DataLoader, device: torch.device, what: str
) -> tuple[Tensor, Tensor]:
    """Encode all images of a loader with the frozen CLIP; processes of one run share the work.

    Args:
        model: classifier with the frozen CLIP, in its precision and memory bound.
        loader: its batches are encoded as they are.
        device: where the features go.
        what: shown beside the progress bar.

    Returns:
        ``(M, embed_dim)`` float32, not normalised, and labels ``(M,)``, in the loader's order.
    """

    def encode() -> Iterator[tuple[Tensor, Tensor]]:
        n_own = -(-len(loader) // ranks.world_size())
        for batch in tqdm(dealt_batches(loader), what, n_own, leave=False, disable=hides_bars()):
            raw = model.raw_image_features(batch["img"].to(device, non_blocking=True))
            yield ranks.portable((raw, batch["label"].to(device)))

    pairs = list(ranks.in_order(encode(), len(loader)))
    features, labels = ranks.from_main(lambda: tuple(map(torch.cat, zip(*pairs, strict=True))))
    return features.to(device), labels.to(device)


def pass_seed(seed: int, number: int) -> int:
    """Return the seed of a pass over the training images, 0 to 2**60 - 1.

    Args:
        seed: of all views of the run.
        number: of the pass, from 0.
    """
    return int(hashlib.sha256(f"{seed} {number}".encode()).hexdigest()[:15], 16)


class FeatureTrainer(PromptTrainer):
    """Trainer of a :class:`FeatureLearner` on features, each view of an image encoded once.

    Views of training images come from the training transform, in passes over the list in its
    order, and nothing is dropped. A pass follows from a seed that the run draws at its beginning
    and keeps in its checkpoints (with ``INPUT.SEEDED_VIEWS``: from SEED, pass and image alone), so
    that a run that goes on has the views that it had. Validation and test images are encoded once.

    A method overrides ``passes``, and where it needs more than steps on the pool, ``start_from``,
    ``take_pool``, ``steps_per_epoch``, ``epoch_loader`` and ``finish``.
    """

    #: whether a run that goes on needs the pool; else it only gives start values
    keeps_pool = True

    #: whether an epoch as good as the best one before it takes its place (TEST.FINAL_MODEL)
    later_on_ties = False
    #: features of the training images, from the first epoch on
    pool: FeaturePool

    def __init__(self, cfg: Any) -> None:
        self.views_seed = -1
        self._goes_on = self._is_ready = False
        self._splits: dict[str, tuple[Tensor, Tensor]] = {}
        #: epoch and learner of the best epoch so far, where TEST.FINAL_MODEL chooses one
        self._best: dict[str, Any] | None = None
        super().__init__(cfg)
        self.image_loader = self.train_loader_x

    # --- what a method says ---------------------------------------------------------------------

    def passes(self) -> int:
        """Return the number of views of every training image in the pool."""
        return 1

    def start_from(self, pool: FeaturePool) -> None:
        """Set start values that follow from the training images; a run does it once."""

    def take_pool(self, pool: FeaturePool) -> None:
        """Compute what else the steps need from the pool; every start of a run does it."""

    def steps_per_epoch(self) -> int:
        """Return the number of steps of an epoch; by default those that give every view once."""
        n_views = self.passes() * len(self.dm.dataset.train_x)
        return -(-n_views // self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE)

    def epoch_loader(self) -> PoolLoader:
        """Return the ``steps_per_epoch`` batches of the present epoch, in random order."""
        size = self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE
        return PoolLoader(*self.pool.flat(), size, self.steps_per_epoch())

    def finish(self) -> bool:
        """Set what is left to set once the learner has its final values, before it is tested.

        What it chose goes into ``run_notes.selection``, and from there into checkpoints and record.

        Returns:
            whether it set something, so that the learner is to be saved again.
        """
        return False

    # --- features -------------------------------------------------------------------------------

    def encode_pass(self, number: int) -> tuple[Tensor, Tensor]:
        """Encode a view of every training image.

        Args:
            number: of the pass, from 0; the same pass has the same views.

        Returns:
            ``(N, embed_dim)`` float32, not normalised, and labels ``(N,)``, in the list's order.
        """
        dataset = self.image_loader.dataset
        size = self.cfg.DATALOADER.TEST.BATCH_SIZE
        batches = BatchSampler(SequentialSampler(dataset), size, drop_last=False)
        if hasattr(dataset, "set_epoch"):
            dataset.set_epoch(number)
        with seeded_generators(pass_seed(self.views_seed, number)):
            loader = with_batches(self.image_loader, batches)
            return encode_batches(self.model, loader, self.device, f"pass {number + 1}")

    def split_features(self, split: str) -> tuple[Tensor, Tensor]:
        """Return features ``(M, embed_dim)``, not normalised, and labels ``(M,)`` of a split.

        Args:
            split: "val" or "test", of which there are images.
        """
        if split not in self._splits:
            loader: Any = self.loader_of(split)
            with seeded_generators(0):  # a loader draws a number when it starts
                self._splits[split] = encode_batches(self.model, loader, self.device, split)
        return self._splits[split]

    def _outputs(self, data_loader: DataLoader) -> Iterator[tuple[Any, Tensor]]:
        split = "val" if data_loader is self.val_loader else "test"
        features, labels = self.split_features(split)
        size = self.cfg.DATALOADER.TEST.BATCH_SIZE
        batches = list(zip(features.split(size), labels.split(size), strict=True))
        for raw, label in batches[ranks.rank() :: ranks.world_size()]:
            yield ranks.portable((self.predict(raw).logits, label))

    def kept_bytes(self, training: bool) -> float:
        splits = ("val", "test") if training else (self.cfg.TEST.SPLIT,)
        loaders: list[Any] = [self.loader_of(split) for split in splits]
        n_features = sum(len(loader.dataset) for loader in loaders if loader is not None)
        if training:  # and one more pass while it is encoded
            n_features += (self.passes() + 1) * len(self.dm.dataset.train_x)
        return 4.0 * n_features * self.model.clip.text_projection.shape[1]

    @torch.no_grad()
    def accuracy(self, split: str) -> float:
        """Return the accuracy in percent on the features of a split, of which there are images."""
        self.set_model_mode("eval")
        size = self.cfg.DATALOADER.TEST.BATCH_SIZE
        features, labels = self.split_features(split)
        found = [self.predict(raw).logits.argmax(dim=-1) for raw in features.split(size)]
        return 100.0 * float((torch.cat(found) == labels).double().mean())

    # --- training -------------------------------------------------------------------------------

    def build_model(self) -> None:
        super().build_model()
        self.scaler = None  # losses of float32 features have gradients of any size

    def parse_batch_train(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Move features and labels to the device; a batch of images is encoded."""
        image, label = super().parse_batch_train(batch)
        return (self.model.raw_image_features(image) if image.dim() == 4 else image), label

    def predict(self, image: Tensor, views: Sequence[str] | None = None) -> Prediction:
        """Classify features ``(B, embed_dim)``, which are in the place of images."""
        return self.model.classify(image)

    def before_epoch(self) -> None:
        super().before_epoch()
        if not self._is_ready:
            self._is_ready = True
            if self.views_seed < 0:
                drawn = int(torch.randint(2**62, ()))  # by all, whose generators stay alike
                self.views_seed = ranks.from_main(lambda: drawn)
            if self.keeps_pool or not self._goes_on:
                self._encode_pool()
        if self.has_steps:
            self.train_loader_x = self.epoch_loader()

    def _encode_pool(self) -> None:
        first, labels = self.encode_pass(0)
        features = first.new_empty(self.passes(), *first.shape)  # never twice in memory
        features[0] = first
        for number in range(1, self.passes()):
            features[number], _ = self.encode_pass(number)
        self.pool = FeaturePool(features, labels)
        if not self._goes_on:
            self.start_from(self.pool)
        self.take_pool(self.pool)

    def run_epoch(self) -> None:
        if self.has_steps:
            super().run_epoch()

    def keep_best(self) -> None:
        """Keep the learner if it is the best so far; its file is written after the last epoch."""
        assert self.chosen_on is not None
        result, learner = self.accuracy(self.chosen_on), self.model.learner
        self.write_scalar(f"{self.chosen_on}/accuracy", result, self.test_step())
        if result > self.best_result or (self.later_on_ties and result == self.best_result):
            self.best_result = result
            self._best = {"epoch": self.epoch, "learner": _copy(learner.state_dict())}
        if self.epoch + 1 < self.max_epoch or self._best is None:
            return
        best, self._best, last = self._best, None, _copy(learner.state_dict())
        print(
            f"Best accuracy on the {self.chosen_on} images: {self.best_result:.2f} % after epoch "
            f"{best['epoch'] + 1} of {self.max_epoch}"
        )
        learner.load_state_dict(best["learner"])
        self._save_best(best["epoch"])
        learner.load_state_dict(last)

    def _save_best(self, epoch: int) -> None:
        self.save_model(epoch, self.output_dir, val_result=self.best_result, model_name=BEST)

    def after_train(self) -> None:
        chooses = self.chosen_on is not None and not self.cfg.TEST.NO_TEST
        last = _copy(self.model.learner.state_dict())
        if chooses:
            self.load_model(self.output_dir)
        if self.finish():
            if chooses:
                assert self.run_notes.loaded_epoch is not None
                self._save_best(self.run_notes.loaded_epoch - 1)
                self.model.learner.load_state_dict(last)
            # last, since it is what a run goes on from
            self.save_model(self.max_epoch - 1, self.output_dir)
        super().after_train()

    # --- checkpoints ----------------------------------------------------------------------------

    def trainer_state(self) -> dict[str, Any]:
        own = {
            "views_seed": self.views_seed,
            "best": self._best,
            "selection": self.run_notes.selection,
        }
        return {**super().trainer_state(), **own}

    def load_trainer_state(self, state: dict[str, Any]) -> None:
        super().load_trainer_state(state)
        self.views_seed, self._best = int(state["views_seed"]), state["best"]
        self.run_notes.selection = state["selection"]

    def restore_start(self, start: Start) -> None:
        super().restore_start(start)
        self._goes_on = True


def _copy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}
