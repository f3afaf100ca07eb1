"""Which state of the code runs: the commit of its git repository, if it is in one."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path
from typing import Any


@functools.cache
def git_state(folder: Path) -> dict[str, Any] | None:
    """Return ``commit`` and ``dirty``: whether files that git knows differ from it.

    Args:
        folder: top folder of the repository.

    Returns:
        None where the folder is no repository, or of another one, or where git cannot be run.
    """
    try:
        top, commit = _git(folder, "rev-parse", "--show-toplevel", "HEAD").splitlines()
        if Path(top).resolve() != folder.resolve():
            return None
        changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": bool(changes)}


def _git(folder: Path, *words: str) -> str:
    command = ["git", "--no-optional-locks", "-C", str(folder), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    return done.stdout
