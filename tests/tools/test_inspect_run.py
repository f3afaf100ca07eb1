"""The page about one run: its mistakes, zero-shot on the same images, files that are missing."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import train
from results import predictions, record
from results.inspection import (
    CLASS_COLUMNS,
    MISTAKE_COLUMNS,
    Inspection,
    confusion_picture,
    most_confused,
    within_noise,
)
from results.predictions import Predictions
from results.report.one_run import bins_view, class_view, part_of
from results.report.svg import page_style
from support.command_line import ROOT, run_command
from tests.conftest import CLASSNAMES
from tools import inspect_run


def run(*words: object) -> int:
    return run_command(inspect_run.build_parser(), inspect_run.run, [str(word) for word in words])


def table(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def made(n_cls: int, n: int, seed: int = 0, images: bool = True) -> Predictions:
    """Predictions of which about three in four are right."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_cls, n).astype(np.int32)
    logits = rng.normal(size=(n, n_cls)).astype(np.float32)
    logits[np.arange(n), labels] += 3 * (rng.random(n) < 0.75)
    names = [f"class {label}" for label in range(n_cls)]
    return Predictions(logits, labels, names, [f"{i}.png" for i in range(n)] if images else [])


@pytest.fixture(scope="module")
def photos(data_root, tmp_path_factory) -> Path:
    """A folder of one's own photos, a folder per class."""
    folder = tmp_path_factory.mktemp("photos") / "mine"
    shutil.copytree(data_root / "test-images" / "train", folder)
    return folder


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory) -> Path:
    """Runs on it: all classes, the base and the new half, and zero-shot in another place."""
    output = tmp_path_factory.mktemp("output")
    words = ["--root", str(photos), "--seed", "1", "--quiet"]
    words += ["--dataset-config-file", str(ROOT / "configs/datasets/imagefolder.yaml")]
    pairs = ["DATASET.NUM_SHOTS", "2", "OPTIM.MAX_EPOCH", "1", "USE_CUDA", "False"]
    pairs += ["DATALOADER.NUM_WORKERS", "0", "TEST.KEEP_PREDICTIONS", "auto"]
    mmlop = ["--trainer", "MMLoP", "--config-file", str(ROOT / "configs/trainers/MMLoP/tiny.yaml")]
    zero = ["--trainer", "ZeroshotCLIP"]
    zero += ["--config-file", str(ROOT / "configs/trainers/ZeroshotCLIP/tiny.yaml")]
    base = [*words, *mmlop, "--output-dir", str(output / "base")]
    for started in (
        [*words, *mmlop, "--output-dir", str(output / "all"), *pairs],
        [*base, *pairs, "DATASET.SUBSAMPLE_CLASSES", "base"],
        [*words, *mmlop, "--output-dir", str(output / "new"), "--eval-only", "--model-dir"]
        + [str(output / "base"), *pairs, "DATASET.SUBSAMPLE_CLASSES", "new"],
        [*words, *zero, "--output-dir", str(output / "elsewhere" / "zero"), *pairs],
    ):
        assert train.main(started) == 0
    return output


def test_every_run_names_the_command(trained):
    for name in ("all", "base", "new", "elsewhere/zero"):
        (log,) = (trained / name).glob("log.txt*")
        (line,) = [line for line in log.read_text().splitlines() if "inspect_run" in line]
        assert line.endswith(f"python -m tools.inspect_run {trained / name}")


