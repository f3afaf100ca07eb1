"""A model is OpenAI's to whoever calls its modules, and to whoever hooks or replaces them."""

from __future__ import annotations

import copy
import io
import types
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

import clip
from adaptation.savings.chunks import encode_text_in_chunks
from clip.changes import Prompt, deep_prompts
from clip.model import (
    CLIP,
    AttentionPool2d,
    Bottleneck,
    LayerNorm,
    ModifiedResNet,
    QuickGELU,
    ResidualAttentionBlock,
    Transformer,
    VisionTransformer,
)
from clip.packing import PackedText
from clip.plain import PlainEncoders
from clip.weights import build_model, convert_weights
from tests.clip import openai
from tests.parity_files import recorded_clip

LAYERS, WIDTH, VISION_WIDTH, CONTEXT, VOCABULARY = 3, 128, 64, 12, 40
HALF = (torch.float16, torch.bfloat16)


def small(dtype: torch.dtype = torch.float64, vision: object = LAYERS) -> CLIP:
    """Random, with biases and gains that are not trivial, weights stored as OpenAI stores them."""
    torch.manual_seed(0)
    sizes = (VISION_WIDTH, 8) if vision == LAYERS else (8, None)
    model = CLIP(32, 32, vision, *sizes, CONTEXT, VOCABULARY, WIDTH, 2, LAYERS)
    for parameter in model.requires_grad_(False).parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    if dtype in HALF:
        convert_weights(model, dtype)
    else:
        model.to(dtype)
    return model.eval()


def token_ids() -> Tensor:
    ids = torch.zeros(4, CONTEXT, dtype=torch.long)
    for row, length in zip(ids, (3, 9, 5, 7), strict=True):
        row[:length] = torch.randint(1, 38, (length,))
        row[0], row[length] = 38, 39
    return ids


def images(dtype: torch.dtype = torch.float64, number: int = 3) -> Tensor:
    return torch.randn(number, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(dtype)


def exactly(value: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(value, expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF])
@pytest.mark.parametrize("tower", ["text", "image"])
def test_blocks_are_those_of_openai(tower, dtype):
    model = small(dtype)
    ours = model.transformer if tower == "text" else model.visual.transformer
    length = CONTEXT if tower == "text" else 17
    theirs = openai.blocks_of(ours, length if tower == "text" else None)
    x = start = torch.randn(length, 5, ours.width).to(dtype)
    for block, reference in zip(ours.resblocks, theirs, strict=True):
        expected = reference(x)
        exactly(block(x), expected)
        y = reference.ln_1(x)
        mask = None if reference.mask is None else reference.mask.to(dtype)
        attended = reference.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        exactly(block.attention(block.ln_1(x)), attended)
        exactly(block.attn(y, y, y, need_weights=False, attn_mask=block.attn_mask)[0], attended)
        exactly(block.mlp(y), reference.mlp(y))
        x = expected
    exactly(ours(start), x)
    exactly(ours.resblocks(start), x)


@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float32, 1e-5), (torch.float16, 5e-3), (torch.bfloat16, 5e-2)]
)
def test_walking_through_the_blocks_gives_what_the_encoders_give(dtype, limit):
    model, ids, image = small(dtype), token_ids(), images(dtype)
    for ours, theirs in (
        (model.encode_text(ids), openai.encode_text(model, ids)),
        (model.encode_image(image), openai.encode_image(model, image)),
    ):
        assert ours.dtype == theirs.dtype == dtype
        assert (ours - theirs).abs().max() < limit * theirs.abs().max()
    # and the plain encoders are that walk
    plain = PlainEncoders(model)
    exactly(plain.encode_text(ids), openai.encode_text(model, ids))
    exactly(plain.encode_image(image), openai.encode_image(model, image))


