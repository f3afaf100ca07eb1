"""Exported files: complete, readable without this toolbox, and equal to what the model computes."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open

from clip.changes import Changes, Prompt
from support.command_line import run_command
from tests.conftest import CLASSNAMES
from tests.trainers.test_contract import METHODS
from tools import export
from trainers import Predictor


def run(*words: object) -> int:
    return run_command(export.build_parser(), export.export, [str(word) for word in words])


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
        return tensors, json.loads(file.metadata()["run"])


def prompts_of(tensors: dict, places: dict, encoder: str) -> dict[int, list[Prompt]]:
    """The prompts of one encoder, put together again from an exported file."""
    found: dict[int, list[Prompt]] = {}
    for key in sorted(key for key in tensors if key.startswith(f"{encoder}_prompts.")):
        at, drop = places[key]["at"], places[key]["drop"]
        prompt = Prompt(tensors[key], tuple(at) if isinstance(at, list) else at, drop)
        found.setdefault(int(key.split(".")[1]), []).append(prompt)
    return found


def test_every_setting_of_the_method_is_exported(fresh, method_with_a_node_of_its_own):
    notes = export.description(fresh(method_with_a_node_of_its_own))
    settings = yaml.safe_load(notes["config"])["TRAINER"]
    assert set(settings) == {"NAME", "KG"}
    assert settings["KG"]["WEIGHT"] == 8


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))


#: methods whose logits are more than cosines of image features to those of texts
OWN_LOGITS = ("LPPlusPlus", "MMRL", "MMRLPlusPlus", "TipAdapterF")


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_every_method_exports_what_it_learned(fresh, method, tmp_path, image, capsys):
    predictor, out = fresh(method), tmp_path / "new" / "out.safetensors"
    model = predictor.model
    model.learner.set_n_images(3)
    model.learner.start(model)
    names = export.write_prompts(predictor, str(out))
    tensors, notes = read(out)
    assert sorted(tensors) == sorted(names)
    assert (notes["method"], notes["classnames"]) == (method, list(CLASSNAMES))
    assert notes["backbone"] == predictor.cfg.MODEL.BACKBONE.NAME
    assert f"NAME: {method}" in notes["config"]
    for key, value in model.learner.state_dict().items():
        assert torch.equal(tensors[f"learner.{key}"], value)
    for encoder in ("text", "image"):
        own = getattr(model.learner, f"{encoder}_changes")()
        found = prompts_of(tensors, notes["places"], encoder)
        for block in range(12):
            mine, theirs = Changes.of(found)[block].prompts, Changes.of(own)[block].prompts
            assert [(p.at, p.drop) for p in mine] == [(p.at, p.drop) for p in theirs]
            assert all(torch.equal(p.tokens, q.tokens) for p, q in zip(mine, theirs, strict=True))
    prediction = model.predict(image)
    reason = "no fixed class embeddings" if model.learner.image_conditioned else ""
    if method in OWN_LOGITS:
        reason = f"{method} does not classify by its text features"
    assert ("class_embeddings" in tensors) == (not reason)
    if reason:
        assert reason in capsys.readouterr().err
        with pytest.raises(ValueError, match=reason):
            export.write_classifier(predictor, str(tmp_path / "classifier.npy"))
        assert [path.name for path in tmp_path.iterdir()] == ["new"]
        return
    export.write_classifier(predictor, str(tmp_path / "classifier.npy"))
    weight = torch.from_numpy(np.load(tmp_path / "classifier.npy"))
    assert torch.equal(weight, tensors["class_embeddings"])
    logits = notes["logit_scale"] * prediction.image_features @ weight.T
    assert torch.allclose(logits, prediction.logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["MMRL", "MMRLPlusPlus"])
@torch.no_grad()
def test_other_classes_have_a_classifier(fresh, method, tmp_path, image):
    """They are told apart by the class token's features alone."""
    predictor = fresh(method)
    predictor.model.trained_classes = ["another"]
    export.write_classifier(predictor, str(tmp_path / "classifier.safetensors"))
    tensors, notes = read(tmp_path / "classifier.safetensors")
    prediction = predictor.model.predict(image)
    logits = notes["logit_scale"] * prediction.image_features @ tensors["weight"].T
    assert torch.allclose(logits, prediction.logits, rtol=1e-5, atol=1e-5)


def test_command_writes_a_classifier_for_other_classes(tiny_run, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("digit three\ndigit four\n")
    files = [tmp_path / "classifier.npy", tmp_path / "classifier.safetensors"]
    for file in files:
        assert run(tiny_run, "--classes", names, "--classifier", file) == 0
    weight, notes = np.load(files[0]), json.loads(files[0].with_suffix(".json").read_text())
    assert (weight.shape, weight.dtype) == ((2, 64), np.float32)
    assert np.allclose(np.linalg.norm(weight, axis=1), 1, atol=1e-5)
    tensors, same_notes = read(files[1])
    assert notes == same_notes
    assert notes["classnames"] == ["digit three", "digit four"]
    assert np.allclose(tensors["weight"].numpy(), weight, atol=1e-6)
    predictor = Predictor.load(tiny_run, notes["classnames"])
    with torch.no_grad():
        assert np.allclose(predictor.model.text_features().numpy(), weight, atol=1e-6)
    assert notes["logit_scale"] == pytest.approx(predictor.model.clip.logit_scale.exp().item())


def test_a_head_of_its_own_is_no_classifier_of_texts(fresh, tmp_path, capsys):
    predictor = fresh("LoRVP", "TRAINER.LORVP.HEAD", "lp")
    with pytest.raises(ValueError, match="LoRVP does not classify by its text features"):
        export.write_classifier(predictor, str(tmp_path / "classifier.npy"))
    export.write_prompts(predictor, str(tmp_path / "out.safetensors"))
    assert "note: no class embeddings" in capsys.readouterr().err
    tensors, _ = read(tmp_path / "out.safetensors")
    assert tensors.keys() == {f"learner.{key}" for key in predictor.model.learner.state_dict()}


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "nothing to write"),
        (["out.pt"], "OUT: out.pt must end in .safetensors"),
        (["--classifier", "c.txt"], "--classifier: c.txt must end in .npy or .safetensors"),
        (["out.safetensors", "--load-epoch", "8"], "There is: model.pth.tar-1"),
    ],
)
def test_bad_input_writes_nothing(tiny_run, tmp_path, monkeypatch, capsys, words, part):
    monkeypatch.chdir(tmp_path)
    assert run(tiny_run, *words) == 2
    assert part in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["out.safetensors", "c.safetensors", "c.npy"])
def test_a_full_disk_names_the_file(tiny_run, tmp_path, capsys, name):
    words = [tmp_path / name] if name.startswith("out") else ["--classifier", tmp_path / name]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:  # no longer than this: what pytest prints may go to a file as well
        assert run(tiny_run, *words) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    # the names are written before the matrix
    blamed = tmp_path / name.replace(".npy", ".json")
    assert capsys.readouterr().err.endswith(f"error: cannot write {blamed}: File too large\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("file/out.safetensors", "File exists (file)"),
        ("file/deep/out.safetensors", "Not a directory (file/deep)"),
    ],
)
def test_a_place_that_cannot_be_written(tiny_run, tmp_path, monkeypatch, capsys, path, reason):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert run(tiny_run, path) == 2
    assert capsys.readouterr().err.endswith(f"error: cannot write {path}: {reason}\n")
