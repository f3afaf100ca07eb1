"""Tables out of run folders of all protocols, checked by value."""

from __future__ import annotations

import csv
import io
import json
from statistics import fmean, pstdev

import pytest

import parse_test_res
from protocols import ELEVEN, VARIANTS
from results.backbones import backbone_name
from results.latex import SHORT
from results.logs import read_facts
from results.rows import Row
from results.runs import Method
from results.tables import MAX_WIDTH

from .writing import base2new, few_shot, transfer, write_record, write_run


def run(capsys, output, *words: str) -> tuple[str, str]:
    """Standard output and standard error of the command."""
    assert parse_test_res.main(["--output", str(output), *words]) == 0
    captured = capsys.readouterr()
    return captured.out, captured.err


def records(capsys, output, *words: str) -> list[dict]:
    return json.loads(run(capsys, output, "--format", "json", *words)[0])


def one(found: list[dict], **wanted) -> dict:
    (record,) = [r for r in found if r.items() >= wanted.items()]
    return record


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def section(text: str, title: str) -> str:
    return text.split(f"### {title} ")[1].split("\n### ")[0]


def test_transfer_averages_the_targets_only(tmp_path, capsys):
    run_of = {"config": "vit_b16_cross", "parameters": 3852}
    few_shot(tmp_path, "imagenet", "MMLoP", 16, {1: 70.0, 2: 72.0}, **run_of)
    for number, dataset in enumerate(ELEVEN[1:]):
        transfer(tmp_path, dataset, "MMLoP", {1: 50.0 + number, 2: 60.0 + number}, **run_of)
    for number, dataset in enumerate(VARIANTS):
        transfer(tmp_path, dataset, "MMLoP", {1: 40.0 + number, 2: 44.0 + number}, **run_of)
    found = records(capsys, tmp_path)
    assert {r["protocol"] for r in found} == {"fewshot", "cross", "dg"}
    trained = one(found, protocol="fewshot")
    assert (trained["dataset"], trained["accuracy"], trained["shots"]) == ("imagenet", 71.0, 16)
    average = one(found, protocol="cross", dataset="average over 10 targets")
    assert average["accuracy"] == pytest.approx(fmean(range(50, 60)) + 5)
    assert average["accuracy_std"] == pytest.approx(5)
    assert average["averaged"] == "10/10"
    assert average["parameters"] == 3852
    for protocol in ("cross", "dg"):
        source = one(found, protocol=protocol, dataset="imagenet")
        assert (source["source"], source["accuracy"]) == ("imagenet", 71.0)
    average = one(found, protocol="dg", dataset="average over 4 variants")
    assert average["accuracy"] == pytest.approx(fmean([40, 41, 42, 43]) + 2)

    out, err = run(capsys, tmp_path)
    assert err == ""
    text = section(out, "Domain generalisation from imagenet, 16 shots")
    header, _, *lines = (cells(line) for line in text.splitlines() if line.startswith("|"))
    assert header == ["data set", "MMLoP"]
    names = ["imagenet (source)", *VARIANTS, "average over 4 variants"]
    assert [line[0] for line in lines] == names
    assert lines[0][1] == "71.00 ± 1.00"
    assert lines[-1][1] == "43.50 ± 2.00"


def test_source_stays_in_few_shot_where_it_is_one_of_several_data_sets(tmp_path, capsys):
    for dataset in ("imagenet", "dtd"):
        few_shot(tmp_path, dataset, "CoOp", 16, {1: 70.0}, config="vit_b16_ep50")
    transfer(tmp_path, "dtd", "CoOp", {1: 40.0}, config="vit_b16_ep50")
    found = records(capsys, tmp_path)
    assert one(found, protocol="fewshot", dataset="imagenet")["accuracy"] == 70
    assert one(found, protocol="cross", dataset="imagenet")["accuracy"] == 70
    assert one(found, protocol="cross", dataset="dtd")["accuracy"] == 40


