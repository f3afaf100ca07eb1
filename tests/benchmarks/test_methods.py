"""The comparison of all methods: real runs of both protocols, and what the document gets."""

from __future__ import annotations

import json

import pytest

from benchmarks import methods
from benchmarks.documents import fill
from benchmarks.sweep import Run, sweep


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("sweep")
    short = ("OPTIM.MAX_EPOCH", 1)
    runs = [
        Run("CoOp", "CoOp", "digits", 1, short, shots=2),
        Run("CoOp", "CoOp", "digits", 1, short, shots=2, protocol="fewshot"),
        Run("ZeroshotCLIP", "ZeroshotCLIP", "digits", 1, protocol="fewshot"),
    ]
    first = sweep(runs, folder / "results.jsonl", folder / "data", jobs=1)
    assert sweep(runs, folder / "results.jsonl", folder / "data", jobs=1) == first
    assert len((folder / "results.jsonl").read_text().splitlines()) == 3
    return first


def test_protocols(results):
    base2new, few_shot, zero_shot = results
    base, new, hm = (base2new[key] for key in ("base", "new", "hm"))
    assert hm == pytest.approx(2 * base * new / (base + new))
    assert "base" not in few_shot
    assert base2new["parameters"] == few_shot["parameters"] == 4 * 64
    assert zero_shot["parameters"] == 0
    # all ten classes are harder than the base half
    assert 10 < few_shot["all"] < base
    assert 10 < zero_shot["all"] < 90


def test_rows(results):
    rows = methods.rows_of(results)
    by_method = {(row.protocol, row.method.trainer): row for row in rows}
    assert by_method["base2new", "CoOp"].mean["H"] == pytest.approx(results[0]["hm"])
    assert by_method["fewshot", "CoOp"].method.shots == 2
    assert by_method["fewshot", "ZeroshotCLIP"].method.shots == 0
    assert by_method["fewshot", "CoOp"].parameters == 256


def test_few_shot_table(results):
    rows = methods.rows_of(results[1:])
    head, _, *lines = methods.shots_table(rows).splitlines()
    assert [word.strip() for word in head.split("|")[1:-1]] == ["method", "0 shots", "2 shots"]
    accuracy = f"{results[1]['all']:.2f}"
    assert any("CoOp" in line and line.rstrip(" |").endswith(accuracy) for line in lines)


def test_readme_has_the_averages_that_are_kept():
    kept = (methods.ROOT / "benchmarks/results/methods.jsonl").read_text("utf-8").splitlines()
    runs = methods.base_to_new_runs()
    labels = {run.label for run in runs}
    results = [result for line in kept if (result := json.loads(line))["label"] in labels]
    of_protocol = [result for result in results if result["protocol"] == "base2new"]
    table = methods.averages_table(methods.rows_of(of_protocol))
    assert table in methods.README.read_text("utf-8")
    shown = [line.split("|")[1].strip() for line in table.splitlines()[2:]]
    assert sorted(shown) == sorted(labels)


def test_document_has_a_place_for_every_table():
    text = methods.DOCUMENT.read_text("utf-8")
    parts = {name: f"{name}\n" for name in ("base2new", "fewshot", *methods.ABLATION)}
    filled = fill(text, parts)
    assert fill(filled, parts) == filled
    for part in parts.values():
        assert f"-->\n{part}<!-- end -->" in filled
    with pytest.raises(ValueError, match="one place for something, has 0"):
        fill(text, {"something": ""})
