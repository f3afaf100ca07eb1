"""Where the class token looks: ``python -m tools.attention RUN image.jpg folder/``.

For every image the attention of the class token over the patches, mean of the heads, in the last
block of the image encoder or in ``--layer``, once in the frozen CLIP and once with the prompts of
the run. Writes ``<image>.png`` (what the model sees, and both maps over it on one scale) and
``<image>.csv`` with the weight of every token; ``frozen`` and ``prompted`` each have sum 1 over all
tokens. Patches that a method removed before that block have no prompted weight.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from support.command_line import run_command

from .command import find_images, load_run, run_parser, write_csv, write_png

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from torch import Tensor

    from clip.changes import LayerPrompts
    from clip.layers import ResidualAttentionBlock
    from trainers import Predictor

COLUMNS = ("token", "row", "column", "frozen", "prompted")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = run_parser("Draw the attention of the class token over the patches of images.")
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE", help="image files, and folders to search for them")
    add("--layer", type=int, metavar="N", help="block, counted from 0 (default: the last)")
    add("--out", metavar="DIR", help="folder (default: attention/ in the run's folder)")
    return parser


def class_attention(block: ResidualAttentionBlock, encode: Callable[[], object]) -> Tensor:
    """Attention of the first token over all tokens of a block, mean of the heads.

    Args:
        block: of an image encoder.
        encode: runs a batch through that encoder.

    Returns:
        ``(B, tokens)`` float32 on the CPU, every row with sum 1.
    """
    found = []

    def look(_module, _inputs, normed: Tensor) -> None:
        # in the forward pass, so that automatic mixed precision converts here as it does there
        normed = normed.transpose(0, 1)  # it runs length first where a block is hooked
        q, k, _ = block.attn.project_one_query(normed, normed[:, :1])
        found.append(block.attn.weights(q, k)[:, :, 0].mean(dim=1).cpu())

    handle = block.ln_1.register_forward_hook(look)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is hooked")
            encode()
    finally:
        handle.remove()
    (weights,) = found
    return weights


def token_origins(n_patches: int, prompts: LayerPrompts | None, layer: int) -> list[int]:
    """What the tokens of a block are: 0 the class token, 1 to ``n_patches`` patches, -1 prompts.

    Args:
        n_patches: of an image.
        prompts: of the image encoder.
        layer: number of the block, from 0.
    """
    import torch

    from clip.changes import Prompt, by_layer, splice

    tokens = torch.arange(n_patches + 1.0)[None, :, None]
    for prompt in sum(by_layer(prompts, max([layer, *(prompts or ())]) + 1)[: layer + 1], ()):
        inserted = torch.full((prompt.length, 1), -1.0)
        tokens = splice(tokens, Prompt(inserted, prompt.at, prompt.drop))
    return tokens.flatten().int().tolist()


def token_weights(predictor: Predictor, batch: Tensor, layer: int | None = None) -> list[list]:
    """Rows of ``COLUMNS`` for every image; what a column does not apply to is ``None``.

    Args:
        predictor: of a run whose CLIP has a vision transformer.
        batch: transformed images ``(B, 3, side, side)``.
        layer: number of the block, from 0; the last one when not given.

    Raises:
        ValueError: a ResNet, or no such block.
    """
    import torch

    from adaptation.starts import clip_widths

    model = predictor.model
    n_blocks = clip_widths(model.clip).vision_layers
    if not n_blocks:
        raise ValueError(
            f"backbone {predictor.cfg.MODEL.BACKBONE.NAME} has no class token: attention is drawn "
            "for vision transformers (ViT)"
        )
    layer = n_blocks - 1 if layer is None else layer
    if not 0 <= layer < n_blocks:
        raise ValueError(f"--layer is {layer}: this backbone has the blocks 0 to {n_blocks - 1}")
    block, batch = model.clip.visual.transformer.resblocks[layer], batch.to(predictor.device)
    with torch.no_grad():
        frozen = class_attention(block, lambda: model.frozen_image_features(batch))
        prompted = class_attention(block, lambda: model.image_features(batch))
        prompts = model.learner.image_prompts()
    n_patches = frozen.shape[1] - 1
    side = round(n_patches**0.5)
    origins = token_origins(n_patches, prompts, layer)
    tables = []
    for before, after in zip(frozen.tolist(), prompted.tolist(), strict=True):
        by_origin = dict(zip(origins, after, strict=True))
        rows = [["class", None, None, before[0], by_origin[0]]]
        rows += [
            ["patch", *divmod(i, side), before[i + 1], by_origin.get(i + 1)]
            for i in range(n_patches)
        ]
        of_prompts = (w for origin, w in zip(origins, after, strict=True) if origin < 0)
        rows += [["prompt", None, None, None, weight] for weight in of_prompts]
        tables.append(rows)
    return tables


def patch_map(rows: list, column: str) -> np.ndarray:
    """The patches of a table as a square of weights, 0 where a patch was removed."""
    import numpy as np

    index = COLUMNS.index(column)
    weights = np.array([row[index] or 0.0 for row in rows if row[0] == "patch"])
    side = round(len(weights) ** 0.5)
    return weights.reshape(side, side)


def seen(predictor: Predictor, path: str) -> Image.Image:
    """The part of an image that the model sees: the run's transform up to the tensor."""
    from PIL import Image

    from dassl.utils import read_image

    image = read_image(path, upright=True)
    for step in predictor.transform.transforms:
        after = step(image)
        if not isinstance(after, Image.Image):
            break
        image = after
    return image


def draw(image: Image.Image, rows: list, path: str) -> None:
    """Write a PNG: the image, then the frozen and the prompted map over it."""
    from matplotlib.figure import Figure

    maps = {"frozen CLIP": patch_map(rows, "frozen"), "prompted": patch_map(rows, "prompted")}
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots(1, 3)
    axes[0].set_title("image")
    top = max(float(values.max()) for values in maps.values())
    extent = (-0.5, image.width - 0.5, image.height - 0.5, -0.5)
    for axis in axes:
        axis.imshow(image)
        axis.set_axis_off()
    for axis, (title, values) in zip(axes[1:], maps.items(), strict=True):
        shown = axis.imshow(
            values, cmap="viridis", alpha=0.6, vmin=0, vmax=top, extent=extent, zorder=1
        )
        axis.set_title(f"{title}: {100 * values.sum():.0f} % on patches")
    figure.colorbar(shown, ax=axes, shrink=0.8)
    write_png(figure, path)


def output_names(paths: list[str]) -> list[str]:
    """A file name without suffix for every image, numbered where two images have the same."""
    stems = [Path(path).stem for path in paths]
    if max(Counter(stems).values()) == 1:
        return stems
    return [f"{i}_{stem}" for i, stem in enumerate(stems)]


def run(args: argparse.Namespace) -> None:
    """Write the files of every image."""
    paths = find_images(args.images)
    predictor = load_run(args.run, args)
    folder = Path(args.out or Path(args.run, "attention"))
    for path, name in zip(paths, output_names(paths), strict=True):
        (rows,) = token_weights(predictor, predictor.read(path)[None], args.layer)
        draw(seen(predictor, path), rows, str(folder / f"{name}.png"))
        shown = [[f"{x:.8f}" if isinstance(x, float) else x for x in row] for row in rows]
        write_csv(shown, COLUMNS, str(folder / f"{name}.csv"))
        print(f"{path}: {folder / name}.png, {folder / name}.csv")


if __name__ == "__main__":
    sys.exit(run_command(build_parser(), run))
