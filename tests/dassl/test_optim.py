from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dassl.config import get_cfg_default
from dassl.optim import (
    ConstantWarmupScheduler,
    LinearWarmupScheduler,
    build_lr_scheduler,
    build_optimizer,
)


def optim_cfg(**settings):
    node = get_cfg_default().OPTIM
    for key, value in settings.items():
        assert key in node
        node[key] = value
    return node


def build(node, parameter=None):
    parameter = nn.Parameter(torch.zeros(3)) if parameter is None else parameter
    optim = build_optimizer([parameter], node)
    return optim, build_lr_scheduler(optim, node)


def rates(optim, sched, epochs):
    """Rate used in each epoch."""
    used = []
    for _ in range(epochs):
        used.append(optim.param_groups[0]["lr"])
        optim.step()
        sched.step()
    return used


def test_linear_warmup_rises_to_the_base_rate():
    node = optim_cfg(NAME="sgd", LR=0.8, WARMUP_EPOCH=4, MAX_EPOCH=100, WARMUP_TYPE="linear")
    assert rates(*build(node), 6) == pytest.approx([1e-5, 0.2, 0.4, 0.6, 0.8, 0.8])


@pytest.mark.parametrize("kind", ["constant", "linear"])
def test_without_recount_the_inner_schedule_starts_at_the_warmup_epoch(kind):
    node = optim_cfg(
        NAME="sgd",
        LR=1.0,
        WARMUP_EPOCH=2,
        WARMUP_TYPE=kind,
        LR_SCHEDULER="multi_step",
        STEPSIZE=(3, 5),
        WARMUP_RECOUNT=False,
    )
    assert rates(*build(node), 7)[2:] == pytest.approx([1.0, 0.1, 0.1, 0.01, 0.01])
    node.WARMUP_RECOUNT = True
    assert rates(*build(node), 8)[2:] == pytest.approx([1.0, 1.0, 1.0, 0.1, 0.1, 0.01])


@pytest.mark.parametrize(
    ("stepsize", "expected"), [((-1,), [1, 1, 1, 1]), ((2,), [1, 1, 0.1, 0.1]), (3, [1, 1, 1, 0.1])]
)
def test_single_step(stepsize, expected):
    node = optim_cfg(NAME="sgd", LR=1.0, MAX_EPOCH=10)
    node.STEPSIZE = stepsize
    assert rates(*build(node), 4) == pytest.approx(expected)


@settings(max_examples=60, deadline=None)
@given(
    stop=st.integers(1, 11),
    warmup=st.integers(-1, 4),
    kind=st.sampled_from(["constant", "linear"]),
    schedule=st.sampled_from(["cosine", "single_step", "multi_step"]),
    recount=st.booleans(),
)
def test_resumed_rates_equal_those_of_an_uninterrupted_run(stop, warmup, kind, schedule, recount):
    node = optim_cfg(
        NAME="sgd",
        LR=0.1,
        MAX_EPOCH=12,
        LR_SCHEDULER=schedule,
        STEPSIZE=(4, 7),
        WARMUP_EPOCH=warmup,
        WARMUP_TYPE=kind,
        WARMUP_RECOUNT=recount,
    )
    straight = rates(*build(node), 12)
    optim, sched = build(node)
    first = rates(optim, sched, stop)
    state = (optim.state_dict(), sched.state_dict())
    optim, sched = build(node)
    optim.load_state_dict(state[0])
    sched.load_state_dict(state[1])
    assert first + rates(optim, sched, 12 - stop) == straight


@pytest.mark.parametrize("kind", [ConstantWarmupScheduler, LinearWarmupScheduler])
def test_a_verbose_warmup_prints_its_rates(kind, capsys):
    optim, inner = build(optim_cfg(NAME="sgd", LR=0.5, LR_SCHEDULER="cosine"))
    sched = kind(optim, inner, 1, 0.125, verbose=True)
    optim.step()
    sched.step()
    lines = [f"Adjusting learning rate of group 0 to {lr}." for lr in ("1.2500e-01", "5.0000e-01")]
    assert capsys.readouterr().out.splitlines() == lines
    assert "verbose" not in sched.state_dict()


