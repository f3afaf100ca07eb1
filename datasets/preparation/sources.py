"""The table ``datasets/sources.yaml``: the files of each data set and where they come from."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from support.documents import parse_yaml
from support.files import as_text, read_bytes
from support.hints import nearest

SOURCES = Path(__file__).parents[1] / "sources.yaml"
CONFIGS = Path(__file__).parents[2] / "configs" / "datasets"


@dataclass(frozen=True)
class RemoteFile:
    """File of a data set, as described in ``sources.yaml``."""

    file: str
    urls: tuple[str, ...] = ()
    drive: str = ""
    manual: str = ""
    md5: str = ""
    inner: str = ""
    unpack: str = ""
    place: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.file.rpartition("/")[2]

    @property
    def addresses(self) -> list[str]:
        drive = [f"https://drive.google.com/file/d/{self.drive}/view"] if self.drive else []
        return [*self.urls, *drive]

    @property
    def is_archive(self) -> bool:
        return self.name.endswith((".zip", ".tar", ".tgz", ".tar.gz"))


@dataclass(frozen=True)
class Source:
    """Files of a data set, and its numbers of classes and images when complete."""

    classes: int
    images: tuple[int | None, int | None, int | None]  # train, val, test; None: no such list
    files: tuple[RemoteFile, ...]


def read_sources(path: str | Path) -> dict[str, Source]:
    """Read a table of sources.

    Args:
        path: YAML file in the format described at the top of ``sources.yaml``.

    Raises:
        ValueError: the file is not such a table; names the entry.
        OSError: it cannot be read.
    """
    content = read_bytes(path)
    try:
        table = parse_yaml(as_text(content))
    except ValueError as error:
        raise ValueError(f"{path} is not a YAML file: {error}") from error
    if not isinstance(table, dict):
        raise ValueError(f"{path} holds no data sets (see {SOURCES} for the format)")
    sources = {}
    for stem, entry in table.items():
        try:
            files = tuple(_remote_file(stem, **spec) for spec in entry["files"])
            train, val, test = (None if n is None else int(n) for n in entry["images"])
            if not isinstance(stem, str) or "/" in stem or not stem.isprintable():
                raise ValueError("a data set's name is the name of a folder")
            sources[stem] = Source(int(entry["classes"]), (train, val, test), files)
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(
                f"{path}: the entry of {stem!r} is not as {SOURCES} describes it: {error!r}"
            ) from error
    return sources


def _remote_file(
    stem: str, file: str, place: Sequence[str] = (), urls: Sequence[str] = (), **rest: str
) -> RemoteFile:
    if isinstance(place, str) or isinstance(urls, str):
        raise ValueError(f"place and urls of {file} are lists")
    for text in (file, *place, *urls, *rest.values()):
        if not isinstance(text, str) or not text.isprintable():
            raise ValueError(f"{text!r:.80} is no text")
    if "/" not in file:
        file = f"{stem}/{file}"
    place = tuple(place) or (file.rpartition("/")[2],)
    for path in (file, *place):
        if os.path.isabs(path) or ".." in Path(path).parts:
            raise ValueError(f"{path} leads out of the data root")
    return RemoteFile(file=file, place=place, urls=tuple(urls), **rest)


def choose(names: Iterable[str], sources: dict[str, Source]) -> list[str]:
    """Return the data sets asked for, each once; ``all`` stands for every one with a source.

    Raises:
        ValueError: an unknown name; suggests the nearest one.
    """
    known = sorted({*sources, *(path.stem for path in CONFIGS.glob("*.yaml"))})
    chosen: list[str] = []
    for name in names:
        if name != "all" and name not in known:
            choices = [*known, "all"]
            hint = nearest(name, choices, show=repr) or f"; known: {', '.join(choices)}"
            raise ValueError(f"no data set {name!r}{hint}")
        chosen += sources if name == "all" else [name]
    if not chosen:
        raise ValueError("name at least one data set, or all (see --help)")
    return list(dict.fromkeys(chosen))
