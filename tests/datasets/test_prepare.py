"""`python -m datasets.prepare` against a real server with archives of miniature data sets."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import io
import json
import os
import resource
import shutil
import signal
import ssl
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy.io import savemat

from datasets import prepare
from tests.clip.test_download import Handler, Reply
from tests.datasets.miniatures import BY_STEM, CONFIGS, REAL, VARIANTS

ROOT = CONFIGS.parents[1]
SHIPPED = prepare.read_sources(prepare.SOURCES)
STEMS = [miniature.stem for miniature in REAL + VARIANTS]
# folder of the real archive that the content lies in; "" for the top
PREFIXES = {
    "food-101.tar.gz": "food-101",
    "dtd-r1.0.1.tar.gz": "dtd",
    "fgvc-aircraft-2013b.tar.gz": "fgvc-aircraft-2013b/data",
    "imagenet-sketch.zip": "sketch",
}


class FileHandler(Handler):
    """Answers from a folder, each path with the faults set for it."""

    def do_GET(self):
        self.server.paths.append(self.path)
        file = self.server.folder / self.path.lstrip("/")
        if not file.is_file():
            self.close_connection = True
            self.send_error(404)
            return
        self.server.content = file.read_bytes()
        self.server.replies = self.server.faults[self.path]
        super().do_GET()


@contextlib.contextmanager
def running(server):
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A server of the files below `tmp_path/mirror`; `faults` by path."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FileHandler)
    server.daemon_threads = True
    server.folder, server.faults = tmp_path / "mirror", defaultdict(lambda: [Reply()])
    server.paths, server.asked, server.on_request = [], [], None
    server.url = f"http://127.0.0.1:{server.server_port}"
    with running(server):
        yield server


def md5_of(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def pack(folder, paths, archive, prefix=""):
    """Write an archive of paths of a folder, below `prefix`."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    files = sorted(file for path in paths for file in [folder / path, *(folder / path).rglob("*")])
    if archive.name.endswith(".zip"):
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
            for file in files:
                target.write(file, Path(prefix, file.relative_to(folder)))
        return
    with tarfile.open(archive, "w" if archive.suffix == ".tar" else "w:gz") as target:
        for file in files:
            name = str(Path(prefix, file.relative_to(folder)))
            target.add(file, name, recursive=False)


def publish(stem, mirror_folder, build, tree_root):
    """Pack a miniature as the real data set is packed; returns its entry in a table of sources.

    The split file served is the generated one with its lists reversed, so that it can be told from
    one that is generated.
    """
    miniature = BY_STEM[stem]
    folder = miniature.make(tree_root)
    if miniature.split_file:
        build(stem, root=tree_root)
        split = json.loads((folder / miniature.split_file).read_text())
        (folder / miniature.split_file).write_text(
            json.dumps({k: v[::-1] for k, v in split.items()})
        )
    if stem == "sun397":
        (folder / "ClassName.txt").rename(folder / "SUN397" / "ClassName.txt")
    files = []
    for file in SHIPPED[stem].files:
        target = mirror_folder / file.file
        target.parent.mkdir(parents=True, exist_ok=True)
        if not file.is_archive:
            shutil.copy(folder / file.place[0], target)
        elif file.inner:
            inner = tree_root / "inner" / file.inner
            pack(folder, file.place, inner)
            pack(tree_root / "inner", [file.inner], target)
        else:
            place = [path for path in file.place if path != "ClassName.txt"]
            if stem == "dtd":  # a further file, as in the real archive; large enough to break off
                (folder / "imdb").mkdir()
                (folder / "imdb" / "imdb.mat").write_bytes(hashlib.shake_256(b"").digest(400_000))
                place.append("imdb")
            pack(folder, place, target, PREFIXES.get(file.name, ""))
        entry = {"file": file.file, "place": list(file.place), "inner": file.inner}
        files.append(entry | ({"md5": md5_of(target)} if file.md5 else {}))
    train, val, test = miniature.sizes
    images = [None, None, test] if miniature in VARIANTS else [train, val, test]
    return {"classes": len(miniature.classnames), "images": images, "files": files}


