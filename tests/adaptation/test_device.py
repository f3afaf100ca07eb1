"""Runs on a device beside the CPU, in a process of their own.

A device that is made known to PyTorch stays known, and its autograd engine then keeps threads,
which processes that other tests fork cannot have.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).with_name("runs_on_another_device.py")


#: a GPU is hidden from tests unless -m names their marker
EXPRESSIONS = {"pretend": "", "cuda": "gpu or not gpu"}


@pytest.mark.parametrize("device", ["pretend", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_runs_on_another_device(device):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(TESTS)]
    command += ["-m", EXPRESSIONS[device]]
    result = subprocess.run(command, cwd=TESTS.parents[2], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert " passed" in result.stdout and " skipped" not in result.stdout
