from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from dassl.utils import (
    AverageMeter,
    MetricMeter,
    Registry,
    check_availability,
    check_isfile,
    collect_env_info,
    count_num_param,
    download_url,
    init_network_weights,
    listdir_nohidden,
    mkdir_if_missing,
    open_all_layers,
    open_specified_layers,
    read_json,
    set_random_seed,
    tolist_if_not,
    write_json,
)
from dassl.utils.random_state import get_random_state, set_random_state


def draw():
    return random.random(), np.random.rand(), torch.rand(1).item()


@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1])
def test_a_seed_fixes_all_generators(seed):
    set_random_seed(seed)
    first = draw()
    assert draw() != first
    set_random_seed(seed)
    assert draw() == first


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="-1"):
        set_random_seed(-1)


def test_random_states_survive_a_safe_round_trip(tmp_path):
    set_random_seed(3)
    np.random.standard_normal()  # leaves a cached second value in NumPy's state
    torch.save(get_random_state(), tmp_path / "s.pt")
    expected = [draw(), np.random.standard_normal()]
    set_random_state(torch.load(tmp_path / "s.pt", weights_only=True))
    assert [draw(), np.random.standard_normal()] == expected


def test_registry():
    registry = Registry("THING")

    @registry.register()
    class Apple:
        pass

    def pear():
        return 1

    assert registry.register(pear) is pear
    assert registry.registered_names() == ["Apple", "pear"]
    assert registry.get("Apple") is Apple and "pear" in registry
    with pytest.raises(KeyError, match="already registered"):
        registry.register(pear)
    with pytest.raises(KeyError, match="already registered"):

        @registry.register()
        class Apple:
            pass

    def pear():
        return 2

    registry.register(pear, force=True)
    assert registry.get("pear")() == 2
    with pytest.raises(KeyError, match="did you mean 'Apple'"):
        registry.get("Aple")


def test_check_availability_names_the_nearest():
    check_availability("a", ["a", "b"])
    with pytest.raises(ValueError, match=r"'CoOpp'.*did you mean 'CoOp'"):
        check_availability("CoOpp", ["ZeroshotCLIP", "CoOp", "MMLoP"])
    with pytest.raises(ValueError, match="empty"):
        check_availability("a", [])


def test_check_availability_names_the_key_it_is_given():
    with pytest.raises(ValueError, match=r"^OPTIM\.NAME: 'sdg' is not in .*did you mean 'sgd'"):
        check_availability("sdg", ["adam", "sgd"], "OPTIM.NAME")
    with pytest.raises(ValueError, match=r"^'sdg' is not in"):
        check_availability("sdg", ["adam", "sgd"])


@pytest.mark.parametrize("name", ["coop", "COOP", "coOp", "Coo"])
def test_the_nearest_name_may_differ_in_case(name):
    with pytest.raises(ValueError, match="did you mean 'CoOp'"):
        check_availability(name, ["CoOp", "CoCoOp", "MMLoP"])


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20))
def test_average_meter(values):
    meter = AverageMeter()
    for value in values:
        meter.update(value)
    assert meter.val == values[-1] and meter.count == len(values)
    assert meter.avg == pytest.approx(np.mean(values), abs=1e-6)


def test_average_meter_weights_and_exponential_average():
    meter = AverageMeter()
    meter.update(1.0, n=3)
    meter.update(torch.tensor(5.0))
    assert (meter.avg, meter.count, meter.sum) == (2.0, 4, 8.0)
    assert isinstance(meter.average(), torch.Tensor), "not read until asked for"
    ema = AverageMeter(ema=True)
    ema.update(1.0)
    ema.update(1.0)
    assert ema.avg == pytest.approx(0.19)


def test_metric_meter():
    meter = MetricMeter()
    meter.update(None)
    assert str(meter) == ""
    meter.update({"loss": 1.0, "acc": torch.tensor(50.0)})
    meter.update({"loss": 2.0, "acc": 25})
    assert str(meter) == "loss 2.0000 (1.5000) acc 25.0000 (37.5000)"
    with pytest.raises(TypeError, match="forward_backward"):
        meter.update(3.0)
    assert str(MetricMeter(", ")) == ""