@pytest.fixture
def published(tmp_path, mirror, build):
    """published(*stems): serve those data sets; returns the command's options for the server."""

    def make(*stems):
        table = {s: publish(s, mirror.folder, build, tmp_path / "original") for s in stems}
        path = tmp_path / "sources.yaml"
        path.write_text(yaml.safe_dump(table))
        root = tmp_path / "root"
        return ["--root", str(root), "--sources", str(path), "--mirror", mirror.url]

    return make


@pytest.fixture
def command(capsys):
    """command(words): exit status, standard output and standard error of the command."""

    def call(*words):
        capsys.readouterr()
        status = prepare.main(list(words))
        return status, *capsys.readouterr()

    return call


def process(words, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "datasets.prepare", *words],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options,
        cwd=ROOT,
        # a shell in the background hands down that interrupts are ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def rows(out):
    """{data set: line of the table}."""
    table = out.split("---\n")[-1].split("\n\n")[0]
    return {line.split()[0]: line for line in table.splitlines() if not line.startswith(" ")}


def content_of(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# --- everything works -------------------------------------------------------------------------


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


# --- ImageNet, whose archives are unpacked by torchvision -----------------------------------------


@pytest.fixture
def imagenet_archives(tmp_path, monkeypatch):
    """Miniatures of the three archives in the downloads folder, in the official formats."""
    from torchvision.datasets import imagenet

    folder = BY_STEM["imagenet"].make(tmp_path / "original")
    downloads = tmp_path / "root" / "downloads" / "imagenet"
    downloads.mkdir(parents=True)
    shutil.copy(folder / "classnames.txt", downloads)
    train, work = folder / "images" / "train", tmp_path / "work"
    wnids = sorted(path.name for path in train.iterdir())
    for wnid in wnids:
        names = [path.name for path in (train / wnid).iterdir()]
        pack(train / wnid, names, work / f"{wnid}.tar")
    pack(work, [f"{wnid}.tar" for wnid in wnids], downloads / "ILSVRC2012_img_train.tar")
    images = sorted((folder / "images" / "val").glob("*/*"))
    flat = tmp_path / "flat"
    flat.mkdir()
    for image in images:
        shutil.copy(image, flat)
    pack(flat, [image.name for image in images], downloads / "ILSVRC2012_img_val.tar")

    data = tmp_path / "kit" / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    numbers = {wnid: number for number, wnid in enumerate(reversed(wnids), start=1)}
    truth = [f"{numbers[image.parent.name]}\n" for image in images]
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(truth))
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O")]
    synsets = np.array(
        [(number, wnid, "a, b", "c", 0) for wnid, number in numbers.items()],
        dtype=[*kinds, ("num_children", "O")],
    )
    savemat(data / "meta.mat", {"synsets": synsets})
    pack(tmp_path / "kit", ["ILSVRC2012_devkit_t12"], downloads / "ILSVRC2012_devkit_t12.tar.gz")

    table = yaml.safe_load(prepare.SOURCES.read_text())["imagenet"]
    table |= {"classes": len(wnids), "images": [30, None, 15]}
    meta = {}
    for part, (name, _) in imagenet.ARCHIVE_META.items():
        meta[part] = (name, md5_of(downloads / name))
        for entry in table["files"]:
            if entry["file"] == name:
                entry["md5"] = meta[part][1]
    monkeypatch.setattr(imagenet, "ARCHIVE_META", meta)
    path = tmp_path / "sources.yaml"
    path.write_text(yaml.safe_dump({"imagenet": table}))
    return ["imagenet", "--root", str(tmp_path / "root"), "--sources", str(path)]


def test_imagenet_from_its_archives(imagenet_archives, command, build, tmp_path):
    status, _, err = command(*imagenet_archives)
    assert status == 0, err
    original, root = tmp_path / "original" / "imagenet", tmp_path / "root" / "imagenet"
    assert content_of(root) == content_of(original)
    assert len(build("imagenet", root=tmp_path / "root").train_x) == 30


def test_imagenet_without_the_devkit(imagenet_archives, command, tmp_path):
    devkit = tmp_path / "root/downloads/imagenet/ILSVRC2012_devkit_t12.tar.gz"
    devkit.rename(tmp_path / devkit.name)
    status, _, err = command(*imagenet_archives)
    assert status == 1
    assert f"{devkit} is needed too" in err
    assert not (tmp_path / "root" / "imagenet" / "images" / "val").exists()
    assert (tmp_path / "root" / "imagenet" / "images" / "train").exists()
    (tmp_path / devkit.name).rename(devkit)
    assert command(*imagenet_archives)[0] == 0


