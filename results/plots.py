"""The usual figures: accuracy against shots, base against new, H against trainable parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from support.files import replacing

from .rows import Row, in_order
from .runs import METRICS, Method, has_halves, shots_name

# Paul Tol's "muted" scheme, which stays apart with any kind of colour blindness.
PALETTE = (
    "#CC6677",
    "#332288",
    "#DDCC77",
    "#117733",
    "#88CCEE",
    "#882255",
    "#44AA99",
    "#999933",
    "#AA4499",
)
# Another number of markers than of colours, so that the pairs repeat late.
MARKERS = "osD^vP*X<>"
# Configurations of one trainer share its colour and marker.
LINES = ("-", "--", ":", "-.")
FILLS = ("full", "left", "bottom", "right", "top")
# Fixed, so that a method looks the same whichever others are there; new ones get what is left.
LOOKS = (
    *("MMLoP", "CoOp", "CoCoOp", "VPT", "IVLP", "MaPLe", "PromptSRC", "MPL", "LoRVP"),
    *("KgCoOp", "TCP", "ProGrad"),
    *("CLIPAdapter", "TaskRes", "ZSLP", "CLAP"),
    *("TipAdapter", "TipAdapterF", "LPPlusPlus"),
    *("MMRL", "MMRLPlusPlus", "CoPrompt"),
)
ZERO_SHOT = {"ZeroshotCLIP": ("#000000", "*"), "ZeroshotCLIP2": ("#777777", "*")}
HOLLOW = "hollow: an average of fewer data sets than it should be of"


def looks(trainers: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return trainer -> (colour, marker), the same in all figures of these trainers."""
    order = [*LOOKS, *sorted(set(trainers) - set(LOOKS) - ZERO_SHOT.keys())]
    return ZERO_SHOT | {
        trainer: (PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)])
        for i, trainer in enumerate(order)
    }


def labels(lines: Iterable[Method]) -> dict[Method, str]:
    """Return a name for each method: the trainer, and as much more as tells them apart."""
    lines = set(lines)
    names = {}
    for line in lines:
        others = [other for other in lines if other.trainer == line.trainer]
        name = line.trainer
        if len({other.config for other in others}) > 1:
            name += f" {line.config}"
        if len({other.shots for other in others}) > 1:
            name += f", {shots_name(line.shots)} shots"
        names[line] = name
    return names


def styles(lines: Iterable[Method], trainers: Iterable[str] = ()) -> dict[Method, dict[str, Any]]:
    """Return how matplotlib draws the curves of methods, each with its label.

    Args:
        lines: the methods of a figure.
        trainers: of other figures, in which the trainers here look the same.
    """
    names = labels(lines)
    look = looks([*trainers, *(line.trainer for line in names)])
    found = {}
    for line, label in names.items():
        number = sorted(other for other in names if other.trainer == line.trainer).index(line)
        colour, marker = look[line.trainer]
        found[line] = {
            "label": label,
            "color": colour,
            "marker": marker,
            "markerfacecoloralt": "white",
            "fillstyle": FILLS[number % len(FILLS)],
            "linestyle": LINES[number % len(LINES)],
        }
    return found


def names_of(rows: Iterable[Row]) -> list[str]:
    """Return the averages and data sets that a figure has a panel for, in order."""
    rows = list(rows)
    averages = dict.fromkeys(row.dataset for row in rows if row.covered)
    return [*averages, *in_order({row.dataset for row in rows if not row.covered})]


