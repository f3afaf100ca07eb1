"""Nearest words: the right distances, only trained words, every kind of text prompt."""

from __future__ import annotations

import csv

import pytest
import torch

from clip import tiny
from clip.loading import load_state_dict
from clip.simple_tokenizer import SimpleTokenizer
from clip.tokens import tokenize
from support.command_line import run_command
from tests.conftest import CLASSNAMES
from tools import nearest_words
from trainers import Predictor


def run(*words: object) -> int:
    return run_command(nearest_words.build_parser(), nearest_words.run, [str(w) for w in words])


@pytest.mark.filterwarnings("ignore:TRAINER.COOP.N_CTX")
def test_untrained_context_is_its_own_words(fresh):
    predictor = fresh("CoOp", "TRAINER.COOP.CTX_INIT", "a photo of a")
    rows = nearest_words.nearest_words(predictor, 2)
    nearest = [row for row in rows if row[3] == 1]
    assert [(row[0], row[2], row[4]) for row in nearest] == [
        (0, i, word) for i, word in enumerate(["a", "photo", "of", "a"])
    ]
    assert all(row[5] == pytest.approx(0, abs=1e-3) for row in nearest)
    assert {row[1] for row in rows} == {""}


def test_distances_are_euclidean_and_words_trained(tiny_run):
    predictor = Predictor.load(tiny_run)
    rows = nearest_words.nearest_words(predictor, 3)
    prompts = list(predictor.model.learner.text_changes().prompts())
    table = load_state_dict("tiny-2")["token_embedding.weight"]
    trained = tiny.trained_ids(tiny.weights_at("embedded:tiny-2"))
    assert len(rows) == len(prompts) * 4 * 3
    for block, name, token, rank, word, distance in rows:
        row = prompts[block].tokens[token].detach()
        ordered = (table[trained] - row).norm(dim=-1).sort()
        assert name == ""
        assert distance == pytest.approx(ordered.values[rank - 1].item(), abs=1e-4)
        if not word.endswith("+"):
            assert int(tokenize(word)[0, 1]) in trained


def test_class_specific_contexts_name_their_class(fresh):
    predictor = fresh("CoOp", "TRAINER.COOP.CSC", True, "TRAINER.COOP.N_CTX", 2)
    rows = nearest_words.nearest_words(predictor, 1)
    owners = [(name, token) for _, name, token, *_ in rows]
    assert owners == [(name, token) for name in CLASSNAMES for token in (0, 1)]
    table = predictor.model.clip.token_embedding.weight
    with torch.no_grad():
        expected = (table - predictor.model.learner.ctx[3, 1]).norm(dim=-1).min().item()
    assert rows[7][-1] == pytest.approx(expected, abs=1e-4)
    assert "axolotl" in nearest_words.show(rows)


def test_parts_of_a_context_are_put_together(fresh):
    place = ["TRAINER.COOP.CLASS_TOKEN_POSITION", "middle", "TRAINER.COOP.N_CTX", 4]
    predictor = fresh("CoOp", *place)
    assert [row[2] for row in nearest_words.nearest_words(predictor, 1)] == [0, 1, 2, 3]


def test_word_parts_are_marked():
    tokenizer = SimpleTokenizer()
    word, part = tokenizer.encoder["photo</w>"], tokenizer.encoder["photo"]
    assert nearest_words.spelled(word, tokenizer) == "photo"
    assert nearest_words.spelled(part, tokenizer) == "photo+"
    assert nearest_words.spelled(len(tokenizer.encoder) - 1, tokenizer) == "<|endoftext|>"


def test_command_prints_and_writes(tiny_run, tmp_path, capsys):
    out = tmp_path / "new" / "words.csv"
    assert run(tiny_run, "--top-k", 2, "--out", out) == 0
    printed = capsys.readouterr().out
    with open(out, encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert tuple(header) == nearest_words.COLUMNS
    assert len(rows) == 9 * 4 * 2
    assert str(out) in printed
    expected = nearest_words.nearest_words(Predictor.load(tiny_run), 2)
    assert nearest_words.show(expected) in printed
    assert [row[4] for row in rows] == [row[4] for row in expected]


def test_method_without_text_prompts(fresh):
    with pytest.raises(ValueError, match="VPT leaves the text as it is"):
        nearest_words.nearest_words(fresh("VPT"), 3)
