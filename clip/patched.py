"""Whether somebody hooked, wrapped, replaced or patched a part of a tower.

Our encoders take the weights of some modules and call others with packed rows, which gives what
the modules would give as long as they are the ones that ``clip.model`` builds. Otherwise the model
has to be run as it stands (``clip.plain``). The look costs tens of microseconds per call, so it is
taken anew in each. Hooks for all modules of a process, as profilers set them, do not count.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from .layers import (
    Attention,
    LayerNorm,
    QuickGELU,
    ResidualAttentionBlock,
    Transformer,
    causal_mask,
)

#: parts of a tower and their classes, by the name of the attribute
TEXT_PARTS = {
    "token_embedding": (nn.Embedding,),
    "transformer": (Transformer,),
    "ln_final": (LayerNorm,),
}
IMAGE_PARTS = {
    "conv1": (nn.Conv2d,),
    "ln_pre": (LayerNorm,),
    "transformer": (Transformer,),
    "ln_post": (LayerNorm,),
}
BLOCK_PARTS = {
    "attn": (Attention,),
    "ln_1": (LayerNorm,),
    "mlp": (nn.Sequential,),
    "ln_2": (LayerNorm,),
}
MLP_PARTS = {"c_fc": (nn.Linear,), "gelu": (QuickGELU, nn.GELU), "c_proj": (nn.Linear,)}

#: classes of what our encoders pass by or give other shapes
CLASSES = (
    *(Transformer, ResidualAttentionBlock, Attention, LayerNorm, QuickGELU),
    *(nn.Sequential, nn.Linear, nn.GELU),
)
#: their functions, as they are when nobody has replaced them
FUNCTIONS = [
    (ResidualAttentionBlock, "attention", ResidualAttentionBlock.attention),
    *((kind, "forward", kind.forward) for kind in CLASSES),
]


def changed(module: nn.Module | None, kinds: tuple[type, ...]) -> bool:
    """Whether a module is of another class (replaced, wrapped, parametrized), or ``hooked``."""
    if type(module) not in kinds:
        return True
    own = module.__dict__
    return bool(
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or "forward" in own
    )


def hooked(module: nn.Module) -> bool:
    """Whether calls of a module do more than its class says: hooks, or a forward of its own."""
    return changed(module, (type(module),))


def changed_stack(transformer: nn.Module) -> bool:
    """Whether calling the blocks of a transformer in turn is not what calling itself does."""
    blocks = transformer._modules.get("resblocks")
    return changed(transformer, (Transformer,)) or changed(blocks, (nn.Sequential,))


def changed_part(
    tower: nn.Module, parts: Mapping[str, tuple[type, ...]], causal: bool
) -> str | None:
    """Name of the first part that is not as built, or ``None``.

    Args:
        tower: has the ``parts``, among them the transformer.
        parts: their classes; ``TEXT_PARTS`` or ``IMAGE_PARTS``.
        causal: what mask the blocks must have: causal, or none.
    """
    for kind, name, function in FUNCTIONS:
        if getattr(kind, name) is not function:
            return f"{kind.__name__}.{name}"
    modules = tower._modules
    for name, kinds in parts.items():
        if changed(modules.get(name), kinds):
            return name
    transformer = modules["transformer"]
    if changed_stack(transformer):
        return "transformer.resblocks"
    for number, block in transformer.resblocks._modules.items():
        part = changed_part_of_block(block)
        if part is None and _has_other_mask(block, causal):
            part = ".attn_mask"
        if part is not None:
            return f"transformer.resblocks.{number}{part}"
    return None


def changed_part_of_block(block: nn.Module) -> str | None:
    """Name of the first part of a block that is not as built, or ``None``; masks do not count."""
    if changed(block, (ResidualAttentionBlock,)) or "attention" in block.__dict__:
        return ""
    parts = block._modules
    for name, kinds in BLOCK_PARTS.items():
        if changed(parts.get(name), kinds):
            return f".{name}"
    attn, mlp = parts["attn"], parts["mlp"]._modules
    if attn.dropout or attn.batch_first or _has_no(attn, "in_proj_bias"):
        return ".attn"
    if changed(attn._modules.get("out_proj"), (NonDynamicallyQuantizableLinear,)):
        return ".attn.out_proj"
    if len(mlp) != len(MLP_PARTS):
        return ".mlp"
    for name, kinds in MLP_PARTS.items():
        part = mlp.get(name)
        if changed(part, kinds) or _has_no(part, "bias"):
            return f".mlp.{name}"
    return None


def _has_other_mask(block: nn.Module, causal: bool) -> bool:
    return not (_is_causal(block) if causal else block.attn_mask is None)


def _has_no(module: nn.Module, parameter: str) -> bool:
    # a copy that DataParallel made keeps its parameters elsewhere
    return module._parameters.get(parameter, module) is None


def _is_causal(block: ResidualAttentionBlock) -> bool:
    """Whether a block has a causal mask; an answer holds until another is set or written to."""
    mask = block.attn_mask
    if mask is None:
        return False
    checked, version, causal = block.__dict__.get("_checked_mask", (None, 0, False))
    now = 0 if mask.is_inference() else mask._version
    if checked is not mask or version != now:
        causal = mask.dim() == 2 and torch.equal(mask.float().cpu(), causal_mask(len(mask)))
        block._checked_mask = (mask, now, causal)
    return causal
