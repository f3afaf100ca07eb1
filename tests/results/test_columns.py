"""Columns on request: parameters, seconds, memory, selection and epochs, of records and logs."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

import parse_test_res
from protocols import ELEVEN
from results import record

from .writing import base2new, few_shot, write_record

ALL = "params,seconds,memory,selection,epochs"


def run(capsys, output, *words: str) -> str:
    """Standard output of the command."""
    assert parse_test_res.main(["--output", str(output), *words]) == 0
    return capsys.readouterr().out


def first_table(text: str) -> list[dict[str, str]]:
    """Lines of the first table, by column."""
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    header, _, *rows = ([cell.strip() for cell in line] for line in lines)
    return [dict(zip(header, row, strict=True)) for row in rows]


def write(folder: Path, seed: int, trainer: str = "CoOp", of: Path | None = None, **run) -> None:
    """Write a record with times and memory; the arguments are those of ``write_record``."""
    write_record(folder, 50_000, trainer, seed=seed, of=of, **run)
    path = folder / record.FILE
    content = json.loads(path.read_text())
    content["arguments"]["eval_only"] = of is not None or trainer == "ZeroshotCLIP"
    content["config"]["TEST"] = {"FINAL_MODEL": "last_step"}
    if not content["arguments"]["eval_only"]:
        content["seconds"]["epochs"] = [1.0 * seed, 2.0 * seed]
    content["memory"] = {"host_bytes": 3 * 10**9, "cuda_bytes": seed * 10**9 if seed < 3 else None}
    path.write_text(json.dumps(content))


def fewshot(output: Path, trainer: str, seed: int, dataset: str = "dtd") -> Path:
    return output / dataset / trainer / "vit_b16_16shots" / f"seed{seed}"


def test_of_records(tmp_path, capsys):
    for seed in (1, 2):
        write(fewshot(tmp_path, "CoOp", seed), seed)
    write(fewshot(tmp_path, "MMLoP", 3), 3, "MMLoP", settings={"OPTIM.MAX_EPOCH": 5})
    write(fewshot(tmp_path, "ZeroshotCLIP", 1), 1, "ZeroshotCLIP")
    out = run(capsys, tmp_path, "--columns", ALL)
    coop, mmlop, zero = first_table(out)
    assert list(coop)[3:8] == ["params", "s/epoch", "memory", "selection", "epochs"]
    assert list(coop.values())[3:8] == ["2048", "2.25", "2.00 GB", "last_step", "50"]
    assert list(mmlop.values())[3:8] == ["2048", "4.5", "3.00 GB", "last_step", "5"]
    assert list(zero.values())[3:8] == ["0", "-", "-", "-", "-"]
    assert "\n- no " not in out, "zero-shot models have nothing to tell"
    chosen = json.loads(run(capsys, tmp_path, "--columns", ALL, "--format", "json"))[0]
    expected = {"parameters": 2048, "seconds_per_epoch": 2.25, "peak_memory_bytes": 2 * 10**9}
    assert chosen.items() >= (expected | {"selection": "last_step", "epochs": 50}).items()
    lines = csv.DictReader(io.StringIO(run(capsys, tmp_path, "--columns", ALL, "--format", "csv")))
    assert [line["epochs"] for line in lines] == ["50", "5", ""]
    latex = run(capsys, tmp_path, "--columns", ALL, "--format", "latex")
    assert "2.25&2.00GB" in latex.replace(" ", "")
    # in the order asked for, each once
    (one, *_) = first_table(run(capsys, tmp_path, "--columns", "epochs, params,epochs"))
    assert list(one)[3:6] == ["epochs", "params", "dtd"]


def test_what_runs_do_not_tell_is_blank_with_a_note(tmp_path, capsys):
    few_shot(tmp_path, "dtd", "CoOp", 16, {1: 50.0})  # a log
    out = run(capsys, tmp_path, "--columns", ALL)
    (line,) = first_table(out)
    assert list(line.values())[3:8] == ["2048", "-", "-", "-", "30"]
    assert "\n- no s/epoch, memory, selection of CoOp vit_b16 (16 shots): no record of a" in out
    assert "seconds_per_epoch" not in run(capsys, tmp_path, "--columns", ALL, "--format", "csv")


def test_tests_have_what_their_records_say_of_the_training(tmp_path, capsys):
    tail = "dtd/shots_16/CoOp/vit_b16/seed1"
    trained = tmp_path / "base2new/train_base" / tail
    write(trained, 1, part="base", settings={"OPTIM.MAX_EPOCH": 7})
    for part in ("new", "all"):
        write(tmp_path / f"base2new/test_{part}" / tail, 1, of=trained, part=part, chosen_on="val")
    out = run(capsys, tmp_path, "--columns", ALL)
    halves, together = out.split("### Base and new together")
    (line,) = first_table(halves)
    assert list(line.values())[4:9] == ["2048", "1.5", "1.00 GB", "best_val, last_step", "7"]
    (line,) = first_table(together)
    assert list(line.values())[4:9] == ["2048", "-", "-", "best_val", "7"]
    assert "- no s/epoch, memory of CoOp" in together
    path = tmp_path / "base2new/test_all" / tail / record.FILE
    content = json.loads(path.read_text())
    content["model"]["load_epoch"] = 3
    path.write_text(json.dumps(content))
    (line,) = first_table(run(capsys, tmp_path, "--columns", "selection").split("together")[1])
    assert line["selection"] == "epoch 3"


def test_of_averages_and_turned_tables(tmp_path, capsys):
    for number, dataset in enumerate(ELEVEN, 1):
        parameters = 1000 * number
        base2new(tmp_path, dataset, "MMLoP", {1: (80.0, 60.0)}, parameters=parameters)
        few_shot(tmp_path, dataset, "MMLoP", 16, {1: 50.0}, parameters=parameters)
    out = run(capsys, tmp_path, "--columns", "params,epochs")
    average = out.split("average over 11 data sets (accuracy, %)")[1]
    (line,) = first_table(average.split("###")[0])
    assert (line["params"], line["epochs"]) == ("1000 to 11000", "30")
    turned = {line["data set"]: line["MMLoP"] for line in first_table(out.split("### Few-shot")[1])}
    assert (turned["params"], turned["epochs"], turned["dtd"]) == ("1000 to 11000", "30", "50.00")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("parms", "no column 'parms'; there are: params, seconds, memory, selection, epochs; "),
        ("params,memori", "no column 'memori'; there are: "),
        ("", "no column ''; there are: "),
    ],
)
def test_unknown_columns_get_one_line(columns, message, tmp_path, capsys):
    few_shot(tmp_path, "dtd", "CoOp", 16, {1: 50.0})
    assert parse_test_res.main(["--output", str(tmp_path), "--columns", columns]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert f"error: --columns: {message}" in printed.err
    assert ("did you mean" in printed.err) is bool(columns)


@pytest.mark.parametrize("words", [["--columns", "params"], ["--baseline", "CoOp"]])
@pytest.mark.parametrize("other", [["--compare"], ["--published"], ["output"]])
def test_they_are_for_tables_of_our_results(words, other, capsys):
    with pytest.raises(SystemExit):
        parse_test_res.main([*other, *words])
    assert "error: " in capsys.readouterr().err
