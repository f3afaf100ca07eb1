"""The figures of a report, each with its finding in words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from statistics import fmean
from typing import TYPE_CHECKING, Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from support.words import counted

from .. import plots
from ..inspection import FEW_IMAGES
from ..labels import class_title
from ..rows import Row
from ..runs import Method, shots_name, shots_phrase
from .gather import Run, training_curve
from .svg import ACCENT, shown, to_svg

if TYPE_CHECKING:
    import numpy as np

#: classes that a figure shows one by one
MOST_CLASSES = 20
#: classes up to which a confusion matrix names them, and shows its numbers
NAMED_CLASSES, NUMBERED_CLASSES = 20, 12
#: methods that an alternative text goes through
MOST_NAMED = 12
#: inches; all figures of the page have this width, so that their letters have one size
_PANEL = (3.6, 2.9)


@dataclass
class Drawn:
    """A figure of the page: its elements, the words for it, and label -> sign of its legend."""

    svg: Markup
    alt: str
    caption: str = ""
    legend: dict[str, Markup] = field(default_factory=dict)
    wide: bool = False


class Gallery:
    """Draws the figures of one page; their ids differ.

    Args:
        rows: of all tables, by which trainers get their looks.
    """

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows
        self.trainers = [row.method.trainer for row in rows]
        self._number = count(1)
        self._signs: dict[str, tuple[str, str]] = {}

    def draw(self, figure: Figure, alt: str, caption: str = "", wide: bool = False) -> Drawn:
        """Return a figure for the page."""
        legend: dict[str, Markup] = {}
        for axes in figure.axes:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                legend.setdefault(shown(label), self._sign(handle))
        svg = to_svg(figure, f"f{next(self._number)}-", shown(alt))
        return Drawn(Markup(svg), alt, caption, dict(sorted(legend.items())), wide)

    def _sign(self, handle: Any) -> Markup:
        """Return the picture of a curve beside its name."""
        line = getattr(handle, "lines", (handle,))[0]  # of a container with error bars
        look = {"color", "marker", "linestyle", "fillstyle", "markeredgecolor", "markeredgewidth"}
        values = {name: getattr(line, f"get_{name}")() for name in look & set(dir(line)) or look}
        key = str(values)
        if key not in self._signs:
            figure = Figure(figsize=(0.34, 0.17))
            axes = figure.add_axes((0, 0, 1, 1))
            axes.set_axis_off()
            axes.set(xlim=(0, 2), ylim=(0, 2))
            axes.plot([0.1, 1, 1.9], [1, 1, 1], markevery=[1], markersize=5, **values)
            prefix = f"f{next(self._number)}-"
            svg = to_svg(figure, prefix, "")
            self._signs[key] = prefix, svg.replace('role="img" aria-label=""', 'aria-hidden="true"')
        prefix, svg = self._signs[key]
        # the same sign again, with ids of its own
        return Markup(svg.replace(prefix, f"f{next(self._number)}-"))

    # --- of the tables ----------------------------------------------------------------------------

    def base_to_new(self) -> list[Drawn]:
        """Return new against base accuracy, a figure per average and data set."""
        mine = [row for row in self.rows if row.protocol == "base2new" and "H" in row.mean]
        drawn = []
        for name in plots.names_of(mine):
            figure = plots.base_to_new(self.rows, only=name)
            here = [row for row in mine if row.dataset == name]
            said = ranking(here, "H", lambda row: f" (base {row.mean['base']:.2f}, "
                           f"new {row.mean['new']:.2f})")  # fmt: skip
            alt = f"New against base accuracy, {name}, by harmonic mean H: {said}."
            drawn.append(self._given(figure, alt, f"H: {ranking(here, 'H', most=3)}"))
        return drawn

    def few_shot(self) -> list[Drawn]:
        """Return accuracy against shots, a figure per average and data set."""
        mine = [row for row in self.rows if row.protocol == "fewshot"]
        drawn = []
        for name in plots.names_of(mine):
            figure = plots.few_shot(self.rows, only=name)
            curves: dict[Method, list[Row]] = defaultdict(list)
            for row in sorted((r for r in mine if r.dataset == name), key=lambda r: r.line):
                curves[plots.Panels.curve(row.line)].append(row)
            names = plots.labels(curves)
            said = "; ".join(
                f"{names[key]} "
                + ", ".join(
                    f"{shots_name(row.method.shots)} shots {row.mean['accuracy']:.2f}"
                    for row in found
                )
                for key, found in curves.items()
            )
            largest = max(row.method.shots for found in curves.values() for row in found)
            best = [
                row for found in curves.values() for row in found if row.method.shots == largest
            ]
            caption = f"{shots_phrase(largest)}: {ranking(best, 'accuracy', most=3)}"
            drawn.append(self._given(figure, f"Accuracy against shots, {name}: {said}.", caption))
        return drawn

    def parameters(self, protocol: str) -> list[Drawn]:
        """Return H or accuracy against trainable parameters, a figure per average."""
        rows, metric = plots.with_parameters(self.rows, lambda line: None, protocol)
        if len({row.parameters for row in rows}) < 2:
            return []
        drawn = []
        for name in plots.names_of(rows):
            figure = plots.parameters(self.rows, lambda line: None, protocol, only=name)
            here = [row for row in rows if row.dataset == name]
            said = ranking(here, metric, lambda row: f" with {row.parameters:,} parameters")
            alt = f"{metric} against trainable parameters, {name}: {said}."
            sizes = sorted((row.parameters, row.line) for row in here if row.parameters)
            names = plots.labels(row.line for row in here)
            some = ", ".join(f"{names[line]} {number:,}" for number, line in sizes[:4])
            caption = f"Parameters: {some}"
            drawn.append(self._given(figure, alt, caption))
        return drawn

    def _given(self, figure: Figure | None, alt: str, caption: str) -> Drawn:
        assert figure is not None, "the rows were chosen as plots chooses them"
        return self.draw(figure, alt, caption)

    # --- of the runs of a data set ----------------------------------------------------------------

    def panel(
        self, x: str, y: str, title: str, size: tuple[float, float] = _PANEL
    ) -> tuple[Figure, Axes]:
        """Return a new figure and its axes."""
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        axes.set_title(title, fontsize=9)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.grid(alpha=0.3)
        return figure, axes

    def styles(self, methods: Iterable[Method]) -> dict[Method, dict[str, Any]]:
        """Return how the curves of methods are drawn."""
        return plots.styles(methods, self.trainers)

    def per_class(
        self,
        accuracies: Mapping[Method, Mapping[str, float]],
        title: str,
        bar: Method | None = None,
    ) -> Drawn:
        """Return the accuracy of each class: a bar for one method, marks for the others.

        Of more than ``MOST_CLASSES`` those that are hardest for that method.

        Args:
            accuracies: method -> class -> percent, mean over seeds.
            title: data set, and half of its classes.
            bar: the method; the best on average when not given.
        """
        styles = self.styles(accuracies)
        best = bar or max(accuracies, key=lambda method: fmean(accuracies[method].values()))
        classes = sorted(accuracies[best], key=accuracies[best].__getitem__)
        some = classes[:MOST_CLASSES]
        size = (_PANEL[0], max(_PANEL[1], 0.19 * len(some) + 0.8))
        figure, axes = self.panel("accuracy (%)", "", title, size)
        axes.grid(axis="y", visible=False)
        places = range(len(some))
        look = styles[best]
        axes.barh(places, [accuracies[best][c] for c in some], 0.7, color=look["color"], alpha=0.25)
        for method, style in styles.items():
            values = [accuracies[method].get(c) for c in some]
            points = [(v, p) for v, p in zip(values, places, strict=True) if v is not None]
            axes.plot(*zip(*points, strict=True), **style | {"linestyle": "none"}, markersize=4.5)
        axes.set_yticks(places, [shown(class_title(c), 28) for c in some])
        axes.invert_yaxis()
        axes.set_xlim(-2, 102)
        numbers = accuracies[best]
        caption = f"Bar: {look['label']}{'' if bar else ', the best on average'}. " + (
            f"The {len(some)} hardest of {len(classes)} classes. "
            if len(some) < len(classes)
            else ""
        )
        low, high = numbers[classes[0]], numbers[classes[-1]]
        if low == high:
            found = "no mistakes" if low == 100 else f"all have {low:.1f}"
        else:
            found = f"lowest {_ends(numbers, classes[0])}, highest {_ends(numbers, classes[-1])}"
        means = ", ".join(
            f"{styles[m]['label']} {fmean(of.values()):.2f}"
            for m, of in list(accuracies.items())[:MOST_NAMED]
        )
        alt = f"Accuracy per class, {title}. {look['label']}: {found}. Means over classes: {means}."
        return self.draw(figure, alt, caption + found.capitalize() + ".")

    def confusion(
        self,
        matrix: np.ndarray,
        classes: Sequence[str],
        who: str,
        title: str,
        picked: Sequence[int] | None = None,
    ) -> Drawn:
        """Return a confusion matrix; lines are true classes, their cells the share of them.

        Args:
            matrix: ``(C, C)`` numbers of images by true (line) and predicted class.
            classes: C names.
            who: the method, and how many seeds.
            title: data set, and half of its classes.
            picked: labels of the classes to draw; all when not given.
        """
        share = matrix / matrix.sum(axis=1, keepdims=True).clip(1)
        right = 100 * matrix.trace() / max(1, matrix.sum())
        worst = confused(matrix, classes, 5)
        of_all = ""
        if picked is not None:
            of_all = f"The {len(picked)} of {len(classes)} classes that are confused most. "
            share, classes = share[picked][:, picked], [classes[label] for label in picked]
        number = len(classes)
        figure, axes = self.panel("predicted class", "true class", title, (_PANEL[0], 3.9))
        axes.grid(visible=False)
        colours = LinearSegmentedColormap.from_list(
            "accent", [to_rgba(ACCENT, 0.0), to_rgba(ACCENT, 0.6)]
        )
        if number <= NAMED_CLASSES:
            import numpy as np

            cells = np.ma.masked_equal(share, 0)
            axes.pcolormesh(cells, cmap=colours, vmin=0, vmax=1, linewidth=0)
            axes.set_xlim(0, number)
            axes.set_ylim(number, 0)
            places = [i + 0.5 for i in range(number)]
            names = [shown(class_title(c), 18) for c in classes]
            letters = 7 if number <= NUMBERED_CLASSES else 6
            axes.set_xticks(places, names, rotation=90, fontsize=letters)
            axes.set_yticks(places, names, fontsize=letters)
        else:
            axes.imshow(share, cmap=colours, vmin=0, vmax=1, interpolation="none", aspect="auto")
        if number <= NUMBERED_CLASSES:
            for i, line in enumerate(share):
                for j, value in enumerate(line):
                    if value:
                        text = f"{100 * value:.0f}"
                        axes.text(j + 0.5, i + 0.5, text, ha="center", va="center", fontsize=7)
        said = "; ".join(f"{t} taken for {p} {n} of {of} times" for t, p, n, of in worst)
        alt = f"Confusion matrix, {title}, {who}: {right:.2f}% on the diagonal. "
        alt += f"{said or 'No errors'}."
        t, p, n, of = worst[0] if worst else ("", "", 0, 0)
        caption = f"Most often: {t} taken for {p}, {n} of {of}" if worst else "No errors"
        ties = int((matrix == n).sum() - (matrix.diagonal() == n).sum()) - 1 if worst else 0
        caption += f", and {counted(ties, 'other pair')} as often." if ties else "."
        caption = f"{of_all}{caption} Shares of the true class, %; {who}."
        return self.draw(figure, of_all + alt, caption)

    def reliability(self, curves: Mapping[Method, tuple[Any, float]], title: str) -> Drawn:
        """Return accuracy against confidence; on the diagonal a method is calibrated.

        Args:
            curves: method -> its reliability over all seeds, and its mean expected calibration
                error in percent.
            title: data set, and half of its classes.
        """
        figure, axes = self.panel("confidence", "accuracy", title)
        axes.plot([0, 1], [0, 1], color="#bfbfbf", linewidth=1)
        styles = self.styles(curves)
        hollow = False
        for method, (curve, _) in curves.items():
            style = styles[method]
            axes.plot(curve.confidence, curve.accuracy, **style, markersize=4, linewidth=1.2)
            few = curve.count < FEW_IMAGES
            if few.any():
                hollow = True
                look = style | {"linestyle": "none", "fillstyle": "full", "label": "_few"}
                look |= {"markerfacecolor": "white", "markeredgecolor": style["color"]}
                axes.plot(curve.confidence[few], curve.accuracy[few], **look, markersize=4)
        axes.set(xlim=(0, 1), ylim=(0, 1))
        errors = sorted(((e, styles[m]["label"]) for m, (_, e) in curves.items()))
        said = ", ".join(f"{label} {error:.2f}" for error, label in errors)
        bins = "; ".join(
            f"{styles[m]['label']}: "
            + ", ".join(
                f"confidence {c:.2f} accuracy {a:.2f} of {n:.0f}"
                for c, a, n in zip(curve.confidence, curve.accuracy, curve.count, strict=True)
            )
            for m, (curve, _) in list(curves.items())[:3]
        )
        alt = (
            f"Reliability diagram, {title}. Expected calibration error in percent: {said}. {bins}."
        )
        some = ", ".join(f"{label} {error:.2f}" for error, label in errors[:4])
        caption = f"Expected calibration error, %: {some}."
        if hollow:
            caption += f" Hollow: fewer than {FEW_IMAGES} images in the bin, mostly noise."
        return self.draw(figure, alt, caption)

    def training(self, runs: Iterable[Run], title: str) -> list[Drawn]:
        """Return loss, accuracy and learning rate over epochs, a line per run.

        Args:
            runs: trainings on one data set.
            title: the data set.
        """
        curves: dict[Method, list[dict]] = defaultdict(list)
        for run in runs:
            if curve := training_curve(run.folder):
                curves[run.method].append(curve)
        styles = self.styles(curves)
        drawn = []
        for name, words in (("loss", "loss"), ("acc", "accuracy (%)"), ("lr", "learning rate")):
            found = {m: [c[name] for c in of if name in c] for m, of in curves.items()}
            found = {method: of for method, of in found.items() if of}
            if not found:
                continue
            figure, axes = self.panel(
                "epoch", f"training {words}" if name != "lr" else words, title
            )
            said = []
            for method, of in found.items():
                label = styles[method]["label"]
                for number, points in enumerate(of):
                    look = styles[method] | {"label": "_seed" if number else label}
                    marks: dict[str, Any] = {"markevery": [len(points) - 1], "markersize": 4}
                    axes.plot(*zip(*points, strict=True), **look, **marks, linewidth=1, alpha=0.8)
                first, last = (fmean(points[i][1] for points in of) for i in (0, -1))
                said.append(f"{label} {first:.4g} → {last:.4g}")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            if name == "loss" and min(v for of in found.values() for p in of for _, v in p) > 0:
                axes.set_yscale("log")
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.yaxis.set_major_formatter("{x:g}")
                axes.yaxis.set_minor_formatter(NullFormatter())
            change = "; ".join(said[:MOST_NAMED])
            alt = f"Training {words} by epoch, {title}, from the first to the last epoch: {change}."
            drawn.append(self.draw(figure, alt, f"First → last epoch: {'; '.join(said[:4])}"))
        return drawn


def ranking(
    rows: Iterable[Row], metric: str, more: Callable[[Row], str] = lambda row: "", most: int = 0
) -> str:
    """Return the rows' labels with a metric, the best first.

    Args:
        rows: of one data set or average.
        metric: that all of them have.
        more: what else to say of a row.
        most: number of rows to go through; 0 for ``MOST_NAMED``.
    """
    rows = sorted(rows, key=lambda row: row.mean[metric], reverse=True)
    names = plots.labels(row.line for row in rows)
    parts = []
    for row in rows[: most or MOST_NAMED]:
        spread = f" ± {row.std[metric]:.2f}" if len(row.seeds) > 1 else ""
        parts.append(f"{names[row.line]} {row.mean[metric]:.2f}{spread}{more(row)}")
    return ", ".join(parts)


def _ends(numbers: Mapping[str, float], name: str) -> str:
    """Return a class with its accuracy, and how many others have the same."""
    others = sum(value == numbers[name] for value in numbers.values()) - 1
    more = f" and {counted(others, 'other')}" if others else ""
    return f"{shown(class_title(name), 40)}{more} {numbers[name]:.1f}"


def confused(
    matrix: np.ndarray, classes: Sequence[str], most: int
) -> list[tuple[str, str, int, int]]:
    """Return the most frequent confusions: true and predicted class, how often, of how many.

    Args:
        matrix: numbers of images by true (line) and predicted class.
        classes: their names.
        most: largest number of confusions.
    """
    totals = matrix.sum(axis=1)
    wrong = [
        (int(matrix[i, j]), int(totals[i]), i, j)
        for i, j in zip(*matrix.nonzero(), strict=True)
        if i != j
    ]
    wrong.sort(key=lambda entry: (-entry[0], entry[1:]))
    names = {
        label: shown(class_title(classes[label]), 40)
        for _, _, *pair in wrong[:most]
        for label in pair
    }
    return [(names[i], names[j], n, of) for n, of, i, j in wrong[:most]]
