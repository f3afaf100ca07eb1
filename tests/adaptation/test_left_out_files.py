"""A half-written file among the methods: it is named, and the other methods go on."""

from __future__ import annotations

import sys

import pytest

import trainers
from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY

REGISTERED = """
from dassl.engine import TRAINER_REGISTRY, TrainerX

@TRAINER_REGISTRY.register()
class {name}(TrainerX):
    @staticmethod
    def extend_cfg(cfg):
        cfg.TRAINER.HALF = {default}
"""


@pytest.fixture
def register(tmp_path, monkeypatch):
    """Function that has ``half.py`` of some content imported as a file of ``trainers/``."""
    folders = [*trainers.__path__, str(tmp_path)]
    monkeypatch.setattr(trainers, "__path__", folders)
    for table in ("_obj_map", "_left_out", "_claimed_twice"):
        monkeypatch.setattr(TRAINER_REGISTRY, table, dict(getattr(TRAINER_REGISTRY, table)))

    def register(content: str) -> None:
        (tmp_path / "half.py").write_text(content)
        TRAINER_REGISTRY.import_files("trainers", folders)
        trainers.extend_cfg(get_cfg_default())

    yield register
    sys.modules.pop("trainers.half", None)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("x = (\n", "SyntaxError: '(' was never closed (half.py, line 1)"),
        (
            "\nimport no_such_module\n",
            "half.py, line 2: ModuleNotFoundError: No module named",
        ),
        (REGISTERED.format(name="Half", default=1) + "later", "NameError: name 'later' is not"),
        (REGISTERED.format(name="Half", default="size"), "NameError: name 'size' is not defined"),
    ],
)
def test_a_file_that_fails_stops_nobody_else(register, tmp_path, capsys, content, says):
    register(content)
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert str(tmp_path / "half.py") in err and says in err
    trainers.check_trainer("CoOp")
    with pytest.raises(ValueError) as caught:
        trainers.check_trainer("Half", "--trainer")
    assert str(caught.value).startswith("--trainer: 'Half' ")
    assert str(tmp_path / "half.py") in str(caught.value) and says in str(caught.value)


def test_a_copy_that_kept_the_name_of_its_class(register, capsys):
    """Which of the two files would run is a matter of the alphabet."""
    register(REGISTERED.format(name="CoOp", default=1))
    assert "CoOp is already registered" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"two files have a trainer 'CoOp': .*half\.py"):
        trainers.check_trainer("CoOp")
    trainers.check_trainer("MaPLe")


def test_a_complete_file_is_taken(register, capsys):
    register(REGISTERED.format(name="Half", default=1))
    trainers.check_trainer("Half")
    assert capsys.readouterr().err == ""
