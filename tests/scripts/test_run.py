"""Every script's dry run against the command expected; skipping, and bad arguments."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

import train
from dassl.config import RUNTIME_KEYS
from results.logs import BadLog, read_log

ROOT = Path(__file__).parents[2]
PROTOCOLS = ("base2new_train", "base2new_test", "fewshot", "xd_train", "xd_test", "dg_test")
VARIANTS = ["imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"]
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


@dataclass(frozen=True)
class Method:
    """What a folder of scripts runs.

    A protocol's config is one for all data sets, or one for each that the tests take; without one
    of its own it is base-to-new's. ``epochs``: of the configs that are loaded, base-to-new's (on
    ImageNet), cross-dataset's, and that of the embedded data.
    """

    trainer: str
    base2new: str | dict[str, str]
    fewshot: str | dict[str, str] = ""
    xd: str = ""
    epochs: tuple[int, int, int] | None = (5, 5, 20)
    tiny: str = "tiny"

    def config(self, protocol: str, dataset: str) -> str:
        if dataset in ("digits", "shapes"):
            return self.tiny
        kind = protocol.split("_")[0].replace("dg", "xd")
        config = getattr(self, kind) or self.base2new
        return config if isinstance(config, str) else config[dataset]


METHODS = {
    "zsclip": Method("ZeroshotCLIP", "vit_b16", epochs=None),
    "coop": Method(
        "CoOp",
        {"imagenet": "vit_b16_ep50_ctxv1", "eurosat": "vit_b16_ctxv1"},
        {"imagenet": "vit_b16_ep50", "eurosat": "vit_b16"},
        "vit_b16_ep50_ctxv1",
        epochs=(50, 50, 20),
    ),
    "cocoop": Method("CoCoOp", "vit_b16_c4_ep10_batch1_ctxv1", epochs=(10, 10, 20)),
    "vpt": Method("VPT", "vit_b16_c8_ep5_batch4"),
    "language-prompting": Method(
        "IVLP", "vit_b16_c4_ep5_batch4_language_only", tiny="tiny_language_only"
    ),
    "ivlp": Method("IVLP", "vit_b16_c2_ep5_batch4_2+2ctx"),
    "maple": Method(
        "MaPLe",
        "vit_b16_c2_ep5_batch4_2ctx",
        xd="vit_b16_c2_ep2_batch4_2ctx_cross_datasets",
        epochs=(5, 2, 20),
    ),
    "promptsrc": Method(
        "PromptSRC",
        "vit_b16_c4_ep20_batch4_4+4ctx",
        {
            "imagenet": "vit_b16_c4_ep50_batch4_4+4ctx_few_shot",
            "eurosat": "vit_b16_c4_ep50_batch4_4+4ctx_few_shot_gpa45",
        },
        "vit_b16_c4_ep20_batch4_4+4ctx_cross_datasets",
        epochs=(20, 20, 20),
    ),
    "mpl": Method(
        "MPL",
        "vit_b16_c1_add2_rm1",
        xd="vit_b16_c1_add2_rm1_cross_datasets",
        epochs=(5, 2, 20),
    ),
    "lorvp": Method("LoRVP", "vit_b16_r4_ep20_batch32", epochs=(20, 20, 20)),
    "mmlop": Method(
        "MMLoP",
        "vit_b16_base2new",
        "vit_b16_fewshot",
        "vit_b16_cross_datasets",
        epochs=(30, 50, 20),
    ),
}
# With those of further methods (README, "How to add a method"), which have all protocols too.
FOLDERS = {path.parent for path in ROOT.glob("scripts/*/settings.sh")}
SCRIPTS = sorted(folder / f"{p}.sh" for folder in FOLDERS for p in PROTOCOLS)


def call(script: Path | str, *words: str, cwd: Path = ROOT, **env: str):
    """Run a script in an environment that holds none of its variables but those given."""
    clean = {"PATH": PATH, "HOME": os.environ.get("HOME", "/"), "PYTHON": "python"}
    return subprocess.run(
        ["bash", str(ROOT / script), *words],
        cwd=cwd,
        env=clean | env,
        capture_output=True,
        text=True,
        timeout=60,
    )


def stand_in(folder: Path, body: str) -> str:
    """An interpreter that does what ``body`` says in place of everything but reading settings."""
    program = folder / "python-stand-in"
    reads = f'[ "$1" != scripts/effective.py ] || exec {sys.executable} "$@"'
    program.write_text(f"#!/bin/sh\n{reads}\n{body}\n")
    program.chmod(0o755)
    return str(program)


def dry_run(script: Path | str, *words: str, **env) -> list[list[str]]:
    """Return the words of every command a script would run."""
    done = call(script, *words, DRY_RUN="1", **env)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def train_py(trainer: str, cfg: str, dataset: str, seed: int, folder: str, *rest: object):
    """The words of one call of train.py; ``rest`` in one string or in several."""
    return (
        f"python train.py --root data --seed {seed} --trainer {trainer}"
        f" --dataset-config-file configs/datasets/{dataset}.yaml"
        f" --config-file configs/trainers/{trainer}/{cfg}.yaml --output-dir {folder}"
        f" {' '.join(map(str, rest))}"
    ).split()


def loading(folder: str, epoch: int | None) -> str:
    """Options of a test: of the weights in a folder, or of none that are trained."""
    return "--eval-only" + (f" --model-dir {folder} --load-epoch {epoch}" if epoch else "")


def base2new(trainer: str, cfg: str, dataset: str, seed: int, part: str, load: str = ""):
    """A command of base-to-new; part is train_base, test_base or test_new."""
    folder = f"output/base2new/{part}/{dataset}/shots_16/{trainer}/{cfg}/seed{seed}"
    classes = f"DATASET.NUM_SHOTS 16 DATASET.SUBSAMPLE_CLASSES {part.split('_')[1]}"
    return train_py(trainer, cfg, dataset, seed, folder, load, classes)


def all_classes(trainer: str, cfg: str, dataset: str, shots: int, seed: int, load: str = ""):
    """A training on all classes: a few-shot one, or the source of cross-dataset transfer."""
    folder = f"output/{dataset}/{trainer}/{cfg}_{shots}shots/seed{seed}"
    return train_py(trainer, cfg, dataset, seed, folder, load, f"DATASET.NUM_SHOTS {shots}")


def cross(trainer: str, cfg: str, dataset: str, seed: int, load: str, from_: str = ""):
    """A test on a data set other than that of the training."""
    folder = f"output/evaluation/{trainer}/{cfg}_16shots/{from_}{dataset}/seed{seed}"
    return train_py(trainer, cfg, dataset, seed, folder, load)


def expected(name: str, protocol: str, dataset: str) -> list[list[str]]:
    """Commands for seed 1, or 16 shots of seeds 1, 2, 3 (fewshot)."""
    method = METHODS[name]
    source = "digits" if dataset in ("digits", "shapes") else "imagenet"
    cfg = method.config(protocol, source if protocol in ("xd_test", "dg_test") else dataset)
    this = (method.trainer, cfg, dataset)
    epochs = method.epochs or (None,) * 3
    load = "" if method.epochs else "--eval-only"
    if protocol == "fewshot":
        return [all_classes(*this, 16, seed, load) for seed in (1, 2, 3)]
    if protocol == "xd_train":
        return [all_classes(*this, 16, 1, load)]
    if protocol == "base2new_train":
        return [base2new(*this, 1, "train_base", load)]
    epoch = epochs[2 if source == "digits" else protocol != "base2new_test"]
    if protocol == "base2new_test":
        base = f"output/base2new/train_base/{dataset}/shots_16/{method.trainer}/{cfg}/seed1"
        return [base2new(*this, 1, "test_new", loading(base, epoch))]
    load = loading(f"output/{source}/{method.trainer}/{cfg}_16shots/seed1", epoch)
    from_ = "" if source == "imagenet" else f"from_{source}/"
    return [cross(*this, 1, load, from_)]


DATASETS = {
    "base2new_train": ("digits", "imagenet", "eurosat"),
    "base2new_test": ("digits", "imagenet"),
    "fewshot": ("digits", "imagenet", "eurosat"),
    "xd_train": ("digits", "imagenet"),
    "xd_test": ("shapes", "eurosat"),
    "dg_test": ("imagenet_a",),
}
CASES = [(m, p, dataset) for m in METHODS for p in PROTOCOLS for dataset in DATASETS[p]]


@pytest.mark.parametrize(("method", "protocol", "dataset"), CASES)
def test_dry_run(method, protocol, dataset):
    words = [dataset, "16" if protocol == "fewshot" else "1"]
    env = {"SOURCE": "digits"} if dataset == "shapes" else {}
    script = f"scripts/{method}/{protocol}.sh"
    assert dry_run(script, *words, **env) == expected(method, protocol, dataset)


def test_epochs_are_those_of_the_data_set():
    (command,) = dry_run("scripts/coop/base2new_test.sh", "eurosat", "1", DATA="/some/where")
    assert command[command.index("--load-epoch") + 1] == "200"
    assert command[command.index("--root") + 1] == "/some/where"


def test_source_may_be_left_out():
    assert dry_run("scripts/mmlop/xd_train.sh", "1") == expected("mmlop", "xd_train", "imagenet")
    commands = dry_run("scripts/mmlop/xd_train.sh", "1", SOURCE="digits")
    assert commands == expected("mmlop", "xd_train", "digits")


def test_domain_generalisation_takes_all_variants():
    commands = dry_run("scripts/maple/dg_test.sh", "1")
    assert commands == [c for name in VARIANTS for c in expected("maple", "dg_test", name)]


def test_zero_shot_clip_says_that_it_has_nothing_to_train():
    done = call("scripts/zsclip/xd_train.sh", "1", DRY_RUN="1")
    assert done.returncode == 0
    assert done.stderr == "note: ZeroshotCLIP has nothing to train; it is tested\n"


# --- upstream's names -----------------------------------------------------------------------------

MAPLE, MAPLE_XD = METHODS["maple"].base2new, METHODS["maple"].xd
IVLP, VPT = METHODS["ivlp"].base2new, METHODS["vpt"].base2new
LANGUAGE_ONLY = METHODS["language-prompting"].base2new
SRC, SRC_XD = METHODS["promptsrc"].base2new, METHODS["promptsrc"].xd
FEW_SHOT = METHODS["promptsrc"].fewshot["imagenet"]
MPL = METHODS["mpl"].base2new
NCTX = "nctx16_cscFalse_ctpend"
NCTX_PAIRS = "TRAINER.COOP.N_CTX 16 TRAINER.COOP.CSC False TRAINER.COOP.CLASS_TOKEN_POSITION end"


def base2new_scripts(folder: str, suffix: str, trainer: str, cfg: str, epoch: int):
    """Lines that call MaPLe's three base-to-new scripts of a method, with their commands."""
    this = (trainer, cfg, "dtd", 2)
    own = loading(f"output/base2new/train_base/dtd/shots_16/{trainer}/{cfg}/seed2", epoch)
    published = loading("/w/base/seed2", epoch)
    return {
        f"{folder}/base2new_train_{suffix} dtd 2": [base2new(*this, "train_base")],
        f"{folder}/base2new_test_{suffix} dtd 2": [base2new(*this, "test_new", own)],
        f"{folder}/reproduce_{suffix} dtd 2 /w": [
            base2new(*this, part, published) for part in ("test_base", "test_new")
        ],
    }


