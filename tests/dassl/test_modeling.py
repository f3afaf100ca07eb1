from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from dassl.modeling import (
    NETWORK_REGISTRY,
    build_backbone,
    build_head,
    build_network,
)
from dassl.modeling.ops import ReverseGrad, mixup
from dassl.modeling.ops.utils import (
    create_onehot,
    ema_model_update,
    linear_rampup,
    reverse_index,
    sharpen_prob,
    shuffle_index,
    sigmoid_rampup,
)


@pytest.mark.parametrize(
    ("name", "width"),
    [
        *[("resnet18", 512), ("resnet34", 512), ("resnet50", 2048), ("resnet101", 2048)],
        *[("wide_resnet_28_2", 128), ("cnn_digitsdg", 256)],
    ],
)
def test_backbones(name, width):
    net = build_backbone(name, verbose=False, pretrained=False).eval()
    assert net.out_features == width
    features = net(torch.randn(2, 3, 32, 32))
    assert features.shape == (2, width) and features.isfinite().all()


def test_the_wide_network_has_the_size_of_the_paper():
    net = build_backbone("wide_resnet_28_2", verbose=False)
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    # 28 layers: these, less the three shortcuts, and the classifier
    assert len(convolutions) - 3 == 27 - 2
    # 1.5 million parameters is what papers on WRN-28-2 say
    assert round(sum(p.numel() for p in net.parameters()) / 1e6, 1) == 1.5


def test_the_digit_network_names_the_size_it_takes():
    with pytest.raises(ValueError, match=r"32 x 32 pixels, not 28 x 28: set INPUT\.SIZE"):
        build_backbone("cnn_digitsdg", verbose=False)(torch.zeros(1, 3, 28, 28))


@pytest.mark.parametrize("name", ["fcn_3x32_gctx", "fcn_3x64_gctx"])
def test_perturbing_networks(name):
    net, x = build_network(name, verbose=False), torch.randn(2, 3, 16, 12)
    perturbed, p = net(x, lmda=0.3, return_p=True)
    assert p.shape == x.shape and 0 < p.abs().max() <= 1
    assert torch.equal(net(x, lmda=0.3), perturbed)
    torch.testing.assert_close(perturbed, x + 0.3 * p)
    # the context carries every pixel to every other one
    changed = x.clone()
    changed[:, :, 0, 0] += 5
    assert not torch.equal(net(changed)[:, :, -1, -1], net(x)[:, :, -1, -1])


def test_mlp_head(capsys):
    head = build_head("mlp", in_features=6, hidden_layers=(5, 4), bn=True, dropout=0.5)
    assert head.out_features == 4 and head(torch.randn(3, 6)).shape == (3, 4)
    assert [type(m).__name__ for m in head.mlp[:4]] == ["Linear", "BatchNorm1d", "ReLU", "Dropout"]
    assert capsys.readouterr().out == "Head: mlp\n"
    with pytest.raises(ValueError, match="HIDDEN_LAYERS"):
        build_head("mlp", verbose=False, in_features=6)
    with pytest.raises(ValueError, match="did you mean 'relu'"):
        build_head("mlp", verbose=False, hidden_layers=3, activation="reluu")


def test_networks_can_be_registered():
    @NETWORK_REGISTRY.register(force=True)
    def toy_network(width):
        return nn.Linear(width, 1)

    assert build_network("toy_network", verbose=False, width=3).in_features == 3


@pytest.mark.parametrize("build", [build_backbone, build_head, build_network])
def test_unknown_names(build):
    with pytest.raises(ValueError, match="'resnet_18' is not"):
        build("resnet_18")


def test_reverse_grad():
    x = torch.tensor([2.0, 3.0], requires_grad=True)
    y = ReverseGrad()(x, 0.5)
    assert torch.equal(y, x)
    (y * torch.tensor([1.0, 10.0])).sum().backward()
    assert x.grad.tolist() == [-0.5, -5.0]
    with pytest.raises(ValueError, match="grad_scaling"):
        ReverseGrad()(x, -1.0)


def test_probabilities():
    sharp = sharpen_prob(torch.tensor([[0.2, 0.8], [0.5, 0.5]]), temperature=2)
    torch.testing.assert_close(sharp, torch.tensor([[0.04 / 0.68, 0.64 / 0.68], [0.5, 0.5]]))
    assert create_onehot(torch.tensor([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]


def test_mixup():
    x1, x2 = torch.zeros(64, 1, 2, 2), torch.ones(64, 1, 2, 2)
    y1, y2 = torch.eye(2)[[0] * 64], torch.eye(2)[[1] * 64]
    x, y = mixup(x1, x2, y1, y2, beta=0.75)
    share = y[:, 0]
    torch.testing.assert_close(x, (1 - share)[:, None, None, None].expand_as(x))
    torch.testing.assert_close(y.sum(1), torch.ones(64))
    assert share.unique().numel() > 1 and share.min() < 0.5 < share.max()
    _, y = mixup(x1, x2, y1, y2, beta=0.75, preserve_order=True)
    assert y[:, 0].min() >= 0.5


def test_orders():
    data, label = torch.arange(40).view(20, 2), torch.arange(20)
    back, labels = reverse_index(data, label)
    assert back[0].tolist() == [38, 39] and labels[0] == 19
    mixed, labels = shuffle_index(data, label)
    assert torch.equal(mixed[:, 0], 2 * labels) and not torch.equal(labels, label)
    assert labels.sort().values.equal(label)


def test_ramps():
    assert [linear_rampup(step, 4) for step in (-1, 0, 1, 4, 9)] == [0, 0, 0.25, 1, 1]
    expected = [math.exp(-5), math.exp(-5 * 0.75**2), 1, 1]
    assert [sigmoid_rampup(step, 4) for step in (0, 1, 4, 9)] == pytest.approx(expected)
    for ramp in (linear_rampup, sigmoid_rampup):
        with pytest.raises(ValueError, match="more than 0, not 0"):
            ramp(1, 0)


def test_averaged_weights():
    student, teacher = nn.Linear(2, 1), nn.Linear(2, 1)
    expected = 0.9 * teacher.weight.detach() + 0.1 * student.weight.detach()
    ema_model_update(student, teacher, alpha=0.9)
    torch.testing.assert_close(teacher.weight.detach(), expected)
    assert teacher.weight.requires_grad
