"""Download files, above all checkpoints: resumed, checked, never half-written."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import filelock
from tqdm import tqdm

from .disk import check_room, shown
from .files import sha256_of, user_cache

CACHE_VARIABLE = "CLIP_CACHE"


def cache_folder(root: str | Path | None = None) -> Path:
    """Return the folder of checkpoints: ``root``, else ``$CLIP_CACHE``, else ``~/.cache/clip``."""
    return Path(root).expanduser() if root else user_cache(CACHE_VARIABLE, "clip")


class _Interrupted(Exception):
    """The transfer ended early or the server was briefly unable; worth another attempt."""


def _transfer(url: str, part: Path, timeout_s: float) -> bool:
    """Append to ``part`` what it lacks of ``url``; return whether it went on with a part."""
    import requests  # here because it takes a while and most runs download nothing

    offset = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"}  # sizes and ranges then count the file's own bytes
    if offset:
        headers["Range"] = f"bytes={offset}-"
    try:
        with requests.get(url, headers=headers, stream=True, timeout=timeout_s) as response:
            if offset and response.status_code == 416:  # nothing left: the part is all there is
                return True
            if response.status_code in (408, 425, 429) or response.status_code >= 500:
                raise _Interrupted(f"HTTP status {response.status_code}")
            if not response.ok:
                raise RuntimeError(f"HTTP status {response.status_code} ({response.reason})")
            # Should the range be another than the one asked for, the checksum will tell.
            resumed = bool(offset) and response.status_code == 206
            if not resumed:
                offset = 0
            length = response.headers.get("Content-Length")
            total = offset + int(length) if length else None
            if total:
                check_room(part, total - offset, "the rest of it" if offset else "it")
            with (
                open(part, "ab" if resumed else "wb") as file,
                tqdm(
                    total=total,
                    initial=offset,
                    desc=part.stem,
                    unit="B",
                    unit_scale=True,
                    unit_divisor=1024,
                    disable=None,  # no bar in the log of a job
                ) as bar,
            ):
                for chunk in response.iter_content(1 << 16):
                    file.write(chunk)
                    bar.update(len(chunk))
            return resumed
    except requests.Timeout as error:
        raise _Interrupted(f"{urlsplit(url).hostname} does not answer") from error
    except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
        # the libraries' own texts are about their insides
        raise _Interrupted(f"the connection to {urlsplit(url).hostname} failed") from error
    except requests.RequestException as error:
        raise RuntimeError(str(error)) from error


def _transfer_checked(
    url: str,
    part: Path,
    problem: Callable[[Path], str | None],
    attempts: int,
    backoff_s: float,
    timeout_s: float,
) -> None:
    """Bring ``part`` to content without a problem, in as many transfers as it takes."""
    furthest, failures = part.stat().st_size if part.exists() else 0, 0
    while True:
        try:
            resumed = _transfer(url, part, timeout_s)
        except _Interrupted as error:
            reached = part.stat().st_size if part.exists() else 0
            # An attempt that got further than any before does not count as a failure.
            failures = 1 if reached > furthest else failures + 1
            furthest = max(furthest, reached)
            if failures >= attempts:
                raise RuntimeError(f"{error} (given up after {attempts} attempts)") from error
            time.sleep(backoff_s * 2 ** (failures - 1))
            continue
        found = problem(part)
        if found is None:
            return
        part.unlink()
        if not resumed:
            raise RuntimeError(f"what it sends {found}")
        # The part may have been of an older or damaged file: once more from the start.


def download(
    url: str,
    path: str | Path,
    problem: Callable[[Path], str | None],
    attempts: int = 4,
    backoff_s: float = 1.0,
    timeout_s: float = 30.0,
) -> Path:
    """Make sure that ``path`` holds the file of ``url``; download it if it does not.

    The download goes to ``<path>.part``, continues there after an interruption (also in a later
    process), and takes the name ``path`` once nothing is wrong with it; a wrong file found
    there stays until then. Processes that want the same file wait for each other.

    Args:
        url: http or https address.
        path: where the file belongs.
        problem: says what is wrong with a file's content ("has SHA-256 ..."), None if nothing is.
        attempts: consecutive transfers without progress after which to give up.
        backoff_s: seconds before the second attempt, doubled for each further one.
        timeout_s: seconds without any answer after which a transfer counts as interrupted.

    Returns:
        ``path``.

    Raises:
        RuntimeError: the server does not give the file, or gives a wrong one.
        OSError: the file cannot be stored; room on the disk is looked for before it is begun.
    """
    path = Path(path)
    if path.is_file() and problem(path) is None:
        return path
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.with_name(path.name + ".lock")):
        if path.is_file():
            found = problem(path)
            if found is None:  # another process was faster
                return path
            warnings.warn(
                f"{path} {found}: damaged or another file; downloading it again", stacklevel=4
            )
        _transfer_checked(url, part, problem, attempts, backoff_s, timeout_s)
        os.replace(part, path)
    return path


def fetch(
    url: str,
    path: str | Path,
    sha256: str,
    attempts: int = 4,
    backoff_s: float = 1.0,
    timeout_s: float = 30.0,
) -> Path:
    """Do :func:`download` for a checkpoint whose checksum is known.

    Args:
        url, path, attempts, backoff_s, timeout_s: as for :func:`download`.
        sha256: expected checksum, hexadecimal.

    Returns:
        ``path``.

    Raises:
        RuntimeError: the file could not be had; says why and how to put it there by hand.
    """

    def problem(file: Path) -> str | None:
        found = sha256_of(file)
        return None if found == sha256 else f"has SHA-256 {found}, expected {sha256}"

    try:
        is_first = not any(Path(path).parent.glob(f"*{Path(path).suffix}"))
        found = download(url, path, problem, attempts, backoff_s, timeout_s)
        if is_first:
            print(
                f"Note: checkpoints are kept in {found.parent} ({shown(found.stat().st_size)} so "
                f"far, without a bound); the environment variable {CACHE_VARIABLE} names another "
                "folder"
            )
        return found
    except (RuntimeError, OSError) as error:
        what = "store" if isinstance(error, OSError) else "download"
        raise RuntimeError(
            f"cannot {what} {url}: {error}. Put the file at {path} by hand (SHA-256 {sha256}), "
            f"name another cache folder with the environment variable {CACHE_VARIABLE}, or give "
            "the path of a local checkpoint instead of the name"
        ) from error