def cross_scripts(folder: str, suffix: str, trainer: str, cfg: str, epoch: int):
    """Lines that call the cross-dataset scripts of a method, with their commands."""
    own = loading(f"output/imagenet/{trainer}/{cfg}_16shots/seed2", epoch)
    return {
        f"{folder}/xd_train{suffix} imagenet 2": [all_classes(trainer, cfg, "imagenet", 16, 2)],
        f"{folder}/xd_test{suffix} dtd 2": [cross(trainer, cfg, "dtd", 2, own)],
    }


UPSTREAM = {
    **base2new_scripts("maple", "maple", "MaPLe", MAPLE, 5),
    **cross_scripts("maple", "_maple", "MaPLe", MAPLE_XD, 2),
    "maple/reproduce_maple_xd dtd 2 /w": [
        cross("MaPLe", MAPLE_XD, "dtd", 2, loading("/w/seed2", 2))
    ],
    **base2new_scripts("independent-vlp", "ivlp", "IVLP", IVLP, 5),
    **cross_scripts("independent-vlp", "_ivlp", "IVLP", IVLP, 5),
    **base2new_scripts("language-prompting", "lp", "IVLP", LANGUAGE_ONLY, 5),
    **cross_scripts("language-prompting", "_lp", "IVLP", LANGUAGE_ONLY, 5),
    **base2new_scripts("vpt", "vpt", "VPT", VPT, 5),
    **cross_scripts("vpt", "_vpt", "VPT", VPT, 5),
    "promptsrc/few_shot caltech101 4": [
        all_classes("PromptSRC", FEW_SHOT, "caltech101", 4, seed) for seed in (1, 2, 3)
    ],
    "promptsrc/reproduce_few_shot caltech101 4 /w": [
        train_py(
            *("PromptSRC", FEW_SHOT, "caltech101", seed),
            f"output/few_shot/caltech101/PromptSRC/{FEW_SHOT}_4shots/seed{seed}",
            loading(f"/w/4shot/seed{seed}", 50),
            "DATASET.NUM_SHOTS 4",
        )
        for seed in (1, 2, 3)
    ],
    "promptsrc/reproduce_base2novel_setting dtd 2 /w": [
        base2new("PromptSRC", SRC, "dtd", 2, part, loading("/w/base/seed2", 20))
        for part in ("test_base", "test_new")
    ],
    "promptsrc/reproduce_xd dtd 2 /w": [
        cross("PromptSRC", SRC_XD, "dtd", 2, loading("/w/seed2", 20))
    ],
    "coop/main dtd rn50_ep50 end 16 1 False": [
        train_py(
            *("CoOp", "rn50_ep50", "dtd", seed),
            f"output/dtd/CoOp/rn50_ep50_1shots/{NCTX}/seed{seed}",
            f"DATASET.NUM_SHOTS 1 {NCTX_PAIRS}",
        )
        for seed in (1, 2, 3)
    ],
    "coop/eval dtd rn50_ep50": [
        train_py(
            *("CoOp", "rn50_ep50", "dtd", seed),
            f"output/evaluation/CoOp/rn50_ep50_16shots/{NCTX}/dtd/seed{seed}",
            loading(f"output/imagenet/CoOp/rn50_ep50_16shots/{NCTX}/seed{seed}", 50),
            NCTX_PAIRS,
        )
        for seed in (1, 2, 3)
    ],
    **{
        f"{folder}/zeroshot dtd rn50": [
            train_py("ZeroshotCLIP", "rn50", "dtd", 1, "output/ZeroshotCLIP/rn50/dtd --eval-only")
        ]
        for folder in ("coop", "zsclip")
    },
    # names that are ours as well, with upstream's arguments
    "cocoop/xd_train 2": [all_classes("CoCoOp", METHODS["cocoop"].base2new, "imagenet", 16, 2)],
    **cross_scripts("promptsrc", "", "PromptSRC", SRC_XD, 20),
    **cross_scripts("mpl", "", "MPL", METHODS["mpl"].xd, 2),
    "mpl/base2new_train dtd 2 5": [base2new("MPL", MPL, "dtd", 2, "train_base")],
    "mpl/base2new_test dtd 2 5": [
        base2new(
            *("MPL", MPL, "dtd", 2, "test_new"),
            loading(f"output/base2new/train_base/dtd/shots_16/MPL/{MPL}/seed2", 5),
        )
    ],
}


