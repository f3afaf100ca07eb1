"""Where the class token looks: ``python -m tools.attention RUN image.jpg folder/``.

For every image the attention of the class token over the patches, mean of the heads, in the last
block of the image encoder or in ``--layer``, once in the frozen CLIP and once with the prompts of
the run. Writes ``<image>.png`` (the image at its own size, and both maps over it on one scale) and
``<image>.csv`` with the weight of every token; ``frozen`` and ``prompted`` each have sum 1 over all
tokens. Patches that a method removed before that block have no prompted weight.

``--heads`` adds a picture and a table of each head, ``--prompts`` of each image prompt: where it
looks in that block.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from support.command_line import run_command

from .command import find_images, load_run, run_parser, write_csv, write_png

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from PIL import Image
    from torch import Tensor

    from clip.changes import LayerChanges
    from clip.layers import ResidualAttentionBlock
    from trainers import Predictor

COLUMNS = ("token", "row", "column", "frozen", "prompted")
HEAD_COLUMNS = ("head", *COLUMNS)
PROMPT_COLUMNS = ("prompt", "row", "column", "weight")
#: smallest and largest width or height of a picture of an image, in pixels; smaller images are
#: enlarged, larger ones shown as large as that
_SIDES = (320, 1200)
_DPI = 150
#: panels of a line of small ones, and their sides in inches
_IN_LINE, _SMALL = 6, 1.7


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = run_parser("Draw the attention of the class token over the patches of images.")
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE", help="image files, and folders to search for them")
    add("--layer", type=int, metavar="N", help="block, counted from 0 (default: the last)")
    add("--heads", action="store_true", help="show each head as well")
    add("--prompts", action="store_true", help="show as well where each image prompt looks")
    add("--out", metavar="DIR", help="folder (default: attention/ in the run's folder)")
    return parser


@dataclass(frozen=True)
class ImageAttention:
    """Attention of one image's tokens in a block.

    Args:
        frozen: ``(heads, 1 + n_patches)`` of the class token in the frozen CLIP.
        prompted: ``(heads, tokens)`` of the class token with the prompts of the run.
        prompts: ``(n_prompts, tokens)`` of each image prompt, mean of the heads.
        origins: what the tokens are, as :func:`token_origins` tells.
    """

    frozen: Tensor
    prompted: Tensor
    prompts: Tensor
    origins: list[int]

    def rows(self, head: int | None = None) -> list[list]:
        """Return rows of ``COLUMNS``, None where a column does not apply.

        Args:
            head: number of the head; the mean of all when not given.
        """
        before, after = (
            (weights.mean(dim=0) if head is None else weights[head]).tolist()
            for weights in (self.frozen, self.prompted)
        )
        n_patches = len(before) - 1
        side = round(n_patches**0.5)
        by_origin = dict(zip(self.origins, after, strict=True))
        rows = [["class", None, None, before[0], by_origin[0]]]
        rows += [
            ["patch", *divmod(i, side), before[i + 1], by_origin.get(i + 1)]
            for i in range(n_patches)
        ]
        of_prompts = (w for origin, w in zip(self.origins, after, strict=True) if origin < 0)
        return rows + [["prompt", None, None, None, weight] for weight in of_prompts]

    def head_rows(self) -> list[list]:
        """Return rows of ``HEAD_COLUMNS``."""
        return [[head, *row] for head in range(len(self.frozen)) for row in self.rows(head)]

    def prompt_maps(self) -> list[np.ndarray]:
        """Return where each prompt looks: squares of weights, 0 where a patch was removed."""
        import numpy as np

        side = round((self.frozen.shape[1] - 1) ** 0.5)
        maps = []
        for weights in self.prompts.tolist():
            values = np.zeros(side * side)
            for origin, weight in zip(self.origins, weights, strict=True):
                if origin > 0:
                    values[origin - 1] = weight
            maps.append(values.reshape(side, side))
        return maps

    def prompt_rows(self) -> list[list]:
        """Return rows of ``PROMPT_COLUMNS``: the weights of the patches."""
        return [
            [number, row, column, float(weight)]
            for number, values in enumerate(self.prompt_maps())
            for (row, column), weight in _cells(values)
        ]


def _cells(values: np.ndarray) -> list[tuple[tuple[int, int], float]]:
    return [((row, column), w) for row, line in enumerate(values) for column, w in enumerate(line)]


def attention_weights(
    block: ResidualAttentionBlock, encode: Callable[[], object], queries: Sequence[int]
) -> Tensor:
    """Compute the attention of some tokens over all tokens of a block.

    The block runs as always, its own changes included (low-rank terms, layer norms).

    Args:
        block: of an image encoder.
        encode: runs a batch through that encoder.
        queries: places of the tokens.

    Returns:
        ``(B, heads, len(queries), tokens)`` float32 on the CPU, every row with sum 1.
    """
    from clip.changes import UNCHANGED, BlockChange
    from clip.layers import ResidualAttentionBlock

    found, compute = [], ResidualAttentionBlock.attention_input

    def look(self: ResidualAttentionBlock, x: Tensor, change: BlockChange = UNCHANGED) -> Tensor:
        # in the forward pass, so that automatic mixed precision converts here as it does there
        normed = compute(self, x, change)
        if self is block:
            q, k, _ = block.attn.project_queries(normed, normed[:, list(queries)], change)
            found.append(block.attn.weights(q, k).cpu())
        return normed

    # of the class: hooks on a block would have others than its own computations run
    with patch.object(ResidualAttentionBlock, "attention_input", look):
        encode()
    (weights,) = found
    return weights


def class_attention(block: ResidualAttentionBlock, encode: Callable[[], object]) -> Tensor:
    """Compute the attention of the first token over all tokens of a block, mean of the heads.

    Args:
        block: of an image encoder.
        encode: runs a batch through that encoder.

    Returns:
        ``(B, tokens)`` float32 on the CPU, every row with sum 1.
    """
    return attention_weights(block, encode, [0])[:, :, 0].mean(dim=1)


def token_origins(n_patches: int, changes: LayerChanges | None, layer: int) -> list[int]:
    """Tell tokens of a block apart: 0 the class token, 1 to ``n_patches`` patches, -1 prompts.

    Args:
        n_patches: of an image.
        changes: of the image encoder.
        layer: number of the block, from 0.
    """
    import torch

    from clip.changes import Changes, Prompt, splice

    tokens, changes = torch.arange(n_patches + 1.0)[None, :, None], Changes.of(changes)
    for number in range(layer + 1):
        for prompt in changes[number].prompts:
            inserted = torch.full((prompt.length, 1), -1.0)
            tokens = splice(tokens, Prompt(inserted, prompt.at, prompt.drop))
    return tokens.flatten().int().tolist()


def image_attention(
    predictor: Predictor, batch: Tensor, layer: int | None = None
) -> list[ImageAttention]:
    """Return the attention of every image.

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
        frozen = attention_weights(block, lambda: model.frozen_image_features(batch), [0])
        changes = model.learner.image_changes()
        origins = token_origins(frozen.shape[-1] - 1, changes, layer)
        prompts = [place for place, origin in enumerate(origins) if origin < 0]
        after = attention_weights(block, lambda: model.image_features(batch), [0, *prompts])
    return [
        ImageAttention(before[:, 0], now[:, 0], now[:, 1:].mean(dim=0), origins)
        for before, now in zip(frozen, after, strict=True)
    ]


