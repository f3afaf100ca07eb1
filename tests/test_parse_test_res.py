"""The log parser on log files in upstream's and our own wording, whole and broken ones."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from statistics import fmean, pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

import parse_test_res
from protocols import ELEVEN
from results.logs import read_log
from results.rows import harmonic, pair_seeds

ROOT = Path(__file__).parents[1]


def result(accuracy: str) -> str:
    return (
        "Evaluate on the *test* set\n=> result\n* total: 2,465\n* correct: 2,350\n"
        f"* accuracy: {accuracy}%\n* error: 4.70%\n* macro_f1: 93.9%\n"
    )


def train_log(accuracy: str, end: str = "Finish training") -> str:
    epoch = "epoch [1/5] batch [20/124] time 0.123 (0.140) loss 1.2345 (1.3456) lr 1.0e-05\n"
    return (
        f"eval_only: False\n{epoch}* accuracy: 12.34%\n{end}\nDeploy the last-epoch model\n"
        f"{result(accuracy)}Elapsed: 0:12:34\n"
    )


def eval_log(accuracy: str) -> str:
    return f"eval_only: True\n{result(accuracy)}"


CRASHED = "eval_only: False\nepoch [1/5] batch [20/124] loss 1.2345 (1.3456)\n"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def run(capsys, *words: object) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of the command."""
    status = parse_test_res.main([str(word) for word in words])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def base2new(output: Path, dataset: str, trainer: str, config: str, scores: dict) -> None:
    """Write the logs of {seed: (base or None, new or None)}."""
    for seed, (base, new) in scores.items():
        tail = f"{dataset}/shots_16/{trainer}/{config}/seed{seed}/log.txt"
        if base is not None:
            write(output / "base2new/train_base" / tail, train_log(base))
        if new is not None:
            write(output / "base2new/test_new" / tail, eval_log(new))


def table(text: str, title: str) -> list[list[str]]:
    """Cells of the lines of the github table under a title."""
    lines = text.split(f"### {title} ")[1].split("\n###")[0].splitlines()
    rows = [line for line in lines if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in [rows[0], *rows[2:]]]


# --- a directory, as upstream ---------------------------------------------------------------------


@pytest.mark.parametrize("end", ["Finish training", "Finished training", "  Finish training  "])
def test_directory_of_trainings(tmp_path, capsys, end):
    write(tmp_path / "seed1/log.txt", train_log("91.81", end))
    write(tmp_path / "seed2/log.txt", train_log("92.4", end))
    status, out, err = run(capsys, tmp_path)
    assert status == 0
    assert err == ""
    mean, std = fmean([91.81, 92.4]), pstdev([91.81, 92.4])
    assert out.splitlines() == [
        f"Parsing files in {tmp_path}",
        f"file: {tmp_path}/seed1/log.txt. accuracy: 91.81%. ",
        f"file: {tmp_path}/seed2/log.txt. accuracy: 92.40%. ",
        "===",
        f"Summary of directory: {tmp_path}",
        f"* accuracy: {mean:.2f}% +- {std:.2f}%",
        "===",
    ]


def test_directory_of_tests_needs_the_flag(tmp_path, capsys):
    write(tmp_path / "seed1/log.txt", eval_log("60.5").replace("eval_only: True\n", ""))
    status, out, err = run(capsys, tmp_path)
    assert status == 2
    assert "unfinished" in err
    assert f"error: Nothing found in {tmp_path}; --test-log" in err
    status, out, _ = run(capsys, tmp_path, "--test-log")
    assert status == 0
    assert "* accuracy: 60.50% +- 0.00%" in out


def test_ci95_and_keyword(tmp_path, capsys):
    write(tmp_path / "seed1/log.txt", train_log("90.00"))
    write(tmp_path / "seed2/log.txt", train_log("94.00"))
    _, out, _ = run(capsys, tmp_path, "--ci95")
    assert f"* accuracy: 92.00% +- {1.96 * 2 / 2**0.5:.2f}%" in out
    _, out, _ = run(capsys, tmp_path, "--keyword", "macro_f1")
    assert "* macro_f1: 93.90% +- 0.00%" in out


