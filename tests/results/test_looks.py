"""Looks of methods: any two can be told apart, with each colour blindness and in grey."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from results import plots
from results.runs import Method

#: pixels of a marker's picture; it is drawn as in the figures, five times as large
SIDE, TIMES = 48, 5
#: mean difference of two markers over the pixels that either covers, in units of CIELAB (of which
#: about 2 are just seen)
LEAST = 25.0
# Machado, Oliveira and Fernandes, "A Physiologically-based Model for Simulation of Color Vision
# Deficiency" (2009), severity 1, for linear RGB; and luminance alone.
SIGHTS = {
    "normal": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
    "grey": [[0.2126, 0.7152, 0.0722]] * 3,
}
XYZ = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
WHITE = np.array([0.9505, 1.0, 1.089])


def lab(image: np.ndarray, sight: str) -> np.ndarray:
    """sRGB from 0 to 1 as CIELAB, as someone sees it."""
    linear = np.where(image <= 0.04045, image / 12.92, ((image + 0.055) / 1.055) ** 2.4)
    seen = (linear @ np.array(SIGHTS[sight]).T).clip(0, 1) @ np.array(XYZ).T / WHITE
    x, y, z = np.moveaxis(np.where(seen > 0.008856, np.cbrt(seen), 7.787 * seen + 16 / 116), -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def picture(trainer: str) -> np.ndarray:
    """A trainer's marker on white, as the figures draw it."""
    style = next(iter(plots.styles([Method(trainer, "", 16)]).values()))
    style |= {"linestyle": "none", "markersize": 5.5 * TIMES, "markeredgewidth": 0.7 * TIMES}
    figure = Figure(figsize=(SIDE / 100, SIDE / 100), dpi=100)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.plot([0.5], [0.5], **style)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3] / 255


@pytest.fixture(scope="module")
def pictures() -> dict[str, np.ndarray]:
    return {trainer: picture(trainer) for trainer in (*plots.LOOKS, "ZeroshotCLIP")}


@pytest.mark.parametrize("sight", SIGHTS)
def test_any_two_looks_are_far_apart(pictures, sight):
    seen = {trainer: lab(image, sight) for trainer, image in pictures.items()}
    white = lab(np.ones(3), sight)
    covered = {t: np.linalg.norm(image - white, axis=-1) > 5 for t, image in seen.items()}
    distance = {
        (a, b): np.linalg.norm(seen[a] - seen[b], axis=-1)[covered[a] | covered[b]].mean()
        for a, b in itertools.combinations(seen, 2)
    }
    assert len(distance) == 26 * 25 / 2
    closest = min(distance, key=distance.__getitem__)
    assert distance[closest] >= LEAST, (closest, distance[closest])


def test_curves_over_shots_have_colours_of_their_own():
    names = ["CoOp", "PromptSRC", "MMLoP", "TipAdapter", "TipAdapterF", "CLIPAdapter"]
    names += ["TaskRes", "LPPlusPlus", "ZSLP", "CLAP", "CLIPLoRA"]
    found = plots.looks(names)
    assert len({found[name].colour for name in names}) == len(names)
    # the tone of a curve is that of its marker: light ones are broken
    drawn = plots.styles(Method(name, "", 16) for name in names)
    assert all(
        (style["linestyle"] == "-") != plots.looks([])[key.trainer].light
        for key, style in drawn.items()
    )


def test_new_methods_differ_from_all_others():
    new = [f"New{i:02}" for i in range(100)]
    found = plots.looks(new)
    assert len(set(found.values())) == len(found) == 100 + len(plots.LOOKS) + len(plots.ZERO_SHOT)
    # the first of them in grey as well
    few = [(str(look.marker), look.light) for name, look in found.items() if name not in new[9:]]
    assert len(set(few)) == len(few) - 1  # the two zero-shot models share a marker
