"""What is left for a process: of the machine, of its control groups, of its own limit."""

from __future__ import annotations

import resource
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.free_memory import host_memory

MEMINFO = "MemTotal: 64000000 kB\nMemAvailable:   30000000 kB\nSwapFree: 1000000 kB\n"
V2 = {
    "proc/self/cgroup": "0::/jobs/17\n",
    "sys/fs/cgroup/jobs/17/memory.max": "max\n",
    "sys/fs/cgroup/jobs/17/memory.current": "5000000000\n",
    "sys/fs/cgroup/jobs/memory.max": "8000000000\n",
    "sys/fs/cgroup/jobs/memory.current": "6000000000\n",
    "sys/fs/cgroup/jobs/memory.stat": "anon 9\ninactive_file 100\nactive_file 23\nfile 999\n",
}
V1 = {
    # seen from within a container: the path is the host's, the files are those of the group
    "proc/self/cgroup": "3:cpuset:/\n4:cpu,memory:/docker/abc\n0::/\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "4000000000\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": "5000000000\n",
    "sys/fs/cgroup/memory/memory.stat": "inactive_file 7\ntotal_inactive_file 1500000000\n",
}
CASES = {
    "machine": ({}, 31e6 * 1024, "machine"),
    "version 2, of the group above": (V2, 2e9 + 123, "control group"),
    "version 1, in a container": (V1, 0.5e9, "control group"),
    "unbounded": (V1 | {"sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2**63}"}, 31744e6, ""),
    "no numbers": (V2 | {"sys/fs/cgroup/jobs/memory.max": "\0?"}, 31744e6, "machine"),
}


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's files")
@pytest.mark.parametrize(("files", "expected", "of"), CASES.values(), ids=CASES)
def test_least_of_machine_and_groups(tmp_path: Path, files, expected, of):
    for name, content in {"proc/meminfo": MEMINFO, **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    free = host_memory(tmp_path)
    assert free.bytes == expected
    assert of in free.of


def test_unknown_elsewhere(tmp_path):
    assert host_memory(tmp_path) is None


@contextmanager
def address_space(room: float):
    """Let this process take so many further bytes, and no more."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + int(room), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's files")
@pytest.mark.own_process
def test_limit_of_this_process():
    plenty = host_memory()
    with address_space(3e8):
        free = host_memory()
        with pytest.raises(MemoryError):
            bytearray(int(4e8))
    assert plenty.bytes > 4e8
    assert 2e8 < free.bytes < 3e8 + 1e6
    assert "ulimit -v" in free.of
