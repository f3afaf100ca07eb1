"""Joint forward pass of several learners of one method through the CLIP that they share."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from clip.changes import Changes, LayerChanges, join_changes

from .classifier import PromptedCLIP, pair_of_views
from .learner import Prediction

#: one call of an encoder: ``(image, changes, n_rows)``, or ``(None, changes, None)`` for the text
Call = tuple["Tensor | None", Changes, "int | None"]


class _PendingCall(BaseException):
    """Stops a learner's forward at a call of an encoder that has no answer yet."""

    def __init__(self, call: Call) -> None:
        self.call = call


class _AnsweredSteps:
    """Steps of one learner's forward, with given answers to its first calls of an encoder.

    The next call raises ``_PendingCall``, so that it is answered with the other learners' calls.
    """

    def __init__(self, model: PromptedCLIP, answers: Sequence[Tensor]) -> None:
        self.model, self.answers = model, iter(answers)
        self.logits, self.frozen_text_features = model.logits, model.frozen_text_features
        self.classnames = model.classnames
        self.project_image, self.seen_classes = model.project_image, model.seen_classes
        self.raw_text_features = model.raw_text_features

    def encode_image(
        self, image: Tensor, changes: LayerChanges | None = None, n_rows: int | None = None
    ) -> Tensor:
        return self._answer((image, Changes.of(changes), n_rows))

    def encode_text(self, changes: LayerChanges | None = None) -> Tensor:
        return self._answer((None, Changes.of(changes), None))

    def text_features(self) -> Tensor:
        return self.model.learner.text_features(self)

    def _answer(self, call: Call) -> Tensor:
        answer = next(self.answers, None)
        if answer is None:
            raise _PendingCall(call)
        return answer


def predict_together(
    models: Sequence[PromptedCLIP],
    images: Sequence[Tensor],
    views: Sequence[Sequence[str] | None],
) -> list[Prediction]:
    """Classify one batch for each of several learners of one method.

    Every learner's ``forward`` runs up to its first call of an encoder. The CLIP that the models
    share (``share_frozen``) answers all these calls in one, and every ``forward`` starts again with
    the answer, until none has a further call. Starting again is cheap and safe: all but the
    encoders costs little, and forwards draw no random numbers. If a loss asks for the frozen CLIP's
    predictions (``Prediction.frozen``), these are computed jointly, too.

    Args:
        models: models whose learners differ only in their values.
        images: for every model, as its ``predict`` takes them.
        views: a loader's names of the images' views, or ``None``, for every model.

    Returns:
        for every model the prediction of its ``predict``, to rounding.

    Raises:
        ValueError: the calls of the learners cannot be joined.
    """
    first, sizes = models[0], [len(image) for image in images]
    pairs = [pair_of_views(image) for image in images]
    images, taught = [seen for seen, _ in pairs], [other for _, other in pairs]

    @functools.cache
    def frozen_features() -> Sequence[Tensor]:
        known = [batch for batch in views if batch is not None]
        names = [name for batch in known for name in batch] if len(known) == len(views) else None
        return first.frozen_image_features(torch.cat(taught), names).split(sizes)

    def frozen_of(number: int) -> Tensor:
        return frozen_features()[number]

    answers: list[list[Tensor]] = [[] for _ in models]
    while True:
        predictions, calls = [], []
        for model, image, answered in zip(models, images, answers, strict=True):
            try:
                predictions.append(model.learner(_AnsweredSteps(model, answered), image))
            except _PendingCall as pending:
                calls.append(pending.call)
        if not calls:
            return [
                model.with_teacher(prediction, functools.partial(frozen_of, index))
                for index, (model, prediction) in enumerate(zip(models, predictions, strict=True))
            ]
        for answered, answer in zip(answers, _encode(first, calls), strict=True):
            answered.append(answer)


def _encode(model: PromptedCLIP, calls: Sequence[Call]) -> Sequence[Tensor]:
    """Answer one call of every learner."""
    images, changes, n_rows = zip(*calls, strict=True)
    if any(change.inside for change in changes):
        raise ValueError(
            "--seeds: the learner changes blocks of an encoder inside, not prompts alone, so its "
            "seeds cannot share a pass: run them one by one with --seed"
        )
    if images[0] is not None:
        sizes = [len(image) for image in images]
        joined = join_changes(changes, sizes, dims=3)
        return model.encode_image(torch.cat(images), joined, n_rows[0]).split(sizes)
    sizes = [change.batch_size or 1 for change in changes]
    joined = join_changes(changes, sizes, dims=4)
    if not joined:
        return [model.encode_text()] * len(calls)
    features = model.encode_text(joined).split(sizes)
    return [  # (B, C, embed_dim) of per-sample prompts, else (C, embed_dim)
        part if change.batch_size else part.squeeze(0)
        for part, change in zip(features, changes, strict=True)
    ]
