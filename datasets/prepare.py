"""Download, verify and lay out data sets, or check those that are there.

    python -m datasets.prepare dtd oxford_pets --root DATA     fetch what is missing, then check
    python -m datasets.prepare all --root DATA --check         check only, without the network
    python -m datasets.prepare --list                          addresses and checksums

Names are those of `configs/datasets/`; `all` stands for every data set with a source. What a data
set consists of is in `datasets/sources.yaml`; layout and options are described in docs/datasets.md.
The command can be repeated: finished steps are skipped, a broken-off transfer goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import functools
import io
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .fewshot import FewShotDataset

# torch and what imports it is imported inside the functions: --help and --list answer at once.

SOURCES = Path(__file__).with_name("sources.yaml")
CONFIGS = Path(__file__).parents[1] / "configs" / "datasets"
DOWNLOADS = "downloads"
# Published counts are compared with this tolerance; one of them (ImageNet's) is rounded.
TOLERANCE = 0.01
ARCHIVE_DEPTH = 4  # folders of an archive in which its content is looked for

READY = "ready"
WILL_GENERATE = "ready, split will be generated (not the published one)"
GENERATED = "ready, split was generated here (not the published one)"
INCOMPLETE = "incomplete"
MISSING = "missing"

FAILURES = (RuntimeError, ValueError, OSError)  # of one file; the others go on


@dataclass(frozen=True)
class RemoteFile:
    """A file of a data set, as described in `sources.yaml`."""

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
    """The files of a data set and what it has when complete."""

    classes: int
    images: tuple[int | None, int | None, int | None]  # train, val, test; None: no such list
    files: tuple[RemoteFile, ...]


@dataclass(frozen=True)
class Options:
    """How files are fetched.

    Args:
        mirror: address tried before the official ones, as `<mirror>/<data set>/<file>`.
        timeout_s: seconds without any answer after which a transfer counts as interrupted.
        delete_archives: delete an archive once its content is in place.
    """

    mirror: str = ""
    timeout_s: float = 30.0
    delete_archives: bool = False


@dataclass
class Report:
    """What there is of one data set, and what went wrong while it was prepared."""

    stem: str
    state: str
    detail: str = ""
    classes: int | None = None
    images: tuple[int | None, ...] = (None, None, None)
    steps: list[str] = field(default_factory=list)  # what is left to do by hand

    @property
    def usable(self) -> bool:
        return self.state.startswith(READY)


# --- the table of sources -----------------------------------------------------------------------


def read_sources(path: str | Path) -> dict[str, Source]:
    """Read a table of sources.

    Args:
        path: YAML file in the format described at the top of `sources.yaml`.

    Raises:
        ValueError: the file is not such a table; names the entry.
        OSError: it cannot be read.
    """
    import yaml

    try:
        table = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a YAML file: {error}") from error
    if not isinstance(table, dict):
        raise ValueError(f"{path} holds no data sets (see {SOURCES} for the format)")
    sources = {}
    for stem, entry in table.items():
        try:
            files = tuple(_remote_file(stem, **spec) for spec in entry["files"])
            train, val, test = entry["images"]
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
    if "/" not in file:
        file = f"{stem}/{file}"
    place = tuple(place) or (file.rpartition("/")[2],)
    for path in (file, *place):
        if os.path.isabs(path) or ".." in Path(path).parts:
            raise ValueError(f"{path} leads out of the data root")
    return RemoteFile(file=file, place=place, urls=tuple(urls), **rest)


def choose(names: Iterable[str], sources: dict[str, Source]) -> list[str]:
    """The data sets asked for, in the order given, each once; `all` for every one with a source.

    Raises:
        ValueError: an unknown name; suggests the nearest one.
    """
    known = sorted({*sources, *(path.stem for path in CONFIGS.glob("*.yaml"))})
    chosen = []
    for name in names:
        if name != "all" and name not in known:
            close = difflib.get_close_matches(name.lower(), [*known, "all"], n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}, all"
            raise ValueError(f"no data set {name!r}; {hint}")
        chosen += sources if name == "all" else [name]
    if not chosen:
        raise ValueError("name at least one data set, or all (see --help)")
    return list(dict.fromkeys(chosen))


# --- what is there ------------------------------------------------------------------------------


def locate(stem: str, root: str | Path) -> FewShotDataset:
    """The data set with its folders below `root` set, without reading it.

    Raises:
        FileNotFoundError: its folder or its image folder is missing.
    """
    dataset = object.__new__(dataset_class(stem))
    dataset.locate(str(root))
    return dataset


@functools.cache
def dataset_class(stem: str) -> type[FewShotDataset]:
    """The class that `configs/datasets/<stem>.yaml` names."""
    import yaml

    from dassl.data.datasets import DATASET_REGISTRY

    from . import register_all

    register_all()
    config = yaml.safe_load((CONFIGS / f"{stem}.yaml").read_text(encoding="utf-8"))
    return DATASET_REGISTRY.get(config["DATASET"]["NAME"])


def is_there(path: Path) -> bool:
    """Whether a file, or a folder with anything in it, exists."""
    return path.is_file() or (path.is_dir() and any(path.iterdir()))


def read_lists(dataset: FewShotDataset) -> tuple[str, tuple]:
    """Read the lists of a data set, writing nothing.

    Returns:
        state (`READY`, `WILL_GENERATE` or `GENERATED`) and (train, val or None, test).

    Raises:
        OSError, ValueError: as the data set itself does when something is missing or wrong.
    """
    if dataset.split_file is None:
        state, lists = READY, dataset.read_annotations()
    elif not os.path.isfile(split := os.path.join(dataset.dataset_dir, dataset.split_file)):
        state, lists = WILL_GENERATE, dataset.read_annotations()
    else:
        lists = dataset.read_split(split, dataset.image_dir)
        state = GENERATED if _was_generated(dataset, lists) else READY
    dataset.check_lists(lists[0], lists[2])
    return state, lists


def _was_generated(dataset: FewShotDataset, lists: tuple) -> bool:
    """Whether a split file holds what `read_annotations` would put there."""
    try:
        generated = dataset.read_annotations()
    except Exception:  # the annotation is absent or damaged, and not needed
        return False

    def rows(parts: tuple) -> list:
        return [[(i.impath, i.label, i.classname) for i in part] for part in parts]

    return rows(generated) == rows(lists)


def inspect(stem: str, source: Source, root: Path) -> Report:
    """Say what there is of a data set, without the network and without writing anything.

    Args:
        stem: its name.
        source: what a complete one has.
        root: data root.
    """
    cls = dataset_class(stem)
    folder = root / cls.dataset_dir
    absent = [path for file in source.files for path in file.place if not is_there(folder / path)]
    if len(absent) == sum(len(file.place) for file in source.files):
        return Report(stem, MISSING)
    if absent and not (folder / cls.image_dir).is_dir():
        return Report(stem, INCOMPLETE, f"not there: {', '.join(absent)}")
    try:
        # data sets tell what they read
        with contextlib.redirect_stdout(io.StringIO()):
            state, lists = read_lists(locate(stem, root))
    except Exception as error:  # damaged annotation files raise nearly anything
        # Not all that is absent is needed, so what the data set itself complains of goes first.
        missing = f" (not there: {', '.join(absent)})" if absent else ""
        return Report(stem, INCOMPLETE, " ".join(f"{error}{missing}".split()))
    classes = len({item.label for item in lists[0]})
    images = tuple(
        None if expected is None else len(part or ())
        for part, expected in zip(lists, source.images, strict=True)
    )
    wrong = _implausible(classes, images, source)
    return Report(stem, INCOMPLETE if wrong else state, wrong, classes, images)


def _without_source(stem: str) -> Report:
    from .fewshot import FewShotDataset

    if dataset_class(stem).prepare is not FewShotDataset.prepare:
        return Report(stem, READY, "embedded, its images are written on first use")
    return Report(stem, MISSING, "no source of it is known; --sources can name one")


def _implausible(classes: int, images: Sequence[int | None], source: Source) -> str:
    wrong = []
    if classes != source.classes:
        wrong.append(f"{classes} classes instead of {source.classes}")
    for part, found, expected in zip(("train", "val", "test"), images, source.images, strict=True):
        if expected is not None and abs(found - expected) > TOLERANCE * expected:
            wrong.append(f"{found:,} {part} images instead of {expected:,}")
    return ", ".join(wrong)


# --- fetching -----------------------------------------------------------------------------------


def problem_of(path: Path, file: RemoteFile) -> str | None:
    """What is wrong with a fetched file: its checksum, or its integrity if none is published.

    Returns:
        the predicate of a sentence about the file, e.g. "has MD5 ..., expected ..."; None if
        nothing is wrong.
    """
    if not file.md5:
        return _damage(path, file.name)
    from torchvision.datasets.utils import calculate_md5

    found = calculate_md5(path)
    return None if found == file.md5 else f"has MD5 {found}, expected {file.md5}"


def _damage(path: Path, name: str) -> str | None:
    import json
    import tarfile
    import zipfile

    from dassl.utils.archives import DAMAGED_ARCHIVE

    try:
        if name.endswith(".zip"):
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            return f"is a zip archive with a damaged member {damaged!r}" if damaged else None
        if name.endswith((".tar", ".tgz", ".tar.gz")):
            with tarfile.open(path) as archive:
                for _ in archive:
                    pass
                while archive.fileobj.read(1 << 20):  # up to the checksum of the compression
                    pass
        elif name.endswith(".json"):
            json.loads(path.read_text(encoding="utf-8"))
        elif name.endswith(".mat"):
            return _damage_of_mat(path)
        elif path.read_text(encoding="utf-8").lstrip()[:1] in ("", "<"):
            return "is empty or a web page"
    except (*DAMAGED_ARCHIVE, ValueError) as error:
        return f"is no intact {name.partition('.')[2]} file ({error})"
    return None


def _damage_of_mat(path: Path) -> str | None:
    from scipy.io import whosmat

    try:
        whosmat(path)
    except Exception as error:  # other content makes scipy raise nearly anything
        return f"is no intact mat file ({error})"
    return None


def _fetch_from_drive(file: RemoteFile, path: Path, timeout_s: float) -> None:
    """Download from Google Drive to `path`; a broken-off transfer goes on in the next call.

    Raises:
        RuntimeError: Drive does not give the file, or gives a wrong one.
        OSError: the file cannot be stored.
    """
    import gdown
    import requests
    from gdown.exceptions import DownloadError, FileURLRetrievalError

    path.parent.mkdir(parents=True, exist_ok=True)
    target = path.with_name(f"{path.name}.drive")
    begun = sum(part.stat().st_size for part in path.parent.glob(f"{target.name}*.part"))
    try:
        gdown.download(
            id=file.drive,
            output=str(target),
            resume=True,
            use_cookies=False,
            timeout=timeout_s,
            retries=3,
        )
    # KeyError: of a header that an answer lacks
    except (DownloadError, FileURLRetrievalError, requests.RequestException, KeyError) as error:
        parts = list(path.parent.glob(f"{target.name}*.part"))
        if begun and sum(part.stat().st_size for part in parts) == begun:
            for part in parts:  # it cannot be continued; the next call starts afresh
                part.unlink()
        raise RuntimeError(" ".join(str(error).split())) from error
    wrong = problem_of(target, file)
    if wrong:
        target.unlink()
        raise RuntimeError(f"what it sends {wrong}")
    os.replace(target, path)


def obtain(file: RemoteFile, downloads: Path, options: Options) -> Path:
    """Make sure that a file is in the downloads folder, whole and unchanged.

    Args:
        file: what to fetch; a file that is there already is used, also when put there by hand.
        downloads: the folder.
        options: how to fetch it.

    Returns:
        the path of the file.

    Raises:
        RuntimeError: it could not be had; says why, and what to do.
        OSError: it cannot be stored; what was fetched is kept.
    """
    from clip.download import download, sha256_of

    path = downloads / file.file
    problem = functools.partial(problem_of, file=file)
    tried = []
    if path.is_file():
        wrong = problem(path)
        if wrong is None:
            return path
        tried.append(f"the file there {wrong}")
    mirrored = [f"{options.mirror.rstrip('/')}/{file.file}"] if options.mirror else []
    for address in mirrored + file.addresses:
        try:
            if address in mirrored or address in file.urls:
                download(address, path, problem, timeout_s=options.timeout_s)
            else:
                _fetch_from_drive(file, path, options.timeout_s)
        except RuntimeError as error:
            tried.append(f"{address}: {error}")
            continue
        checksum = f"MD5 {file.md5}, as published"
        if not file.md5:
            checksum = f"SHA-256 {sha256_of(path)} (no published checksum)"
        print(f"  fetched {path} ({path.stat().st_size:,} bytes), {checksum}", flush=True)
        return path
    reasons = "; ".join([*tried, *filter(None, [file.manual])])
    raise RuntimeError(f"not available: {reasons}. Put it at {path} and run the command again")


# --- laying out ---------------------------------------------------------------------------------


def lay_out(file: RemoteFile, path: Path, folder: Path) -> None:
    """Put the content of a fetched file into the data set's folder.

    Archives are unpacked in a temporary folder, from which each path is renamed into place; what
    is in place already is left alone. A single file takes the place of one of that name.

    Args:
        file: what it is.
        path: the fetched file.
        folder: the data set's folder.

    Raises:
        ValueError: the archive leads out of its folder, is damaged or lacks what it should hold.
        OSError: the content cannot be stored.
    """
    from dassl.utils import replacing, unpack_archive

    folder.mkdir(parents=True, exist_ok=True)
    if not file.is_archive:
        with replacing(str(folder / file.place[0])) as temporary:
            shutil.copyfile(path, temporary)
        return
    temporary = folder / f".unpacking-{file.name}"
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    try:
        print(f"  unpacking {path}", flush=True)
        if file.unpack == "imagenet":
            _unpack_imagenet(path, temporary)
        else:
            unpack_archive(str(path), str(temporary))
        content = temporary
        if file.inner:
            content = temporary / "inner"
            unpack_archive(str(find(file.inner, temporary)), str(content))
        for target in file.place:
            if not is_there(folder / target):
                found = find(target, content)
                (folder / target).parent.mkdir(parents=True, exist_ok=True)
                os.replace(found, folder / target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def find(path: str, folder: Path) -> Path:
    """The file or folder `path` in an unpacked archive: below as few further folders as possible.

    Raises:
        ValueError: it is not there, or at several places.
    """
    level = [folder]
    for _ in range(ARCHIVE_DEPTH):
        found = [base / path for base in level if (base / path).exists()]
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(f"the archive holds {path} {len(found)} times")
        level = [entry for base in level for entry in base.iterdir() if entry.is_dir()]
    top = ", ".join(sorted(entry.name for entry in folder.iterdir())[:5])
    raise ValueError(f"the archive holds no {path} (but {top or 'nothing'})")


def _unpack_imagenet(archive: Path, folder: Path) -> None:
    """Unpack ImageNet's archive of training or validation images to `<folder>/images/<part>`."""
    from torchvision.datasets import imagenet

    folder.mkdir()
    if archive.name == imagenet.ARCHIVE_META["train"][0]:
        imagenet.parse_train_archive(folder, str(archive), "images/train")
        return
    devkit = archive.with_name(imagenet.ARCHIVE_META["devkit"][0])
    if not devkit.is_file():
        raise ValueError(f"{devkit} is needed too: it has the labels of {archive.name}")
    imagenet.parse_devkit_archive(folder, str(devkit))
    imagenet.parse_val_archive(
        folder, str(archive), imagenet.load_meta_file(folder)[1], "images/val"
    )


