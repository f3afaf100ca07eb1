"""Space on the disk, before something is written, and the cache folders of a user."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest

from support.disk import check_room, folder_bytes, free_bytes, shown, sweep_shortage
from support.files import user_cache


def test_room(tmp_path):
    place = tmp_path / "not" / "there" / "yet.pt"
    assert free_bytes(place) == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.05)
    check_room(place, 10)
    with pytest.raises(OSError, match=r"a file takes 1e\+03 TB, and .* are free") as error:
        check_room(place, 1e15, "a file")
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(place))
    assert not list(tmp_path.iterdir())


def test_sweep(tmp_path):
    for seed, size in enumerate((1000, 3000, 10**6)):
        run = tmp_path / f"seed{seed}"
        (run / "prompt_learner").mkdir(parents=True)
        (run / "prompt_learner" / "model.pth.tar-1").write_bytes(bytes(size - 10))
        (run / "log.txt").write_bytes(bytes(10))
        (run / "latest").symlink_to(run / "prompt_learner")
        (run / "latest").unlink()
        assert folder_bytes(run) == size
    finished = [tmp_path / f"seed{seed}" for seed in range(3)]
    assert sweep_shortage(tmp_path / "new", 1650, finished) is None
    line = sweep_shortage(tmp_path / "new", 10**14, finished)
    assert "need about" in line and "(3 kB each)" in line and str(tmp_path / "new") in line
    assert "(2 MB each)" in sweep_shortage(tmp_path, 10**12)
    assert folder_bytes(tmp_path / "nothing") == 0


@pytest.mark.parametrize(
    ("size", "text"), [(999, "0.999 kB"), (2.5e6, "2.5 MB"), (1.234e10, "12.3 GB"), (3e12, "3 TB")]
)
def test_shown(size, text):
    assert shown(size) == text


def test_cache_of_a_user(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_cache("NOBODYS_CACHE", "x") == tmp_path / ".cache/x"
    monkeypatch.setenv("NOBODYS_CACHE", "~/here")
    assert user_cache("NOBODYS_CACHE", "x") == tmp_path / "here"
    monkeypatch.delenv("NOBODYS_CACHE")
    monkeypatch.delenv("HOME")

    def unknown(user):
        raise KeyError(user)

    monkeypatch.setattr("pwd.getpwuid", unknown)  # a container with a user that it does not know
    assert user_cache("NOBODYS_CACHE", "x") == Path("/.cache/x")