def test_names_of_a_block():
    model = small()
    expected = torch.full((CONTEXT, CONTEXT), -torch.inf).triu(1)
    exactly(model.build_attention_mask(), expected)
    for block, width, heads in (
        *((block, WIDTH, 2) for block in model.transformer.resblocks),
        *((block, VISION_WIDTH, 1) for block in model.visual.transformer.resblocks),
    ):
        assert isinstance(block, ResidualAttentionBlock)
        attn = block.attn
        assert isinstance(attn, nn.MultiheadAttention)
        assert (attn.embed_dim, attn.num_heads, attn.head_dim) == (width, heads, 64)
        assert attn.in_proj_weight.shape == (3 * width, width)
        assert [name for name, _ in block.mlp.named_children()] == ["c_fc", "gelu", "c_proj"]
        assert block.mlp[0] is block.mlp.c_fc and isinstance(block.mlp.gelu, QuickGELU)
        assert isinstance(block.ln_1, LayerNorm)
        x = torch.randn(5, 2, width).double()
        _, weights = attn(x, x, x)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 5).double())
        if width == VISION_WIDTH:
            assert block.attn_mask is None
        else:
            exactly(block.attn_mask, expected)
    assert isinstance(model.transformer, Transformer)
    assert isinstance(model.visual, VisionTransformer)
    resnet = small(vision=(1, 1, 1, 1)).visual
    assert isinstance(resnet, ModifiedResNet) and isinstance(resnet.attnpool, AttentionPool2d)
    assert isinstance(resnet.layer1[0], Bottleneck) and resnet.attnpool.num_heads == 4


def test_keys_are_those_of_openai():
    def block(prefix: str) -> list[str]:
        attn = ["in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"]
        parts = [f"attn.{name}" for name in attn]
        for name in ("ln_1", "mlp.c_fc", "mlp.c_proj", "ln_2"):
            parts += [f"{name}.weight", f"{name}.bias"]
        return [f"{prefix}transformer.resblocks.{i}.{p}" for i in range(LAYERS) for p in parts]

    visual = ["class_embedding", "positional_embedding", "proj", "conv1.weight"]
    visual += ["ln_pre.weight", "ln_pre.bias"]
    expected = ["positional_embedding", "text_projection", "logit_scale"]
    expected += [f"visual.{name}" for name in visual] + block("visual.")
    expected += ["visual.ln_post.weight", "visual.ln_post.bias"]
    expected += [*block(""), "token_embedding.weight", "ln_final.weight", "ln_final.bias"]
    assert list(small().state_dict()) == expected


def other(values: object) -> object:
    """Something else, which no norm and no softmax takes back."""
    if isinstance(values, tuple):
        return tuple(None if value is None else other(value) for value in values)
    return values + values.roll(1, -1)


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    @property
    def weight(self) -> Tensor:
        return self.inner.weight

    def forward(self, *args: Tensor, **options: object) -> object:
        return other(self.inner(*args, **options))