def prepare(stem: str, source: Source, root: Path, options: Options) -> Report:
    """Fetch and lay out what a data set lacks.

    Args:
        stem: its name.
        source: its files.
        root: data root.
        options: how to fetch them.

    Returns:
        what is there afterwards, with a step for each file that could not be had.

    Raises:
        RuntimeError: another process is preparing this data set.
        OSError: the data root cannot be written.
    """
    import filelock

    downloads = root / DOWNLOADS
    (downloads / stem).mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(downloads / stem / ".lock", timeout=0)
    try:
        with lock:
            return _prepare(stem, source, root, options)
    except filelock.Timeout as error:
        raise RuntimeError(f"another process is preparing {stem} in {root}") from error


def _prepare(stem: str, source: Source, root: Path, options: Options) -> Report:
    report = inspect(stem, source, root)
    if report.state == READY:
        return report
    cls = dataset_class(stem)
    folder, steps = root / cls.dataset_dir, []
    for file in source.files:
        superseded = report.state == GENERATED and cls.split_file in file.place
        if all(is_there(folder / path) for path in file.place) and not superseded:
            continue
        path = root / DOWNLOADS / file.file
        try:
            obtain(file, root / DOWNLOADS, options)
            if superseded:
                split = folder / cls.split_file
                shutil.copyfile(split, split.with_suffix(".generated.json"))
            lay_out(file, path, folder)
            if options.delete_archives and file.is_archive:
                path.unlink()
        except OSError as error:
            steps.append(
                f"{file.name} cannot be stored: {error}. What was fetched is kept: free space, or "
                "see to the folder's permissions, and run the command again"
            )
        except FAILURES as error:
            steps.append(f"{file.name}: {error}")
        else:
            continue
        print(f"  error: {steps[-1]}", file=sys.stderr, flush=True)
    report = inspect(stem, source, root)
    report.steps = steps
    return report


