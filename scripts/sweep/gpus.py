"""The GPUs of this machine, and the places for runs on them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

#: device files of a machine that may have GPUs though it lacks nvidia-smi
DEVICES = ("nvidia[0-9]*", "kfd", "dxg")


def visible_gpus(env: Mapping[str, str]) -> list[str]:
    """Return what CUDA_VISIBLE_DEVICES calls each GPU that the environment lets a run see.

    Args:
        env: with CUDA_VISIBLE_DEVICES, which then says all, and PYTHON, which has torch.
    """
    if "CUDA_VISIBLE_DEVICES" in env:
        names = [name.strip() for name in env["CUDA_VISIBLE_DEVICES"].split(",")]
        end = next((i for i, name in enumerate(names) if name in ("", "-1")), len(names))
        return names[:end]  # as CUDA reads it
    try:
        listed = _output(["nvidia-smi", "-L"])
    except OSError:
        if not any(any(Path("/dev").glob(pattern)) for pattern in DEVICES):
            return []
        code = "import torch; print(torch.cuda.device_count())"
        counted = _output([env["PYTHON"], "-c", code]).split()
        return [str(number) for number in range(int(counted[-1]) if counted else 0)]
    parts = re.findall(r"UUID: (MIG-[^)\s]+)", listed)
    return parts or re.findall(r"^GPU (\d+):", listed, re.MULTILINE)


def _output(command: Sequence[str]) -> str:
    """Return what a command prints; nothing if it fails or takes a minute."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout if done.returncode == 0 else ""


def number_of(env: Mapping[str, str], name: str) -> int | None:
    """Return a variable that is a number from 1 on; None where it is not set.

    Raises:
        ValueError: it is something else.
    """
    text = env.get(name)
    if not text:
        return None
    if not re.fullmatch("[1-9][0-9]*", text):
        raise ValueError(f"{name} must be a whole number from 1 on, not {text!r}")
    return int(text)


def places(env: Mapping[str, str], gpus: Sequence[str]) -> list[dict[str, str]]:
    """Return the variables of each run that is done at once with others.

    On GPUs, JOBS_PER_GPU runs share each (default: 1), but no more than JOBS run in all if that is
    set without it, as many as JOBS says, spread evenly. Without one, JOBS (default: 1).

    Args:
        env: with JOBS and JOBS_PER_GPU.
        gpus: those to use.

    Raises:
        ValueError: these are no numbers from 1 on.
    """
    jobs, per_gpu = number_of(env, "JOBS"), number_of(env, "JOBS_PER_GPU")
    if not gpus:
        return [{}] * (jobs or 1)
    every = (per_gpu or 1) * len(gpus)
    count = every if jobs is None else jobs if per_gpu is None else min(jobs, every)
    # the order in which nvidia-smi counts them; a list of the user's is as CUDA counts
    order = {} if "CUDA_VISIBLE_DEVICES" in env else {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    return [{"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)], **order} for i in range(count)]