def test_imagenet_says_what_to_do(command, tmp_path):
    path = tmp_path / "sources.yaml"
    table = yaml.safe_load(prepare.SOURCES.read_text())["imagenet"]
    del table["files"][0]  # the file on Google Drive
    path.write_text(yaml.safe_dump({"imagenet": table}))
    status, out, _ = command("imagenet", "--root", str(tmp_path), "--sources", str(path))
    assert status == 1
    assert "missing" in rows(out)["imagenet"]
    assert "register at image-net.org" in out
    assert str(tmp_path / "downloads" / "imagenet" / "ILSVRC2012_img_train.tar") in out


# --- transfers that go wrong ------------------------------------------------------------------


def test_broken_off_transfer_goes_on(published, command, mirror):
    options = published("dtd")
    path = "/dtd/dtd-r1.0.1.tar.gz"
    half = (mirror.folder / path[1:]).stat().st_size // 2
    mirror.faults[path] = [Reply(cut=half), Reply()]
    assert command("dtd", *options)[0] == 0
    first, second = mirror.asked[:2]
    assert first is None
    assert 0 < int(second.removeprefix("bytes=").removesuffix("-")) <= half


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


def test_process_killed_while_unpacking(published, command, tmp_path):
    options = published("dtd")
    left = tmp_path / "root" / "dtd" / ".unpacking-dtd-r1.0.1.tar.gz" / "dtd" / "images" / "old"
    left.mkdir(parents=True)
    (left / "half.jpg").write_bytes(b"half")
    assert command("dtd", *options)[0] == 0
    assert not list((tmp_path / "root" / "dtd").glob(".*"))
    assert not (tmp_path / "root" / "dtd" / "images" / "old").exists()


def test_silent_server(published, command, mirror):
    options = published("dtd")
    mirror.faults["/dtd/dtd-r1.0.1.tar.gz"] = [Reply(stall_s=3), Reply()]
    begin = time.monotonic()
    assert command("dtd", "--timeout", "0.3", *options)[0] == 0
    assert time.monotonic() - begin < 3
    assert mirror.paths.count("/dtd/dtd-r1.0.1.tar.gz") == 2


def test_wrong_checksum_stops_one_data_set_only(published, command, mirror, tmp_path):
    options = published("dtd", "eurosat")
    archive = mirror.folder / "dtd" / "dtd-r1.0.1.tar.gz"
    expected = md5_of(archive)
    archive.write_bytes(archive.read_bytes() + b"?")
    status, out, err = command("dtd", "eurosat", *options)
    assert status == 1
    assert err.count("error: ") == 1
    assert f"has MD5 {md5_of(archive)}, expected {expected}" in err
    assert str(tmp_path / "root" / "downloads" / "dtd" / "dtd-r1.0.1.tar.gz") in err
    assert "incomplete: not there: images" in rows(out)["dtd"]
    assert " ready " in rows(out)["eurosat"]
    assert "python -m datasets.prepare dtd --root" in out
    # the split file, which came, is kept
    assert (tmp_path / "root" / "dtd" / "split_zhou_DescribableTextures.json").is_file()