def test_files_and_folders(tmp_path):
    mkdir_if_missing(str(tmp_path / "a" / "b"))
    mkdir_if_missing(str(tmp_path / "a" / "b"))
    for name in ("z", ".hidden", "a.txt"):
        (tmp_path / "a" / "b" / name).touch()
    assert listdir_nohidden(str(tmp_path / "a" / "b"), sort=True) == ["a.txt", "z"]
    assert check_isfile(str(tmp_path / "a" / "b" / "z"))
    with pytest.warns(UserWarning, match="No file found"):
        assert not check_isfile(str(tmp_path / "nothing"))


def test_json(tmp_path):
    path = tmp_path / "deep" / "x.json"
    write_json({"a": [1, "é"]}, str(path))
    assert read_json(str(path)) == {"a": [1, "é"]}
    assert '\n    "a"' in path.read_text()
    with pytest.raises(TypeError):
        write_json({"a": object()}, str(path))
    assert read_json(str(path)) == {"a": [1, "é"]}
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]
    path.write_text("{")
    with pytest.raises(ValueError, match=r"x\.json is not valid JSON"):
        read_json(str(path))


def test_tolist_if_not():
    assert tolist_if_not([1]) == [1] and tolist_if_not("ab") == ["ab"]
    assert tolist_if_not((1, 2)) == [(1, 2)]


def test_environment_report_names_torch_and_pillow():
    info = collect_env_info()
    assert torch.__version__ in info
    assert f"Pillow ({Image.__version__})" in info


def test_download_url(tmp_path, capsys):
    source = tmp_path / "source.bin"
    source.write_bytes(bytes(range(256)) * 9000)
    target = tmp_path / "sub" / "copy.bin"
    download_url(source.as_uri(), str(target))
    assert target.read_bytes() == source.read_bytes()
    with pytest.raises(OSError):
        download_url((tmp_path / "missing").as_uri(), str(tmp_path / "sub" / "other.bin"))
    assert [p.name for p in target.parent.iterdir()] == ["copy.bin"]


def network():
    return nn.ModuleDict({"body": nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)),
                          "head": nn.Linear(4, 2)})  # fmt: skip


def test_count_num_param():
    net = network()
    assert count_num_param(net) == 3 * 4 * 9 + 4 + 8 + 10
    assert count_num_param(params=net["head"].parameters()) == 10
    groups = torch.optim.SGD([{"params": net["head"].parameters()}], lr=1).param_groups
    assert count_num_param(params=groups) == 10
    with pytest.raises(ValueError, match="model or params"):
        count_num_param()


def test_opening_layers():
    net = network()
    open_specified_layers(net, "head")
    assert net["head"].training and not net["body"].training
    assert [p.requires_grad for p in net.parameters()] == [False] * 4 + [True] * 2
    open_all_layers(net)
    assert net["body"].training and all(p.requires_grad for p in net.parameters())
    with pytest.raises(ValueError, match="body, head"):
        open_specified_layers(net, ["tail"])


@pytest.mark.parametrize("kind", ["normal", "xavier", "kaiming", "orthogonal"])
def test_initial_weights(kind):
    net = network()
    nn.init.constant_(net["body"][1].weight, 7.0)
    before = net["head"].weight.clone()
    init_network_weights(net, kind, gain=0.5)
    assert not torch.equal(net["head"].weight, before)
    assert net["head"].bias.eq(0).all() and net["body"][1].weight.eq(1).all()
    if kind == "orthogonal":
        gram = net["head"].weight @ net["head"].weight.t()
        torch.testing.assert_close(gram, 0.25 * torch.eye(2))
    with pytest.raises(ValueError, match="orthogonal"):
        init_network_weights(net, "unknown")
