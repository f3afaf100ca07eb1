"""What hostile input found, one case for each kind: it raised something else, or had no end."""

from __future__ import annotations

import contextlib
import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat

from adaptation.texts import class_prompts
from clip.loading import load_state_dict
from clip.tokens import tokenize
from dassl.config import decoded, values_of_file
from dassl.utils import load_checkpoint, read_image
from dassl.utils.archives import check_archive, unpack_archive
from dassl.utils.checkpoint import latest_checkpoint
from datasets.annotations import check_name, read_json, read_mat
from results import record
from results.logs import BadLog, last_start
from support.command_line import run
from support.documents import MOST_DEPTH, parse_json, parse_yaml
from support.weight_files import check_weights
from tests.clip.archives import save_torchscript
from tests.hostile.mutations import YAML_VALUES
from tests.hostile.weights import inflated, saved, small_model, small_weights


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("[" * (MOST_DEPTH + 1) + "]" * (MOST_DEPTH + 1), "nested too deeply"),
        ("9" * 5000, "4300 digits"),
        (str(10**30), "more than 64 bits"),
        ("[NaN]", "NaN is no number"),
        ("1e999", "not finite"),
        (r'"\ud800"', "half a character"),
        ("{", "Expecting property name"),
    ],
)
def test_json(text, said):
    with pytest.raises(ValueError, match=said):
        parse_json(text)


@pytest.mark.parametrize("value", [v for v in YAML_VALUES if "nan" not in v and "inf" not in v])
def test_yaml(value):
    """Tags, dates, references without end: refused, or one of JSON's types."""
    try:
        found = parse_yaml("key: " + value.format(canary="canary"))
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        json.dumps(found)
    assert not os.path.exists("canary")


def test_json_and_yaml_keep_what_is_usual():
    rows = [["a/\udcff.png", 0, "caf\u00e9 \U0001f600"], [None, True, 1.5, -(2**63)]]
    assert parse_json(json.dumps(rows)) == rows
    assert parse_yaml("a: &x {b: [1, .5]}\nc: *x\n") == {"a": {"b": [1, 0.5]}, "c": {"b": [1, 0.5]}}


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "file")
    return folder / "file"


def device(folder: Path) -> Path:
    (folder / "file").symlink_to("/dev/zero")
    return folder / "file"


def sparse(folder: Path) -> Path:
    with open(folder / "file", "wb") as file:
        file.truncate(1 << 36)
    return folder / "file"


@pytest.mark.parametrize("put", [pipe, device, sparse])
@pytest.mark.parametrize(
    "read",
    [
        lambda path: values_of_file(str(path)),
        lambda path: read_json(str(path), "a split"),
        lambda path: load_checkpoint(str(path)),
        lambda path: load_state_dict(path),
        lambda path: record.read(path.rename(path.with_name("result.json")).parent),
        lambda path: last_start(path),
        lambda path: latest_checkpoint(str(path.rename(path.with_name("checkpoint")).parent)),
        lambda path: check_archive(str(path)),
        lambda path: read_image(str(path)),
    ],
    ids="yaml json checkpoint clip record log pointer archive image".split(),
)
def test_what_is_no_ordinary_file(put, read, tmp_path):
    path = put(tmp_path)
    try:
        found = read(path)
    except (OSError, ValueError, RuntimeError, BadLog):
        return
    assert found is None  # the folder has no such file


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.zeros(1).expand(10**9), "fewer values are stored"),
        (torch.eye(3).to_sparse(), "sparse"),
        (torch.zeros(3, device="meta"), "without values"),
        (torch.zeros(3, dtype=torch.complex64), "complex"),
        (torch.tensor([1.0, float("nan")]), "not all finite"),
        ("text", "is a str"),
    ],
)
def test_weights_are_plain_tensors(value, said):
    with pytest.raises(ValueError, match=said):
        check_weights({"weight": value}, torch.Tensor)


@pytest.mark.parametrize("read", [load_checkpoint, load_state_dict])
def test_an_archive_that_inflates(read, tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(inflated(saved({"state_dict": {"weight": torch.zeros(9)}})))
    with pytest.raises(ValueError, match="never compressed to"):
        read(str(path))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("visual.conv1.weight", torch.zeros(3), "visual.conv1.weight has 1 dimensions"),
        ("vision_heads", torch.zeros(2), "vision_heads is not one number"),
        ("image_mean", torch.zeros(2), "image_mean is not of three channels"),
        ("text_projection", torch.zeros(0, 0), "embed_dim would be 0"),
    ],
)
def test_tensors_that_no_clip_has(key, value, said, tmp_path):
    torch.save(dict(small_weights(), **{key: value}), tmp_path / "clip.pt")
    with pytest.raises(ValueError, match=said):
        load_state_dict(tmp_path / "clip.pt")


