"""DATASET.TEMPLATES: where the texts come from, and which methods read them."""

from __future__ import annotations

import pytest
import torch
import yaml

from adaptation.templates import (
    IMAGENET_TEMPLATES_SELECT,
    TEACHER_TEMPLATES,
    dataset_template,
    ensemble_templates,
    given_templates,
)
from adaptation.texts import encode_templates
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY, build_trainer
from tests.datasets.miniatures import BY_STEM

TEXTS = ("a drawing of a {}, a kind of animal.", "{} on paper.")


def test_texts_and_files(tmp_path):
    (tmp_path / "a.txt").write_text(f"\ufeff# animals\n{TEXTS[0]}\n\n  {TEXTS[1]}\n", "utf-8")
    (tmp_path / "b.yaml").write_text(yaml.safe_dump(list(TEXTS)), "utf-8")
    assert given_templates((), str(tmp_path)) == ()
    assert given_templates(TEXTS, "no such folder") == TEXTS
    assert given_templates(["a.txt", "das {}.", "b.yaml"], str(tmp_path)) == (
        *TEXTS,
        "das {}.",
        *TEXTS,
    )
    assert given_templates([str(tmp_path / "b.yaml")], "") == TEXTS


@pytest.mark.parametrize(
    ("entry", "content", "message"),
    [
        ("a photo of a", None, "'a photo of a' has no {}.*no file .*a photo of a"),
        ("a {} and a {}.", None, "'a {} and a {}.' must have one {}"),
        ("a {name}.", None, "'a {name}.' must have one {}"),
        ("a {}}.", None, "must have one {}"),
        ("t.txt", "a photo.\n", "t.txt: the template 'a photo.' must have one {}"),
        ("t.txt", "# nothing\n", "t.txt holds no template"),
        ("t.txt", "caf\xe9 {}".encode("latin-1"), "t.txt cannot be read"),
        ("t.yaml", "a: [", "t.yaml cannot be read"),
        ("t.yaml", "templates: ['a {}.']", "t.yaml must be a list"),
        ("t.yaml", "- 3\n", "t.yaml: the template 3 must have one {}"),
    ],
)
def test_bad_templates_are_named(tmp_path, entry, content, message):
    if content is not None:
        (tmp_path / entry).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises((ValueError, FileNotFoundError), match=message.replace("{", r"\{")):
        given_templates([entry], str(tmp_path))


def build(make_cfg, method, texts=TEXTS):
    return build_trainer(make_cfg(method, "DATASET.TEMPLATES", list(texts)))


@pytest.mark.parametrize(
    ("method", "texts", "expected"),
    [
        ("ZeroshotCLIP", TEXTS, TEXTS[:1]),
        ("ZeroshotCLIP2", TEXTS, TEXTS),
        ("ZeroshotCLIP", (), ("a photo of a {}.",)),
        ("ZeroshotCLIP2", (), (*IMAGENET_TEMPLATES_SELECT, "a photo of a {}.")),
    ],
)
def test_zero_shot(make_cfg, method, texts, expected):
    trainer = build(make_cfg, method, texts)
    names = trainer.dm.dataset.classnames
    want = encode_templates(trainer.model.encoders, names, expected, unit=True)
    torch.testing.assert_close(trainer.model.text_features(), want, rtol=1e-5, atol=1e-6)


#: published zero-shot texts of CoOp's code; all others have "a photo of a {}."
PUBLISHED = {
    "OxfordPets": "a photo of a {}, a type of pet.",
    "OxfordFlowers": "a photo of a {}, a type of flower.",
    "FGVCAircraft": "a photo of a {}, a type of aircraft.",
    "DescribableTextures": "{} texture.",
    "EuroSAT": "a centered satellite photo of {}.",
    "Food101": "a photo of {}, a type of food.",
    "UCF101": "a photo of a person doing {}.",
}


