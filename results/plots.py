"""The usual figures: accuracy against shots, base against new, H against trainable parameters."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.path import Path as MarkerPath
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, NullLocator

from support.files import replacing

from .labels import Point, name_ends, name_lines, name_points
from .rows import Row, in_order
from .runs import METRICS, Method, has_halves, shots_name, shots_phrase

#: shown larger, in a colour of its own and above the others
EMPHASISED = "MMLoP"
_EMPHASIS = "#CC3311"
# Paul Tol's "muted" scheme, which stays apart with any kind of colour blindness, and a dark grey
# of his "dark" one; light ones have a dark edge, so that dark and light differ in grey as well.
_DARK = ("#332288", "#117733", "#882255", "#AA4499", "#225555")
_LIGHT = ("#DDCC77", "#88CCEE", "#44AA99", "#CC6677", "#999933")
TONES = (_DARK, _LIGHT)
PALETTE = (_EMPHASIS, *_DARK, *_LIGHT)
_BOW = MarkerPath([(-1, -0.9), (-1, 0.9), (1, -0.9), (1, 0.9), (-1, -0.9)])
_GLASS = MarkerPath([(-0.9, -1), (0.9, -1), (-0.9, 1), (0.9, 1), (-0.9, -1)])
_TALL = MarkerPath([(-0.5, -1), (0.5, -1), (0.5, 1), (-0.5, 1), (-0.5, -1)])
_WIDE = MarkerPath([(-1, -0.5), (1, -0.5), (1, 0.5), (-1, 0.5), (-1, -0.5)])
_FLAT = MarkerPath([(-1, 0), (0, 0.6), (1, 0), (0, -0.6), (-1, 0)])
_CROSS, _BURST = (4, 1, 0), (6, 1, 0)  # stars of four and of six points
MARKERS = (
    *("s", "D", "^", "v", "P", "X", "p", "<", ">", "d", _BOW, _GLASS, _TALL, _WIDE, _FLAT),
    *(_CROSS, _BURST),
)
#: the first kinds are of dark, the second of light methods; further configurations go on in them
LINES = (
    ("-", ":", "-.", "--"),
    ((0, (6, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1))),
)
FILLS = ("full", "left", "bottom", "right", "top")
# Fixed, so that a method looks the same whichever others are there; new ones get what is left.
# Chosen by search for the largest smallest distance of any two (as tests/results/test_looks.py
# measures it: drawn, seen in colour, with each colour blindness, and in grey), with colours of
# their own for those that are compared over shots.
LOOKS: dict[str, tuple[str, Any]] = {
    "MMLoP": (_EMPHASIS, "o"),
    "CoOp": ("#332288", "s"),
    "CoCoOp": ("#DDCC77", ">"),
    "VPT": ("#882255", "v"),
    "IVLP": ("#88CCEE", "d"),
    "MaPLe": ("#882255", "^"),
    "PromptSRC": ("#44AA99", "P"),
    "MPL": ("#999933", "s"),
    "LoRVP": ("#CC6677", _CROSS),
    "KgCoOp": ("#332288", _WIDE),
    "TCP": ("#88CCEE", _GLASS),
    "ProGrad": ("#CC6677", _TALL),
    "TipAdapter": ("#DDCC77", "D"),
    "TipAdapterF": ("#882255", ">"),
    "CLIPAdapter": ("#88CCEE", "<"),
    "TaskRes": ("#117733", _GLASS),
    "LPPlusPlus": ("#999933", "p"),
    "ZSLP": ("#AA4499", _FLAT),
    "CLAP": ("#CC6677", "X"),
    "CLIPLoRA": ("#225555", "<"),
    "MMA": ("#44AA99", "^"),
    "TwoStageFS": ("#332288", "d"),
    "MMRL": ("#DDCC77", "v"),
    "MMRLPlusPlus": ("#225555", _BURST),
    "CoPrompt": ("#44AA99", _BOW),
}
ZERO_SHOT = {"ZeroshotCLIP": ("#000000", "*"), "ZeroshotCLIP2": ("#777777", "*")}
HOLLOW = "hollow: an average of fewer data sets than it should be of"
#: entries of a figure's footnote; the tables have all
_MOST_NOTED = 6


def is_light(colour: str) -> bool:
    """Return whether a colour of the palette is light, so that marks in it need a dark edge."""
    return colour in _LIGHT


class Look(NamedTuple):
    """How a trainer is drawn: colour and marker, whose edge is dark where the colour is light."""

    colour: str
    marker: Any

    @property
    def light(self) -> bool:
        """Whether its tone is light."""
        return is_light(self.colour)


def _spare() -> list[Look]:
    """Return the looks that no method of ``LOOKS`` has: those first that differ in grey as well."""
    taken = {Look(*look) for look in LOOKS.values()}
    pairs = [
        Look(colours[(i + shift) % len(colours)], marker)
        for shift in range(len(_DARK))
        for i, marker in enumerate(MARKERS)
        for colours in TONES
    ]
    in_grey = {(look.marker, look.light) for look in taken}
    free = [look for look in pairs if look not in taken]
    return sorted(free, key=lambda look: (look.marker, look.light) in in_grey)


def looks(trainers: Iterable[str]) -> dict[str, Look]:
    """Return trainer -> its look, the same in all figures of these trainers.

    Trainers that are not in ``LOOKS`` differ from all others in marker or colour while there are at
    most as many as are spare.
    """
    given = {trainer: Look(*look) for trainer, look in (LOOKS | ZERO_SHOT).items()}
    spare = _spare()
    for i, trainer in enumerate(sorted(set(trainers) - set(given))):
        given[trainer] = spare[i % len(spare)]
    return given


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
            name += f", {shots_phrase(line.shots)}"
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
        mine = look[line.trainer]
        kinds = LINES[mine.light]
        found[line] = {
            "label": label,
            "color": mine.colour,
            "marker": mine.marker,
            "markeredgecolor": "#000000" if mine.light else mine.colour,
            "markeredgewidth": 0.7,
            "markerfacecoloralt": "white",
            "fillstyle": FILLS[number % len(FILLS)],
            "linestyle": kinds[number % len(kinds)],
        }
    return found


def names_of(rows: Iterable[Row]) -> list[str]:
    """Return the averages and data sets that a figure has a panel for, in order."""
    rows = list(rows)
    averages = dict.fromkeys(row.dataset for row in rows if row.covered)
    return [*averages, *in_order({row.dataset for row in rows if not row.covered})]


class Panels:
    """A figure with one panel per average and per data set, and names or a common legend.

    Args:
        rows: what is drawn.
        every: all rows, by which trainers get their looks.
        x: name of the horizontal axis.
        y: name of the vertical axis.
        curves: whether the shots of a method form one curve.
        share_x: whether the panels have the same horizontal axis.
        only: the data set or average to draw, without names, legend or footnote; empty draws all.
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
        self.curves = curves
        self.key = {id(row): self.curve(row.line) if curves else row.line for row in rows}
        self.styles = styles(self.key.values(), (row.method.trainer for row in every))
        self.points: dict[str, list[Point]] = {}
        self.lines: dict[str, dict[str, float]] = {}
        names = [only] if only else names_of(rows)
        columns = min(4, len(names))
        lines = math.ceil(len(names) / columns)
        size = (3.6, 2.9) if only else (3.4 * columns, 3 * lines + 0.8)
        if not only and len(names) == 1:
            size = (7.2, 4.6)
        self.figure = Figure(figsize=size, layout="constrained")
        grid = self.figure.subplots(lines, columns, squeeze=False, sharex=share_x).flatten()
        for axes in grid[len(names) :]:
            axes.remove()
        self.axes: dict[str, Axes] = dict(zip(names, grid, strict=False))
        for number, (name, axes) in enumerate(self.axes.items()):
            axes.set_title(name, fontsize=9)
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
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
        self,
        dataset: str,
        key: Method,
        rows: list[Row],
        x: Sequence[float],
        y: list[float],
        **errors: Any,
    ) -> None:
        """Draw points of a method with their spreads, hollow where they average fewer data sets.

        The curve of the emphasised method has a band as well.
        """
        axes, style = self.axes[dataset], self.styles[key]
        emphasised = key.trainer == EMPHASISED
        size = 8.5 if emphasised else 5.5
        if emphasised and len(x) > 1:
            low, high = (np.add(y, sign * np.array(errors["yerr"])) for sign in (-1, 1))
            axes.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
        axes.errorbar(
            x,
            y,
            **errors,
            **style,
            markersize=size,
            capsize=2.5,
            elinewidth=1.1,
            linewidth=2.4 if emphasised else 1.3,
            zorder=4 if emphasised else 3,
        )
        partial = [(a, b) for a, b, row in zip(x, y, rows, strict=True) if row.missing]
        if partial:
            hollow: dict[str, Any] = {"linestyle": "none", "label": "_hollow", "fillstyle": "none"}
            hollow["markeredgewidth"] = 1.3
            paper = {"marker": style["marker"], "color": "white", "markersize": size}
            above = 5 if emphasised else 4
            places = list(zip(*partial, strict=True))
            axes.plot(*places, **paper, linestyle="none", zorder=above, label="_paper")
            axes.plot(*places, **style | hollow, markersize=size, zorder=above)
        last = max(range(len(x)), key=x.__getitem__)
        spread = {f"{name[0]}_error": values[last] for name, values in errors.items()}
        self.points.setdefault(dataset, []).append(
            Point(style["label"], x[last], y[last], self._ink(key), emphasised, **spread)
        )

    def _ink(self, key: Method) -> str:
        """Return the colour of a name: that of the emphasised method, dark for all others."""
        return self.styles[key]["color"] if key.trainer == EMPHASISED else "0.15"

    def across(self, dataset: str, key: Method, y: float) -> None:
        """Draw a line across a panel for a method that has no place on its horizontal axis."""
        style = self.styles[key]
        self.lines.setdefault(dataset, {})[style["label"]] = y
        self.axes[dataset].axhline(
            y, color=style["color"], label=style["label"], linestyle="--", linewidth=1.2, zorder=2
        )

    def gaps(self) -> list[str]:
        """Return a line for every panel that lacks points of methods which others have."""
        lines = []
        keys = dict.fromkeys(self.key.values())
        for dataset in self.axes:
            here = self.of(dataset)
            lacking = [self.styles[key]["label"] for key in keys if key not in here]
            if self.curves:
                shots = {row.method.shots for mine in here.values() for row in mine} - {0}
                for key, mine in here.items():
                    has = {row.method.shots for row in mine}
                    if absent := sorted(shots - has if has != {0} else ()):
                        numbers = ", ".join(str(shots_name(number)) for number in absent)
                        lacking.append(f"{self.styles[key]['label']} at {numbers} shots")
            if lacking:
                lines.append(f"{dataset}: no {', '.join(sorted(lacking))}")
        return lines

    def incomplete(self) -> list[str]:
        """Return the methods with averages of fewer data sets, and of how many."""
        found: dict[str, set[str]] = {}
        for row in self.rows:
            if row.missing:
                found.setdefault(self.styles[self.key[id(row)]]["label"], set()).add(row.coverage)
        return [f"{label} ({', '.join(sorted(of))})" for label, of in sorted(found.items())]

    def footnote(self, more: Iterable[str]) -> str:
        """Return what a figure says below: hollow points, and points that are not there."""
        lines = []
        if incomplete := self.incomplete():
            lines.append(f"{HOLLOW}: {', '.join(incomplete)}")
        gaps = [*self.gaps(), *more]
        if len(gaps) > _MOST_NOTED:
            gaps[_MOST_NOTED:] = [f"and more in {len(gaps) - _MOST_NOTED} other places"]
        if gaps:
            lines.append(f"not there: {'; '.join(gaps)}")
        width = round(19 * self.figure.get_figwidth())
        return "\n".join(part for line in lines for part in textwrap.wrap(line, width))

    def finish(self, more: Iterable[str] = ()) -> Figure:
        """Return the figure with a name beside each point where all have room, else a legend.

        Args:
            more: what else is not there.
        """
        if self.only:
            return self.figure
        text = self.footnote(more)
        if len(self.axes) == 1:
            below = self.figure.supxlabel(text, fontsize=7, x=0.01, ha="left", color="0.35")
            if self._name_all():
                return self.figure
            below.set_text("")
        self._add_legend(text)
        if not self.curves:
            self._freeze()
            for dataset, axes in self.axes.items():
                self._name(axes, self.points.get(dataset, ()))
        return self.figure

    def _freeze(self) -> None:
        """Lay the figure out, once and for all: names are placed in what it is then."""
        self.figure.draw_without_rendering()
        self.figure.set_layout_engine("none")

    def _name_all(self) -> bool:
        """Name the points of the only panel; return whether all have room."""
        ((dataset, axes),) = self.axes.items()
        points = self.points.get(dataset, [])
        if self.curves:
            starts = [point for point in points if point.x == 0]
            self.figure.draw_without_rendering()
            if not name_ends(axes, [point for point in points if point.x != 0]):
                return False
            self._freeze()
            return not name_points(axes, starts)
        self._freeze()
        before = set(axes.texts)
        across = self.lines.get(dataset, {})
        fit = name_lines(axes, across, points)
        if fit and not name_points(axes, points, lines=across.values()):
            return True
        for text in set(axes.texts) - before:
            text.remove()
        self.figure.set_layout_engine("constrained")
        return False

    @staticmethod
    def _name(axes: Axes, points: Iterable[Point]) -> None:
        """Name all points of a panel beside a legend, or where some have no room the emphasised."""
        points, before = list(points), set(axes.texts)
        if not name_points(axes, points, size=6.5):
            return
        for text in set(axes.texts) - before:
            if text.get_text() not in {point.name for point in points if point.bold}:
                text.remove()

    def _add_legend(self, title: str) -> None:
        handles: dict[str, Any] = {}
        for axes in self.axes.values():
            handles |= {
                text: handle for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)
            }
        first = {style["label"] for key, style in self.styles.items() if key.trainer == EMPHASISED}
        chosen = sorted(handles, key=lambda text: (text not in first, text))
        room = int(self.figure.get_figwidth() / (0.6 + 0.075 * max(map(len, chosen))))
        legend = self.figure.legend(
            [handles[text] for text in chosen],
            chosen,
            loc="outside lower center",
            ncols=min(max(1, room), len(chosen)),
            fontsize=8,
            handlelength=3,
            title=title or None,
            title_fontsize=7,
        )
        for text in legend.get_texts():
            text.set_fontweight("bold" if text.get_text() in first else "normal")