def test_multi_exp(tmp_path, capsys):
    for experiment, values in {"a": ("80.0", "90.0"), "b": ("50.0", "52.0")}.items():
        for seed, value in enumerate(values, 1):
            write(tmp_path / experiment / f"seed{seed}/log.txt", train_log(value))
    write(tmp_path / "crashed/seed1/log.txt", CRASHED)
    (tmp_path / ".hidden").mkdir()
    status, out, err = run(capsys, tmp_path, "--multi-exp")
    assert status == 0
    assert "* accuracy: 85.00% +- 5.00%" in out
    assert out.endswith("Average performance\n* accuracy: 68.00%\n")
    assert f"skipped: {tmp_path}/crashed/seed1/log.txt: unfinished" in err


BROKEN = {
    "crashed": (CRASHED, "unfinished"),
    "empty": ("", "unfinished"),
    "no result": ("Finish training\nDeploy the last-epoch model\n", "no accuracy after"),
    "result before the end": (f"{result('50.0')}Finish training\n", "no accuracy after"),
    "not a number": (train_log("nan"), "accuracy is nan"),
    "above 100": (train_log("142.45"), "accuracy is 142.45%, not within 0 to 100%"),
    "below 0": (train_log("-0.01"), "accuracy is -0.01%, not within 0 to 100%"),
    "garbage": (train_log("9..1"), "'9..1', not a number"),
    "end within a line": (train_log("50.0", "I Finish training soon"), "unfinished"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_logs_are_named_and_never_averaged(name, tmp_path, capsys):
    text, reason = BROKEN[name]
    write(tmp_path / "seed1/log.txt", text)
    write(tmp_path / "seed2/log.txt", train_log("70.00"))
    (tmp_path / "seed3").mkdir()
    status, out, err = run(capsys, tmp_path)
    assert status == 0
    assert "* accuracy: 70.00% +- 0.00%" in out
    assert f"skipped: {tmp_path}/seed1/log.txt: " in err
    assert reason in err
    assert f"skipped: {tmp_path}/seed3: no log.txt" in err


def test_the_last_value_of_the_log_wins(tmp_path, capsys):
    write(tmp_path / "seed1/log.txt", train_log("70.00") + result("71.00"))
    _, out, _ = run(capsys, tmp_path)
    assert "* accuracy: 71.00%" in out


def test_the_newest_log_of_a_run_counts(tmp_path, capsys):
    folder = tmp_path / "seed1"
    write(folder / "log.txt", CRASHED)
    write(folder / "log.txt-2026-01-01-00-00-00", train_log("80.00"))
    _, out, err = run(capsys, tmp_path)
    assert f"file: {folder}/log.txt-2026-01-01-00-00-00. accuracy: 80.00%" in out
    assert err == ""
    write(folder / "log.txt-2026-02-01-00-00-00", CRASHED)
    status, _, err = run(capsys, tmp_path)
    assert status == 2
    assert f"skipped: {folder}/log.txt-2026-02-01-00-00-00: unfinished" in err


def test_the_last_start_in_a_log_counts(tmp_path, capsys):
    path = tmp_path / "seed1/log.txt"
    starts = [CRASHED, train_log("80.00"), eval_log("81.00")]
    write(path, "".join(f"** Arguments **\n{text}" for text in starts[:2]))
    _, out, _ = run(capsys, tmp_path)
    assert "* accuracy: 80.00%" in out
    write(path, "".join(f"** Arguments **\n{text}" for text in starts))
    _, out, _ = run(capsys, tmp_path, "--test-log")
    assert "* accuracy: 81.00%" in out
    assert read_log(path, "accuracy", test_log=None) == 81
    # A validation result of a second start that crashed is not the result of the first.
    write(path, f"** Arguments **\n{train_log('80.00')}** Arguments **\n{result('99.0')}")
    status, _, err = run(capsys, tmp_path)
    assert status == 2
    assert "unfinished" in err


def test_undecodable_bytes_do_no_harm(tmp_path, capsys):
    write(tmp_path / "seed1/log.txt", train_log("70.00"))
    with open(tmp_path / "seed1/log.txt", "ab") as log:
        log.write(b"\xff\xfe")
    _, out, _ = run(capsys, tmp_path)
    assert "* accuracy: 70.00%" in out


def test_directory_at_another_level_of_the_runs(tmp_path, capsys):
    runs = tmp_path / "output/dtd/CoOp/vit_b16_16shots"
    write(runs / "seed1/log.txt", train_log("90.0"))
    write(runs / "seed1/prompt_learner/model.pth.tar-1", "")
    for directory, message in (
        (runs / "seed1", f"it is a run folder; name the folder of runs above, {runs}"),
        (runs / "seed1/prompt_learner", f"it is in a run folder; name .* above, {runs}"),
        (runs.parent, f"it is above the folders of runs; name one, such as {runs}; --multi-exp"),
        (runs.parent.parent, f"it is above the folders of runs; name one, such as {runs}$"),
    ):
        status, _, err = run(capsys, directory)
        assert status == 2
        assert re.search(rf"error: Nothing found in {directory}: {message}", err)
    assert run(capsys, runs)[0] == run(capsys, runs.parent, "--multi-exp")[0] == 0
    for output in (runs.parent.parent, tmp_path):
        status, _, err = run(capsys, "--output", output)
        assert status == 2
        name = tmp_path / "output"
        assert f"Nothing found in {output}: its runs are in the layout below {name}; name" in err


@pytest.mark.parametrize("words", [["output/dtd/CoOp/vit_b16_16shots"], ["--output", "output"]])
def test_metric_that_the_logs_do_not_have(words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "output/dtd/CoOp/vit_b16_16shots/seed1/log.txt", train_log("90.0"))
    status, _, err = run(capsys, *words, "--keyword", "f1")
    assert status == 2
    wanted = "no log has f1; did you mean macro_f1? (they have accuracy, error, macro_f1)"
    assert err.splitlines()[-1].endswith(wanted)


def test_missing_directory(tmp_path, capsys):
    status, _, err = run(capsys, tmp_path / "none")
    assert status == 2
    assert err == f"error: no directory {tmp_path}/none\n"


# --- tables of everything -------------------------------------------------------------------------


def test_base2new_table(tmp_path, capsys):
    coop = {1: ("80.0", "60.0"), 2: ("82.0", "64.0"), 3: ("84.0", "62.0")}
    base2new(tmp_path, "digits", "CoOp", "tiny", coop)
    base2new(tmp_path, "shapes", "CoOp", "tiny", dict.fromkeys((1, 2, 3), ("60.0", "50.0")))
    for dataset, value in {"digits": "70.0", "shapes": "40.0"}.items():
        tail = f"{dataset}/shots_16/ZeroshotCLIP/tiny/seed1/log.txt"
        write(tmp_path / "base2new/train_base" / tail, eval_log(value))
        write(tmp_path / "base2new/test_new" / tail, eval_log(value))
    status, out, err = run(capsys, "--output", tmp_path)
    assert status == 0
    assert err == ""
    each = [2 * b * n / (b + n) for b, n in ((80, 60), (82, 64), (84, 62))]
    h = 2 * 82 * 62 / (82 + 62)
    assert table(out, "Base-to-new, digits") == [
        ["trainer", "config", "shots", "seeds", "base", "new", "H"],
        [
            "CoOp",
            "tiny",
            "16",
            "3",
            "82.00 ± 1.63",
            "62.00 ± 1.63",
            f"{h:.2f} ± {pstdev(each):.2f}",
        ],
        ["ZeroshotCLIP", "tiny", "0", "1", "70.00", "70.00", "70.00"],
    ]
    # H of the averages, not the average of H
    average = table(out, "Base-to-new, average of digits, shapes")
    assert [row[0] for row in average[1:]] == ["CoOp", "ZeroshotCLIP"]
    assert average[1][4:6] == ["71.00 ± 0.82", "56.00 ± 0.82"]
    assert average[1][6].split()[0] == f"{2 * 71 * 56 / (71 + 56):.2f}"


def test_published_average_row(tmp_path, capsys):
    base2new(tmp_path, "a", "T", "c", {1: ("80.28", "73.14")})
    base2new(tmp_path, "b", "T", "c", {1: ("84.28", "77.14")})
    _, out, _ = run(capsys, "--output", tmp_path)
    assert table(out, "Base-to-new, average of a, b")[1][4:] == ["82.28", "75.14", "78.55"]


def test_incomplete_seeds_are_named_and_left_out(tmp_path, capsys):
    scores = {1: ("80.0", "60.0"), 2: ("90.0", None), 3: (None, "10.0")}
    base2new(tmp_path, "digits", "CoOp", "tiny", scores)
    _, out, err = run(capsys, "--output", tmp_path)
    assert table(out, "Base-to-new, digits")[1][3:6] == ["1", "80.00", "60.00"]
    where = "Base-to-new, digits, CoOp tiny (16 shots)"
    assert f"incomplete: {where}: base but no new for seed 2\n" in err
    assert f"incomplete: {where}: new but no base for seed 3\n" in err


def test_base_without_new_is_shown_but_not_averaged(tmp_path, capsys):
    base2new(tmp_path, "digits", "CoOp", "tiny", {1: ("80.0", None), 2: ("82.0", None)})
    base2new(tmp_path, "shapes", "CoOp", "tiny", {1: ("60.0", "50.0")})
    _, out, err = run(capsys, "--output", tmp_path)
    assert table(out, "Base-to-new, digits")[1][3:] == ["2", "81.00 ± 1.00", "-", "-"]
    assert "average of" not in out
    assert "base but no new for seed 1, 2" in err


def test_averages_of_fewer_data_sets_are_marked(tmp_path, capsys):
    for dataset in ("digits", "shapes", "letters"):
        base2new(tmp_path, dataset, "CoOp", "tiny", {1: ("60.0", "50.0")})
    for dataset in ("digits", "shapes"):
        base2new(tmp_path, dataset, "MMLoP", "tiny", {1: ("80.0", "50.0")})
    base2new(tmp_path, "digits", "VPT", "tiny", {1: ("80.0", "50.0")})
    for dataset in ("food101", "eurosat"):
        base2new(tmp_path, dataset, "MMLoP", "vit_b16", {1: ("60.0", "50.0")})
    _, out, err = run(capsys, "--output", tmp_path)
    title = "Base-to-new, average of digits, letters, shapes"
    rows = table(out, title)[1:]
    assert [row[:2] for row in rows] == [["CoOp", "tiny"], ["MMLoP", "tiny"]]
    assert rows[0][4:6] == ["60.00", "50.00"]
    assert rows[1][4:6] == ["80.00 (2/3)", "50.00 (2/3)"]
    name = "average of digits, letters, shapes"
    assert f"- MMLoP tiny (16 shots): {name}: 2/3, without letters\n" in out
    assert "not averaged: Base-to-new, VPT tiny (16 shots) has digits only\n" in err
    # Of the papers' eleven data sets the average is always out of eleven.
    (row,) = table(out, "Base-to-new, average over 11 data sets")[1:]
    assert row[:2] == ["MMLoP", "vit_b16"]
    assert row[4:] == ["60.00 (2/11)", "50.00 (2/11)", f"{2 * 60 * 50 / 110:.2f} (2/11)"]
    assert "2/11, only food101, eurosat\n" in out


def test_average_over_the_eleven_data_sets(tmp_path, capsys):
    for number, dataset in enumerate(ELEVEN):
        base2new(tmp_path, dataset, "MaPLe", "vit_b16", {1: (str(70 + number), str(60 + number))})
    _, out, _ = run(capsys, "--output", tmp_path)
    (row,) = table(out, "Base-to-new, average over 11 data sets")[1:]
    assert row[4:] == ["75.00", "65.00", f"{2 * 75 * 65 / 140:.2f}"]
    titles = [line.split(", ")[1].split(" (")[0] for line in out.splitlines() if "###" in line]
    assert titles == [*ELEVEN, "average over 11 data sets"]


def test_configs_that_differ_in_epochs_average_together(tmp_path, capsys):
    base2new(tmp_path, "imagenet", "CoOp", "vit_b16_ep50_ctxv1", {1: ("70.0", "60.0")})
    base2new(tmp_path, "eurosat", "CoOp", "vit_b16_ctxv1", {1: ("90.0", "50.0")})
    _, out, _ = run(capsys, "--output", tmp_path)
    assert table(out, "Base-to-new, imagenet")[1][1] == "vit_b16_ep50_ctxv1"
    average = table(out, "Base-to-new, average over 11 data sets")
    assert average[1][1] == "vit_b16_ctxv1"
    assert average[1][4:6] == ["80.00 (2/11)", "55.00 (2/11)"]


def test_configs_stay_apart_when_a_data_set_has_both(tmp_path, capsys):
    base2new(tmp_path, "imagenet", "CoOp", "vit_b16_ep50", {1: ("70.0", "60.0")})
    for config in ("vit_b16_ep50", "vit_b16_ep100"):
        base2new(tmp_path, "eurosat", "CoOp", config, {1: ("90.0", "50.0")})
    _, out, err = run(capsys, "--output", tmp_path)
    average = table(out, "Base-to-new, average over 11 data sets")
    assert [row[1] for row in average[1:]] == ["vit_b16_ep50"]
    assert "CoOp vit_b16_ep100 (16 shots) has eurosat only" in err


def test_ablations_are_rows_of_their_own(tmp_path, capsys):
    for config, value in (("tiny", "80.0"), ("tiny-TRAINER.MMLOP.RANK=2", "70.0")):
        base2new(tmp_path, "digits", "MMLoP", config, {1: (value, value)})
    _, out, _ = run(capsys, "--output", tmp_path)
    rows = table(out, "Base-to-new, digits")
    assert [row[1] for row in rows[1:]] == ["tiny", "tiny-TRAINER.MMLOP.RANK=2"]


def test_base_of_weights_trained_elsewhere(tmp_path, capsys):
    tail = "digits/shots_16/MaPLe/c/seed1/log.txt"
    write(tmp_path / "base2new/test_base" / tail, result("80.00"))
    write(tmp_path / "base2new/test_new" / tail, result("60.00"))
    _, out, _ = run(capsys, "--output", tmp_path)
    assert table(out, "Base-to-new, digits")[1][4:6] == ["80.00", "60.00"]
    write(tmp_path / "base2new/train_base" / tail, train_log("81.00", "Finished training"))
    _, out, _ = run(capsys, "--output", tmp_path)
    assert table(out, "Base-to-new, digits")[1][4:6] == ["81.00", "60.00"]


def test_fewshot_and_cross_tables(tmp_path, capsys):
    for seed, value in ((1, "60.0"), (2, "62.0")):
        write(tmp_path / f"digits/CoOp/tiny_1shots/seed{seed}/log.txt", train_log(value))
        write(tmp_path / f"shapes/CoOp/tiny_1shots/seed{seed}/log.txt", train_log("50.0"))
    upstream = "eurosat/CoOp/rn50_16shots/nctx16_cscFalse_ctpend/seed1/log.txt"
    write(tmp_path / upstream, train_log("83.5", "Finished training"))
    write(tmp_path / "few_shot/dtd/PromptSRC/c_16shots/seed1/log.txt", eval_log("70.0"))
    write(tmp_path / "evaluation/CoOp/vit_16shots/food101/seed1/log.txt", result("85.0"))
    status, out, err = run(capsys, "--output", tmp_path)
    assert (status, err) == (0, "")
    assert table(out, "Few-shot, 1 shot") == [
        ["trainer", "config", "seeds", "digits", "shapes", "average of digits, shapes"],
        ["CoOp", "tiny", "2", "61.00 ± 1.00", "50.00 ± 0.00", "55.50 ± 0.50"],
    ]
    assert table(out, "Few-shot, 16 shots") == [
        ["trainer", "config", "seeds", "dtd", "eurosat"],
        ["CoOp", "rn50/nctx16_cscFalse_ctpend", "1", "-", "83.50"],
        ["PromptSRC", "c", "1", "70.00", "-"],
    ]
    cross = table(out, "Cross-dataset from imagenet, 16 shots")
    assert cross == [["trainer", "config", "seeds", "food101"], ["CoOp", "vit", "1", "85.00"]]


def test_unknown_layout_and_broken_logs_are_named(tmp_path, capsys):
    base2new(tmp_path, "digits", "CoOp", "tiny", {1: ("80.0", "60.0")})
    broken = tmp_path / "base2new/train_base/digits/shots_16/CoOp/tiny/seed2/log.txt"
    write(broken, CRASHED)
    write(tmp_path / "my/own/log.txt", train_log("50.0"))
    _, out, err = run(capsys, "--output", tmp_path)
    assert table(out, "Base-to-new, digits")[1][3] == "1"
    assert f"skipped: {broken}: unfinished" in err
    assert f"skipped: {tmp_path}/my/own: not the layout" in err


def test_formats(tmp_path, capsys):
    base2new(tmp_path, "a_b", "CoOp", "tiny_x", {1: ("80.0", "60.0"), 2: ("82.0", "64.0")})
    h = 2 * 81 * 62 / (81 + 62)
    _, out, _ = run(capsys, "--output", tmp_path, "--format", "json")
    (record,) = json.loads(out)
    assert record["H"] == pytest.approx(h, abs=1e-4)
    assert record == record | {
        "protocol": "base2new",
        "dataset": "a_b",
        "trainer": "CoOp",
        "config": "tiny_x",
        "shots": 16,
        "seeds": 2,
        "base": 81.0,
        "base_std": 1.0,
        "new": 62.0,
        "new_std": 2.0,
    }
    _, out, _ = run(capsys, "--output", tmp_path, "--format", "csv")
    (line,) = csv.DictReader(io.StringIO(out))
    assert line == {key: str(value) for key, value in record.items()}
    _, out, _ = run(capsys, "--output", tmp_path, "--format", "latex")
    assert "\\begin{tabular}{llrrrrr}" in out
    assert "tiny\\_x" in out
    assert r"81.00 $\pm$ 1.00" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--multi-exp"], "need a directory"),
        (["--test-log"], "need a directory"),
        (["some/where", "--format", "csv"], "leave out the directory"),
        (["some/where", "--output", "x"], "leave out the directory"),
        (["some/where", "--compare"], "leave out the directory"),
        (["some/where", "--plot", "x"], "leave out the directory"),
        (["--compare", "--keyword", "error"], "for --keyword accuracy"),
        (["--plot", "x", "--keyword", "error"], "for --keyword accuracy"),
    ],
)
def test_options_that_do_not_go_together(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_test_res.main(words)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_nothing_to_parse(tmp_path, capsys):
    assert run(capsys, "--output", tmp_path)[0] == 2
    status, _, err = run(capsys, "--output", tmp_path / "none")
    assert status == 2
    assert "run something first" in err


def test_the_output_folder_of_the_scripts(tmp_path, capsys, monkeypatch):
    base2new(tmp_path / "mine", "dtd", "CoOp", "cfg", {1: ("80.0", "60.0")})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OUTPUT", "mine")
    expected = run(capsys, "--output", tmp_path / "mine")
    assert expected[0] == 0
    assert run(capsys) == expected
    assert run(capsys, "--output", tmp_path / "none")[0] == 2, "the option comes first"
    # an empty variable is none, as for the scripts
    monkeypatch.setenv("OUTPUT", "")
    monkeypatch.setattr(parse_test_res, "__file__", str(tmp_path / "clone" / "parse_test_res.py"))
    assert "no directory clone/output" in run(capsys)[2]


percent = st.floats(min_value=0, max_value=100)


@given(percent, percent)
def test_harmonic_mean_lies_between(base, new):
    h = harmonic(base, new)
    assert min(base, new) - 1e-9 <= h <= max(base, new) + 1e-9
    assert h <= (base + new) / 2 + 1e-9


@given(
    st.dictionaries(
        st.integers(0, 20), st.tuples(st.none() | percent, st.none() | percent), min_size=1
    )
)
def test_only_whole_seeds_are_paired(scores):
    notes = []
    by_seed = {
        name: {s: pair[i] for s, pair in scores.items() if pair[i] is not None}
        for i, name in enumerate(("base", "new"))
    }
    paired = pair_seeds(by_seed, "here", notes.append)
    whole = {s for s, pair in scores.items() if None not in pair}
    only_base = {s for s in scores if None not in scores[s][:1] and None in scores[s][1:]}
    only_new = {s for s in scores if None in scores[s][:1] and None not in scores[s][1:]}
    assert len(notes) == bool(only_base) + bool(only_new)
    for seed in only_base | only_new:
        assert any(f" {seed}" in note for note in notes)
    if whole:
        assert {name: set(values) for name, values in paired.items()} == {
            "base": whole,
            "new": whole,
        }
    else:
        assert len(paired) == 1


def test_imports_no_torch(tmp_path):
    base2new(tmp_path, "digits", "CoOp", "tiny", {1: ("80.0", "60.0")})
    done = subprocess.run(
        [sys.executable, "-X", "importtime", ROOT / "parse_test_res.py", "--output", tmp_path],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
        timeout=60,
    )
    assert done.returncode == 0
    assert "Base-to-new, digits" in done.stdout
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "tabulate" in modules
    assert not {"torch", "numpy"} & modules
