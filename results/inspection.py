"""What one run's predictions show: classes, confusions, mistakes, and zero-shot beside them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from .labels import class_title
from .predictions import Predictions

if TYPE_CHECKING:
    import numpy as np

#: classes up to which a picture of a confusion matrix names all; of more it has an overview, and
#: the classes that are confused most
MOST_NAMED, MOST_PICKED = 120, 40
#: lines of an overview, which more classes share
_OVERVIEW = 250
#: letters of a class name in a picture
_LETTERS = 30
#: an accuracy of fewer images says little: its interval is wider than 17 points to either side
FEW_IMAGES = 30
#: of intervals, and of the verdict on a gain
_CONFIDENCE = 0.95

CLASS_COLUMNS = (
    *("class", "images", "correct", "accuracy", "zero_shot_accuracy", "difference"),
    *("most_often_taken_for", "times", "accuracy_low", "accuracy_high", "gained", "lost"),
)
MISTAKE_COLUMNS = (
    *("image", "true", "predicted", "probability", "probability_of_true", "zero_shot_predicted"),
)


def wilson(correct: int, images: int) -> tuple[float, float] | None:
    """Return the 95% interval of an accuracy in percent (Wilson, JASA 1927); None of no images.

    Args:
        correct: number of images that are right.
        images: of how many.
    """
    if not images:
        return None
    from scipy.stats import binomtest

    found = binomtest(correct, images).proportion_ci(_CONFIDENCE, method="wilson")
    return 100 * float(found.low), 100 * float(found.high)


def within_noise(gained: int, lost: int) -> bool:
    """Return whether chance explains what changed (McNemar's exact test, 5%).

    Args:
        gained: number of images that only the one method has right.
        lost: that only the other has right.
    """
    from scipy.stats import binomtest

    return not gained + lost or float(binomtest(gained, gained + lost).pvalue) > 1 - _CONFIDENCE


def few_words(few: int, of: int, what: str) -> str:
    """Return a caution: how many classes or bins have too few images.

    Args:
        few: how many have.
        of: how many there are.
        what: the word for one, which gets an s.
    """
    return (
        f"{few} of {of} {what}{'es' if what.endswith('s') else 's'} have fewer than {FEW_IMAGES} "
        f"images: their accuracy is mostly noise, known to ±17 points at {FEW_IMAGES} images"
    )


@dataclass(frozen=True)
class ClassLine:
    """A class: numbers of images, accuracies in percent, and what it is most often taken for.

    ``accuracy`` is None where a class has no image, ``zero_shot`` also where there is none to
    compare with, as are ``gained`` and ``lost``: how many images only the run, and only zero-shot
    has right. ``taken_for`` has several classes where they tie, ``times`` each, and is empty where
    all are right.
    """

    name: str
    images: int
    correct: int
    accuracy: float | None
    zero_shot: float | None
    taken_for: tuple[str, ...]
    times: int
    gained: int | None = None
    lost: int | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95% interval of the accuracy, in percent; None without images."""
        return wilson(self.correct, self.images)

    @property
    def difference(self) -> float | None:
        """How much better than zero-shot, in percentage points."""
        if self.accuracy is None or self.zero_shot is None:
            return None
        return self.accuracy - self.zero_shot


@dataclass(frozen=True)
class Mistake:
    """An image that was misclassified; probabilities from 0 to 1, ``zero_shot`` empty if unknown.

    ``number`` is its place among the tested images.
    """

    number: int
    image: str
    true: str
    predicted: str
    probability: float
    of_true: float
    zero_shot: str


class Inspection:
    """A run's predictions, and those of zero-shot CLIP on the same images.

    Args:
        own: of the run.
        zero_shot: of the same images and classes, in their order; None without.

    Raises:
        ValueError: the two are of different images or classes.
    """

    def __init__(self, own: Predictions, zero_shot: Predictions | None = None) -> None:
        if zero_shot is not None and not are_alike(own, zero_shot):
            raise ValueError("zero-shot predictions of other images or classes")
        self.own, self.zero_shot = own, zero_shot

    @cached_property
    def matrix(self) -> np.ndarray:
        """Numbers of images by true (line) and predicted class, ``(C, C)``."""
        return self.own.confusion()

    @cached_property
    def classes(self) -> list[ClassLine]:
        """A line per class, in the order of the labels."""
        import numpy as np

        accuracies = self.own.per_class_accuracy()
        others = None if self.zero_shot is None else self.zero_shot.per_class_accuracy()
        wrong = self.matrix - np.diag(self.matrix.diagonal())
        lines = []
        for label, name in enumerate(self.own.classes):
            images, times = int(self.matrix[label].sum()), int(wrong[label].max())
            worst = np.flatnonzero(wrong[label] == times).tolist() if times else []
            changed = self._changed(label) if others is not None else (None, None)
            lines.append(
                ClassLine(
                    name,
                    images,
                    int(self.matrix[label, label]),
                    float(accuracies[label]) if images else None,
                    float(others[label]) if others is not None and images else None,
                    tuple(self.own.classes[other] for other in worst),
                    times,
                    *changed,
                )
            )
        return lines

    def _changed(self, label: int) -> tuple[int, int]:
        """Return how many images of a class only the run, and only zero-shot has right."""
        assert self.zero_shot is not None
        own, other = (
            one.predicted[self.own.labels == label] == label for one in (self.own, self.zero_shot)
        )
        return int((own & ~other).sum()), int((other & ~own).sum())

    @cached_property
    def mistakes(self) -> list[Mistake]:
        """The images that were misclassified, the most confident mistake first."""
        import numpy as np

        own, names = self.own, self.own.classes
        (wrong,) = np.nonzero(own.predicted != own.labels)
        wrong = wrong[np.argsort(-own.confidence[wrong], kind="stable")]
        found = []
        for number in map(int, wrong):
            (probabilities,) = own.probabilities(slice(number, number + 1))
            other = "" if self.zero_shot is None else names[self.zero_shot.predicted[number]]
            found.append(
                Mistake(
                    number,
                    own.images[number] if own.images else "",
                    names[own.labels[number]],
                    names[own.predicted[number]],
                    float(probabilities[own.predicted[number]]),
                    float(probabilities[own.labels[number]]),
                    other,
                )
            )
        return found

    def agreement(self) -> tuple[int, int, int, int] | None:
        """Return how many images are right by both, the run alone, zero-shot alone, and neither."""
        if self.zero_shot is None:
            return None
        own = self.own.predicted == self.own.labels
        other = self.zero_shot.predicted == self.own.labels
        parts = (own & other, own & ~other, ~own & other, ~own & ~other)
        return tuple(int(part.sum()) for part in parts)  # type: ignore[return-value]  # four

    # --- as tables --------------------------------------------------------------------------------

    def class_rows(self) -> Iterator[tuple]:
        """Yield the rows of ``CLASS_COLUMNS``, percentages with four decimals."""

        def rounded(value: float | None) -> float | None:
            return None if value is None else round(value, 4)

        for line in self.classes:
            accuracies = (line.accuracy, line.zero_shot, line.difference)
            yield (
                *(line.name, line.images, line.correct, *map(rounded, accuracies)),
                *("; ".join(line.taken_for), line.times or None),
                *map(rounded, line.interval or (None, None)),
                *(line.gained, line.lost),
            )

    def mistake_rows(self) -> Iterator[tuple]:
        """Yield the rows of ``MISTAKE_COLUMNS``."""
        for one in self.mistakes:
            yield (
                *(one.image, one.true, one.predicted, round(one.probability, 6)),
                *(round(one.of_true, 6), one.zero_shot),
            )

    def confusion_rows(self) -> Iterator[list]:
        """Yield the lines of the confusion matrix, each behind the name of its true class."""
        for name, line in zip(self.own.classes, self.matrix.tolist(), strict=True):
            yield [name, *line]


def are_alike(one: Predictions, other: Predictions) -> bool:
    """Return whether predictions are of the same images, known by name, and the same classes."""
    import numpy as np

    return (
        list(one.classes) == list(other.classes)
        and bool(one.images)
        and list(one.images) == list(other.images)
        and np.array_equal(one.labels, other.labels)
    )


# --- confusion matrix as a picture ----------------------------------------------------------------


def most_confused(matrix: np.ndarray, most: int) -> list[int]:
    """Return the classes with the most frequent confusions, sorted, ``most`` of them at most.

    Args:
        matrix: numbers of images by true (line) and predicted class.
        most: largest number of classes.
    """
    import numpy as np

    wrong = matrix - np.diag(matrix.diagonal())
    true, predicted = wrong.nonzero()
    chosen: dict[int, None] = {}
    for place in np.argsort(-wrong[true, predicted], kind="stable"):
        pair = dict.fromkeys((int(true[place]), int(predicted[place])))
        if len(chosen | pair) > most:
            break
        chosen |= pair
    return sorted(chosen)


def confusion_picture(matrix: np.ndarray, classes: Sequence[str], title: str) -> Figure:
    """Draw a confusion matrix with the names of its classes, its colours shares of the true class.

    Up to ``MOST_NAMED`` classes all have their names, and cells their numbers of images. Of more
    the mistakes of all are drawn small, beside those classes that are confused most.

    Args:
        matrix: ``(C, C)`` numbers of images by true (line) and predicted class.
        classes: C names.
        title: of the picture.
    """
    number = len(classes)
    picked = list(range(number)) if number <= MOST_NAMED else most_confused(matrix, MOST_PICKED)
    cell = 0.42 if len(picked) <= 12 else 0.3 if len(picked) <= MOST_PICKED else 0.17
    letters = 9 if len(picked) <= MOST_PICKED else 7.5
    longest = max((min(len(name), _LETTERS) for name in classes), default=1)
    margin = 0.6 + longest * letters * 0.0085
    side = max(3.0, cell * max(1, len(picked))) + margin
    whole = number <= MOST_NAMED
    figure = Figure(figsize=(side + 0.9 if whole else 2 * side, side + 0.3), layout="constrained")
    figure.suptitle(title, fontsize=11, wrap=True)
    if whole:
        shown = _draw_cells(figure.subplots(), matrix, classes, picked, letters)
    else:
        left, right = figure.subplots(1, 2)
        _draw_overview(left, matrix, classes)
        if not picked:
            right.text(0.5, 0.5, "no mistakes", ha="center", va="center")
            right.set_axis_off()
            return figure
        right.set_title(f"the {len(picked)} classes that are confused most", fontsize=10)
        shown = _draw_cells(right, matrix, classes, picked, letters)
    bar = figure.colorbar(shown, ax=figure.axes[-1], shrink=0.6, aspect=30)
    bar.set_label("share of the true class", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


def _short(name: str) -> str:
    name = class_title(name)
    return f"{name[: _LETTERS - 1]}…" if len(name) > _LETTERS else name


def _draw_cells(
    axes: Axes, matrix: np.ndarray, classes: Sequence[str], picked: Sequence[int], letters: float
) -> AxesImage:
    """Draw the numbers of some classes, and return what the bar of colours is of."""
    import numpy as np

    totals = matrix.sum(axis=1, keepdims=True).clip(1)
    counts = matrix[np.ix_(picked, picked)]
    share = counts / totals[picked]
    shown = axes.imshow(np.ma.masked_equal(share, 0), cmap="Blues", vmin=0, vmax=1)
    names = [_short(classes[label]) for label in picked]
    places = range(len(picked))
    axes.set_xticks(places, names, rotation=90, fontsize=letters)
    axes.set_yticks(places, names, fontsize=letters)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_xticks(np.arange(len(picked) - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(len(picked) - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="0.92", linewidth=0.5)
    axes.tick_params(which="both", length=0)
    for line, column in zip(*counts.nonzero(), strict=True):
        axes.text(
            column,
            line,
            str(counts[line, column]),
            ha="center",
            va="center",
            fontsize=letters - 1,
            color="white" if share[line, column] > 0.55 else "black",
        )
    return shown


def _draw_overview(axes: Axes, matrix: np.ndarray, classes: Sequence[str]) -> None:
    """Draw the mistakes of all classes, several of which share a line, as dots."""
    import numpy as np

    number = len(classes)
    step = math.ceil(number / _OVERVIEW)
    true, predicted = np.nonzero(matrix - np.diag(matrix.diagonal()))
    times = matrix[true, predicted]
    pooled = np.zeros((math.ceil(number / step),) * 2)
    np.add.at(pooled, (true // step, predicted // step), times)
    lines, columns = pooled.nonzero()
    axes.plot([0, number], [0, number], color="0.8", linewidth=1, zorder=0)
    axes.scatter(
        (columns + 0.5) * step,
        (lines + 0.5) * step,
        s=6 + 4 * np.sqrt(pooled[lines, columns]),
        color="#2457a6",
        alpha=0.55,
        linewidth=0,
    )
    marks = range(0, number, math.ceil(number / 30))
    names = [_short(classes[label]) for label in marks]
    axes.set_xticks([label + 0.5 for label in marks], names, rotation=90, fontsize=8.5)
    axes.set_yticks([label + 0.5 for label in marks], names, fontsize=8.5)
    axes.set(xlim=(0, number), ylim=(number, 0), xlabel="predicted class", ylabel="true class")
    axes.set_aspect("equal")
    every = math.ceil(number / 30)
    said = f"all {number} classes, every {every}th named; a dot is a mistake, larger for several"
    axes.set_title(said, fontsize=10)
