"""Every script's dry run against the command expected: what is run, and where it writes."""

from __future__ import annotations

import itertools
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from dassl.config import RUNTIME_KEYS
from protocols import VARIANTS

ROOT = Path(__file__).parents[2]
PROTOCOLS = (
    "base2new_train",
    "base2new_test",
    "base2new_test_all",
    "fewshot",
    "xd_train",
    "xd_test",
    "dg_test",
)


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
    # these count steps, so that the last weights are loaded, whatever their number
    "cliplora": Method("CLIPLoRA", "vit_b16", epochs=(0, 0, 20)),
    "twostagefs": Method("TwoStageFS", "vit_b16", epochs=(0, 0, 20)),
    "mma": Method(
        "MMA",
        {"imagenet": "vit_b16_ep5_imnet", "eurosat": "vit_b16_ep5"},
        xd="vit_b16_ep1_start9",
        epochs=(5, 1, 20),
    ),
    "mmrl": Method(
        "MMRL",
        {"imagenet": "vit_b16_imagenet", "eurosat": "vit_b16"},
        {"imagenet": "vit_b16_imagenet", "eurosat": "vit_b16_few_shot"},
        "vit_b16_cross_datasets",
        epochs=(5, 1, 20),
    ),
    "mmrlplusplus": Method(
        "MMRLPlusPlus",
        {"imagenet": "vit_b16_imagenet", "eurosat": "vit_b16"},
        {"imagenet": "vit_b16_imagenet", "eurosat": "vit_b16_few_shot"},
        "vit_b16_cross_datasets",
        epochs=(5, 1, 20),
    ),
    "coprompt": Method("CoPrompt", "coprompt", xd="vit_b16_cross_datasets", epochs=(8, 8, 20)),
    "lorvp": Method("LoRVP", "vit_b16_r4_ep20_batch32", epochs=(20, 20, 20)),
    "mmlop": Method(
        "MMLoP",
        "vit_b16_base2new",
        "vit_b16_fewshot",
        "vit_b16_cross_datasets",
        epochs=(30, 50, 20),
    ),
}


def train_py(trainer: str, cfg: str, dataset: str, seed: int, folder: str, *rest: object):
    """The words of one call of train.py; ``rest`` in one string or in several."""
    return (
        f"python train.py --root data --seed {seed} --trainer {trainer}"
        f" --dataset-config-file configs/datasets/{dataset}.yaml"
        f" --config-file configs/trainers/{trainer}/{cfg}.yaml --output-dir {folder}"
        f" {' '.join(map(str, rest))}"
    ).split()


def loading(folder: str, epoch: int | None) -> str:
    """Options of a test: of the weights in a folder (0: the last), or of none that are trained."""
    if epoch is None:
        return "--eval-only"
    return f"--eval-only --model-dir {folder}" + (f" --load-epoch {epoch}" if epoch else "")


def base2new(trainer: str, cfg: str, dataset: str, seed: int, part: str, load: str = ""):
    """A command of base-to-new; part is train_base, test_base, test_new or test_all."""
    folder = f"output/base2new/{part}/{dataset}/shots_16/{trainer}/{cfg}/seed{seed}"
    classes = f"DATASET.NUM_SHOTS 16 DATASET.SUBSAMPLE_CLASSES {part.split('_')[1]}"
    if part == "test_all":
        classes = "DATASET.NUM_SHOTS 16 TEST.BASE_AND_NEW True"
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
    part = {"base2new_test": "test_new", "base2new_test_all": "test_all"}.get(protocol)
    epoch = epochs[2 if source == "digits" else part is None]
    if part:
        base = f"output/base2new/train_base/{dataset}/shots_16/{method.trainer}/{cfg}/seed1"
        return [base2new(*this, 1, part, loading(base, epoch))]
    load = loading(f"output/{source}/{method.trainer}/{cfg}_16shots/seed1", epoch)
    from_ = "" if source == "imagenet" else f"from_{source}/"
    return [cross(*this, 1, load, from_)]


DATASETS = {
    "base2new_train": ("digits", "imagenet", "eurosat"),
    "base2new_test": ("digits", "imagenet"),
    "base2new_test_all": ("digits", "imagenet"),
    "fewshot": ("digits", "imagenet", "eurosat"),
    "xd_train": ("digits", "imagenet"),
    "xd_test": ("shapes", "eurosat"),
    "dg_test": ("imagenet_a",),
}
CASES = [(m, p, dataset) for m in METHODS for p in PROTOCOLS for dataset in DATASETS[p]]