class Panels:
    """A figure with one panel per average and per data set, and a common legend.

    Args:
        rows: what is drawn.
        every: all rows, by which trainers get their looks.
        x: name of the horizontal axis.
        y: name of the vertical axis.
        curves: whether the shots of a method form one curve.
        share_x: whether the panels have the same horizontal axis.
        only: the data set or average to draw, without a legend; empty draws all of them.
    """

    def __init__(
        self,
        rows: list[Row],
        every: list[Row],
        x: str,
        y: str,
        *,
        curves: bool = False,
        share_x: bool = False,
        only: str = "",
    ) -> None:
        self.rows = rows
        self.only = only
        self.key = {id(row): self.curve(row.line) if curves else row.line for row in rows}
        self.styles = styles(self.key.values(), (row.method.trainer for row in every))
        names = [only] if only else names_of(rows)
        columns = min(4, len(names))
        lines = math.ceil(len(names) / columns)
        size = (3.6, 2.9) if only else (max(6.5, 3.4 * columns), 3 * lines + 0.8)
        self.figure = Figure(figsize=size, layout="constrained")
        grid = self.figure.subplots(lines, columns, squeeze=False, sharex=share_x).flatten()
        for axes in grid[len(names) :]:
            axes.remove()
        self.axes: dict[str, Axes] = dict(zip(names, grid, strict=False))
        for number, (name, axes) in enumerate(self.axes.items()):
            axes.set_title(name, fontsize=9)
            axes.grid(alpha=0.3)
            if number >= len(names) - columns:
                axes.set_xlabel(x)
                axes.tick_params(labelbottom=True)
            if number % columns == 0:
                axes.set_ylabel(y)

    @staticmethod
    def curve(line: Method) -> Method:
        """Return what the numbers of shots of a method have in common."""
        return Method(line.trainer, line.config, 0)

    def of(self, dataset: str) -> dict[Method, list[Row]]:
        """Return method -> its rows in a panel, by shots."""
        found: dict[Method, list[Row]] = {}
        for row in sorted(self.rows, key=lambda row: row.line):
            if row.dataset == dataset:
                found.setdefault(self.key[id(row)], []).append(row)
        return found

    def draw(
        self, axes: Axes, key: Method, rows: list[Row], x: Sequence[float], y: list[float], **errors
    ) -> None:
        """Draw points of a method, hollow where they average fewer data sets.

        The spread of a single point is a bar, that along a curve a band.
        """
        style = self.styles[key]
        if len(x) > 1:
            low, high = (np.add(y, sign * np.array(errors["yerr"])) for sign in (-1, 1))
            axes.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
            errors = {}
        axes.errorbar(x, y, **errors, **style, markersize=5, capsize=2, linewidth=1.3)
        partial = [(a, b) for a, b, row in zip(x, y, rows, strict=True) if row.missing]
        if partial:
            hollow = {"linestyle": "none", "label": "_hollow", "fillstyle": "none"}
            axes.plot(*zip(*partial, strict=True), "w.", markersize=5, zorder=4, label="_paper")
            axes.plot(*zip(*partial, strict=True), **style | hollow, markersize=5, zorder=5)

    def finish(self) -> Figure:
        """Return the figure, with its legend unless it has one panel only."""
        if self.only:
            return self.figure
        handles: dict[str, Any] = {}
        for axes in self.axes.values():
            handles |= {
                text: handle for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)
            }
        chosen = sorted(handles)
        self.figure.legend(
            [handles[text] for text in chosen],
            chosen,
            loc="outside lower center",
            ncols=min(5 if max(map(len, chosen)) < 16 else 2, len(chosen)),
            fontsize=8,
            title=HOLLOW if any(row.missing for row in self.rows) else None,
            title_fontsize=8,
        )
        return self.figure


def deviation(row: Row, metric: str) -> float:
    """Return the spread of a mean, 0 for a single seed."""
    return row.std[metric] if len(row.seeds) > 1 else 0.0


def few_shot(rows: list[Row], only: str = "") -> Figure | None:
    """Return accuracy against shots, a curve per method; zero-shot models are points at 0.

    Trainings on all images stand at the right end, beyond the largest number of shots.

    Args:
        rows: of all protocols.
        only: the data set or average to draw, as for :class:`Panels`.
    """
    chosen = [row for row in rows if row.protocol == "fewshot"]
    if not chosen:
        return None
    panels = Panels(
        chosen, rows, "shots per class", "accuracy (%)", curves=True, share_x=True, only=only
    )
    ticks = sorted({0} | {row.method.shots for row in chosen})
    largest = max(shots for shots in ticks if math.isfinite(shots))
    places = [min(shots, 1.25 * largest + 1) for shots in ticks]
    place = dict(zip(ticks, places, strict=True))
    for dataset, axes in panels.axes.items():
        for key, mine in panels.of(dataset).items():
            panels.draw(
                axes,
                key,
                mine,
                [place[row.method.shots] for row in mine],
                [row.mean["accuracy"] for row in mine],
                yerr=[deviation(row, "accuracy") for row in mine],
            )
        axes.set_xticks(places, [str(shots_name(shots)) for shots in ticks])
    return panels.finish()


