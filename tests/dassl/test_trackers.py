"""TRAIN.TRACKERS: where scalars, settings and results go, and what happens where they cannot."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from adaptation.seeds import SeveralSeeds
from dassl.engine import build_trainer
from dassl.engine.trackers import TRACKERS, run_name
from dassl.utils import SettingError, set_random_seed

PLACE = "base2new/train_base/digits/shots_1/CoOp/tiny"


@pytest.fixture()
def build(make_cfg, tmp_path):
    """Function that builds a trainer with trackers."""

    def build(trackers: str, epochs: int = 1, seed: int = 1, place: str = PLACE):
        cfg = make_cfg(
            "CoOp",
            *("TRAIN.TRACKERS", trackers, "OPTIM.MAX_EPOCH", epochs, "TRAIN.EXTEND", True),
            *("OUTPUT_DIR", str(tmp_path / "output" / place / f"seed{seed}"), "SEED", seed),
        )
        set_random_seed(seed)
        return build_trainer(cfg)

    return build


def folder(trainer) -> Path:
    return Path(trainer.output_dir)


@pytest.fixture(autouse=True)
def own_environment():
    """Have Weights & Biases read its environment anew; it does so once in a process."""
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()


@pytest.fixture()
def offline(monkeypatch, tmp_path):
    """Have the services write files."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")


def wandb_records(run_folder: Path) -> Iterator[object]:
    """Read the files of offline runs, oldest first: blocks of 32 kB of pieces of records."""
    from wandb.proto import wandb_internal_pb2

    for file in sorted(run_folder.glob("wandb/offline-run-*/run-*.wandb")):
        raw, place, record = file.read_bytes(), 7, b""
        while place + 7 <= len(raw):
            left = 32768 - place % 32768
            if left < 7:
                place += left
                continue
            _, length, kind = struct.unpack("<IHB", raw[place : place + 7])
            place += 7 + length
            record += raw[place - length : place]
            if kind in (1, 4):  # whole, or the last piece
                yield wandb_internal_pb2.Record.FromString(record)
                record = b""


def wandb_runs(run_folder: Path) -> tuple[list, dict[str, list[str]], dict[str, str]]:
    """Return the runs, and the values of their scalars and of the summary, by name."""
    sys.modules["wandb"].teardown()  # as at the end of a process: its writer ends
    runs, scalars, summary = [], {}, {}
    for record in wandb_records(run_folder):
        if record.HasField("run"):
            runs.append(record.run)
        for item in record.history.item:
            scalars.setdefault("".join(item.nested_key), []).append(item.value_json)
        for item in record.summary.update:
            summary["".join(item.nested_key) or item.key] = item.value_json
    return runs, scalars, summary


def test_weights_and_biases(build, offline, capsys):
    pytest.importorskip("wandb")
    plain = build("tensorboard", place="plain/CoOp")
    plain.train()
    build("tensorboard,wandb").train()
    trainer = build("wandb", epochs=2)
    trainer.train()

    runs, scalars, summary = wandb_runs(folder(trainer))
    assert {run.run_id for run in runs} == {folder(trainer).joinpath(".wandb-run").read_text()[:-1]}
    assert {run.display_name for run in runs} == {f"{PLACE}/seed1"}
    config = {item.key: item.value_json for item in runs[0].config.update}
    assert config["DATASET.NAME"] == '"TestImages"'
    assert "TRAINER.COOP.N_CTX" in config and "TRAINER.MMLOP.PREC" not in config
    steps = 2 * trainer.num_batches
    assert len(scalars["train/loss"]) == steps
    assert len(scalars["test/accuracy"]) == 2
    assert sorted(set(map(int, scalars["step"]))) == list(range(steps + 1))
    assert float(summary["accuracy"]) == trainer.run_notes.results["accuracy"]
    assert "offline: wandb sync uploads it" in capsys.readouterr().out

    # nothing of the training depends on where its scalars go
    name = "prompt_learner/model.pth.tar-1"
    first, second = (
        torch.load(folder(t) / name, weights_only=True)["state_dict"] for t in (plain, trainer)
    )
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_seeds_together_have_a_run_each(build, offline):
    pytest.importorskip("wandb")
    runs = SeveralSeeds({seed: partial(build, "wandb", seed=seed) for seed in (1, 2)})
    runs.train()
    found = [wandb_runs(folder(run.trainer)) for run in runs.runs]
    assert [one[0][0].display_name for one in found] == [f"{PLACE}/seed{n}" for n in (1, 2)]
    assert found[0][0][0].run_id != found[1][0][0].run_id
    for run, (_, scalars, summary) in zip(runs.runs, found, strict=True):
        assert len(scalars["train/loss"]) == run.trainer.num_batches
        assert float(summary["accuracy"]) == run.trainer.run_notes.results["accuracy"]