def deviation(row: Row, metric: str) -> float:
    """Return the spread of a mean, 0 for a single seed."""
    return row.std[metric] if len(row.seeds) > 1 else 0.0


def few_shot(rows: list[Row], only: str = "") -> Figure | None:
    """Return accuracy against shots, a curve per method; zero-shot models are points at 0.

    The axis is logarithmic from 1 on. Trainings on all images stand at its right end, beyond the
    largest number of shots.

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
    places = [min(shots, 2 * max(1, largest)) for shots in ticks]
    place = dict(zip(ticks, places, strict=True))
    for dataset, axes in panels.axes.items():
        for key, mine in panels.of(dataset).items():
            panels.draw(
                dataset,
                key,
                mine,
                [place[row.method.shots] for row in mine],
                [row.mean["accuracy"] for row in mine],
                yerr=[deviation(row, "accuracy") for row in mine],
            )
        # linear from 0 to 1
        axes.set_xscale("symlog", base=2, linthresh=1, linscale=0.5)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(-0.25, 1.25 * max(1, *places))
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
            panels.draw(dataset, key, mine, base, new, xerr=xerr, yerr=yerr)
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


_UNCOUNTED = "not among the parameters: "


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
        note(f"{_UNCOUNTED}{line}: its logs have none, or one for each data set")
    averaged = {d for row in mine for d in row.covered}
    return [r for r in mine if r.parameters is not None and r.dataset not in averaged], metric


def parameters(
    rows: list[Row], note: Callable[[str], None], protocol: str = "base2new", only: str = ""
) -> Figure | None:
    """Return H, or accuracy, against the number of trainable parameters.

    Methods that train none are lines across.

    Args:
        rows: of all protocols.
        note: called with a line for every method whose logs do not tell the number.
        protocol: key of the one to draw.
        only: the data set or average to draw, as for :class:`Panels`.
    """
    uncounted: list[str] = []

    def keep(line: str) -> None:
        uncounted.append(line.removeprefix(_UNCOUNTED))
        note(line)

    chosen, metric = with_parameters(rows, keep, protocol)
    if not chosen:
        return None
    y_name = "H (%)" if metric == "H" else "accuracy (%)"
    panels = Panels(chosen, rows, "trainable parameters", y_name, share_x=True, only=only)
    counts = [row.parameters for row in chosen if row.parameters] or [1]
    for dataset, axes in panels.axes.items():
        axes.margins(y=0.08)
        for key, mine in panels.of(dataset).items():
            for row in mine:
                y = row.mean[metric]
                if row.parameters:
                    spread = [deviation(row, metric)]
                    panels.draw(dataset, key, [row], [row.parameters], [y], yerr=spread)
                else:
                    panels.across(dataset, key, y)
        axes.set_xscale("log")
        axes.set_xlim(min(counts) / 1.7, max(counts) * 1.7)
        wide = not only and len(panels.axes) == 1
        finer = max(counts) / min(counts) < 10 ** (5 if wide else 2)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if finer else (1,)))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_minor_formatter(NullFormatter())
    averaged = {d for row in chosen for d in row.covered}
    named = {row.line for row in (*chosen, *(r for r in rows if r.parameters is None))}
    alone = {
        row.line.trainer: row.dataset
        for row in rows
        if row.protocol == protocol and row.dataset in averaged and row.parameters is not None
        if metric in row.mean and row.line not in named
    }
    uncounted += [f"{trainer}: {dataset} only" for trainer, dataset in sorted(alone.items())]
    return panels.finish(uncounted)


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