def test_the_folder_of_a_run_on_own_photos(trained, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(trained / "all", "--out", out) == 0
    said = capsys.readouterr()
    kept = predictions.read(trained / "all")
    zero = predictions.read(trained / "elsewhere" / "zero")
    assert f"{kept.accuracy:.2f} % of {len(kept.labels)} images" in said.out
    assert f"zero-shot CLIP: {zero.accuracy:.2f} % of the same images" in said.out
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "<title>MMLoP on mine</title>" in page and "mine, all classes" in page
    assert "ImageFolder, " not in page and " ImageFolder" not in page.partition("Settings</h2>")[0]
    rows = table(out / "classes.csv")
    assert tuple(rows[0]) == CLASS_COLUMNS and [row["class"] for row in rows] == sorted(CLASSNAMES)
    for row, own, other in zip(
        rows, kept.per_class_accuracy(), zero.per_class_accuracy(), strict=True
    ):
        assert float(row["accuracy"]) == pytest.approx(own, abs=1e-3)
        assert float(row["zero_shot_accuracy"]) == pytest.approx(other, abs=1e-3)
    wrong = table(out / "misclassified.csv")
    assert tuple(wrong[0]) == MISTAKE_COLUMNS
    assert len(wrong) == (kept.predicted != kept.labels).sum()
    for row in wrong:
        place = kept.images.index(row["image"])
        assert row["true"] == kept.classes[kept.labels[place]]
        assert row["predicted"] == kept.classes[kept.predicted[place]] != row["true"]
        assert float(row["probability"]) == pytest.approx(kept.confidence[place], abs=1e-5)
        assert row["zero_shot_predicted"] == zero.classes[zero.predicted[place]]
    shares = [float(row["probability"]) for row in wrong]
    assert shares == sorted(shares, reverse=True)
    with open(out / "confusion.csv", encoding="utf-8", newline="") as file:
        header, *lines = csv.reader(file)
    assert header[1:] == [line[0] for line in lines] == list(kept.classes)
    assert np.array_equal([[int(n) for n in line[1:]] for line in lines], kept.confusion())
    for name in ("confusion.png", "misclassified_1.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 300
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 50


def test_zero_shot_is_taken_from_a_run_or_computed_alike(trained, tmp_path, capsys):
    """Computed it is what the run of the same name predicts."""
    zero = trained / "elsewhere" / "zero"
    for words, said in ((["--zero-shot", zero], str(zero)), ([], "computed for this page")):
        assert run(trained / "all", "--out", tmp_path / "a", *words) == 0
        assert said in capsys.readouterr().err
    kept, there = predictions.read(trained / "all"), predictions.read(zero)
    args = inspect_run.build_parser().parse_args([str(trained / "all")])
    found, read = inspect_run.read_run(trained / "all")
    paths = inspect_run.image_paths(read, found, None)
    computed = inspect_run.compute_zero_shot(kept, paths, found, args)
    assert np.allclose(computed.logits, there.logits, atol=1e-3)
    # beside the run it is found, without the images
    beside = tmp_path / "output"
    for name, origin in (("all", trained / "all"), ("zero", zero)):
        shutil.copytree(origin, beside / name)
    assert run(beside / "all", "--root", tmp_path / "nowhere", "--out", tmp_path / "b") == 0
    assert f"are those of the run {beside / 'zero'}" in capsys.readouterr().err


@pytest.mark.parametrize(("half", "number"), [("base", 3), ("new", 2)])
def test_halves_of_the_classes(trained, tmp_path, half, number):
    assert run(trained / half, "--out", tmp_path) == 0
    rows = table(tmp_path / "classes.csv")
    every = sorted(CLASSNAMES)
    assert [row["class"] for row in rows] == (every[:3] if half == "base" else every[3:])
    page = (tmp_path / "index.html").read_text("utf-8")
    assert f"{half} classes of the test images" in page and len(rows) == number
    assert all(row["zero_shot_accuracy"] for row in rows)


def test_absent_images_are_named_and_nothing_else_is_lost(trained, photos, tmp_path, capsys):
    root = tmp_path / "photos"
    shutil.copytree(photos, root)
    kept = predictions.read(trained / "all")
    first = Inspection(kept).mistakes[0]
    (root / first.image).unlink()
    out = tmp_path / "out"
    assert run(trained / "all", "--root", root, "--out", out) == 0
    said = capsys.readouterr()
    assert str(root / first.image) in said.err
    assert f"zero-shot CLIP is left out: 1 of {len(kept.labels)} images are not there" in said.err
    assert "zero-shot" not in said.out
    page = (out / "index.html").read_text("utf-8")
    assert 'class="absent"' in page and page.count("data:image/jpeg") > 0
    assert table(out / "classes.csv")[0]["zero_shot_accuracy"] == ""


def test_sheets_are_bounded_and_those_of_an_earlier_call_go(tmp_path, data_root):
    images = sorted((data_root / "test-images").rglob("*.png"))
    own = made(5, 200)
    shown = Inspection(own).mistakes
    pictures = inspect_run.read_photos(shown, [str(images[i % 9]) for i in range(200)], False)
    names = list(inspect_run.write_sheets(pictures, tmp_path, len(shown), "a run"))
    assert len(names) == -(-len(shown) // inspect_run.ON_SHEET) > 1
    assert list(inspect_run.write_sheets(pictures[:3], tmp_path, len(shown), "a run")) == names[:1]
    assert [path.name for path in tmp_path.iterdir()] == names[:1]


@pytest.mark.parametrize("n_cls", [10, 100, 1000])
def test_confusion_pictures_name_classes_of_any_number(n_cls):
    own = made(n_cls, 2000)
    matrix = own.confusion()
    figure = confusion_picture(matrix, own.classes, "title")
    names = {text.get_text() for axes in figure.axes for text in axes.get_yticklabels()}
    if n_cls <= 100:
        assert names >= set(own.classes)
    else:
        wrong = matrix - np.diag(matrix.diagonal())
        true, predicted = np.unravel_index(wrong.argmax(), wrong.shape)
        assert {own.classes[true], own.classes[predicted]} <= names
        assert len(most_confused(matrix, 40)) <= 40
        picked = most_confused(matrix, 40)
        matrix = matrix[picked][:, picked]
    numbers = [int(text.get_text()) for text in figure.axes[0 if n_cls <= 100 else 1].texts]
    assert sum(numbers) == matrix.sum() > 0


def test_a_perfect_run_has_no_mistakes():
    own = made(3, 30)
    right = Predictions(10 * np.eye(3, dtype=np.float32)[own.labels], own.labels, own.classes)
    found = Inspection(right)
    assert found.mistakes == [] and all(not line.taken_for for line in found.classes)
    with page_style():
        part = part_of({"method": "MMLoP", "shots": 16}, found, "digits")
    assert not any("Most frequent confusions" in view.title for view in part.tables)
    assert any("no mistakes" in note for note in part.notes)
    captions = " ".join(drawn.caption for drawn in part.figures)
    assert "No mistakes." in captions and "highest" not in captions
    matrix = np.diag(np.full(200, 3))
    figure = confusion_picture(matrix, [str(label) for label in range(200)], "title")
    assert "no mistakes" in {text.get_text() for axes in figure.axes for text in axes.texts}


def test_ties_and_noise_of_few_images():
    labels = np.repeat(np.arange(4), 6).astype(np.int32)
    shown = np.array([0, 0, 0, 0, 1, 2] + [1] * 6 + [2, 2, 2, 2, 0, 0] + [0, 0, 1, 1, 2, 2])
    names = ["a_b", "c", "d", "e_f"]
    images = [f"{i}.png" for i in range(24)]
    own = Predictions(np.eye(4, dtype=np.float32)[shown] * 4, labels, names, images)
    zero = Predictions(np.eye(4, dtype=np.float32)[np.zeros(24, int)] * 4, labels, names, images)
    lines = Inspection(own, zero).classes
    assert [line.taken_for for line in lines] == [("c", "d"), (), ("a_b",), ("a_b", "c", "d")]
    assert [line.times for line in lines] == [1, 0, 2, 2]
    assert [(line.gained, line.lost) for line in lines] == [(0, 2), (6, 0), (4, 0), (0, 0)]
    # Wilson's interval by hand: centre (k + z²/2) / (n + z²), of 4 of 6
    z2, k, n = 1.959964**2, 4, 6
    half = np.sqrt(z2 * (k * (n - k) / n + z2 / 4)) / (n + z2)
    low, high = ((k + z2 / 2) / (n + z2) + sign * half for sign in (-1, 1))
    assert lines[0].interval == pytest.approx((100 * low, 100 * high), abs=1e-3)
    # two-sided, exact: 2 / 2^6 and 2 / 2^4
    assert [within_noise(line.gained, line.lost) for line in lines] == [True, False, True, True]
    rows = {row[0]: row for row in Inspection(own, zero).class_rows()}
    assert rows["e_f"][6] == "a_b; c; d"  # tables keep the names as they are
    view = class_view(Inspection(own, zero))
    cells = {line[0].text: line for line in view.lines}
    assert cells["e f"][-1].text == "2 each: a b, c, d" and cells["c"][-1].text == "-"
    assert cells["a b"][-1].text == "1 each: c, d" and cells["c"][5].below == "beyond noise"
    assert any("4 of 4 classes have fewer than 30 images" in note for note in view.notes)
    bins = bins_view(own.reliability(), "MMLoP")
    assert sum(int(line[1].text) for line in bins.lines) == 24 and "1 of 1 bins" in bins.notes[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("no folder", "does not exist"),
        ("no record", "is no folder of a finished run"),
        ("no predictions", "TEST.KEEP_PREDICTIONS always"),
        ("damaged", "damaged"),
        ("untested", "was not tested"),
        ("other images", "different images or classes"),
    ],
)
def test_bad_input_gets_one_line_and_writes_nothing(trained, tmp_path, capsys, change, said):
    folder, words = tmp_path / "run", []
    if change != "no folder":
        shutil.copytree(trained / "all", folder)
    if change == "no record":
        (folder / record.FILE).unlink()
    elif change == "no predictions":
        (folder / predictions.FILE).unlink()
    elif change == "damaged":
        (folder / predictions.FILE).write_bytes(b"damaged")
    elif change == "untested":
        content = record.read(folder) | {"result": None, "not_tested": "no test images"}
        record.write(folder, {k: v for k, v in content.items() if k != "schema"})
    elif change == "other images":
        words = ["--zero-shot", trained / "base"]
    assert run(folder, "--out", tmp_path / "out", *words) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and said in err
    assert not (tmp_path / "out").exists()


# --- in a browser ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page_file(trained, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("page")
    assert run(trained / "all", "--out", out) == 0
    return out / "index.html"


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 390)])
def test_the_page_opens_alone_in_light_dark_and_on_a_phone(browser, page_file, scheme, width):
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page, said = context.new_page(), []
    context.on("request", lambda request: said.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(page_file.as_uri())
    page.wait_for_load_state("networkidle")
    outside = [line for line in said if not line.startswith(("data:", page_file.as_uri()))]
    assert outside == []
    assert page.evaluate("document.documentElement.scrollWidth") == width
    loaded = page.evaluate("[...document.images].map(i => [i.complete, i.naturalWidth])")
    assert loaded and all(complete and size > 0 for complete, size in loaded)
    assert page.locator("figure svg[role=img]").count() >= 3
    assert page.locator(".card", has_text="Zero-shot CLIP").count() == 1
    links = page.locator("#files a")
    assert links.count() >= 5
    for link in links.all():
        assert (page_file.parent / link.get_attribute("href")).is_file()
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (back == "rgb(255, 255, 255)") == (scheme == "light")
    context.close()
