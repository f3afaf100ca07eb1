"""Tip-Adapter, Tip-Adapter-F and LP++ as runs: what is chosen, kept, recorded and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import train
from adaptation.checkpoints import checked_weights
from adaptation.image_cache import grid
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.utils import SettingError, set_random_seed
from tests.conftest import ROOT
from tests.going_on import differences
from trainers import Predictor

FEW = ("TRAINER.TIPADAPTER.AUGMENT_EPOCH", 2, "TRAINER.TIPADAPTER.SEARCH_STEP", (9, 5))


@pytest.fixture()
def run(make_cfg, tmp_path):
    """Function that trains a method on a few images, in a folder of its own."""

    def run(method: str, *pairs: object, folder: str = "run"):
        set_random_seed(1)
        out = ("OUTPUT_DIR", str(tmp_path / folder), "DATASET.NUM_SHOTS", 2)
        own = FEW if method.startswith("Tip") else ()
        trainer = build_trainer(make_cfg(method, *out, *own, *pairs))
        trainer.train()
        return trainer

    return run


def test_grid_ends_below_its_scale():
    values = grid(12, 200)
    assert (len(values), values[0]) == (200, 0.1) and values[1] == pytest.approx(0.1595)
    assert values[-1] < 12


@pytest.mark.parametrize("method", ["TipAdapter", "TipAdapterF"])
def test_pair_is_kept_and_used_by_all_who_read_the_run(run, make_cfg, method):
    """By a test, and by a prediction without the data set, whose number of images is not known."""
    trained = run(method)
    chosen = trained.run_notes.selection
    assert (chosen["on"], chosen["images"]) == ("val", 10)
    pair = torch.tensor(list(chosen["values"].values()))
    assert torch.equal(trained.model.learner.pair, pair)
    images = next(iter(trained.test_loader))["img"]
    logits = trained.model_inference(images)
    other = build_trainer(make_cfg(method, "DATASET.NUM_SHOTS", 4))
    other.load_model(trained.output_dir)
    assert torch.equal(other.model_inference(images), logits)
    assert other.run_notes.selection == chosen
    predictor = Predictor.load(trained.output_dir, device="cpu")
    assert torch.equal(predictor.model(images), logits)


def test_search_takes_the_best_pair_of_single_evaluations(run):
    trainer = run("TipAdapter")
    learner, (raw, labels) = trainer.model.learner, trainer.split_features("val")
    node = trainer.node_cfg
    best, found = -1.0, None
    for beta in grid(node.SEARCH_SCALE[0], node.SEARCH_STEP[0]):
        for alpha in grid(node.SEARCH_SCALE[1], node.SEARCH_STEP[1]):
            learner.pair.copy_(torch.tensor((beta, alpha)))
            right = float((learner.classify(trainer.model, raw).logits.argmax(1) == labels).sum())
            if right > best:
                best, found = right, {"beta": beta, "alpha": alpha}
    assert trainer.run_notes.selection["values"] == found
    assert trainer.run_notes.selection["accuracy"] == pytest.approx(100 * best / len(labels))


def test_nothing_right_leaves_the_text_alone(run):
    trainer = run("TipAdapter")
    raw, labels = trainer.split_features("val")
    trainer.split_features = lambda split: (raw, torch.full_like(labels, -1))
    assert trainer.finish()
    assert trainer.run_notes.selection["values"] == {"beta": 0.0, "alpha": 0.0}


def test_record_says_what_chose(data_root, tmp_path, capsys):
    """In the run, and where it is tested again; a choice by test images is marked as one."""
    from results.record import read, read_result

    words = ["--trainer", "TipAdapter", "--root", str(data_root), "--seed", "1"]
    words += ["--config-file", str(ROOT / "configs/trainers/TipAdapter/tiny.yaml")]
    pairs = ["DATASET.NAME", "TestImages", "DATASET.NUM_SHOTS", "2", "USE_CUDA", "False"]
    pairs += ["TRAINER.TIPADAPTER.SELECT_ON", "test"]
    run, test = tmp_path / "run", tmp_path / "test"
    assert train.main([*words, "--output-dir", str(run), *pairs]) == 0
    again = ["--output-dir", str(test), "--eval-only", "--model-dir", str(run)]
    assert train.main([*words, *again, *pairs]) == 0
    assert "4,000 pairs on the 30 test images" in capsys.readouterr().out
    records = [read(folder) for folder in (run, test)]
    assert records[0]["model"]["selection"] == records[1]["model"]["selection"]
    assert records[0]["model"]["selection"]["on"] == "test"
    assert json.dumps(records[0]["result"]["metrics"]) == json.dumps(
        records[1]["result"]["metrics"]
    )
    assert read_result(run, "accuracy", None).chosen_on_test


@pytest.mark.parametrize("method", ["TipAdapter", "TipAdapterF", "LPPlusPlus"])
def test_damaged_and_other_checkpoints(run, method):
    trainer = run(method)
    path = Path(trainer.output_dir, trainer.model_name, "model.pth.tar-1")
    checkpoint = torch.load(path, weights_only=True)
    learner, names = trainer.model.learner, trainer.model.classnames
    some = [names[3], names[1]]
    with pytest.raises(ValueError, match="or some of them, and no others"):
        checked_weights(checkpoint, learner, ["other", *names[1:]], str(path))
    fewer = TRAINER_REGISTRY.get(method).build_learner(trainer.cfg, trainer.model.clip, some)
    weights = checked_weights(checkpoint, fewer, some, str(path), any_images=True)
    fewer.load_state_dict(weights)
    raw, _ = trainer.split_features("test")
    every, few = (each.classify(trainer.model, raw).logits for each in (learner, fewer))
    assert torch.allclose(few, every[:, [3, 1]], atol=1e-4)
    if "labels" in checkpoint["state_dict"]:
        checkpoint["state_dict"]["labels"][0] = 99
        with pytest.raises(ValueError, match="labels are not classes of 0 to 4"):
            checked_weights(checkpoint, learner, names, str(path))


NODE = "TRAINER.TIPADAPTER"


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ((f"{NODE}.SELECT_ON", "train"), r"TIPADAPTER\.SELECT_ON"),
        ((f"{NODE}.AUGMENT_EPOCH", 0), r"AUGMENT_EPOCH is 0: use 1 or more"),
        ((f"{NODE}.SEARCH_STEP", (9, 0)), r"SEARCH_STEP is .* of at least 1"),
        ((f"{NODE}.SEARCH_SCALE", (7.0,)), r"SEARCH_SCALE is .* two numbers"),
        ((f"{NODE}.SEARCH_STEP", (1.5, 2)), r"SEARCH_STEP is \(1.5, 2\): .* whole numbers"),
        ((f"{NODE}.SEARCH_STEP", ["200", "20"]), r"SEARCH_STEP takes a list of finite numbers"),
        ((f"{NODE}.SEARCH_SCALE", ["a", 2]), r"SEARCH_SCALE takes a list of finite numbers"),
        (("OPTIM.CUDA_GRAPH", True), r"^OPTIM\.CUDA_GRAPH .*TipAdapter takes none: set"),
    ],
)
def test_settings_that_cannot_be(make_cfg, pairs, message):
    with pytest.raises(ValueError, match=message):
        build_trainer(make_cfg("TipAdapter", *pairs))


def test_search_without_validation_images(make_cfg):
    trainer = build_trainer(make_cfg("TipAdapter", *FEW))
    trainer.val_loader = None
    with pytest.raises(SettingError, match=r"SELECT_ON val needs .*SEARCH False keeps"):
        trainer.train()


def test_finished_run_of_the_cache_tests_again(run):
    """One that was killed before its search, too."""
    first = run("TipAdapter")
    path = Path(first.output_dir, first.model_name, "model.pth.tar-1")
    content = torch.load(path, weights_only=True)
    content["state_dict"]["pair"] = torch.tensor((1.0, 1.17))
    content["trainer_state"]["selection"] = None
    torch.save(content, path)
    again = run("TipAdapter")
    assert again.start_epoch == 1
    assert again.run_notes.selection == first.run_notes.selection
    for key, value in first.model.learner.state_dict().items():
        assert torch.equal(again.model.learner.state_dict()[key], value), key
    saved = torch.load(path, weights_only=True)["state_dict"]["pair"]
    assert torch.equal(saved, first.model.learner.pair)


def test_best_epoch_is_tested_with_a_pair_of_its_own(run):
    trainer = run("TipAdapterF", "OPTIM.MAX_EPOCH", 3, "TEST.FINAL_MODEL", "best_val")
    folder = Path(trainer.output_dir, trainer.model_name)
    best = torch.load(folder / "model-best.pth.tar", weights_only=True)
    assert torch.equal(best["state_dict"]["pair"], trainer.model.learner.pair)
    assert best["trainer_state"]["selection"] == trainer.run_notes.selection
    assert torch.equal(best["state_dict"]["keys"], trainer.model.learner.keys)


def test_a_finished_run_that_chose_its_epoch_stays_as_it_is(run):
    def saved(trainer):
        files = {}
        for path in Path(trainer.output_dir, trainer.model_name).glob("model*"):
            files[path.name] = torch.load(path, weights_only=True)
            files[path.name]["trainer_state"].pop("history")
        return files

    pairs = ("OPTIM.MAX_EPOCH", 3, "TEST.FINAL_MODEL", "best_val", "TRAIN.CHECKPOINT_FREQ", 2)
    first = saved(run("TipAdapterF", *pairs))
    again = run("TipAdapterF", *pairs)
    assert again.start_epoch == 3
    assert not differences(first, saved(again))


def test_views_of_the_keys_can_train_them(run):
    """Then nothing is encoded after the pool; else each epoch has a view of its own."""
    for fresh, passes in ((True, 2 + 3), (False, 2)):
        counted = []

        class Counting(TRAINER_REGISTRY.get("TipAdapterF")):
            def encode_pass(self, number, counted=counted):
                counted.append(number)
                return super().encode_pass(number)

        TRAINER_REGISTRY._obj_map["Counting"] = Counting
        try:
            pairs = ("OPTIM.MAX_EPOCH", 3, "TRAINER.TIPADAPTER.FRESH_VIEWS", fresh)
            run("Counting", *FEW, *pairs, folder=f"fresh{fresh}")
        finally:
            del TRAINER_REGISTRY._obj_map["Counting"]
        assert counted == list(range(passes))


def write_published(trainer, folder: Path) -> Path:
    """Files as the published code writes them, in half precision; returns that of the keys."""
    learner = trainer.model.learner
    keys, values = learner.keys.detach().half(), F.one_hot(learner.labels, 5).half()
    folder.mkdir()
    torch.save(values, folder / "values_2shots.pt")
    torch.save(keys.t(), folder / "keys_2shots.pt")
    torch.save(torch.nn.Parameter(keys), folder / "best_F_2shots.pt")
    return folder / f"{trainer.published_keys}_2shots.pt"


@pytest.mark.parametrize("method", ["TipAdapter", "TipAdapterF"])
def test_published_files(run, make_cfg, tmp_path, method):
    """A run with another number of images reads them, and searches the pair; later ones do not."""
    trained = run(method)
    path = write_published(trained, tmp_path / "caches")
    other = build_trainer(make_cfg(method, *FEW, "DATASET.NUM_SHOTS", 4))
    other.load_model(str(path))
    learner = other.model.learner
    for key in ("keys", "labels", "text_weights"):
        assert torch.allclose(learner.state_dict()[key], getattr(trained.cache, key), atol=1e-3)
    chosen = other.run_notes.selection
    assert (chosen["on"], chosen["images"]) == ("val", 20)
    assert torch.equal(learner.pair, torch.tensor(list(chosen["values"].values())))
    off = ("TRAINER.TIPADAPTER.SEARCH", False, "TRAINER.TIPADAPTER.INIT_BETA", 2.5)
    plain = build_trainer(make_cfg(method, *off))
    plain.load_model(str(path))
    assert plain.model.learner.pair.tolist() == pytest.approx([2.5, 1.17])
    assert plain.run_notes.selection is None
    other.load_model(trained.output_dir)
    assert torch.equal(other.model.learner.keys, trained.model.learner.keys)


VALUES = F.one_hot(torch.arange(10) % 5, 5).half()
KEYS = F.normalize(torch.arange(320.0).reshape(32, 10) % 7 + 1, dim=0).half()
LONG = torch.where(torch.arange(10) == 3, 1.03, 1.0).half()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("values", None, r"does not say .* put values_2shots\.pt of the same"),
        ("values", VALUES[:8], r"is of 8 images, and keys_2shots\.pt of 10"),
        ("values", VALUES[:, :4], r"is of 4 classes, and this run has 5"),
        ("values", 2 * VALUES, r"values_2shots\.pt is damaged: a row"),
        ("values", [1.0], r"values_2shots\.pt should hold the values .* of another kind"),
        ("keys", torch.zeros(64, 10), r"keys of 64 values, .* have 32: set --backbone"),
        ("keys", torch.zeros(32), r"should hold the keys .* of shape \(32,\)"),
        ("keys", torch.full((32, 10), torch.nan), "are not all finite"),
        ("keys", torch.zeros(32, 10, device="meta"), "damaged: the keys .* fewer numbers stored"),
        ("keys", torch.zeros(1, 1).expand(10**6, 10**6), "damaged: the keys .* fewer numbers"),
        ("keys", torch.zeros(32, 0), r"keys_2shots\.pt .* has no keys"),
        ("keys", torch.zeros(32, 10), r"keys_2shots\.pt .* 10 of 10 keys are not of unit norm"),
        ("keys", LONG * KEYS, r"1 of 10 keys are not of unit norm \(the first has 1\.03\)"),
        ("keys", KEYS.long(), r"keys_2shots\.pt .* keys of a cache are of type int64"),
        ("keys", KEYS.to(torch.complex64), r"keys_2shots\.pt .* are of type complex64"),
        ("values", VALUES.long(), r"values_2shots\.pt .* values of a cache are of type int64"),
        ("values", VALUES.to(torch.complex64), r"values_2shots\.pt .* are of type complex64"),
        ("values", VALUES.bool(), r"values_2shots\.pt .* are of type bool"),
        ("values", VALUES[torch.arange(10) % 3], r"no key for 2 of 5 classes .*first: class 3,"),
    ],
)
def test_published_files_that_do_not_fit(make_cfg, tmp_path, name, content, message):
    trainer = build_trainer(make_cfg("TipAdapter", *FEW))
    torch.save(KEYS, tmp_path / "keys_2shots.pt")
    torch.save(VALUES, tmp_path / "values_2shots.pt")
    path = tmp_path / f"{name}_2shots.pt"
    if content is None:
        path.unlink()
    else:
        torch.save(content, path)
    before = {key: value.clone() for key, value in trainer.model.learner.state_dict().items()}
    with pytest.raises((ValueError, FileNotFoundError), match=message) as info:
        trainer.load_model(str(tmp_path / "keys_2shots.pt"))
    assert "\n" not in str(info.value)
    for key, value in trainer.model.learner.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_published_files_need_what_a_search_needs(make_cfg, tmp_path):
    trainer = build_trainer(make_cfg("TipAdapter", *FEW))
    path = write_published(trainer, tmp_path / "caches")
    trainer.val_loader = None
    with pytest.raises(SettingError, match=r"SELECT_ON val needs .*SEARCH False keeps"):
        trainer.load_model(str(path))
    with pytest.raises(ValueError, match=r"best_F_2shots\.pt is not a checkpoint of a run"):
        trainer.load_model(str(tmp_path / "caches" / "best_F_2shots.pt"))


@pytest.mark.parametrize("same", [False, True])
def test_of_equally_good_epochs_lppp_takes_the_last(run, same):
    trainer = run("LPPlusPlus", "OPTIM.MAX_EPOCH", 3, "TEST.FINAL_MODEL", "best_val", folder="a")
    trainer.max_epoch = 4
    trainer.best_result, trainer._best, results = -1.0, None, [50.0, 60.0, 60.0 if same else 40.0]
    for trainer.epoch, result in enumerate(results):
        trainer.accuracy = lambda split, result=result: result
        trainer.keep_best()
    assert trainer._best["epoch"] == (2 if same else 1)