def test_transfer_from_another_source(tmp_path, capsys):
    few_shot(tmp_path, "shapes", "CoOp", 16, {1: 50.0}, config="tiny", backbone="tiny")
    tiny = {"config": "tiny", "backbone": "tiny"}
    transfer(tmp_path, "digits", "CoOp", {1: 30.0}, source="shapes", **tiny)
    transfer(tmp_path, "imagenet", "CoOp", {1: 10.0}, source="shapes", **tiny)
    transfer(tmp_path, "digits", "CoOp", {1: 35.0}, **tiny)
    found = records(capsys, tmp_path)
    assert one(found, source="shapes", dataset="shapes")["accuracy"] == 50
    assert one(found, source="shapes", dataset="digits")["accuracy"] == 30
    assert one(found, source="imagenet", dataset="digits")["accuracy"] == 35
    out, _ = run(capsys, tmp_path)
    assert "shapes (source)" in section(out, "Cross-dataset from shapes, 16 shots")
    assert "shapes" not in section(out, "Cross-dataset from imagenet, 16 shots")


def test_zero_shot_stands_in_every_table_of_shots(tmp_path, capsys):
    for shots in (1, 4):
        few_shot(tmp_path, "dtd", "CoOp", shots, {1: 60.0 + shots, 2: 62.0 + shots})
    few_shot(tmp_path, "dtd", "ZeroshotCLIP", 16, {1: 44.0})
    # upstream's folder of zero-shot runs
    write_run(tmp_path / "ZeroshotCLIP/vit_b16/imagenet_a", 47.0, "ZeroshotCLIP", "imagenet_a")
    write_run(tmp_path / "ZeroshotCLIP/vit_b16/imagenet", 66.0, "ZeroshotCLIP", "imagenet")
    out, _ = run(capsys, tmp_path)
    for title in ("Few-shot, 1 shot", "Few-shot, 4 shots"):
        (line,) = [x for x in section(out, title).splitlines() if x.startswith("| ZeroshotCLIP")]
        assert "44.00" in cells(line)
    assert "Few-shot, 16 shots" not in out
    found = records(capsys, tmp_path)
    zero = one(found, protocol="fewshot", dataset="dtd", trainer="ZeroshotCLIP")
    assert (zero["shots"], zero["parameters"]) == (0, 0)
    dg = one(found, protocol="dg", dataset="imagenet_a")
    assert (dg["accuracy"], dg["source"]) == (47.0, "imagenet")
    assert one(found, protocol="dg", dataset="imagenet")["accuracy"] == 66.0


def test_trainings_on_all_images(tmp_path, capsys):
    for shots in (2, "all"):
        few_shot(tmp_path, "dtd", "CoOp", shots, {1: 60.0, 2: 64.0})
    run_of = {"config": "vit_b16_xd", "shots": "all"}
    base2new(tmp_path, "dtd", "CoOp", {1: (80.0, 60.0)}, **run_of)
    few_shot(tmp_path, "imagenet", "MMLoP", "all", {1: 70.0}, config="vit_b16_xd")
    transfer(tmp_path, "dtd", "MMLoP", {1: 50.0}, **run_of)
    out, err = run(capsys, tmp_path)
    assert err == ""
    (line,) = (x for x in section(out, "Base-to-new, dtd").splitlines() if "CoOp" in x)
    assert cells(line)[2:4] == ["all", "1"]
    titles = [line for line in out.splitlines() if line.startswith("###")]
    assert titles[1:] == [
        "### Few-shot, 2 shots (accuracy, %)",
        "### Few-shot, all shots (accuracy, %)",
        "### Cross-dataset from imagenet, all shots (accuracy, %)",
    ]
    found = records(capsys, tmp_path)
    assert one(found, protocol="fewshot", dataset="dtd", shots="all")["accuracy"] == 62
    assert one(found, protocol="cross", dataset="dtd", shots="all")["accuracy"] == 50
    compared, _ = run(capsys, tmp_path, "--compare")
    assert "all shots, published 16" in compared


