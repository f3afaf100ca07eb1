"""Interrupted runs of every method: they end with what uninterrupted ones do, to the bit."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from adaptation.features import FeatureTrainer
from adaptation.seeds import SeveralSeeds
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.engine.going_on import BEFORE, NEWEST, Position, common_position
from dassl.utils import set_random_seed
from tests.going_on import differences, end_in_step, is_told_to_end, last_checkpoint
from tests.trainers.test_contract import METHODS, TOGETHER

# 10 images in batches of 4: two steps of an epoch, the last two images are dropped
PAIRS = ("DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 3, "TEST.NO_TEST", True)
EVERY_STEP = ("TRAIN.SAVE_MINUTES", 1e-9)


@pytest.fixture()
def build(make_cfg, tmp_path):
    """Function that builds a trainer whose run is in a folder of its own."""

    def build(method: str, folder: str, *pairs: object, seed: int = 1):
        out = ("OUTPUT_DIR", str(tmp_path / folder), "SEED", seed)
        cfg = make_cfg(method, *PAIRS, *out, *pairs)
        set_random_seed(seed)
        return build_trainer(cfg)

    return build


def assert_same_end(straight, resumed) -> None:
    one, other = (
        last_checkpoint(t.output_dir, t.model_name, t.max_epoch) for t in (straight, resumed)
    )
    assert not differences(one, other)
    left = {path.name for path in Path(resumed.output_dir).iterdir()}
    assert left == {"tensorboard", resumed.model_name}, "a finished run leaves no state"


def interrupted(build, steps: list[int]):
    """Have starts of a run end in these of their steps; return the trainer of the last start."""
    for step in steps:
        trainer = build()
        end_in_step(trainer, step)
        assert is_told_to_end(trainer.train)
        assert Path(trainer.output_dir, NEWEST).is_file()
    trainer = build()
    trainer.train()
    return trainer


@pytest.mark.parametrize("method", METHODS)
def test_every_method_goes_on_in_the_middle_of_an_epoch(build, method):
    """Two interruptions: within an epoch, and at the end of its last step."""
    straight = build(method, "straight")
    straight.train()
    steps = [3, 1] if straight.steps_per_epoch() > 1 else [1, 1]
    assert_same_end(straight, interrupted(partial(build, method, "resumed"), steps))


SETTINGS = {
    "workers": ("CoOp", "DATALOADER.NUM_WORKERS", 2, "DATALOADER.TRAIN_X.BATCH_SIZE", 2),
    "mixed precision": ("MMLoP", "TRAINER.MMLOP.PREC", "amp"),
    "validation": ("PromptSRC", "TEST.FINAL_MODEL", "best_val", "TEST.NO_TEST", False),
    "seeded views": ("MMLoP", "INPUT.SEEDED_VIEWS", True),
    "without random views": ("MMLoP", "INPUT.TRANSFORMS", ("normalize",)),
    "no cache": ("CoOp", "DATALOADER.CACHE", "none"),
    "captured step": ("PromptSRC", "OPTIM.CUDA_GRAPH", True),
    "linear head": ("LoRVP", "TRAINER.LORVP.HEAD", "lp"),
    "classes of a run mapped once": ("LoRVP", "TRAINER.LORVP.HEAD", "flm"),
    "classes of an epoch mapped": ("LoRVP", "TRAINER.LORVP.HEAD", "ilm"),
    "adam": ("MaPLe", "OPTIM.NAME", "adam"),
    "domain sampler": ("CoOp", "DATALOADER.TRAIN_X.SAMPLER", "RandomClassSampler")
    + ("DATALOADER.TRAIN_X.N_INS", 2),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(build, tmp_path, name):
    """Interrupted in the first epoch, and after the last step of the second."""
    method, *pairs = SETTINGS[name]
    if {"flm", "ilm"} & {*pairs}:
        (tmp_path / "names.txt").write_text("crow\ndog\nflower\nnewt\noak\nboat\n")
        pairs += ["TRAINER.LORVP.SOURCE_NAMES", str(tmp_path / "names.txt")]
    straight = build(method, "straight", *pairs)
    straight.train()
    assert_same_end(straight, interrupted(partial(build, method, "resumed", *pairs), [1, 3]))


def kill(trainer, step: int, step_name: str = "forward_backward") -> None:
    """Have a run break off in one of its steps, as if it was killed."""
    taken, method = [], getattr(trainer, step_name)

    def take(*args, **options):
        taken.append(None)
        if len(taken) == step:
            raise SystemExit("killed")
        return method(*args, **options)

    setattr(trainer, step_name, take)
    with pytest.raises(SystemExit, match="killed"):
        trainer.train()


def test_a_killed_run_goes_on_from_its_last_state(build):
    """Without a chance to save: what was saved after the step before counts."""
    straight = build("PromptSRC", "straight")
    straight.train()
    for step in (4, 2):
        killed = build("PromptSRC", "killed", *EVERY_STEP)
        kill(killed, step)
    resumed = build("PromptSRC", "killed", *EVERY_STEP)
    resumed.train()
    assert resumed.start_epoch == 2
    assert_same_end(straight, resumed)


@pytest.mark.parametrize("damage", ["truncated", "other bytes", "empty", "gone"])
def test_a_damaged_state_is_replaced_by_the_one_before(build, damage, recwarn):
    straight = build("CoOp", "straight")
    straight.train()
    killed = build("CoOp", "killed", *EVERY_STEP)
    kill(killed, 4)
    newest, before = (Path(killed.output_dir, name) for name in (NEWEST, BEFORE))
    data = newest.read_bytes()
    if damage == "gone":  # by a kill between two renames
        newest.unlink()
    else:
        middle = len(data) // 2
        other = bytes(255 - byte for byte in data[middle : middle + 1000])
        newest.write_bytes(
            {
                "truncated": data[:middle],
                "other bytes": data[:middle] + other + data[middle + 1000 :],
                "empty": b"",
            }[damage]
        )
    resumed = build("CoOp", "killed", *EVERY_STEP)
    resumed.train()
    warned = [str(w.message) for w in recwarn if str(newest) in str(w.message)]
    assert len(warned) == (damage != "gone")
    assert all(f"continues from {before}, not from {newest}" in text for text in warned)
    assert_same_end(straight, resumed)


def test_nothing_that_can_be_read_begins_again(build, recwarn):
    straight = build("CoOp", "straight")
    straight.train()
    killed = build("CoOp", "killed", *EVERY_STEP)
    kill(killed, 4)
    for name in (NEWEST, BEFORE):
        Path(killed.output_dir, name).write_bytes(b"")
    resumed = build("CoOp", "killed")
    resumed.train()
    assert resumed.start_epoch == 0
    assert len([w for w in recwarn if "or from its beginning" in str(w.message)]) == 2
    assert_same_end(straight, resumed)


def test_ending_in_a_validation_keeps_the_epoch(build):
    """It ends at once: what the steps made was kept, and the validation is done again."""
    pairs = ("TEST.FINAL_MODEL", "best_val", "TEST.NO_TEST", False)
    straight = build("PromptSRC", "straight", *pairs)
    straight.train()
    trainer = build("PromptSRC", "resumed", *pairs)
    end_in_step(trainer, 2, step_name="model_inference")
    assert is_told_to_end(trainer.train)
    resumed = build("PromptSRC", "resumed", *pairs)
    end_in_step(resumed, 99)  # counts the steps
    resumed.train()
    assert resumed.going_on.position == Position(3)
    assert resumed.best_result == straight.best_result
    assert_same_end(straight, resumed)


def test_a_state_of_another_run_is_refused(build):
    trainer = build("CoOp", "run")
    end_in_step(trainer, 1)
    assert is_told_to_end(trainer.train)
    with pytest.raises(ValueError, match=rf"{NEWEST} belongs to a run with SEED 1 \(now 2\)"):
        build("CoOp", "run", seed=2).train()


def test_an_unfinished_run_is_made_longer(build):
    """The further epochs have the learning rates of a run of that length, mid-epoch as well."""
    trainer = build("CoOp", "run")
    end_in_step(trainer, 3)
    assert is_told_to_end(trainer.train)
    longer = ("OPTIM.MAX_EPOCH", 5, "TRAIN.EXTEND", True)
    rates = {}
    for folder in ("run", "straight"):
        trainer = build("CoOp", folder, *longer)
        rates[folder] = []
        before = trainer.forward_backward

        def take(batch, trainer=trainer, before=before, found=rates[folder]):
            found.append(trainer.get_current_lr())
            return before(batch)

        trainer.forward_backward = take
        trainer.train()
    assert len(rates["run"]) == 7
    assert rates["run"] == pytest.approx(rates["straight"][3:])


# --- seeds trained together -----------------------------------------------------------------------


def together(build, method: str, folder: str, *pairs: object) -> SeveralSeeds:
    return SeveralSeeds(
        {seed: partial(build, method, f"{folder}/{seed}", *pairs, seed=seed) for seed in (1, 2)}
    )


def assert_same_seeds(straight: SeveralSeeds, resumed: SeveralSeeds) -> None:
    for one, other in zip(straight.runs, resumed.runs, strict=True):
        assert_same_end(one.trainer, other.trainer)


@pytest.mark.parametrize("method", TOGETHER)
def test_seeds_go_on_together(build, method):
    if issubclass(TRAINER_REGISTRY.get(method), FeatureTrainer):
        with pytest.raises(ValueError, match=r"^--seeds: .* one by one with --seed$"):
            together(build, method, "straight").train()
        return
    straight = together(build, method, "straight", "OPTIM.MAX_EPOCH", 2)
    straight.train()
    first = together(build, method, "resumed", "OPTIM.MAX_EPOCH", 2)
    end_in_step(first.runs[1].trainer, 3, step_name="losses")
    assert is_told_to_end(first.train)
    resumed = together(build, method, "resumed", "OPTIM.MAX_EPOCH", 2)
    resumed.train()
    assert resumed.runs[0].going_on.wanted == Position(1, 1)
    assert_same_seeds(straight, resumed)


@pytest.mark.parametrize("place", ["state", "checkpoint", "best", "final test"])
def test_seeds_killed_between_their_files_go_on_where_both_can(build, place):
    """One seed has saved, the other has not: a step apart they would round otherwise."""
    pairs = ("TRAIN.CHECKPOINT_FREQ", 1)
    if place == "state":
        pairs += EVERY_STEP
    if place in ("best", "final test"):
        pairs += ("TEST.NO_TEST", False)
    if place == "best":
        pairs += ("TEST.FINAL_MODEL", "best_val")
    straight = together(build, "PromptSRC", "straight", *pairs)
    straight.train()
    for _ in range(2):  # the second start is killed where the first was
        first = together(build, "PromptSRC", "resumed", *pairs)
        last = first.runs[1].trainer
        target = {"state": (first.runs[1].going_on, "_write", 3), "best": (last, "test", 2)}
        target |= {"checkpoint": (last, "save_model", 2), "final test": (last, "test", 1)}
        owner, name, call = target[place]
        taken, method = [], getattr(owner, name)

        def take(*args, taken=taken, method=method, call=call, **options):
            taken.append(None)
            if len(taken) == call:
                raise SystemExit("killed")
            return method(*args, **options)

        setattr(owner, name, take)
        with pytest.raises(SystemExit, match="killed"):
            first.train()
    folders = [(run.trainer.output_dir, ["prompt_learner"]) for run in first.runs]
    resumed = together(build, "PromptSRC", "resumed", *pairs)
    resumed.train()
    if place != "final test":
        assert resumed.runs[0].going_on.wanted is not None
    assert common_position(folders, [1, 2]) is None, "finished: no states are left"
    assert_same_seeds(straight, resumed)
