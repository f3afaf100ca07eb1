"""Learners that several methods share: contexts, class vectors, deep prompts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from clip.changes import LayerChanges, Prompt, deep_prompts
from clip.model import CLIP
from clip.tokens import tokenize
from dassl.config import CfgNode
from dassl.utils import check_availability, load_checkpoint

from .learner import PromptLearner, Steps
from .starts import (
    check_depth,
    check_least,
    clip_widths,
    context_init,
    copies,
    normal_parameter,
    require_vit,
    start_context,
    warn_ignored,
)
from .templates import DEFAULT_TEMPLATE

#: where the class name stands relative to the context
POSITIONS = ("end", "middle", "front")


class ContextLearner(PromptLearner):
    """Learned context vectors in the input of the text encoder.

    Args:
        ctx: start values, ``(n_ctx, d_text)`` shared or ``(C, n_ctx, d_text)`` class-specific.
        position: where the class name stands: at the ``end``, in the ``middle`` or in ``front``.
        classnames: the ``C`` classes; ``middle`` and ``front`` need the lengths of their names.
        template: frozen words around the class name.
    """

    def __init__(
        self, ctx: Tensor, position: str, classnames: Sequence[str], template: str = "{}."
    ) -> None:
        super().__init__()
        self.template = template
        self.ctx = nn.Parameter(ctx)
        self.class_specific = ctx.dim() == 3
        names = tokenize([name.replace("_", " ") for name in classnames], truncate=True)
        self.position = position
        self.name_lengths = tuple((names.argmax(dim=-1) - 1).tolist())

    def text_changes(self) -> LayerChanges:
        if self.position == "end":
            return {0: Prompt(self.ctx, at=1)}
        n_before = self.ctx.shape[-2] // 2 if self.position == "middle" else 0
        after_name = tuple(1 + n_before + length for length in self.name_lengths)
        before = (Prompt(self.ctx[..., :n_before, :], at=1),) if n_before else ()
        return {0: (*before, Prompt(self.ctx[..., n_before:, :], at=after_name))}


def check_context(node: CfgNode, name: str) -> None:
    """Check the settings of a learned context.

    Args:
        node: config node of the method; reads N_CTX and, if there, CLASS_TOKEN_POSITION.
        name: of the node.

    Raises:
        ValueError: one is out of range.
    """
    position = node.get("CLASS_TOKEN_POSITION", "end")
    check_availability(position, POSITIONS, f"TRAINER.{name}.CLASS_TOKEN_POSITION")
    check_least(node, f"TRAINER.{name}", 1, "N_CTX")


def random_context(clip: CLIP, node: CfgNode, n_classes: int) -> Tensor:
    """Return random start values for a learned context.

    Args:
        clip: the frozen model.
        node: config node of the method; reads N_CTX and CSC.
        n_classes: number of classes, for class-specific contexts (CSC).

    Returns:
        ``(n_ctx, d_text)`` or, class-specific, ``(n_classes, n_ctx, d_text)``.
    """
    shape = (node.N_CTX, clip_widths(clip).text)
    return torch.empty((n_classes, *shape) if node.CSC else shape).normal_(std=0.02)


def start_of_context(clip: CLIP, node: CfgNode, name: str, n_classes: int) -> Tensor:
    """Return start values for a learned context: words, or random ones.

    With words (CTX_INIT) the context has as many vectors as these, and N_CTX and CSC are ignored
    with a warning, as in CoOp's code.

    Args:
        clip: the frozen model.
        node: config node of the method; reads N_CTX, CSC and CTX_INIT.
        name: of the node.
        n_classes: number of classes, for class-specific contexts (CSC).

    Returns:
        ``(n_ctx, d_text)`` or, class-specific, ``(n_classes, n_ctx, d_text)``.

    Raises:
        ValueError: a word is not one token.
    """
    words = node.CTX_INIT.replace("_", " ").split()
    if not words:
        return random_context(clip, node, n_classes)
    if node.CSC:
        warn_ignored(f"TRAINER.{name}.CSC", True, "CTX_INIT gives a shared context")
    if node.N_CTX != len(words):
        warn_ignored(f"TRAINER.{name}.N_CTX", node.N_CTX, f"CTX_INIT has {len(words)} words")
    ctx, _ = start_context(clip, node.CTX_INIT, len(words), f"TRAINER.{name}.N_CTX")
    return ctx


class FeatureAdapter(nn.Module):
    """Two layers, and the share of their result in the features.

    As in CLIP-Adapter's code, and CoPrompt's after it: no bias, a ReLU behind both layers, raw
    features in and out.

    Args:
        width: of the features.
        reduction: how many times narrower the hidden layer is.
        share: of the result that is adapted, 0 to 1.
    """

    def __init__(self, width: int, reduction: int, share: float) -> None:
        super().__init__()
        self.share, hidden = share, width // reduction
        self.fc = nn.Sequential(
            nn.Linear(width, hidden, bias=False),
            nn.ReLU(),
            nn.Linear(hidden, width, bias=False),
            nn.ReLU(),
        )

    def mix(self, features: Tensor) -> Tensor:
        """Return raw features ``(N, width)`` after the adapter, not normalised."""
        return self.share * self.fc(features) + (1 - self.share) * features


class BaseFeaturesLearner(PromptLearner):
    """Base class of learners with a vector for each class, and CLIP's raw text features beside it.

    The features, ``base_text_features`` ``(C, embed_dim)``, are averaged over the teacher's texts,
    and stored with what is learned, for data sets that have other texts for the same classes. A
    subclass names its own rows in ``class_rows`` besides.

    Args:
        n_classes: number of classes, C.
        embed_dim: width of the features.
    """

    class_specific = True
    class_rows: tuple[str, ...] = ("base_text_features",)
    base_text_features: Tensor

    def __init__(self, n_classes: int, embed_dim: int) -> None:
        super().__init__()
        self.register_buffer("base_text_features", torch.zeros(n_classes, embed_dim))

    def start(self, clip: Steps) -> None:
        self.base_text_features.copy_(clip.raw_text_features())

    def from_upstream(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        prefixes = ("prompt_learner.", "adapter.")
        return {
            key.removeprefix(prefixes[0]).removeprefix(prefixes[1]): value
            for key, value in weights.items()
        }


def stored_projection(path: str, key: str) -> Tensor:
    """Read a tuned text projection ``(d_text, embed_dim)``.

    Args:
        path: checkpoint file whose ``state_dict`` holds a linear map's ``weight``,
            ``(embed_dim, d_text)``.
        key: config key that names the file, for errors.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it holds something else.
    """
    try:
        weights = load_checkpoint(path).get("state_dict")
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{key}: {error}; leave it empty for CLIP's own projection. How the authors learned "
            "theirs is not published, so no run here writes such a file"
        ) from error
    except ValueError as error:
        raise type(error)(f"{key}: {error}") from error
    weight = weights.get("weight") if isinstance(weights, Mapping) else None
    if not isinstance(weight, Tensor) or weight.dim() != 2 or not weight.is_floating_point():
        raise ValueError(
            f"{key}: {path} holds no text projection, a matrix 'weight' in its state_dict"
        )
    return weight.float().t()


class DeepPromptLearner(PromptLearner):
    """Independent prompts at the inputs of the first blocks of either encoder, or of both.

    Args:
        text: ``(depth, n, d_text)`` start values, or ``None`` for no text prompts.
        vision: ``(depth, n, d_vision)`` start values, or ``None`` for no image prompts.
        template: frozen words around the class name.
    """

    def __init__(self, text: Tensor | None, vision: Tensor | None, template: str) -> None:
        super().__init__()
        self.template = template
        self.text = None if text is None else nn.Parameter(text)
        self.vision = None if vision is None else nn.Parameter(vision)

    def text_changes(self) -> LayerChanges | None:
        return None if self.text is None else deep_prompts(self.text.unbind(), at=1)

    def image_changes(self) -> LayerChanges | None:
        return None if self.vision is None else deep_prompts(self.vision.unbind())

    def from_upstream(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weights = dict(weights)
        found = {
            "text": _pop_prompts(weights, "prompt_learner.ctx", "text_encoder"),
            "vision": _pop_prompts(weights, "image_encoder.VPT", "image_encoder"),
        }
        return weights | {name: value for name, value in found.items() if value is not None}

    def to_upstream(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        names = {
            "text": ("prompt_learner.ctx", "text_encoder"),
            "vision": ("image_encoder.VPT", "image_encoder"),
        }
        found: dict[str, Tensor] = {}
        for name, value in weights.items():
            first, tower = names[name]
            deep = f"{tower}.transformer.resblocks.{{}}.VPT_shallow"
            keys = [first, *(deep.format(block) for block in range(1, len(value)))]
            found |= dict(zip(keys, value.unbind(), strict=True))
        return found


def _pop_prompts(weights: dict[str, Tensor], first: str, tower: str) -> Tensor | None:
    """Take the prompts of one encoder out of upstream's ``weights`` and stack them by block."""
    deep = re.compile(rf"{tower}\.transformer\.resblocks\.(\d+)\.VPT_shallow")
    blocks = sorted((int(m[1]), key) for key in weights if (m := deep.fullmatch(key)))
    keys = [first, *(key for _, key in blocks)]
    if first not in weights or [number for number, _ in blocks] != list(range(1, len(keys))):
        return None
    return torch.stack([weights.pop(key).float() for key in keys])