def test_fewer_images_than_shots_are_told(tmp_path, capsys):
    few_shot(tmp_path, "dtd", "CoOp", 16, {1: 60.0})
    few_shot(tmp_path, "eurosat", "CoOp", 16, {1: 60.0})
    log = tmp_path / "dtd/CoOp/vit_b16_16shots/seed1/log.txt"
    said = "Note: no class has 16 training images: all are used, 4 to 6 per class\n"
    log.write_text(log.read_text().replace("Loading CLIP", said + "Loading CLIP"))
    out, _ = run(capsys, tmp_path)
    line = "- CoOp vit_b16 (16 shots): dtd has fewer training images, 4 to 6 per class\n"
    assert out.count("fewer training images") == 1 and line in out
    found = records(capsys, tmp_path)
    assert one(found, dataset="dtd")["images_per_class"] == "4 to 6"
    assert "images_per_class" not in one(found, dataset="eurosat")


def test_trainings_without_a_test_are_named(tmp_path, capsys):
    few_shot(tmp_path, "dtd", "CoOp", 16, {1: 60.0, 2: 60.0})
    log = tmp_path / "dtd/CoOp/vit_b16_16shots/seed2/log.txt"
    trained = log.read_text().partition("Evaluate on")[0]
    log.write_text(trained + "Not tested: no test images\nElapsed: 0:00:16\n")
    _, err = run(capsys, tmp_path)
    assert err == f"skipped: {log}: Not tested: no test images\n"


def test_a_transfer_takes_nothing_out_of_the_few_shot_table(tmp_path, capsys):
    tiny = {"config": "tiny", "backbone": "tiny"}
    for shots in (1, 16):
        few_shot(tmp_path, "digits", "MMLoP", shots, {1: 80.0 + shots}, **tiny)
    few_shot(tmp_path, "digits", "ZeroshotCLIP", 1, {1: 70.0}, **tiny)
    before = section(run(capsys, tmp_path)[0], "Few-shot, 16 shots")
    transfer(tmp_path, "shapes", "MMLoP", {1: 40.0}, source="digits", **tiny)
    transfer(tmp_path, "shapes", "ZeroshotCLIP", {1: 45.0}, source="digits", **tiny)
    out, err = run(capsys, tmp_path, "--plot", str(tmp_path / "figures"))
    assert "left out" not in err
    assert section(out, "Few-shot, 16 shots") == before
    found = records(capsys, tmp_path)
    digits = [r for r in found if (r["protocol"], r["dataset"]) == ("fewshot", "digits")]
    assert {(r["trainer"], r["shots"]): r["accuracy"] for r in digits} == {
        ("MMLoP", 1): 81.0,
        ("MMLoP", 16): 96.0,
        ("ZeroshotCLIP", 0): 70.0,
    }
    cross = {(r["trainer"], r["dataset"]): r["accuracy"] for r in found if r["protocol"] == "cross"}
    assert cross == {
        ("MMLoP", "digits"): 96.0,
        ("MMLoP", "shapes"): 40.0,
        ("ZeroshotCLIP", "digits"): 70.0,
        ("ZeroshotCLIP", "shapes"): 45.0,
    }


def test_zero_shot_results_of_one_protocol_stand_in_the_others(tmp_path, capsys):
    for dataset in ("imagenet", "dtd"):
        few_shot(tmp_path, dataset, "CoOp", 16, {1: 60.0})
    transfer(tmp_path, "eurosat", "CoOp", {1: 40.0})
    transfer(tmp_path, "dtd", "ZeroshotCLIP", {1: 44.0})  # beside targets
    few_shot(tmp_path, "eurosat", "ZeroshotCLIP", 16, {1: 48.0})  # beside shots
    write_run(tmp_path / "ZeroshotCLIP/vit_b16/imagenet", 66.0, "ZeroshotCLIP", "imagenet")
    found = [r for r in records(capsys, tmp_path) if r["trainer"] == "ZeroshotCLIP"]
    for protocol, wanted in (
        ("fewshot", {"imagenet": 66.0, "dtd": 44.0, "eurosat": 48.0}),
        ("cross", {"imagenet": 66.0, "dtd": 44.0, "eurosat": 48.0}),
    ):
        mine = [r for r in found if r["protocol"] == protocol and "averaged" not in r]
        assert {r["dataset"]: r["accuracy"] for r in mine} == wanted