def test_the_state_of_a_warmup_holds_plain_data_only(tmp_path):
    _, sched = build(optim_cfg(NAME="sgd", LR_SCHEDULER="cosine", WARMUP_EPOCH=1))
    torch.save(sched.state_dict(), tmp_path / "s.pt")
    state = torch.load(tmp_path / "s.pt", weights_only=True)
    assert state["successor"]["T_max"] == 10


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("adam", "Adam"),
        ("amsgrad", "Adam"),
        ("sgd", "SGD"),
        ("rmsprop", "RMSprop"),
        ("radam", "RAdam"),
        ("adamw", "AdamW"),
    ],
)
def test_every_optimiser_reduces_a_quadratic(name, kind):
    parameter = nn.Parameter(torch.ones(4))
    optim = build_optimizer([parameter], optim_cfg(NAME=name, LR=0.05))
    assert type(optim).__name__ == kind
    assert optim.param_groups[0].get("amsgrad", False) == (name == "amsgrad")
    for _ in range(20):
        optim.zero_grad()
        parameter.square().sum().backward()
        optim.step()
    assert parameter.square().sum() < 4


def test_what_is_optimised():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    model[0].requires_grad_(False)
    node = optim_cfg(NAME="sgd")
    assert len(build_optimizer(model, node).param_groups[0]["params"]) == 4
    groups = [{"params": model[1].parameters(), "lr": 0.5}]
    assert [g["lr"] for g in build_optimizer(model, node, groups).param_groups] == [0.5]


def test_staged_rates():
    model = nn.ModuleDict({"backbone": nn.Linear(2, 3), "classifier": nn.Linear(3, 1)})
    node = optim_cfg(NAME="sgd", LR=1.0, STAGED_LR=True, NEW_LAYERS=("classifier",))
    groups = build_optimizer(model, node).param_groups
    by_lr = {g["lr"]: g["params"] for g in groups}
    assert by_lr[0.1][0] is model["backbone"].weight
    assert by_lr[1.0][0] is model["classifier"].weight
    node.NEW_LAYERS = ("classifer",)
    with pytest.raises(ValueError, match=r"^OPTIM\.NEW_LAYERS: .*did you mean 'classifier'"):
        build_optimizer(model, node)
    with pytest.raises(TypeError, match="STAGED_LR"):
        build_optimizer(list(model.parameters()), node)


@pytest.mark.parametrize(
    ("key", "value", "nearest"),
    [("NAME", "sgdd", "sgd"), ("LR_SCHEDULER", "cosin", "cosine"), ("WARMUP_TYPE", "const", None)],
)
def test_an_unknown_name_names_key_and_nearest(key, value, nearest):
    node = optim_cfg(WARMUP_EPOCH=1)
    node[key] = value
    with pytest.raises(ValueError, match=f"^OPTIM.{key}: .*did you mean '{nearest or 'constant'}'"):
        build(node)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"LR": -1.0}, r"OPTIM\.LR is -1\.0: use 0 or more"),
        ({"LR": None}, r"OPTIM\.LR is None: use 0"),
        ({"LR": float("nan")}, r"OPTIM\.LR is nan: use 0"),
        ({"WEIGHT_DECAY": -1.0}, r"OPTIM\.WEIGHT_DECAY is -1\.0: use 0"),
        ({"NAME": "sgd", "MOMENTUM": -1.0}, r"OPTIM\.MOMENTUM is -1\.0: use 0"),
        ({"NAME": "rmsprop", "RMSPROP_ALPHA": -1.0}, r"OPTIM\.RMSPROP_ALPHA is -1\.0: use 0"),
        ({"ADAM_BETA2": 1.0}, r"OPTIM\.ADAM_BETA2 is 1\.0: .* less than 1"),
        ({"NAME": "adamw", "ADAM_BETA1": -0.1}, r"OPTIM\.ADAM_BETA1 is -0\.1: use 0"),
        ({"ADAM_EPS": -1.0}, r"OPTIM\.ADAM_EPS is -1\.0: use 0"),
        ({"NAME": "sgd", "SGD_NESTEROV": True, "MOMENTUM": 0.0}, r"OPTIM\.SGD_NESTEROV needs"),
        ({"GAMMA": -1.0}, r"OPTIM\.GAMMA is -1\.0: use 0"),
        ({"LR_SCHEDULER": "cosine", "MIN_LR": -1.0}, r"OPTIM\.MIN_LR is -1\.0: use 0"),
        (
            {"WARMUP_EPOCH": 1, "WARMUP_TYPE": "constant", "WARMUP_CONS_LR": -1.0},
            r"OPTIM\.WARMUP_CONS_LR is -1\.0: use 0",
        ),
        ({"STEPSIZE": ()}, r"OPTIM\.STEPSIZE is empty"),
    ],
)
def test_a_number_out_of_range_names_its_key(settings, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        build(optim_cfg(**settings))


def test_settings_of_another_optimiser_are_not_read():
    build(optim_cfg(NAME="adam", MOMENTUM=-1.0))
    build(optim_cfg(NAME="sgd", ADAM_BETA1=2.0))
