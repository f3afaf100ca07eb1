"""Learning rates and SGD steps equal the recorded ones."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from tests.dassl.test_optim import build, optim_cfg, rates
from tests.parity_files import PARITY_DIR

RECORDED = json.loads((PARITY_DIR / "optimiser_schedule.json").read_text())


@pytest.mark.parametrize(
    "run", RECORDED["runs"], ids=lambda r: f"{r['config']['LR']}x{r['config']['MAX_EPOCH']}"
)
def test_rates_equal_the_recorded_ones(run):
    keys = {key: value for key, value in run["config"].items() if key.isupper()}
    optim, sched = build(optim_cfg(**keys))
    assert rates(optim, sched, len(run["lr_per_epoch"])) == pytest.approx(
        run["lr_per_epoch"], rel=1e-9
    )
    assert optim.param_groups[0]["lr"] == pytest.approx(run["lr_after_last_step"], rel=1e-9)
    group = optim.param_groups[0]
    for key in ("momentum", "dampening", "nesterov", "weight_decay"):
        assert group[key] == run["config"][key]


def test_sgd_equals_the_recorded_steps():
    toy = RECORDED["sgd_toy"]
    points = torch.tensor(toy["params_before_and_after_each_step"], dtype=torch.float64)
    parameter = nn.Parameter(points[0].clone())
    node = optim_cfg(
        NAME="sgd",
        LR=toy["lr_base"],
        MOMENTUM=toy["momentum"],
        WEIGHT_DECAY=toy["weight_decay"],
        LR_SCHEDULER="cosine",
        MAX_EPOCH=toy["max_epoch"],
        WARMUP_EPOCH=1,
        WARMUP_TYPE="constant",
    )
    optim, sched = build(node, parameter)
    for lr, grad, after in zip(toy["lr_used"], toy["grads"], points[1:], strict=True):
        assert optim.param_groups[0]["lr"] == pytest.approx(lr, rel=1e-9)
        parameter.grad = torch.tensor(grad, dtype=torch.float64)
        optim.step()
        sched.step()
        torch.testing.assert_close(parameter.data, after, rtol=1e-12, atol=0)
