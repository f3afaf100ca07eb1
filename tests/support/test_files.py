"""Files appear whole or not at all, whoever writes them at the same time."""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from support.files import replacing, sha256_of, write_json, write_text


def test_a_failure_keeps_the_old_file(tmp_path):
    path = tmp_path / "new" / "folder" / "file"
    with replacing(path) as temporary:
        temporary.write_text("old")
        assert temporary.parent == path.parent and not path.exists()
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["file"]


def test_a_file_is_readable_as_one_that_is_simply_written(tmp_path):
    earlier = os.umask(0o027)
    try:
        write_text("é", str(tmp_path / "file"))
    finally:
        os.umask(earlier)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "file").read_bytes() == "é".encode()


@pytest.mark.parametrize("name", ["", "folder", "folder/", "absent/", "absent/folder/"])
def test_the_path_of_a_folder_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        write_text("text", name)
    assert caught.value.filename == name
    assert [path.name for path in tmp_path.rglob("*")] == ["folder"]


def test_an_error_names_the_file_asked_for(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(FileNotFoundError) as caught, replacing(path):
        pass  # nothing is written
    assert caught.value.filename == str(path) and ".tmp" not in str(caught.value)
    with pytest.raises(FileNotFoundError) as caught, replacing(path):
        open(tmp_path / "other")
    assert caught.value.filename == str(tmp_path / "other")


def test_json_that_cannot_be_expressed(tmp_path):
    path = tmp_path / "x.json"
    write_json({"a": [1, "é"]}, path)
    with pytest.raises(TypeError):
        write_json({"a": object()}, path)
    assert json.loads(path.read_text()) == {"a": [1, "é"]}
    assert os.listdir(tmp_path) == ["x.json"]


def test_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "cache.json"
    contents = [[number] * 2000 for number in range(8)]

    def write_and_read(content):
        for _ in range(20):
            write_json(content, path)
            assert json.loads(path.read_text()) in contents

    with ThreadPoolExecutor(len(contents)) as pool:
        list(pool.map(write_and_read, contents))
    assert os.listdir(tmp_path) == ["cache.json"]


def test_checksum_of_a_file(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    assert sha256_of(tmp_path / "file") == hashlib.sha256(b"old").hexdigest()
