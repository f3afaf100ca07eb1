"""Seeds trained together against the same seeds trained alone, for every registered method."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from inspect import getsource
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import train
from adaptation.classifier import PromptedCLIP
from adaptation.seeds import SeveralSeeds, check_trains_together
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.utils import ImageError, set_random_seed
from tests.parity_files import relative_error
from tests.trainers.test_contract import PRECISIONS, TOGETHER
from trainers.coop import ContextLearner, CoOp

ROOT = Path(__file__).parents[2]
SEEDS = (1, 2)


@pytest.fixture()
def build(make_cfg, tmp_path):
    """Function that builds the trainer of one seed, which keeps its batches and results."""

    def build(method: str, folder: str, seed: int, *pairs: object):
        cfg = make_cfg(
            method,
            *("SEED", seed, "OUTPUT_DIR", str(tmp_path / folder / f"seed{seed}")),
            *("DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 2, "OPTIM.WARMUP_EPOCH", -1),
            *("DATASET.TEMPLATES", ("a photo of a {}.", "art of the {}."), *pairs),
        )
        set_random_seed(seed)
        trainer = build_trainer(cfg)
        trainer.seen, trainer.results = [], []
        parse, test = trainer.parse_batch_train, trainer.test

        def parse_and_keep(batch):
            trainer.seen.append((batch["impath"], batch["img"]))
            return parse(batch)

        def test_and_keep(split=None):
            trainer.results.append(test(split))
            return trainer.results[-1]

        trainer.parse_batch_train, trainer.test = parse_and_keep, test_and_keep
        return trainer

    return build


def builds(build, method: str, *pairs: object):
    return {seed: partial(build, method, "together", seed, *pairs) for seed in SEEDS}


def train_together(build, method: str, *pairs: object) -> list:
    together = SeveralSeeds(builds(build, method, *pairs))
    together.train()
    return [run.trainer for run in together.runs]


def checkpoint_of(trainer, epoch: int) -> dict:
    path = Path(trainer.cfg.OUTPUT_DIR) / trainer.model_name / f"model.pth.tar-{epoch}"
    return torch.load(path, weights_only=True)


def assert_same_run(trainer, alone, limit: float = 1e-4) -> None:
    """Equal batches, random state and schedule, and learners that differ by rounding only."""
    assert len(trainer.seen) == len(alone.seen) > 0
    for (paths, images), (paths_alone, images_alone) in zip(trainer.seen, alone.seen, strict=True):
        assert paths == paths_alone
        assert torch.equal(images, images_alone)
    got, want = checkpoint_of(trainer, 2), checkpoint_of(alone, 2)
    assert got.keys() == want.keys()
    assert got["scheduler"] == want["scheduler"]
    random, random_alone = (c["trainer_state"]["random"] for c in (got, want))
    assert random["python"] == random_alone["python"]
    assert torch.equal(random["torch"], random_alone["torch"])
    assert torch.equal(random["numpy"][0], random_alone["numpy"][0])
    assert random["numpy"][1:] == random_alone["numpy"][1:]
    assert got["state_dict"].keys() == want["state_dict"].keys()
    for key, value in want["state_dict"].items():
        assert relative_error(got["state_dict"][key], value) < limit, key


def assert_as_alone(build, together: list, method: str, *pairs: object) -> None:
    for trainer, seed in zip(together, SEEDS, strict=True):
        alone = build(method, "alone", seed, *pairs)
        alone.train()
        assert_same_run(trainer, alone)
        assert trainer.results == alone.results
    # the seeds are different runs
    assert together[0].seen[0][0] != together[1].seen[0][0]
    weights = [t.model.learner.state_dict() for t in together]
    assert any(not torch.equal(value, weights[1][key]) for key, value in weights[0].items())


@pytest.mark.parametrize("method", TOGETHER)
def test_seeds_together_are_as_alone(build, method):
    together = SeveralSeeds(builds(build, method))
    one, other = (run.trainer.model for run in together.runs)
    assert one.clip is other.clip
    assert one.text is other.text
    images, texts = [], []
    encode_image, encode_text = one.clip.encode_image, one.clip.encode_text

    def counted_image(image, prompts=None, **options):
        if torch.is_grad_enabled() or len(image) == 8:
            images.append((len(image), bool(prompts)))
        return encode_image(image, prompts, **options)

    def counted_text(text, prompts=None):
        if text is one.text and prompts and torch.is_grad_enabled():
            texts.append(prompts)
        return encode_text(text, prompts)

    one.clip.encode_image, one.clip.encode_text = counted_image, counted_text
    together.train()
    trainers = [run.trainer for run in together.runs]
    assert all(len(trainer.results) == 1 for trainer in trainers)
    assert_as_alone(build, trainers, method)

    # a step calls each encoder once with the prompts of both seeds, and once for both teachers
    per_step = [(8, one.learner.image_changes() is not None)]
    if ".frozen()" in getsource(TRAINER_REGISTRY.get(method).loss):  # it has a teacher
        per_step.append((8, False))
    assert images == per_step * 4
    assert len(texts) == 4 * (one.learner.text_changes() is not None)


@pytest.fixture()
def names_file(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("crow\ndog\nflower\nnewt\noak\nboat\n")
    return str(path)


SETTINGS = {
    "no teacher, clipped gradients": (
        *("MMLoP", "TRAINER.MMLOP.CONSISTENCY", False, "OPTIM.CLIP_GRAD_NORM", 0.1),
    ),
    "texts in chunks": ("MMLoP",),
    "texts of every image in chunks": ("CoCoOp",),
    "own head": ("LoRVP", "TRAINER.LORVP.HEAD", "lp"),
    "work between epochs": ("LoRVP", "TRAINER.LORVP.HEAD", "ilm"),
    "validation": ("PromptSRC", "TEST.FINAL_MODEL", "best_val"),
    "ResNet, contexts per class around the name": (
        *("CoOp", "TRAINER.COOP.CSC", True, "TRAINER.COOP.CLASS_TOKEN_POSITION", "middle"),
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(build, names_file, rn_file, monkeypatch, name):
    method, *pairs = SETTINGS[name]
    if "chunks" in name:
        size = 7 if method == "CoCoOp" else 2
        monkeypatch.setattr(PromptedCLIP, "texts_at_once", lambda *_, **__: size)
    if "ilm" in pairs:
        pairs += ["TRAINER.LORVP.SOURCE_NAMES", names_file]
    if name.startswith("ResNet"):
        pairs += ["MODEL.BACKBONE.NAME", rn_file, "INPUT.SIZE", (64, 64)]
    if "best_val" not in pairs:
        pairs += ["TEST.NO_TEST", True]
    assert_as_alone(build, train_together(build, method, *pairs), method, *pairs)


def test_bounded_memory(build, monkeypatch):
    """The bound holds for all seeds together, which cuts the text where one seed's would fit."""
    sizes, choose = [], PromptedCLIP.texts_at_once

    def choose_and_keep(*args, **kwargs):
        sizes.append(choose(*args, **kwargs))
        return sizes[-1]

    monkeypatch.setattr(PromptedCLIP, "texts_at_once", choose_and_keep)
    pairs = ["MODEL.MEMORY_GB", 0.0036, "TEST.NO_TEST", True]
    together = train_together(build, "CoOp", *pairs)
    assert 5 <= min(sizes) < 10, "five classes of two seeds"
    assert_as_alone(build, together, "CoOp", *pairs)
    pairs = ["MODEL.MEMORY_GB", 0.003]
    too_little = {seed: partial(build, "CoOp", "too little", seed, *pairs) for seed in SEEDS}
    with pytest.raises(ValueError, match="too little for a training step of 8 images"):
        SeveralSeeds(too_little).train()


