"""``train.py --list``: what is registered, with a line and a paper each."""

from __future__ import annotations

import pytest

import train
from clip.loading import available_models
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY
from protocols import PROTOCOLS
from scripts.listing import KINDS


def shown(capsys, *words: str) -> str:
    assert train.main(["--list", *words]) == 0
    return capsys.readouterr().out


def test_everything_is_listed_with_its_paper(capsys):
    text = shown(capsys)
    names = [*TRAINER_REGISTRY.registered_names(), *DATASET_REGISTRY.registered_names()]
    names += [*available_models(), *(protocol.name for protocol in PROTOCOLS)]
    lines = [line.split("  [")[0].strip() for line in text.splitlines()]
    assert [name for name in names if name not in lines] == []
    for part in ("arXiv 2602.21397", "Helber et al., 2019", "[configs/datasets/eurosat.yaml]"):
        assert part in text
    # two folders of scripts have one trainer
    assert "[scripts/ivlp/, scripts/language-prompting/]" in text


@pytest.mark.parametrize("kind", KINDS)
def test_one_kind_alone(capsys, kind):
    text = shown(capsys, kind)
    assert text.startswith(kind) and not any(f"\n{other} (" in text for other in KINDS)
    for entry in KINDS[kind][1]():
        of_a_test = (
            kind == "methods" and TRAINER_REGISTRY.get(entry.name).__module__[:6] == "tests."
        )
        assert entry.line or of_a_test


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("method", "methods"),
        ("trainers", "methods"),
        ("models", "backbones"),
        ("data-sets", "datasets"),
        ("protocol", "protocols"),
    ],
)
def test_an_unknown_kind_names_the_one_that_is_meant(capsys, word, meant):
    assert train.main(["--list", word]) == 2
    assert f"did you mean {meant}?" in capsys.readouterr().err


def test_a_trainer_of_ones_own_is_listed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(TRAINER_REGISTRY, "_obj_map", {**TRAINER_REGISTRY._obj_map})
    file = tmp_path / "mine.py"
    file.write_text(
        '"""ListedTrainer: words that are learned at night.\n\n'
        'A. Body, "Prompts at Night", 2031.\n"""\n'
        "from dassl.engine import TRAINER_REGISTRY, TrainerX\n"
        "@TRAINER_REGISTRY.register()\n"
        "class ListedTrainer(TrainerX):\n"
        '    """A trainer."""\n'
    )
    text = shown(capsys, "methods", "--trainer-file", str(file))
    assert "  ListedTrainer\n      words that are learned at night\n" in text
    assert 'A. Body, "Prompts at Night", 2031' in text