# --- command line -------------------------------------------------------------------------------


def seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError
    return value


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m datasets.prepare",
        description="Download, verify and lay out data sets, or check those that are there.",
        epilog="Exit status: 0 all ready, 1 something is not, 2 wrong arguments. The command can "
        "be repeated: finished steps are skipped and broken-off transfers go on.",
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="name as in configs/datasets/, or all")
    add("--root", metavar="DIR", help="folder of the data sets (default: $DATA, else data)")
    add("--check", action="store_true", help="only say what is there; needs no network")
    add("--list", action="store_true", help="print addresses and checksums and do nothing")
    add("--mirror", metavar="URL", help="try URL/<data set>/<file> before the official addresses")
    add("--sources", metavar="YAML", help="entries that replace those of datasets/sources.yaml")
    add("--timeout", type=seconds, metavar="S", default=30.0, help="of a silent server; 30 seconds")
    add("--delete-archives", action="store_true", help="delete archives once unpacked")
    return parser


def _listing(stems: Sequence[str], sources: dict[str, Source]) -> str:
    from tabulate import tabulate

    rows = [
        [
            stem,
            file.file,
            "\n".join(file.addresses) or "by hand",
            file.md5 or "no published checksum",
        ]
        for stem in stems
        for file in sources[stem].files
    ]
    return tabulate(rows, ["data set", "file", "addresses", "MD5"], tablefmt="simple")


