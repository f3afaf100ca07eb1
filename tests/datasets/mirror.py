"""A server of the files of miniature data sets, packed as the real ones are."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
import zipfile
from pathlib import Path

from datasets.preparation.sources import SOURCES, read_sources
from tests.datasets.miniatures import BY_STEM, REAL, VARIANTS
from tests.support.test_download import Handler

SHIPPED = read_sources(SOURCES)
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