@pytest.mark.parametrize("line", UPSTREAM)
def test_upstream_script(line):
    script, *words = line.split()
    assert dry_run(f"scripts/{script}.sh", *words) == UPSTREAM[line]


def test_every_script_is_in_the_tables():
    found = {p for p in ROOT.glob("scripts/*/*.sh") if p.name != "settings.sh"}
    old = {ROOT / "scripts" / f"{line.split()[0]}.sh" for line in UPSTREAM}
    assert found == {*SCRIPTS, *old, *ROOT.glob("scripts/*/ablation.sh")}
    assert {folder.name for folder in FOLDERS} >= set(METHODS)


def test_forwarders_are_identical():
    others = ("settings.sh", "ablation.sh")
    old = {p for p in ROOT.glob("scripts/*/*.sh") if p.name not in others} - {*SCRIPTS}
    for alike in (SCRIPTS, old):
        assert len({path.read_bytes() for path in alike}) == 1
        assert all(os.access(path, os.X_OK) for path in alike)


@pytest.mark.parametrize(
    "line", ["mmlop/fewshot dtd 4", "maple/base2new_train_maple dtd 1", "promptsrc/few_shot dtd 4"]
)
@pytest.mark.parametrize("inside", [False, True], ids=["from elsewhere", "from its folder"])
@pytest.mark.parametrize("shell", [["sh"], ["bash"], []], ids=["sh", "bash", "itself"])
def test_any_shell_may_start_a_forwarder(line, inside, shell, tmp_path):
    name, *words = line.split()
    path = ROOT / "scripts" / f"{name}.sh"
    script, cwd = (f"./{path.name}", path.parent) if inside else (str(path), tmp_path)
    env = {"PATH": os.environ["PATH"], "DRY_RUN": "1", "PYTHON": "python"}
    done = subprocess.run(
        [*shell, script, *words], cwd=cwd, env=env, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [shlex.split(command) for command in done.stdout.splitlines()] == dry_run(path, *words)


@pytest.mark.parametrize(
    ("line", "usage"),
    [
        ("maple/reproduce_maple dtd 1", "DATASET SEED WEIGHTSPATH [KEY VALUE ...]"),
        ("promptsrc/reproduce_few_shot dtd 4", "DATASET SHOTS WEIGHTSPATH [KEY VALUE ...]"),
        ("coop/main dtd rn50 end 16 1", "DATASET CFG CTP NCTX SHOTS CSC"),
        ("coop/main dtd rn50 end 16 1 False SEED 2", "DATASET CFG CTP NCTX SHOTS CSC"),
        ("coop/eval dtd", "DATASET CFG"),
        ("zsclip/zeroshot dtd", "DATASET CFG"),
    ],
)
def test_upstream_script_says_what_it_takes(line, usage):
    script, *words = line.split()
    done = call(f"scripts/{script}.sh", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: usage: scripts/{script}.sh {usage}\n"


def test_an_unset_variable_is_no_argument():
    done = call("scripts/maple/reproduce_maple.sh", "dtd", "1", "")
    assert done.returncode == 2
    assert "error: usage: " in done.stderr


def test_weights_are_looked_for_where_the_caller_is(tmp_path):
    script = "scripts/maple/reproduce_maple_xd.sh"
    (command,) = dry_run(script, "dtd", "2", "weights", cwd=tmp_path)
    assert command[command.index("--model-dir") + 1] == f"{tmp_path}/weights/seed2"


ALIASES = yaml.safe_load((ROOT / "configs" / "aliases.yaml").read_text())
ALIAS_CASES = [(t, alias, name) for t, names in ALIASES.items() for alias, name in names.items()]


@pytest.mark.parametrize(("trainer", "alias", "name"), ALIAS_CASES)
def test_upstream_config_name(trainer, alias, name):
    method = next(key for key, method in METHODS.items() if method.trainer == trainer)
    done = call(f"scripts/{method}/base2new_train.sh", "dtd", "1", DRY_RUN="1", CFG=alias)
    assert done.stderr == f"note: {alias} is upstream's name of {name}\n"
    assert shlex.split(done.stdout) == base2new(trainer, name, "dtd", 1, "train_base")


# --- details --------------------------------------------------------------------------------------


def test_epochs_as_third_argument():
    script = "scripts/mpl/base2new_{}.sh"
    (train,) = dry_run(script.format("train"), "dtd", "1", "7", "OPTIM.LR", "0.1")
    assert train[-4:] == ["OPTIM.MAX_EPOCH", "7", "OPTIM.LR", "0.1"]
    (test,) = dry_run(script.format("test"), "dtd", "1", "7")
    label = f"{MPL}-OPTIM.MAX_EPOCH=7"
    base = f"output/base2new/train_base/dtd/shots_16/MPL/{label}/seed1"
    assert test[test.index("--model-dir") + 1] == base
    assert test[test.index("--load-epoch") + 1] == "7"


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


@pytest.mark.parametrize(
    ("line", "folder"),
    [
        ("base2new_train digits 1,2", "base2new/train_base/digits/shots_16/MMLoP/tiny/"),
        ("fewshot digits 4 1,2", "digits/MMLoP/tiny_4shots/"),
        ("xd_train digits 1,2", "digits/MMLoP/tiny_16shots/"),
    ],
)
def test_seeds_with_commas_are_trained_together(line, folder):
    protocol, *words = line.split()
    ((*command,),) = dry_run(f"scripts/mmlop/{protocol}.sh", *words)
    assert command[command.index("--seeds") + 1] == "1,2"
    assert "--seed" not in command
    assert command[command.index("--output-dir") + 1] == f"output/{folder}seed{{seed}}"


@pytest.mark.parametrize(
    ("line", "env"),
    [
        ("mmlop/base2new_test digits 1,2", {}),
        ("mmlop/xd_test shapes 1,2", {"SOURCE": "digits"}),
        ("mmlop/fewshot digits 4 1,2", {"WEIGHTS": "/w"}),
        ("zsclip/base2new_train digits 1,2", {}),
    ],
)
def test_seeds_with_commas_are_tested_one_by_one(line, env):
    script, *words = line.split()
    commands = dry_run(f"scripts/{script}.sh", *words, **env)
    one_by_one = [dry_run(f"scripts/{script}.sh", *words[:-1], seed, **env) for seed in "12"]
    assert commands == [*one_by_one[0], *one_by_one[1]]


@pytest.mark.parametrize("word", ["1,", ",1", "1,,2", "a,2"])
def test_lists_that_name_no_seeds(word):
    done = call("scripts/mmlop/base2new_train.sh", "digits", word, DRY_RUN="1")
    assert done.returncode == 2
    assert f"not '{word}'" in done.stderr


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


@pytest.mark.parametrize(
    ("ours", "data", "epoch"),
    [
        ("_BASE_: tiny.yaml", "", "20"),
        ("_BASE_: ../../tiny.yaml", "", "10"),  # the engine's default
        ("_BASE_: ../../tiny.yaml", "OPTIM: {MAX_EPOCH: 7}", "7"),
        ("_BASE_: tiny.yaml\nOPTIM: {LR: 1}", "OPTIM: {MAX_EPOCH: 7}", "20"),
        ('{OPTIM: {"MAX_EPOCH": 4}}', "", "4"),
    ],
)
def test_load_epoch_is_that_of_the_config_code(ours, data, epoch, clone):
    (clone.folder / "configs/trainers/MMLoP/mine.yaml").write_text(ours)
    with open(clone.folder / "configs/datasets/digits.yaml", "a") as file:
        file.write(f"{data}\n")
    done = clone.call("scripts/mmlop/base2new_test.sh", "digits", "1", CFG="mine", DRY_RUN="1")
    words = done.stdout.split()
    assert words[words.index("--load-epoch") + 1] == epoch, done.stderr


def test_load_epoch_that_is_no_number():
    done = call("scripts/mmlop/base2new_test.sh", "digits", "1", "OPTIM.MAX_EPOCH", "few")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: config key OPTIM.MAX_EPOCH takes int values")


def test_how_it_is_computed_makes_no_folder_of_its_own():
    keys = [key.replace("*", "MMLOP") for key in RUNTIME_KEYS]
    pairs = [word for key in keys for word in (key, "1")]
    for script in ("base2new_train", "base2new_test"):
        (command,) = dry_run(f"scripts/mmlop/{script}.sh", "digits", "1", *pairs)
        assert "/MMLoP/tiny/seed1" in command[command.index("--output-dir") + 1]
        assert command[-len(pairs) :] == pairs
    (command,) = dry_run(
        "scripts/mmlop/fewshot.sh", "digits", "2", "1", "USE_CUDA", "1", "SEED", "2"
    )
    assert "/MMLoP/tiny-SEED=2_2shots/" in command[command.index("--output-dir") + 1]


def test_threads_of_the_tiny_backbone(tmp_path):
    program = stand_in(tmp_path, 'echo "threads ${OMP_NUM_THREADS:-all}"')
    env = {"OUTPUT": str(tmp_path / "out"), "PYTHON": program, "DATA": str(tmp_path)}
    script = "scripts/coop/base2new_train.sh"
    assert call(script, "digits", "1", **env).stdout == "threads 1\n"
    assert call(script, "digits", "1", OMP_NUM_THREADS="3", **env).stdout == "threads 3\n"
    assert call(script, "eurosat", "1", **env).stdout == "threads all\n"


def test_config_by_the_name_of_its_file():
    script = "scripts/coop/base2new_train.sh"
    (command,) = dry_run(script, "digits", "1", CFG="vit_b16")
    for name in ("vit_b16.yaml", "configs/trainers/CoOp/vit_b16.yaml"):
        assert dry_run(script, "digits", "1", CFG=name) == [command]


def test_a_source_that_was_forgotten(tmp_path, python_that_reports):
    (tmp_path / "digits/CoOp/tiny_16shots/seed1").mkdir(parents=True)
    env = {"OUTPUT": str(tmp_path), "PYTHON": python_that_reports}
    done = call("scripts/coop/xd_test.sh", "shapes", "1", **env)
    assert done.returncode == 2
    assert (
        "SOURCE is not set, so that it is imagenet (there are trainings on: digits)" in done.stderr
    )
    done = call("scripts/coop/xd_test.sh", "shapes", "1", **env, SOURCE="imagenet")
    assert "SOURCE" not in done.stderr


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("mmlop/base2new_train", "usage: scripts/mmlop/base2new_train.sh DATASET SEED [MAX_EPOCH]"),
        ("mmlop/fewshot", "usage: scripts/mmlop/fewshot.sh DATASET SHOTS [SEED ...]"),
        ("maple/reproduce_maple", "reproduce*.sh DATASET SEED WEIGHTSPATH"),
        ("quickstart", "JOBS, how many runs at once"),
        ("run", "scripts/<method>/base2new_train.sh DATASET SEED"),
    ],
)
def test_help_explains_with_the_variables(script, words):
    for option in ("--help", "-h"):
        done = call(f"scripts/{script}.sh", option)
        assert (done.returncode, done.stderr) == (0, "")
        assert words in done.stdout
        assert "From the environment" in done.stdout and "OUTPUT" in done.stdout
        assert "#" not in done.stdout


