"""One pass of a shared CLIP for several learners of one method, each with images of its own."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from clip.changes import join_prompts

from .classifier import Prediction, PromptedCLIP


def predict_together(
    models: Sequence[PromptedCLIP],
    images: Sequence[Tensor],
    views: Sequence[Sequence[str] | None],
) -> list[Prediction]:
    """Predictions of several learners of one method, each on images of its own.

    The CLIP that the models share (``share_frozen``) encodes all images in one call, and all texts
    in another; prompts carry a dimension for it. So does its call without prompts for the images
    of this step, if a loss asks for it (``Prediction.frozen``).

    Args:
        models: with learners that differ in nothing but their values.
        images: for every model ``(B_i, 3, side, side)``, normalised.
        views: for every model a loader's names of the images' views, or ``None``.

    Returns:
        for every model what its ``predict`` gives, to rounding.
    """
    first, learners = models[0], [model.learner for model in models]
    sizes = [len(image) for image in images]
    prompts = join_prompts([learner.image_prompts() for learner in learners], sizes, dims=3)
    pairs = zip(learners, images, strict=True)
    changed = torch.cat([learner.change_image(image) for learner, image in pairs])
    raw = first._raw_image(changed, prompts).split(sizes)
    image_features = [F.normalize(features, dim=-1) for features in raw]
    text_features = _text_features_together(models, image_features)

    @functools.cache
    def frozen_features() -> Sequence[Tensor]:
        names = None if None in views else [name for batch in views for name in batch]
        return first.frozen_image_features(torch.cat(list(images)), names).split(sizes)

    parts = zip(models, raw, image_features, text_features, strict=True)
    return [
        model.finish(*parts_of_it, lambda i=i: frozen_features()[i])
        for i, (model, *parts_of_it) in enumerate(parts)
    ]


def _text_features_together(
    models: Sequence[PromptedCLIP], image_features: Sequence[Tensor]
) -> list[Tensor]:
    learners = [model.learner for model in models]
    conditioned = learners[0].image_conditioned
    if conditioned:
        pairs = zip(learners, image_features, strict=True)
        prompts = [learner.text_prompts_for(features) for learner, features in pairs]
        sizes = [len(features) for features in image_features]
    else:
        prompts = [learner.text_prompts() for learner in learners]
        sizes = [1] * len(models)
    joined = join_prompts(prompts, sizes, dims=4)
    if joined is None:
        features = [models[0]._hand_written_text()] * len(models)
    else:
        features = models[0]._unit_text(joined).split(sizes)
        features = features if conditioned else [f.squeeze(0) for f in features]
    return [
        model.learner.correct_text(text, model.frozen_text_features)
        for model, text in zip(models, features, strict=True)
    ]
