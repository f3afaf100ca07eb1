"""Get the files of data sets into the downloads folder, and tell whether they are intact."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path

from support.documents import parse_json
from support.files import as_text, read_bytes, require_ordinary

from .sources import RemoteFile


@dataclass(frozen=True)
class Options:
    """Options of a download.

    Args:
        mirror: address tried before the official ones, as ``<mirror>/<data set>/<file>``.
        timeout_s: seconds without any answer after which a transfer counts as interrupted.
        delete_archives: delete an archive once its content is in place.
    """

    mirror: str = ""
    timeout_s: float = 30.0
    delete_archives: bool = False


def problem_of(path: Path, file: RemoteFile) -> str | None:
    """Check a fetched file: its checksum, or its integrity if no checksum is published.

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
    from dassl.utils.archives import check_archive

    try:
        require_ordinary(path)
        if name.endswith((".zip", ".tar", ".tgz", ".tar.gz")):
            check_archive(str(path))
        elif name.endswith(".json"):
            parse_json(as_text(read_bytes(path)))
        elif name.endswith(".mat"):
            return _damage_of_mat(path)
        elif as_text(read_bytes(path)).lstrip()[:1] in ("", "<"):
            return "is empty or a web page"
    except ValueError as error:
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
    """Download from Google Drive to ``path``; a broken-off transfer goes on in the next call.

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
    from support.download import download
    from support.files import sha256_of

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
