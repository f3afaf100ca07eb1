"""Size of the factors of low-rank prompts: ``python -m tools.factors RUN [RUN ...]``.

Low-rank prompts of a block are a product ``U V``; ``U`` ``(n, r)`` has a row for each prompt token.
Drawn is the Euclidean norm of that row, ``|U|`` with rank 1, for every layer and token and as the
mean of each layer, as figure 3 of MMLoP's paper (arXiv 2602.21397v1) looks at it. With several runs
it is the mean of their sizes, not of their factors, whose signs are arbitrary: ``U V`` is
``(-U) (-V)``.

Writes a PNG and a CSV: factor, layer, token, mean, deviation (population, over the runs; empty for
one run), runs. Layers and tokens are counted from 1, as in the paper; layer 1 is the input layer.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from support.command_line import run_command

from .command import load_run, run_parser, stem, write_csv, write_png

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

COLUMNS = ("factor", "layer", "token", "mean", "deviation", "runs")

#: layers or tokens up to which each has its number at the axis
NUMBERED = 24


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = run_parser("Draw the size of the factors of low-rank prompts.", several=True)
    helped = "files, or DIR/ for both in it (default: in the run's folder; several runs need it)"
    parser.add_argument("--out", type=stem("factors"), metavar="STEM|DIR/", help=helped)
    return parser


def factors_of(run: str, args: argparse.Namespace) -> tuple[str, dict[str, Tensor]]:
    """Method of a run, and its factors ``(depth, n_ctx, rank)`` by name.

    Args:
        run: folder.
        args: common options.

    Raises:
        ValueError: the run learned none.
    """
    predictor = load_run(run, args)
    method, factors = predictor.cfg.TRAINER.NAME, predictor.model.learner.token_factors()
    if not factors:
        raise ValueError(
            f"{run}: what {method} learned there is no product of low-rank factors, so there is "
            "no factor to draw; give runs with low-rank prompts"
        )
    return method, {name: factor.detach().float().cpu() for name, factor in factors.items()}


def shapes(factors: Mapping[str, Tensor]) -> str:
    """Names and shapes of factors, for people to read."""
    return ", ".join(
        "{} of {} layers, {} tokens, rank {}".format(name, *factor.shape)
        for name, factor in factors.items()
    )


def sizes(runs: Mapping[str, Mapping[str, Tensor]]) -> dict[str, np.ndarray]:
    """Euclidean norms of the rows of factors.

    Args:
        runs: folder -> name -> factor ``(depth, n_ctx, rank)``.

    Returns:
        name -> ``(runs, depth, n_ctx)`` float64.

    Raises:
        ValueError: the runs differ in names or shapes of their factors.
    """
    import torch

    first, *others = runs
    for run in others:
        if shapes(runs[run]) != shapes(runs[first]):
            raise ValueError(
                f"no mean of different factors: {first} has {shapes(runs[first])}; "
                f"{run} has {shapes(runs[run])}. Draw them one by one"
            )
    return {
        name: torch.stack([own[name] for own in runs.values()]).double().norm(dim=-1).numpy()
        for name in runs[first]
    }


def table(found: Mapping[str, np.ndarray]) -> list[tuple]:
    """Rows of ``COLUMNS``, from sizes ``(runs, depth, n_ctx)`` by name of the factor."""
    rows = []
    for name, values in found.items():
        n_runs, n_layers, n_tokens = values.shape
        for layer, token in itertools.product(range(n_layers), range(n_tokens)):
            own = values[:, layer, token]
            deviation = f"{own.std():.6f}" if n_runs > 1 else ""
            rows.append((name, layer + 1, token + 1, f"{own.mean():.6f}", deviation, n_runs))
    return rows


def draw(found: Mapping[str, np.ndarray], title: str, measure: str, path: str) -> None:
    """Write a PNG: for every factor a heat map, layers by tokens, and the mean of each layer.

    Args:
        found: sizes ``(runs, depth, n_ctx)`` by name of the factor.
        title: over all.
        measure: what a size is, by the colour bar.
        path: file.
    """
    from matplotlib.figure import Figure

    _, n_layers, n_tokens = next(iter(found.values())).shape
    map_width, bar_width = max(2.0, min(8.0, 0.6 * n_tokens)), 2.6
    size = (1.5 + len(found) * (map_width + bar_width), 2.2 + 0.36 * min(n_layers, NUMBERED))
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(
        1, 2 * len(found), sharey=True, width_ratios=[map_width, bar_width] * len(found)
    )
    means = {name: values.mean(0) for name, values in found.items()}
    top = max(float(mean.max()) for mean in means.values())
    layers, tokens = (range(1, n + 1, 1 + (n - 1) // NUMBERED) for n in (n_layers, n_tokens))
    for i, (name, values) in enumerate(found.items()):
        heat, bars = axes[2 * i : 2 * i + 2]
        if i:
            bars.sharex(axes[1])
        extent = (0.5, n_tokens + 0.5, n_layers + 0.5, 0.5)
        shown = heat.imshow(means[name], vmin=0, vmax=top, extent=extent, aspect="auto")
        heat.set(title=name, xlabel="token", xticks=tokens, yticks=layers)
        of_layers = values.mean(-1)
        error = of_layers.std(0) if len(values) > 1 else None
        drawn = bars.barh(range(1, n_layers + 1), of_layers.mean(0), xerr=error, color="tab:gray")
        bars.bar_label(drawn, fmt="%.3g", padding=3)
        bars.set(title="mean of the tokens", xlabel=measure)
        bars.margins(x=0.3)
        bars.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("layer")
    figure.colorbar(shown, ax=axes, label=measure)
    write_png(figure, path)


def check_runs(args: argparse.Namespace) -> None:
    """Raises: ValueError: a run given twice, or several without a place for the files."""
    folders = [Path(run).resolve() for run in args.run]
    for folder, run in zip(folders, args.run, strict=True):
        if folders.count(folder) > 1:
            raise ValueError(f"{run} is given twice and would count twice: give it once")
    if args.out is None and len(args.run) > 1:
        raise ValueError("several runs: say with --out where the files of their mean go")


def run(args: argparse.Namespace) -> None:
    """Write the picture and the table."""
    check_runs(args)
    methods, runs = [], {}
    for folder in args.run:
        method, runs[folder] = factors_of(folder, args)
        methods.append(method)
    found = sizes(runs)
    rank = next(iter(runs[args.run[0]].values())).shape[-1]
    measure = "absolute value" if rank == 1 else f"norm of the row (rank {rank})"
    title = ", ".join(dict.fromkeys(methods))
    if len(runs) > 1:
        title += f", mean ± deviation of {len(runs)} runs"
    out = args.out or str(Path(args.run[0], "factors"))
    draw(found, title, measure, f"{out}.png")
    write_csv(table(found), COLUMNS, f"{out}.csv")
    print(f"{len(runs)} run{'s' * (len(runs) > 1)}: {out}.png, {out}.csv")


if __name__ == "__main__":
    sys.exit(run_command(build_parser(), run))