def test_config_and_shots_from_the_environment():
    script = "scripts/coop/base2new_train.sh"
    (command,) = dry_run(script, "digits", "1", CFG="vit_b16", SHOTS="4", DATA="/d")
    assert command[command.index("--config-file") + 1] == "configs/trainers/CoOp/vit_b16.yaml"
    assert "digits/shots_4/CoOp/vit_b16/" in command[command.index("--output-dir") + 1]
    assert command[command.index("DATASET.NUM_SHOTS") + 1] == "4"


@pytest.mark.parametrize(
    ("line", "env", "folder"),
    [
        ("coop/fewshot dtd all 1", {}, "dtd/CoOp/vit_b16_allshots"),
        ("coop/base2new_train dtd 1", {"SHOTS": "all"}, "base2new/train_base/dtd/shots_all/CoOp/"),
        ("coop/xd_train dtd 1", {"SHOTS": "all"}, "dtd/CoOp/vit_b16_ep50_ctxv1_allshots"),
    ],
)
def test_all_training_images(line, env, folder):
    script, *words = line.split()
    (command,) = dry_run(f"scripts/{script}.sh", *words, **env)
    assert command[command.index("DATASET.NUM_SHOTS") + 1] == "-1"
    assert f"output/{folder}" in command[command.index("--output-dir") + 1]


