"""Names in figures: what data sets and classes are called, and names beside points.

The names are placed so that none covers a point or another name.
"""

from __future__ import annotations

import math
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

#: registry name that the data sets of all users' own images share
_OWN_IMAGES = "ImageFolder"

#: distances of a name from its point and angles to try, in typographic points and degrees
_DISTANCES = (6.0, 11.0, 18.0, 27.0, 38.0)
_ANGLES = (0, 180, 90, 270, 35, 145, 325, 215, 65, 115, 245, 295)
#: from this distance on a thin line leads from the name to the point
_LED = 11.0
#: what it costs to lie on the error bar of another point, in distances of 1
_ON_A_BAR = 14.0


@dataclass(frozen=True)
class Point:
    """A point with a name: its place and the ends of its error bars in data coordinates."""

    name: str
    x: float
    y: float
    colour: str
    bold: bool = False
    x_error: float = 0.0
    y_error: float = 0.0


def dataset_title(config: Mapping[str, Any], arguments: Mapping[str, Any] | None = None) -> str:
    """Return what the reader calls the data set of a run.

    It is the registry name, but for images of the user's own, which are named after the copy of
    ``configs/datasets/imagefolder.yaml`` that describes them, else after their folder.

    Args:
        config: of the run, as a tree: ``cfg``, or ``config`` of a record.
        arguments: of its command line, as ``arguments`` of a record; None if they are not known.
    """
    data = config["DATASET"]
    if data["NAME"] != _OWN_IMAGES:
        return data["NAME"]
    file = PurePath((arguments or {}).get("dataset_config_file") or "").stem
    if file and file.lower() != _OWN_IMAGES.lower():
        return file
    node = data.get("IMAGEFOLDER")
    below = node.get("FOLDER", "") if isinstance(node, Mapping) else ""
    folder = posixpath.normpath(PurePath(data.get("ROOT") or "", below).as_posix())
    name = posixpath.basename(folder)
    return name if name not in ("", ".", "..") else data["NAME"]


def class_title(name: str) -> str:
    """Return what the reader calls a class: its name with blanks for underscores, as in prompts."""
    return name.replace("_", " ")


def _box(x: float, y: float, half_width: float, half_height: float) -> Bbox:
    return Bbox([[x - half_width, y - half_height], [x + half_width, y + half_height]])


def _size(axes: Axes, name: str, size: float, bold: bool) -> tuple[float, float]:
    """Return width and height of a name in pixels."""
    text = axes.text(0, 0, name, fontsize=size, weight="bold" if bold else "normal")
    try:
        extent = text.get_window_extent()
    finally:
        text.remove()
    return extent.width, extent.height


def _crosses(start: tuple[float, float], end: tuple[float, float], box: Bbox) -> bool:
    """Return whether a line goes through a box."""
    steps = 24
    return any(
        box.contains(
            start[0] + (end[0] - start[0]) * i / steps, start[1] + (end[1] - start[1]) * i / steps
        )
        for i in range(steps + 1)
    )


def name_points(
    axes: Axes,
    points: Sequence[Point],
    size: float = 8.0,
    radius: float = 4.0,
    lines: Iterable[float] = (),
) -> list[Point]:
    """Write names beside points, and return the points whose names do not fit.

    Names cover neither markers nor each other, nor texts that are there, nor leave the axes.

    Args:
        axes: of a figure whose layout is done.
        points: all of the axes; emphasised ones are placed first.
        size: of the letters.
        radius: of the markers, in typographic points.
        lines: heights of lines across the axes, which names keep off where they can.
    """
    pixel = axes.figure.dpi / 72
    frame = axes.get_window_extent()
    places = {id(p): axes.transData.transform((p.x, p.y)) for p in points}
    markers = {key: _box(x, y, radius * pixel, radius * pixel) for key, (x, y) in places.items()}
    bars: dict[int, list[Bbox]] = {}
    for point in points:
        ends = axes.transData.transform(
            [
                (point.x - point.x_error, point.y - point.y_error),
                (point.x + point.x_error, point.y + point.y_error),
            ]
        )
        x, y = places[id(point)]
        bars[id(point)] = [
            Bbox([[ends[0][0], y - pixel], [ends[1][0], y + pixel]]),
            Bbox([[x - pixel, ends[0][1]], [x + pixel, ends[1][1]]]),
        ]
    for y in lines:
        height = axes.transData.transform((0, y))[1]
        bars[-len(bars)] = [Bbox([[frame.x0, height - pixel], [frame.x1, height + pixel]])]
    written: list[Bbox] = [text.get_window_extent() for text in axes.texts]
    left_over = []

    def crowd(point: Point) -> float:
        here = places[id(point)]
        return sum(1 / (20 + math.dist(here, there)) for there in places.values())

    for point in sorted(points, key=lambda p: (not p.bold, -crowd(p))):
        width, height = _size(axes, point.name, size, point.bold)
        x, y = places[id(point)]
        best: tuple[float, float, float, Bbox] | None = None
        for distance in _DISTANCES:
            for turn, angle in enumerate(_ANGLES):
                across, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
                centre_x = x + across * (distance * pixel + width / 2)
                centre_y = y + up * (distance * pixel + height / 2)
                box = _box(centre_x, centre_y, width / 2 + pixel, height / 2)
                if not (
                    frame.x0 <= box.x0
                    and box.x1 <= frame.x1
                    and frame.y0 <= box.y0
                    and box.y1 <= frame.y1
                ):
                    continue
                if any(box.overlaps(other) for other in (*written, *markers.values())):
                    continue
                others = [m for key, m in markers.items() if key != id(point)]
                tip = (centre_x - across * width / 2, centre_y - up * height / 2)
                if distance >= _LED and any(
                    _crosses((x, y), tip, other) for other in (*others, *written)
                ):
                    continue
                cost = distance + turn / len(_ANGLES)
                cost += _ON_A_BAR * sum(
                    box.overlaps(bar) for of_point in bars.values() for bar in of_point
                )
                if best is None or cost < best[0]:
                    best = cost, centre_x - x, centre_y - y, box
        if best is None:
            left_over.append(point)
            continue
        cost, right, above, box = best
        written.append(box)
        led = math.dist((x, y), (min(max(x, box.x0), box.x1), min(max(y, box.y0), box.y1)))
        arrow = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
        axes.annotate(
            point.name,
            (point.x, point.y),
            (right / pixel, above / pixel),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=size,
            weight="bold" if point.bold else "normal",
            color=point.colour,
            zorder=6,
            arrowprops=arrow if led >= _LED * pixel else None,
        )
    return left_over


