"""Archives of data sets, those of ImageNet among them, and what is put in place of them."""

from __future__ import annotations

import io
import resource
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy.io import savemat

from datasets.preparation.sources import SOURCES
from tests.datasets.miniatures import BY_STEM
from tests.datasets.mirror import content_of, md5_of, pack, rows


def test_process_killed_while_unpacking(published, command, tmp_path):
    options = published("dtd")
    left = tmp_path / "root" / "dtd" / ".unpacking-dtd-r1.0.1.tar.gz" / "dtd" / "images" / "old"
    left.mkdir(parents=True)
    (left / "half.jpg").write_bytes(b"half")
    assert command("dtd", *options)[0] == 0
    assert not list((tmp_path / "root" / "dtd").glob(".*"))
    assert not (tmp_path / "root" / "dtd" / "images" / "old").exists()


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


# --- ImageNet, whose archives are unpacked by torchvision -----------------------------------


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

    table = yaml.safe_load(SOURCES.read_text())["imagenet"]
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
    table = yaml.safe_load(SOURCES.read_text())["imagenet"]
    del table["files"][0]  # the file on Google Drive
    path.write_text(yaml.safe_dump({"imagenet": table}))
    status, out, _ = command("imagenet", "--root", str(tmp_path), "--sources", str(path))
    assert status == 1
    assert "missing" in rows(out)["imagenet"]
    assert "register at image-net.org" in out
    assert str(tmp_path / "downloads" / "imagenet" / "ILSVRC2012_img_train.tar") in out


# --- archives that must not be trusted ------------------------------------------------------


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