@pytest.mark.parametrize("published_checksum", [True, False])
def test_damaged_file_in_the_downloads_is_replaced(
    published_checksum, published, command, tmp_path
):
    options = published("dtd")
    if not published_checksum:
        table = yaml.safe_load((tmp_path / "sources.yaml").read_text())
        del table["dtd"]["files"][0]["md5"]
        (tmp_path / "sources.yaml").write_text(yaml.safe_dump(table))
    target = tmp_path / "root" / "downloads" / "dtd" / "dtd-r1.0.1.tar.gz"
    target.parent.mkdir(parents=True)
    target.write_bytes((tmp_path / "mirror" / "dtd" / target.name).read_bytes()[:-40])
    with pytest.warns(UserWarning, match="damaged or another file"):
        assert command("dtd", *options)[0] == 0


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a/a.zip", b"<html>quota exceeded</html>", "no intact zip"),
        ("a/a.tar.gz", b"<html>quota exceeded</html>", "no intact tar.gz"),
        ("a/a.json", b"<html>quota exceeded</html>", "no intact json"),
        ("a/a.mat", b"<html>quota exceeded</html>", "no intact mat"),
        ("a/a.txt", b"<html>quota exceeded</html>", "a web page"),
        ("a/a.txt", b"", "empty"),
        ("a/a.txt", b"\xff\xfe", "no intact txt"),
    ],
)
def test_file_without_published_checksum_must_be_intact(name, content, reason, tmp_path):
    (tmp_path / "x").write_bytes(content)
    assert reason in prepare.problem_of(tmp_path / "x", prepare.RemoteFile(name))


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz"])
def test_archive_without_published_checksum_that_is_cut_or_altered(name, tmp_path):
    file = prepare.RemoteFile(f"a/{name}")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "x").write_bytes(hashlib.shake_256(b"x").digest(30_000))
    pack(tmp_path, ["images"], tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    assert prepare.problem_of(tmp_path / name, file) is None
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    assert prepare.problem_of(tmp_path / name, file)
    if name != "a.tar":  # a plain tar archive has no checksums of its content
        altered = bytearray(whole)
        altered[len(whole) // 2] ^= 1
        (tmp_path / name).write_bytes(altered)
        assert prepare.problem_of(tmp_path / name, file)


def test_next_address_is_tried(published, command, mirror, tmp_path):
    options = published("dtd")
    table = yaml.safe_load((tmp_path / "sources.yaml").read_text())
    archive = table["dtd"]["files"][0]
    (mirror.folder / archive["file"]).rename(mirror.folder / "elsewhere.tar.gz")
    archive["urls"] = [f"{mirror.url}/gone.tar.gz", f"{mirror.url}/elsewhere.tar.gz"]
    (tmp_path / "sources.yaml").write_text(yaml.safe_dump(table))
    assert command("dtd", *options)[0] == 0
    assert mirror.paths[:3] == [f"/{archive['file']}", "/gone.tar.gz", "/elsewhere.tar.gz"]


# --- archives that must not be trusted --------------------------------------------------------


def add_to(archive, name, link=None):
    """Add a member, or a symbolic link, of any name to an archive."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "a") as target:
            info = zipfile.ZipInfo(name)
            if link:
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
            target.writestr(info, link or "escaped")
        return
    content = io.BytesIO()
    with tarfile.open(archive) as source, tarfile.open(fileobj=content, mode="w:gz") as target:
        for member in source:
            target.addfile(member, source.extractfile(member) if member.isfile() else None)
        member = tarfile.TarInfo(name)
        member.size = 0 if link else 7
        if link:
            member.type, member.linkname = tarfile.SYMTYPE, link
        target.addfile(member, io.BytesIO(b"escaped"))
    archive.write_bytes(content.getvalue())


@pytest.mark.parametrize(
    ("stem", "archive"), [("dtd", "dtd-r1.0.1.tar.gz"), ("eurosat", "EuroSAT.zip")]
)
@pytest.mark.parametrize(
    ("name", "link"),
    [("../../escaped.txt", None), ("images/link", "../../../../escaped.txt")],
    ids=["path", "symlink"],
)
def test_archive_that_escapes(stem, archive, name, link, published, command, mirror, tmp_path):
    options = published(stem, "caltech101")
    add_to(mirror.folder / stem / archive, name, link)
    table = yaml.safe_load((tmp_path / "sources.yaml").read_text())
    table[stem]["files"][0]["md5"] = md5_of(mirror.folder / stem / archive)
    (tmp_path / "sources.yaml").write_text(yaml.safe_dump(table))
    status, out, err = command(stem, "caltech101", *options)
    assert status == 1
    (line,) = [line for line in err.splitlines() if "error: " in line]
    assert archive in line and Path(name).name in line
    assert not list(tmp_path.rglob("escaped.txt"))
    folder = tmp_path / "root" / BY_STEM[stem].folder
    assert [path.name for path in folder.iterdir()] == [BY_STEM[stem].split_file]
    assert " ready " in rows(out)["caltech101"]


def test_archive_of_something_else(published, command, mirror, tmp_path):
    options = published("fgvc_aircraft")
    pack(tmp_path / "original", ["fgvc_aircraft/variants.txt"], next(mirror.folder.glob("*/*")))
    status, _, err = command("fgvc_aircraft", *options)
    assert status == 1
    assert "the archive holds no images" in err


# --- the disk -------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_while_downloading(published, command, tmp_path):
    options = published("dtd", "eurosat")
    downloads = tmp_path / "root" / "downloads" / "dtd"
    downloads.mkdir(parents=True)
    part = downloads / "dtd-r1.0.1.tar.gz.part"
    part.symlink_to("/dev/full")  # every write to it fails as on a full disk
    status, out, err = command("dtd", "eurosat", *options)
    assert status == 1
    assert err.count("error: ") == 1
    assert "No space left on device" in err and "Traceback" not in err
    assert "incomplete: not there: images" in rows(out)["dtd"]
    assert " ready " in rows(out)["eurosat"]
    part.unlink()
    assert command("dtd", *options)[0] == 0


def test_content_that_cannot_be_stored(published, command, mirror, tmp_path):
    """The kernel refuses files above a size while the archive is unpacked."""
    options = published("dtd", "eurosat")
    images = tmp_path / "original" / "dtd" / "images"
    (images / "banded" / "large.jpg").write_bytes(bytes(300_000))
    archive = mirror.folder / "dtd" / "dtd-r1.0.1.tar.gz"
    pack(images.parent, ["images"], archive, "dtd")
    table = yaml.safe_load((tmp_path / "sources.yaml").read_text())
    table["dtd"]["files"][0]["md5"] = md5_of(archive)
    (tmp_path / "sources.yaml").write_text(yaml.safe_dump(table))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        status, out, err = command("dtd", "eurosat", *options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert status == 1
    assert "cannot be stored" in err and "File too large" in err
    folder = tmp_path / "root" / "dtd"
    assert [path.name for path in folder.iterdir()] == ["split_zhou_DescribableTextures.json"]
    assert " ready " in rows(out)["eurosat"]
    # room again: the archive, which is whole, is not fetched again
    mirror.paths.clear()
    assert command("dtd", *options)[0] == 0
    assert not mirror.paths


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


# --- --check --------------------------------------------------------------------------------


@pytest.fixture
def prepared(published, command, tmp_path, mirror):
    """prepared(stem): folder of a data set made ready, and a function check(exit status).

    The function returns what --check prints, in which neither line breaks nor the network matter.
    """

    def make(stem):
        options = published(stem)
        assert command(stem, *options)[0] == 0
        shutil.rmtree(mirror.folder)

        def check(expected):
            before = content_of(tmp_path / "root")
            mirror.paths.clear()
            status, out, _ = command(stem, "--check", *options)
            assert status == expected, out
            assert content_of(tmp_path / "root") == before  # nothing is written
            assert not mirror.paths
            return " ".join(out.split())

        return tmp_path / "root" / BY_STEM[stem].folder, check

    return make


@pytest.mark.parametrize("stem", ["oxford_pets", "fgvc_aircraft", "imagenet_r"])
def test_check_of_a_complete_data_set(stem, prepared):
    _, check = prepared(stem)
    sizes = [f"{n}" for n in BY_STEM[stem].sizes if n]
    if stem == "imagenet_r":
        sizes = sizes[1:]
    line = f"{stem} ready {len(BY_STEM[stem].classnames)} {' '.join(sizes)}"
    assert check(0).endswith(line)


def test_check_without_the_split_file(prepared, build, command, tmp_path):
    folder, check = prepared("oxford_pets")
    split = folder / "split_zhou_OxfordPets.json"
    split.unlink()
    assert "ready, split will be generated (not the published one)" in check(0)
    build("oxford_pets", root=tmp_path / "root")
    assert split.is_file()
    assert "ready, split was generated here (not the published one)" in check(0)


def test_check_needs_no_annotation_beside_the_published_split(prepared):
    folder, check = prepared("oxford_pets")
    shutil.rmtree(folder / "annotations")
    assert "oxford_pets ready 3 24" in check(0)


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


@pytest.mark.parametrize("stem", STEMS)
def test_check_of_nothing(stem, command, tmp_path):
    status, out, _ = command(stem, "--check", "--root", str(tmp_path / "nowhere"))
    assert status == 1
    assert rows(out)[stem].split() == [stem, "missing"]
    assert f"python -m datasets.prepare {stem} --root {tmp_path / 'nowhere'}" in out
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("stem", "gone", "named"),
    [
        ("dtd", "images", "not there: images"),
        ("dtd", "images/banded/banded_0003.jpg", "1 of its 40 images do not exist"),
        ("sun397", "SUN397/a", "of its 42 images do not exist"),
        ("fgvc_aircraft", "variants.txt", "not there: variants.txt"),
        ("imagenet_r", "classnames.txt", "not there: classnames.txt"),
        ("imagenet_r", "imagenet-r/n01494475", "2 classes instead of 3"),
        ("imagenet_a", "imagenet-a/n01491361/n01491361_0.JPEG", "5 test images instead of 6"),
    ],
)
def test_check_of_an_incomplete_data_set(stem, gone, named, prepared):
    folder, check = prepared(stem)
    path = folder / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    out = check(1)
    assert f"{stem} incomplete: " in out
    assert named in out


def test_check_of_a_damaged_annotation(prepared):
    folder, check = prepared("stanford_cars")
    (folder / "split_zhou_StanfordCars.json").unlink()
    (folder / "devkit" / "cars_meta.mat").write_bytes(b"damaged")
    assert "stanford_cars incomplete: " in check(1)


def test_partly_unpacked_by_hand_is_named(prepared, command):
    """What is in place is not replaced: the way out is said."""
    folder, check = prepared("dtd")
    shutil.rmtree(folder / "images" / "banded")
    assert f"remove what is wrong below {folder}" in check(1)


# --- Google Drive -----------------------------------------------------------------------------


class DriveHandler(Handler):
    """A proxy whose tunnels all end here, at a stand-in for Drive with the formats gdown reads."""

    def do_CONNECT(self):
        self.close_connection = False
        super().send_response(200)
        super().end_headers()
        self.connection = self.server.tls.wrap_socket(self.connection, server_side=True)
        self.rfile = self.connection.makefile("rb")
        self.wfile = self.connection.makefile("wb")

    def do_GET(self):
        self.server.paths.append(self.path)
        with contextlib.suppress(OSError):  # the client may give up
            super().do_GET()
            self.wfile.flush()

    def end_headers(self):
        kind = "text/html" if self.server.quota else "application/octet-stream"
        self.send_header("Content-Type", kind)
        if not self.server.quota:
            self.send_header("Content-Disposition", 'attachment; filename="file"')
        super().end_headers()


@pytest.fixture
def drive(tmp_path, monkeypatch):
    """Stand-in for drive.google.com, reached through a proxy and verified as the real one is."""
    if not shutil.which("openssl"):
        pytest.skip("needs openssl for a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
        + ["-nodes", "-keyout", key, "-out", certificate, "-days", "2", "-subj", "/CN=drive"]
        + ["-addext", "subjectAltName=DNS:drive.google.com"],
        check=True,
        capture_output=True,
    )
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), DriveHandler)
    server.daemon_threads = True
    server.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.tls.load_cert_chain(certificate, key)
    server.replies, server.content, server.quota = (
        [Reply()],
        b'{"a": "%s"}' % (b"b" * 90_000),
        False,
    )
    server.paths, server.asked, server.on_request = [], [], None
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with running(server):
        yield server


DRIVE_FILE = prepare.RemoteFile("dtd/split.json", drive="1" * 33)


def test_file_of_drive(drive, tmp_path):
    path = prepare.obtain(DRIVE_FILE, tmp_path, prepare.Options())
    assert path == tmp_path / "dtd" / "split.json"
    assert path.read_bytes() == drive.content
    assert drive.paths == [f"/uc?id={'1' * 33}"]
    assert sorted(os.listdir(path.parent)) == ["split.json"]


def test_broken_off_transfer_of_drive_goes_on(drive, tmp_path):
    drive.content = b'"%s"' % (b"b" * 1_500_000)
    drive.replies = [Reply(cut=800_000), Reply()]
    path = prepare.obtain(DRIVE_FILE, tmp_path, prepare.Options())
    assert path.read_bytes() == drive.content
    assert drive.asked[-1].startswith("bytes=")


def test_part_that_drive_does_not_continue_is_given_up(drive, tmp_path):
    part = tmp_path / "dtd" / "split.json.drive12345678.part"
    part.parent.mkdir()
    part.write_bytes(drive.content[:1000])
    drive.replies = [Reply(ranges=False)]
    with pytest.raises(RuntimeError, match="byte range"):
        prepare.obtain(DRIVE_FILE, tmp_path, prepare.Options())
    path = prepare.obtain(DRIVE_FILE, tmp_path, prepare.Options())
    assert path.read_bytes() == drive.content


def test_part_of_a_former_call_goes_on(drive, tmp_path):
    part = tmp_path / "dtd" / "split.json.drive12345678.part"
    part.parent.mkdir()
    part.write_bytes(drive.content[:1000])
    path = prepare.obtain(DRIVE_FILE, tmp_path, prepare.Options())
    assert path.read_bytes() == drive.content
    assert drive.asked[-1] == "bytes=1000-"


def test_drive_that_refuses(drive, tmp_path):
    drive.quota = True
    drive.content = b'<html><p class="uc-error-subcaption">Too many users</p></html>'
    with pytest.raises(RuntimeError) as caught:
        prepare.obtain(DRIVE_FILE, tmp_path, prepare.Options())
    for part in ("Too many users", DRIVE_FILE.addresses[0], str(tmp_path / "dtd" / "split.json")):
        assert part in str(caught.value)


def test_drive_that_sends_something_else(drive, tmp_path):
    drive.content = b"no JSON"
    with pytest.raises(RuntimeError, match="what it sends is no intact json file"):
        prepare.obtain(DRIVE_FILE, tmp_path, prepare.Options())
    assert not os.listdir(tmp_path / "dtd")


def test_mirror_comes_before_drive(drive, mirror, tmp_path):
    target = mirror.folder / DRIVE_FILE.file
    target.parent.mkdir(parents=True)
    target.write_bytes(drive.content)
    prepare.obtain(DRIVE_FILE, tmp_path / "root", prepare.Options(mirror=mirror.url + "/"))
    assert mirror.paths == ["/dtd/split.json"]
    assert not drive.paths


# --- arguments and table of sources -----------------------------------------------------------


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


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: [", "not a YAML file"),
        ("[]", "holds no data sets"),
        ("dtd: {classes: 1, images: [1, 1, 1]}", "'dtd'"),
        ("dtd: {classes: 1, images: [1, 1], files: []}", "'dtd'"),
        ("dtd: {classes: 1, images: [1, 1, 1], files: [{file: a, url: b}]}", "'url'"),
        ("dtd: {classes: 1, images: [1, 1, 1], files: [{file: a, urls: b}]}", "lists"),
        ("dtd: {classes: 1, images: [1, 1, 1], files: [{file: ../a}]}", "out of the data root"),
        ("dtd: {classes: 1, images: [1, 1, 1], files: [{file: a, place: [/a]}]}", "out of"),
    ],
)
def test_wrong_table_of_sources(text, part, command, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    status, _, err = command("dtd", "--sources", str(path))
    assert status == 2
    assert str(path) in err and part in err


def test_all_stands_for_every_data_set_with_a_source():
    assert prepare.choose(["dtd", "all"], SHIPPED) == ["dtd", *(s for s in SHIPPED if s != "dtd")]
    assert set(SHIPPED) == set(STEMS)


@pytest.mark.parametrize("stem", STEMS)
def test_shipped_table_agrees_with_the_classes(stem):
    cls, source = prepare.dataset_class(stem), SHIPPED[stem]
    placed = [path for file in source.files for path in file.place]
    assert len(set(placed)) == len(placed)
    if cls.split_file:
        assert cls.split_file in placed
    for file in source.files:
        assert file.addresses or file.manual
        assert not file.md5 or len(bytes.fromhex(file.md5)) == 16


def test_guide_s_sizes_are_those_of_the_table():
    guide = (ROOT / "docs" / "datasets.md").read_text(encoding="utf-8")
    section = guide.split("## Classes and sizes")[1].split("\n## ")[0]
    lines = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| `")]
    cells = {line[0].strip(" `"): [cell.strip() for cell in line[1:]] for line in lines}
    assert list(cells) == list(SHIPPED)
    for stem, source in SHIPPED.items():
        half = (source.classes + 1) // 2
        train, val, test = ["" if n is None else f"{n:,}" for n in source.images]
        classes = f"{half} + {source.classes - half}"
        if BY_STEM[stem] in VARIANTS:
            classes = f"test only, {source.classes}"
        if stem == "imagenet":
            train, val = "1.28 M", "= test"
        assert cells[stem] == [classes, train, val, test]
