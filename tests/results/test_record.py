"""The record that every run of train.py leaves, and files that cannot be read as one."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
import torch

import train
from adaptation.version import __version__
from dassl.engine import TRAINER_REGISTRY
from dassl.evaluation import EVALUATOR_REGISTRY, EvaluatorBase
from results import predictions, record
from results.finished import Settings, read_last_start
from results.logs import WRITES_RECORD, BadLog, read_facts, read_log
from support.code_state import git_state
from support.command_line import UNFINISHED
from trainers.coop import CoOp

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(data_root, clip_cache):
    """Function that has train.py do a short run on ``TestImages``; returns the exit status."""

    def go(folder: Path, *pairs: str, options: tuple = ("--seed", "1"), trainer: str = "CoOp"):
        words = ["--trainer", trainer, "--root", data_root, "--output-dir", folder, *options]
        words += ["--config-file", ROOT / f"configs/trainers/{trainer}/tiny.yaml"]
        words += ["DATASET.NAME", "TestImages", "DATASET.NUM_SHOTS", "2", "OPTIM.MAX_EPOCH", "2"]
        with contextlib.redirect_stdout(sys.stdout):  # a logger takes its place
            return train.main([*map(str, words), "USE_CUDA", "False", *pairs])

    return go


@pytest.fixture(scope="module")
def trained(run, tmp_path_factory) -> Path:
    """Folder of a finished training."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    assert run(folder) == 0
    return folder


def leave_the_log(folder: Path) -> None:
    """Leave what versions that wrote no record have left."""
    record.forget(folder)
    log = (folder / "log.txt").read_text()
    assert WRITES_RECORD in log
    (folder / "log.txt").write_text(log.replace(f"{WRITES_RECORD}\n", ""))


def fields(value: dict, kinds: dict, prefix: str = ""):
    """Dotted names of the fields of a record, as far as their names are fixed."""
    for name, item in value.items():
        yield f"{prefix}{name}"
        kind = kinds.get(name)
        below = next((k for k in kind if k), None) if isinstance(kind, tuple) else kind
        if isinstance(below, dict) and isinstance(item, dict):
            yield from fields(item, below, f"{prefix}{name}.")
        if isinstance(below, list):
            yield from fields(item[0], below[0], f"{prefix}{name}[].")


def test_what_a_training_records(trained, data_root):
    found = record.read(trained)
    log = (trained / "log.txt").read_text()
    assert (found["method"], found["eval_only"], found["seed"]) == ("CoOp", False, 1)
    assert (found["shots"], found["images_per_class"]) == (2, {"least": 2, "most": 2})
    assert found["seeds_together"] is None and found["not_tested"] is None

    data = found["data"]
    assert (data["name"], data["classes"]["number"]) == ("TestImages", 5)
    assert data["classes"]["names"][1] == "golden_retriever"
    assert {part: data[part]["images"] for part in ("train", "val", "test")} == {
        "train": 10,
        "val": 10,
        "test": 30,
    }
    assert data["train_u"] is None

    result = found["result"]
    assert result["split"] == "test" and result["total"] == 30
    assert f"* correct: {result['correct']}\n" in log
    metrics = result["metrics"]
    assert metrics["accuracy"] == 100 * result["correct"] / 30
    assert metrics["error"] == 100 - metrics["accuracy"]
    for name in ("accuracy", "error", "macro_f1"):
        assert f"* {name}: {metrics[name]:.2f}%" in log
    assert [entry["total"] for entry in result["per_class"]] == [6] * 5
    assert [entry["name"] for entry in result["per_class"]] == data["classes"]["names"]
    assert sum(entry["correct"] for entry in result["per_class"]) == result["correct"]
    # all classes have as many images
    assert metrics["average"] == pytest.approx(metrics["accuracy"])

    kept = predictions.read(trained, found)
    assert kept.accuracy == pytest.approx(metrics["accuracy"])
    assert kept.macro_f1() == metrics["macro_f1"]
    scalars = kept.scalars()
    assert {name: metrics[name] for name in scalars} == pytest.approx(scalars)
    assert metrics.keys().isdisjoint({"auroc", "base_in_all"}), "not asked for"
    assert kept.classes == data["classes"]["names"] and kept.split == "test"
    assert all((Path(data_root) / image).is_file() for image in kept.images)
    assert len({*kept.images}) == 30
    right = [entry["accuracy"] for entry in result["per_class"]]
    assert kept.per_class_accuracy().tolist() == pytest.approx(right)

    model = found["model"]
    assert (model["epoch"], model["chosen_on"], model["model_dir"]) == (2, None, None)
    assert f"Trainable parameters: {found['parameters']:,}\n" in log
    assert found["device"] == {"type": "cpu", "name": "CPU", "processes": 1}
    seconds = found["seconds"]
    assert len(seconds["epochs"]) == 2
    assert seconds["training"] >= sum(seconds["epochs"]) > 0 < seconds["testing"]
    assert datetime.fromisoformat(found["started"]) <= datetime.fromisoformat(found["ended"])
    assert datetime.fromisoformat(found["ended"]).tzinfo is not None
    assert 10**8 < found["memory"]["host_bytes"] < 10**11
    assert found["versions"]["library"] == __version__
    assert found["versions"].keys() == {"library", "python", "torch", "torchvision", "numpy"}
    assert found["git"] == git_state(ROOT)
    assert found["environment"].splitlines()[0] in log
    assert "Pillow" in found["environment"] and "Pillow" in log

    assert found["config"]["DATASET"]["ROOT"] == str(data_root)
    assert found["config"]["TRAINER"].keys() == {"NAME", "COOP"}, "what the method reads"
    assert found["given"]["SEED"] == "--seed"
    assert found["given"]["OPTIM.MAX_EPOCH"] == "KEY VALUE"
    assert found["given"]["MODEL.BACKBONE.NAME"] == found["arguments"]["config_file"]
    assert "OPTIM.MOMENTUM" not in found["given"]


