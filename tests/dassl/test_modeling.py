from __future__ import annotations

import pytest
import torch
from torch import nn

from dassl.modeling import (
    NETWORK_REGISTRY,
    build_backbone,
    build_head,
    build_network,
)
from dassl.modeling.ops import ReverseGrad
from dassl.modeling.ops.utils import create_onehot, sharpen_prob


@pytest.mark.parametrize(("name", "width"), [("resnet18", 512), ("resnet50", 2048)])
def test_backbones(name, width):
    net = build_backbone(name, verbose=False, pretrained=False).eval()
    assert net.out_features == width
    assert net(torch.zeros(1, 3, 32, 32)).shape == (1, width)


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