@pytest.mark.parametrize("name", [*(m.name for m in BY_STEM.values()), "Digits", "Unknown", ""])
def test_the_template_of_every_data_set(name):
    template = PUBLISHED.get(name, "a photo of a {}.")
    own = () if name == "ImageNet" else (template,)
    assert dataset_template(name) == template
    assert ensemble_templates(name) == (*IMAGENET_TEMPLATES_SELECT, *own)


def test_a_data_set_of_ones_own_names_its_template(make_cfg, monkeypatch):
    images = DATASET_REGISTRY.get("TestImages")
    own = type("TestImages", (images,), {"template": TEXTS[1]})
    monkeypatch.setitem(DATASET_REGISTRY._obj_map, "TestImages", own)
    trainer = build(make_cfg, "ZeroshotCLIP", ())
    names = trainer.dm.dataset.classnames
    want = encode_templates(trainer.model.encoders, names, TEXTS[1:], unit=True)
    torch.testing.assert_close(trainer.model.text_features(), want, rtol=1e-5, atol=1e-6)
    assert ensemble_templates("TestImages") == (*IMAGENET_TEMPLATES_SELECT, TEXTS[1])
    own.template = "a photo"
    with pytest.raises(ValueError, match=r"data set TestImages: .* 'a photo' must have one {}"):
        build(make_cfg, "ZeroshotCLIP", ())
    # the registry also holds functions, and classes that are written for upstream
    monkeypatch.setitem(DATASET_REGISTRY._obj_map, "TestImages", lambda cfg: images(cfg))
    assert dataset_template("TestImages") == "a photo of a {}."


@pytest.mark.parametrize("texts", [TEXTS, ()])
def test_the_text_of_methods_without_text_prompts(make_cfg, texts):
    model = build(make_cfg, "VPT", texts).model
    template = texts[0] if texts else "a photo of a {}."
    want = encode_templates(model.encoders, model.classnames, [template], unit=True)
    with torch.no_grad():
        assert torch.allclose(model.text_features(), want, atol=1e-6)


@pytest.mark.parametrize("method", ["PromptSRC", "MMLoP"])
@pytest.mark.parametrize("texts", [TEXTS, ()])
def test_the_teacher(make_cfg, method, texts):
    model = build(make_cfg, method, texts).model
    want = encode_templates(
        model.encoders, model.classnames, texts or TEACHER_TEMPLATES, unit=False
    )
    # kept features may come from another size of parts, which rounds otherwise
    torch.testing.assert_close(model.frozen_text_features(), want, rtol=1e-5, atol=1e-6)
    assert TEXTS[0] not in model.learner.template


@pytest.mark.parametrize("texts", [TEXTS, ()])
def test_a_method_chooses_the_texts_of_its_teacher(make_cfg, monkeypatch, texts):
    """Here the data set's own, as KgCoOp does; DATASET.TEMPLATES has precedence."""

    class OwnTeacher(TRAINER_REGISTRY.get("PromptSRC")):
        @classmethod
        def teacher_templates(cls, cfg):
            return (dataset_template(cfg.DATASET.NAME),)

    monkeypatch.setitem(TRAINER_REGISTRY._obj_map, "PromptSRC", OwnTeacher)
    monkeypatch.setattr(DATASET_REGISTRY.get("TestImages"), "template", "{} texture.")
    model = build(make_cfg, "PromptSRC", texts).model
    want = encode_templates(model.encoders, model.classnames, texts or ("{} texture.",), unit=False)
    torch.testing.assert_close(model.frozen_text_features(), want, rtol=1e-5, atol=1e-6)


def test_a_checkpoint_holds_the_texts(make_cfg, data_root):
    file = data_root / "test-images" / "own.txt"
    file.write_text("\n".join(TEXTS))
    trainer = build(make_cfg, "MMLoP", ["own.txt"])
    config = trainer.checkpoint_state("prompt_learner", 1)["meta"]["config"]
    assert yaml.safe_load(config)["DATASET"]["TEMPLATES"] == list(TEXTS)
    assert trainer.cfg.DATASET.TEMPLATES == ("own.txt",)
    file.unlink()
