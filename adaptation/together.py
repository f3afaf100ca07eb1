"""One pass of a shared CLIP for several learners of one method, each with images of its own."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from clip.changes import Changes, LayerChanges, join_changes

from .classifier import PromptedCLIP
from .learner import Prediction

#: one call of an encoder: ``(image, changes)``, or ``(None, changes)`` for the text
Call = tuple["Tensor | None", Changes]


class _PendingCall(BaseException):
    """A learner's forward has come to a call of an encoder that has no answer yet."""

    def __init__(self, call: Call) -> None:
        self.call = call


class _AnsweredSteps:
    """The steps of one learner's forward, with the answers to its first calls of an encoder.

    The call after those ends the forward, to be answered together with the other learners'.
    """

    def __init__(self, model: PromptedCLIP, answers: Sequence[Tensor]) -> None:
        self.model, self.answers = model, iter(answers)
        self.logits, self.frozen_text_features = model.logits, model.frozen_text_features

    def encode_image(self, image: Tensor, changes: LayerChanges | None = None) -> Tensor:
        return self._answer((image, Changes.of(changes)))

    def encode_text(self, changes: LayerChanges | None = None) -> Tensor:
        return self._answer((None, Changes.of(changes)))

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
    """Predictions of several learners of one method, each on images of its own.

    Every learner's ``forward`` runs up to its first call of an encoder, the CLIP that the models
    share (``share_frozen``) answers all these calls in one, and every ``forward`` runs anew with
    the answer, until none has a further call. Forwards draw no random numbers, and all but the
    encoders costs little. The frozen CLIP sees the images of all, too, if a loss asks for it
    (``Prediction.frozen``).

    Args:
        models: with learners that differ in nothing but their values.
        images: for every model ``(B_i, 3, side, side)``, normalised.
        views: for every model a loader's names of the images' views, or ``None``.

    Returns:
        for every model what its ``predict`` gives, to rounding.

    Raises:
        ValueError: the calls of the learners cannot be joined.
    """
    first, sizes = models[0], [len(image) for image in images]

    @functools.cache
    def frozen_features() -> Sequence[Tensor]:
        names = None if None in views else [name for batch in views for name in batch]
        return first.frozen_image_features(torch.cat(list(images)), names).split(sizes)

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
                model.with_teacher(prediction, lambda i=i: frozen_features()[i])
                for i, (model, prediction) in enumerate(zip(models, predictions, strict=True))
            ]
        for answered, answer in zip(answers, _encode(first, calls), strict=True):
            answered.append(answer)


def _encode(model: PromptedCLIP, calls: Sequence[Call]) -> Sequence[Tensor]:
    """The answers to one call of every learner."""
    images, changes = zip(*calls, strict=True)
    if images[0] is not None:
        sizes = [len(image) for image in images]
        joined = join_changes(changes, sizes, dims=3)
        return model.encode_image(torch.cat(images), joined).split(sizes)
    sizes = [change.batch_size or 1 for change in changes]
    joined = join_changes(changes, sizes, dims=4)
    if not joined:
        return [model.encode_text()] * len(calls)
    features = model.encode_text(joined).split(sizes)
    return [
        each if change.batch_size else each.squeeze(0)
        for each, change in zip(features, changes, strict=True)
    ]