def build_deep_prompts(
    clip: CLIP,
    method: str,
    node: str,
    text: tuple[int, int] | None,
    vision: tuple[int, int] | None,
    ctx_init: str = "",
) -> DeepPromptLearner:
    """Build a learner of independent deep prompts.

    Args:
        clip: the frozen model.
        method, node: name and config node of the method, for error messages.
        text: ``(n_ctx, depth)`` of the text encoder; ``None`` for hand-written text.
        vision: ``(n_ctx, depth)`` of the image encoder; ``None`` for no image prompts.
        ctx_init: words that the first text prompt starts from, if there are enough of them.

    Raises:
        ValueError: a depth or number of tokens out of range, or a backbone without a ViT.
    """
    widths = clip_widths(clip)
    text_start = vision_start = None
    template = DEFAULT_TEMPLATE
    if text is not None:
        n_ctx, depth = _checked(text, widths.text_layers, node, "_TEXT")
        start, template = context_init(clip, ctx_init, n_ctx)
        text_start = normal_parameter(depth, n_ctx, widths.text).data  # (depth, n_ctx, d_text)
        if start is not None:
            text_start[0] = start
    if vision is not None:
        require_vit(clip, method)
        n_ctx, depth = _checked(vision, widths.vision_layers, node, "_VISION")
        vision_start = normal_parameter(depth, n_ctx, widths.vision).data
    return DeepPromptLearner(text_start, vision_start, template)