@pytest.mark.parametrize(("method", "protocol", "dataset"), CASES)
def test_dry_run(method, protocol, dataset, dry_run):
    words = [dataset, "16" if protocol == "fewshot" else "1"]
    env = {"SOURCE": "digits"} if dataset == "shapes" else {}
    commands = dry_run(f"{method}/{protocol}", *words, **env)
    assert commands == expected(method, protocol, dataset)


def test_source_may_be_left_out(dry_run):
    assert dry_run("mmlop/xd_train", "1") == expected("mmlop", "xd_train", "imagenet")
    commands = dry_run("mmlop/xd_train", "1", SOURCE="digits")
    assert commands == expected("mmlop", "xd_train", "digits")


def test_domain_generalisation_takes_all_variants(dry_run):
    commands = dry_run("maple/dg_test", "1")
    assert commands == [c for name in VARIANTS for c in expected("maple", "dg_test", name)]


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
def test_upstream_script(line, dry_run):
    script, *words = line.split()
    assert dry_run(script, *words) == UPSTREAM[line]


@pytest.mark.parametrize(
    ("line", "usage"),
    [
        ("maple/reproduce_maple dtd 1", "DATASET SEED WEIGHTSPATH [KEY VALUE ...]"),
        ("promptsrc/reproduce_few_shot dtd 4", "DATASET SHOTS WEIGHTSPATH [KEY VALUE ...]"),
        ("coop/main dtd rn50 end 16 1", "DATASET CFG CTP NCTX SHOTS CSC"),
        ("coop/main dtd rn50 end 16 1 False SEED 2", "DATASET CFG CTP NCTX SHOTS CSC"),
        ("coop/eval dtd", "DATASET CFG"),
        ("zsclip/zeroshot dtd", "DATASET CFG"),
        # a variable that is not set is no argument
        ("maple/reproduce_maple dtd 1 ''", "DATASET SEED WEIGHTSPATH [KEY VALUE ...]"),
    ],
)
def test_upstream_script_says_what_it_takes(line, usage, call):
    script, *words = shlex.split(line)
    done = call(script, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: usage: scripts/{script}.sh {usage}\n"


ALIASES = yaml.safe_load((ROOT / "configs" / "aliases.yaml").read_text())
ALIAS_CASES = [(t, alias, name) for t, names in ALIASES.items() for alias, name in names.items()]


@pytest.mark.parametrize(("trainer", "alias", "name"), ALIAS_CASES)
def test_upstream_config_name(trainer, alias, name, call):
    method = next(key for key, method in METHODS.items() if method.trainer == trainer)
    done = call(f"{method}/base2new_train", "dtd", "1", DRY_RUN="1", CFG=alias)
    assert done.stderr.splitlines()[0] == f"note: {alias} is upstream's name of {name}"
    assert shlex.split(done.stdout) == base2new(trainer, name, "dtd", 1, "train_base")


# --- options --------------------------------------------------------------------------------------

COOP = "configs/trainers/CoOp/vit_b16{}.yaml"
RANK = "TRAINER.MMLOP.RANK 2 INPUT.SIZE '(32, 32)'"
MMLOP_TINY = "output/base2new/train_base/digits/shots_16/MMLoP/tiny{}/seed1"
ALL_KEYS = " ".join(f"{key.replace('*', 'MMLOP')} 1" for key in RUNTIME_KEYS)
#: line and environment -> option or key of the one command -> its value
OPTIONS = [
    # epochs are those of the data set, or given, or follow the pairs
    (
        "coop/base2new_test eurosat 1",
        {"DATA": "/some/where"},
        {"--load-epoch": "200", "--root": "/some/where"},
    ),
    ("mmlop/base2new_test digits 1 OPTIM.MAX_EPOCH 3", {}, {"--load-epoch": "3"}),
    ("mpl/base2new_train dtd 1 7 OPTIM.LR 0.1", {}, {"OPTIM.MAX_EPOCH": "7", "OPTIM.LR": "0.1"}),
    (
        "mpl/base2new_test dtd 1 7",
        {},
        {
            "--load-epoch": "7",
            "--model-dir": "output/base2new/train_base/dtd/shots_16/MPL/"
            f"{MPL}-OPTIM.MAX_EPOCH=7/seed1",
        },
    ),
    # shots
    *(
        (
            f"coop/fewshot eurosat {shots} 1",
            {"SHOTS": "3"},  # not meant
            {
                "--config-file": COOP.format(config),
                "--output-dir": f"output/eurosat/CoOp/vit_b16{config}_{shots}shots/seed1",
            },
        )
        for shots, config in (("1", "_ep50"), ("2", "_ep100"), ("4", "_ep100"), ("8", ""))
    ),
    (
        "coop/fewshot dtd all 1",
        {},
        {"--output-dir": "output/dtd/CoOp/vit_b16_allshots/seed1", "DATASET.NUM_SHOTS": "-1"},
    ),
    (
        "coop/base2new_train dtd 1",
        {"SHOTS": "all"},
        {
            "--output-dir": "output/base2new/train_base/dtd/shots_all/CoOp/vit_b16_ctxv1/seed1",
            "DATASET.NUM_SHOTS": "-1",
        },
    ),
    (
        "coop/xd_train dtd 1",
        {"SHOTS": "all"},
        {
            "--output-dir": "output/dtd/CoOp/vit_b16_ep50_ctxv1_allshots/seed1",
            "DATASET.NUM_SHOTS": "-1",
        },
    ),
    # another config, by its name or the path of its file; a name for several
    *(
        (
            "coop/base2new_train digits 1",
            {"CFG": name, "SHOTS": "4", "DATA": "/d"},
            {
                "--config-file": COOP.format(""),
                "--output-dir": "output/base2new/train_base/digits/shots_4/CoOp/vit_b16/seed1",
                "DATASET.NUM_SHOTS": "4",
            },
        )
        for name in ("vit_b16", "vit_b16.yaml", "configs/trainers/CoOp/vit_b16.yaml")
    ),
    *(
        (line, {"CFG": "vit_b32_fewshot"}, {"--config-file": f"configs/trainers/{config}.yaml"})
        for line, config in (
            ("coop/fewshot imagenet 8 1", "CoOp/vit_b32_fewshot_ep50"),
            ("coop/fewshot dtd 1 1", "CoOp/vit_b32_fewshot_ep50"),
            ("coop/fewshot dtd 4 1", "CoOp/vit_b32_fewshot_ep100"),
            ("coop/fewshot dtd 8 1", "CoOp/vit_b32_fewshot"),
            ("promptsrc/fewshot dtd 8 1", "PromptSRC/vit_b32_fewshot_gpa45"),
            ("promptsrc/fewshot food101 8 1", "PromptSRC/vit_b32_fewshot"),
            ("language-prompting/fewshot dtd 8 1", "IVLP/vit_b32_fewshot_language_only"),
            ("ivlp/fewshot dtd 8 1", "IVLP/vit_b32_fewshot"),
        )
    ),
    # pairs get a folder of their own; how it is computed does not
    (
        f"mmlop/base2new_train digits 1 {RANK}",
        {},
        {"--output-dir": MMLOP_TINY.format("-TRAINER.MMLOP.RANK=2-INPUT.SIZE=_32,_32_")},
    ),
    (
        f"mmlop/base2new_test digits 1 {RANK}",
        {},
        {"--model-dir": MMLOP_TINY.format("-TRAINER.MMLOP.RANK=2-INPUT.SIZE=_32,_32_")},
    ),
    (
        f"mmlop/base2new_train digits 1 {RANK}",
        {"TAG": "rank2"},
        {"--output-dir": MMLOP_TINY.format("-rank2"), "INPUT.SIZE": "(32, 32)"},
    ),
    (
        f"mmlop/base2new_test digits 1 {RANK}",
        {"TAG": "rank2"},
        {"--model-dir": MMLOP_TINY.format("-rank2"), "INPUT.SIZE": "(32, 32)"},
    ),
    (
        f"mmlop/base2new_train digits 1 {RANK}",
        {"TAG": ""},
        {"--output-dir": MMLOP_TINY.format("")},
    ),
    (
        "mmlop/base2new_train digits 1",
        {"TAG": "again"},
        {"--output-dir": MMLOP_TINY.format("-again")},
    ),
    (f"mmlop/base2new_train digits 1 {ALL_KEYS}", {}, {"--output-dir": MMLOP_TINY.format("")}),
    (f"mmlop/base2new_test digits 1 {ALL_KEYS}", {}, {"--model-dir": MMLOP_TINY.format("")}),
    (
        "mmlop/fewshot digits 2 01 USE_CUDA 1 OPTIM.LR 2",
        {},
        {"--output-dir": "output/digits/MMLoP/tiny-OPTIM.LR=2_2shots/seed1", "USE_CUDA": "1"},
    ),
    # seeds with commas are trained together
    (
        "mmlop/base2new_train digits 1,2",
        {},
        {
            "--seeds": "1,2",
            "--output-dir": "output/base2new/train_base/digits/shots_16/MMLoP/tiny/seed{seed}",
        },
    ),
    (
        "mmlop/fewshot digits 4 1,2",
        {},
        {"--seeds": "1,2", "--output-dir": "output/digits/MMLoP/tiny_4shots/seed{seed}"},
    ),
    (
        "mmlop/xd_train digits 1,2",
        {},
        {"--seeds": "1,2", "--output-dir": "output/digits/MMLoP/tiny_16shots/seed{seed}"},
    ),
    # methods by other names, in another case
    ("MMLoP/base2new_train digits 1", {}, {"--output-dir": MMLOP_TINY.format("")}),
    ("ZeroshotCLIP/fewshot digits 4 1", {}, {"--trainer": "ZeroshotCLIP"}),
    ("IVLP/fewshot dtd 4 1", {}, {"--config-file": f"configs/trainers/IVLP/{IVLP}.yaml"}),
    # published weights lie where the caller says
    ("maple/reproduce_maple_xd dtd 2 weights", {}, {"--model-dir": f"{ROOT}/weights/seed2"}),
]


@pytest.mark.parametrize(("line", "env", "options"), OPTIONS, ids=lambda case: str(case)[:60])
def test_options(line, env, options, dry_run):
    script, *words = shlex.split(line)
    (command,) = dry_run(script, *words, **env)
    assert {key: command[command.index(key) + 1] for key in options} == options
    assert ("--seed" in command) != ("--seeds" in command)
    # the pairs of the caller come last, as they are
    pairs = list(itertools.dropwhile(lambda word: not re.match("[A-Z]{3}", word), words))
    assert command[len(command) - len(pairs) :] == pairs


def test_fewshot_takes_seeds_and_pairs(dry_run):
    commands = dry_run("coop/fewshot", "digits", "2", "0", "7", "OPTIM.LR", "0.1")
    assert [command[command.index("--seed") + 1] for command in commands] == ["0", "7"]
    assert all(command[-2:] == ["OPTIM.LR", "0.1"] for command in commands)


@pytest.mark.parametrize(
    ("line", "env"),
    [
        ("mmlop/base2new_test digits 1,2", {}),
        ("mmlop/xd_test shapes 1,2", {"SOURCE": "digits"}),
        ("mmlop/fewshot digits 4 1,2", {"WEIGHTS": "/w"}),
        ("zsclip/base2new_train digits 1,2", {}),
    ],
)
def test_seeds_with_commas_are_tested_one_by_one(line, env, dry_run):
    script, *words = line.split()
    commands = dry_run(script, *words, **env)
    one_by_one = [dry_run(script, *words[:-1], seed, **env) for seed in "12"]
    assert commands == [*one_by_one[0], *one_by_one[1]]


def test_folders_are_relative_to_the_caller(dry_run, tmp_path):
    script = "mmlop/base2new_train"
    assert dry_run(script, "digits", "1") == dry_run(script, "digits", "1", cwd=tmp_path)
    (command,) = dry_run(script, "digits", "1", cwd=tmp_path, DATA="d", OUTPUT="out")
    assert command[command.index("--root") + 1] == str(tmp_path / "d")
    folder = command[command.index("--output-dir") + 1]
    assert folder.startswith(str(tmp_path / "out" / "base2new"))


@pytest.mark.parametrize(
    ("ours", "data", "epoch"),
    [
        ("_BASE_: tiny.yaml", "", "20"),
        ("_BASE_: ../../base.yaml", "", "10"),  # the engine's default
        ("_BASE_: ../../base.yaml", "OPTIM: {MAX_EPOCH: 7}", "7"),
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


@pytest.mark.parametrize("choice", ["last_step", "best_val"])
def test_a_test_takes_the_weights_that_the_training_ended_with(choice, clone):
    words = ("symbols_a", "1", "TEST.FINAL_MODEL", choice)
    for script in ("dg_test", "xd_test"):  # a variant says what its source is
        done = clone.call(f"scripts/mmlop/{script}.sh", *words, DRY_RUN="1")
        command = done.stdout.split()
        folder = f"symbols/MMLoP/tiny-TEST.FINAL_MODEL={choice}_16shots/seed1"
        assert command[command.index("--model-dir") + 1].endswith(folder), done.stderr
        assert ("--load-epoch" in command) == (choice == "last_step")