def torchscript(path: Path, change=lambda name, data: data) -> Path:
    """Write a CLIP as a TorchScript archive, its parts changed."""
    save_torchscript(small_weights(), path.with_name("valid.pt"))
    with (
        zipfile.ZipFile(path.with_name("valid.pt")) as valid,
        zipfile.ZipFile(path, "w") as archive,
    ):
        for name in valid.namelist():
            archive.writestr(name, change(name.partition("/")[2], valid.read(name)))
    return path


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("data.pkl", lambda data: data[:-100]),
        ("data.pkl", lambda data: data.replace(b"_rebuild_tensor_v2", b"_rebuild_qtensor_x")),
        ("data.pkl", lambda data: b"\x80\x02" + b")" + b"\x85" * 10**6 + b"."),
        ("data.pkl", lambda data: b"\x80\x02cos\nsystem\nX\4\0\0\0echo\x85R."),
        # a module that holds itself, twice
        (
            "data.pkl",
            lambda data: (
                b"\x80\x02c__torch__.tests.clip.archives\nNode\n)\x81q\0}"
                b"(X\1\0\0\0ah\0X\1\0\0\0bh\0ub."
            ),
        ),
        ("data/0", lambda data: data[:-2]),
        ("code/__torch__/tests/clip/archives.py", lambda data: b"\xff"),
    ],
    ids="cut tensors deep call cycle short code".split(),
)
def test_a_made_up_torchscript_archive(part, change, tmp_path):
    """``torch.jit.load`` ended the process on some."""
    path = torchscript(tmp_path / "a.pt", lambda name, data: change(data) if name == part else data)
    with pytest.raises((RuntimeError, ValueError), match=r"a\.pt"):
        load_state_dict(path)


@pytest.mark.parametrize("change", ["kind", "flags", "sizes", "bomb", "version"])
def test_a_damaged_mat_file_does_not_end_the_process(change, tmp_path):
    out = io.BytesIO()
    values = np.zeros((1, 2 * 10**8 if change == "bomb" else 30), np.uint8)
    savemat(out, {"labels": values}, do_compression=change == "bomb")
    data = bytearray(out.getvalue())
    place = {"kind": 128 + 8, "flags": 128 + 16, "sizes": 128 + 32, "version": 126, "bomb": 0}[
        change
    ]
    data[place] ^= 0x7F
    (tmp_path / "labels.mat").write_bytes(data)
    with pytest.raises(ValueError, match="is not a MATLAB file"):
        read_mat(str(tmp_path / "labels.mat"), "labels")


@pytest.mark.parametrize("word", ["x" * 70_000, "ab" * 40_000, "\u00e9" * 9000, "a b " * 30_000])
def test_a_name_without_end(word):
    with pytest.raises(RuntimeError, match="more than"):
        tokenize(word)
    assert tokenize(word, truncate=True).shape == (1, 77)
    with pytest.raises(ValueError, match="too long"):
        class_prompts(small_model(), [word], "a {}.")


@pytest.mark.parametrize("name", ["a\0b", "a\nb", "\x1b[31m", "a\u2028b", "\udcff"])
def test_names_that_are_no_text(name):
    with pytest.raises(ValueError, match="which is no text"):
        check_name(name, "names.txt, line 3")


@pytest.mark.parametrize(
    "name", ["\u0645\u0631\u062d\u0628\u0627", "\U0001f469\u200d\U0001f467", "{}", "\u00e9"]
)
def test_names_of_any_language(name):
    assert check_name(name, "names.txt") == name


@pytest.mark.parametrize("name", ["", "a/" * 200 + "b", "/absolute", "..", "a/../../b"])
def test_members_of_archives(name, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("x")
        info.filename = name
        archive.writestr(info, b"content")
    with pytest.raises((ValueError, OSError)):
        unpack_archive(str(tmp_path / "a.zip"), str(tmp_path / "to" / "folder"))
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "a.zip"]


def test_a_sparse_file_for_a_tar_archive(tmp_path):
    path = sparse(tmp_path).rename(tmp_path / "a.tar.gz")
    for work in (check_archive, lambda path: unpack_archive(path, str(tmp_path / "to"))):
        with contextlib.suppress(ValueError):  # Python takes zeros for an archive of nothing
            work(str(path))
    assert not [found for found in tmp_path.rglob("*") if found.is_file() and found != path]


def test_zeros_without_end_in_an_archive(tmp_path):
    # level 9 makes a thousandth of zeros, level 1 of some zlibs no hundredth
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        with archive.open("zeros", "w") as file:
            for _ in range(400):
                file.write(bytes(1 << 20))
    for work in (check_archive, lambda path: unpack_archive(path, str(tmp_path / "to"))):
        with pytest.raises(ValueError, match="100 times as many"):
            work(str(tmp_path / "a.zip"))
    assert list((tmp_path / "to").iterdir()) == []


@pytest.mark.parametrize("text", ["(" * 5000, "{[]}", "[" * 200, "{[]: 1}"])
def test_literals_that_cannot_be_read(text):
    assert decoded(text) == text


def test_an_error_line_is_short_and_printable(capsys):
    def refuse() -> None:
        raise ValueError(f"the name '\x1b]0;owned\x07\u202e{'x' * 10**6}' is wrong: correct it")

    assert run(refuse) == 2
    line = capsys.readouterr().err.rstrip("\n")
    assert line.isprintable() and len(line) < 2000
    assert line.startswith("error: the name '\\x1b]0;") and line.endswith("correct it")
