"""Differences from a baseline, seed by seed, against intervals that are computed by hand."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import pytest

import parse_test_res
from results.differences import paired

from .writing import base2new, few_shot, transfer, write_record, write_run

#: 97.5% points of Student's t, by degrees of freedom
T = {1: 12.7062, 2: 4.30265}


def run(capsys, output, *words: str) -> tuple[str, str]:
    """Standard output and standard error of the command."""
    assert parse_test_res.main(["--output", str(output), *words]) == 0
    captured = capsys.readouterr()
    return captured.out, captured.err


def found(capsys, output, baseline: str, *words: str, **wanted) -> dict:
    """The one record with these values."""
    text = run(capsys, output, "--format", "json", "--baseline", baseline, *words)[0]
    (record,) = (one for one in json.loads(text) if one.items() >= wanted.items())
    return record


def numbers(record: dict, metric: str = "accuracy") -> tuple:
    """Difference, ends of its interval, pairs and verdict."""
    ends = ("", "_low", "_high", "_pairs", "_verdict")
    return tuple(record.get(f"{metric}_difference{end}") for end in ends)


@pytest.mark.parametrize(
    ("differences", "mean", "half", "within"),
    [
        ([1, 2, 3], 2, T[2] / math.sqrt(3), True),
        ([2, 2.5, 3], 2.5, T[2] * 0.5 / math.sqrt(3), False),
        ([-2, -2.5, -3], -2.5, T[2] * 0.5 / math.sqrt(3), False),
        ([0, 1], 0.5, T[1] * math.sqrt(0.5) / math.sqrt(2), True),
        ([0.5, 0.5], 0.5, 0, False),
        ([0, 0, 0], 0, 0, True),
        ([3], 3, None, None),
    ],
)
def test_interval(differences, mean, half, within):
    one = paired(differences, "seed")
    assert one.mean == mean and one.pairs == len(differences)
    assert one.within_noise is within
    if half is None:
        assert one.low is one.high is None
    else:
        assert (one.low, one.high) == pytest.approx((mean - half, mean + half), abs=1e-4)


def test_seeds_are_paired(tmp_path, capsys):
    # seeds 2 and 3 alone are of both; their order of merit follows from the pairs, not the means
    few_shot(tmp_path, "dtd", "CoOp", 16, {1: 10.0, 2: 60.0, 3: 70.0})
    few_shot(tmp_path, "dtd", "MMLoP", 16, {2: 61.0, 3: 72.0, 4: 90.0})
    record = found(capsys, tmp_path, "CoOp", trainer="MMLoP")
    half = T[1] * math.sqrt(0.5) / math.sqrt(2)
    mean, low, high, pairs, verdict = numbers(record)
    assert (mean, pairs, verdict) == (1.5, "2 seeds", "within noise")
    assert (low, high) == pytest.approx((1.5 - half, 1.5 + half), abs=1e-3)
    assert record["baseline"] == "CoOp"
    assert "accuracy_difference" not in found(capsys, tmp_path, "CoOp", trainer="CoOp")
    # the other way round
    assert numbers(found(capsys, tmp_path, "mmlop", trainer="CoOp"))[0] == -1.5


def test_zero_shot_is_paired_with_every_seed(tmp_path, capsys):
    few_shot(tmp_path, "dtd", "CoOp", 4, {1: 51.0, 2: 52.0, 3: 53.0})
    few_shot(tmp_path, "dtd", "ZeroshotCLIP", 16, {1: 44.0})
    record = found(capsys, tmp_path, "ZeroshotCLIP", trainer="CoOp")
    half = T[2] / math.sqrt(3)
    assert numbers(record)[0] == 8 and numbers(record)[3:] == ("3 seeds", "beyond noise")
    assert numbers(record)[1:3] == pytest.approx((8 - half, 8 + half), abs=1e-3)
    record = found(capsys, tmp_path, "CoOp", trainer="ZeroshotCLIP")
    assert numbers(record)[0] == -8 and numbers(record)[3:] == ("3 seeds", "beyond noise")
    base2new(tmp_path, "dtd", "ZeroshotCLIP", {1: (50.0, 60.0)})
    base2new(tmp_path, "dtd", "CoOp", {1: (80.0, 50.0), 2: (90.0, 70.0)})
    record = found(capsys, tmp_path, "CoOp", trainer="ZeroshotCLIP", protocol="base2new")
    assert numbers(record, "base")[::3] == (-35, "2 seeds")
    assert numbers(record, "new")[::3] == (0, "2 seeds")
    h = [2 * b * n / (b + n) for b, n in ((80, 50), (90, 70), (50, 60))]
    assert numbers(record, "H")[0] == pytest.approx(h[2] - (h[0] + h[1]) / 2, abs=1e-3)


def test_zero_shot_is_paired_with_the_only_number_of_shots(tmp_path, capsys):
    for number, dataset in enumerate(("dtd", "eurosat", "ucf101")):
        few_shot(tmp_path, dataset, "ZeroshotCLIP", 16, {1: 44.0})
        few_shot(tmp_path, dataset, "CoOp", 4, {1: 50.0 + number, 2: 52.0 + number})
    few_shot(tmp_path, "dtd", "CoOp", 8, {1: 90.0})
    few_shot(tmp_path, "imagenet", "CoOp", 16, {1: 70.0, 2: 71.0})
    transfer(tmp_path, "dtd", "CoOp", {1: 45.0, 2: 46.0})
    few = {"trainer": "ZeroshotCLIP", "protocol": "fewshot"}
    for dataset, wanted in (("dtd", None), ("eurosat", -8.0), ("ucf101", -9.0)):
        assert numbers(found(capsys, tmp_path, "CoOp", dataset=dataset, **few))[0] == wanted
    average = found(capsys, tmp_path, "CoOp", dataset="average over 11 data sets", **few)
    assert numbers(average)[::3] == (-8.5, "2 data sets")
    cross = {"trainer": "ZeroshotCLIP", "protocol": "cross", "dataset": "dtd"}
    assert numbers(found(capsys, tmp_path, "CoOp", **cross))[::3] == (-1.5, "2 seeds")
    _, err = run(capsys, tmp_path, "--baseline", "CoOp")
    (line,) = (line for line in err.splitlines() if line.startswith("no difference"))
    assert "ZeroshotCLIP" in line and line.endswith("several numbers of shots (4, 8) on dtd")


@pytest.mark.parametrize("write", [write_run, write_record])
def test_a_method_without_parameters_that_reads_images_is_not_zero_shot(write, tmp_path, capsys):
    """Tip-Adapter's cache is of the images of its shots and seed."""
    unit = 1 if write is write_run else 1000  # of percent: records count images
    for shots, start in ((1, 50), (4, 60)):
        for seed in (1, 2, 3):
            for trainer, ahead in (("TipAdapter", 2 * seed), ("CoOp", 0)):
                folder = tmp_path / "dtd" / trainer / f"tiny_{shots}shots" / f"seed{seed}"
                counts = {"parameters": 2048 if trainer == "CoOp" else 0}
                counts |= {"seed": seed, "shots": shots} if write is write_record else {}
                write(folder, unit * (start + seed + ahead), trainer, "dtd", **counts)
    half = T[2] * 2 / math.sqrt(3)
    for shots, mean in ((1, 56.0), (4, 66.0)):
        record = found(capsys, tmp_path, "CoOp", trainer="TipAdapter", shots=shots)
        assert (record["accuracy"], record["parameters"]) == (pytest.approx(mean), 0)
        assert numbers(record)[0] == pytest.approx(4.0)
        assert numbers(record)[1:3] == pytest.approx((4 - half, 4 + half), abs=1e-3)


