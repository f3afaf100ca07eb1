"""The config reference: complete, up to date, and right about who reads what."""

from __future__ import annotations

import pytest
import yaml

from benchmarks.config_reads import reads_of_method
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY
from protocols import PROTOCOLS
from scripts.methods import method_names, read_method
from support.command_line import ROOT, run_command
from tools import config_reference as reference


@pytest.fixture(autouse=True)
def without_what_tests_register(monkeypatch):
    for registry in (TRAINER_REGISTRY, DATASET_REGISTRY):
        ours = {
            name: obj
            for name, obj in registry._obj_map.items()
            if obj.__module__.startswith(("trainers.", "datasets."))
        }
        monkeypatch.setattr(registry, "_obj_map", ours)


def printed(capsys, *words: str) -> str:
    assert run_command(reference.build_parser(), reference.print_reference, words) == 0
    return capsys.readouterr().out


def test_every_key_has_a_meaning():
    lacking = [key.name for key in reference.all_keys() if not key.meaning]
    assert not lacking, f"no #: comment above the declaration of {', '.join(lacking)}"


def test_the_page_is_up_to_date():
    fresh = reference.PAGE.read_text("utf-8") == reference.page()
    assert fresh, "run python -m tools.config_reference --write"


def test_every_method_is_recorded():
    lacking = {*reference.methods_here()} - reference.recorded_reads().keys()
    assert not lacking, f"run python -m benchmarks.config_reads for {', '.join(lacking)}"


def test_what_is_recorded_is_what_a_method_reads(tmp_path):
    assert reads_of_method("TCP", tmp_path) == reference.recorded_reads()["TCP"]


def test_keys_are_chosen_by_method_and_name(capsys):
    text = printed(capsys, "--method", "TCP", "--key", "adam")
    names = [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")]
    assert names == ["OPTIM.ADAM_BETA1", "OPTIM.ADAM_BETA2", "OPTIM.ADAM_EPS"]
    text = printed(capsys, "--key", "TRAINER.MMLOP.RANK")
    assert "| `TRAINER.MMLOP.RANK` | `1` |  | rank of the factors | MMLoP |" in text


def test_shipped_values_are_of_the_files_that_scripts_take():
    methods = {method.trainer: method for method in map(read_method, reversed(method_names()))}
    assert methods["IVLP"].name == "ivlp"  # not language-prompting
    for trainer, method in methods.items():
        assert reference.usual_configs(trainer) == {
            protocol.configs: method.config_for(protocol.configs, dataset="", shots="16")
            for protocol in PROTOCOLS
            if protocol.name in method.protocols
        }


def test_a_method_has_its_own_keys_first_with_the_values_of_its_files(capsys):
    text = printed(capsys, "--method", "mmlop")
    sections = [line for line in text.splitlines() if line.startswith("## ")]
    assert sections[:2] == ["## TRAINER.MMLOP", "## Top level"]
    assert len(sections) == len(set(sections))
    shipped = {
        line.split("`")[1]: line.split(" | ")[2]
        for line in text.splitlines()
        if line.startswith("| `")
    }
    tree = yaml.safe_load((ROOT / "configs/trainers/MMLoP/vit_b16_fewshot.yaml").read_text())
    assert f"`{tree['OPTIM']['MAX_EPOCH']}` (fewshot" in shipped["OPTIM.MAX_EPOCH"]
    assert shipped["MODEL.BACKBONE.NAME"] == "`ViT-B/16`"
    assert shipped["SEED"] == ""


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--method", "COOPS"], "did you mean CoOp?"),
        (["--key", "OPTIN.LR"], "did you mean OPTIM.LR?"),
        (["--write", "--key", "LR"], "leave out --method and --key"),
    ],
)
def test_what_is_not_there_gets_one_line(capsys, words, hint):
    assert run_command(reference.build_parser(), reference.print_reference, words) == 2
    error = capsys.readouterr().err
    assert hint in error and error.count("\n") == 1


def test_a_comment_of_several_lines_is_one_text(tmp_path):
    file = tmp_path / "declares.py"
    file.write_text("x = 1\n#: one\n#: two\ny = 2\n# three\nz = 3\n")
    assert reference.comment_above(str(file), 4) == "one two"
    assert reference.comment_above(str(file), 6) == ""
