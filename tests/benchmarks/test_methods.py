"""The comparison of all methods: real runs of every protocol, and what the document gets."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import drift, methods, rates
from benchmarks import embedded_tables as tables
from benchmarks.sweep import Run, missing, results_of, settings_of, sweep
from support.filled import fill, fill_document

SHORT = ("OPTIM.MAX_EPOCH", 1)


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> tuple[list[Run], list[dict]]:
    folder = tmp_path_factory.mktemp("sweep")
    runs = [
        Run("CoOp", "CoOp", "digits", 1, SHORT, shots=2),
        Run("CoOp", "CoOp", "digits", 1, SHORT, shots=2, protocol="fewshot"),
        Run("ZeroshotCLIP", "ZeroshotCLIP", "digits", 1, protocol="fewshot"),
        Run("CoOp", "CoOp", "digits", 1, SHORT, shots=2, protocol="transfer", targets=("shapes",)),
    ]
    out = folder / "results.jsonl"
    first = sweep(runs, out, folder / "data", jobs=1)
    assert sweep(runs, out, folder / "data", jobs=1) == first == results_of(runs, out)
    assert len(out.read_text().splitlines()) == len(runs)
    # a run with other settings is another run, whoever changed them
    assert missing(runs, out) == []
    changed = replace(runs[0], pairs=("OPTIM.MAX_EPOCH", 2))
    assert missing([changed], out) == [changed]
    stale = [{**result, "settings": "another"} for result in first]
    out.write_text("".join(f"{json.dumps(result)}\n" for result in stale))
    assert missing(runs, out) == runs
    # a killed sweep leaves half a line: that run is missing, the others are not
    whole = "".join(f"{json.dumps(result)}\n" for result in first)
    out.write_text(whole[:-40])
    assert missing(runs, out) == runs[-1:]
    assert sweep(runs, out, folder / "data", jobs=1)[:-1] == first[:-1]
    assert len(out.read_text().splitlines()) == len(runs)
    return runs, first


def written(tmp_path, *lines: str | bytes) -> Path:
    """A file of results with a line each."""
    out = tmp_path / "results.jsonl"
    out.write_bytes(b"".join(o if isinstance(o, bytes) else f"{o}\n".encode() for o in lines))
    return out


@pytest.mark.parametrize(
    "broken",
    [
        '{"label": "CoOp", "met',
        "null",
        "[1]",
        "7",
        "<<<<<<< HEAD",
        "[" * 100_000,
        b"\x80\xff\x00\n",
    ],
    ids=["torn", "null", "list", "number", "conflict", "deep", "binary"],
)
def test_a_line_that_is_no_result_is_named(swept, tmp_path, broken):
    runs, (first, *others) = swept
    out = written(tmp_path, json.dumps(first), "", broken, *map(json.dumps, others))
    kept = out.read_bytes()
    for read in (missing, results_of, lambda runs, out: sweep(runs, out, tmp_path, jobs=1)):
        with pytest.raises(ValueError, match=r"line 3.*delete the line") as error:
            read(runs, out)
        assert str(out) in str(error.value) and "\n" not in str(error.value)
    assert out.read_bytes() == kept


@pytest.mark.parametrize(
    ("run", "change"),
    [
        *[(0, {"base": float("nan")}), (0, {"new": 10**400}), (0, {"new": None}), (0, {"hm": ...})],
        *[(1, {"all": float("inf")}), (1, {"all": ...}), (1, {"all": "90"}), (2, {"all": None})],
        *[(3, {"on": ...}), (3, {"on": {"shapes": float("nan")}}), (3, {"on": [1]})],
    ],
)
def test_a_run_without_its_accuracies_is_not_there(swept, tmp_path, run, change):
    runs, results = swept
    changed = {**results[run], **change}
    changed = {key: value for key, value in changed.items() if value is not ...}
    lines = [*results[:run], changed, *results[run + 1 :]]
    out = written(tmp_path, *map(json.dumps, lines))
    assert missing(runs, out) == [runs[run]]
    assert results_of(runs, out) == [*results[:run], *results[run + 1 :]]


def test_what_is_left_is_said_of_the_parts_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(methods, "OUT", tmp_path / "none.jsonl")
    for words, parts in (
        (["--only", "zeroshot", "ablation"], ["zeroshot", "ablation"]),
        ([], list(methods.PARTS)),
    ):
        assert methods.main(["--left", *words]) == 0
        said = capsys.readouterr().out.splitlines()
        assert [line.partition(":")[0] for line in said] == parts
        assert all(": 0 of " in line for line in said)


@pytest.fixture()
def results(swept):
    return swept[1]


def test_fingerprint_of_settings(swept):
    run = swept[0][0]
    assert settings_of(run) == settings_of(replace(run, label="a name"))
    for change in ({"shots": 4}, {"seed": 2}, {"pairs": ("OPTIM.LR", 0.5)}, {"data": "shapes"}):
        assert settings_of(replace(run, **change)) != settings_of(run)


def test_protocols(results):
    base2new, few_shot, zero_shot, transfer = results
    base, new, hm = (base2new[key] for key in ("base", "new", "hm"))
    assert hm == pytest.approx(2 * base * new / (base + new))
    assert "base" not in few_shot
    assert base2new["parameters"] == few_shot["parameters"] == 4 * 64
    assert zero_shot["parameters"] == 0
    # all ten classes are harder than the base half
    assert 10 < few_shot["all"] < base
    assert 10 < zero_shot["all"] < 90
    # the same training, tested on something else as well
    assert transfer["all"] == few_shot["all"]
    assert list(transfer["on"]) == ["shapes"]
    assert 100 / 36 < transfer["on"]["shapes"] < 90


def test_rows(results):
    rows = methods.rows_of(results)
    found = {(r.protocol, r.dataset, r.method.trainer, r.method.shots): r for r in rows}
    assert found["base2new", "digits", "CoOp", 2].mean["H"] == pytest.approx(results[0]["hm"])
    assert found["fewshot", "digits", "CoOp", 2].parameters == 256
    assert found["fewshot", "digits", "ZeroshotCLIP", 0].mean == {"accuracy": results[2]["all"]}
    moved = found["cross", "shapes", "CoOp", 2]
    assert moved.method.source == "digits"
    assert moved.mean["accuracy"] == results[3]["on"]["shapes"]
    # its source stands beside it
    assert found["cross", "digits", "CoOp", 2].mean["accuracy"] == results[3]["all"]


def test_few_shot_table(results):
    rows = methods.rows_of(results[1:3])
    head, _, *lines = tables.shots_table(rows, "digits").splitlines()
    assert [word.strip() for word in head.split("|")[1:-1]] == ["method", "0 shots", "2 shots"]
    accuracy = f"{results[1]['all']:.2f}"
    assert any("CoOp" in line and line.rstrip(" |").endswith(accuracy) for line in lines)


def made_up(**halves: list[tuple[float, float]]) -> list[dict]:
    """Results of methods on two data sets, base and new by seed."""
    return [
        {
            **{"label": m, "method": m, "data": data, "seed": seed, "config": "tiny", "shots": 16},
            **{"protocol": "base2new", "parameters": 7 * (m != "ZeroshotCLIP")},
            **{"base": base + shift, "new": new + shift},
        }
        for m, of_seeds in halves.items()
        for data, shift in (("letters", 0.0), ("symbols", 10.0))
        for seed, (base, new) in enumerate(of_seeds, start=1)
    ]


def cells(table: str) -> dict[str, dict[str, str]]:
    """A table as first cell of a line -> column -> cell."""
    head, _, *lines = (line.split("|")[1:-1] for line in table.splitlines())
    names = [name.strip() for name in head]
    found = [dict(zip(names, map(str.strip, line), strict=True)) for line in lines]
    return {line[names[0]]: line for line in found}


def test_where_a_method_stands():
    rows = methods.rows_of(
        made_up(
            ZeroshotCLIP=[(40.0, 40.0)],
            CoOp=[(50.0, 50.0), (51.0, 51.0), (52.0, 52.0)],
            PromptSRC=[(53.0, 53.0), (51.0, 51.0), (57.0, 57.0)],
            MMLoP=[(60.0, 60.0), (60.5, 60.5), (62.0, 62.0)],
        )
    )
    standing = cells(tables.standing_table(rows))
    assert list(standing) == ["MMLoP", "PromptSRC", "CoOp", "ZeroshotCLIP"]
    # 10, 9.5 and 10 points above CoOp: t of 2 degrees, 4.303, times 0.289 / sqrt(3)
    assert standing["MMLoP"]["H - CoOp"] == "**+9.8 (+9.1 to +10.6)**"
    assert standing["PromptSRC"]["H - CoOp"] == "+2.7 (-3.6 to +8.9)"
    assert standing["CoOp"]["H - CoOp"] == ""
    # one run of zero-shot CLIP stands for every seed
    assert standing["CoOp"]["H - ZeroshotCLIP"].startswith("**+11.0")
    against = cells(tables.against_table(rows, ["letters", "symbols"]))
    assert list(against) == ["PromptSRC", "CoOp", "ZeroshotCLIP"]
    assert against["CoOp"]["letters"] == against["CoOp"]["average, over seeds"]
    assert against["CoOp"]["over data sets"].startswith("**+9.8 (+9.8 to +9.8")
    apart = cells(tables.separation_table(rows, ["letters"], "MMLoP", "CoOp"))
    assert apart["letters"]["H"].startswith("**+9.8") and "average" in apart


def test_directions_of_an_ablation():
    runs = list(tables.PAPER_ROWS["steps"])
    values = [50.0, 49.0, 49.2, 51.0, 45.0]
    by_run = {
        run: [(value, value), (value + 1, value + 1), (value + 2, value + 2 + (run == runs[2]))]
        for run, value in zip(runs, values, strict=True)
    }
    rows = methods.rows_of(made_up(**by_run))
    table = tables.ablation_table(rows, "steps", ("letters", "symbols"), tables_of_the_paper())
    lines = cells(table)
    assert [lines[run]["direction"] for run in runs] == [
        *("", "the same", "not told apart", "the same", "the other one")
    ]
    assert lines[runs[1]]["in the paper"] == "-0.5"  # 77.51 to 77.06
    assert lines[runs[4]]["paper"] == "83.8 / 76.0 / 79.7"


def tables_of_the_paper():
    from results.published.figures import read_published

    return read_published()


def test_the_paper_has_every_run_of_the_ablation():
    for table, runs in methods.ABLATION.items():
        paper = tables.paper_values(tables_of_the_paper(), table)
        assert list(tables.PAPER_ROWS[table]) == list(runs)
        assert all(paper[run].keys() == {"base", "new", "H"} for run in runs)


def test_shipped_learning_rates_are_those_chosen():
    """The data set that they are chosen on is none of those that are reported."""
    kept = results_of(rates.runs(), rates.OUT)
    chosen = {method: rates.best(means) for method, means in rates.found(kept).items()}
    assert chosen.keys() == rates.METHODS.keys()
    assert rates.FOR_SETTINGS not in (*methods.DATA, *methods.VARIANTS)
    for method, rate in chosen.items():
        assert rates.shipped(method) == rate, method
    assert rates.table(kept) in methods.DOCUMENT.read_text("utf-8")


def test_documents_have_the_tables_of_the_kept_results(tmp_path, monkeypatch):
    shipped = {name: getattr(methods, name).read_text("utf-8") for name in ("DOCUMENT", "README")}
    for name, text in shipped.items():
        text = re.sub(r"(?<=-->\n)\|.*?(?=<!-- end -->)", "", text, flags=re.DOTALL)
        (tmp_path / name).write_text(text, "utf-8")
        monkeypatch.setattr(methods, name, tmp_path / name)
    for draw in ("save_standing", "save_plots"):
        monkeypatch.setattr(methods, draw, lambda *_: None)
    for runs in methods.PARTS.values():
        assert not missing(runs(), methods.OUT)
    methods.fill(set(methods.PARTS))
    kept = [json.loads(line) for line in rates.OUT.read_text().splitlines()]
    fill_document(tmp_path / "DOCUMENT", {"rates": rates.table(kept)})
    moved = drift.drift_table(json.loads(drift.OUT.read_text()))
    fill_document(tmp_path / "DOCUMENT", {"drift": moved})
    for name, text in shipped.items():
        assert (tmp_path / name).read_text("utf-8") == text


def test_document_has_a_place_for_every_table():
    text = methods.DOCUMENT.read_text("utf-8")
    names = ("rates", "standing", "against", "separation", "base2new", "dg", "xd")
    names += ("fewshot", "fewshot-paper", *methods.ABLATION)
    parts = {name: f"{name}\n" for name in names}
    filled = fill(text, parts)
    assert fill(filled, parts) == filled
    for part in parts.values():
        assert f"-->\n{part}<!-- end -->" in filled
    with pytest.raises(ValueError, match="one place for something, has 0"):
        fill(text, {"something": ""})
