"""The contract of a prompt learner, and what several learners need to build their prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from clip.changes import LayerPrompts

from .templates import DEFAULT_TEMPLATE


class PromptLearner(nn.Module):
    """What a method trains. Everything else (insertion, freezing, precision) is done for it.

    A subclass holds the trainable tensors, kept in float32, and overrides the methods below that
    it needs. All its parameters are trained; its state dict is the checkpoint.
    """

    #: frozen words around the class name; learned tokens are inserted, not written here
    template: str = DEFAULT_TEMPLATE
    #: whether the text prompts depend on the image; ``text_prompts_for`` is called then
    image_conditioned: bool = False
    #: whether what is learned belongs to the classes of the training run and fits no others
    class_specific: bool = False

    def text_prompts(self) -> LayerPrompts | None:
        """Prompts of the text encoder; ``None`` leaves the hand-written template alone."""
        return None

    def text_prompts_for(self, image_features: Tensor) -> LayerPrompts:
        """Prompts of the text encoder for every image of a batch, if they depend on the image.

        Args:
            image_features: ``(B, embed_dim)``, unit norm.

        Returns:
            prompts with one set of tokens per sample, ``(B, 1, n, d_text)``.
        """
        raise NotImplementedError

    def image_prompts(self) -> LayerPrompts | None:
        """Prompts of the image encoder; ``None`` leaves the image pass as it is."""
        return None

    def change_image(self, image: Tensor) -> Tensor:
        """The image that the image encoder gets in place of a normalised one, of the same shape."""
        return image

    def own_logits(self, image_features: Tensor) -> Tensor | None:
        """Logits of a classifier of the learner's own; ``None`` leaves it to CLIP's text features.

        Args:
            image_features: ``(B, embed_dim)``, not normalised.

        Returns:
            ``(B, C)``, as they enter the softmax.
        """
        return None

    def token_factors(self) -> dict[str, Tensor]:
        """Factors of low-rank prompts that have a row for each prompt token.

        Returns:
            name, as people are to read it -> ``(depth, n_ctx, rank)``, block 0 first; empty where
            the prompts are no such products.
        """
        return {}

    def from_upstream(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Own state dict from the trained tensors of a checkpoint of the published code.

        Args:
            weights: by their names there, frozen CLIP weights and embedded class names left out.

        Returns:
            tensors by the names of this learner; what is not understood keeps its name.
        """
        return dict(weights)

    def to_upstream(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What ``from_upstream`` takes, from the state dict of a learner of this kind."""
        return dict(weights)

    def correct_text(self, text: Tensor, frozen_text: Callable[[], Tensor]) -> Tensor:
        """Last word on the classifier's text features.

        Args:
            text: ``(C, embed_dim)`` prompted features, unit norm.
            frozen_text: gives the frozen CLIP's features of the same classes, unit norm.
        """
        return text