@pytest.mark.parametrize("write", [write_run, write_record])
def test_a_zero_shot_result_is_one_whatever_the_seed(write, tmp_path, capsys):
    def zero_shot(folder: str, dataset: str, percent: float, seed: int = 1, **more) -> None:
        logged = write is write_run
        more = {} if logged else {"seed": seed, **more}
        number = percent if logged else round(1000 * percent)
        write(tmp_path / folder, number, "ZeroshotCLIP", dataset, **more)

    zero_shot("digits/ZeroshotCLIP/tiny_16shots/seed1", "digits", 66.36)
    zero_shot("ZeroshotCLIP/tiny/digits", "digits", 66.36)
    zero_shot("letters/ZeroshotCLIP/tiny_16shots/seed2", "letters", 30.0, seed=2)
    zero_shot("letters/ZeroshotCLIP/tiny_16shots/seed3", "letters", 30.0, seed=3)
    for part, percent in (("train_base", 60.0), ("test_new", 40.0)):
        for seed in (1, 2):
            folder = f"base2new/{part}/digits/shots_16/ZeroshotCLIP/tiny/seed{seed}"
            zero_shot(folder, "digits", percent, seed, part=part.split("_")[1])
    page = tmp_path / "page.html"
    out, err = run(capsys, tmp_path, "--html", str(page))
    assert err == f"wrote {page}\n"
    (line,) = (x for x in section(out, "Few-shot, zero-shot").splitlines() if "ZeroshotCLIP" in x)
    assert cells(line) == ["ZeroshotCLIP", "tiny", "1", "66.36", "30.00", "48.18"]
    assert "±" not in out
    found = records(capsys, tmp_path)
    assert {record["seeds"] for record in found} == {1}
    base_and_new = one(found, protocol="base2new")
    assert (base_and_new["H"], base_and_new["shots"]) == (pytest.approx(48), 0)
    # each run counts, or says that its result is there
    text = page.read_text("utf-8")
    assert "left out" not in text and text.count("2 same result again</span>") == 2
    # a result that differs is another one, and is told
    zero_shot("letters/ZeroshotCLIP/tiny_16shots/seed3", "letters", 32.0, seed=3)
    record = one(records(capsys, tmp_path), dataset="letters")
    assert (record["seeds"], record["accuracy"]) == (2, pytest.approx(31.0))
    zero_shot("ZeroshotCLIP/tiny/digits", "digits", 67.0)
    _, err = run(capsys, tmp_path)
    assert err.startswith(f"left out: {tmp_path}/ZeroshotCLIP/tiny/digits: ")
    assert err.count("\n") == 1


def test_a_transferred_zero_shot_result_that_differs_is_named(tmp_path, capsys):
    few_shot(tmp_path, "dtd", "ZeroshotCLIP", 16, {1: 44.0})
    transfer(tmp_path, "dtd", "ZeroshotCLIP", {1: 45.0})
    few_shot(tmp_path, "imagenet", "CoOp", 16, {1: 70.0})
    transfer(tmp_path, "dtd", "CoOp", {1: 45.0})
    out, err = run(capsys, tmp_path)
    assert err.startswith(f"left out: {tmp_path}/evaluation/ZeroshotCLIP/vit_b16_16shots/dtd/seed1")
    assert err.count("\n") == 1 and "44.00" in section(out, "Cross-dataset from imagenet, 16 shots")


def test_a_second_result_in_one_place_is_named(tmp_path, capsys):
    few_shot(tmp_path, "dtd", "CoOp", 16, {1: 60.0})
    few_shot(tmp_path / "few_shot", "dtd", "CoOp", 16, {1: 70.0})  # of published weights
    for shots in (1, 16):  # the same, as it depends on no shots
        few_shot(tmp_path, "dtd", "ZeroshotCLIP", shots, {1: 44.0})
    out, err = run(capsys, tmp_path)
    (line,) = err.splitlines()
    assert line.startswith(f"left out: {tmp_path}/few_shot/dtd/CoOp/vit_b16_16shots/seed1: ")
    assert "60.00" in section(out, "Few-shot, 16 shots"), "of two that of the training counts"


