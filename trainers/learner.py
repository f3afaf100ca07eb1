"""The contract of a prompt learner, and what several learners need to build their prompts."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from clip.clip import tokenize
from clip.model import CLIP, VisionTransformer
from clip.packing import PackedText
from clip.prompting import LayerPrompts

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


def warn_ignored(key: str, value: object, reason: str) -> None:
    """Say that a config value has no effect."""
    warnings.warn(f"{key} = {value!r} is ignored: {reason}", stacklevel=3)


class Widths(NamedTuple):
    """Sizes of a CLIP that learners are built from; the vision ones are 0 without a ViT."""

    text: int
    text_layers: int
    vision: int
    vision_layers: int


def clip_widths(clip: CLIP) -> Widths:
    """Widths and numbers of blocks of both encoders."""
    vision = clip.visual.transformer if isinstance(clip.visual, VisionTransformer) else None
    return Widths(
        clip.transformer.width,
        clip.transformer.layers,
        vision.width if vision else 0,
        vision.layers if vision else 0,
    )


def check_depth(depth: int, n_layers: int, key: str, lowest: int = 1) -> None:
    """Check a prompt depth against the number of blocks.

    Raises:
        ValueError: fewer than ``lowest`` or more blocks than there are; names ``key``.
    """
    if not lowest <= depth <= n_layers:
        raise ValueError(f"{key} is {depth}: this backbone takes {lowest} to {n_layers}")


def require_vit(widths: Widths, method: str) -> None:
    """Raises: ValueError: the image tower has no token sequence to put prompts in."""
    if not widths.vision_layers:
        raise ValueError(
            f"{method} puts prompts into the image tower and needs a vision transformer: "
            "choose a ViT as MODEL.BACKBONE.NAME"
        )


def context_init(clip: CLIP, words: str, n_ctx: int) -> tuple[Tensor | None, str]:
    """Start values for a context, and the template of what stays frozen behind it.

    The first ``n_ctx`` tokens of ``words`` are learned and the rest stays hand-written, as the
    MaPLe line of code has it: with two tokens, "a photo of a" leaves "of a {}.".

    Args:
        clip: the frozen model.
        words: hand-written context, underscores read as spaces; may be empty.
        n_ctx: number of learned tokens.

    Returns:
        ``(n_ctx, d_text)`` token embeddings, or ``None`` when the words do not cover the context
        and a random start is due; and the template.
    """
    split = words.replace("_", " ").split()
    token_ids = tokenize(" ".join(split))[0]
    token_ids = token_ids[1 : int(token_ids.argmax())]
    if not split:
        return None, "{}."
    if n_ctx > len(token_ids):
        warn_ignored("CTX_INIT", words, f"{len(token_ids)} tokens cannot start {n_ctx}")
        return None, "{}."
    if len(split) != len(token_ids):
        raise ValueError(
            f"CTX_INIT {words!r}: {len(split)} words but {len(token_ids)} tokens; "
            "use words of one token each, or leave CTX_INIT empty"
        )
    with torch.no_grad():
        start = clip.token_embedding(token_ids[:n_ctx].to(clip.token_embedding.weight.device))
    return start.float().clone(), " ".join([*split[n_ctx:], "{}."])


def class_prompts(
    clip: CLIP, classnames: Sequence[str], template: str, n_inserted: int = 0
) -> PackedText:
    """Token ids of ``template`` filled with every class name, underscores read as spaces.

    Args:
        clip: gives the context length and the device.
        classnames: at least one.
        template: text with one ``{}``.
        n_inserted: learned tokens that a learner inserts.

    Raises:
        ValueError: no class, or a class name too long for the context.
    """
    if not len(classnames):
        raise ValueError("the list of class names is empty: the data set has no class to classify")
    length = clip.context_length
    texts = [template.format(name.replace("_", " ")) for name in classnames]
    try:
        ids = torch.cat([tokenize(text, context_length=length) for text in texts])
        fits = int(ids.argmax(dim=-1).max()) + n_inserted < length
    except RuntimeError:
        fits = False
    if not fits:
        ids = tokenize(texts, context_length=4096)
        sizes = (ids.argmax(dim=-1) + 1 + n_inserted).tolist()
        worst = max(range(len(sizes)), key=sizes.__getitem__)
        raise ValueError(
            f"class name {classnames[worst]!r} is too long: its prompt has {sizes[worst]} tokens "
            f"with {n_inserted} learned ones, the context of this CLIP holds {length}. "
            "Shorten the name or use fewer context tokens"
        )
    return PackedText(ids.to(clip.token_embedding.weight.device))
