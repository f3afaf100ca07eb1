"""Random numbers drawn while a model is built, against modules of PyTorch in OpenAI's order."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from clip.initial_draws import initial_draws
from clip.weights import architecture, build_model
from tests.parity_files import recorded_clip


def openai_block(width: int, heads: int) -> nn.ModuleDict:
    block = nn.ModuleDict(
        {"attn": nn.MultiheadAttention(width, heads), "ln_1": nn.LayerNorm(width)}
    )
    block["c_fc"], block["c_proj"] = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
    block["ln_2"] = nn.LayerNorm(width)
    return block


def openai_vit(sizes: dict) -> nn.Module:
    width, patch = sizes["vision_width"], sizes["vision_patch_size"]
    vit = nn.Module()
    vit.conv1 = nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=False)
    scale = width**-0.5
    vit.class_embedding = nn.Parameter(scale * torch.randn(width))
    places = (sizes["image_resolution"] // patch) ** 2 + 1
    vit.positional_embedding = nn.Parameter(scale * torch.randn(places, width))
    vit.ln_pre = nn.LayerNorm(width)
    blocks = [openai_block(width, sizes["vision_heads"]) for _ in range(sizes["vision_layers"])]
    vit.transformer = nn.ModuleList(blocks)
    vit.ln_post = nn.LayerNorm(width)
    vit.proj = nn.Parameter(scale * torch.randn(width, sizes["embed_dim"]))
    return vit


def openai_resnet(sizes: dict) -> nn.Module:
    net, width = nn.Module(), sizes["vision_width"]
    net.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
    net.bn1 = nn.BatchNorm2d(width // 2)
    net.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
    net.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
    inplanes, layers = width, []
    for stage, blocks in enumerate(sizes["vision_layers"]):
        planes, stride = width * 2**stage, 1 if stage == 0 else 2
        for index in range(blocks):
            layer = nn.Module()
            layer.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
            layer.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
            layer.conv3 = nn.Conv2d(planes, planes * 4, 1, bias=False)
            if index == 0 and (stride > 1 or inplanes != planes * 4):
                layer.downsample = nn.Conv2d(inplanes, planes * 4, 1, bias=False)
            inplanes = planes * 4
            layers.append(layer)
    net.layers = nn.ModuleList(layers)
    dim, side = width * 32, sizes["image_resolution"] // 32
    net.positional_embedding = nn.Parameter(torch.randn(side**2 + 1, dim) / dim**0.5)
    net.k_proj, net.q_proj, net.v_proj = (
        nn.Linear(dim, dim),
        nn.Linear(dim, dim),
        nn.Linear(dim, dim),
    )
    net.c_proj = nn.Linear(dim, sizes["embed_dim"])
    return net


def openai_clip(sizes: dict) -> None:
    """Fill what OpenAI's constructor fills, in its order."""
    vit = isinstance(sizes["vision_layers"], int)
    visual = openai_vit(sizes) if vit else openai_resnet(sizes)
    width, layers = sizes["transformer_width"], sizes["transformer_layers"]
    blocks = [openai_block(width, sizes["transformer_heads"]) for _ in range(layers)]
    tokens = nn.Embedding(sizes["vocab_size"], width)
    positions = nn.Parameter(torch.empty(sizes["context_length"], width))
    projection = nn.Parameter(torch.empty(width, sizes["embed_dim"]))
    nn.init.normal_(tokens.weight, std=0.02)
    nn.init.normal_(positions, std=0.01)
    if not vit:
        for linear in (visual.q_proj, visual.k_proj, visual.v_proj, visual.c_proj):
            nn.init.normal_(linear.weight, std=0.1)
    for block in blocks:
        nn.init.normal_(block["attn"].in_proj_weight, std=0.1)
        nn.init.normal_(block["attn"].out_proj.weight, std=0.1)
        nn.init.normal_(block["c_fc"].weight, std=0.1)
        nn.init.normal_(block["c_proj"].weight, std=0.1)
    nn.init.normal_(projection, std=0.1)


@pytest.mark.parametrize("vision", ["vit", "rn"])
def test_the_generator_ends_where_openais_constructor_leaves_it(vision):
    state = recorded_clip(vision)
    torch.manual_seed(3)
    openai_clip(architecture(state))
    expected = torch.get_rng_state()
    torch.manual_seed(3)
    with initial_draws(True):
        model = build_model(state)
    assert torch.equal(torch.get_rng_state(), expected)
    start = torch.manual_seed(3).get_state()
    with initial_draws(True), initial_draws(False):
        other = build_model(state)
    build_model(state)
    assert torch.equal(torch.get_rng_state(), start), "nothing is drawn unless it is wanted"
    for key, value in other.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key