def test_mlflow(build, offline):
    mlflow = pytest.importorskip("mlflow")
    build("mlflow").train()
    trainer = build("mlflow", epochs=2)
    trainer.train()
    client = mlflow.MlflowClient()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = client.search_runs(experiments)
    assert (run.info.run_name, run.info.status) == (f"{PLACE}/seed1", "FINISHED")
    assert run.data.params["DATASET.NAME"] == "TestImages"
    assert run.data.metrics["result/accuracy"] == trainer.run_notes.results["accuracy"]
    losses = client.get_metric_history(run.info.run_id, "train/loss")
    assert sorted(loss.step for loss in losses) == list(range(2 * trainer.num_batches))


NOBODY = "http://127.0.0.1:9"


@pytest.mark.parametrize(
    ("name", "environment"),
    [
        ("mlflow", {"MLFLOW_TRACKING_URI": NOBODY, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}),
        (
            "wandb",
            {
                "WANDB_MODE": "online",
                "WANDB_BASE_URL": NOBODY,
                "WANDB_API_KEY": "0" * 40,
                "WANDB_INIT_TIMEOUT": "2",
            },
        ),
    ],
)
def test_no_service(build, monkeypatch, capsys, name, environment):
    pytest.importorskip(name)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    trainer = build(f"tensorboard,{name}")
    trainer.train()
    assert f"Note: {name} takes no more of this run, which continues" in capsys.readouterr().out
    assert list(folder(trainer).glob("tensorboard/events*"))
    assert list(folder(trainer).glob("prompt_learner/model.pth.tar-1"))


def test_service_that_goes_away(build, monkeypatch, capsys):
    class Gone:
        package = "json"

        def __init__(self, **arguments):
            self.left = 3

        def add_scalar(self, *scalar):
            self.left -= 1
            if not self.left:
                raise ConnectionError("gone")

        def flush(self):
            raise ConnectionError("gone")

    monkeypatch.setitem(TRACKERS, "gone", Gone)
    trainer = build("gone")
    trainer.train()
    assert capsys.readouterr().out.count("Note: gone takes no more of this run") == 1


def test_wrong_names(build, monkeypatch):
    with pytest.raises(ValueError, match=r"TRAIN\.TRACKERS: 'wanb' .* did you mean 'wandb'"):
        build("tensorboard,wanb")
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    with pytest.raises(SettingError, match=r"install -r requirements-trackers\.txt"):
        build("wandb")


def test_no_tracker(build):
    trainer = build("")
    trainer.train()
    assert not (folder(trainer) / "tensorboard").exists()


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("output/digits/CoOp/tiny_4shots/seed1", "digits/CoOp/tiny_4shots/seed1"),
        (f"/data/output/{PLACE}/seed3", f"{PLACE}/seed3"),
        ("/data/runs/mine", "TestImages/CoOp/seed4/mine"),
        ("mine/", "TestImages/CoOp/seed4/mine"),
    ],
)
def test_run_names(make_cfg, place, name):
    assert run_name(make_cfg("CoOp", "OUTPUT_DIR", place, "SEED", 4)) == name