@pytest.mark.parametrize("precision", PRECISIONS[1:])
def test_half_precision(build, precision):
    """Rounding is coarse and depends on what is computed at once: one step, and more room."""
    pairs = ["TRAINER.MMLOP.PREC", precision, "TEST.NO_TEST", True, "OPTIM.MAX_EPOCH", 1]

    def scaled(folder: str, seed: int):
        trainer = build("MMLoP", folder, seed, *pairs, "DATALOADER.TRAIN_X.BATCH_SIZE", 10)
        if trainer.scaler is not None:  # a scale that no step has to be skipped for
            trainer.scaler = torch.amp.GradScaler("cpu", init_scale=128.0)
        return trainer

    together = SeveralSeeds({seed: partial(scaled, "together", seed) for seed in SEEDS})
    together.train()
    for run in together.runs:
        alone = scaled("alone", run.seed)
        start = {key: value.clone() for key, value in alone.model.learner.state_dict().items()}
        alone.train()
        for key, value in alone.model.learner.state_dict().items():
            moved, moved_alone = (
                run.trainer.model.learner.state_dict()[key] - start[key],
                value - start[key],
            )
            assert moved_alone.any()
            assert relative_error(moved, moved_alone) < 0.05, key


def test_known_views_are_not_encoded_again(build, tmp_path):
    pairs = ["INPUT.SEEDED_VIEWS", True, "TEST.NO_TEST", True]
    assert_as_alone(build, train_together(build, "MMLoP", *pairs), "MMLoP", *pairs)
    (tmp_path / "together").rename(tmp_path / "before")
    again = SeveralSeeds(builds(build, "MMLoP", *pairs))
    clip, calls = again.runs[0].trainer.model.clip, []
    encode = clip.encode_image

    def counted(image, prompts=None, **options):
        calls.append(bool(prompts))
        return encode(image, prompts, **options)

    clip.encode_image = counted
    again.train()
    assert calls == [True] * 4
    for run in again.runs:
        before = tmp_path / f"before/seed{run.seed}/prompt_learner/model.pth.tar-2"
        for key, value in torch.load(before, weights_only=True)["state_dict"].items():
            assert torch.equal(run.trainer.model.learner.state_dict()[key], value), key


