"""Convert CLIP checkpoints: ``python -m clip.convert IN OUT``.

Reads whatever ``clip.load_state_dict`` reads and writes a plain state dict with OpenAI's keys, as
``.pt`` (``torch.save``) or ``.safetensors``. Weights of open_clip get entries that say what their
shapes do not (``clip.model.EXTRA_ENTRIES``), so that the path of the new file alone is enough.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.command_line import add_traceback, run_command
from support.words import counted

if TYPE_CHECKING:
    from torch import Tensor

    from .layers import Transformer
    from .model import CLIP

SUFFIXES = (".pt", ".safetensors")
DTYPES = ("keep", "fp16", "fp32")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m clip.convert",
        description="Convert a CLIP checkpoint to a plain state dict with OpenAI's keys.",
        epilog="TorchScript archives, as OpenAI publishes them, are read, not written.",
    )
    add = parser.add_argument
    add(
        "source",
        metavar="IN",
        help="file (TorchScript archive, state dict, .safetensors), name of a CLIP, "
        "open_clip:ARCHITECTURE/TAG or open_clip:ARCHITECTURE=FILE",
    )
    add("target", metavar="OUT", type=Path, help="file to write: .pt or .safetensors")
    add(
        "--dtype",
        choices=DTYPES,
        default="keep",
        help="fp16: in half precision what OpenAI stores so, the rest in float32; fp32: all in "
        "float32; keep (default): as they are",
    )
    add("--force", action="store_true", help="replace OUT if it exists")
    add_traceback(parser)
    return parser


def cast(state_dict: Mapping[str, Tensor], model: CLIP, dtype: str) -> dict[str, Tensor]:
    """Store the weights of a state dict in another type.

    Args:
        state_dict: weights as they were read.
        model: the model that ``build_model`` makes of them; ``fp16`` changes it, too.
        dtype: one of ``DTYPES``.

    Raises:
        ValueError: a value is not finite, or too large for half precision.
    """
    from .weights import convert_weights

    if dtype == "fp16":
        convert_weights(model)
        state_dict = model.state_dict()
    elif dtype == "fp32":
        state_dict = {k: v.float() if v.is_floating_point() else v for k, v in state_dict.items()}
    for key, value in state_dict.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"{key} holds values that are not finite (--dtype {dtype})")
    return {key: value.contiguous() for key, value in state_dict.items()}


def write(state_dict: Mapping[str, Tensor], path: Path) -> None:
    """Write a state dict in the format of the path's suffix, and check the file by reading it.

    The file gets its name only when it holds the same tensors, bit for bit; the same state dict
    gives the same bytes.

    Raises:
        RuntimeError: the file does not hold what was written.
    """
    import torch
    from safetensors.torch import load_file, save_file

    from support.files import replacing

    with replacing(path) as temporary:
        if path.suffix == ".safetensors":
            save_file(dict(state_dict), temporary, metadata={"format": "pt"})
            again = load_file(temporary)
        else:
            with open(temporary, "wb") as file:  # given a path, torch.save stores its name, too
                torch.save(dict(state_dict), file)
            again = torch.load(temporary, map_location="cpu", weights_only=True)
        different = [
            key
            for key in state_dict.keys() | again.keys()
            if key not in again
            or key not in state_dict
            or again[key].dtype != state_dict[key].dtype
            or not torch.equal(again[key], state_dict[key])
        ]
        if different:
            raise RuntimeError(
                f"{path} was not written: read back, {', '.join(sorted(different)[:3])} differ; "
                "is the disk full or damaged?"
            )


def describe(model: CLIP, state_dict: Mapping[str, Tensor]) -> list[str]:
    """Describe architecture, number of parameters and types of the weights, in lines."""
    tower: Any = model.visual
    text = model.transformer
    lines = [f"image encoder: {tower.input_resolution} x {tower.input_resolution} pixels, "]
    if hasattr(tower, "transformer"):
        lines[0] += f"ViT, patches of {tower.conv1.kernel_size[0]}, {_blocks(tower.transformer)}"
    else:
        stages = [len(getattr(tower, f"layer{stage}")) for stage in (1, 2, 3, 4)]
        width, heads = tower.layer1[0].conv1.out_channels, tower.attnpool.num_heads
        lines[0] += f"ResNet, {stages} blocks from width {width}, pooled by {heads} heads"
    if model.image_mean is not None and model.image_std is not None:
        mean, std = (
            [round(value, 6) for value in values.tolist()]
            for values in (model.image_mean, model.image_std)
        )
        lines.append(f"images normalised with mean {mean}, standard deviation {std}")
    types: Counter[str] = Counter()
    for value in state_dict.values():
        types[str(value.dtype).removeprefix("torch.")] += value.numel()
    return [
        *lines,
        f"text encoder: context {model.context_length}, vocabulary {model.vocab_size:,}, "
        f"{_blocks(text)}",
        f"activation: {type(text.resblocks[0].mlp.gelu).__name__}"
        + (" (not stated, so OpenAI's)" if model.quick_gelu is None else ""),
        f"embedding: {model.text_projection.shape[1]}",
        f"parameters: {sum(parameter.numel() for parameter in model.parameters()):,}",
        f"stored as: {', '.join(f'{n:,} {kind}' for kind, n in types.most_common())}",
    ]


def _blocks(transformer: Transformer) -> str:
    block = transformer.resblocks[0]
    return (
        f"{counted(transformer.layers, 'block')} of width {transformer.width}, "
        f"{counted(block.attn.num_heads, 'head')}, "
        f"{block.mlp.c_fc.out_features} hidden units"
    )


def convert(source: str, target: Path, dtype: str = "keep", force: bool = False) -> list[str]:
    """Convert one checkpoint.

    Args:
        source: name or path, as ``clip.load_state_dict`` takes it.
        target: file to write; its suffix, one of ``SUFFIXES``, is its format.
        dtype: one of ``DTYPES``.
        force: replace ``target`` if it exists.

    Returns:
        lines that describe the file.

    Raises:
        FileExistsError: ``target`` exists and ``force`` is off.
        FileNotFoundError, RuntimeError, ValueError: see ``clip.load_state_dict``, ``cast`` and
            ``write``; another suffix.
    """
    target = target.expanduser()
    if target.suffix not in SUFFIXES:
        raise ValueError(f"{target}: the name of OUT must end in {' or '.join(SUFFIXES)}")
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder; the name of a file is expected")
    if target.exists() and not force:
        raise FileExistsError(f"{target} exists: give another name, or --force to replace it")

    from support.files import sha256_of

    from .loading import load_state_dict
    from .weights import build_model

    state_dict = load_state_dict(source)
    model = build_model(state_dict)
    state_dict = cast(state_dict, model, dtype)
    write(state_dict, target)
    return [*describe(model, state_dict), f"SHA-256: {sha256_of(target)}", f"written: {target}"]


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return its exit status, 2 for input that cannot be converted."""

    def act(args: argparse.Namespace) -> None:
        print("\n".join(convert(args.source, args.target, args.dtype, args.force)))

    return run_command(build_parser(), act, argv)


if __name__ == "__main__":
    sys.exit(main())