def test_it_says_what_the_log_says(trained):
    logged, told = read_facts(trained / "log.txt"), record.facts_of(record.read(trained))
    groups = logged.keys() - told.keys()
    assert not any(logged[key] for key in groups)
    # logs show some lists as tuples
    assert {logged[key][:1] for key in logged.keys() & told if logged[key] != told[key]} == {"("}
    assert told.keys() <= logged.keys()


def test_the_docs_list_the_fields(trained):
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    section = page.split("## The record of a run")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    listed = [name for row in rows for name in row.replace("`", "").replace(",", " ").split()]
    assert sorted(listed) == sorted(fields(record.read(trained), record.FIELDS))


def test_a_test_says_what_it_tested(run, trained, tmp_path):
    options = ("--eval-only", "--model-dir", str(trained))
    assert run(tmp_path / "last", options=options) == 0
    assert run(tmp_path / "first", options=(*options, "--load-epoch", "2")) == 0
    training = record.read(trained)
    for name, load_epoch in (("last", None), ("first", 2)):
        found = record.read(tmp_path / name)
        assert found["eval_only"] and found["seed"] is None
        model = found["model"]
        assert (model["model_dir"], model["load_epoch"]) == (str(trained), load_epoch)
        assert model["epoch"] == 2
        assert model["trained"] == record.identity(training)
        assert model["trained"]["train_sha256"] == training["data"]["train"]["sha256"]
        assert found["result"]["metrics"] == training["result"]["metrics"]
        assert found["data"]["test"] == training["data"]["test"]
        assert found["seconds"]["training"] is None and found["seconds"]["epochs"] == []
    # a run without a record, of an older version
    shutil.copytree(trained, tmp_path / "older")
    record.forget(tmp_path / "older")
    options = ("--eval-only", "--model-dir", str(tmp_path / "older"))
    assert run(tmp_path / "again", options=options) == 0
    assert record.read(tmp_path / "again")["model"]["trained"] is None


