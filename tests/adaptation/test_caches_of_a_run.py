"""The caches of a run: announced once, and never needed."""

from __future__ import annotations

import pytest

from dassl.engine import build_trainer

PLACES = {"CLIP_CACHE": "features of the frozen CLIP", "DASSL_CACHE": "decoded images"}


@pytest.fixture()
def run(make_cfg, monkeypatch, tmp_path, capsys):
    """Function that trains as a process of its own would, and gives what it printed."""

    def run(name: str) -> str:
        monkeypatch.setattr("support.bounded_folder._noted", set())
        cfg = make_cfg("PromptSRC", "OUTPUT_DIR", str(tmp_path / name), "OPTIM.MAX_EPOCH", 1)
        build_trainer(cfg).train()
        assert list((tmp_path / name).glob("*/model.pth.tar-1"))
        return capsys.readouterr().out

    return run


def test_announced_once(run, monkeypatch, tmp_path):
    for variable in PLACES:
        monkeypatch.setenv(variable, str(tmp_path / variable))
    notes = [line for line in run("first").splitlines() if " are kept in " in line]
    places = sorted(PLACES.items(), key=lambda item: item[1])
    for note, (variable, what) in zip(sorted(notes), places, strict=True):
        assert note.startswith(f"Note: {what} are kept in {tmp_path / variable}")
        assert "at most" in note and f"the environment variable {variable} names" in note
    assert " are kept in " not in run("second")
    assert {path.name for path in tmp_path.iterdir()} >= set(PLACES)


def test_home_that_cannot_be_written(run, monkeypatch):
    for variable in PLACES:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("HOME", "/proc/nobody")  # not even an administrator can make it
    text = run("first")
    assert "features of the frozen CLIP are not kept" in text
    assert " are kept in " not in text
