"""CoPrompt: two views, sentences about the classes, and what is wrong with either."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from adaptation.predictor import Predictor
from adaptation.sentences import find_sentences, read_sentences
from adaptation.together import predict_together
from dassl.engine import build_trainer
from tests.conftest import CLASSNAMES

NOWHERE = ("TRAINER.COPROMPT.SENTENCES", "nowhere")


def first_batch(trainer) -> dict:
    return next(iter(trainer.train_loader_x))


def test_the_teacher_sees_the_second_view(make_cfg):
    trainer = build_trainer(make_cfg("CoPrompt", "DATALOADER.K_TRANSFORMS", 2))
    batch = first_batch(trainer)
    first, second = batch["img"]
    assert not torch.equal(first, second) and "view" not in batch
    image, _ = trainer.parse_batch_train(batch)
    assert image.shape == (4, 2, 3, 32, 32)
    model = trainer.model
    for prediction in (model.predict(image), predict_together([model], [image], [None])[0]):
        torch.testing.assert_close(prediction.logits, model.predict(first).logits)
        frozen = prediction.frozen().image_features
        torch.testing.assert_close(frozen, model.frozen_image_features(second))


def test_one_view_may_be_both(make_cfg):
    trainer = build_trainer(make_cfg("CoPrompt"))
    image, _ = trainer.parse_batch_train(first_batch(trainer))
    frozen = trainer.model.predict(image).frozen().image_features
    torch.testing.assert_close(frozen, trainer.model.frozen_image_features(image))


@pytest.mark.parametrize(("method", "n_views"), [("CoPrompt", 3), ("MaPLe", 2)])
def test_more_views_than_a_step_can_use(make_cfg, method, n_views):
    with pytest.raises(ValueError, match=rf"K_TRANSFORMS is {n_views}: {method} uses at most"):
        build_trainer(make_cfg(method, "DATALOADER.K_TRANSFORMS", n_views))


def test_sentence_numbers_are_drawn_for_every_step(make_cfg):
    trainer = build_trainer(make_cfg("CoPrompt"))
    batch, drawn = first_batch(trainer), []
    for _ in range(40):
        trainer.parse_batch_train(batch)
        drawn.append(int(trainer.drawn))
    assert set(drawn) == {0, 1, 2}
    prediction, terms = trainer.model.predict(batch["img"]), []
    for number in range(3):
        trainer.drawn.fill_(number)
        terms.append(float(trainer.loss(prediction, batch["label"])[1]["text"].detach()))
    assert len(set(terms)) == 3


def test_sentences_are_read_in_training_only(make_cfg, tmp_path):
    trainer = build_trainer(make_cfg("CoPrompt"))
    trainer.save_model(0, str(tmp_path / "trained"))
    other = build_trainer(make_cfg("CoPrompt", *NOWHERE))
    other.load_model(str(tmp_path / "trained"), epoch=1)
    assert 0.0 <= other.test() <= 100.0
    names = ["a tram", "a ship"]
    assert Predictor.load(tmp_path / "trained", names).classnames == names


def test_a_missing_file_is_said_before_training(make_cfg, data_root):
    trainer = build_trainer(make_cfg("CoPrompt", *NOWHERE))
    with pytest.raises(FileNotFoundError) as error:
        trainer.train()
    text = str(error.value)
    assert str(data_root / "nowhere" / "testimages_prompt.json") in text
    assert "TRAINER.COPROMPT.SENTENCES" in text and '{"class name": ["sentence", ...]' in text
    assert "\n" not in text
    assert not list(Path(trainer.output_dir).rglob("model.pth*"))


def test_where_a_file_is_looked_for(tmp_path):
    (tmp_path / "gpt_file").mkdir()
    (tmp_path / "own.json").write_text("{}")
    for data_set, key in (
        ("Caltech101", "caltech"),
        ("UCF101", "ucf101"),
        ("FGVCAircraft", "fgvc"),
    ):
        path = tmp_path / "gpt_file" / f"{key}_prompt.json"
        path.write_text("{}")
        assert find_sentences("gpt_file", str(tmp_path), data_set, "KEY") == path
    for given in ("own.json", str(tmp_path / "own.json")):
        assert find_sentences(given, str(tmp_path), "Digits", "KEY") == tmp_path / "own.json"
    # those that come with the repository are found from any data root
    for data_set in ("Digits", "Shapes"):
        assert find_sentences("configs/sentences", str(tmp_path), data_set, "KEY").is_file()


GOOD = {name.replace("_", " "): [f"the {name}.", "it is there."] for name in CLASSNAMES}


@pytest.mark.parametrize(
    "content",
    [
        GOOD,
        {name.upper(): sentences for name, sentences in GOOD.items()},
        {name.replace(" ", "_"): sentences for name, sentences in GOOD.items()},
        {**GOOD, "no class of ours": ["one"]},
    ],
    ids=["as named", "in capitals", "with underscores", "with another class"],
)
def test_names_in_any_case(tmp_path, content):
    (tmp_path / "file.json").write_text(json.dumps(content))
    found = read_sentences(tmp_path / "file.json", CLASSNAMES, 77)
    assert found == [GOOD[name.replace("_", " ")] for name in CLASSNAMES]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", "cannot be read"),
        ([1], "holds a list"),
        ({**GOOD, "cat": ["one"]}, "has 1 sentences for 'cat' and 2 for 'golden_retriever'"),
        ({**GOOD, "cat": []}, "'cat': a list of sentences was expected"),
        ({**GOOD, "cat": "one"}, "'cat': a list of sentences was expected"),
        ({**GOOD, "cat": ["one", 2]}, "'cat': a list of sentences was expected"),
        ({**GOOD, "cat": ["one", "word " * 80]}, "'cat': a sentence has 82 tokens"),
        ({**GOOD, "cat": None}, "'cat': a list of sentences was expected"),
        ({**GOOD, "cat": {"0": "one"}}, "'cat': a list of sentences was expected"),
        ({**GOOD, "cat": ["one", " "]}, "'cat': a list of sentences was expected"),
        ({k: v for k, v in GOOD.items() if k != "cat"} | {"Cats": ["a", "b"]}, "mean Cats"),
        ({"tree": ["a"], "cat": ["a"]}, r"lacks 3 of 5 classes: 'golden_retriever', 'forget"),
        ({"airbus": ["a"]}, r"lacks 5 of 5 .* and 2 more; is it that of another data set\?$"),
        ({}, "lacks 5 of 5 classes"),
        (json.dumps(GOOD)[:-20], "cannot be read: .*it should hold a JSON object"),
        ('{"cat": ["a"], "cat": ["b"]}', "cannot be read: it has 'cat' twice"),
        (json.dumps(GOOD).encode("utf-16"), "cannot be read: not UTF-8 text"),
        (b"", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        (
            {k: v for k, v in GOOD.items() if k != "cat"} | {"Cat": ["a"], "CAT": ["a"]},
            "no class 'cat', but 'Cat' and 'CAT'",
        ),
    ],
)
def test_files_that_do_not_fit(tmp_path, content, match):
    path = tmp_path / "file.json"
    content = content if isinstance(content, str | bytes) else json.dumps(content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ValueError, match=match) as error:
        read_sentences(path, CLASSNAMES, 77)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_what_is_no_file_of_sentences(tmp_path):
    """Said where it is read, not as a file that is missing; a link to a file is one."""
    path = tmp_path / "some.json"

    def read() -> list[list[str]]:
        found = find_sentences("some.json", str(tmp_path), "Digits", "KEY")
        return read_sentences(found, CLASSNAMES, 77)

    path.mkdir()
    with pytest.raises(IsADirectoryError, match=r"some\.json"):
        read()
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(OSError, match=r"not a file, but a pipe.*some\.json"):
        read()
    path.unlink()
    with open(path, "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match=r"1,099,511,627,776 bytes.*some\.json"):
        read()
    path.unlink()
    path.symlink_to(tmp_path / "there.json")
    with pytest.raises(FileNotFoundError, match=r"no file .*some\.json"):
        read()
    (tmp_path / "there.json").write_text(json.dumps(GOOD))
    assert len(read()) == len(CLASSNAMES)


def test_unknown_distance(make_cfg):
    with pytest.raises(ValueError, match=r"DISTILL: 'l1' is not in .*cosine, mse"):
        build_trainer(make_cfg("CoPrompt", "TRAINER.COPROMPT.DISTILL", "l1"))