def test_averages_are_over_data_sets(tmp_path, capsys):
    for number, dataset in enumerate(("dtd", "eurosat", "ucf101")):
        few_shot(tmp_path, dataset, "CoOp", 16, {1: 50.0 + number, 2: 60.0})
        few_shot(tmp_path, dataset, "MMLoP", 16, {1: 51.0 + 2 * number, 2: 61.0 + number})
    few_shot(tmp_path, "food101", "MMLoP", 16, {1: 99.0})
    average = "average over 11 data sets"
    record = found(capsys, tmp_path, "CoOp", trainer="MMLoP", dataset=average)
    # means of the data sets' differences: 1, 2 and 3
    half = T[2] / math.sqrt(3)
    assert numbers(record)[0] == 2 and numbers(record)[3:] == ("3 data sets", "within noise")
    assert numbers(record)[1:3] == pytest.approx((2 - half, 2 + half), abs=1e-3)
    assert record["averaged"] == "4/11", "the difference is over those that both have"
    _, err = run(capsys, tmp_path, "--baseline", "CoOp")
    assert [line for line in err.splitlines() if line.startswith("no difference")] == [
        "no difference: Few-shot, MMLoP vit_b16 (16 shots): CoOp has no seed in common, or no "
        "result, on food101"
    ]


def test_every_format_has_them(tmp_path, capsys):
    few_shot(tmp_path, "imagenet", "CoOp", 16, {1: 70.0, 2: 71.0, 3: 72.0})
    few_shot(tmp_path, "imagenet", "MMLoP", 16, {1: 72.0, 2: 73.1, 3: 73.9})
    transfer(tmp_path, "dtd", "CoOp", {1: 40.0})
    transfer(tmp_path, "dtd", "MMLoP", {1: 41.0})
    for style, mark in (("github", "### "), ("latex", "% ")):
        out, _ = run(capsys, tmp_path, "--baseline", "CoOp", "--format", style)
        title = f"{mark}Few-shot: difference from CoOp\n"
        # LaTeX says there what several lines share
        end = "\n" if style == "github" else "; config vit_b16, 16 shots, metric accuracy\n"
        assert title in out
        assert f"{mark}Cross-dataset from imagenet: difference from CoOp{end}" in out
        line = next(line for line in out.split(title)[1].splitlines() if "MMLoP" in line)
        cells = [cell.strip(" \\") for cell in line.strip("|").split("|&"[style == "latex"])]
        mean, interval = "+2.00", "+1.75 to +2.25"
        if style == "latex":
            mean, interval = "$+2.00$", r"$[+1.75,\,+2.25]$"
        assert cells[3:7] == ["imagenet", "accuracy", "3 seeds", mean]
        assert cells[7:] == [interval, "beyond noise"]
        assert "one pair" in out, "no interval is made of one seed"
    out, _ = run(capsys, tmp_path, "--baseline", "CoOp", "--format", "csv")
    lines = list(csv.DictReader(io.StringIO(out)))
    given = [line for line in lines if line["accuracy_difference"]]
    assert {line["trainer"] for line in given} == {"MMLoP"} and len(given) == 3
    assert {line["accuracy_difference_verdict"] for line in given} == {"one pair", "beyond noise"}