def test_a_seed_that_is_further_on_waits_for_the_others(build):
    pairs = ["OPTIM.MAX_EPOCH", 3, "TRAIN.CHECKPOINT_FREQ", 1, "TEST.NO_TEST", True]
    ahead = build("PromptSRC", "together", 2, *pairs)
    ahead.max_epoch = 2
    ahead.train()
    for trainer, seed in zip(train_together(build, "PromptSRC", *pairs), SEEDS, strict=True):
        alone = build("PromptSRC", "alone", seed, *pairs)
        alone.train()
        seen = {1: 6, 2: 2}[seed]
        assert len(trainer.seen) == seen
        for batch, batch_alone in zip(trainer.seen, alone.seen[-seen:], strict=True):
            assert torch.equal(batch[1], batch_alone[1])
        for key, value in alone.model.learner.state_dict().items():
            assert relative_error(trainer.model.learner.state_dict()[key], value) < 1e-4, key


def test_seeds_with_epochs_of_different_length(build):
    """Their last steps are taken by those that have images left."""
    shots = {1: 2, 2: 1}

    def own(folder: str, seed: int):
        return build("CoOp", folder, seed, "DATASET.NUM_SHOTS", shots[seed], "TEST.NO_TEST", True)

    together = SeveralSeeds({seed: partial(own, "together", seed) for seed in SEEDS})
    together.train()
    for run in together.runs:
        alone = own("alone", run.seed)
        alone.train()
        assert len(alone.seen) == {1: 4, 2: 2}[run.seed]
        assert_same_run(run.trainer, alone)


def test_what_goes_wrong_names_the_seed(build, capsys):
    together = SeveralSeeds(builds(build, "CoOp"))
    out = capsys.readouterr().out
    assert "[seed 1] Trainable parameters: 1,024\n" in out
    assert "[seed 2] Trainable parameters: 1,024\n" in out
    together.runs[1].trainer.model.learner.ctx.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"^seed 2: Loss is infinite or NaN!"):
        together.train()
    for run in together.runs:  # states that the runs would go on from
        for file in Path(run.trainer.output_dir).glob("unfinished*"):
            file.unlink()
    broken = together.runs[0].trainer.train_loader_x.dataset.data_source
    broken[0]._impath = "gone.png"
    together = SeveralSeeds(builds(build, "CoOp"))
    together.runs[0].trainer.train_loader_x.dataset.data_source = broken
    with pytest.raises(ImageError, match=r"^seed 1: no image file at .*gone\.png"):
        together.train()
    assert sys.stdout not in [run.output for run in together.runs]


def test_steps_that_draw_random_numbers_are_refused(build, monkeypatch):
    prompts = ContextLearner.text_changes

    def with_dropout(self):
        (layer, prompt) = next(iter(prompts(self).items()))
        return {layer: replace(prompt, tokens=F.dropout(prompt.tokens))}

    monkeypatch.setattr(ContextLearner, "text_changes", with_dropout)
    with pytest.raises(RuntimeError, match=r"step of CoOp draws random numbers.*--seed"):
        train_together(build, "CoOp")


