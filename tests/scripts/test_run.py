"""Every script's dry run against the command expected; skipping, and bad arguments."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from results.logs import BadLog, read_log

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path for path in ROOT.glob("scripts/*/*.sh") if path.name != "settings.sh")
TRAINERS = {
    "zsclip": "ZeroshotCLIP",
    "coop": "CoOp",
    "cocoop": "CoCoOp",
    "vpt": "VPT",
    "ivlp": "IVLP",
    "maple": "MaPLe",
    "promptsrc": "PromptSRC",
    "mpl": "MPL",
    "lorvp": "LoRVP",
    "mmlop": "MMLoP",
}
UNTRAINED = {"zsclip"}
# method -> protocol -> data set -> config; fewshot with 16 shots
CONFIGS = {
    "zsclip": {
        "base2new": {"digits": "tiny", "imagenet": "vit_b16", "eurosat": "vit_b16"},
        "fewshot": {"digits": "tiny", "imagenet": "vit_b16", "eurosat": "vit_b16"},
    },
    "coop": {
        "base2new": {
            "digits": "tiny",
            "imagenet": "vit_b16_ep50_ctxv1",
            "eurosat": "vit_b16_ctxv1",
        },
        "fewshot": {"digits": "tiny", "imagenet": "vit_b16_ep50", "eurosat": "vit_b16"},
    },
    "promptsrc": {
        "base2new": {
            "digits": "tiny",
            "imagenet": "vit_b16_c4_ep20_batch4_4+4ctx",
            "eurosat": "vit_b16_c4_ep20_batch4_4+4ctx",
        },
        "fewshot": {
            "digits": "tiny",
            "imagenet": "vit_b16_c4_ep50_batch4_4+4ctx_few_shot",
            "eurosat": "vit_b16_c4_ep50_batch4_4+4ctx_few_shot_gpa45",
        },
    },
    "mmlop": {
        "base2new": {
            "digits": "tiny",
            "imagenet": "vit_b16_base2new",
            "eurosat": "vit_b16_base2new",
        },
        "fewshot": {"digits": "tiny", "imagenet": "vit_b16_fewshot", "eurosat": "vit_b16_fewshot"},
    },
}
# these take one file for both protocols and all real data sets
for _method, _config in {
    "cocoop": "vit_b16_c4_ep10_batch1_ctxv1",
    "vpt": "vit_b16_c8_ep5_batch4",
    "ivlp": "vit_b16_c2_ep5_batch4_2+2ctx",
    "maple": "vit_b16_c2_ep5_batch4_2ctx",
    "mpl": "vit_b16_c1_add2_rm1",
    "lorvp": "vit_b16_r4_ep20_batch32",
}.items():
    _real = {"digits": "tiny", "imagenet": _config, "eurosat": _config}
    CONFIGS[_method] = {"base2new": _real, "fewshot": _real}


def call(script: Path | str, *words: str, cwd: Path = ROOT, **env: str):
    """Run a script in an environment that holds none of its variables but those given."""
    clean = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "PYTHON": "python"}
    return subprocess.run(
        ["bash", str(ROOT / script), *words],
        cwd=cwd,
        env=clean | env,
        capture_output=True,
        text=True,
        timeout=60,
    )


def dry_run(script: Path | str, *words: str, **env) -> list[list[str]]:
    """Return the words of every command a script would run."""
    done = call(script, *words, DRY_RUN="1", **env)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def common(method: str, dataset: str, cfg: str, seed: int, root: str) -> list[str]:
    trainer = TRAINERS[method]
    return (
        f"python train.py --root {root} --seed {seed} --trainer {trainer}"
        f" --dataset-config-file configs/datasets/{dataset}.yaml"
        f" --config-file configs/trainers/{trainer}/{cfg}.yaml --output-dir"
    ).split()


def yaml_epochs(method: str, cfg: str) -> str:
    import yaml

    file = ROOT / "configs" / "trainers" / TRAINERS[method] / f"{cfg}.yaml"
    return str(yaml.safe_load(file.read_text())["OPTIM"]["MAX_EPOCH"])


def expected(method: str, protocol: str, dataset: str, root: str) -> list[list[str]]:
    """Commands for seed 1 (base2new) or 16 shots of seeds 1, 2, 3 (fewshot)."""
    trainer = TRAINERS[method]
    evaluate = ["--eval-only"] if method in UNTRAINED else []
    if protocol == "fewshot":
        cfg = CONFIGS[method]["fewshot"][dataset]
        return [
            common(method, dataset, cfg, seed, root)
            + [f"output/{dataset}/{trainer}/{cfg}_16shots/seed{seed}"]
            + evaluate
            + ["DATASET.NUM_SHOTS", "16"]
            for seed in (1, 2, 3)
        ]
    cfg = CONFIGS[method]["base2new"][dataset]
    tail = f"{dataset}/shots_16/{trainer}/{cfg}/seed1"
    base = f"output/base2new/train_base/{tail}"
    start = common(method, dataset, cfg, 1, root)
    end = ["DATASET.NUM_SHOTS", "16", "DATASET.SUBSAMPLE_CLASSES"]
    if protocol == "base2new_train":
        return [[*start, base, *evaluate, *end, "base"]]
    load = []
    if method not in UNTRAINED:
        load = ["--model-dir", base, "--load-epoch", yaml_epochs(method, cfg)]
    new = f"output/base2new/test_new/{tail}"
    return [[*start, new, "--eval-only", *load, *end, "new"]]


@pytest.mark.parametrize("dataset", ["digits", "imagenet", "eurosat"])
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_dry_run(script, dataset):
    method, protocol = script.parent.name, script.stem
    words = [dataset, "16" if protocol == "fewshot" else "1"]
    env = {} if dataset == "digits" else {"DATA": "/some/where"}
    root = env.get("DATA", "data")
    assert dry_run(script, *words, **env) == expected(method, protocol, dataset, root)


def test_every_method_has_every_protocol():
    found = {(path.parent.name, path.stem) for path in SCRIPTS}
    protocols = ("base2new_train", "base2new_test", "fewshot")
    assert found == {(method, protocol) for method in TRAINERS for protocol in protocols}


def test_forwarders_are_identical():
    assert len({path.read_bytes() for path in SCRIPTS}) == 1


def test_only_run_sh_calls_train():
    callers = [p for p in ROOT.glob("scripts/**/*.sh") if "train.py --root" in p.read_text()]
    assert callers == [ROOT / "scripts" / "run.sh"]


@pytest.mark.parametrize(
    ("shots", "config"),
    [("1", "ep50"), ("2", "ep100"), ("4", "ep100"), ("8", None), ("16", None)],
)
def test_coop_trains_longer_with_more_shots(shots, config):
    cfg = "vit_b16" + (f"_{config}" if config else "")
    (command,) = dry_run("scripts/coop/fewshot.sh", "eurosat", shots, "1", DATA="/d")
    assert command[command.index("--config-file") + 1] == f"configs/trainers/CoOp/{cfg}.yaml"
    folder = command[command.index("--output-dir") + 1]
    assert folder == f"output/eurosat/CoOp/{cfg}_{shots}shots/seed1"


def test_fewshot_takes_seeds_and_pairs():
    commands = dry_run("scripts/coop/fewshot.sh", "digits", "2", "0", "7", "OPTIM.LR", "0.1")
    assert [command[command.index("--seed") + 1] for command in commands] == ["0", "7"]
    assert all(command[-2:] == ["OPTIM.LR", "0.1"] for command in commands)


def test_works_from_any_folder(tmp_path):
    script = "scripts/mmlop/base2new_train.sh"
    here = dry_run(script, "digits", "1")
    there = dry_run(script, "digits", "1", cwd=tmp_path)
    assert here == there
    (command,) = dry_run(script, "digits", "1", cwd=tmp_path, DATA="d", OUTPUT="out")
    assert command[command.index("--root") + 1] == str(tmp_path / "d")
    folder = command[command.index("--output-dir") + 1]
    assert folder.startswith(str(tmp_path / "out" / "base2new"))


@pytest.mark.parametrize(
    ("env", "label"),
    [
        ({}, "tiny-TRAINER.MMLOP.RANK=2-INPUT.SIZE=_32,_32_"),
        ({"TAG": "rank2"}, "tiny-rank2"),
        ({"TAG": ""}, "tiny"),
    ],
)
def test_pairs_get_a_folder_of_their_own(env, label):
    pairs = ("TRAINER.MMLOP.RANK", "2", "INPUT.SIZE", "(32, 32)")
    train, test = (
        dry_run(f"scripts/mmlop/base2new_{part}.sh", "digits", "1", *pairs, **env)[0]
        for part in ("train", "test")
    )
    base = f"output/base2new/train_base/digits/shots_16/MMLoP/{label}/seed1"
    assert train[train.index("--output-dir") + 1] == base
    assert test[test.index("--model-dir") + 1] == base
    for command in (train, test):
        assert command[-4:] == list(pairs)


def test_tag_without_pairs_names_the_folder():
    (command,) = dry_run("scripts/mmlop/base2new_train.sh", "digits", "1", TAG="again")
    assert "MMLoP/tiny-again/seed1" in command[command.index("--output-dir") + 1]


def test_load_epoch_follows_the_pairs():
    script = "scripts/mmlop/base2new_test.sh"
    (command,) = dry_run(script, "digits", "1", "OPTIM.MAX_EPOCH", "3")
    assert command[command.index("--load-epoch") + 1] == "3"


def test_threads_of_the_tiny_backbone(tmp_path):
    program = tmp_path / "python-stand-in"
    program.write_text('#!/bin/sh\necho "threads ${OMP_NUM_THREADS:-all}"\n')
    program.chmod(0o755)
    env = {"OUTPUT": str(tmp_path / "out"), "PYTHON": str(program), "DATA": str(tmp_path)}
    script = "scripts/coop/base2new_train.sh"
    assert call(script, "digits", "1", **env).stdout == "threads 1\n"
    assert call(script, "digits", "1", OMP_NUM_THREADS="3", **env).stdout == "threads 3\n"
    assert call(script, "eurosat", "1", **env).stdout == "threads all\n"


def test_config_and_shots_from_the_environment():
    script = "scripts/coop/base2new_train.sh"
    (command,) = dry_run(script, "digits", "1", CFG="vit_b16", SHOTS="4", DATA="/d")
    assert command[command.index("--config-file") + 1] == "configs/trainers/CoOp/vit_b16.yaml"
    assert "digits/shots_4/CoOp/vit_b16/" in command[command.index("--output-dir") + 1]
    assert command[command.index("DATASET.NUM_SHOTS") + 1] == "4"


@pytest.mark.parametrize(
    ("script", "words", "env", "message"),
    [
        ("mmlop/base2new_train", ["digits"], {}, "usage: scripts/mmlop/base2new_train.sh DATASET"),
        ("mmlop/fewshot", ["digits"], {}, "usage: scripts/mmlop/fewshot.sh DATASET SHOTS"),
        ("mmlop/base2new_train", ["digits", "-1"], {}, "SEED must be a whole number"),
        ("mmlop/base2new_train", ["digits", "1"], {"SHOTS": "0"}, "SHOTS must be"),
        ("mmlop/fewshot", ["digits", "all"], {}, "SHOTS must be a whole number from 1 on"),
        ("mmlop/base2new_train", ["digits", "1", "OPTIM.LR"], {}, "a key has no value"),
        ("mmlop/base2new_train", ["digit", "1"], {}, "no data set digit; there are: "),
        ("mmlop/base2new_train", ["digits", "1"], {"CFG": "huge"}, "MMLoP/huge.yaml; there are: "),
    ],
)
def test_bad_arguments_stop_at_once(script, words, env, message):
    done = call(f"scripts/{script}.sh", *words, **env)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert message in done.stderr


RESULT = "=> result\n* total: 20\n* accuracy: 91.81%\n"
CURRENT = f"Finish training\nDeploy the last-epoch model\n{RESULT}"
LOGS = {
    "current": (CURRENT, True),
    "older": (f"Finished training\n{RESULT}", True),
    "crashed": ("epoch [1/5] batch [20/124] loss 1.2 (1.3)\n", False),
    "validated only": (RESULT, False),
    "no result": ("Finish training\nDeploy the last-epoch model\n", False),
    "result before the end": (f"{RESULT}Finish training\n", False),
    "empty": ("", False),
    "started again": (f"** Arguments **\n{CURRENT}** Arguments **\nepoch [1/5]\n", False),
    "finished later": (f"** Arguments **\nepoch [1/5]\n** Arguments **\n{CURRENT}", True),
}


@pytest.fixture
def python_that_reports(tmp_path):
    """An interpreter that only prints its arguments."""
    program = tmp_path / "python-stand-in"
    program.write_text('#!/bin/sh\necho "ran $*"\n')
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize("name", LOGS)
def test_finished_run_is_skipped(name, tmp_path, python_that_reports):
    text, finished = LOGS[name]
    folder = tmp_path / "base2new/train_base/digits/shots_16/CoOp/tiny/seed1"
    folder.mkdir(parents=True)
    (folder / "log.txt").write_text(text)
    env = {"OUTPUT": str(tmp_path), "PYTHON": python_that_reports}
    done = call("scripts/coop/base2new_train.sh", "digits", "1", **env)
    assert done.returncode == 0, done.stderr
    assert ("finished already" in done.stdout) == finished
    assert ("ran train.py" in done.stdout) == (not finished)
    # The parser calls the same logs finished.
    try:
        read_log(folder / "log.txt", "accuracy", test_log=None)
        counts = True
    except BadLog:
        counts = False
    assert counts == finished


def test_a_finished_repetition_counts(tmp_path, python_that_reports):
    folder = tmp_path / "digits/CoOp/tiny_1shots/seed1"
    folder.mkdir(parents=True)
    (folder / "log.txt").write_text(LOGS["crashed"][0])
    (folder / "log.txt-2026-01-02-03-04-05").write_text(LOGS["current"][0])
    env = {"OUTPUT": str(tmp_path), "PYTHON": python_that_reports}
    done = call("scripts/coop/fewshot.sh", "digits", "1", "1", "2", **env)
    lines = done.stdout.splitlines()
    assert lines[0] == f"finished already: {folder}"
    assert lines[1].startswith("ran train.py")
    assert "seed2" in lines[1]


def test_testing_needs_the_training(tmp_path, python_that_reports):
    env = {"OUTPUT": str(tmp_path), "PYTHON": python_that_reports}
    done = call("scripts/coop/base2new_test.sh", "digits", "1", **env)
    assert done.returncode == 2
    assert "first run scripts/coop/base2new_train.sh" in done.stderr
    assert "ran" not in done.stdout


def test_a_new_training_is_tested_again(tmp_path, python_that_reports):
    tail = "digits/shots_16/CoOp/tiny/seed1"
    base = tmp_path / "base2new/train_base" / tail
    new = tmp_path / "base2new/test_new" / tail
    weights = base / "prompt_learner" / f"model.pth.tar-{yaml_epochs('coop', 'tiny')}"
    for folder in (weights.parent, new):
        folder.mkdir(parents=True)
    (base / "log.txt").write_text(LOGS["current"][0])
    weights.write_text("")
    (new / "log.txt").write_text(RESULT)
    env = {"OUTPUT": str(tmp_path), "PYTHON": python_that_reports}
    os.utime(weights, (1_000_000, 1_000_000))
    done = call("scripts/coop/base2new_test.sh", "digits", "1", **env)
    assert done.stdout == f"finished already: {new}\n"
    os.utime(new / "log.txt", (999_999, 999_999))
    done = call("scripts/coop/base2new_test.sh", "digits", "1", **env)
    assert done.stdout.startswith("ran train.py")


def test_failure_stops_the_seeds(tmp_path):
    program = tmp_path / "python-stand-in"
    program.write_text("#!/bin/sh\necho ran\nexit 2\n")
    program.chmod(0o755)
    env = {"OUTPUT": str(tmp_path), "PYTHON": str(program)}
    done = call("scripts/coop/fewshot.sh", "digits", "1", **env)
    assert done.returncode == 2
    assert done.stdout == "ran\n"


@pytest.mark.parametrize("path", sorted(ROOT.glob("scripts/**/*.sh")), ids=lambda p: p.name)
def test_syntax(path):
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_shipped_scripts_name_no_package_index():
    for path in [*ROOT.glob("scripts/**/*.sh"), *ROOT.glob("requirements*.txt")]:
        text = path.read_text()
        assert "index-url" not in text
        assert "://" not in text
