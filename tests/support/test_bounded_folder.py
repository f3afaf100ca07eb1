"""What the caches share: a bound on the size, and files that are whole or absent."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import filelock
import pytest

from support.bounded_folder import BoundedFolder

LIMIT = 300
TEXTS = {"what": "letters", "limit_key": "CACHE_MB", "variable": "LETTERS_CACHE"}


def save(folder: BoundedFolder, name: str, size: int = 100) -> None:
    with folder.locked() as save_file:
        save_file(name, size, lambda path: path.write_bytes(b"x" * size))


def read(path: Path) -> int:
    content = path.read_bytes()
    if set(content) != set(b"x"):
        raise ValueError("not only x")
    return len(content)


@pytest.fixture
def folder(tmp_path) -> BoundedFolder:
    return BoundedFolder(tmp_path / "new" / "cache", ".x", LIMIT, **TEXTS)


def test_the_least_recently_used_make_room(folder):
    assert folder.load("a.x", read) is None and not folder.path.exists()
    for age, name in ((30, "a.x"), (20, "b.x"), (10, "c.x")):
        save(folder, name)
        os.utime(folder.path / name, (1e9 - age, 1e9 - age))
    (folder.path / "d.x.tmp123").write_text("left by a killed process")
    (folder.path / "notes.txt").write_bytes(b"not counted" * 100)
    assert folder.load("a.x", read) == 100  # used again
    save(folder, "a.x")  # in its own place
    assert sorted(os.listdir(folder.path)) == ["a.x", "b.x", "c.x", "lock", "notes.txt"]
    save(folder, "d.x", 150)
    assert sorted(path.name for path in folder.path.glob("*.x*")) == ["a.x", "d.x"]


def test_a_file_that_cannot_be_written_leaves_the_old_one(folder):
    save(folder, "a.x")

    def fail(path):
        path.write_bytes(b"xx")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"), folder.locked() as save_file:
        save_file("a.x", 2, fail)
    assert folder.load("a.x", read) == 100
    assert sorted(os.listdir(folder.path)) == ["a.x", "lock"]


def test_the_first_file_says_where_it_is_and_what_bounds_it(folder, capsys, monkeypatch):
    monkeypatch.setattr("support.bounded_folder._noted", set())
    for name in ("a.x", "b.x"):
        save(folder, name)
    (note,) = capsys.readouterr().out.splitlines()
    for part in ("letters", str(folder.path), "0.1 kB", "0.3 kB: CACHE_MB", "LETTERS_CACHE"):
        assert part in note
    monkeypatch.setattr("support.bounded_folder._noted", set())  # as in another process
    save(folder, "c.x")
    assert capsys.readouterr().out == ""


def test_a_disk_without_room_keeps_what_is_there(folder):
    folder.limit = 10**18
    save(folder, "a.x")
    with (
        pytest.raises(OSError, match="are free on its disk") as error,
        folder.locked() as save_file,
    ):
        save_file("b.x", 10**17, lambda path: path.write_bytes(b"x"))
    assert error.value.errno == errno.ENOSPC
    assert sorted(os.listdir(folder.path)) == ["a.x", "lock"]


def test_a_damaged_file_counts_as_absent(folder, capsys):
    save(folder, "a.x")
    capsys.readouterr()
    (folder.path / "a.x").write_bytes(b"xxy")
    for _ in range(2):
        assert folder.load("a.x", read) is None
    note = f"Note: {folder.path / 'a.x'} cannot be used and is made anew: not only x\n"
    assert capsys.readouterr().out == note
    save(folder, "a.x")
    assert folder.load("a.x", read) == 100


def test_one_process_saves_at_a_time(folder):
    other = BoundedFolder(folder.path, ".x", LIMIT, wait_s=30, **TEXTS)
    with folder.locked() as save_file:
        with pytest.raises(filelock.Timeout), folder.locked():
            pass
        waiting = threading.Thread(target=save, args=(other, "b.x"))
        waiting.start()
        save_file("a.x", 3, lambda path: path.write_bytes(b"xxx"))
        assert not (folder.path / "b.x").exists()
    waiting.join()
    assert folder.load("a.x", read) == 3 and folder.load("b.x", read) == 100
