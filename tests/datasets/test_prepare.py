"""`python -m datasets.prepare` against a real server with archives of miniature data sets."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import time

import pytest

from datasets import prepare
from tests.datasets.miniatures import BY_STEM, CONFIGS
from tests.datasets.mirror import SHIPPED, STEMS, md5_of, rows
from tests.support.test_download import Reply

ROOT = CONFIGS.parents[1]


def process(words, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "datasets.prepare", *words],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options,
        cwd=ROOT,
        # a shell in the background hands down that interrupts are ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


# --- everything works -----------------------------------------------------------------------


@pytest.mark.parametrize("stem", [stem for stem in STEMS if stem != "imagenet"])
def test_every_data_set_is_laid_out(stem, published, command, build, tmp_path, mirror):
    options = published(stem)
    status, out, _ = command(stem, *options)
    assert status == 0, out
    assert " ready " in rows(out)[stem]
    dataset = build(stem, root=tmp_path / "root")
    assert tuple(dataset.classnames) == BY_STEM[stem].classnames
    assert len(dataset.test) == BY_STEM[stem].sizes[2]
    folder = tmp_path / "root" / BY_STEM[stem].folder
    needed = {path for file in SHIPPED[stem].files for path in file.place}
    assert {str(path.relative_to(folder)) for path in folder.iterdir()} - {
        "split_fewshot"
    } == needed

    mirror.paths.clear()
    assert command(stem, *options)[0] == 0
    assert not mirror.paths  # nothing is left to do


def test_as_a_process_for_several_data_sets(published, build, tmp_path, mirror):
    options = published("dtd", "eurosat", "oxford_pets")
    done = process(["dtd", "eurosat", "oxford_pets", *options])
    out, err = done.communicate(timeout=120)
    assert done.returncode == 0, err
    for stem in ("dtd", "eurosat", "oxford_pets"):
        assert " ready " in rows(out)[stem]
        miniature = BY_STEM[stem]
        assert len(build(stem, root=tmp_path / "root").train_x) == miniature.sizes[0]
        # the published split, not one generated here
        folders = [root / miniature.folder for root in (tmp_path / "root", tmp_path / "original")]
        ours, served = [(folder / miniature.split_file).read_bytes() for folder in folders]
        assert ours == served
    archive = mirror.folder / "dtd" / "dtd-r1.0.1.tar.gz"
    assert f"{archive.stat().st_size:,} bytes), MD5 {md5_of(archive)}, as published" in out
    split = mirror.folder / "dtd" / "split_zhou_DescribableTextures.json"
    sha256 = hashlib.sha256(split.read_bytes()).hexdigest()
    assert f"SHA-256 {sha256} (no published checksum)" in out


def test_help_and_list_are_fast():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "datasets.prepare", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
    )
    assert done.returncode == 0
    assert "--mirror" in done.stdout
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "argparse" in modules
    assert not {"torch", "numpy", "dassl", "clip", "requests"} & modules


def test_list_has_every_address_and_checksum(command):
    status, out, _ = command("--list")
    assert status == 0
    for source in SHIPPED.values():
        for file in source.files:
            assert all(address in out for address in [file.file, *file.addresses])
            assert file.md5 in out
    assert "no published checksum" in out and "by hand" in out
    assert "dtd" not in command("--list", "eurosat")[1]


def test_delete_archives(published, command, tmp_path):
    options = published("dtd")
    assert command("dtd", "--delete-archives", *options)[0] == 0
    left = {path.name for path in (tmp_path / "root" / "downloads" / "dtd").iterdir()}
    assert "split_zhou_DescribableTextures.json" in left
    assert "dtd-r1.0.1.tar.gz" not in left
    assert command("dtd", "--check", *options)[0] == 0


def test_file_put_there_by_hand_is_used(published, command, tmp_path, mirror):
    options = published("imagenet_a")
    target = tmp_path / "root" / "downloads" / "imagenet_a" / "imagenet-a.tar"
    target.parent.mkdir(parents=True)
    (mirror.folder / "imagenet_a" / "imagenet-a.tar").rename(target)
    assert command("imagenet_a", *options)[0] == 0
    assert mirror.paths == ["/imagenet/classnames.txt"]


def test_embedded_data_set_needs_nothing(command, tmp_path):
    status, out, _ = command("digits", "--root", str(tmp_path))
    assert status == 0
    assert "embedded" in rows(out)["digits"]
    assert not list(tmp_path.iterdir())


# --- what goes wrong, and going on after it ---------------------------------------------------


def test_killed_process_is_continued(published, mirror, command, tmp_path):
    """Killed while the archive of the second data set arrives: the first one is ready."""
    options = published("eurosat", "dtd")
    path = "/dtd/dtd-r1.0.1.tar.gz"
    mirror.faults[path] = [Reply(stall_s=60), Reply()]
    part = tmp_path / "root" / "downloads" / (path[1:] + ".part")
    done = process(["eurosat", "dtd", *options])
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    done.send_signal(signal.SIGINT)
    _, err = done.communicate(timeout=30)
    assert done.returncode == 130
    assert "interrupted" in err and "Traceback" not in err
    kept = part.stat().st_size
    assert kept > 0
    assert command("eurosat", "--check", *options)[0] == 0

    mirror.faults[path], mirror.paths[:], mirror.asked[:] = [Reply()], [], []
    assert command("eurosat", "dtd", *options)[0] == 0
    assert not [asked for asked in mirror.paths if "eurosat" in asked]
    assert mirror.asked[0] == f"bytes={kept}-"


def test_root_that_cannot_be_made(published, command, tmp_path):
    options = published("dtd")
    (tmp_path / "root").touch()
    status, _, err = command("dtd", *options)
    assert status == 1
    assert err.count("error: ") == 1


def test_two_processes_at_once(published, command, tmp_path):
    import filelock

    options = published("dtd")
    lock = tmp_path / "root" / "downloads" / "dtd" / ".lock"
    lock.parent.mkdir(parents=True)
    with filelock.FileLock(lock):
        status, _, err = command("dtd", *options)
    assert status == 1
    assert "another process is preparing dtd" in err
    assert command("dtd", *options)[0] == 0


def test_generated_split_gives_way_to_the_published_one(
    published, command, build, tmp_path, mirror
):
    options = published("dtd")
    split = "split_zhou_DescribableTextures.json"
    served = mirror.folder / "dtd" / split
    served.rename(tmp_path / "later.json")
    status, out, err = command("dtd", *options)
    assert status == 1 and split in err
    assert "will be generated" in out
    build("dtd", root=tmp_path / "root")
    folder = tmp_path / "root" / "dtd"
    generated = (folder / split).read_bytes()
    (tmp_path / "later.json").rename(served)
    assert command("dtd", *options)[0] == 0
    assert (folder / split).read_bytes() == served.read_bytes() != generated
    assert (folder / "split_zhou_DescribableTextures.generated.json").read_bytes() == generated


# --- arguments ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["oxfordpets"], ["oxfordpets", "did you mean 'oxford_pets'?"]),
        (["DTD"], ["did you mean 'dtd'?"]),
        (["zzz"], ["no data set 'zzz'", "caltech101"]),
        ([], ["name at least one data set"]),
        (["dtd", "--sources", "no/such.yaml"], ["no/such.yaml"]),
    ],
)
def test_wrong_arguments(words, parts, command):
    status, _, err = command(*words)
    assert status == 2
    assert err.startswith("error: ") and len(err.splitlines()) == 1
    assert all(part in err for part in parts)


@pytest.mark.parametrize("value", ["0", "-1", "soon", "inf"])
def test_wrong_timeout(value, capsys):
    with pytest.raises(SystemExit) as caught:
        prepare.main(["dtd", "--timeout", value])
    assert caught.value.code == 2
    assert "--timeout" in capsys.readouterr().err