class Other(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return other(x)


def hook(_module: nn.Module, *values: object) -> object:
    return other(values[-1])


def own_forward(module: nn.Module) -> None:
    inner = module.forward
    module.forward = lambda *args, **options: other(inner(*args, **options))


def replace(tower: nn.Module, name: str, make) -> None:
    parent, _, last = name.rpartition(".")
    setattr(tower.get_submodule(parent), last, make(tower.get_submodule(name)))


WAYS = {
    "hook": lambda tower, name: tower.get_submodule(name).register_forward_hook(hook),
    "hook in front": lambda tower, name: tower.get_submodule(name).register_forward_pre_hook(hook),
    "wrapped": lambda tower, name: replace(tower, name, Wrapped),
    "own forward": lambda tower, name: own_forward(tower.get_submodule(name)),
}
#: parts of both towers, the blocks' in the first block and in the last
IN_BLOCKS = [
    f"transformer.resblocks.{number}{part}"
    for number in (0, LAYERS - 1)
    for part in ("", ".ln_1", ".attn", ".ln_2", ".mlp", ".mlp.c_fc", ".mlp.gelu", ".mlp.c_proj")
]


def changes(*parts: str) -> list:
    return [
        pytest.param(way, name, id=f"{way}-{name}")
        for name in parts
        for way in WAYS
        if (way, name) != ("hook in front", "token_embedding")  # others are no tokens
    ]


def encoded(model: CLIP, tower: str) -> tuple[Tensor, Tensor]:
    """What the model's own encoder gives, and what a walk through its modules gives."""
    if tower == "text":
        ids = token_ids()
        return model.encode_text(ids), openai.encode_text(model, ids)
    return model.encode_image(images()), openai.encode_image(model, images())


def check_noticed(model: CLIP, tower: str, change, part: str) -> None:
    torch.manual_seed(1)
    before, _ = encoded(model, tower)
    change()
    torch.manual_seed(1)
    with pytest.warns(UserWarning, match=part.replace(".", r"\.") + " of this CLIP is hooked"):
        after, walk = encoded(model, tower)
    exactly(after, walk)
    assert (after - before).abs().max() > 1e-3 * before.abs().max(), "the change has an effect"
    assert model.changed_part() == part
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoded(model, tower)  # one note per model


@pytest.mark.parametrize(("way", "name"), changes("token_embedding", "ln_final", *IN_BLOCKS))
def test_changes_of_the_text_encoder(way, name):
    model = small()
    check_noticed(model, "text", lambda: WAYS[way](model, name), name)


@pytest.mark.parametrize(("way", "name"), changes("conv1", "ln_pre", "ln_post", *IN_BLOCKS))
def test_changes_of_the_image_encoder(way, name):
    model = small()
    check_noticed(model, "image", lambda: WAYS[way](model.visual, name), name)


def no_bias(linear: nn.Linear) -> None:
    linear.bias = None


def own_attention(block: nn.Module) -> None:
    block.attention = types.MethodType(lambda self, x: other(x), block)


def other_attention(block: nn.Module) -> None:
    block.attn = nn.MultiheadAttention(*block.ln_1.weight.shape, 1).double()


def parametrized(block: nn.Module, name: str, tensor: str = "weight") -> None:
    parametrize.register_parametrization(block.get_submodule(name), tensor, Other())


OTHERS = {
    "another mask": (
        ".attn_mask",
        lambda block: setattr(block, "attn_mask", torch.zeros(CONTEXT, CONTEXT)),
    ),
    "mask written to": (".attn_mask", lambda block: block.attn_mask.fill_(0)),
    "no mask": (".attn_mask", lambda block: setattr(block, "attn_mask", None)),
    "method of the block": ("", own_attention),
    "another attention": (".attn", other_attention),
    "no bias": (".mlp.c_fc", lambda block: no_bias(block.mlp.c_fc)),
    "activation": (".mlp.gelu", lambda block: setattr(block.mlp, "gelu", nn.ReLU())),
    "one more layer": (".mlp", lambda block: block.mlp.append(Other())),
    "one layer parametrized": (".mlp.c_fc", lambda block: parametrized(block, "mlp.c_fc")),
    "attention parametrized": (
        ".attn",
        lambda block: parametrized(block, "attn", "in_proj_weight"),
    ),
    "its last layer parametrized": (
        ".attn.out_proj",
        lambda block: parametrized(block, "attn.out_proj"),
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_changes_of_a_block(kind):
    part, change = OTHERS[kind]
    model = small()
    block = model.transformer.resblocks[1]
    check_noticed(model, "text", lambda: change(block), f"transformer.resblocks.1{part}")


@pytest.mark.parametrize("tower", ["text", "image"])
@pytest.mark.parametrize(
    ("name", "kind", "function"),
    [
        ("Attention.forward", nn.MultiheadAttention, "forward"),
        ("ResidualAttentionBlock.forward", ResidualAttentionBlock, "forward"),
        ("ResidualAttentionBlock.attention", ResidualAttentionBlock, "attention"),
        ("QuickGELU.forward", QuickGELU, "forward"),
        ("Linear.forward", nn.Linear, "forward"),
    ],
)
def test_functions_of_classes(monkeypatch, tower, name, kind, function):
    """As published code replaces them for all blocks at once."""
    model, inner = small(), getattr(kind, function)

    def replacement(self, *args, **options):
        return other(inner(self, *args, **options))

    with monkeypatch.context() as patch:
        check_noticed(model, tower, lambda: patch.setattr(kind, function, replacement), name)
    assert model.changed_part() is None


def test_dropout_of_attention_is_not_passed_by():
    model = small()
    model.transformer.resblocks[0].attn.dropout = 0.5
    assert model.changed_part() == "transformer.resblocks.0.attn"


@pytest.mark.filterwarnings("ignore:.*is hooked")
@pytest.mark.parametrize("name", ["transformer", "transformer.resblocks"])
@pytest.mark.parametrize("tower", ["text", "image"])
def test_a_changed_stack(tower, name):
    """Also one of somebody's own; prompts behind it are refused, never passed by."""
    prompts = deep_prompts([torch.randn(2, WIDTH if tower == "text" else VISION_WIDTH)] * 2, at=1)
    for way in ("hook", "wrapped", "own forward"):
        model = small()
        owner = model if tower == "text" else model.visual
        encode, what = (
            (model.encode_text, token_ids()) if tower == "text" else (model.encode_image, images())
        )
        before, first = encode(what), encode(what, {0: prompts[0]})
        WAYS[way](owner, name)
        assert model.changed_part().startswith("transformer")
        for prompted, old in ((None, before), ({0: prompts[0]}, first)):
            assert (encode(what, prompted) - old).abs().max() > 1e-3 * old.abs().max()
        with pytest.raises(ValueError, match=r"as a whole.*prompt depth"):
            encode(what, prompts)


def shapes(module: nn.Module, seen: list, name: str) -> object:
    return module.register_forward_hook(
        lambda _module, _args, result: seen.append((name, tuple(result.shape)))
    )


@pytest.mark.filterwarnings("ignore:.*is hooked")
def test_hooks_fire_with_the_shapes_of_openai(monkeypatch):
    model, seen, grads = small(), [], []
    monkeypatch.setattr("clip.model.LARGEST_ON_CPU", 1)  # no batch in parts
    for block in model.transformer.resblocks:
        shapes(block, seen, "text block")
        shapes(block.ln_1, seen, "ln_1")
    shapes(model.token_embedding, seen, "token_embedding")
    shapes(model.ln_final, seen, "ln_final")
    last = model.transformer.resblocks[-1]
    last.register_full_backward_hook(lambda _m, _i, grad: grads.append(tuple(grad[0].shape)))
    model.token_embedding.weight.requires_grad_()
    model.encode_text(token_ids()).sum().backward()
    block = [("ln_1", (CONTEXT, 4, WIDTH)), ("text block", (CONTEXT, 4, WIDTH))]
    outer = (4, CONTEXT, WIDTH)
    assert seen == [("token_embedding", outer), *block * LAYERS, ("ln_final", outer)]
    assert grads == [(CONTEXT, 4, WIDTH)]

    seen.clear()
    tower = model.visual
    shapes(tower.transformer.resblocks[-1], seen, "last block")
    for name in ("conv1", "ln_pre", "transformer", "ln_post"):
        shapes(getattr(tower, name), seen, name)
    whole = ("transformer", (17, 3, VISION_WIDTH))
    with torch.no_grad():
        model.encode_image(images())
    expected = [("conv1", (3, VISION_WIDTH, 4, 4)), ("ln_pre", (3, 17, VISION_WIDTH))]
    expected += [("last block", (17, 3, VISION_WIDTH)), whole, ("ln_post", (3, VISION_WIDTH))]
    assert seen == expected


class LowRank(nn.Module):
    """LoRA (Hu et al., 2021): a linear map plus the product of two narrow ones."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        width, out = linear.in_features, linear.out_features
        self.a = nn.Parameter(torch.randn(2, width).to(linear.weight.dtype) / width**0.5)
        self.b = nn.Parameter(torch.zeros(out, 2).to(linear.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + x @ self.a.T @ self.b.T


@pytest.mark.parametrize("prompted", [False, True])
def test_low_rank_adaptation_has_an_effect(prompted):
    """On features and gradients of both towers, with prompts and in chunks, and can be trained."""
    model, ids, image = small(), token_ids(), images()
    text = {0: Prompt(torch.randn(2, WIDTH).double(), at=1)} if prompted else None
    vision = {1: Prompt(torch.randn(2, VISION_WIDTH).double())} if prompted else None
    before = model.encode_text(ids, text), model.encode_image(image, vision)
    added = []
    for tower in (model, model.visual):
        mlp = tower.transformer.resblocks[1].mlp
        mlp.c_fc = LowRank(mlp.c_fc)
        added.append(mlp.c_fc)
    with pytest.warns(UserWarning, match="is hooked") as noted:
        for encode, what, prompts, old, layer in (
            (model.encode_text, ids, text, before[0], added[0]),
            (model.encode_image, image, vision, before[1], added[1]),
        ):
            torch.testing.assert_close(encode(what, prompts), old)  # b is zero at first
            goal, optimiser = torch.randn_like(old), torch.optim.SGD(layer.parameters(), 0.1)
            losses = []
            for _ in range(3):
                loss = (encode(what, prompts) - goal).square().mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                losses.append(loss.item())
            assert losses[2] < losses[1] < losses[0]
            after = encode(what, prompts)
            assert (after - old).abs().max() > 1e-4 * old.abs().max()
            assert layer.a.grad.abs().max() > 0 and layer.b.grad.abs().max() > 0
            # one value's gradient against finite differences
            layer.zero_grad()
            (encode(what, prompts) * goal).sum().backward()
            found, step = layer.b.grad[0, 0].item(), 1e-6
            with torch.no_grad():
                layer.b[0, 0] += step
                difference = ((encode(what, prompts) - after) * goal).sum().item() / step
                layer.b[0, 0] -= step
            assert found == pytest.approx(difference, rel=1e-3, abs=1e-6)
    assert len(noted) == 1
    with torch.no_grad():
        chunks = encode_text_in_chunks(model, PackedText(ids), text, size=2)
        torch.testing.assert_close(chunks, model.encode_text(ids, text))


@pytest.mark.filterwarnings("ignore:.*is hooked")
def test_prompts_of_a_hooked_model():
    """A hook that only looks changes neither features nor gradients, whatever the prompts."""
    model, ids, image = small(), token_ids(), images()
    ends = tuple(int(row.argmax()) for row in ids)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape).double().requires_grad_()

    cases = []
    for prompts in (
        None,
        deep_prompts([random(2, WIDTH) for _ in range(3)], at=1),
        {0: Prompt(random(4, 2, WIDTH), at=ends), 2: Prompt(random(4, 1, WIDTH), at=1, drop=2)},
        {0: (Prompt(random(3, 1, 1, WIDTH), at=1), Prompt(random(1, WIDTH), at=2))},
        {1: Prompt(random(3, 4, 2, WIDTH), at=1, drop=1)},
    ):
        cases.append((model.encode_text, ids, prompts))
    for prompts in (
        None,
        deep_prompts([random(2, VISION_WIDTH) for _ in range(3)]),
        {0: Prompt(random(3, 2, VISION_WIDTH)), 2: Prompt(random(1, VISION_WIDTH), at=1, drop=4)},
    ):
        cases.append((model.encode_image, image, prompts))

    def run() -> list[Tensor]:
        results = []
        for encode, what, prompts in cases:
            features = encode(what, prompts)
            entries = (e if isinstance(e, tuple) else (e,) for e in (prompts or {}).values())
            learned = [p.tokens for entry in entries for p in entry]
            results.append(features)
            if learned:
                functional = (features * torch.linspace(-1, 1, features.shape[-1])).sum()
                results += torch.autograd.grad(functional, learned)
        return results

    before, calls = run(), []
    for tower in (model, model.visual):
        tower.transformer.resblocks[1].mlp.register_forward_hook(lambda *_: calls.append(1))
    after = run()
    assert len(calls) >= len(cases)
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new, old, rtol=1e-9, atol=1e-9)


def replica(module: nn.Module) -> nn.Module:
    """What ``nn.DataParallel`` makes of a module for another device."""
    made = module._replicate_for_data_parallel()
    for name, child in module._modules.items():
        made._modules[name] = None if child is None else replica(child)
    for name, parameter in module._parameters.items():
        if parameter is None:
            made._parameters[name] = None
        else:
            setattr(made, name, parameter * 1)
    return made


def stored(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def called_from_outside(model: CLIP) -> CLIP:
    dtype = model.text_projection.dtype
    with torch.inference_mode():
        model.transformer(torch.randn(CONTEXT, 2, WIDTH).to(dtype))
        model.visual.transformer(torch.randn(17, 2, VISION_WIDTH).to(dtype))
    return model


def changed_for_a_while(model: CLIP) -> CLIP:
    block = model.transformer.resblocks[0]
    block.mlp.register_forward_hook(hook).remove()
    parametrize.register_parametrization(block.mlp.c_fc, "weight", nn.Identity())
    parametrize.remove_parametrizations(block.mlp.c_fc, "weight")
    return model


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF])
@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, stored, replica, called_from_outside, changed_for_a_while, lambda m: m],
)
def test_no_false_alarm(copied, dtype, recwarn):
    model = small(dtype)
    expected = model.encode_text(token_ids()), model.encode_image(images(dtype))
    torch.manual_seed(2)
    ids = token_ids()
    expected = model.encode_text(ids), model.encode_image(images(dtype))
    other = copied(model)
    assert other.changed_part() is None
    exactly(other.encode_text(ids), expected[0])
    exactly(other.encode_image(images(dtype)), expected[1])
    assert not [warning for warning in recwarn if "hooked" in str(warning.message)]
    # nor does a block that was called first under inference mode keep what training cannot use
    x = torch.randn(CONTEXT, 2, WIDTH).to(dtype).requires_grad_()
    other.transformer(x).float().sum().backward()
    assert x.grad.abs().max() > 0


def test_models_from_files_and_under_autocast(recwarn):
    model = build_model(recorded_clip())
    mask = model.transformer.resblocks[0].attn_mask
    exactly(mask, torch.full((77, 77), -torch.inf).triu(1))
    ids = clip.tokenize(["a cat", "a dog"])
    image = torch.randn(2, 3, model.visual.input_resolution, model.visual.input_resolution)
    for change in (CLIP.half, CLIP.float):
        change(model)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=change is CLIP.float):
            model.encode_text(ids), model.encode_image(image)
            model.transformer(torch.randn(77, 2, model.transformer.width).to(model.dtype))
        assert model.changed_part() is None
    assert not [warning for warning in recwarn if "hooked" in str(warning.message)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled(recwarn):
    """The look at the modules is traced with the rest; a change before it counts."""
    model, image = small(), images()
    exactly(torch.compile(model.encode_image, backend="eager")(image), model.encode_image(image))
    assert not [warning for warning in recwarn if "hooked" in str(warning.message)]
    torch._dynamo.reset()
    block = model.visual.transformer.resblocks[-1]
    block.mlp.c_fc = Wrapped(block.mlp.c_fc)
    with pytest.warns(UserWarning, match=r"mlp\.c_fc of this CLIP is hooked"):
        found = torch.compile(model.encode_image, backend="eager")(image)
    exactly(found, openai.encode_image(model, image))
    # blocks that are compiled one by one are called
    model = small()
    expected = model.encode_image(image)
    blocks = model.visual.transformer.resblocks
    for number, block in enumerate(blocks):
        blocks[number] = torch.compile(block, backend="eager")
    with pytest.warns(UserWarning, match=r"resblocks\.0 of this CLIP is hooked"):
        torch.testing.assert_close(model.encode_image(image), expected)
    torch._dynamo.reset()


RESNET_PARTS = [
    *("conv1", "bn2", "relu3", "avgpool", "layer2", "layer2.0", "layer3.0.conv2"),
    *("layer4.0.bn3", "layer1.0.relu1", "layer1.0.downsample", "attnpool", "attnpool.c_proj"),
]


@pytest.mark.parametrize("name", RESNET_PARTS)
def test_changes_of_a_resnet(name, recwarn):
    """It runs through its modules, so that they count without more ado."""
    model, image = small(vision=(1, 1, 1, 1)), images()
    before = model.encode_image(image)
    for way in WAYS:
        changed = copy.deepcopy(model)
        assert changed.changed_part() is None
        WAYS[way](changed.visual, name)
        after = changed.encode_image(image)
        assert (after - before).abs().max() > 1e-3 * before.abs().max(), way
        if way != "wrapped":
            assert changed.changed_part() == f"visual.{name}"
    assert not [warning for warning in recwarn if "hooked" in str(warning.message)]


def test_attention_pool_is_that_of_openai():
    """Written out with the function that OpenAI's calls."""
    pool = small(vision=(1, 1, 1, 1)).visual.attnpool
    image = torch.randn(3, pool.k_proj.in_features, 1, 1).double()
    x = image.flatten(2).permute(2, 0, 1)
    x = torch.cat([x.mean(dim=0, keepdim=True), x]) + pool.positional_embedding[:, None]
    biases = torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias])
    expected, _ = F.multi_head_attention_forward(
        *(x[:1], x, x, x.shape[-1], pool.num_heads, None, biases, None, None, False, 0.0),
        *(pool.c_proj.weight, pool.c_proj.bias),
        use_separate_proj_weight=True,
        q_proj_weight=pool.q_proj.weight,
        k_proj_weight=pool.k_proj.weight,
        v_proj_weight=pool.v_proj.weight,
        need_weights=False,
    )
    torch.testing.assert_close(pool(image), expected.squeeze(0))


def test_whole_towers():
    """Hooks of the tower itself, and features in front of its projection."""
    model, seen = small(), []
    expected = openai.encode_image(model, images())
    for encoders in (model, PlainEncoders(model)):
        handle = shapes(model.visual, seen, "visual")
        encoders.encode_image(images())
        handle.remove()
    assert seen == [("visual", (3, 32))] * 2
    model.visual.register_forward_hook(hook)
    torch.testing.assert_close(model.encode_image(images()), other(expected))
    model = small()
    model.visual.proj, proj = None, model.visual.proj
    for encoders in (model, PlainEncoders(model)):
        torch.testing.assert_close(encoders.encode_image(images()) @ proj, expected)


@pytest.mark.parametrize("build", [build_model, clip.build_model])
def test_design_details_of_changed_copies(build):
    details = {"trainer": "MaPLe", "vision_depth": 0, "language_depth": 0}
    for arguments, named in (((details,), {}), ((), {"design_details": details})):
        with pytest.raises(ValueError, match=r"design_details.*copy of OpenAI's clip.*its clip/"):
            build(small().state_dict(), *arguments, **named)


def test_image_tower_gets_images_of_the_models_type():
    """A forward of somebody's own, on a model in half precision, counts on it."""
    model = small().half()
    seen = []
    model.visual.forward = lambda x, *_: seen.append(x.dtype) or x
    model.encode_image(images().float())
    assert seen == [torch.float16]