@pytest.mark.parametrize(
    ("script", "words", "env", "message"),
    [
        ("mmlop/base2new_train", ["digits"], {}, "usage: scripts/mmlop/base2new_train.sh DATASET"),
        ("mmlop/fewshot", ["digits"], {}, "usage: scripts/mmlop/fewshot.sh DATASET SHOTS"),
        ("mmlop/base2new_train", ["digits", "-1"], {}, "SEED must be a whole number"),
        ("mmlop/base2new_train", ["digits", "1"], {"SHOTS": "0"}, "SHOTS must be"),
        ("mmlop/fewshot", ["digits", "each"], {}, "SHOTS must be a whole number from 1 on, or all"),
        ("mmlop/base2new_train", ["digits", "1", "OPTIM.LR"], {}, "a key has no value"),
        ("mmlop/base2new_train", ["digits", "1", "OPTIM.LR=1"], {}, "as two words, OPTIM.LR 1"),
        ("mmlop/base2new_train", ["digit", "1"], {}, "no data set digit; there are: "),
        ("mmlop/base2new_train", ["digit", "1"], {}, "; did you mean digits?"),
        ("mmlop/base2new_train", ["dtd", "1", "DATASET.NUM_SHOTS", "1"], {}, "is set by SHOTS"),
        ("mmlop/fewshot", ["dtd", "1", "1", "DATASET.SUBSAMPLE_CLASSES", "new"], {}, "protocol"),
        ("mmlop/base2new_train", ["digits", "1"], {"CFG": "huge"}, "MMLoP/huge.yaml; there are: "),
        ("mmlop/base2new_train", ["digits", "1"], {"CFG": "tini"}, "; did you mean tiny?"),
        ("mmlop/base2new_train", ["digits", "1"], {"DATA": "/nowhere"}, "DATA is /nowhere, which"),
        ("mmlop/base2new_train", ["digits", "1", "0"], {}, "MAX_EPOCH must be a whole number"),
        ("mmlop/base2new_train", ["digits", "1"], {"SUBFOLDER": "a"}, "SUBFOLDER is not for"),
        ("mmlop/base2new_train", ["digits", "1"], {"WEIGHTS": "/w"}, "WEIGHTS is for testing"),
        ("zsclip/xd_test", ["digits", "1"], {"WEIGHTS": "/w"}, "WEIGHTS is for testing"),
        ("mmlop/xd_train", [], {}, "usage: scripts/mmlop/xd_train.sh [DATASET] SEED"),
        ("mmlop/xd_train", ["digits"], {}, "usage: scripts/mmlop/xd_train.sh [DATASET] SEED"),
        ("mmlop/xd_train", ["digits", "1"], {"SOURCE": "shapes"}, "SOURCE is shapes, but digits"),
        ("mmlop/xd_test", ["digits", "1"], {"SOURCE": "shape"}, "no data set shape; there are: "),
        ("mmlop/xd_test", ["1"], {}, "usage: scripts/mmlop/xd_test.sh DATASET SEED [MAX_EPOCH]"),
        ("mmlop/dg_test", ["shapes", "1"], {}, "shapes is none of ImageNet's variants"),
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
    return stand_in(tmp_path, 'echo "ran $*"')


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


def test_a_training_without_a_test_is_finished(tmp_path, python_that_reports):
    folder = tmp_path / "digits/CoOp/tiny_allshots"
    finished = "Finish training\nNot tested: no test images\nElapsed: 0:00:01\n"
    for seed, text in enumerate((finished, LOGS["crashed"][0])):
        (folder / f"seed{seed}").mkdir(parents=True)
        (folder / f"seed{seed}/log.txt").write_text(f"** Arguments **\n{text}")
    env = {"OUTPUT": str(tmp_path), "PYTHON": python_that_reports}
    lines = call("scripts/coop/fewshot.sh", "digits", "all", "0", "1", **env).stdout.splitlines()
    assert lines[0] == f"finished already: {folder}/seed0"
    assert lines[1].startswith("ran train.py")


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


@pytest.fixture
def finished(tmp_path, monkeypatch, capsys):
    """Function that writes the log of a finished training of CoOp on digits, with these pairs."""
    folder = tmp_path / "base2new/train_base/digits/shots_16/CoOp/tiny-mine/seed1"
    few = ["DATASET.NUM_SHOTS", "16", "DATASET.SUBSAMPLE_CLASSES", "base"]
    monkeypatch.setattr("dassl.utils.collect_env_info", str)
    monkeypatch.setattr("dassl.utils.print_detail", print)  # as it stands in a log
    monkeypatch.chdir(ROOT)

    def write(*pairs: str) -> Path:
        words = train_py("CoOp", "tiny", "digits", 1, str(folder))[2:]
        args = train.build_parser().parse_args([*words, *few, *pairs])
        train.print_settings(args, train.setup_cfg(args))
        folder.mkdir(parents=True)
        (folder / "log.txt").write_text(capsys.readouterr().out + LOGS["current"][0])
        return folder

    return write


@pytest.mark.parametrize(
    ("then", "now", "words", "message"),
    [
        ("", "", "finished already", ""),
        ("", "DATALOADER.NUM_WORKERS 3", "with DATALOADER.NUM_WORKERS 0 (now 3)", ""),
        ("", "TEST.PER_CLASS_RESULT True", "ran train.py", ""),
        ("TEST.NO_TEST True", "", "ran train.py", ""),
        ("TEST.PER_CLASS_RESULT True", "", "finished already", ""),
        ("", "OPTIM.LR 0.1", "", "a finished run with OPTIM.LR 0.01 (now 0.1): give the settings"),
        ("OPTIM.LR 0.1", "OPTIM.LR 1e-1", "finished already", ""),
        ("OPTIM.LR 0.1", "", "", "OPTIM.LR 0.1 (now 0.01)"),
        ("OPTIM.MOMENTUM 0", "", "", "OPTIM.MOMENTUM 0.0 (now 0.9)"),
        ("TRAINER.COOP.N_CTX 3", "", "", "TRAINER.COOP.N_CTX 3 (now 4)"),
        ("OPTIM.MAX_EPOCH 5", "OPTIM.MAX_EPOCH 5", "finished already", ""),
        ("OPTIM.MAX_EPOCH 5", "", "", "or train that one for longer with TRAIN.EXTEND True"),
        ("OPTIM.MAX_EPOCH 5", "TRAIN.EXTEND True", "ran train.py", ""),
        ("OPTIM.MAX_EPOCH 5", "TRAIN.EXTEND True OPTIM.MAX_EPOCH 4", "", "MAX_EPOCH 5 (now 4)"),
        (
            "OPTIM.MAX_EPOCH 5",
            "TRAIN.EXTEND True OPTIM.LR 1",
            "",
            "0.01 (now 1), OPTIM.MAX_EPOCH 5",
        ),
    ],
)
def test_a_finished_run_of_other_settings(
    then, now, words, message, finished, tmp_path, python_that_reports
):
    """It is not taken for one of these settings; how it was computed is said."""
    finished(*then.split())
    env = {"OUTPUT": str(tmp_path), "PYTHON": python_that_reports, "TAG": "mine"}
    done = call("scripts/coop/base2new_train.sh", "digits", "1", *now.split(), **env)
    assert words in done.stdout
    assert message in done.stderr if message else done.stderr == ""
    assert done.returncode == (2 if message else 0)


def test_weights_of_other_settings_are_not_tested(finished, tmp_path, python_that_reports):
    folder = finished("OPTIM.LR", "0.1")
    env = {"OUTPUT": str(tmp_path), "PYTHON": python_that_reports, "TAG": "mine"}
    words = ("scripts/coop/base2new_test.sh", "digits", "1", "OPTIM.LR")
    done = call(*words, "0.2", **env)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{folder} holds a finished run with OPTIM.LR 0.1 (now 0.2)" in done.stderr
    assert call(*words, "0.1", **env).stdout.startswith("ran train.py")


def test_finished_seeds_are_not_trained_with_the_others(tmp_path, python_that_reports):
    folder = tmp_path / "digits/CoOp/tiny_1shots"
    (folder / "seed2").mkdir(parents=True)
    (folder / "seed2/log.txt").write_text(LOGS["current"][0])
    env = {"OUTPUT": str(tmp_path), "PYTHON": python_that_reports}
    lines = call("scripts/coop/fewshot.sh", "digits", "1", "1,2,3", **env).stdout.splitlines()
    assert lines[0] == f"finished already: {folder}/seed2"
    assert "--seeds 1,3" in lines[1]
    assert f"--output-dir {folder}/seed{{seed}}" in lines[1]
    done = call("scripts/coop/fewshot.sh", "digits", "1", "2,2", **env)
    assert done.stdout.splitlines() == [lines[0]] * 2


def test_testing_needs_the_training(tmp_path, python_that_reports):
    env = {"OUTPUT": str(tmp_path), "PYTHON": python_that_reports}
    done = call("scripts/coop/base2new_test.sh", "digits", "1", **env)
    assert done.returncode == 2
    assert "first run scripts/coop/base2new_train.sh" in done.stderr
    assert "ran" not in done.stdout


@pytest.mark.parametrize(
    ("words", "env", "message"),
    [
        (
            ["mmlop/xd_test", "shapes", "1"],
            {"SOURCE": "digits"},
            "first run scripts/mmlop/xd_train",
        ),
        (["mmlop/dg_test", "1"], {}, "first run scripts/mmlop/xd_train.sh with the same settings"),
        (["mmlop/base2new_test", "dtd", "1"], {"WEIGHTS": "w"}, "no model.pth.tar-30 below "),
    ],
)
def test_transfer_needs_weights(words, env, message, tmp_path, python_that_reports):
    env = {"OUTPUT": str(tmp_path), "PYTHON": python_that_reports, **env}
    done = call(f"scripts/{words[0]}.sh", *words[1:], cwd=tmp_path, **env)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_results_of_other_weights_do_not_count(tmp_path, python_that_reports):
    """Published weights and one's own are tested into the same folder, as upstream."""
    env = {"OUTPUT": str(tmp_path), "PYTHON": python_that_reports, "SOURCE": "digits"}
    trained = tmp_path / "digits/CoOp/tiny_16shots/seed1"
    published = tmp_path / "published/seed1"
    for folder in (trained, published):
        (folder / "prompt_learner").mkdir(parents=True)
        weights = folder / "prompt_learner/model.pth.tar-20"
        weights.write_text("")
        os.utime(weights, (1_000_000, 1_000_000))
    (trained / "log.txt").write_text(LOGS["current"][0])
    tested = tmp_path / "evaluation/CoOp/tiny_16shots/from_digits/shapes/seed1"
    tested.mkdir(parents=True)
    words = ("scripts/coop/xd_test.sh", "shapes", "1")
    # in the place that the results had before they were moved
    own = "elsewhere/output/digits/CoOp/tiny_16shots/seed1"
    for loaded, of_own, of_published in ((own, True, False), (str(published), False, True)):
        (tested / "log.txt").write_text(f"** Arguments **\nmodel_dir: {loaded}\n{RESULT}")
        done = call(*words, **env)
        assert done.stdout.startswith("finished already" if of_own else "ran train.py")
        done = call(*words, **env, WEIGHTS=str(published.parent))
        assert done.stdout.startswith("finished already" if of_published else "ran train.py")


def test_a_new_training_is_tested_again(tmp_path, python_that_reports):
    tail = "digits/shots_16/CoOp/tiny/seed1"
    base = tmp_path / "base2new/train_base" / tail
    new = tmp_path / "base2new/test_new" / tail
    weights = base / "prompt_learner" / "model.pth.tar-20"
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
    env = {"OUTPUT": str(tmp_path), "PYTHON": stand_in(tmp_path, "echo ran; exit 2")}
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