def base_to_new(rows: list[Row], only: str = "") -> Figure | None:
    """Return new against base accuracy, a point per method, over lines of equal H.

    Args:
        rows: of all protocols.
        only: the data set or average to draw, as for :class:`Panels`.
    """
    chosen = [row for row in rows if row.protocol == "base2new" and "H" in row.mean]
    if not chosen:
        return None
    panels = Panels(chosen, rows, "base accuracy (%)", "new accuracy (%)", only=only)
    for dataset, axes in panels.axes.items():
        axes.margins(0.15)
        for key, mine in panels.of(dataset).items():
            base, new = ([row.mean[m] for row in mine] for m in ("base", "new"))
            xerr, yerr = ([deviation(row, m) for row in mine] for m in ("base", "new"))
            panels.draw(axes, key, mine, base, new, xerr=xerr, yerr=yerr)
        x, y = (
            np.linspace(max(low, 1e-3), high, 100)
            for low, high in (axes.get_xlim(), axes.get_ylim())
        )
        grid_x, grid_y = np.meshgrid(x, y)
        same_h = axes.contour(
            grid_x,
            grid_y,
            2 * grid_x * grid_y / (grid_x + grid_y),
            levels=5,
            colors="0.75",
            linewidths=0.8,
            zorder=0,
        )
        axes.clabel(same_h, fmt="H %g", fontsize=7)
    return panels.finish()


def main_metric(protocol: str) -> str:
    """Return the metric that methods are compared in: H, or the first of the table."""
    return "H" if has_halves(protocol) else METRICS[protocol][0]


def with_parameters(
    rows: list[Row], note: Callable[[str], None], protocol: str = "base2new"
) -> tuple[list[Row], str]:
    """Return the rows that :func:`parameters` draws, and their metric.

    Data sets that are part of an average have no panel of their own.

    Args:
        rows: of all protocols.
        note: called with a line for every method whose logs do not tell the number.
        protocol: key of it; of several numbers of shots the largest is taken.
    """
    metric = main_metric(protocol)
    mine = [row for row in rows if row.protocol == protocol and metric in row.mean]
    if not has_halves(protocol):
        largest = max((row.method.shots for row in mine), default=0)
        mine = [row for row in mine if row.method.shots in (0, largest)]
    for line in sorted({row.line for row in mine if row.parameters is None}):
        note(f"not among the parameters: {line}: no single number of them in its logs")
    averaged = {d for row in mine for d in row.covered}
    return [r for r in mine if r.parameters is not None and r.dataset not in averaged], metric


def parameters(
    rows: list[Row], note: Callable[[str], None], protocol: str = "base2new", only: str = ""
) -> Figure | None:
    """Return H, or accuracy, against the number of trainable parameters.

    Zero-shot models are lines across.

    Args:
        rows: of all protocols.
        note: called with a line for every method whose logs do not tell the number.
        protocol: key of the one to draw.
        only: the data set or average to draw, as for :class:`Panels`.
    """
    chosen, metric = with_parameters(rows, note, protocol)
    if not chosen:
        return None
    y_name = "H (%)" if metric == "H" else "accuracy (%)"
    panels = Panels(chosen, rows, "trainable parameters", y_name, share_x=True, only=only)
    for dataset, axes in panels.axes.items():
        for key, mine in panels.of(dataset).items():
            for row in mine:
                y = [row.mean[metric]]
                if row.parameters:
                    x = [row.parameters]
                    panels.draw(axes, key, mine, x, y, yerr=[deviation(row, metric)])
                else:
                    style = panels.styles[key]
                    axes.axhline(*y, color=style["color"], label=style["label"], linestyle="--")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_minor_formatter(NullFormatter())
    return panels.finish()


def save(figure: Figure, path: Path) -> None:
    """Write a figure; one of that name is replaced at once or not at all."""
    kind = path.suffix[1:]
    # no date, so that equal figures are equal files
    metadata = {"CreationDate": None} if kind == "pdf" else None
    # TrueType fonts, which publishers ask for
    with replacing(path) as temporary, matplotlib.rc_context({"pdf.fonttype": 42}):
        figure.savefig(temporary, format=kind, dpi=150, metadata=metadata)


def save_plots(rows: list[Row], folder: Path, note: Callable[[str], None]) -> None:
    """Write every figure there are results for as PNG and PDF.

    Args:
        rows: of all protocols.
        folder: created when missing.
        note: called with one line for every file written and every figure left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"text.parse_math": False}):  # names may have dollar signs
        figures = {
            "few_shot": few_shot(rows),
            "base_to_new": base_to_new(rows),
            "parameters": parameters(rows, note),
        }
    for name, figure in figures.items():
        if figure is None:
            note(f"no figure {name}: no results for it")
            continue
        # The layout takes most of the time: once for both files.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        for suffix in (".png", ".pdf"):
            save(figure, folder / f"{name}{suffix}")
            note(f"wrote {folder / name}{suffix}")
