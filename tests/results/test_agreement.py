"""Tables and averages out of records: unrounded, of runs that agree, with what lacks named."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from statistics import fmean

import pytest

import parse_test_res
from protocols import ELEVEN
from results import record

from .writing import few_shot, write_record

LR = {"OPTIM.LR": 0.01}


def run(capsys, output: Path, *words: str) -> tuple[str, str]:
    """Standard output and standard error of the command."""
    assert parse_test_res.main(["--output", str(output), *words]) == 0
    captured = capsys.readouterr()
    return captured.out, captured.err


def records(capsys, output: Path) -> list[dict]:
    return json.loads(run(capsys, output, "--format", "json")[0])


def shots(output: Path, seed: int, dataset: str = "dtd", trainer: str = "CoOp") -> Path:
    """Folder of a few-shot run."""
    return output / dataset / trainer / "vit_b16_16shots" / f"seed{seed}"


def base2new(output: Path, seed: int, part: str, dataset: str = "dtd") -> Path:
    """Folder of a base-to-new run."""
    return output / "base2new" / part / dataset / "shots_16/CoOp/vit_b16" / f"seed{seed}"


def write_base2new(output: Path, seed: int, settings: dict | None = None, **new: object) -> None:
    """Write a training and the test of its weights on new classes."""
    trained = base2new(output, seed, "train_base")
    write_record(trained, 80_000 + seed, seed=seed, part="base", settings=settings)
    new = {"settings": settings, "part": "new", "of": trained} | new
    write_record(base2new(output, seed, "test_new"), 60_000 + seed, seed=seed, **new)


def test_averages_are_of_unrounded_values(tmp_path, capsys):
    # 10.00, 10.00 and 10.01 as logs have them, whose mean is 10.00
    for seed, correct in enumerate((10_004, 10_004, 10_008), 1):
        write_record(shots(tmp_path, seed), correct, seed=seed)
        few_shot(tmp_path, "dtd", "CoOp", 16, {seed: correct / 1000})
    out, err = run(capsys, tmp_path)
    assert "| 10.01 ± 0.00 |" in out and err == ""
    (row,) = records(capsys, tmp_path)
    assert row["accuracy"] == fmean([10.004, 10.004, 10.008])
    assert row["accuracy_by_seed"] == "1=10.004 2=10.004 3=10.008"
    assert (row["device"], row["training_seconds"]) == ("CPU", 42.0)
    (line,) = csv.DictReader(io.StringIO(run(capsys, tmp_path, "--format", "csv")[0]))
    assert line == {key: str(value) for key, value in row.items()}

    assert parse_test_res.main([str(shots(tmp_path, 1).parent)]) == 0
    out = capsys.readouterr().out
    assert "seed3/result.json. accuracy: 10.01%" in out and "* accuracy: 10.01% +- 0.00%" in out
    # of logs alone it stays as it was
    for seed in (1, 2, 3):
        record.forget(shots(tmp_path, seed))
    (row,) = records(capsys, tmp_path)
    assert row["accuracy"] == 10.0033
    assert not {"accuracy_by_seed", "device", "training_seconds"} & row.keys()


MIXED = {
    "a setting": ({"settings": LR}, "OPTIM.LR 0.01 (not 0.002)"),
    "a setting of the method": ({"settings": {"TRAINER.COOP.N_CTX": 2}}, "TRAINER.COOP.N_CTX 2"),
    "the backbone": ({"settings": {"MODEL.BACKBONE.NAME": "RN50"}}, "MODEL.BACKBONE.NAME 'RN50'"),
    "several": (
        {"settings": LR | {"OPTIM.MAX_EPOCH": 5, "A.B": 1}, "test_images": "u"},
        "OPTIM.LR 0.01 (not 0.002), OPTIM.MAX_EPOCH 5 (not 50), test images",
    ),
    "the test images": ({"test_images": "others"}, "test images 'dtd all others'"),
}


@pytest.mark.parametrize("name", MIXED)
def test_runs_that_differ_are_not_averaged(name, tmp_path, capsys):
    other, difference = MIXED[name]
    for seed in (1, 2, 3):
        more = other if seed == 2 else {}
        write_record(shots(tmp_path, seed), 50_000 + 1000 * seed, seed=seed, **more)
    out, err = run(capsys, tmp_path)
    (line,) = (line for line in err.splitlines() if "left out" in line)
    start = "left out: Few-shot, dtd, CoOp vit_b16 (16 shots): seed 2 with "
    assert line.startswith(start) and difference in line
    assert "| 52.00 ± 1.00 |" in out
    assert parse_test_res.main([str(shots(tmp_path, 1).parent)]) == 0
    captured = capsys.readouterr()
    assert "* accuracy: 52.00% +- 1.00%" in captured.out
    assert ": seed2 with " in captured.err and "seed2" not in captured.out


def test_what_may_differ_does(tmp_path, capsys):
    """How a run was computed, where it lies, its seed, and how its backbone is written."""
    for seed, name in ((1, "ViT-B/16"), (2, "weights/ViT-B-16.pt")):
        settings = {"MODEL.BACKBONE.NAME": name, "DATASET.ROOT": f"data{seed}", "SEED": seed}
        settings |= {"USE_CUDA": seed == 1, "MODEL.INIT_WEIGHTS": f"start/seed{seed}/model.pth"}
        settings |= {"OPTIM.NEW": seed} if seed == 1 else {}  # a key of a newer version
        write_record(shots(tmp_path, seed), 50_000, seed=seed, settings=settings)
    out, err = run(capsys, tmp_path)
    assert err == "" and "| 50.00 ± 0.00 |" in out


def test_of_two_that_differ_the_first_counts(tmp_path, capsys):
    write_record(shots(tmp_path, 1), 50_000)
    write_record(shots(tmp_path, 2), 60_000, seed=2, settings=LR)
    out, err = run(capsys, tmp_path)
    assert "| 50.00 |" in out and "seed 2 with OPTIM.LR 0.01 (not 0.002)\n" in err


def test_base_and_new_of_the_same_weights(tmp_path, capsys):
    for seed in (1, 2, 3):
        write_base2new(tmp_path, seed)
    assert run(capsys, tmp_path)[1] == ""
    (row,) = records(capsys, tmp_path)
    assert row["base_by_seed"] == "1=80.001 2=80.002 3=80.003"
    assert (row["base"], row["new"], row["seeds"]) == (pytest.approx(80.002), 60.002, 3)

    where = "Base-to-new, dtd, CoOp vit_b16 (16 shots)"
    # both of a seed with another setting
    write_base2new(tmp_path, 3, LR)
    _, err = run(capsys, tmp_path)
    assert f"left out: {where}: seed 3 (base, new) with OPTIM.LR 0.01 (not 0.002)" in err
    # the training was done again with another setting, and the test was not
    write_record(base2new(tmp_path, 3, "train_base"), 70_000, seed=3, part="base")
    _, err = run(capsys, tmp_path)
    assert f"left out: {where}: seed 3 (new) with OPTIM.LR 0.01 (not 0.002)" in err
    assert f"incomplete: {where}: base but no new for seed 3\n" in err
    # or with other images
    write_base2new(tmp_path, 3)
    other = {"seed": 3, "part": "base", "train_images": "others"}
    write_record(base2new(tmp_path, 3, "train_base"), 70_000, **other)
    _, err = run(capsys, tmp_path)
    assert f"left out: {where}: seed 3 (" in err and "training images (seed 3)" in err
    # a test reads no settings of a training
    write_base2new(tmp_path, 3, **{"settings": {}, "part": "new"})
    assert run(capsys, tmp_path)[1] == ""
    write_base2new(tmp_path, 3)
    path = base2new(tmp_path, 3, "test_new")
    trained = base2new(tmp_path, 3, "train_base")
    write_record(path, 60_000, seed=3, part="new", of=trained, settings={"OPTIM.LR": 1.0})
    assert run(capsys, tmp_path)[1] == ""


@pytest.mark.parametrize(
    ("place", "says"),
    [
        (lambda out: shots(out, 4), "seed 1 (the folder says 4)"),
        (lambda out: shots(out, 1, dataset="eurosat"), "data set DescribableTextures"),
        (lambda out: shots(out, 1, trainer="MMLoP"), "trainer CoOp (the folder says MMLoP)"),
        (lambda out: base2new(out, 1, "test_new"), "classes all (the folder says new)"),
        (lambda out: out / "dtd/CoOp/vit_b16_4shots/seed1", "shots 16 (the folder says 4)"),
    ],
)
def test_a_run_at_the_place_of_another_does_not_count(place, says, tmp_path, capsys):
    """As after copying a folder: what the record says is believed, not its path."""
    for seed in (1, 2):
        write_record(shots(tmp_path, seed), 80_000 + seed, seed=seed)
    (alone,) = records(capsys, tmp_path)
    write_record(place(tmp_path), 80_001, seed=1)
    out, err = run(capsys, tmp_path, "--format", "json")
    assert json.loads(out) == [alone]
    assert "left out: " in err and says in err


def test_a_seed_counts_once_in_a_directory(tmp_path, capsys):
    for name, seed in (("seed1", 1), ("seed2", 2), ("seed2_copy", 2)):
        write_record(tmp_path / "runs" / name, 50_000 + 10_000 * seed, seed=seed)
    assert parse_test_res.main([str(tmp_path / "runs")]) == 0
    captured = capsys.readouterr()
    assert "* accuracy: 65.00% +- 5.00%" in captured.out
    assert "seed2_copy: it has seed 2, as seed2 has" in captured.err


def test_a_missing_seed_is_named(tmp_path, capsys):
    for dataset in ("dtd", "eurosat"):
        for seed in (1, 2, 3):
            write_record(shots(tmp_path, seed, dataset), 50_000, dataset=dataset, seed=seed)
            if seed < 3:
                folder = shots(tmp_path, seed, dataset, "MMLoP")
                write_record(folder, 50_000, "MMLoP", dataset, seed=seed)
        # which depends on no seed
        write_record(shots(tmp_path, 1, dataset, "ZeroshotCLIP"), 40_000, "ZeroshotCLIP", dataset)
        # of logs alone nothing more is said than before
        few_shot(tmp_path, dataset, "VPT", 16, {1: 50.0})
    _, err = run(capsys, tmp_path)
    assert err == (
        "missing: Few-shot, MMLoP vit_b16 (16 shots): no seed 3 of dtd, eurosat "
        "(others of the table have 1, 2, 3)\n"
    )
    method = tmp_path / "dtd"
    record.forget(shots(tmp_path, 1, "dtd", "VPT"))
    assert parse_test_res.main([str(method / "CoOp"), "--multi-exp"]) == 0
    assert capsys.readouterr().err == ""
    (method / "MMLoP/vit_b16_16shots").rename(method / "CoOp/other")
    assert parse_test_res.main([str(method / "CoOp"), "--multi-exp"]) == 0
    assert capsys.readouterr().err == (
        f"missing: {method}/CoOp/other has no seed3, which others have\n"
    )


def test_averages_over_data_sets_of_the_same_settings(tmp_path, capsys):
    for number, dataset in enumerate(ELEVEN[:3]):
        settings = LR if dataset == ELEVEN[1] else None
        write_record(shots(tmp_path, 1, dataset), 1000 * number, dataset=dataset, settings=settings)
    out, err = run(capsys, tmp_path)
    assert err == (
        "left out: Few-shot, CoOp vit_b16 (16 shots), average over 11 data sets: "
        f"{ELEVEN[1]} with OPTIM.LR 0.01 (not 0.002)\n"
    )
    assert "1.00 (2/11)" in out
    # a directory of runs of one setting on several data sets has an average as well
    for dataset in ELEVEN[:3]:
        shots(tmp_path, 1, dataset).rename(tmp_path / dataset / "run")
        (tmp_path / "all").mkdir(exist_ok=True)
        (tmp_path / dataset / "run").rename(tmp_path / "all" / dataset)
    assert parse_test_res.main([str(tmp_path / "all")]) == 0
    captured = capsys.readouterr()
    assert "* accuracy: 1.00% +- 1.00%" in captured.out
    assert f": {ELEVEN[1]} with OPTIM.LR 0.01 (not 0.002)\n" in captured.err


@pytest.mark.parametrize("by", ["the data set's file", "tiny.yaml, _DATASETS_"])
def test_what_is_set_for_the_data_set_alone_may_differ(tmp_path, capsys, by):
    for dataset in ELEVEN[:2]:
        folder = shots(tmp_path, 1, dataset)
        settings = {"OPTIM.MAX_EPOCH": len(dataset)}
        write_record(folder, 50_000, dataset=dataset, settings=settings)
        content = record.read(folder)
        file = content["arguments"]["dataset_config_file"]
        content["given"]["OPTIM.MAX_EPOCH"] = by if by.endswith("_DATASETS_") else file
        record.write(folder, content)
    out, err = run(capsys, tmp_path)
    assert "50.00 (2/11)" in out and err == ""


def test_logs_beside_records(tmp_path, capsys):
    write_record(shots(tmp_path, 1, "own"), 50_000, dataset="own", settings={"OPTIM.MAX_EPOCH": 30})
    few_shot(tmp_path, "own", "CoOp", 16, {2: 60.0, 3: 80.0}, optim={"LR": 0.002})
    out, err = run(capsys, tmp_path)
    assert "| 63.33 ± 12.47 |" in out and err == ""
    (row,) = records(capsys, tmp_path)
    assert row["accuracy"] == 63.3333, "two of them are rounded"
    few_shot(tmp_path, "own", "CoOp", 16, {3: 80.0}, optim={"LR": 0.1})
    out, err = run(capsys, tmp_path)
    assert "| 55.00 ± 5.00 |" in out
    assert "seed 3 with OPTIM.LR 0.1 (not 0.002)\n" in err


def test_a_damaged_record_is_named_and_its_log_does_not_count(tmp_path, capsys):
    few_shot(tmp_path, "dtd", "CoOp", 16, {1: 60.0, 2: 60.0})
    path = shots(tmp_path, 2) / record.FILE
    path.write_text("{")
    out, err = run(capsys, tmp_path)
    assert err.startswith(f"skipped: {path}: damaged (not JSON") and err.count("\n") == 1
    assert "| 60.00 |" in out


def test_what_the_test_images_chose_is_marked(tmp_path, capsys):
    for dataset in ("digits", "shapes"):
        write_record(shots(tmp_path, 1, dataset), 50_000, dataset=dataset, chosen_on="test")
        folder = shots(tmp_path, 1, dataset, "MMLoP")
        write_record(folder, 50_000, "MMLoP", dataset, chosen_on="val")
    out, _ = run(capsys, tmp_path)
    lines = out.splitlines()
    assert [line.count("50.00 *") for line in lines if line.startswith("| CoOp")] == [3]
    assert not any("*" in line for line in lines if line.startswith("| MMLoP"))
    note = "- * the test images chose the epoch (TEST.FINAL_MODEL best_test): CoOp vit_b16"
    assert sum(line.startswith(note) for line in lines) == 1
    for row in records(capsys, tmp_path):
        assert row.get("chosen_on") == {"CoOp": "test images", "MMLoP": None}[row["trainer"]]
    out, _ = run(capsys, tmp_path, "--format", "latex")
    assert out.count("50.00 *") == 3
    assert parse_test_res.main([str(shots(tmp_path, 1, "shapes").parent)]) == 0
    assert "the test images chose the epoch" in capsys.readouterr().err
