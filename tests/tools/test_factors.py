"""Sizes of low-rank factors: the trained ones, of one run or several, and what has none."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from statistics import fmean, pstdev

import pytest
import torch
import yaml
from PIL import Image

from support.command_line import run_command
from tests.trainers.test_contract import METHODS
from tools import factors

MODEL = Path("prompt_learner", "model.pth.tar-1")
#: trained tensors of a run like ``tiny_run`` with rank 2
RANK_2 = {"up": (9, 4, 2), "text": (9, 2, 64), "vision": (9, 2, 128)}


def run(*words: object) -> int:
    return run_command(factors.build_parser(), factors.run, [str(word) for word in words])


def table(path: Path) -> dict[tuple[str, int, int], list[str]]:
    with open(path, encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert tuple(header) == factors.COLUMNS
    found = {(name, int(layer), int(token)): rest for name, layer, token, *rest in rows}
    assert len(found) == len(rows)
    return found


@pytest.fixture()
def changed(tiny_run, tmp_path):
    """Function that gives a run like ``tiny_run`` with other settings and tensors, and those."""

    def change(name: str, settings: dict | None = None, **shapes: tuple[int, ...]):
        folder = shutil.copytree(tiny_run, tmp_path / name)
        checkpoint = torch.load(folder / MODEL, weights_only=True)
        config = yaml.safe_load(checkpoint["meta"]["config"])
        config["TRAINER"]["MMLOP"].update(settings or {})
        checkpoint["meta"]["config"] = yaml.safe_dump(config)
        tensors = {key: torch.randn(shape) for key, shape in shapes.items()}
        weights = checkpoint["state_dict"] | tensors
        if config["TRAINER"]["MMLOP"]["LOW_RANK"] is False:
            del weights["up"]
        checkpoint["state_dict"] = weights
        torch.save(checkpoint, folder / MODEL)
        return folder, tensors

    return change


@pytest.mark.parametrize("out", [None, "new/u", "new/u.png", "new/"])
def test_one_run(tiny_run, tmp_path, capsys, out):
    folder, words, name = shutil.copytree(tiny_run, tmp_path / "run"), [], "run/factors"
    if out is not None:
        words = ["--out", f"{tmp_path}/{out}"]
        name = "new/factors" if out.endswith("/") else "new/u"
    assert run(folder, *words) == 0
    up = torch.load(tiny_run / MODEL, weights_only=True)["state_dict"]["up"]
    found = table(tmp_path / f"{name}.csv")
    assert list(found) == [("U", layer, token) for layer in range(1, 10) for token in range(1, 5)]
    for (_, layer, token), (mean, deviation, runs) in found.items():
        assert float(mean) == pytest.approx(abs(up[layer - 1, token - 1, 0].item()), abs=1e-6)
        assert (deviation, runs) == ("", "1")
    with Image.open(tmp_path / f"{name}.png") as picture:
        assert picture.format == "PNG"
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 50
    assert f"{tmp_path / name}.png" in capsys.readouterr().out


def test_mean_and_deviation_of_several_runs(changed, tmp_path):
    made = [changed(f"seed{i}", {"RANK": 2}, **RANK_2) for i in range(3)]
    assert run(*(folder for folder, _ in made), "--out", tmp_path / "u") == 0
    for (_, layer, token), (mean, deviation, runs) in table(tmp_path / "u.csv").items():
        rows = [tensors["up"][layer - 1, token - 1].tolist() for _, tensors in made]
        norms = [(a * a + b * b) ** 0.5 for a, b in rows]
        assert float(mean) == pytest.approx(fmean(norms), abs=1e-5)
        assert float(deviation) == pytest.approx(pstdev(norms), abs=1e-5)
        assert runs == "3"


def test_factors_of_each_encoder_are_told_apart(changed, tmp_path):
    shape = {"up": (9, 4, 1), "up_vision": (9, 4, 1)}
    folder, tensors = changed("own", {"SHARED_U": False}, **shape)
    assert run(folder) == 0
    found = table(folder / "factors.csv")
    names = list(dict.fromkeys(name for name, *_ in found))
    assert len(names) == 2
    for name, key in zip(names, ("up", "up_vision"), strict=True):
        assert ("text" if key == "up" else "image") in name
        means = [float(found[name, layer, 3][0]) for layer in range(1, 10)]
        assert means == pytest.approx(tensors[key][:, 2, 0].abs().tolist(), abs=1e-6)


def test_brightest_cell_and_longest_bar_are_the_largest(tmp_path, monkeypatch):
    sizes = torch.full((2, 5, 3), 0.1).double()
    sizes[:, 3, 1] = 0.9
    kept = []
    monkeypatch.setattr(factors, "write_png", lambda figure, path: kept.append(figure))
    factors.draw({"A": sizes.numpy()}, "title", "size", "unused.png")
    heat, bars, colours = kept[0].axes
    (image,) = heat.images
    left, right, bottom, top = image.get_extent()
    assert (left, right, bottom, top) == (0.5, 3.5, 5.5, 0.5)  # the cell of layer 4, token 2
    assert image.get_array().argmax() == 3 * 3 + 1
    widths = {round(bar.get_y() + bar.get_height() / 2): bar.get_width() for bar in bars.patches}
    assert max(widths, key=widths.__getitem__) == 4
    assert widths[4] == pytest.approx((0.1 + 0.9 + 0.1) / 3)
    assert colours.get_ylabel() == "size"
    assert (heat.get_xlabel(), heat.get_ylabel()) == ("token", "layer")
    assert list(heat.get_yticks()) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("method", METHODS)
def test_factors_are_those_of_the_prompts(fresh, method):
    learner = fresh(method).model.learner
    found = learner.token_factors()
    assert (method == "MMLoP") == bool(found)
    for factor in found.values():
        prompts = learner.text_prompts()
        assert factor.shape[:2] == (len(prompts), prompts[0].length)


def test_runs_without_factors_are_named(changed, tmp_path, capsys):
    full = {"text": (9, 4, 64), "vision": (9, 4, 128)}
    folder, _ = changed("full", {"LOW_RANK": False}, **full)
    assert run(folder) == 2
    error = capsys.readouterr().err
    assert str(folder) in error
    assert "MMLoP" in error
    assert "no factor" in error
    assert not list(tmp_path.rglob("*.png")) + list(tmp_path.rglob("*.csv"))


def test_bad_input_writes_nothing(tiny_run, changed, tmp_path, capsys):
    other, _ = changed("rank2", {"RANK": 2}, **RANK_2)
    out = ["--out", tmp_path / "u"]
    for words, parts in (
        ([tiny_run, other, *out], [str(other), "4 tokens, rank 1", "4 tokens, rank 2"]),
        ([tiny_run, other], ["several runs", "--out"]),
        ([tiny_run, other, f"{tiny_run}/", *out], [str(tiny_run), "twice"]),
        ([tiny_run, tmp_path / "none", *out], [str(tmp_path / "none"), "does not exist"]),
        ([tiny_run, "--load-epoch", 7], ["model.pth.tar-7"]),
    ):
        assert run(*words) == 2
        *_, error = capsys.readouterr().err.splitlines()  # behind notes about the runs before
        assert error.startswith("error: ")
        assert all(part in error for part in parts), error
    assert not [
        p for p in (*tmp_path.rglob("*"), *tiny_run.iterdir()) if p.suffix in (".png", ".csv")
    ]