@pytest.mark.parametrize(
    ("baseline", "message"),
    [
        ("MMLop2", "no results of 'MMLop2'; there are: CoOp, MMLoP; did you mean MMLoP?"),
        ("CoOp", "CoOp has several configurations (Few-shot, dtd): name one of CoOp/a, CoOp/b"),
        ("CoOp/c", "CoOp has no configuration 'c'; there are: a, b; did you mean"),
    ],
)
def test_a_baseline_that_cannot_be_gets_one_line(baseline, message, tmp_path, capsys):
    for config in ("a", "b"):
        few_shot(tmp_path, "dtd", "CoOp", 16, {1: 50.0}, config=config)
    few_shot(tmp_path, "dtd", "MMLoP", 16, {1: 51.0})
    assert parse_test_res.main(["--output", str(tmp_path), "--baseline", baseline]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert printed.err.startswith("error: --baseline: ")
    assert message.partition("; did")[0] in printed.err
    assert numbers(found(capsys, tmp_path, "coop/a", trainer="MMLoP"))[0] == 1
    assert numbers(found(capsys, tmp_path, "coop/a", trainer="CoOp", config="b"))[0] == 0


def all_classes(
    output: Path, trainer: str, seed: int, correct: int, dataset: str = "dtd", **more: float
) -> None:
    """Write the record of a test on all classes, with further metrics."""
    folder = output / "base2new/test_all" / dataset / "shots_16" / trainer / f"vit_b16/seed{seed}"
    write_record(folder, correct, trainer, dataset, seed=seed, of=output)
    path = folder / "result.json"
    record = json.loads(path.read_text())
    record["result"]["metrics"] |= more
    path.write_text(json.dumps(record))


def test_base_and_new_together(tmp_path, capsys):
    values = {"base_in_all": 60.0, "new_in_all": 40.0, "H_in_all": 48.0, "auroc": 80.0}
    for seed in (1, 2):
        more = {name: value + seed for name, value in values.items()}
        all_classes(tmp_path, "CoOp", seed, 50_000 + seed * 1000, **more)
    all_classes(tmp_path, "MMLoP", 1, 53_000)
    record = found(capsys, tmp_path, "CoOp", trainer="CoOp")
    assert (record["protocol"], record["all"], record["auroc"]) == ("base2new_all", 51.5, 81.5)
    assert record["H_in_all"] == pytest.approx(2 * 61.5 * 41.5 / 103)
    record = found(capsys, tmp_path, "CoOp", trainer="MMLoP")
    assert numbers(record, "all")[0] == 2 and "auroc_difference" not in record
    out, _ = run(capsys, tmp_path)
    assert "### Base and new together, dtd (accuracy, %)" in out
    header, _, coop, mmlop = (line for line in out.splitlines() if line.startswith("|"))
    names = [cell.strip() for cell in header.strip("|").split("|")]
    assert names[3:] == ["seeds", "all", "base_in_all", "new_in_all", "H_in_all", "auroc"]
    assert "61.50 ± 0.50" in coop and mmlop.count(" - ") == 4
    # another metric stands alone, in its unit
    all_classes(tmp_path, "CoOp", 3, 50_000, nll=1.234)
    assert (
        "### Base and new together, dtd (nll, nats)" in run(capsys, tmp_path, "--keyword", "nll")[0]
    )
    folder = tmp_path / "base2new/test_all/dtd/shots_16/CoOp/vit_b16"
    assert parse_test_res.main([str(folder), "--keyword", "nll"]) == 0
    assert "* nll: 1.23 nats +- 0.00 nats\n" in capsys.readouterr().out
    (folder / "seed3/result.json").unlink()
    assert "auroc" not in run(capsys, tmp_path, "--keyword", "error")[0]
    # two data sets make an average, whose H is that of the averages
    for seed in (1, 2):
        more = {name: value + seed for name, value in (values | {"base_in_all": 80.0}).items()}
        all_classes(tmp_path, "CoOp", seed, 50_000, "eurosat", **more)
    average = found(capsys, tmp_path, "CoOp", dataset="average over 11 data sets")
    assert (average["base_in_all"], average["new_in_all"]) == (71.5, 41.5)
    assert average["H_in_all"] == pytest.approx(2 * 71.5 * 41.5 / 113)