def _checked(size: Sequence[int], n_layers: int, node: str, suffix: str) -> tuple[int, int]:
    n_ctx, depth = size
    if n_ctx < 1:
        raise ValueError(f"TRAINER.{node}.N_CTX{suffix} is {n_ctx}: use 1 or more")
    check_depth(depth, n_layers, f"TRAINER.{node}.PROMPT_DEPTH{suffix}")
    return n_ctx, depth


class CoupledPromptLearner(PromptLearner):
    """Deep text prompts, and a linear map of the input prompt to the first image prompt.

    Args:
        ctx: ``(n, d_text)`` start of the input prompt.
        depth: prompted blocks, input layer included.
        vision_width: width of the image encoder.
        template: frozen words around the class name.
    """

    def __init__(self, ctx: Tensor, depth: int, vision_width: int, template: str) -> None:
        super().__init__()
        self.template = template
        self.ctx = nn.Parameter(ctx)
        self.proj = nn.Linear(ctx.shape[-1], vision_width)
        self.compound_prompts_text = nn.ParameterList(
            nn.Parameter(torch.empty(ctx.shape).normal_(std=0.02)) for _ in range(depth - 1)
        )

    def text_changes(self) -> LayerChanges:
        return deep_prompts([self.ctx, *self.compound_prompts_text], at=1)

    def from_upstream(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {key.removeprefix("prompt_learner."): value for key, value in weights.items()}

    def to_upstream(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {f"prompt_learner.{key}": value for key, value in weights.items()}


class MappedPromptLearner(CoupledPromptLearner):
    """Deep text prompts, and one linear map per prompted block to the image prompts.

    The maps of the deeper blocks start as copies of one another.

    Args:
        ctx, depth, vision_width, template: as for :class:`CoupledPromptLearner`.
    """

    def __init__(self, ctx: Tensor, depth: int, vision_width: int, template: str) -> None:
        super().__init__(ctx, depth, vision_width, template)
        self.compound_prompt_projections = copies(nn.Linear(ctx.shape[-1], vision_width), depth - 1)

    def image_changes(self) -> LayerChanges:
        deeper = zip(self.compound_prompt_projections, self.compound_prompts_text, strict=True)
        later = (projection(text) for projection, text in deeper)
        return deep_prompts([self.proj(self.ctx), *later])


def start_of_coupled_prompts(clip: CLIP, node: CfgNode, name: str, method: str) -> dict[str, Any]:
    """Return the arguments of a :class:`CoupledPromptLearner`.

    Args:
        clip: the frozen model.
        node: config node of the method; reads N_CTX, CTX_INIT and PROMPT_DEPTH.
        name: of the node.
        method: name of the method, for errors.

    Raises:
        ValueError: a number of tokens or depth out of range, or a backbone without a ViT.
    """
    widths = require_vit(clip, method)
    check_depth(node.PROMPT_DEPTH, widths.layers, f"TRAINER.{name}.PROMPT_DEPTH")
    ctx, template = start_context(clip, node.CTX_INIT, node.N_CTX, f"TRAINER.{name}.N_CTX")
    sizes = {"depth": node.PROMPT_DEPTH, "vision_width": widths.vision}
    return {"ctx": ctx, "template": template, **sizes}
