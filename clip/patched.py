"""Check whether somebody hooked, wrapped, replaced or patched a part of a tower.

Our encoders use the weights of some modules directly and call others on packed rows. The results
are right only for modules as ``clip.model`` builds them; otherwise the model runs module by module
(``clip.plain``). The check takes tens of microseconds, so every call makes it. Hooks for all
modules of a process, as profilers set them, do not count.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
TEXT_PARTS: dict[str, tuple[type, ...]] = {
    "token_embedding": (nn.Embedding,),
    "transformer": (Transformer,),
    "ln_final": (LayerNorm,),
}
IMAGE_PARTS: dict[str, tuple[type, ...]] = {
    "conv1": (nn.Conv2d,),
    "ln_pre": (LayerNorm,),
    "transformer": (Transformer,),
    "ln_post": (LayerNorm,),
}
BLOCK_PARTS: dict[str, tuple[type, ...]] = {
    "attn": (Attention,),
    "ln_1": (LayerNorm,),
    "mlp": (nn.Sequential,),
    "ln_2": (LayerNorm,),
}
MLP_PARTS: dict[str, tuple[type, ...]] = {
    "c_fc": (nn.Linear,),
    "gelu": (QuickGELU, nn.GELU),
    "c_proj": (nn.Linear,),
}

#: classes of modules that our encoders bypass or call with other shapes
CLASSES = (
    *(Transformer, ResidualAttentionBlock, Attention, LayerNorm, QuickGELU),
    *(nn.Sequential, nn.Linear, nn.GELU),
)
#: the original methods of these classes, to notice when one is replaced
FUNCTIONS = [
    (ResidualAttentionBlock, "attention", ResidualAttentionBlock.attention),
    *((kind, "forward", kind.forward) for kind in CLASSES),
]


def changed(module: nn.Module | None, kinds: tuple[type, ...]) -> bool:
    """Return whether a module is of another class (replaced, wrapped, parametrized) or hooked."""
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
    """Return whether a module has hooks or a ``forward`` of its own."""
    return changed(module, (type(module),))


def changed_stack(transformer: nn.Module) -> bool:
    """Return whether a transformer, or its stack of blocks, is changed as a whole."""
    blocks = transformer._modules.get("resblocks")
    return changed(transformer, (Transformer,)) or changed(blocks, (nn.Sequential,))


def patched_function() -> str | None:
    """Name of the first function of our modules' classes that somebody replaced, or ``None``."""
    for kind, name, function in FUNCTIONS:
        if getattr(kind, name) is not function:
            return f"{kind.__name__}.{name}"
    return None


def changed_part(
    tower: nn.Module, parts: Mapping[str, tuple[type, ...]], causal: bool
) -> str | None:
    """Name the first part of a tower that is not as built; ``None`` if all are.

    Args:
        tower: module with the ``parts``.
        parts: ``TEXT_PARTS`` or ``IMAGE_PARTS``.
        causal: whether the blocks must have a causal mask, or none.
    """
    function = patched_function()
    if function is not None:
        return function
    modules: dict[str, Any] = tower._modules
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
    """Name the first part of a block that is not as built, masks aside; ``None`` if all are."""
    if changed(block, (ResidualAttentionBlock,)) or "attention" in block.__dict__:
        return ""
    parts: dict[str, Any] = block._modules
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


def _has_other_mask(block: ResidualAttentionBlock, causal: bool) -> bool:
    return not (_is_causal(block) if causal else block.attn_mask is None)


def _has_no(module: nn.Module, parameter: str) -> bool:
    # the replicas of DataParallel keep their parameters elsewhere, hence the default
    return module._parameters.get(parameter, module) is None


def _is_causal(block: ResidualAttentionBlock) -> bool:
    """Return whether a block has a causal mask; remembered until the mask changes."""
    mask = block.attn_mask
    if mask is None:
        return False
    checked, version, causal = block.__dict__.get("_checked_mask", (None, 0, False))
    now = 0 if mask.is_inference() else mask._version
    if checked is not mask or version != now:
        causal = mask.dim() == 2 and torch.equal(mask.float().cpu(), causal_mask(len(mask)))
        block._checked_mask = (mask, now, causal)
    return causal
