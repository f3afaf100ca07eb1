"""Images, captions and the training script of the embedded CLIP."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from adaptation.templates import IMAGENET_TEMPLATES
from clip.loading import load_state_dict
from clip.tokens import tokenize
from clip.weights import build_model
from datasets.rendering import HELD_OUT
from pretrain.__main__ import CaptionTokenizer, augment, build_parser, contrastive_loss
from pretrain.captions import BACKGROUNDS, caption, matches
from pretrain.images import (
    COLOUR_NAMES,
    COMBINATIONS,
    N_VALUES,
    NONE,
    OBJECTS,
    SHAPES,
    Attribute,
    render,
    render_collection,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def collection() -> tuple[np.ndarray, np.ndarray]:
    return render_collection(seed=3, n=300)


def test_rendering_depends_on_seed_and_index_only(collection):
    images, attributes = collection
    again, facts = render(3, 17)
    assert np.array_equal(again, images[17])
    assert np.array_equal(facts, attributes[17])
    assert not np.array_equal(render(4, 17)[0], images[17])
    in_parallel, _ = render_collection(seed=3, n=20, workers=2)
    assert np.array_equal(in_parallel, images[:20])


def test_attributes_are_in_range(collection):
    _, attributes = collection
    assert (attributes >= NONE).all()
    assert (attributes < np.array(N_VALUES)).all()
    assert len(np.unique(attributes[:, Attribute.OBJECT])) > 30


def test_no_benchmark_class_is_rendered(collection):
    held_out = {(COLOUR_NAMES.index(c), SHAPES.index(s)) for c, s in HELD_OUT}
    assert len(held_out) == 36
    assert held_out.isdisjoint(COMBINATIONS)
    assert len(COMBINATIONS) == len(COLOUR_NAMES) * len(SHAPES) - 36
    _, attributes = collection
    shapes = attributes[attributes[:, Attribute.KIND] == 0]
    seen = set(map(tuple, shapes[:, [Attribute.COLOUR, Attribute.OBJECT]].tolist()))
    assert held_out.isdisjoint(seen)


def test_held_out_classes_are_balanced():
    base, new = HELD_OUT[:18], HELD_OUT[18:]
    for half in (base, new):
        for part in (0, 1):
            values = [pair[part] for pair in half]
            assert {values.count(v) for v in values} == {2}
    assert set(base).isdisjoint(new)


def test_captions_are_true_and_say_what_they_name(collection):
    rng = np.random.default_rng(0)
    _, attributes = collection
    for row in attributes:
        text, named = caption(rng, row)
        stated = named != NONE
        assert np.array_equal(named[stated], row[stated])
        words = text.rstrip(".").split()
        if named[Attribute.COLOUR] != NONE:
            assert COLOUR_NAMES[named[Attribute.COLOUR]] in words
        if named[Attribute.BACKGROUND] != NONE:
            assert f"on a {BACKGROUNDS[named[Attribute.BACKGROUND]]} background" in text
        if named[Attribute.OBJECT] != NONE:
            name = OBJECTS[named[Attribute.OBJECT]]
            digit = str(named[Attribute.OBJECT] - len(SHAPES))
            assert name in text or any(word.startswith(digit) for word in words)


def test_matches(collection):
    rng = np.random.default_rng(0)
    _, attributes = collection
    _, named = zip(*(caption(rng, row) for row in attributes), strict=True)
    match = matches(np.stack(named), attributes)
    assert match.diagonal().all()
    i, j = np.argwhere(~match)[0]
    stated = named[j] != NONE
    assert (named[j][stated] != attributes[i][stated]).any()
    assert match.mean() < 0.5


def test_caption_tokenizer_agrees_with_the_real_one(collection):
    rng = np.random.default_rng(0)
    _, attributes = collection
    texts = [caption(rng, row)[0] for row in attributes]
    tokens = CaptionTokenizer()
    rows = tokens(texts)
    real = tokenize(texts)
    ends = rows.argmax(-1)
    assert torch.equal(ends, real.argmax(-1))
    for row, expected, end in zip(rows, real, ends.tolist(), strict=True):
        assert torch.equal(tokens.ids[row[: end + 1]], expected[: end + 1])


def test_all_templates_and_class_names_are_trained_words():
    ids = set(CaptionTokenizer().ids.tolist())
    names = [f"{c} {s}" for c, s in HELD_OUT] + ["digit zero", "digit nine"]
    texts = [t.format(name) for t in IMAGENET_TEMPLATES for name in names]
    assert set(tokenize(texts).unique().tolist()) <= ids


def test_augmentation_mirrors_shapes_only():
    rng = np.random.default_rng(0)
    image = np.zeros((1, 32, 32, 3), np.uint8)
    image[:, :, :8] = 255  # light on the left
    batch = image.repeat(64, 0)
    digits = augment(batch, np.ones(64, int), rng)
    left, right = digits[..., :4].mean((1, 2, 3)), digits[..., -4:].mean((1, 2, 3))
    assert (left >= right).all()
    shapes = augment(batch, np.zeros(64, int), rng)
    left, right = shapes[..., :4].mean((1, 2, 3)), shapes[..., -4:].mean((1, 2, 3))
    assert (left > right).any()
    assert (left < right).any()


def test_loss_is_smallest_for_the_true_pairs():
    match = torch.eye(4)
    match[0, 1] = 1.0  # caption 1 is true of image 0 as well
    good, bad = contrastive_loss(20 * match, match), contrastive_loss(-20 * match, match)
    assert good < bad
    assert float(contrastive_loss(torch.zeros(4, 4), match)) == pytest.approx(np.log(4), rel=1e-4)


def test_script_writes_a_model_that_loads_and_is_the_same_twice(tmp_path):
    files = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    for file in files:
        command = ["--steps", "3", "--batch", "16", "--images", "40", "--threads", "1"]
        subprocess.run(
            [sys.executable, "-m", "pretrain", "--out", str(file), *command],
            check=True,
            cwd=ROOT,
            capture_output=True,
        )
    assert files[0].read_bytes() == files[1].read_bytes()
    model = build_model(load_state_dict(str(files[0]))).float()
    features = model.encode_text(tokenize(["a photo of a red circle."]))
    assert features.shape == (1, 64)
    assert torch.isfinite(features).all()


@pytest.mark.parametrize("words", [["--steps", "0"], ["--batch", "x"], ["--out", "FOLDER"]])
def test_a_bad_argument_is_named(words, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        build_parser().parse_args([word.replace("FOLDER", str(tmp_path)) for word in words])
    assert caught.value.code == 2 and f"argument {words[0]}: " in capsys.readouterr().err
