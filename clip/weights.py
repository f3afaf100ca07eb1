"""Building a CLIP from a state dict: its architecture, the model, the precision of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .initial_draws import draw_if_wanted
from .layers import Attention
from .model import CLIP, EXTRA_ENTRIES

# Dimensions of the weights that an architecture is read off; of those not named, one.
_DIMENSIONS = {
    "visual.conv1.weight": 4,
    "visual.layer1.0.conv1.weight": 4,
    "visual.proj": 2,
    "visual.positional_embedding": 2,
    "visual.attnpool.positional_embedding": 2,
    "positional_embedding": 2,
    "text_projection": 2,
    "token_embedding.weight": 2,
}
#: entries of the official archives that are no weights
SIZE_ENTRIES = ("input_resolution", "context_length", "vocab_size")


def convert_weights(
    model: nn.Module, dtype: torch.dtype = torch.float16, convolutions: bool = True
) -> None:
    """Store in half precision the weights that OpenAI's checkpoints store so; leave the rest.

    Args:
        model: a CLIP or a part of one.
        dtype: the half-precision type.
        convolutions: whether to convert convolutions, too. Their type is the one that the encoders
            compute in (``CLIP.dtype``). With False the encoders therefore compute as before under
            ``torch.autocast`` to ``dtype``, which then need not convert weights in every call.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear) or (convolutions and isinstance(module, nn.Conv2d)):
            names = ("weight", "bias")
        elif isinstance(module, Attention):
            names = ("in_proj_weight", "in_proj_bias")
        else:
            names = ("text_projection", "proj")
        for name in names:
            parameter = getattr(module, name, None)
            if isinstance(parameter, nn.Parameter):
                parameter.data = parameter.data.to(dtype)


def architecture(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the constructor arguments of :class:`CLIP` off a state dict's shapes and extra entries.

    Raises:
        ValueError: keys that every CLIP checkpoint has are missing, or their tensors cannot be
            those of a CLIP.
    """
    visual = (
        ["visual.proj", "visual.class_embedding", "visual.positional_embedding"]
        if "visual.proj" in state_dict
        else ["visual.attnpool.positional_embedding", "visual.layer1.0.conv1.weight"]
    )
    needed = ["visual.conv1.weight", *visual, "positional_embedding", "text_projection"]
    needed += ["token_embedding.weight", "ln_final.weight", "logit_scale"]
    if missing := [key for key in needed if key not in state_dict]:
        raise ValueError(f"not a CLIP state dict: {', '.join(missing)} missing")
    for key in needed[:-1]:  # the scale may be one number in a list
        if (found := state_dict[key].dim()) != (wanted := _DIMENSIONS.get(key, 1)):
            raise ValueError(f"not a CLIP state dict: {key} has {found} dimensions, not {wanted}")

    def blocks(prefix: str) -> int:
        return len(
            {key[len(prefix) :].split(".")[0] for key in state_dict if key.startswith(prefix)}
        )

    def mlp_width(prefix: str) -> int | None:
        first = state_dict.get(f"{prefix}0.mlp.c_fc.weight")
        return None if first is None or not first.dim() else first.shape[0]

    def extra(name: str, otherwise: int) -> int:
        if name in state_dict and state_dict[name].numel() != 1:
            raise ValueError(f"not a CLIP state dict: {name} is not one number")
        return int(state_dict[name]) if name in state_dict else otherwise

    for name in ("image_mean", "image_std"):
        if name in state_dict and state_dict[name].shape != (3,):
            raise ValueError(f"not a CLIP state dict: {name} is not of three channels")
    vision_layers: int | tuple[int, ...]
    if "visual.proj" in state_dict:
        width, _, patch_size, _ = state_dict["visual.conv1.weight"].shape
        side = round((state_dict["visual.positional_embedding"].shape[0] - 1) ** 0.5)
        vision_layers = blocks("visual.transformer.resblocks.")
        resolution, vision_heads = patch_size * side, width // 64
    else:
        width, patch_size = state_dict["visual.layer1.0.conv1.weight"].shape[0], None
        side = round((state_dict["visual.attnpool.positional_embedding"].shape[0] - 1) ** 0.5)
        vision_layers = tuple(blocks(f"visual.layer{stage}.") for stage in (1, 2, 3, 4))
        resolution, vision_heads = 32 * side, width * 32 // 64
    text_width = state_dict["ln_final.weight"].shape[0]
    sizes = {
        "embed_dim": state_dict["text_projection"].shape[1],
        "image_resolution": resolution,
        "vision_layers": vision_layers,
        "vision_width": width,
        "vision_patch_size": patch_size,
        "context_length": state_dict["positional_embedding"].shape[0],
        "vocab_size": state_dict["token_embedding.weight"].shape[0],
        "transformer_width": text_width,
        "transformer_heads": extra("transformer_heads", text_width // 64),
        "transformer_layers": blocks("transformer.resblocks."),
        "vision_heads": extra("vision_heads", vision_heads),
        "vision_mlp_width": mlp_width("visual.transformer.resblocks."),
        "transformer_mlp_width": mlp_width("transformer.resblocks."),
        "quick_gelu": bool(extra("quick_gelu", True)),
    }
    for name, size in sizes.items():
        # weights of another code may have heads that are not 64 wide
        counts = isinstance(size, int) and not name.endswith(("quick_gelu", "_heads"))
        if counts and size < 1:
            raise ValueError(f"not a CLIP state dict: its {name} would be {size}")
    return sizes


def build_model(state_dict: Mapping[str, Tensor], design_details: object = None) -> CLIP:
    """Build the model that a state dict belongs to, in evaluation mode.

    Weights are stored as OpenAI stores them (see ``convert_weights``). Those that come with
    ``EXTRA_ENTRIES`` were trained elsewhere, in float32 as a rule, and stay in float32.

    Args:
        state_dict: OpenAI's keys, in any floating-point type, with or without ``EXTRA_ENTRIES``;
            ``SIZE_ENTRIES`` are ignored.
        design_details: must be None; an argument of changed copies of OpenAI's package that build
            prompts into the model.

    Raises:
        ValueError: the state dict is not one of a CLIP, or has missing or left-over keys; or
            ``design_details`` are given.
    """
    if design_details is not None:
        raise ValueError(
            "build_model got design_details, which belong to a changed copy of OpenAI's clip "
            "package with the prompts built into the model: use that copy with this engine. Start "
            "the train.py that came with it from its own folder, so that its clip/ is imported, "
            "with the folder of this toolbox in PYTHONPATH, from which dassl is imported then"
        )
    weights = {
        key: value.detach().clone() for key, value in state_dict.items() if key not in SIZE_ENTRIES
    }
    sizes = architecture(weights)
    if min(sizes["vision_heads"], sizes["transformer_heads"]) < 1:
        raise ValueError("not a CLIP of OpenAI: an encoder is less than 64 wide, one of its heads")
    draw_if_wanted(sizes)
    with torch.device("meta"):  # spends no time or random numbers on weights that are replaced
        model = CLIP(**sizes)
    extras = {name: weights.pop(name) for name in EXTRA_ENTRIES if name in weights}
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise ValueError(f"the state dict does not fit the CLIP it describes: {error}") from error
    for name, value in extras.items():
        setattr(model, name, value)
    model.float()
    if not extras:
        convert_weights(model)
    return model.eval()
