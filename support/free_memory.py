"""Memory that this process can still take, as far as the system tells."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Free(NamedTuple):
    """An amount of free memory.

    Attributes:
        bytes: how much.
        of: what it is a part of, for messages.
    """

    bytes: float
    of: str


def host_memory(root: Path = Path("/")) -> Free | None:
    """Return the memory of this machine that this process can still take.

    It is the least of what the machine has left (swap included), what the control groups of the
    process leave (as containers and clusters set them, version 1 or 2), and what its limit on
    address space leaves (``ulimit -v``). What the kernel can take back, such as cached files,
    counts as free.

    Args:
        root: folder that ``proc`` and ``sys`` are read below.

    Returns:
        None where the system does not tell (it is no Linux).
    """
    found = [*_machine(root), *_control_groups(root), *_address_space(root)]
    return min(found, default=None)


def _machine(root: Path) -> Iterator[Free]:
    fields = _table(root / "proc/meminfo")
    if "MemAvailable" in fields:
        free = 1024 * (fields["MemAvailable"] + fields.get("SwapFree", 0))
        yield Free(free, "this machine's memory")


def _control_groups(root: Path) -> Iterator[Free]:
    """Yield what each group leaves that the process is in, from its own group up to the root's."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            top, names = "sys/fs/cgroup", ("memory.max", "memory.current", "")
        elif "memory" in controllers.split(","):
            top = "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
        else:
            continue
        limit_file, usage_file, prefix = names
        # a container may see its own group as the root, and the path of the host above it
        parts = Path(group.lstrip("/")).parts
        for depth in range(len(parts), -1, -1):
            folder = root.joinpath(top, *parts[:depth])
            limit, usage = _text(folder / limit_file).strip(), _text(folder / usage_file).strip()
            if limit.isdecimal() and usage.isdecimal():
                stat = _table(folder / "memory.stat")
                cached = sum(stat.get(f"{prefix}{age}_file", 0) for age in ("active", "inactive"))
                free = int(limit) - int(usage) + cached
                yield Free(max(0, free), "the memory that its control group allows")


def _address_space(root: Path) -> Iterator[Free]:
    if sys.platform != "linux":
        return
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    pages = _text(root / "proc/self/statm").split()
    if limit != resource.RLIM_INFINITY and pages:
        used = int(pages[0]) * resource.getpagesize()
        yield Free(max(0, limit - used), "the address space that it may use (ulimit -v)")


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:  # not there, or not for everybody
        return ""


def _table(path: Path) -> dict[str, int]:
    """Read lines of a name and a number."""
    return {name: int(value) for name, value in re.findall(r"(\w+):?\s+(\d+)", _text(path))}
