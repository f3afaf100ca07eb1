"""Prediction from a run folder: every method, without its data set, as the trainer's own test."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import train
from adaptation.recording import keep_record
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import build_trainer
from tests.conftest import CLASSNAMES
from tests.parity_files import recorded_clip
from tests.trainers.test_contract import METHODS, batch_of
from trainers import Predictor

TEMPLATED = ["ZeroshotCLIP", "ZeroshotCLIP2"]


def trained(cfg, folder):
    """A trainer after one step, saved to ``folder``."""
    torch.manual_seed(1)
    trainer = build_trainer(cfg)
    trainer.num_batches, trainer.batch_idx = 100, 0
    trainer.set_model_mode("train")
    trainer.forward_backward(batch_of(trainer))
    trainer.save_model(0, str(folder))
    trainer.set_model_mode("eval")
    return trainer


@torch.no_grad()
def assert_same(predictor: Predictor, trainer) -> None:
    batch = next(iter(trainer.test_loader))
    images = torch.stack([predictor.read(path) for path in batch["impath"]])
    assert torch.equal(images, batch["img"])
    logits = trainer.model_inference(batch["img"])
    assert torch.equal(predictor.model(images), logits)
    assert torch.equal(predictor.probabilities(images), logits.float().softmax(dim=1))


@pytest.mark.parametrize("method", METHODS)
def test_run_predicts_what_its_trainer_tests(make_cfg, method, tmp_path, monkeypatch, capsys):
    trainer = trained(make_cfg(method, "DATASET.SUBSAMPLE_CLASSES", "base"), tmp_path)
    monkeypatch.delitem(DATASET_REGISTRY._obj_map, "TestImages")
    capsys.readouterr()
    predictor = Predictor.load(tmp_path)
    assert capsys.readouterr().out == "", "a call of a library prints nothing"
    assert predictor.classnames == list(CLASSNAMES[:3])
    assert_same(predictor, trainer)
    others = ["cat", "forget-me-not", "a_much_longer_name", "axolotl"]
    if trainer.model.learner.class_specific:
        with pytest.raises(ValueError, match="class-specific: it fits only the 3 classes"):
            Predictor.load(tmp_path, others)
        some = Predictor.load(tmp_path, [CLASSNAMES[2], CLASSNAMES[0]])
        image = next(iter(trainer.test_loader))["img"]
        with torch.no_grad():
            assert torch.allclose(some.model(image), predictor.model(image)[:, [2, 0]], atol=1e-4)
        return
    trainer.model.set_classes(others)
    assert_same(Predictor.load(tmp_path, others), trainer)


@pytest.mark.parametrize("method", TEMPLATED)
def test_zero_shot_without_a_run(make_cfg, vit_file, method):
    trainer = build_trainer(make_cfg(method))
    assert_same(Predictor.zero_shot(vit_file, CLASSNAMES, method), trainer)


@pytest.mark.parametrize("method", TEMPLATED)
def test_run_that_trained_nothing(make_cfg, method, tmp_path, monkeypatch, capsys):
    (tmp_path / "texts.txt").write_text("one {}.\na {} here.\n")
    cfg = make_cfg(method, "DATASET.TEMPLATES", (str(tmp_path / "texts.txt"),))
    trainer = build_trainer(cfg)
    arguments = train.build_parser().parse_args([])
    keep_record(trainer, cfg, vars(arguments), {})
    with pytest.raises(FileNotFoundError, match="is no run folder"):
        Predictor.load(tmp_path)
    trainer.train()
    trainer.run_notes.on_end()
    (tmp_path / "texts.txt").unlink()
    monkeypatch.delitem(DATASET_REGISTRY._obj_map, "TestImages")
    capsys.readouterr()
    predictor = Predictor.load(tmp_path / "run")
    assert capsys.readouterr().out == ""
    assert predictor.classnames == list(CLASSNAMES)
    assert_same(predictor, trainer)
    assert Predictor.load(tmp_path / "run", ["a", "b"]).classnames == ["a", "b"]
    with pytest.raises(ValueError, match=f"{method} trains nothing"):
        Predictor.load(tmp_path / "run", epoch=1)
    path = tmp_path / "run" / "result.json"
    path.write_text(path.read_text().replace(f'"method": "{method}"', '"method": "CoOp"'))
    with pytest.raises(FileNotFoundError, match="run holds no model of CoOp: its run saved none"):
        Predictor.load(tmp_path / "run")
    path.unlink()
    with pytest.raises(FileNotFoundError, match="its run has not ended"):
        Predictor.load(tmp_path / "run")


def test_photos_are_turned_upright(vit_file, tmp_path):
    predictor = Predictor.zero_shot(vit_file, CLASSNAMES)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the picture lies on its left side
    Image.fromarray(np.rot90(pixels)).save(tmp_path / "phone.png", exif=exif)
    expected = predictor.read(tmp_path / "upright.png")
    assert torch.equal(predictor.read(tmp_path / "phone.png"), expected)
    with Image.open(tmp_path / "phone.png") as image:
        assert torch.equal(predictor.read(image), expected)
    stored = predictor.read(tmp_path / "phone.png", upright=False)
    assert torch.equal(stored, predictor.read(Image.fromarray(np.rot90(pixels))))


def test_zero_shot_normalises_as_the_weights_say(tmp_path):
    stated = {"image_mean": torch.full((3,), 0.5), "image_std": torch.full((3,), 0.25)}
    torch.save({**recorded_clip(), **stated}, tmp_path / "clip.pt")
    predictor = Predictor.zero_shot(str(tmp_path / "clip.pt"), CLASSNAMES)
    white = predictor.read(Image.new("RGB", (64, 64), "white"))
    assert torch.equal(white, torch.full((3, 32, 32), 2.0))


def test_context_around_names_of_other_lengths(make_cfg, tmp_path):
    pairs = ["TRAINER.COOP.CLASS_TOKEN_POSITION", "middle", "DATASET.SUBSAMPLE_CLASSES"]
    trained(make_cfg("CoOp", *pairs, "base"), tmp_path / "run")
    new = build_trainer(make_cfg("CoOp", *pairs, "new"))
    new.load_model(str(tmp_path / "run"), epoch=1)
    assert_same(Predictor.load(tmp_path / "run", new.dm.dataset.classnames), new)


def test_templates_of_the_run_are_used(make_cfg, tmp_path):
    cfg = make_cfg("VPT", "DATASET.TEMPLATES", ("a tree beside a {}.",))
    trainer = trained(cfg, tmp_path)
    predictor = Predictor.load(tmp_path)
    assert predictor.model.learner.template == "a tree beside a {}."
    assert_same(predictor, trainer)


@pytest.mark.parametrize(
    "setting",
    [("CoOp", "TRAINER.COOP.CSC", True), ("LoRVP", "TRAINER.LORVP.HEAD", "lp")],
    ids=["contexts", "head"],
)
def test_class_specific_learners_fit_their_classes_only(make_cfg, tmp_path, setting):
    cfg = make_cfg(*setting)
    trainer = trained(cfg, tmp_path / "run")
    assert_same(Predictor.load(tmp_path / "run", CLASSNAMES), trainer)
    with pytest.raises(ValueError, match=r"class-specific: .* the 5 classes .*\(cat, golden"):
        # as many classes, but others
        Predictor.load(tmp_path / "run", ["a", "b", "c", "d", "e"])
    with pytest.raises(ValueError, match="class-specific"):
        Predictor.load(tmp_path / "run", CLASSNAMES[:2])
    trainer.model.set_classes(["a", "b", "c", "d", "e"])
    with pytest.raises(ValueError, match="class-specific"):
        trainer.load_model(str(tmp_path / "run"), epoch=1)


def test_which_checkpoint_is_taken(make_cfg, tmp_path):
    def save(epoch: int, **name: str) -> torch.Tensor:
        with torch.no_grad():
            trainer.model.learner.ctx += 1
        trainer.save_model(epoch - 1, str(tmp_path), **name)
        return trainer.model.learner.ctx.detach().clone()

    def found(epoch: int | None = None) -> torch.Tensor:
        return Predictor.load(tmp_path, epoch=epoch).model.learner.ctx

    trainer = build_trainer(make_cfg("CoOp"))
    first, second = save(1), save(2)
    assert torch.equal(found(), second)
    assert torch.equal(found(epoch=1), first)
    best = save(2, model_name="model-best.pth.tar")
    save(3)
    assert torch.equal(found(), best)
    with pytest.raises(FileNotFoundError, match=r"There is: .*model\.pth\.tar-2"):
        found(epoch=9)


def test_moved_backbone_is_named_and_replaced(make_cfg, vit_file, rn_file, tmp_path):
    moved = tmp_path / "moved.pt"
    moved.symlink_to(vit_file)
    trainer = trained(make_cfg("CoOp", "MODEL.BACKBONE.NAME", str(moved)), tmp_path / "run")
    moved.unlink()
    with pytest.raises(FileNotFoundError, match=r"moved\.pt"):
        Predictor.load(tmp_path / "run")
    assert_same(Predictor.load(tmp_path / "run", backbone=vit_file), trainer)
    with pytest.raises(ValueError, match="takes 64 x 64"):
        Predictor.load(tmp_path / "run", backbone=rn_file)


def test_how_a_run_was_computed_is_left_behind(make_cfg, tmp_path):
    """Its memory and its encoders may not suit where it predicts; a key of old runs is gone."""
    cfg = make_cfg("CoOp", "MODEL.FAST_ENCODERS", False)
    trainer = trained(cfg, tmp_path)
    path = next((tmp_path / trainer.model_name).glob("model.pth.tar-*"))
    checkpoint = torch.load(path, weights_only=True)
    config = checkpoint["meta"]["config"]
    assert "  FAST_ENCODERS: false" in config.splitlines()
    config = config.replace("  MEMORY_GB: 0.0\n", "  MEMORY_GB: 1.0e-12\n")
    config = config.replace("OPTIM:\n", "OPTIM:\n  TEXT_CHUNK: 100\n")
    assert "1.0e-12" in config and "TEXT_CHUNK" in config
    torch.save({**checkpoint, "meta": {**checkpoint["meta"], "config": config}}, path)
    model = Predictor.load(tmp_path).model
    assert model.encoders.fast and not model.memory
    with torch.no_grad():
        image = next(iter(trainer.test_loader))["img"]
        assert torch.allclose(model(image), trainer.model_inference(image), atol=1e-3)
    with pytest.raises(KeyError, match=r"no OPTIM\.TEXT_CHUNK any more: use MODEL\.MEMORY_GB"):
        make_cfg("CoOp", "OPTIM.TEXT_CHUNK", 100)


def test_what_is_no_run_of_this_toolbox(make_cfg, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"run folder .*nowhere does not exist"):
        Predictor.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no folder in it holds a model\.pth\.tar"):
        Predictor.load(tmp_path)
    trainer = build_trainer(make_cfg("CoOp"))
    trainer.save_model(0, str(tmp_path / "run"))
    path = tmp_path / "run" / trainer.model_name / "model.pth.tar-1"
    good = torch.load(path, weights_only=True)

    def refused(match: str, **changes: object) -> None:
        torch.save({**good, "meta": {**good["meta"], **changes}}, path)
        with pytest.raises(ValueError, match=match):
            Predictor.load(tmp_path / "run")

    refused("layout 99, newer than", version=99)
    refused("'MyMethod' is not in", method="MyMethod")
    refused(
        "config keys: .*INPUT.SICE",
        config=good["meta"]["config"].replace("INPUT:\n", "INPUT:\n  SICE: 1\n"),
    )
    torch.save({key: value for key, value in good.items() if key != "meta"}, path)
    with pytest.raises(ValueError, match="was not written by this toolbox"):
        Predictor.load(tmp_path / "run")
    path.write_bytes(b"PK")
    with pytest.raises(ValueError, match="truncated"):
        Predictor.load(tmp_path / "run")
    trainer.save_model(0, str(tmp_path / "run"))
    (tmp_path / "run" / "other").mkdir()
    torch.save(good, tmp_path / "run" / "other" / "model.pth.tar-1")
    with pytest.raises(ValueError, match="several models"):
        Predictor.load(tmp_path / "run")


def test_unusable_arguments(vit_file):
    with pytest.raises(ValueError, match="CoOp has to be trained"):
        Predictor.zero_shot(vit_file, CLASSNAMES, "CoOp")
    with pytest.raises(ValueError, match="did you mean 'ZeroshotCLIP'"):
        Predictor.zero_shot(vit_file, CLASSNAMES, "ZeroshotCLI")
    with pytest.raises(ValueError, match="device 'gpu'"):
        Predictor.zero_shot(vit_file, CLASSNAMES, device="gpu")
    with pytest.raises(ValueError, match="is empty"):
        Predictor.zero_shot(vit_file, [])
    with pytest.raises(ValueError, match=r"a list of pictures: \['one.jpg'\]"):
        Predictor.zero_shot(vit_file, CLASSNAMES).predict("one.jpg")


def test_labels_in_any_batch_size(tiny_run, data_root, tmp_path):
    predictor = Predictor.load(tiny_run)
    paths = sorted((data_root / "test-images" / "test").rglob("*.png"))[:7]
    labels = predictor.predict(paths, top_k=3, batch_size=2)
    everything = predictor.predict([Image.open(path) for path in paths], top_k=99)
    probabilities = predictor.probabilities(torch.stack([predictor.read(path) for path in paths]))
    assert len(labels) == len(everything) == 7
    for few, every, row in zip(labels, everything, probabilities, strict=True):
        assert {label.name for label in every} == set(CLASSNAMES)
        assert [label.name for label in few] == [label.name for label in every[:3]]
        assert sum(label.probability for label in every) == pytest.approx(1)
        assert every == sorted(every, key=lambda label: -label.probability)
        for name, probability in [*few, *every]:
            assert probability == pytest.approx(row[CLASSNAMES.index(name)].item(), abs=1e-5)
    assert predictor.predict([]) == []
    faint = Image.new("RGBA", (50, 40), (200, 0, 0, 77))
    faint.save(tmp_path / "faint.png")
    (opened,), (read,) = predictor.predict([faint]), predictor.predict([tmp_path / "faint.png"])
    assert opened == read
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"bad\.png"):
        predictor.predict([tmp_path / "faint.png", tmp_path / "bad.png"])


@pytest.mark.gpu
def test_prediction_on_a_gpu_is_that_of_the_cpu(tiny_run, data_root):
    paths = sorted((data_root / "test-images" / "test").rglob("*.png"))
    on_gpu, on_cpu = (Predictor.load(tiny_run, device=name) for name in ("cuda", "cpu"))
    batch = torch.stack([on_cpu.read(path) for path in paths])
    assert torch.allclose(on_gpu.probabilities(batch), on_cpu.probabilities(batch), atol=1e-4)
