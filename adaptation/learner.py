"""The contract of a learner: the part that a method trains, and how it classifies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from clip.changes import LayerChanges

from .templates import DEFAULT_TEMPLATE


def _no_teacher() -> Prediction:
    raise RuntimeError("this is the frozen CLIP's own prediction: it has no teacher")


@dataclass(frozen=True)
class Prediction:
    """Result of one forward pass, all float32.

    A method whose loss needs more than this returns a subclass with further fields.

    Attributes:
        image_features: ``(B, embed_dim)``, unit norm.
        text_features: ``(C, embed_dim)``, or ``(B, C, embed_dim)`` where they depend on the image;
            unit norm.
        logits: ``(B, C)``, scaled.
        frozen: call it for the prediction of the frozen CLIP, the teacher, on the same images,
            without gradients; computed once, on the first call.
    """

    image_features: Tensor
    text_features: Tensor
    logits: Tensor
    frozen: Callable[[], Prediction] = _no_teacher


class Steps(Protocol):
    """The steps that a learner's ``forward`` is made of: a frozen CLIP and the present classes."""

    @property
    def classnames(self) -> Sequence[str]:
        """Names of the present classes."""

    @property
    def seen_classes(self) -> bool:
        """Whether the present classes, and their data set, are those of the training."""

    def encode_image(
        self, image: Tensor, changes: LayerChanges | None = None, n_rows: int | None = None
    ) -> Tensor:
        """Encode images.

        Args:
            image: ``(B, 3, side, side)``, normalised.
            changes: what changes in the blocks of the image encoder.
            n_rows: how many rows of the last block to give in place of the features, the class
                token's first; a ViT's only.

        Returns:
            ``(B, embed_dim)`` float32, not normalised, or ``(B, n_rows, width)``: what the last
            layer norm gives for these rows, not projected.
        """

    def project_image(self, rows: Tensor) -> Tensor:
        """Project rows ``(..., width)`` of a ViT's last block, as its features are projected.

        Returns:
            ``(..., embed_dim)`` float32, not normalised.
        """

    def encode_text(self, changes: LayerChanges | None = None) -> Tensor:
        """Encode the learner's template, filled with every class name.

        Args:
            changes: what changes in the blocks of the text encoder; without any, features are
                computed once per class list.

        Returns:
            ``(C, embed_dim)``, or ``(B, C, embed_dim)`` where prompts hold one set for each of
            ``B`` samples; float32, not normalised.
        """

    def text_features(self) -> Tensor:
        """Return the learner's ``text_features``; computed once while nothing is trained."""

    def raw_text_features(self, projection: Tensor | None = None, unit: bool = False) -> Tensor:
        """Compute the frozen CLIP's raw text features, averaged over the teacher's templates.

        Args:
            projection: ``(d_text, embed_dim)`` in place of the text encoder's own.
            unit: whether every feature is brought to unit norm before the average.

        Returns:
            ``(C, embed_dim)`` float32, the average itself not normalised, without gradients.
        """

    def frozen_text_features(self) -> Tensor:
        """Return the frozen CLIP's text features over the teacher's templates.

        Returns:
            ``(C, embed_dim)``, unit norm, without gradients; computed once per class list.
        """

    def logits(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Return scaled cosine similarities ``(B, C)`` of unit-norm features."""


class PromptLearner(nn.Module):
    """Base class of the part that a method trains.

    A subclass holds the trainable tensors, kept in float32, and overrides the methods below that
    it needs; insertion, freezing and precision are done for it. All its parameters are trained; its
    state dict is the checkpoint. Most methods return from ``text_changes`` and ``image_changes``
    what changes in the encoders. A method that computes features or logits in another way overrides
    ``text_features``, ``image_features`` or ``forward``.
    """

    #: frozen words around the class name; learned tokens are inserted, not written here
    template: str = DEFAULT_TEMPLATE
    #: factor of the cosines of features; None for CLIP's own
    logit_scale: float | None = None
    #: whether text features depend on the image, by a ``forward`` of the learner's own
    image_conditioned: bool = False
    #: whether the learned tensors belong to the training run's classes and fit no others
    class_specific: bool = False
    #: parts of names that tell what is learned among the published code's names of the encoders
    upstream_in_encoders: tuple[str, ...] = ("VPT",)
    #: of a class-specific learner, the entries of its state dict that have a row for each class;
    #: where these are all that depends on the classes, it fits any selection of them
    class_rows: tuple[str, ...] = ()
    #: whether texts keep the underscores of class names, which are otherwise read as spaces
    keep_underscores: bool = False
    #: whether pixels are learned, so that gradients go through the whole image encoder
    changes_pixels: bool = False
    #: whether it sees an image only as the frozen CLIP's feature of it, and is trained on features
    on_features: bool = False
    #: names of the tensors of the state dict that have a row for each training image
    per_image: tuple[str, ...] = ()

    def set_n_images(self, n_images: int) -> None:
        """Size the tensors that have a row for each training image, as zeros."""
        for name in self.per_image:
            tensor = self.get_parameter(name) if name in self._parameters else self.get_buffer(name)
            tensor.data = tensor.new_zeros(n_images, *tensor.shape[1:])

    def select_classes(
        self, weights: Mapping[str, Tensor], rows: Sequence[int], n_classes: int
    ) -> dict[str, Tensor]:
        """Return a state dict for some of the classes that it is of.

        Args:
            weights: state dict of a training with ``n_classes`` classes.
            rows: indices of the classes to keep, in their new order.
            n_classes: number of classes; other numbers of rows are left as they are.
        """
        index = list(rows)
        return {
            key: value[index]
            if key in self.class_rows and value.shape[:1] == (n_classes,)
            else value
            for key, value in weights.items()
        }

    def check_values(self, weights: Mapping[str, Tensor]) -> None:
        """Check values of a state dict whose names and shapes fit; by default any are good.

        Raises:
            ValueError: some make no sense; says which.
        """

    def start(self, clip: Steps) -> None:
        """Set start values that follow from the frozen CLIP's features of the classes.

        It is called once, before a training and not before a prediction: a tensor that is fixed
        here is a buffer, which the checkpoint holds.
        """

    def text_changes(self) -> LayerChanges | None:
        """Return what changes in the text encoder; ``None`` encodes the template as it is."""
        return None

    def image_changes(self) -> LayerChanges | None:
        """Return what changes in the image encoder; ``None`` leaves it as it is."""
        return None

    def text_features(self, clip: Steps) -> Tensor:
        """Return the classifier's text features ``(C, embed_dim)``, unit norm."""
        return F.normalize(clip.encode_text(self.text_changes()), dim=-1)

    def class_features(self) -> Mapping[str, Tensor]:
        """Return what stands for the text features of some classes, whatever the others are.

        Returns:
            class name -> ``(embed_dim,)``, unit norm; empty where every class is a text.
        """
        return {}

    def image_features(self, clip: Steps, image: Tensor) -> Tensor:
        """Return features ``(B, embed_dim)``, unit norm, of images ``(B, 3, side, side)``."""
        return F.normalize(clip.encode_image(image, self.image_changes()), dim=-1)

    def forward(self, clip: Steps, image: Tensor) -> Prediction:
        """Classify a batch.

        Args:
            clip: the frozen CLIP, with the classes to tell apart.
            image: ``(B, 3, side, side)``, normalised.
        """
        image_features = self.image_features(clip, image)
        text_features = clip.text_features()
        return Prediction(image_features, text_features, clip.logits(image_features, text_features))

    def token_factors(self) -> dict[str, Tensor]:
        """Return factors of low-rank prompts that have a row for each prompt token.

        Returns:
            display name -> ``(depth, n_ctx, rank)``, block 0 first; empty if the prompts are no
            such products.
        """
        return {}

    def make_room(self, weights: Mapping[str, Tensor], classnames: Sequence[str]) -> None:
        """Make parameters for weights that a new learner has no place for, before they are checked.

        Args:
            weights: that are to be loaded, by the names of this learner.
            classnames: the classes that they were trained with.
        """

    def from_upstream(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Translate tensors that the published code trained to this learner's state dict.

        Args:
            weights: by the published code's names, without frozen CLIP weights and embedded class
                names.

        Returns:
            tensors by the names of this learner; unknown ones keep their names.
        """
        return dict(weights)

    def to_upstream(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Translate a state dict of this learner to the published code's names.

        It is the inverse of ``from_upstream``.
        """
        return dict(weights)