def test_wide_tables_have_a_line_per_data_set(tmp_path, capsys):
    for number, dataset in enumerate(ELEVEN):
        few_shot(tmp_path, dataset, "CoOp", 16, {1: 60.0 + number, 2: 62.0 + number})
        if dataset != "ucf101":
            few_shot(tmp_path, dataset, "MMLoP", 16, {1: 70.0 + number}, config="vit_b16_fewshot")
    out, _ = run(capsys, tmp_path)
    text = section(out, "Few-shot, 16 shots")
    header, _, *lines = (line for line in text.splitlines() if line.startswith("|"))
    assert max(map(len, out.splitlines())) <= MAX_WIDTH
    assert cells(header) == ["data set", "CoOp", "MMLoP"]
    assert [cells(line)[0] for line in lines] == [*ELEVEN, "average over 11 data sets"]
    assert cells(lines[-2]) == ["ucf101", "71.00 ± 1.00", "-"]
    assert cells(lines[-1])[1:] == ["66.00 ± 1.00", f"{fmean(range(70, 80)):.2f} (10/11)"]
    assert "- CoOp: config vit_b16, 2 seeds\n" in text
    assert (
        "- MMLoP vit_b16_fewshot (16 shots): average over 11 data sets: 10/11, without ucf101"
        in text
    )
    # LaTeX keeps the papers' line per method.
    latex, _ = run(capsys, tmp_path, "--format", "latex")
    header = next(line for line in latex.splitlines() if "trainer" in line)
    columns = [column.strip(" \\").replace("\\_", "_") for column in header.split("&")]
    assert columns == ["trainer", "config", "seeds", *(SHORT[name] for name in ELEVEN), "Avg."]


def test_two_configurations_of_a_trainer_in_a_wide_table(tmp_path, capsys):
    for dataset in ELEVEN:
        for config in ("vit_b16", "vit_b16-RANK=2"):
            few_shot(tmp_path, dataset, "MMLoP", 1, {1: 60.0}, config=config)
    header = section(run(capsys, tmp_path)[0], "Few-shot, 1 shot").splitlines()[2]
    assert cells(header)[1:] == ["MMLoP vit_b16", "MMLoP vit_b16-RANK=2"]


def test_one_line_where_configurations_differ_by_data_set_and_shots(tmp_path, capsys):
    few_shot(tmp_path, "imagenet", "CoOp", 16, {1: 70.0}, config="vit_b16_ep50")
    few_shot(tmp_path, "dtd", "CoOp", 16, {1: 60.0}, config="vit_b16")
    few_shot(tmp_path, "dtd", "CoOp", 1, {1: 50.0}, config="vit_b16_ep50")
    src = "vit_b16_c4_ep50_batch4_4+4ctx_few_shot"
    few_shot(tmp_path, "imagenet", "PromptSRC", 16, {1: 71.0}, config=src)
    few_shot(tmp_path, "dtd", "PromptSRC", 16, {1: 61.0}, config=f"{src}_gpa45")
    text = section(run(capsys, tmp_path)[0], "Few-shot, 16 shots")
    rows = [cells(line) for line in text.splitlines() if line.startswith("|")][2:]
    assert [row[:1] + row[3:] for row in rows] == [
        ["CoOp", "70.00", "60.00", "65.00 (2/11)"],
        ["PromptSRC", "71.00", "61.00", "66.00 (2/11)"],
    ]
    text = section(run(capsys, tmp_path)[0], "Few-shot, 1 shot")
    assert cells(text.splitlines()[4])[:2] == ["CoOp", "vit_b16"]