def token_weights(predictor: Predictor, batch: Tensor, layer: int | None = None) -> list[list]:
    """Return rows of ``COLUMNS`` for every image; arguments as for :func:`image_attention`."""
    return [one.rows() for one in image_attention(predictor, batch, layer)]


def patch_map(rows: list, column: str) -> np.ndarray:
    """Arrange the patches of a table as a square of weights, 0 where a patch was removed."""
    import numpy as np

    index = COLUMNS.index(column)
    weights = np.array([row[index] or 0.0 for row in rows if row[0] == "patch"])
    side = round(len(weights) ** 0.5)
    return weights.reshape(side, side)


def seen_part(predictor: Predictor, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return the part of an image that the model sees: left, top, right, bottom in its pixels.

    Args:
        predictor: with the run's transform of test images.
        size: width and height of the image.
    """
    from PIL import Image
    from torchvision.transforms import CenterCrop

    image: Any = Image.new("L", size)
    left, top, right, bottom = 0.0, 0.0, float(size[0]), float(size[1])
    for step in predictor.transform.transforms:
        after = step(image)
        if not isinstance(after, Image.Image):
            break
        if isinstance(step, CenterCrop):
            across, down = (right - left) / image.width, (bottom - top) / image.height
            x, y = (image.width - after.width) / 2, (image.height - after.height) / 2
            left, right = left + x * across, left + (x + after.width) * across
            top, bottom = top + y * down, top + (y + after.height) * down
        image = after
    return left, top, right, bottom


def read_own_size(path: str) -> Image.Image:
    """Return an image at its own size, small ones enlarged in steps, within ``_SIDES``."""
    from PIL import Image

    from dassl.utils import read_image

    image = read_image(path, upright=True)
    smallest, largest = _SIDES
    if max(image.size) > largest:
        image.thumbnail((largest, largest))
    elif times := (smallest - 1) // max(image.size):
        size = (image.width * (times + 1), image.height * (times + 1))
        image = image.resize(size, Image.Resampling.NEAREST)
    return image


class Overlay:
    """Draws maps over an image.

    Args:
        predictor: of the run, whose transform says which part the maps are of.
        path: of the image.
    """

    def __init__(self, predictor: Predictor, path: str) -> None:
        self.image = read_own_size(path)
        self.part = seen_part(predictor, self.image.size)

    def draw(self, axes: Axes, values: np.ndarray | None, top: float, title: str, size=9) -> Any:
        """Draw the image, with a map over the part that the model sees.

        Args:
            axes: to draw in.
            values: squares of weights; None draws the image with a frame around that part.
            top: weight of the brightest colour.
            title: of the panel.
            size: of its letters.
        """
        from matplotlib.patches import Rectangle

        left, upper, right, lower = self.part
        axes.imshow(self.image)
        axes.set_axis_off()
        axes.set_title(title, fontsize=size)
        shown = None
        if values is None:
            whole = self.part == (0, 0, *self.image.size)
            if not whole:
                style: dict[str, Any] = {"fill": False, "edgecolor": "#ff4b33", "linewidth": 1.5}
                axes.add_patch(Rectangle((left, upper), right - left, lower - upper, **style))
        else:
            extent = (left, right, lower, upper)
            look: dict[str, Any] = {"cmap": "viridis", "alpha": 0.6, "vmin": 0, "vmax": top}
            shown = axes.imshow(values, **look, extent=extent, zorder=1)
        axes.set(xlim=(0, self.image.width), ylim=(self.image.height, 0))
        return shown


def draw(overlay: Overlay, rows: list, path: str) -> None:
    """Write a PNG: the image at its own size, then the frozen and the prompted map over it."""
    from matplotlib.figure import Figure

    maps = {"frozen CLIP": patch_map(rows, "frozen"), "prompted": patch_map(rows, "prompted")}
    width, height = (side / _DPI for side in overlay.image.size)
    figure = Figure(figsize=(3 * width + 1.4, height + 0.6), layout="constrained")
    axes = figure.subplots(1, 3)
    top = max(float(values.max()) for values in maps.values())
    overlay.draw(axes[0], None, top, "image")
    for axis, (title, values) in zip(axes[1:], maps.items(), strict=True):
        share = f"{title}: {100 * values.sum():.0f} % on patches"
        shown = overlay.draw(axis, values, top, share)
    figure.colorbar(shown, ax=axes, shrink=0.8).set_label("weight", fontsize=8)
    write_png(figure, path)


def draw_many(overlay: Overlay, groups: dict[str, list[np.ndarray]], one: str, path: str) -> None:
    """Write a PNG of small panels, lines of each group below each other, on one scale.

    Args:
        overlay: of the image.
        groups: words at the left of its lines -> maps.
        one: what each map is of, in front of its number.
        path: of the file.
    """
    from matplotlib.figure import Figure

    number = max(map(len, groups.values()))
    columns = min(_IN_LINE, number)
    each = math.ceil(number / columns)
    ratio = overlay.image.height / overlay.image.width
    size = (_SMALL * columns + 1.2, (_SMALL * ratio + 0.3) * each * len(groups) + 0.2)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(each * len(groups), columns, squeeze=False)
    top = max(float(values.max()) for maps in groups.values() for values in maps)
    for place, (name, maps) in enumerate(groups.items()):
        axes = grid[place * each : (place + 1) * each].flatten()
        for i, axis in enumerate(axes):
            if i < len(maps):
                title = f"{name}\n{one} {i}" if i == 0 else f"{one} {i}"
                shown = overlay.draw(axis, maps[i], top, title, size=8)
            else:
                axis.set_axis_off()
    figure.colorbar(shown, ax=grid, shrink=0.8).set_label("weight", fontsize=8)
    write_png(figure, path)


def head_maps(one: ImageAttention) -> dict[str, list[np.ndarray]]:
    """Return the maps of each head, of the frozen CLIP and with the prompts."""
    heads = range(len(one.frozen))
    return {
        title: [patch_map(one.rows(head), column) for head in heads]
        for title, column in (("frozen CLIP", "frozen"), ("prompted", "prompted"))
    }


def output_names(paths: list[str]) -> list[str]:
    """Name a file without suffix for every image, numbered where two images have the same."""
    stems = [Path(path).stem for path in paths]
    if max(Counter(stems).values()) == 1:
        return stems
    return [f"{i}_{stem}" for i, stem in enumerate(stems)]


def run(args: argparse.Namespace) -> None:
    """Write the files of every image."""
    paths = find_images(args.images)
    predictor = load_run(args.run, args)
    folder = Path(args.out or Path(args.run, "attention"))
    own = {Path(path).resolve() for path in paths}
    for name in output_names(paths):
        if (folder / f"{name}.png").resolve() in own:
            raise ValueError(f"--out: {folder / name}.png is an image to read: name another folder")
    for path, name in zip(paths, output_names(paths), strict=True):
        (one,) = image_attention(predictor, predictor.read(path)[None], args.layer)
        if args.prompts and not len(one.prompts):
            raise ValueError(
                f"--prompts: {predictor.cfg.TRAINER.NAME} puts no prompts into that block of the "
                "image encoder, or its blocks change in another way: leave the option out"
            )
        overlay, stem = Overlay(predictor, path), str(folder / name)
        write_csv([_formatted(row) for row in one.rows()], COLUMNS, f"{stem}.csv")
        draw(overlay, one.rows(), f"{stem}.png")
        files = [f"{stem}.png", f"{stem}.csv"]
        if args.heads:
            rows = [_formatted(row) for row in one.head_rows()]
            write_csv(rows, HEAD_COLUMNS, f"{stem}_heads.csv")
            draw_many(overlay, head_maps(one), "head", f"{stem}_heads.png")
            files += [f"{stem}_heads.png", f"{stem}_heads.csv"]
        if args.prompts:
            rows = [_formatted(row) for row in one.prompt_rows()]
            write_csv(rows, PROMPT_COLUMNS, f"{stem}_prompts.csv")
            draw_many(overlay, {"": one.prompt_maps()}, "prompt", f"{stem}_prompts.png")
            files += [f"{stem}_prompts.png", f"{stem}_prompts.csv"]
        print(f"{path}: {', '.join(files)}")


def _formatted(row: list) -> list:
    """Return a row whose weights have eight decimals."""
    return [f"{value:.8f}" if isinstance(value, float) else value for value in row]


if __name__ == "__main__":
    sys.exit(run_command(build_parser(), run))
