"""The table of what works with which method: as the code has it, and as runs have it."""

from __future__ import annotations

import pytest

from dassl.engine import TRAINER_REGISTRY
from support.command_line import run_command
from support.filled import fill
from tools import what_works
from tools.what_works import PAGE, WAYS, Way, refusal


@pytest.fixture(autouse=True)
def without_what_tests_register(monkeypatch):
    known = TRAINER_REGISTRY._obj_map.items()
    ours = {name: kind for name, kind in known if kind.__module__.startswith("trainers.")}
    monkeypatch.setattr(TRAINER_REGISTRY, "_obj_map", ours)


def test_the_page_is_up_to_date(capsys):
    assert run_command(what_works.build_parser(), what_works.act, []) == 0
    printed, text = capsys.readouterr().out, PAGE.read_text("utf-8")
    fresh = fill(text, {"what works": printed}) == text
    assert fresh, "run python -m tools.what_works --write"
    assert all(f"| {name} " in printed for name in TRAINER_REGISTRY.registered_names())


def test_what_is_refused():
    """One line that names the method, and how to do without; the rest is not refused."""
    refused = {
        (method, way.name): line
        for method in ("CoOp", "CLIPLoRA", "LPPlusPlus", "CLAP")
        for way in WAYS
        if (line := refusal(method, way)) is not None
    }
    assert {*refused} == {
        *((method, "`--seeds`") for method in ("CLIPLoRA", "LPPlusPlus", "CLAP")),
        *((method, "`OPTIM.CUDA_GRAPH`") for method in ("CLIPLoRA", "LPPlusPlus")),
        ("CLIPLoRA", "`torchrun`"),
    }
    for (method, _), line in refused.items():
        assert method in line and "\n" not in line
    without = Way("", ("TRAINER.CLIPLORA.DROPOUT", 0.0, "OPTIM.CUDA_GRAPH", True))
    assert refusal("CLIPLoRA", without) is None


@pytest.mark.parametrize(
    "way",
    [
        Way("", ("OPTIM.CUDA_GRAPH", True), together=True),
        Way("", ("OPTIM.CUDA_GRAPH", True, "INPUT.SEEDED_VIEWS", True), processes=2),
        Way("", ("OPTIM.CUDA_GRAPH", True, "{node}.PREC", "amp")),
        Way("", ("MODEL.MEMORY_GB", 6.0, "MODEL.FAST_ENCODERS", False)),
    ],
)
def test_what_no_method_does_at_once(way):
    for method, kind in TRAINER_REGISTRY._obj_map.items():
        if what_works.is_there(method, Way("", way.pairs, of_steps=True)) and hasattr(kind, "node"):
            assert refusal(method, way), method
