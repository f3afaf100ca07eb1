"""Figures: what is drawn is what the tables say, and the files are images and PDFs."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image

import parse_test_res
from protocols import ELEVEN
from results import plots
from results.rows import Row, make_rows
from results.runs import collect

from .writing import base2new, few_shot

ROOT = Path(__file__).parents[2]
COUNTS = {"CoOp": 2048, "MMLoP": 11556, "MaPLe": 3555072, "ZeroshotCLIP": 0}


@pytest.fixture(scope="module")
def output(tmp_path_factory) -> Path:
    """Base-to-new and few-shot runs of four methods; MaPLe lacks a data set."""
    folder = tmp_path_factory.mktemp("output")
    datasets = ("imagenet", "dtd", "eurosat")
    for i, (trainer, parameters) in enumerate(COUNTS.items()):
        for j, dataset in enumerate(datasets[: 2 if trainer == "MaPLe" else 3]):
            base, new = 60.0 + 5 * i + j, 58.0 + 3 * j
            seeds = {1: (base, new), 2: (base + 2, new + 1)}
            base2new(folder, dataset, trainer, seeds, parameters=parameters)
            for shots in (1, 4, 16) if parameters else (16,):
                few_shot(folder, dataset, trainer, shots, {1: base + shots, 2: base + shots + 1})
    return folder


@pytest.fixture(scope="module")
def rows(output) -> list[Row]:
    notes: list[str] = []
    found = make_rows(collect(output, "accuracy", notes.append), False, notes.append)
    assert notes == []
    return found


def panels(figure) -> dict:
    return {axes.get_title(): axes for axes in figure.axes}


def drawn(axes) -> dict[str, list[tuple[float, float]]]:
    """Label -> points of the curves in a panel."""
    return {
        container.get_label(): list(zip(*container[0].get_data(), strict=True))
        for container in axes.containers
    }


def table(output, capsys) -> list[dict]:
    assert parse_test_res.main(["--output", str(output), "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)


def rounded(points) -> list[tuple[float, ...]]:
    return sorted(tuple(round(float(v), 4) for v in point) for point in points)


def test_few_shot_curves_are_the_table(output, rows, capsys):
    records = [r for r in table(output, capsys) if r["protocol"] == "fewshot"]
    axes = panels(plots.few_shot(rows))
    assert list(axes) == ["average over 11 data sets", "imagenet", "dtd", "eurosat"]
    for title, panel in axes.items():
        mine = [r for r in records if r["dataset"] == title]
        curves = drawn(panel)
        assert curves.keys() == {r["trainer"] for r in mine}
        for trainer, points in curves.items():
            wanted = [(r["shots"], r["accuracy"]) for r in mine if r["trainer"] == trainer]
            assert rounded(points) == rounded(wanted)
        assert [x for x, _ in curves["CoOp"]] == [1, 4, 16]
        assert [x for x, _ in curves["ZeroshotCLIP"]] == [0]


def test_all_images_are_a_place_behind_the_shots(tmp_path):
    for shots, accuracy in ((1, 60.0), (16, 70.0), ("all", 75.0)):
        few_shot(tmp_path, "dtd", "CoOp", shots, {1: accuracy})
    found = make_rows(collect(tmp_path, "accuracy", print), False, print)
    (axes,) = plots.few_shot(found).axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0", "1", "16", "all"]
    (points,) = drawn(axes).values()
    assert points[:2] == [(1, 60), (16, 70)]
    assert points[2] == (axes.get_xticks()[3], 75) and points[2][0] > 16


def test_names_with_dollars_are_no_formulas(tmp_path):
    few_shot(tmp_path / "output", "a$^b$", "CoOp", 4, {1: 60.0})
    few_shot(tmp_path / "output", "a$^b$", "CoOp", 4, {1: 61.0}, config="$\\frac{$")
    words = ["--output", str(tmp_path / "output"), "--plot", str(tmp_path / "figures")]
    assert parse_test_res.main([*words, "--traceback"]) == 0
    assert (tmp_path / "figures/few_shot.png").is_file()


def test_base_to_new_points_are_the_table(output, rows, capsys):
    records = [r for r in table(output, capsys) if r["protocol"] == "base2new"]
    axes = panels(plots.base_to_new(rows))
    assert len(axes) == 4
    for title, panel in axes.items():
        wanted = {r["trainer"]: (r["base"], r["new"]) for r in records if r["dataset"] == title}
        assert {t: rounded(p) for t, p in drawn(panel).items()} == {
            t: rounded([p]) for t, p in wanted.items()
        }


def test_deviations_are_the_table(rows):
    panel = panels(plots.base_to_new(rows))["dtd"]
    (container,) = [c for c in panel.containers if c.get_label() == "CoOp"]
    horizontal, vertical = container[2]
    # two seeds, 2 apart on base and 1 apart on new
    assert [x for x, _ in horizontal.get_segments()[0]] == pytest.approx([61, 63])
    assert [y for _, y in vertical.get_segments()[0]] == pytest.approx([61, 62])


def test_lines_of_equal_h(rows):
    for panel in panels(plots.base_to_new(rows)).values():
        (lines,) = [c for c in panel.collections if hasattr(c, "levels")]
        drawn_levels = 0
        for level, path in zip(lines.levels, lines.get_paths(), strict=True):
            for x, y in path.vertices:
                assert 2 * x * y / (x + y) == pytest.approx(level, abs=0.05)
            drawn_levels += len(path.vertices) > 0
        assert drawn_levels >= 3


def test_parameters_are_those_of_the_logs(output, rows, capsys):
    records = [r for r in table(output, capsys) if r["protocol"] == "base2new"]
    notes: list[str] = []
    axes = panels(plots.parameters(rows, notes.append))
    assert notes == []
    # The data sets are all part of the average.
    (panel,) = axes.values()
    average = {r["trainer"]: r for r in records if r["dataset"] == panel.get_title()}
    assert {t: rounded(points) for t, points in drawn(panel).items()} == {
        t: rounded([(COUNTS[t], average[t]["H"])]) for t in ("CoOp", "MMLoP", "MaPLe")
    }
    (zero,) = [line for line in panel.lines if line.get_label() == "ZeroshotCLIP"]
    assert zero.get_ydata() == pytest.approx([average["ZeroshotCLIP"]["H"]] * 2, abs=1e-4)
    assert panel.get_xscale() == "log"


def test_methods_without_a_count_are_named(tmp_path):
    base2new(tmp_path, "dtd", "CoOp", {1: (60.0, 50.0)}, parameters=None)
    notes: list[str] = []
    found = make_rows(collect(tmp_path, "accuracy", notes.append), False, notes.append)
    assert plots.parameters(found, notes.append) is None
    (note,) = notes
    assert note.startswith("not among the parameters: CoOp vit_b16 (16 shots): ")


def test_averages_of_fewer_data_sets_are_hollow(tmp_path):
    for dataset in ELEVEN:
        few_shot(tmp_path, dataset, "CoOp", 1, {1: 60.0})
        if dataset != "dtd":
            few_shot(tmp_path, dataset, "MMLoP", 1, {1: 70.0})
    found = make_rows(collect(tmp_path, "accuracy", print), False, print)
    figure = plots.few_shot(found)
    axes = panels(figure)
    hollow = [
        line for line in axes["average over 11 data sets"].lines if line.get_label() == "_hollow"
    ]
    assert [line.get_data() for line in hollow] == [((1,), (70.0,))]
    assert hollow[0].get_fillstyle() == "none"
    assert not [line for line in axes["imagenet"].lines if line.get_label() == "_hollow"]
    said = figure.legends[0].get_title().get_text()
    assert said == f"{plots.HOLLOW}: MMLoP (10/11)\nnot there: dtd: no MMLoP"


def test_a_method_has_one_look_in_all_figures(rows):
    figures = [plots.few_shot(rows), plots.base_to_new(rows), plots.parameters(rows, print)]
    seen: dict[str, set] = {}
    for figure in figures:
        for axes in figure.axes:
            for container in axes.containers:
                line = container[0]
                look = (to_hex(line.get_color()), line.get_marker())
                seen.setdefault(container.get_label(), set()).add(look)
    assert {"CoOp", "MMLoP", "MaPLe", "ZeroshotCLIP"} == seen.keys()
    assert all(len(looks) == 1 for looks in seen.values())
    assert len({look for looks in seen.values() for look in looks}) == 4


def test_looks_do_not_depend_on_which_methods_there_are():
    few, many = plots.looks(["CoOp"]), plots.looks(["CoOp", "ANew", "ZNew", "MaPLe"])
    assert few["CoOp"] == many["CoOp"]
    assert len(set(many.values())) == len(many)


def test_looks_of_25_methods_differ_without_colour():
    found = plots.looks(["ANew"])
    assert len(plots.LOOKS) >= 25 and "ANew" in found
    seen = [(str(look.marker), look.light) for look in found.values() if look.marker != "*"]
    assert len(set(seen)) == len(seen) == len(plots.LOOKS) + 1
    (mine,) = [look for look in found.values() if look.marker == "o"]
    assert mine == found[plots.EMPHASISED]
    assert [look.colour for look in found.values()].count(mine.colour) == 1
    assert {look.colour for look in found.values()} <= {*plots.PALETTE, "#000000", "#777777"}


def names_in(axes, methods) -> dict[str, Bbox]:
    """Method -> where its name stands in a panel."""
    return {
        text.get_text(): Text.get_window_extent(text)  # without the line that leads to it
        for text in axes.texts
        if text.get_text() in methods
    }


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> list[Row]:
    """Rows of all methods on one data set: the places of two are the same."""
    folder, rng = tmp_path_factory.mktemp("many"), np.random.default_rng(1)
    for number, trainer in enumerate([*plots.LOOKS, "ZeroshotCLIP"]):
        parameters = 0 if trainer == "ZeroshotCLIP" else 100 * 2**number // 2
        base, new = (70.0, 60.0) if number < 2 else rng.uniform([60, 50], [85, 80])
        seeds = {1: (base, new), 2: (base + 1, new + 1)}
        base2new(folder, "dtd", trainer, seeds, parameters=parameters)
        for shots in (1, 2, 4, 8, 16) if parameters else (16,):
            if (trainer, shots) != ("CoOp", 4):
                few_shot(folder, "dtd", trainer, shots, {1: base + shots / 4, 2: base + 2})
    return make_rows(collect(folder, "accuracy", print), False, print)


@pytest.mark.parametrize("figure", [plots.few_shot, plots.base_to_new, plots.parameters])
def test_names_cover_no_point_and_no_other_name(many, figure):
    drawn_figure = figure(many, print) if figure is plots.parameters else figure(many)
    drawn_figure.draw_without_rendering()
    (axes,) = drawn_figure.axes
    boxes = names_in(axes, {*plots.LOOKS, "ZeroshotCLIP"})
    assert boxes.keys() == {*plots.LOOKS, "ZeroshotCLIP"} and not drawn_figure.legends
    for one, other in itertools.combinations(boxes.values(), 2):
        assert not one.shrunk(0.98, 0.9).overlaps(other)
    places = [place for points in drawn(axes).values() for place in points]
    for place in axes.transData.transform(places):
        assert not any(box.shrunk(0.98, 0.9).contains(*place) for box in boxes.values())
    page = drawn_figure.bbox
    assert all(page.x0 <= box.x0 and box.x1 <= page.x1 for box in boxes.values())
    (bold,) = [text.get_text() for text in axes.texts if text.get_weight() == "bold"]
    assert bold == plots.EMPHASISED


def test_crowded_points_get_a_legend(tmp_path):
    for trainer in plots.LOOKS:
        base2new(tmp_path, "dtd", trainer, {1: (60.0, 50.0)})
    found = make_rows(collect(tmp_path, "accuracy", print), False, print)
    figure = plots.base_to_new(found)
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {*plots.LOOKS}


def test_points_that_are_not_there_are_named(many, tmp_path):
    assert "dtd: no CoOp at 4 shots" in plots.few_shot(many).get_supxlabel()
    for trainer, datasets in (("CoOp", ("dtd", "eurosat")), ("VPT", ("dtd",))):
        for dataset in datasets:
            base2new(tmp_path, dataset, trainer, {1: (60.0, 50.0)})
    base2new(tmp_path, "dtd", "IVLP", {1: (60.0, 50.0)}, parameters=None)
    base2new(tmp_path, "eurosat", "IVLP", {1: (60.0, 50.0)}, parameters=None)
    found = make_rows(collect(tmp_path, "accuracy", lambda line: None), False, lambda line: None)
    said = plots.parameters(found, lambda line: None).get_supxlabel()
    assert "VPT: dtd only" in said and "IVLP" in said
    title = plots.base_to_new(found).legends[0].get_title().get_text()
    assert "eurosat: no VPT" in title


def test_shots_are_on_a_logarithmic_axis_with_error_bars(many):
    (axes,) = plots.few_shot(many).axes
    x = axes.transData.transform([(shots, 60) for shots in (0, 1, 2, 4, 8, 16)])[:, 0]
    steps = np.diff(x)
    assert steps[1:] == pytest.approx([steps[1]] * 4, rel=0.01) and steps[0] > 0
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0", "1", "2", "4", "8", "16"]
    for container in axes.containers:
        (bars,) = container[2]
        assert len(bars.get_segments()) == len(container[0].get_xdata())


def test_configurations_of_a_trainer_have_names_and_fills_of_their_own(tmp_path):
    for config in ("vit_b16", "vit_b16-RANK=2"):
        base2new(tmp_path, "dtd", "MMLoP", {1: (60.0, 50.0)}, config=config)
    base2new(tmp_path, "dtd", "CoOp", {1: (60.0, 50.0)})
    found = make_rows(collect(tmp_path, "accuracy", print), False, print)
    (axes,) = plots.base_to_new(found).axes
    fills = {c.get_label(): c[0].get_fillstyle() for c in axes.containers}
    assert fills == {"MMLoP vit_b16": "full", "MMLoP vit_b16-RANK=2": "left", "CoOp": "full"}


def test_files(output, tmp_path, capsys):
    folder = tmp_path / "new" / "figures"
    words = ["--output", str(output), "--plot", str(folder), "--format", "csv"]
    assert parse_test_res.main(words) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("protocol,dataset,")
    names = [
        f"{name}{suffix}"
        for name in ("few_shot", "base_to_new", "parameters")
        for suffix in (".png", ".pdf")
    ]
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    assert captured.err.splitlines() == [f"wrote {folder / name}" for name in names]
    for path in folder.iterdir():
        if path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
                assert image.format == "PNG"
                assert min(image.size) > 400
                # not an empty page
                assert len(image.convert("RGB").getcolors(10**6)) > 50
        else:
            data = path.read_bytes()
            assert data.startswith(b"%PDF-") and data.rstrip().endswith(b"%%EOF")
            assert b"/Type /Page" in data


def test_figures_without_results_are_named(tmp_path, capsys):
    few_shot(tmp_path, "dtd", "CoOp", 1, {1: 60.0})
    folder = tmp_path / "figures"
    assert parse_test_res.main(["--output", str(tmp_path), "--plot", str(folder)]) == 0
    err = capsys.readouterr().err
    assert "no figure base_to_new: no results for it\n" in err
    assert "no figure parameters: no results for it\n" in err
    assert sorted(p.name for p in folder.iterdir()) == ["few_shot.pdf", "few_shot.png"]


def test_a_folder_that_cannot_be_made(output, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    words = ["--output", str(output), "--plot", str(tmp_path / "file" / "figures")]
    assert parse_test_res.main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")


@pytest.mark.parametrize(
    ("words", "absent"),
    [
        (["--output", "."], {"torch", "numpy", "matplotlib"}),
        (["--output", ".", "--compare"], {"torch", "numpy", "matplotlib"}),
        (["--published"], {"torch", "numpy", "matplotlib"}),
        (["--output", ".", "--plot", "figures"], {"torch", "matplotlib.pyplot"}),
    ],
)
def test_imports_only_what_is_needed(words, absent, tmp_path):
    few_shot(tmp_path, "dtd", "CoOp", 1, {1: 60.0})
    command = [sys.executable, "-X", "importtime", ROOT / "parse_test_res.py"]
    done = subprocess.run(
        [*command, *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
        timeout=120,
    )
    assert done.returncode == 0
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "tabulate" in modules
    assert not absent & modules
