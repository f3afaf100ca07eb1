"""The stand-in for CUDA graphs finds what breaks a capture, and repeats what does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.tape import TapeCapture, capture_breakers

BREAKERS = {
    "host data": lambda x: torch.tensor([1.0, 2.0]),
    "host data for the device": lambda x: torch.tensor([1.0, 2.0], device=x.device),
    "host data like a tensor": lambda x: x.new_tensor([1.0, 2.0]),
    "host data, shared if it can be": lambda x: torch.as_tensor([1.0, 2.0]),
    "host data of NumPy": lambda x: torch.from_numpy(np.ones(2)),
    "a tensor on the host": lambda x: torch.arange(3),
    "item": lambda x: x.sum().item(),
    "a condition": lambda x: bool(x.sum() > 0),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "numpy": lambda x: x.numpy(),
    "a mask as index": lambda x: x[x > 0],
    "a write by mask": lambda x: x.clone().index_put_((x > 0,), torch.zeros_like(x[0])),
    "nonzero": lambda x: x.nonzero(),
    "masked_select": lambda x: x.masked_select(x > 0),
    "random numbers": lambda x: torch.nn.functional.dropout(x),
}


@pytest.mark.parametrize("name", BREAKERS)
def test_what_breaks_a_capture_is_found(name):
    x = torch.ones(4)
    with capture_breakers() as found:
        BREAKERS[name](x)
    assert found


def test_what_stays_on_the_device_is_not():
    x = torch.ones(4, requires_grad=True)
    rows = torch.tensor([0, 2])
    with capture_breakers() as found:
        y = x[rows] * 2 + torch.zeros(2, device=x.device)
        torch.where(y > 1, y, 0.0).sum().backward()
        torch.nn.utils.clip_grad_norm_([x], 1.0)
        torch.empty((0,), requires_grad=True)
    assert found == []


def test_a_tape_repeats_numbers_and_runs_no_python():
    x, weight, calls = torch.ones(3), torch.zeros(3), []

    def function():
        calls.append(1)
        weight.add_(x)
        return weight.sum().reshape(1)

    replay, result = TapeCapture().record(function)
    assert weight.tolist() == [0.0] * 3, "a capture executes nothing"
    for value in (1.0, 10.0):
        x.fill_(value)
        replay()
    assert weight.tolist() == [11.0] * 3 and result.item() == 33.0 and len(calls) == 1