def name_lines(axes: Axes, heights: Mapping[str, float], points: Sequence[Point]) -> bool:
    """Write the names of lines across the axes at their ends, above or below them.

    Args:
        axes: of a figure whose layout is done.
        heights: name -> height of its line.
        points: of the axes, which no name may cover, nor their error bars.

    Returns:
        Whether all have room.
    """
    pixel, frame = axes.figure.dpi / 72, axes.get_window_extent()
    written: list[Bbox] = []
    for point in points:
        x, y = axes.transData.transform((point.x, point.y))
        ends = [
            axes.transData.transform((point.x, point.y + sign * point.y_error))[1]
            for sign in (-1, 1)
        ]
        reach = 5 * pixel
        written.append(
            Bbox([[x - reach, min(ends[0], y - reach)], [x + reach, max(ends[1], y + reach)]])
        )
    for name, value in heights.items():
        y = axes.transData.transform((1, value))[1]
        width, height = _size(axes, name, 8.0, False)
        for share, up in ((s, up) for s in (1.0, 0.0, 0.5, 0.25, 0.75) for up in (1, -1)):
            left = frame.x0 + share * (frame.width - width) + (4 - 8 * share) * pixel
            middle = y + up * (2 * pixel + height / 2)
            box = Bbox([[left, middle - height / 2], [left + width, middle + height / 2]])
            if not any(box.overlaps(other) for other in written):
                break
        else:
            return False
        written.append(box)
        place = ((left - frame.x0) / frame.width, value)
        axes.annotate(
            name,
            place,
            (0, 2 * up),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            va="bottom" if up > 0 else "top",
            fontsize=8,
            color="0.15",
        )
    return True


def name_ends(axes: Axes, points: Sequence[Point], size: float = 8.0) -> bool:
    """Write the names of curves to the right of the axes, at the heights of their ends.

    Args:
        axes: of a figure whose layout is done.
        points: the last point of each curve.
        size: of the letters.

    Returns:
        Whether there is room; without it nothing is written.
    """
    pixel = axes.figure.dpi / 72
    frame = axes.get_window_extent()
    height = 1.25 * size * pixel
    if height * len(points) > frame.height:
        return False
    ordered = sorted(points, key=lambda point: point.y)
    wanted = [float(axes.transData.transform((p.x, p.y))[1]) for p in ordered]
    heights = _spread(wanted, height, frame.y0 + height / 2, frame.y1 - height / 2)
    for point, place in zip(ordered, heights, strict=True):
        axes.annotate(
            point.name,
            (point.x, point.y),
            (1.03, (place - frame.y0) / frame.height),
            textcoords="axes fraction",
            va="center",
            fontsize=size,
            weight="bold" if point.bold else "normal",
            color=point.colour,
            annotation_clip=False,
            arrowprops={
                **{"arrowstyle": "-", "color": "0.6", "linewidth": 0.6},
                **{"shrinkA": 0, "shrinkB": 4, "relpos": (0, 0.5)},
            },
        )
    return True


def _spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move sorted numbers as little as is needed for a gap between them, within bounds."""
    groups = [[value] for value in wanted]
    merged = True

    def centre(group: list[float]) -> float:
        half = gap * (len(group) - 1) / 2
        return min(max(sum(group) / len(group), low + half), high - half)

    while merged:
        merged = False
        for i in range(len(groups) - 1):
            below, above = groups[i], groups[i + 1]
            room = gap * (len(below) + len(above)) / 2
            if centre(above) - centre(below) < room:
                groups[i : i + 2] = [below + above]
                merged = True
                break
    return [
        centre(group) + gap * (i - (len(group) - 1) / 2)
        for group in groups
        for i in range(len(group))
    ]
