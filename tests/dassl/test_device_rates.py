"""Learning rates on the device: the same training, plain numbers everywhere else."""

from __future__ import annotations

import copy
import importlib

import pytest
import torch
from torch import nn

from dassl.config import get_cfg_default
from dassl.optim import AVAI_OPTIMS, AVAI_SCHEDS, DeviceRates, build_lr_scheduler, build_optimizer
from dassl.optim import device_rates as module
from tests.tape import TapeCapture

WARMUPS = {"none": -1, "constant": 2, "linear": 2}


def settings(name: str, schedule: str = "cosine", warmup: str = "linear"):
    node = get_cfg_default().OPTIM
    node.NAME, node.LR, node.WEIGHT_DECAY, node.MAX_EPOCH = name, 0.05, 0.01, 7
    node.LR_SCHEDULER, node.STEPSIZE = schedule, (3, 5)
    node.WARMUP_EPOCH = WARMUPS[warmup]
    node.WARMUP_TYPE = "constant" if warmup == "none" else warmup
    return node


def start(node):
    """Parameters in two groups of different rates, optimiser, schedule."""
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((4, 3), (2,))]
    groups = [{"params": parameters[:1], "lr": node.LR}, {"params": parameters[1:], "lr": 0.01}]
    optimizer = build_optimizer(parameters, node, groups)
    return parameters, optimizer, build_lr_scheduler(optimizer, node)


def one_step(parameters, optimizer) -> torch.Tensor:
    loss = sum((p - 0.3).square().sum() for p in parameters)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach().reshape(1)


def epochs(node, plain: bool, n: int = 7, steps: int = 2):
    parameters, optimizer, schedule = start(node)
    held, used = None if plain else DeviceRates(optimizer), []
    for _ in range(n):
        used.append([group["lr"] for group in optimizer.param_groups])
        for _ in range(steps):
            if held is None:
                one_step(parameters, optimizer)
            else:
                with held.on_device():
                    one_step(parameters, optimizer)
        schedule.step()
    return parameters, optimizer, schedule, used


def close(one, other, limit: float = 2e-6) -> bool:
    pairs = zip(one, other, strict=True)
    return all(torch.allclose(a, b, rtol=limit, atol=limit / 10) for a, b in pairs)


def capturable_limit(name: str) -> float:
    """RAdam's rectification is a small difference of numbers near 2000, here in float32."""
    return 1e-3 if name == "radam" else 1e-5


@pytest.mark.parametrize("warmup", WARMUPS)
@pytest.mark.parametrize("schedule", AVAI_SCHEDS)
@pytest.mark.parametrize("name", AVAI_OPTIMS)
def test_training_and_rates_are_those_of_plain_numbers(name, schedule, warmup):
    node = settings(name, schedule, warmup)
    plain, _, _, plain_rates = epochs(node, plain=True)
    held, optimizer, _, held_rates = epochs(node, plain=False)
    assert close(held, plain)
    assert held_rates == plain_rates and len({tuple(rates) for rates in plain_rates}) > 1
    assert all(type(group["lr"]) is float for group in optimizer.param_groups)


@pytest.fixture()
def capturable_on_cpu(monkeypatch):
    """PyTorch's capturable steps, which it refuses on the CPU although they work there."""
    monkeypatch.setattr(module, "CAPTURABLE_ON", ("cpu",))
    for name in ("adam", "rmsprop", "radam"):
        optimiser_file = importlib.import_module(f"torch.optim.{name}")
        monkeypatch.setattr(
            optimiser_file, "_get_capturable_supported_devices", lambda **_: ["cpu"]
        )


@pytest.mark.parametrize("name", AVAI_OPTIMS)
def test_a_captured_step_reads_the_rate_of_the_time(capturable_on_cpu, name):
    """The tape runs kernels only: a rate that had been passed as a number would stay as it was."""
    node = settings(name)
    plain, *_ = epochs(node, plain=True)
    uncaptured, *_ = epochs(node, plain=False)
    assert close(uncaptured, plain, capturable_limit(name))
    parameters, optimizer, schedule = start(node)
    held, tape, replay = DeviceRates(optimizer), TapeCapture(host_constants=True), None
    assert held.settings.get("capturable", False) == (name != "sgd")
    for epoch in range(7):
        for _ in range(2):
            with held.on_device():
                if epoch == 0:
                    one_step(parameters, optimizer)
                    continue
                if replay is None:
                    replay, _ = tape.record(lambda: one_step(parameters, optimizer))
                replay()
        schedule.step()
    assert tape.replays == 12
    assert all(map(torch.equal, parameters, uncaptured))


@pytest.mark.parametrize("name", AVAI_OPTIMS)
@pytest.mark.parametrize("held_first", [True, False])
def test_a_checkpoint_is_plain_and_fits_runs_with_and_without(tmp_path, name, held_first):
    node = settings(name)
    straight, *_ = epochs(node, plain=True)
    parameters, optimizer, schedule, _ = epochs(node, plain=not held_first, n=3)
    torch.save(
        (optimizer.state_dict(), schedule.state_dict(), [p.data for p in parameters]),
        tmp_path / "state.pt",
    )
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    fresh = start(node)[1].state_dict()["param_groups"]
    for group, untouched in zip(state[0]["param_groups"], fresh, strict=True):
        assert type(group["lr"]) is float and type(group["initial_lr"]) is float
        assert {**group, "lr": 0} == {**untouched, "lr": 0}, "no setting of the steps is stored"

    parameters, optimizer, schedule = start(node)
    optimizer.load_state_dict(state[0])
    schedule.load_state_dict(state[1])
    for parameter, value in zip(parameters, state[2], strict=True):
        parameter.data.copy_(value)
    held = DeviceRates(optimizer)
    for _ in range(4):
        for _ in range(2):
            if held_first:
                one_step(parameters, optimizer)
            else:
                with held.on_device():
                    one_step(parameters, optimizer)
        schedule.step()
    assert close(parameters, straight)


def test_an_error_in_a_step_leaves_the_optimiser_as_it_was():
    _, optimizer, _ = start(settings("adam"))
    before = copy.deepcopy(optimizer.state_dict()["param_groups"])
    held = DeviceRates(optimizer)
    with pytest.raises(RuntimeError, match="stop"), held.on_device():
        assert all(isinstance(group["lr"], torch.Tensor) for group in optimizer.param_groups)
        raise RuntimeError("stop")
    assert optimizer.state_dict()["param_groups"] == before


def test_an_optimiser_that_cannot_be_captured():
    optimizer = torch.optim.Adagrad([nn.Parameter(torch.ones(2))])
    with pytest.raises(ValueError, match=r"steps of Adagrad cannot be captured.*SGD.*OPTIM\.NAME"):
        DeviceRates(optimizer)