def test_zero_shot_and_trainings_without_a_test(run, tmp_path, capsys):
    assert run(tmp_path / "zero", trainer="ZeroshotCLIP") == 0
    found = record.read(tmp_path / "zero")
    assert (found["parameters"], found["shots"], found["model"]["epoch"]) == (0, None, None)
    assert found["config"]["DATASET"]["NUM_SHOTS"] == 2, "as in the log"
    assert found["result"]["total"] == 30
    assert run(tmp_path / "untested", "TEST.NO_TEST", "True") == 0
    found = record.read(tmp_path / "untested")
    assert (found["result"], found["not_tested"]) == (None, "TEST.NO_TEST")
    assert predictions.read(tmp_path / "untested") is None
    assert found["seconds"]["testing"] is None and len(found["seconds"]["epochs"]) == 2
    with pytest.raises(BadLog, match=r"untested/result.json: Not tested: TEST.NO_TEST"):
        record.read_result(tmp_path / "untested", "accuracy", None)
    assert read_last_start(tmp_path / "untested", trains=True).finished
    assert read_last_start(tmp_path / "zero", trains=False).finished
    assert run(tmp_path / "none", options=("--no-train",)) == 0
    assert record.read(tmp_path / "none") is None


def test_whether_a_run_finished_and_what_it_is_to_another(run, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    by_record = read_last_start(tmp_path / "run", trains=True)
    assert not read_last_start(tmp_path, trains=True)
    leave_the_log(tmp_path / "run")
    by_log = read_last_start(tmp_path / "run", trains=True)
    assert by_log.finished and by_record.finished
    for pairs, kind in (
        (["OPTIM.MAX_EPOCH", "2"], "same"),
        (["OPTIM.MAX_EPOCH", "2", "OPTIM.LR", "0.5"], "other"),
        (["OPTIM.MAX_EPOCH", "2", "TEST.PER_CLASS_RESULT", "True"], "more"),
        (["OPTIM.MAX_EPOCH", "2", "TEST.BASE_AND_NEW", "True"], "more"),
        (["OPTIM.MAX_EPOCH", "2", "TEST.KEEP_PREDICTIONS", "always"], "same"),
    ):
        pairs += ["DATASET.NAME", "TestImages", "DATASET.NUM_SHOTS", "2", "USE_CUDA", "False"]
        asked = Settings([str(ROOT / "configs/trainers/CoOp/tiny.yaml")], pairs)
        assert by_record.compared_to(asked) == by_log.compared_to(asked)
        assert by_record.compared_to(asked).kind == kind
    predictions.forget(tmp_path / "run")
    assert by_record.compared_to(asked).kind == "more", "it keeps none, and is asked for them"
    (tmp_path / "run" / record.FILE).write_text("{")
    assert not read_last_start(tmp_path / "run", trains=True).finished


def test_the_best_epoch_and_what_chose_it(run, tmp_path):
    pairs = ("TEST.FINAL_MODEL", "best_test")
    assert run(tmp_path / "run", *pairs) == 0
    model = record.read(tmp_path / "run")["model"]
    assert model["chosen_on"] == "test" and model["epoch"] in (1, 2)
    assert model["val_result"] == record.read(tmp_path / "run")["result"]["metrics"]["accuracy"]
    for epoch, chosen_on in (((), "test"), (("--load-epoch", "2"), None)):
        options = ("--eval-only", "--model-dir", str(tmp_path / "run"), *epoch)
        assert run(tmp_path / "test", *pairs, options=options) == 0
        assert record.read(tmp_path / "test")["model"]["chosen_on"] == chosen_on


class Stopped(CoOp):
    """Breaks off in the second epoch when it is told to."""

    stops = True

    def forward_backward(self, batch):
        if self.stops and self.epoch == 1:
            raise KeyboardInterrupt
        return super().forward_backward(batch)


def test_a_record_counts_until_another_run_begins(run, trained, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    before = (folder / record.FILE).read_bytes()
    # a start that is refused changes nothing in the folder
    assert run(folder, "OPTIM.LR", "0.5") == 2
    assert run(folder, "TRAINER.COOP.N_CTX", "0") == 2
    assert (folder / record.FILE).read_bytes() == before
    assert predictions.read(folder, json.loads(before)) is not None
    last = read_last_start(folder, trains=True)
    assert last.finished and last.record == folder / record.FILE
    # one that only tests again writes it anew
    assert run(folder) == 0
    again = record.read(folder)
    assert again["result"] == json.loads(before)["result"]
    assert again["seconds"]["epochs"] == json.loads(before)["seconds"]["epochs"]
    assert [(start["epoch"], start["step"]) for start in again["starts"]] == [(0, 0), (2, 0)]
    # one that breaks off leaves none, and the next goes on
    monkeypatch.setitem(TRAINER_REGISTRY._obj_map, "CoOp", Stopped)
    checkpoints = folder / "prompt_learner"
    shutil.rmtree(checkpoints)
    assert run(folder, "TRAIN.CHECKPOINT_FREQ", "1") == 130
    assert record.read(folder) is predictions.read(folder) is None
    assert not read_last_start(folder, trains=True).finished
    monkeypatch.setattr(Stopped, "stops", False)
    assert run(folder, "TRAIN.CHECKPOINT_FREQ", "1") == 0
    found = record.read(folder)
    assert len(found["seconds"]["epochs"]) == 2 and found["result"]["total"] == 30
    first, second = found["starts"]
    assert first["from"] is None
    assert second["from"] == str(folder / "prompt_learner" / "model.pth.tar-1")
    assert {start["host"] for start in found["starts"]} == {found["host"]} != {""}
    assert second["commit"] == found["git"]["commit"] and second["device"] == "CPU"
    assert found["seconds"]["training"] == pytest.approx(first["seconds"] + second["seconds"])
    assert [p.name for p in folder.glob("result*")] == [record.FILE]


class OwnTest(CoOp):
    """Tests in a loop of its own, as published trainers do."""

    @torch.no_grad()
    def test(self, split=None):
        self.set_model_mode("eval")
        self.evaluator.reset()
        for batch in self.test_loader:
            image, label = self.parse_batch_test(batch)
            self.evaluator.process(self.model(image), label)
        return next(iter(self.evaluator.evaluate().values()))


class OwnEvaluator(EvaluatorBase):
    """Returns a mapping, and keeps nothing."""

    def __init__(self, cfg, lab2cname=None):
        super().__init__(cfg)

    def reset(self):
        self.top2 = []

    def process(self, mo, gt):
        self.top2 += (mo.topk(2).indices == gt[:, None]).any(1)

    def evaluate(self):
        return {"top2": 100 * torch.stack(self.top2).float().mean()}


def test_tests_and_evaluators_of_ones_own(run, tmp_path, monkeypatch):
    monkeypatch.setitem(TRAINER_REGISTRY._obj_map, "CoOp", OwnTest)
    assert run(tmp_path / "test") == 0
    result = record.read(tmp_path / "test")["result"]
    assert (result["total"], len(result["per_class"])) == (30, 5)
    monkeypatch.setitem(EVALUATOR_REGISTRY._obj_map, "Classification", OwnEvaluator)
    assert run(tmp_path / "evaluator") == 0
    result = record.read(tmp_path / "evaluator")["result"]
    assert (result["total"], result["per_class"]) == (None, [])
    assert predictions.read(tmp_path / "evaluator") is None, "it holds no logits"
    assert 0 < record.read_result(tmp_path / "evaluator", "top2", None).value <= 100
    with pytest.raises(BadLog, match="no accuracy"):
        record.read_result(tmp_path / "evaluator", "accuracy", None)


def test_predictions_are_kept_as_asked_for(run, tmp_path, monkeypatch, capsys):
    folder, zero = tmp_path / "run", {"trainer": "ZeroshotCLIP"}
    asked = ("DATASET.SUBSAMPLE_CLASSES", "base", "TEST.BASE_AND_NEW", "True")
    assert run(folder, *asked, **zero) == 2
    assert "DATASET.SUBSAMPLE_CLASSES is base" in capsys.readouterr().err
    asked = ("TEST.KEEP_PREDICTIONS", "never", "TEST.BASE_AND_NEW", "True")
    assert run(folder, *asked, **zero) == 2
    assert "TEST.BASE_AND_NEW needs the logits" in capsys.readouterr().err
    assert record.read(folder) is None

    assert run(folder, *asked[:2], **zero) == 0
    metrics = record.read(folder)["result"]["metrics"]
    assert predictions.read(folder) is None and metrics.keys().isdisjoint({"nll", "ece"})

    monkeypatch.setattr("adaptation.predictions.MOST_STORED", 149)  # 30 images of 5 classes
    assert run(folder, "TEST.BASE_AND_NEW", "True", **zero) == 0
    metrics = record.read(folder)["result"]["metrics"]
    assert predictions.read(folder) is None, "too many, but the record says what they show"
    assert run(folder, "TEST.KEEP_PREDICTIONS", "always", **zero) == 0
    kept = predictions.read(folder, record.read(folder))
    found = kept.scalars() | kept.of_halves()
    assert len(found) == 8 and {name: metrics[name] for name in found} == found
    # three base classes, two new ones
    together = (18 * metrics["base_in_all"] + 12 * metrics["new_in_all"]) / 30
    assert together == pytest.approx(metrics["accuracy"])

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(predictions, "replacing", full)
    assert run(folder, "TEST.KEEP_PREDICTIONS", "always", **zero) == 0
    assert f"Note: no {predictions.FILE}: [Errno 28] No space" in capsys.readouterr().err
    assert record.read(folder)["result"]["metrics"]["nll"] == metrics["nll"]
    assert predictions.read(folder) is None


def test_a_run_whose_record_cannot_be_written_is_unfinished(run, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"

    def full(text: str, path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(record, "write_text", full)
        assert run(folder) == UNFINISHED
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: cannot write {folder / record.FILE} (No space left on device)")
    assert 0 < read_log(folder / "log.txt", "accuracy", False) < 100
    assert not read_last_start(folder, trains=True).finished
    assert run(folder) == 0, "tests again"
    assert "epoch [" not in capsys.readouterr().out, "trains again"
    assert read_last_start(folder, trains=True).finished
    assert record.read(folder)["result"]["metrics"]["accuracy"] > 0
    # a log of a version that wrote no record, or of upstream
    leave_the_log(folder)
    assert read_last_start(folder, trains=True).finished


def test_seeds_that_are_trained_together(run, tmp_path):
    assert run(tmp_path / "seed{seed}", options=("--seeds", "1,2")) == 0
    one, two = (record.read(tmp_path / f"seed{seed}") for seed in (1, 2))
    assert (one["seed"], two["seed"]) == (1, 2)
    assert one["seeds_together"] == two["seeds_together"] == [1, 2]
    assert one["data"]["test"] == two["data"]["test"]
    assert one["data"]["train"] != two["data"]["train"], "each seed draws its own shots"
    assert len(one["seconds"]["epochs"]) == 2


BAD = {
    "truncated": (lambda text: text[: len(text) // 2], "damaged (not JSON"),
    "empty": (lambda text: "", "damaged (not JSON"),
    "bytes": (lambda text: "\udcff", "damaged (not JSON"),
    "a list": (lambda text: "[]", "damaged (all of it is '[]')"),
    "without its result": (lambda text: text.replace('"result"', '"x"'), "damaged (no result)"),
    "another type": (lambda text: text.replace('"total": 30', '"total": "30"'), "result.total is"),
    "a class": (lambda text: text.replace('"total": 6', '"total": 6.5'), "per_class[0].total"),
    "newer": (lambda text: text.replace('"schema": 1', '"schema": 2'), "newer version (schema 2"),
    "no number": (lambda text: text.replace('"accuracy": ', '"accuracy": "nan", "x": ', 1), "nan"),
}


@pytest.mark.parametrize("name", BAD)
def test_records_that_do_not_count(name, trained, tmp_path):
    change, reason = BAD[name]
    shutil.copytree(trained, tmp_path / "run")
    path = tmp_path / "run" / record.FILE
    path.write_bytes(change(path.read_text("utf-8")).encode("utf-8", "surrogateescape"))
    with pytest.raises(BadLog) as error:
        record.read_result(tmp_path / "run", "accuracy", None)
    assert str(error.value).startswith(f"{path}: ") and reason in str(error.value)
    assert "\n" not in str(error.value)


def test_nothing_is_written_that_could_not_be_read(trained, tmp_path):
    content = record.read(trained)
    del content["seed"]
    with pytest.raises(record.BadRecord, match="no seed"):
        record.write(tmp_path, content)
    assert list(tmp_path.iterdir()) == []


def test_state_of_the_code(tmp_path):
    assert git_state(tmp_path) is None

    def git(*words: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "a.py").write_text("1")
    git("add", ".")
    git("commit", "-q", "-m", "x")
    git_state.cache_clear()
    assert git_state(tmp_path) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "inside" / "a.py").write_text("2")
    git_state.cache_clear()
    assert git_state(tmp_path)["dirty"] is True
    assert git_state(tmp_path / "inside") is None, "the repository is of something else"
