"""Every protocol through the scripts, on miniatures of all data sets, with a CLIP of full size.

Some forty runs of ten seconds or more: done when asked for, ``python -m pytest -m pipeline``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from clip.model import CLIP
from tests.clip.archives import save_torchscript
from tests.datasets.miniatures import REAL, VARIANTS

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A ViT-B/16 with random weights in half precision, in a file like OpenAI's."""
    torch.manual_seed(0)
    model = CLIP(512, 224, 12, 768, 16, 77, 49408, 512, 8, 12)
    path = tmp_path_factory.mktemp("weights") / "random-ViT-B-16.pt"
    save_torchscript({key: value.half() for key, value in model.state_dict().items()}, path, 224)
    return path


@pytest.fixture(scope="module")
def env(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("pipeline")
    for miniature in REAL + VARIANTS:
        miniature.make(folder / "data")
    return {
        **{name: os.environ[name] for name in ("PATH", "HOME")},
        **{"DATA": str(folder / "data"), "OUTPUT": str(folder / "output")},
        **{"PYTHON": sys.executable, "TAG": "", "SHOTS": "2", "OMP_NUM_THREADS": "1"},
    }


@pytest.mark.parametrize("protocol", ["base2new", "xd", "dg"])
def test_protocol_over_all_data_sets(protocol, env, weights):
    pairs = ["MODEL.BACKBONE.NAME", str(weights), "OPTIM.MAX_EPOCH", "1"]
    pairs += ["DATALOADER.NUM_WORKERS", "0", "TRAINER.MMLOP.PREC", "fp32"]
    done = subprocess.run(
        ["bash", ROOT / "scripts" / "all.sh", "mmlop", "", "1", *pairs],
        env=env | {"PROTOCOL": protocol},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]

    table = [sys.executable, ROOT / "parse_test_res.py", "--output", env["OUTPUT"]]
    done = subprocess.run([*table, "--format", "json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    name = {"xd": "cross"}.get(protocol, protocol)
    rows = {row["dataset"]: row for row in json.loads(done.stdout) if row["protocol"] == name}
    targets = {m.stem for m in (VARIANTS if protocol == "dg" else REAL)}
    source = set() if protocol == "base2new" else {"imagenet"}
    averages = [row for row in rows.values() if "averaged" in row]
    n_averaged = len(targets - source)
    assert {d for d, row in rows.items() if "averaged" not in row} == targets | source
    assert [row["averaged"] for row in averages] == [f"{n_averaged}/{n_averaged}"]
    assert {row["trainer"] for row in rows.values()} == {"MMLoP"}
    parameters = {"base2new": 11_556}.get(protocol, 3_852)
    assert all(row["parameters"] == parameters for row in averages)
