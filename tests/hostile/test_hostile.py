"""Some dozens of hostile inputs for every reader; thousands: ``python -m tests.hostile``."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from tests.hostile import judging
from tests.hostile.__main__ import BAD, outcomes, summary, table
from tests.hostile.mutations import Payload, Random
from tests.hostile.readers import READERS, Reader


@pytest.fixture()
def box(tmp_path, monkeypatch):
    """Folder of the inputs; caches of the toolbox lie beside it."""
    for variable in ("CLIP_CACHE", "DASSL_CACHE", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(variable, os.environ.get(variable, ""))
    judging.clean_environment(tmp_path)
    return tmp_path / "box"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_hostile_input_is_read_or_refused_in_one_line(name, box, tmp_path, capfd):
    reader = READERS[name]
    material = tmp_path / "material"
    material.mkdir()
    session = reader.make(material)
    judging.warm_up(session, tmp_path / "warm")
    numbers = range(reader.quick + 1)
    found = [judging.judge(session, f"1 {name}", number, box) for number in numbers]
    assert found[0].verdict == "read", found[0]
    bad = [
        outcome
        for outcome in found
        if outcome.verdict not in ("read", "refused")
        or outcome.escaped
        or outcome.executed
        or outcome.memory_mb > reader.memory_mb
    ]
    assert bad == []


class Session:
    """A reader that does to hostile input what it is told."""

    def __init__(self, act) -> None:
        self.act = act

    def write(self, rng: Random | None, target: Path) -> None:
        (target / "file").write_bytes(b"" if rng is None else rng.randbytes(10))

    def read(self, target: Path) -> None:
        self.act(target)


def refuse(text: str) -> None:
    raise ValueError(text)


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (lambda target: None, {"verdict": "read"}),
        (lambda target: refuse("no: another"), {"verdict": "refused"}),
        (lambda target: [][0], {"verdict": "traceback"}),
        (lambda target: exit(3), {"verdict": "traceback"}),
        (lambda target: print("error: x", file=__import__("sys").stderr), {"verdict": "traceback"}),
        (lambda target: (target.parent / "other").write_text(""), {"escaped": True}),
        (lambda target: (target.parent / judging.BESIDE).write_text("x"), {"escaped": True}),
        (
            lambda target: Payload(target.parent / "executed").__reduce__()[0](
                f"touch {target.parent / 'executed'}"
            ),
            {"executed": True, "escaped": False},
        ),
        pytest.param(
            lambda target: bytearray(200_000_000),
            {"memory_mb": 150},
            marks=pytest.mark.own_process,
            id="memory",
        ),
    ],
)
def test_the_check_sees_what_must_not_be(act, expected, box):
    outcome = judging.judge(Session(act), "seed", 1, box).as_dict()
    for key, value in expected.items():
        assert outcome[key] == value if key != "memory_mb" else outcome[key] > value


def test_inputs_that_end_or_hold_the_process_are_hangs(monkeypatch, capsys):
    def act(target: Path) -> None:
        number = len(os.listdir(counted))
        Path(counted, str(number)).touch()
        if number == 2:
            os._exit(7)
        while number == 4:
            pass

    monkeypatch.setattr(judging, "SECONDS", 0.3)
    with tempfile.TemporaryDirectory() as counted:
        monkeypatch.setitem(READERS, "toy", Reader(lambda folder: Session(act)))
        found = outcomes("toy", 6, "1")
    verdicts = [outcome["verdict"] for outcome in found]
    assert verdicts.count("hang") == 2 and len(verdicts) == 7
    row = summary("toy", found)
    assert row["hangs"] == 2 and row["read"] == 5
    assert any(row[column] for column in BAD)
    assert "| toy" in table([row])


def test_the_same_seed_gives_the_same_inputs(tmp_path):
    material = tmp_path / "material"
    material.mkdir()
    session = READERS["image"].make(material)
    contents = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        (folder / "target").mkdir()
        session.write(Random("seed 5"), folder / "target")
        contents.append(
            [path.read_bytes() for path in (folder / "target").iterdir() if path.is_file()]
        )
    assert contents[0] == contents[1]