def _table(reports: Sequence[Report]) -> str:
    from tabulate import tabulate

    rows = [
        [
            report.stem,
            f"{report.state}: {report.detail}" if report.detail else report.state,
            *("" if n is None else f"{n:,}" for n in (report.classes, *report.images)),
        ]
        for report in reports
    ]
    return tabulate(
        rows,
        ["data set", "state", "classes", "train", "val", "test"],
        tablefmt="simple",
        maxcolwidths=[None, 64, None, None, None, None],
        colalign=("left", "left", "right", "right", "right", "right"),
        disable_numparse=True,
    )


def _next_steps(reports: Sequence[Report], sources: dict[str, Source], root: Path) -> str:
    """What to do about data sets that are not ready: by hand first, then the command to run."""
    lines, again = [], []
    for report in reports:
        if report.state == READY or report.stem not in sources:
            continue
        folder = root / dataset_class(report.stem).dataset_dir
        lacking = [
            file
            for file in sources[report.stem].files
            if not all(is_there(folder / path) for path in file.place)
        ]
        steps = report.steps or [
            f"{file.name}: {file.manual}. Put it at {root / DOWNLOADS / file.file}"
            for file in lacking
            if not file.addresses
        ]
        if report.state == INCOMPLETE and not lacking:
            steps = [*steps, f"remove what is wrong below {folder}"]
        lines += [f"- {report.stem}: {step}" for step in steps]
        again.append(report.stem)
    if again:
        lines.append(f"Then run: python -m datasets.prepare {' '.join(again)} --root {root}")
    return "\n".join(lines)