def test_trainer_with_a_step_of_its_own_is_refused(make_cfg):
    class Own(CoOp):
        def forward_backward(self, batch):
            return super().forward_backward(batch)

    with pytest.raises(ValueError, match=r"--seeds: Own has its own forward_backward.*--seed"):
        check_trains_together(Own, make_cfg("CoOp"))
    with pytest.raises(ValueError, match="ZeroshotCLIP has its own train and forward_backward"):
        check_trains_together(TRAINER_REGISTRY.get("ZeroshotCLIP"), make_cfg("ZeroshotCLIP"))


def test_a_step_to_be_captured_is_refused(build):
    with pytest.raises(ValueError, match=r"--seeds: OPTIM\.CUDA_GRAPH captures.*--seed"):
        train_together(build, "CoOp", "OPTIM.CUDA_GRAPH", True)


def test_seeds_of_different_classes_are_refused(build):
    parts = {1: "base", 2: "new"}
    with pytest.raises(ValueError, match="different classes"):
        SeveralSeeds(
            {
                s: partial(build, "CoOp", "x", s, "DATASET.SUBSAMPLE_CLASSES", parts[s])
                for s in SEEDS
            }
        )


# --- the command line -----------------------------------------------------------------------------

PAIRS = ["DATASET.NUM_SHOTS", 1, "DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.MAX_EPOCH", 2]


def words(folder: Path, part: str, *options: object) -> list[str]:
    """A command line of train.py with a data folder and output folders of its own."""
    every = ["--trainer", "MMLoP", "--root", folder / f"{part}-data", *options]
    every += ["--dataset-config-file", ROOT / "configs/datasets/digits.yaml"]
    every += ["--config-file", ROOT / "configs/trainers/MMLoP/tiny.yaml"]
    every += ["--output-dir", folder / part / "seed{seed}", *PAIRS, "USE_CUDA", False]
    return [str(word) for word in every]


def results(folder: Path) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, ROOT / "parse_test_res.py", folder], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    return dict(re.findall(r"file: .*/(seed\d)/result.json. accuracy: ([\d.]+%)", done.stdout))


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """Folder of a process of ``train.py --seeds 1,2``, and of a run of ``--seed 2``."""
    folder = tmp_path_factory.mktemp("seeds")
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", *words(folder, "together", "--seeds=1,2")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    alone = [word.replace("{seed}", "2") for word in words(folder, "alone", "--seed=2")]
    with contextlib.redirect_stdout(sys.stdout):  # a logger takes its place
        assert train.main(alone) == 0
    return folder


def test_logs_and_checkpoints_are_those_of_single_runs(digits):
    together, alone = results(digits / "together"), results(digits / "alone")
    assert together.keys() == {"seed1", "seed2"}
    assert together["seed2"] == alone["seed2"]
    assert together["seed1"] != alone["seed2"]

    def lines(part: str) -> list[str]:
        text = (digits / part / "seed2" / "log.txt").read_text().replace(part, "")
        # what may differ: the option, times, and the last digits of rounded losses
        text = re.sub(r"(?m)^seeds?: .*|(time|data|eta|Elapsed:) [\d.: ()]+", "", text)
        text = re.sub(r"\b(\d\.\d\d)\d\d\b", r"\1", text)
        # the first run of all makes the data set
        return [
            line for line in text.splitlines() if "data/digits" not in line and "-shot" not in line
        ]

    assert lines("together") == lines("alone")
    file = "seed2/prompt_learner/model.pth.tar-2"
    got, want = (torch.load(digits / p / file, weights_only=True) for p in ("together", "alone"))
    for key, value in want["state_dict"].items():
        assert relative_error(got["state_dict"][key], value) < 1e-4, key
    assert got["meta"].keys() == want["meta"].keys()


def test_seeds_are_tested_one_by_one(digits, tmp_path):
    options = ["--seeds=2,1", "--eval-only", "--load-epoch", "2"]
    line = words(tmp_path, "tests", *options, "--model-dir", digits / "together/seed{seed}")
    assert train.main(line) == 0
    trained = results(digits / "together")
    for seed in SEEDS:
        log = (tmp_path / f"tests/seed{seed}/log.txt").read_text()
        assert f"model_dir: {digits}/together/seed{seed}\n" in log
        assert f"* accuracy: {trained[f'seed{seed}']}" in log
