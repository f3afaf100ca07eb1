"""The ablation of a paper: what is run, with which settings, into which folders."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import trainers
from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY
from results.published.figures import read_published
from scripts.ablation import main, read_tables

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs" / "ablations").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_tables_name_settings_that_there_are(file):
    """Every key can be set; a run is the same in all tables, and two runs differ."""
    node = TRAINER_REGISTRY.get(file.stem).node
    settings: dict[str, str] = {}
    for runs in read_tables(file.stem).values():
        for run, pairs in runs.items():
            cfg = get_cfg_default()
            trainers.extend_cfg(cfg)
            default = cfg.TRAINER[node].dump()
            cfg.merge_from_list(list(pairs))
            found = cfg.TRAINER[node].dump()
            assert (found != default) == bool(pairs), run
            assert settings.setdefault(run, found) == found, run
    assert len({*settings.values()}) == len(settings)


@pytest.fixture()
def dry_run(monkeypatch, capfd):
    """Function that returns the commands of an ablation, and its errors, without running them."""
    monkeypatch.setenv("DRY_RUN", "1")
    monkeypatch.setenv("PYTHON", sys.executable)
    monkeypatch.setenv("OUTPUT", "/o")
    monkeypatch.delenv("TAG", raising=False)

    def run(*words: str) -> tuple[int, list[str], str]:
        status = main(["mmlop", *words])
        out, err = capfd.readouterr()
        return status, out.splitlines(), err

    return run


def option(command: str, name: str) -> str:
    words = command.split()
    return words[words.index(name) + 1]


def test_steps(dry_run):
    status, commands, _ = dry_run("dtd", "1,2", "OPTIM.MAX_EPOCH", "2")
    assert status == 0
    # both seeds are trained together and tested one by one
    assert len(commands) == 5 * 3
    runs = [Path(option(command, "--output-dir")).parent.name for command in commands[::3]]
    own = "OPTIM.MAX_EPOCH=2"
    steps = [f"vit_b16_base2new-{run}-{own}" for run in read_tables("MMLoP")["steps"]]
    assert runs[:4] == steps[:4]
    # the last one is MMLoP itself, with the caller's own setting
    assert runs[4] == f"vit_b16_base2new-{own}"
    assert all(command.endswith("OPTIM.MAX_EPOCH 2") for command in commands)
    assert "TRAINER.MMLOP.LOW_RANK False" in commands[0]
    assert "TRAINER.MMLOP" not in commands[-1]
    tests = [command for command in commands if "--eval-only" in command]
    assert len(tests) == 10
    for command in tests:
        folder = option(command, "--output-dir")
        assert option(command, "--model-dir") == folder.replace("test_new", "train_base")


def test_whole_method_shares_the_folder_of_an_ordinary_run(dry_run):
    _, commands, _ = dry_run("dtd", "1", "logits")
    folders = [option(command, "--output-dir") for command in commands]
    assert "/o/base2new/train_base/dtd/shots_16/MMLoP/vit_b16_base2new/seed1" in folders


def test_a_tag_names_every_run(dry_run, monkeypatch):
    monkeypatch.setenv("TAG", "mine")
    _, commands, _ = dry_run("dtd", "1", "OPTIM.MAX_EPOCH", "2")
    runs = [Path(option(command, "--output-dir")).parent.name for command in commands[::2]]
    assert runs[0] == "vit_b16_base2new-step1-full-prompts-mine"
    assert runs[4] == "vit_b16_base2new-mine"


def test_how_it_is_computed_makes_no_other_run(dry_run):
    _, commands, _ = dry_run("dtd", "1", "TRAIN.PRINT_FREQ", "1")
    runs = [Path(option(command, "--output-dir")).parent.name for command in commands[::2]]
    assert runs == [
        f"vit_b16_base2new-{run}" if pairs else "vit_b16_base2new"
        for run, pairs in read_tables("MMLoP")["steps"].items()
    ]


def test_a_run_of_several_tables_is_done_once(dry_run):
    names = {run for runs in read_tables("MMLoP").values() for run in runs}
    _, commands, _ = dry_run("dtd", "1", "all")
    assert len(commands) == 2 * len(names)
    assert len({*commands}) == len(commands)


def test_what_there_is_not(dry_run):
    status, commands, error = dry_run("dtd", "1", "ranks")
    assert (status, commands) == (2, [])
    assert error.splitlines() == [
        "error: no table 'ranks'; there are: steps rank length depth logits all"
    ]
    status, commands, error = dry_run("dtdd", "1")
    assert (status, commands) == (2, [])
    assert "no data set dtdd" in error


def test_script():
    script = ROOT / "scripts" / "mmlop" / "ablation.sh"
    env = {"DRY_RUN": "1", "PYTHON": sys.executable, "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        ["sh", script, "digits", "1", "rank"], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "tiny-rank4/seed1" in done.stdout.splitlines()[-1]


def test_runs_are_those_of_the_papers_tables():
    """Every published figure of an ablation has a run that meets its settings; none has none."""
    figures = {
        (f.source, f.settings)
        for f in read_published()
        if (f.trainer, f.protocol) == ("MMLoP", "ablation")
    }
    met = set()
    for runs in read_tables("MMLoP").values():
        for run, pairs in runs.items():
            cfg = get_cfg_default()
            trainers.extend_cfg(cfg)
            cfg.merge_from_file(str(ROOT / "configs/trainers/MMLoP/vit_b16_base2new.yaml"))
            cfg.merge_from_list(list(pairs))

            def value(key: str, node=cfg) -> str:
                for part in key.split("."):
                    node = node[part]
                return str(node)

            found = {
                (source, settings)
                for source, settings in figures
                if all(value(key) in values.split("|") for key, values in settings)
            }
            assert found, run
            met |= found
    assert met == figures