def test_csv_and_json_agree(tmp_path, capsys):
    seeds = {1: (80.0, 60.0), 2: (84.0, 64.0)}
    for dataset in ("dtd", "eurosat"):
        base2new(tmp_path, dataset, "MMLoP", seeds, parameters=11556)
    found = records(capsys, tmp_path)
    lines = list(csv.DictReader(io.StringIO(run(capsys, tmp_path, "--format", "csv")[0])))
    assert [{k: v for k, v in line.items() if v} for line in lines] == [
        {k: str(v) for k, v in record.items()} for record in found
    ]
    average = one(found, dataset="average over 11 data sets")
    each = [2 * b * n / (b + n) for b, n in seeds.values()]
    assert average == {
        "protocol": "base2new",
        "dataset": "average over 11 data sets",
        "trainer": "MMLoP",
        "config": "vit_b16",
        "shots": 16,
        "seeds": 2,
        "backbone": "ViT-B/16",
        "parameters": 11556,
        "averaged": "2/11",
        "missing": " ".join(d for d in ELEVEN if d not in ("dtd", "eurosat")),
        "base": 82.0,
        "base_std": 2.0,
        "new": 62.0,
        "new_std": 2.0,
        "H": round(2 * 82 * 62 / 144, 4),
        "H_std": round(pstdev(each), 4),
    }


def test_markdown_is_github(tmp_path, capsys):
    few_shot(tmp_path, "dtd", "CoOp", 1, {1: 50.0})
    assert run(capsys, tmp_path, "--format", "markdown") == run(capsys, tmp_path)


def test_facts_of_a_log(tmp_path):
    write_run(tmp_path / "a", 50.0, "MMLoP", "dtd", parameters=11556)
    facts = read_facts(tmp_path / "a/log.txt")
    assert facts["parameters"] == "11556"
    assert facts["MODEL.BACKBONE.NAME"] == "ViT-B/16"
    assert facts["MODEL.HEAD.NAME"] == ""
    assert facts["TRAINER.MMLOP.RANK"] == "1"
    assert facts["TRAINER.NAME"] == "MMLoP"
    assert facts["eval_only"] == "False"
    assert not [key for key in facts if "PyTorch" in key or "accuracy" in key]
    # A second start with another backbone is the run that counts.
    write_run(tmp_path / "b", 50.0, "ZeroshotCLIP", "dtd", backbone="RN50")
    both = (tmp_path / "a/log.txt").read_text() + (tmp_path / "b/log.txt").read_text()
    (tmp_path / "a/log.txt").write_text(both)
    facts = read_facts(tmp_path / "a/log.txt")
    assert (facts["MODEL.BACKBONE.NAME"], facts["parameters"]) == ("RN50", "0")
    (tmp_path / "a/log.txt").write_text("Finish training\n")
    assert read_facts(tmp_path / "a/log.txt") == {}


@pytest.mark.parametrize(
    ("name", "backbone"),
    [
        ("ViT-B/16", "ViT-B/16"),
        ("/weights/ViT-B-16.pt", "ViT-B/16"),
        ("vit_b16_c2_ep5_batch4_2ctx", "ViT-B/16"),
        ("vit_b32_ep50", "ViT-B/32"),
        ("rn50_ep50", "RN50"),
        ("rn50x4", ""),
        ("rn101", "RN101"),
        ("tiny-TRAINER.MMLOP.RANK=2", "tiny"),
        ("/weights/mine.pt", ""),
        ("RN50x16", ""),
        ("vit_b4_c1_add2_rm1", ""),
    ],
)
def test_backbone_names(name, backbone):
    assert backbone_name(name) == backbone


def test_backbone_of_a_row_is_that_of_the_log():
    method = Method("CoOp", "vit_b16", 16)
    row = Row("fewshot", "dtd", method, method, [1])
    assert row.backbone == "ViT-B/16"
    row.facts = {"MODEL.BACKBONE.NAME": {"tiny"}}
    assert row.backbone == "tiny"
    row.facts = {"MODEL.BACKBONE.NAME": {"RN50x16", "RN50"}}
    assert row.backbone == "RN50, RN50x16"
    row.facts = {"MODEL.BACKBONE.NAME": {"/weights/mine.pt"}}
    assert row.backbone == "/weights/mine.pt"
