"""Which runs go on in a folder that holds one, and what the others are told."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import train
from adaptation.checkpoints import check_continues, find_checkpoint
from dassl.config import RUNTIME_KEYS, is_runtime_key, leaves
from dassl.engine import build_trainer
from dassl.utils import SettingError, load_checkpoint

ROOT = Path(__file__).parents[2]
DATA = ("DATASET.NUM_SHOTS", 2, "TEST.NO_TEST", True)


@pytest.fixture()
def begun(make_cfg):
    """A run of one epoch in the folder of ``make_cfg``."""
    trainer = build_trainer(make_cfg("MMLoP", *DATA))
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (("DATASET.NUM_SHOTS", 4), r"NUM_SHOTS 2 \(now 4\)"),
        (("SEED", 2), r"SEED 1 \(now 2\)"),
        (("DATASET.SUBSAMPLE_CLASSES", "base"), r"SUBSAMPLE_CLASSES all \(now base\)"),
        (("DATASET.TEMPLATES", ("a {}.",)), r"TEMPLATES \[\] \(now \['a {}.'\]\)"),
        (("TRAINER.MMLOP.TEXT_LOSS_WEIGHT", 3.0), r"TEXT_LOSS_WEIGHT 25.0 \(now 3.0\)"),
        (("SEED", 2, "DATASET.NUM_SHOTS", 4), r"NUM_SHOTS 2 \(now 4\), SEED 1 \(now 2\)"),
        (("OPTIM.LR", 0.1), r"OPTIM.LR 0.01 \(now 0.1\)"),
        (("OPTIM.LR", 0.1, "TRAIN.EXTEND", True), r"OPTIM.LR 0.01 \(now 0.1\)"),
        (("OPTIM.WEIGHT_DECAY", 0.0), r"OPTIM.WEIGHT_DECAY 0.0005 \(now 0.0\)"),
        (("DATALOADER.TRAIN_X.BATCH_SIZE", 2), r"BATCH_SIZE 4 \(now 2\)"),
        (("INPUT.RANDAUGMENT_N", 3), r"INPUT.RANDAUGMENT_N 2 \(now 3\)"),
        (("TEST.FINAL_MODEL", "best_val"), r"FINAL_MODEL last_step \(now best_val\)"),
        (("OPTIM.MAX_EPOCH", 2), r"MAX_EPOCH 1 \(now 2\): .*to train .* longer, add TRAIN.EXTEND"),
    ],
)
def test_another_run_does_not_take_over_a_folder(make_cfg, begun, pairs, message):
    """Its result would be that of the run before, under the name of its own settings."""
    trainer = build_trainer(make_cfg("MMLoP", *DATA, *pairs))
    with pytest.raises(SettingError, match=rf"cannot resume .*model\.pth\.tar-1 .*{message}"):
        trainer.train()


def test_other_classes_do_not_go_on(begun, make_cfg):
    meta = begun.checkpoint_state(begun.model_name, 0)["meta"]
    names = begun.model.classnames
    check_continues(meta, begun.cfg, names, "it")
    with pytest.raises(ValueError, match=r"it belongs .* other classes \(5 then, 6 now\)"):
        check_continues(meta, begun.cfg, [*names, "owl"], "it")


def test_every_key_of_how_a_run_is_computed_is_one(make_cfg):
    known = [key for key, _ in leaves(make_cfg("MMLoP"))]
    assert {*RUNTIME_KEYS} <= {*known}
    others = ("OPTIM.LR", "SEED", "TRAINER.NAME", "TRAINER.MMLOP.RANK", "TRAINER.MMLOP.PREC")
    assert not any(map(is_runtime_key, others))


def test_what_a_run_may_change_when_it_goes_on(make_cfg, begun, recwarn):
    pairs = ("MODEL.MEMORY_GB", 4.0, "TEST.NO_TEST", False)
    pairs += ("DATALOADER.CACHE", "none", "TRAIN.PRINT_FREQ", 1, "TEST.PER_CLASS_RESULT", True)
    pairs += ("TRAINER.COOP.N_CTX", 3)  # not read by this method
    trainer = build_trainer(make_cfg("MMLoP", *DATA, *pairs))
    trainer.train()
    assert trainer.start_epoch == 1
    assert not [w for w in recwarn if "schedule" in str(w.message)]


@pytest.mark.parametrize("warmup", [-1, 2])
def test_a_run_is_made_longer_on_purpose(make_cfg, tmp_path, recwarn, warmup):
    """Its further epochs have the learning rates of a run of that length."""

    def rates(folder: str, *pairs: object) -> list[float]:
        where = ("OUTPUT_DIR", str(tmp_path / folder), "OPTIM.WARMUP_EPOCH", warmup)
        trainer, found = build_trainer(make_cfg("CoOp", *DATA, *where, *pairs)), []
        before = trainer.before_epoch
        trainer.before_epoch = lambda: (found.append(trainer.get_current_lr()), before())
        trainer.train()
        return found

    whole = rates("whole", "OPTIM.MAX_EPOCH", 5)
    assert len(rates("parts", "OPTIM.MAX_EPOCH", 1)) == 1
    pairs = ("OPTIM.MAX_EPOCH", 5, "TRAIN.EXTEND", True)
    assert rates("parts", *pairs) == pytest.approx(whole[1:])
    assert rates("parts", *pairs) == [], "finished, and extended no further"
    assert not [w for w in recwarn if "schedul" in str(w.message)]


def test_an_average_over_epochs_is_not_made_longer(make_cfg):
    build_trainer(make_cfg("PromptSRC", *DATA)).train()
    pairs = ("OPTIM.MAX_EPOCH", 2, "TRAIN.EXTEND", True)
    with pytest.raises(SettingError, match=r"TRAIN.EXTEND cannot .* longer: PromptSRC"):
        build_trainer(make_cfg("PromptSRC", *DATA, *pairs)).train()


@pytest.fixture()
def words(data_root, tmp_path) -> list[str]:
    """A command line on the embedded CLIP."""
    return [
        *("--trainer", "CoOp", "--root", str(data_root), "--output-dir", str(tmp_path / "out")),
        *("--config-file", str(ROOT / "configs/trainers/CoOp/tiny.yaml")),
        *("DATASET.NAME", "TestImages", "DATASET.NUM_SHOTS", "2", "OPTIM.MAX_EPOCH", "2"),
        *("TEST.NO_TEST", "True", "USE_CUDA", "False", "TRAIN.CHECKPOINT_FREQ", "1"),
    ]


def error_of(words: list[str], capsys) -> str:
    """What ``train.py`` prints as its one line of error."""
    capsys.readouterr()
    assert train.main(words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("error: ") and sum("error: " in line for line in lines) == 1
    return lines[-1]


def test_checkpoints_that_cannot_be_used_get_one_line(words, tmp_path, capsys, recwarn):
    assert train.main(words) == 0
    folder = tmp_path / "out" / "prompt_learner"
    newest, before = folder / "model.pth.tar-2", folder / "model.pth.tar-1"
    whole = newest.read_bytes()
    newest.write_bytes(whole[:2000])
    assert train.main(words) == 0, "the one before takes its place"
    assert load_checkpoint(str(newest))["epoch"] == 2
    (warned,) = {str(w.message) for w in recwarn if "is truncated, damaged" in str(w.message)}
    assert f"continues from {before}, not from {newest}" in warned
    kept = before.read_bytes()
    for path in (newest, before):
        path.write_bytes(whole[:2000])
    assert "is truncated, damaged" in error_of(words, capsys)
    before.write_bytes(kept)
    newest.unlink()
    line = error_of(words, capsys)
    assert "or write another name into it (model.pth.tar-1)" in line
    (folder / "checkpoint").write_text("model.pth.tar-1\n")
    assert train.main(words) == 0, "what the message says works"
    assert newest.exists()
    line = error_of([*words, "TRAINER.COOP.CTX_INIT", "a picture of"], capsys)
    assert "ctx has shape" in line and "this run needs" in line


@pytest.mark.parametrize("folder", ["", "MMLoP", "digits/MMLoP"])
def test_a_folder_above_runs_names_them(begun, tmp_path, folder):
    for seed in ("seed1", "seed2"):
        shutil.copytree(begun.output_dir, tmp_path / "above" / folder / seed)
    runs = f"name one of {tmp_path / 'above' / folder / 'seed1'}, .*seed2"
    with pytest.raises(FileNotFoundError, match=runs):
        begun.load_model(str(tmp_path / "above"))
    with pytest.raises(FileNotFoundError, match=runs):
        find_checkpoint(str(tmp_path / "above"))


def test_the_model_file_alone_is_enough(begun, tmp_path, capsys):
    """As for a run that somebody passed on: without ``checkpoint``, the newest file counts."""
    source = Path(begun.output_dir, begun.model_name)
    folder = tmp_path / "passed on" / begun.model_name
    folder.mkdir(parents=True)
    for epoch in (1, 9, 10):
        shutil.copy(source / "model.pth.tar-1", folder / f"model.pth.tar-{epoch}")
    assert find_checkpoint(str(folder.parent)) == str(folder / "model.pth.tar-10")
    begun.load_model(str(folder.parent))
    assert f'from "{folder / "model.pth.tar-10"}"' in capsys.readouterr().out


@pytest.mark.parametrize("epoch", [None, 2])
def test_wrong_folder_for_a_model(make_cfg, begun, epoch):
    run, name = begun.output_dir, begun.model_name
    with pytest.raises(FileNotFoundError, match="is the folder of a model; name the run folder"):
        begun.load_model(f"{run}/{name}", epoch)
    other = build_trainer(make_cfg("MaPLe", *DATA))
    with pytest.raises(FileNotFoundError, match=f"the run holds {name}, .* Correct --trainer"):
        other.load_model(run, epoch)
    with pytest.raises(FileNotFoundError, match="is the folder of a model; name the run folder"):
        find_checkpoint(f"{run}/{name}", epoch)


def test_training_that_diverges_gets_one_line(words, capsys):
    line = error_of([*words, "OPTIM.LR", "1e30", "OPTIM.WARMUP_EPOCH", "-1"], capsys)
    assert "Loss is infinite or NaN! Lower OPTIM.LR" in line


def test_a_last_step_that_diverges_has_no_result(words, capsys):
    one_step = ["OPTIM.MAX_EPOCH", "1", "DATALOADER.TRAIN_X.BATCH_SIZE", "10"]
    rate = ["OPTIM.LR", "1e30", "OPTIM.WARMUP_EPOCH", "-1", "TEST.NO_TEST", "False"]
    line = error_of([*words, *one_step, *rate], capsys)
    assert "outputs are NaN" in line and "lower OPTIM.LR" in line


def test_parameters_that_are_not_finite_are_not_saved(make_cfg):
    trainer = build_trainer(make_cfg("CoOp", *DATA))
    trainer.model.learner.ctx.data[0, 0] = float("inf")
    with pytest.raises(FloatingPointError, match=r"infinite or NaN! Lower OPTIM\.LR"):
        trainer.save_model(0, trainer.output_dir)
    assert not list(Path(trainer.output_dir).rglob("model*.pth.tar*"))
