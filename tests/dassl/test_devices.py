"""The device of a run: by option, by key, and which one it is among several GPUs."""

from __future__ import annotations

import pytest
import torch

import train
from dassl.config import get_cfg_default
from dassl.utils import choose_device, device_of_run
from tests.conftest import ROOT

GPUS = torch.cuda.device_count()


def cfg_of(*words: str):
    options = ["--trainer", "CoOp", "--root", "data", "--seed", "1"]
    options += ["--dataset-config-file", str(ROOT / "configs/datasets/digits.yaml")]
    options += ["--config-file", str(ROOT / "configs/trainers/CoOp/tiny.yaml")]
    return train.setup_cfg(train.build_parser().parse_args([*options, *words]))


@pytest.mark.parametrize(
    ("words", "device"),
    [
        (["--device", "cpu"], "cpu"),
        (["--device", "cuda:1"], "cuda:1"),
        (["--gpu", "3"], "cuda:3"),
        (["DEVICE", "cuda"], "cuda"),
        ([], ""),
    ],
)
def test_options_set_the_key(words, device):
    assert cfg_of(*words).DEVICE == device


@pytest.mark.parametrize(
    "words", [["--gpu", "-1"], ["--gpu", "a"], ["--gpu", "1", "--device", "cpu"]]
)
def test_options_that_cannot_be(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        cfg_of(*words)
    assert "--gpu" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("device", "use_cuda", "expected"),
    [
        ("", True, "cuda" if GPUS else "cpu"),
        ("cpu", True, "cpu"),
        ("cuda:7", False, "cpu"),
    ],
)
def test_device_of_a_run(device, use_cuda, expected):
    cfg = get_cfg_default()
    cfg.DEVICE, cfg.USE_CUDA = device, use_cuda
    assert device_of_run(cfg) == torch.device(expected)


@pytest.mark.parametrize("name", [f"cuda:{GPUS}", "gpu", "cuda:x"])
def test_a_device_that_is_not_there(name, make_cfg):
    from trainers.coop import CoOp

    with pytest.raises(ValueError, match=rf"device '{name}' cannot be used here \(.*\); try cpu"):
        CoOp(make_cfg("CoOp", "DEVICE", name, "USE_CUDA", True))


@pytest.mark.gpu
def test_a_numbered_gpu_is_the_one_that_cuda_means():
    """The last one computes and counts the memory, without its number being passed around."""
    last = GPUS - 1
    assert choose_device(f"cuda:{last}") == torch.device("cuda", last)
    assert torch.zeros(1, device="cuda").device.index == last