def run(args: argparse.Namespace) -> int:
    """Do what the command line asks for.

    Returns:
        exit status: 0 if all data sets asked for are ready, else 1.

    Raises:
        ValueError: unknown name or wrong table of sources.
        OSError: the data root cannot be written, or a file cannot be read.
    """
    sources = read_sources(SOURCES)
    if args.sources:
        sources |= read_sources(args.sources)
    if args.list:
        stems = choose(args.names or ["all"], sources)
        print(_listing([stem for stem in stems if stem in sources], sources))
        return 0
    stems = choose(args.names, sources)
    root = Path(args.root or os.environ.get("DATA") or "data").expanduser().absolute()
    if args.check and not root.is_dir():
        print(f"{root} does not exist", flush=True)
    options = Options(args.mirror or "", args.timeout, args.delete_archives)
    reports = []
    for number, stem in enumerate(stems, start=1):
        if stem not in sources:
            reports.append(_without_source(stem))
            continue
        if args.check:
            reports.append(inspect(stem, sources[stem], root))
            continue
        print(f"[{number}/{len(stems)}] {stem}", flush=True)
        try:
            report = prepare(stem, sources[stem], root, options)
        except FAILURES as error:
            print(f"  error: {error}", file=sys.stderr, flush=True)
            report = inspect(stem, sources[stem], root)
            report.steps = [str(error)]
        reports.append(report)
    print(f"\n{root}\n\n{_table(reports)}", flush=True)
    steps = _next_steps(reports, sources, root)
    if steps:
        print(f"\n{steps}")
    # A step that failed does not count where everything needed is there all the same.
    return int(any(not r.usable or (r.steps and r.state != READY) for r in reports))


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: its words; those of the process when None.

    Returns:
        exit status: 0, 1 if something asked for is not ready, 2 for wrong arguments, 130 if
        interrupted.
    """
    args = build_parser().parse_args(argv)
    try:
        return run(args)
    except (ValueError, OSError) as error:
        sys.stdout.flush()
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
