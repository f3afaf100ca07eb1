"""The file of a test's predictions, and metrics against examples that are computed by hand."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from results import predictions
from results.predictions import BadPredictions, Predictions

ABOUT = {"schema": 1, "split": "test", "classes": ["a", "b"], "images": []}


def of(probabilities: list[list[float]], labels: list[int], **more) -> Predictions:
    """Predictions with these probabilities."""
    logits = np.log(np.array(probabilities, np.float64)).astype(np.float32)
    names = [f"class {number}" for number in range(logits.shape[1])]
    return Predictions(logits, np.array(labels, np.int32), names, **more)


# labels, predictions: 0 0, 0 1, 1 1, 2 1; class 3 has no image
FOUR = of(
    [
        [0.65, 0.1, 0.1, 0.15],
        [0.2, 0.48, 0.22, 0.1],
        [0.1, 0.85, 0.03, 0.02],
        [0.1, 0.45, 0.4, 0.05],
    ],
    [0, 0, 1, 2],
)


def test_first_choices():
    assert FOUR.accuracy == 50
    assert FOUR.confusion().tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    each = FOUR.per_class_accuracy()
    assert each[:3].tolist() == [50, 100, 0] and math.isnan(each[3])
    # precision and recall: 1 and 1/2; 1/3 and 1; none
    assert FOUR.macro_f1() == pytest.approx(100 * (2 / 3 + 1 / 2 + 0) / 3)


@pytest.mark.parametrize(("k", "percent"), [(1, 50), (2, 75), (3, 100), (4, 100), (9, 100)])
def test_top_k(k, percent):
    # ranks of the labels: 1, 3, 1, 2
    assert FOUR.top_k(k) == pytest.approx(percent)


def test_likelihood_and_calibration():
    assert FOUR.nll() == pytest.approx(-np.log([0.65, 0.2, 0.85, 0.4]).mean(), rel=1e-6)
    # bins of 0.1: 0.45 and 0.48, none of them right; 0.65; 0.85
    found = FOUR.reliability()
    np.testing.assert_allclose(found.low, [0.4, 0.6, 0.8])
    np.testing.assert_allclose(found.high, [0.5, 0.7, 0.9])
    np.testing.assert_allclose(found.confidence, [0.465, 0.65, 0.85], rtol=1e-6)
    assert found.accuracy.tolist() == [0, 1, 1] and found.count.tolist() == [2, 1, 1]
    assert FOUR.ece() == pytest.approx(100 * (2 * 0.465 + 0.35 + 0.15) / 4, rel=1e-6)
    # two bins of two images each
    assert FOUR.reliability(2, adaptive=True).count.tolist() == [2, 2]
    assert FOUR.ece(2, adaptive=True) == pytest.approx(100 * (0.465 + 0.25) / 2, rel=1e-6)
    # as in two bins of equal width
    assert FOUR.ece(2) == FOUR.ece(2, adaptive=True)


def test_base_and_new_classes():
    # base: 0 and 1. Three base images, of which 2 are right; two new ones, of which 1 is right
    found = of(
        [
            [0.6, 0.2, 0.1, 0.1],
            [0.2, 0.4, 0.3, 0.1],
            [0.2, 0.2, 0.5, 0.1],
            [0.1, 0.1, 0.2, 0.6],
            [0.1, 0.5, 0.3, 0.1],
        ],
        [0, 1, 0, 3, 2],
    ).of_halves()
    # log of best base over best new: log 6, log 4/3, log 2/5 against log 1/6, log 5/3. Of the six
    # pairs a base image is above a new one in 2 + 1 + 1
    assert found == pytest.approx(
        {"base_in_all": 200 / 3, "new_in_all": 50, "H_in_all": 400 / 7, "auroc": 400 / 6}
    )
    assert of([[0.6, 0.4]], [0]).of_halves() == {}, "no new image"
    odd = of([[0.5, 0.4, 0.1], [0.1, 0.4, 0.5]], [1, 2]).of_halves()
    assert (odd["base_in_all"], odd["new_in_all"], odd["H_in_all"]) == (0, 100, 0)


def test_many_images_are_read_in_parts(monkeypatch):
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(50, 7)).astype(np.float16)
    labels = generator.integers(0, 7, 50).astype(np.int32)
    whole = Predictions(logits, labels, list("abcdefg"))
    expected = whole.scalars()
    monkeypatch.setattr(predictions, "_CHUNK", 7 * 8)
    parts = Predictions(logits, labels, list("abcdefg"))
    assert parts.scalars() == pytest.approx(expected)
    ranks = (logits > logits[range(50), labels][:, None]).sum(axis=1)
    assert expected["top5"] == pytest.approx(100 * (ranks < 5).mean())


def test_sure_and_single_class():
    one = Predictions(np.zeros((2, 1), np.float32), np.zeros(2, np.int32), ["a"])
    assert one.scalars() == {"top5": 100, "nll": 0, "ece": 0, "adaptive_ece": 0}
    sure = Predictions(np.array([[90, -90]], np.float16), np.array([1], np.int32), ["a", "b"])
    assert sure.ece() == 100 and math.isfinite(sure.nll())


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_written_and_read(tmp_path, dtype):
    logits = (100 * np.random.default_rng(0).normal(size=(4, 3))).astype(dtype)
    images = ["a/1.jpg", "b/\udce4.jpg", "c/ü.jpg", "/else/4.jpg"]
    labels = np.array([0, 1, 2, 0], np.int32)
    kept = Predictions(logits, labels, ["a", 'b "c"', "ü"], images, "val")
    path = predictions.write(tmp_path, kept)
    assert [p.name for p in tmp_path.iterdir()] == ["predictions.safetensors"]
    found = predictions.read(tmp_path)
    assert found.logits.dtype == dtype and np.array_equal(found.logits, logits)
    assert np.array_equal(found.labels, labels)
    assert (found.classes, found.images, found.split) == (kept.classes, images, "val")
    assert path.read_bytes() == predictions.write(tmp_path / "again", kept).read_bytes()
    predictions.forget(tmp_path)
    predictions.forget(tmp_path)
    assert predictions.read(tmp_path) is None


def test_float32_is_kept_in_float16_where_nothing_is_lost(tmp_path):
    for value, dtype in ((0.5, "float16"), (0.1, "float32"), (1e5, "float32")):
        logits = np.array([[value, 0]], np.float32)
        predictions.write(tmp_path, Predictions(logits, np.zeros(1, np.int32), ["a", "b"]))
        found = predictions.read(tmp_path).logits
        assert found.dtype == dtype and np.array_equal(found, logits)


LOGITS, LABELS = np.zeros((3, 2), np.float16), np.array([0, 1, 1], np.int32)
#: what is wrong -> logits, labels, content of the entry, part of the message
BAD = {
    "a NaN": (np.full((3, 2), np.nan, np.float16), LABELS, ABOUT, "not finite"),
    "one axis": (np.zeros(3, np.float16), LABELS, ABOUT, "shape"),
    "no image": (LOGITS[:0], LABELS[:0], ABOUT, "shape"),
    "another type": (LOGITS.astype(np.float64), LABELS, ABOUT, "float64"),
    "labels of another type": (LOGITS, LABELS.astype(np.int64), ABOUT, "int64"),
    "too few labels": (LOGITS, LABELS[:2], ABOUT, "for 3 images"),
    "a label too large": (LOGITS, LABELS + 1, ABOUT, "labels from 1 to 2 for 2 classes"),
    "a label below 0": (LOGITS, LABELS - 1, ABOUT, "labels from -1"),
    "too few names": (LOGITS, LABELS, ABOUT | {"classes": ["a"]}, "1 name for 2 classes"),
    "names that are none": (LOGITS, LABELS, ABOUT | {"classes": [1, 2]}, "classes are no list"),
    "too many paths": (LOGITS, LABELS, ABOUT | {"images": ["a"] * 4}, "4 paths for 3 images"),
    "a newer version": (LOGITS, LABELS, ABOUT | {"schema": 2}, "newer version (schema 2"),
    "no version": (LOGITS, LABELS, ABOUT | {"schema": None}, "no schema"),
    "a list": (LOGITS, LABELS, [1], "no schema"),
    "no entry": (LOGITS, LABELS, None, "no entry"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_files_are_named(tmp_path, what):
    logits, labels, about, said = BAD[what]
    path = tmp_path / "predictions.safetensors"
    entry = None if about is None else {"predictions": json.dumps(about)}
    save_file({"logits": logits, "labels": labels}, path, metadata=entry)
    with pytest.raises(BadPredictions) as error:
        predictions.read(tmp_path)
    assert said in str(error.value) and str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_files_that_are_no_predictions(tmp_path):
    path = predictions.write(tmp_path, FOUR)
    content = path.read_bytes()
    about, tensors = json.dumps(ABOUT), {"logits": LOGITS, "labels": LABELS}
    save_file({"weights": LOGITS}, tmp_path / "other", metadata={"predictions": about})
    save_file(tensors, tmp_path / "text", metadata={"predictions": "[" * 9999})
    tensors = {name: torch.tensor(tensor) for name, tensor in tensors.items()}
    tensors["logits"] = tensors["logits"].bfloat16()
    save_torch(tensors, tmp_path / "bf16", metadata={"predictions": about})
    others = [(tmp_path / name).read_bytes() for name in ("other", "text", "bf16")]
    for bad in (b"", b"garbage", content[:-4], content[:40], b"\xff" * 99, *others):
        path.write_bytes(bad)
        with pytest.raises(BadPredictions) as error:
            predictions.read(tmp_path)
        assert str(error.value).startswith(f"{path}: damaged (")
        assert "\n" not in str(error.value)
    path.unlink()
    path.mkdir()
    with pytest.raises(BadPredictions, match="damaged"):
        predictions.read(tmp_path)


def test_predictions_of_another_run_are_not_taken_for_this_ones(tmp_path):
    predictions.write(tmp_path, FOUR)
    record = {
        "result": {"total": 4, "correct": 2},
        "data": {"classes": {"number": 4}},
    }
    assert predictions.read(tmp_path, record) is not None
    unknown = {"result": {"total": None, "correct": None}, "data": {"classes": None}}
    assert predictions.read(tmp_path, unknown) is not None
    for part, change in (
        ("result", None),
        ("result", {"total": 5, "correct": 2}),
        ("result", {"total": 4, "correct": 3}),
        ("data", {"classes": {"number": 5}}),
    ):
        with pytest.raises(BadPredictions, match="not of the run beside it"):
            predictions.read(tmp_path, record | {part: change})


def test_reading_needs_no_torch():
    code = "import sys; import results.predictions as p; p.read('.'); "
    code += "sys.exit(bool({'torch', 'sklearn', 'numpy'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
