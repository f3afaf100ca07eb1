"""t-SNE of image features: reproducible, of the right images, before and after the prompts."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from dassl.data.datasets import Datum
from results.plots import is_light
from support.command_line import run_command
from tests.conftest import CLASSNAMES
from tools import tsne
from trainers import Predictor


def run(*words: object) -> int:
    return run_command(tsne.build_parser(), tsne.run, [str(word) for word in words])


def table(path) -> list[list[str]]:
    with open(path, encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert tuple(header) == tsne.COLUMNS
    return rows


def test_command_is_reproducible(tiny_run, data_root, tmp_path):
    assert run(tiny_run, "--root", data_root, "--seed", 3, "--out", tmp_path / "a") == 0
    rows = table(tmp_path / "a.csv")
    images = sorted(str(path) for path in (data_root / "test-images" / "test").rglob("*.png"))
    assert sorted(row[0] for row in rows) == images
    for path, label, name, *places in rows:
        assert CLASSNAMES[int(label)] == name
        assert f"/{name}/" in path
        assert np.isfinite([float(place) for place in places]).all()
    frozen, prompted = (np.array([row[i : i + 2] for row in rows], float) for i in (3, 5))
    features = tsne.features(
        Predictor.load(tiny_run), [Datum(impath=row[0]) for row in rows], batch_size=100
    )
    for points, plane in zip(features, (frozen, prompted), strict=True):
        assert np.allclose(tsne.layout(points, None, seed=3), plane, atol=1e-3)
    assert not np.allclose(frozen, prompted)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG"
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 50


def title_of(monkeypatch, *words: object) -> list[str]:
    """The titles of the picture that a command draws."""
    seen: list[str] = []

    def look(items, planes, path, warning="", heading="", texts=""):
        seen.extend([*planes, warning, heading, texts])

    monkeypatch.setattr(tsne, "draw", look)
    assert run(*words) == 0
    return seen


@pytest.mark.parametrize("half", ["all", "new"])
def test_titles_have_the_accuracy_among_the_classes_drawn(
    tiny_run, data_root, tmp_path, monkeypatch, capsys, half
):
    words = [tiny_run, "--root", data_root, "--subsample", half, "--out", tmp_path / "t"]
    frozen, own, warning, heading, texts = title_of(monkeypatch, *words)
    names = CLASSNAMES if half == "all" else CLASSNAMES[3:]
    predictor, paths, right = Predictor.load(tiny_run, names), [], 0
    for label, name in enumerate(names):
        paths = sorted((data_root / "test-images" / "test" / name).iterdir())
        batch = torch.stack([predictor.read(path) for path in paths])
        right += int((predictor.probabilities(batch).argmax(dim=1) == label).sum())
    assert own == f"MMLoP: {100 * right / (6 * len(names)):.1f} % right"
    which = f"all {len(names)}" if half == "all" else f"the {len(names)} new"
    assert heading.endswith(f": {6 * len(names)} test images of {which} classes")
    assert f"among {len(names)};" in texts
    assert f"mean of {len(predictor.model.teacher_templates)} templates" in texts
    assert frozen.startswith("frozen CLIP: ") and frozen.endswith(" % right")
    assert f"only {6 * len(names)} images of {len(names)} classes" in warning
    assert f"Note: {warning}" in capsys.readouterr().err


def test_looks_stay_apart_beyond_ten_classes():
    for number in (10, 20, 100):
        looks = tsne.looks(range(number))
        assert len(set(looks.values())) == number
    ten, twenty = (list(tsne.looks(range(number)).values()) for number in (10, 20))
    assert len({colour for colour, _ in ten}) == len({marker for _, marker in ten}) == 10
    assert len({(is_light(colour), marker) for colour, marker in twenty}) == 20


def test_no_warning_for_enough_images():
    def items(classes: int, each: int) -> list[Datum]:
        return [Datum(impath=__file__, label=i % classes) for i in range(classes * each)]

    assert tsne.few_images(items(10, 20)) == ""
    assert "40 images of 10 classes" in tsne.few_images(items(10, 4))
    assert "400 images of 200 classes" in tsne.few_images(items(200, 2))


def test_a_run_of_a_version_with_fewer_keys(tiny_run, data_root):
    args = tsne.build_parser().parse_args([str(tiny_run), "--root", str(data_root)])
    cfg = Predictor.load(tiny_run).cfg
    expected, _ = tsne.images_of_run(args, cfg)
    older = cfg.clone()
    del older.DATASET["VAL_SHOTS"]
    items, _ = tsne.images_of_run(args, older)
    assert [item.impath for item in items] == [item.impath for item in expected]
    assert "VAL_SHOTS" not in older.DATASET


def test_choice_of_images(tiny_run, data_root, tmp_path):
    words = [tiny_run, "--root", data_root, "--out", tmp_path / "t.csv"]
    assert run(*words, "--split", "train", "--subsample", "new", "--max-images", 5) == 0
    rows = table(tmp_path / "t.csv")
    assert len(rows) == 5
    assert {row[2] for row in rows} <= set(CLASSNAMES[3:])
    assert all("/train/" in row[0] for row in rows)


@torch.no_grad()
def test_features_in_any_batch_size(tiny_run, data_root):
    predictor = Predictor.load(tiny_run)
    paths = sorted((data_root / "test-images" / "test").rglob("*.png"))[:5]
    frozen, prompted = tsne.features(predictor, [Datum(impath=str(path)) for path in paths], 2)
    batch = torch.stack([predictor.read(path) for path in paths])
    plain = F.normalize(predictor.model.clip.encode_image(batch), dim=-1)
    assert np.allclose(frozen, plain.numpy(), atol=1e-5)
    assert np.allclose(prompted, predictor.model.predict(batch).image_features, atol=1e-5)


def test_neighbours_stay_neighbours():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.eye(3, 8), 20, axis=0)
    plane = tsne.layout((groups + 0.01 * rng.normal(size=groups.shape)).astype(np.float32), None, 0)
    centres = plane.reshape(3, 20, 2).mean(1)
    nearest = np.linalg.norm(plane[:, None] - centres[None], axis=-1).argmin(1)
    assert (nearest == np.repeat([0, 1, 2], 20)).all()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--root", "nowhere"], "nowhere"),
        (["--perplexity", "40"], "--perplexity is 40.0: use more than 0, less than 30"),
        (["--max-images", "2"], "at least 3 images, there are 2"),
    ],
)
def test_bad_input_writes_nothing(tiny_run, tmp_path, capsys, words, part):
    assert run(tiny_run, "--out", tmp_path / "t", *words) == 2
    assert part in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
