"""The encoders against the plain computation, over random models, class lists and prompts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adaptation.savings.chunks import encode_text_in_chunks
from clip import layers as clip_layers
from clip import model as clip_model
from clip import packed_attention
from clip.changes import Changes, Prompt, deep_prompts, join_changes
from clip.layers import ResidualAttentionBlock, fused_mlp
from clip.model import CLIP, VisionTransformer
from clip.packing import PackedText
from tests.clip import plain
from tests.clip.small import (
    CONTEXT,
    LAYERS,
    VISION_WIDTH,
    VOCABULARY,
    WIDTH,
    assert_same,
    names,
    tensors,
    token_ids,
)


@settings(max_examples=40, deadline=None)
@given(rows=names, words=st.lists(st.integers(1, 50), max_size=3))
def test_text_without_prompts(model, rows, words):
    ids = token_ids([words + row for row in rows])
    torch.testing.assert_close(model.encode_text(ids), plain.encode_text(model, ids))


@settings(max_examples=60, deadline=None)
@given(
    rows=names,
    words=st.lists(st.integers(1, 50), max_size=3),
    n=st.integers(1, 5),
    depth=st.integers(1, LAYERS),
    seed=st.integers(0, 99),
)
def test_deep_text_prompts(model, rows, words, n, depth, seed):
    """Shared prompts behind the start token, replaced block by block; words stay behind them."""
    ids = token_ids([words + row for row in rows])
    layers = tensors(*[(n, WIDTH)] * depth, seed=seed)
    prompts = deep_prompts(layers, at=1)
    assert_same(model.encode_text(ids, prompts), plain.encode_text(model, ids, prompts), layers)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), rows=names, seed=st.integers(0, 99))
def test_any_text_prompts(model, data, rows, seed):
    """Any number of tokens inserted and dropped at any place, shared or per class, in any block."""
    ids = token_ids(rows)
    lengths = [len(row) + 2 for row in rows]
    prompts, learned = {}, []
    for layer in sorted(data.draw(st.sets(st.integers(0, LAYERS - 1), min_size=1))):
        entries = []
        for _ in range(data.draw(st.integers(1, 2))):
            n = data.draw(st.integers(0, 3))
            drop = data.draw(st.integers(0, min(2, min(lengths) - 1)))
            if data.draw(st.booleans()):
                at = data.draw(st.integers(0, min(lengths) - drop - 1))
            else:
                at = tuple(data.draw(st.integers(0, length - drop - 1)) for length in lengths)
            if max(lengths) + n - drop > CONTEXT:
                continue
            shape = (len(rows), n, WIDTH) if data.draw(st.booleans()) else (n, WIDTH)
            tokens = tensors(shape, seed=seed + 100 * len(learned))[0]
            learned.append(tokens)
            entries.append(Prompt(tokens, at=at, drop=drop))
            lengths = [length + n - drop for length in lengths]
        prompts[layer] = entries
    fast, slow = model.encode_text(ids, prompts), plain.encode_text(model, ids, prompts)
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-9)
    learned = [tokens for tokens in learned if tokens.numel()]
    if learned:
        assert_same(fast, slow, learned)


@settings(max_examples=25, deadline=None)
@given(
    rows=names,
    batch=st.integers(1, 3),
    n=st.integers(1, 4),
    per_class=st.booleans(),
    seed=st.integers(0, 99),
)
def test_text_prompts_per_sample(model, rows, batch, n, per_class, seed):
    """One set of prompts per image encodes all classes once per image, with and without depth."""
    ids = token_ids(rows)
    shape = (batch, len(rows) if per_class else 1, n, WIDTH)
    ctx, deep = tensors(shape, (n, WIDTH), seed=seed)
    fast = model.encode_text(ids, {0: Prompt(ctx, at=1), 2: Prompt(deep, at=1, drop=n)})
    slow = torch.stack(
        [
            plain.encode_text(
                model,
                ids,
                {
                    0: Prompt(sample.expand(len(rows), n, WIDTH), at=1),
                    2: Prompt(deep, at=1, drop=n),
                },
            )
            for sample in ctx
        ]
    )
    assert_same(fast, slow, [ctx, deep])


def test_many_classes(model):
    """Enough tokens for many attention groups, names of one token and of many among them."""
    rows = [[1 + (7 * c + i) % 50 for i in range(c * c % 15)] for c in range(40)]
    ids = token_ids(rows)
    layers = tensors((5, WIDTH), (5, WIDTH))
    prompts = deep_prompts(layers, at=1)
    assert_same(model.encode_text(ids, prompts), plain.encode_text(model, ids, prompts), layers)


@settings(max_examples=40, deadline=None)
@given(
    rows=names,
    size=st.integers(1, 7),
    batch=st.integers(0, 2),
    per_class=st.booleans(),
    behind=st.booleans(),
    seed=st.integers(0, 99),
)
def test_chunks_of_classes(model, rows, size, batch, per_class, behind, seed):
    """Any prompts, any chunk size: features and gradients of the whole class list."""
    text = PackedText(token_ids(rows))
    lead = ((batch,) if batch else ()) + ((len(rows) if per_class else 1,) if batch else ())
    shape = (*lead, 2, WIDTH) if batch or not per_class else (len(rows), 2, WIDTH)
    at = tuple(len(row) + 1 for row in rows) if behind else 1
    layers = tensors(shape, (2, WIDTH), seed=seed)
    prompts = {0: Prompt(layers[0], at=at), 1: Prompt(layers[1], at=at, drop=2)}
    chunked = encode_text_in_chunks(model, text, prompts, size)
    assert_same(chunked, model.encode_text(text, prompts), layers)
    with torch.no_grad():
        torch.testing.assert_close(encode_text_in_chunks(model, text, prompts, size), chunked)


def test_chunks_are_encoded_again_for_the_backward_pass(model, monkeypatch):
    seen, encode = [], model.encode_text

    def counted(text, prompts):
        seen.append(len(text))
        return encode(text, prompts)

    monkeypatch.setattr(model, "encode_text", counted)
    text = PackedText(token_ids([[1], [2, 3], [4], [5], [6]]))
    ctx = torch.ones(2, WIDTH).double().requires_grad_()
    kept = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        features = encode_text_in_chunks(model, text, {0: Prompt(ctx, at=1)}, size=2)
    assert seen == [2, 2, 1]
    # what is kept until the backward pass is no larger than what went in and came out
    assert sum(kept) <= ctx.numel() + features.numel()
    features.sum().backward()
    assert sorted(seen) == [1, 1, 2, 2, 2, 2]
    wrong = {0: Prompt(torch.zeros(3, 1, WIDTH).double(), at=1)}
    with pytest.raises(ValueError, match="3 sets of prompt tokens for 5 classes"):
        encode_text_in_chunks(model, text, wrong, size=2)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)],
)
def test_mlp_is_quick_gelu_between_linear_maps(dtype, tolerance):
    """The scaled products are the plain formula, and one hidden layer is kept for backward."""
    torch.manual_seed(0)
    mlp = ResidualAttentionBlock(16, 1).mlp.requires_grad_(False)
    x, weights = torch.randn(3, 5, 16).double(), torch.randn(3, 5, 16).double()
    slow, fast = (x.clone().requires_grad_() for _ in range(2))
    mlp.double()
    expected = mlp.c_proj(mlp.gelu(mlp.c_fc(slow)))
    (expected * weights).sum().backward()
    mlp.to(dtype)
    kept = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = fused_mlp(mlp, fast.to(dtype))
    (result.double() * weights).sum().backward()
    assert result.dtype == dtype
    assert (result - expected).abs().max() <= tolerance * expected.abs().max()
    assert (fast.grad - slow.grad).abs().max() <= tolerance * slow.grad.abs().max()
    assert kept.count((15, 64)) == 1


@pytest.mark.parametrize("model", [()], indirect=True)
def test_sequences_in_parts(model, monkeypatch):
    """More classes, and samples of them, than a kernel can be started for."""
    ids = token_ids([[3, 4, 5], [6], [7, 8], [3, 9], [4] * 6])
    (ctx,) = tensors((3, 1, 2, WIDTH))
    whole = model.encode_text(ids, {0: Prompt(ctx, at=1)})
    monkeypatch.setattr(packed_attention, "MOST_SEQUENCES", 4)
    assert_same(model.encode_text(ids, {0: Prompt(ctx, at=1)}), whole, [ctx])


@pytest.mark.parametrize("longest", [7, 20])
@pytest.mark.parametrize("model", [()], indirect=True)
def test_one_long_name_attends_in_groups(model, longest):
    """Pads would cost more than a mask does."""
    text = PackedText(token_ids([[3] * longest, *([c] for c in range(4, 50))]))
    kind = type(text.layout(tuple(length - 1 for length in text.lengths)).attention(1))
    assert kind is (
        packed_attention.CausalSequences if longest == 7 else packed_attention.AttentionGroups
    )


def test_derivatives_of_the_mlp():
    """Of its input and all weights, against finite differences."""
    torch.manual_seed(0)
    mlp = ResidualAttentionBlock(3, 1, mlp_width=5).mlp.double()
    names, weights = zip(*mlp.named_parameters(), strict=True)

    class Fused(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = mlp

        def forward(self, x: Tensor) -> Tensor:
            return fused_mlp(self.mlp, x)

    def run(x: Tensor, *values: Tensor) -> Tensor:
        values = {f"mlp.{name}": value for name, value in zip(names, values, strict=True)}
        return torch.func.functional_call(Fused(), values, x)

    inputs = (torch.randn(2, 4, 3).double().requires_grad_(), *weights)
    assert torch.autograd.gradcheck(run, inputs)


@settings(max_examples=25, deadline=None)
@given(
    images=st.integers(1, 3),
    at=st.sampled_from([None, 1, 3]),
    sizes=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=LAYERS),
    per_image=st.booleans(),
    seed=st.integers(0, 99),
)
def test_image_prompts(model, images, at, sizes, per_image, seed):
    """Tokens added and dropped at the end, also more than were added, or behind the class token."""
    x = torch.randn(images, 3, 32, 32, generator=torch.Generator().manual_seed(seed)).double()
    lead = (images,) if per_image else ()
    layers = tensors(*[(*lead, n, VISION_WIDTH) for n, _ in sizes], seed=seed)
    prompts = {
        i: Prompt(tokens, at=at, drop=0 if i == 0 else drop)
        for i, (tokens, (_, drop)) in enumerate(zip(layers, sizes, strict=True))
    }
    fast, slow = model.encode_image(x, prompts), plain.encode_image(model, x, prompts)
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-9)
    learned = [tokens for tokens in layers if tokens.numel()]
    if learned:
        assert_same(fast, slow, learned)


def test_large_image_batches_in_parts(model, monkeypatch):
    """Without gradients on the CPU; prompts of every image keep the batch together."""
    x = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()
    shared, own = tensors((2, VISION_WIDTH), (5, 2, VISION_WIDTH))
    sizes, encode = [], VisionTransformer._encode

    def counted(tower, images, *rest):
        sizes.append(len(images))
        return encode(tower, images, *rest)

    hidden = model.visual.positional_embedding.nbytes * 4  # of one image
    monkeypatch.setattr(clip_model, "LARGEST_ON_CPU", 2.5 * hidden)
    monkeypatch.setattr(VisionTransformer, "_encode", counted)
    for prompts, parts in (
        (None, [2, 2, 1]),
        ({0: Prompt(shared)}, [2, 2, 1]),
        ({1: Prompt(own)}, [5]),
    ):
        sizes.clear()
        with torch.no_grad():
            features = model.encode_image(x, prompts)
        assert sizes == parts
        torch.testing.assert_close(features, plain.encode_image(model, x, prompts))
        model.encode_image(x, prompts)
        assert sizes == [*parts, 5], "with gradients everything is kept anyway"
    with torch.no_grad():
        assert model.encode_image(x[:0]).shape == (0, features.shape[1])


def test_float32_agrees_to_rounding(model):
    single = CLIP(32, 32, LAYERS, VISION_WIDTH, 8, CONTEXT, VOCABULARY, WIDTH, 1, LAYERS)
    single.load_state_dict(model.state_dict())
    single.requires_grad_(False)
    ids = token_ids([[3, 4, 5], [7], [3, 9, 9, 9, 1]])
    layers = tensors(*[(4, WIDTH)] * 3)
    fast = single.encode_text(ids, deep_prompts([t.float() for t in layers], at=1))
    slow = plain.encode_text(model, ids, deep_prompts(layers, at=1))
    assert (fast - slow).abs().max() < 2e-5 * slow.abs().max()


def mlp_rows(monkeypatch) -> list[int]:
    """Rows that go into the MLPs of all blocks from now on, one entry per call."""
    rows = []

    def counted(mlp: torch.nn.Module, x: Tensor) -> Tensor:
        rows.append(x[..., 0].numel())
        return fused_mlp(mlp, x)

    monkeypatch.setattr(clip_layers, "fused_mlp", counted)
    return rows


def test_work_grows_with_real_tokens_only(model, monkeypatch):
    """Packed: shared prompts and padding cost nothing per class in the linear layers."""
    rows, seen = [[1], [2] * 7, [3], [4], [5]], mlp_rows(monkeypatch)
    model.encode_text(token_ids(rows), {0: Prompt(torch.zeros(4, WIDTH).double(), at=1)})
    assert seen[:-1] == [1 + 4 + sum(len(row) + 1 for row in rows)] * (LAYERS - 1)


def test_last_blocks_finish_one_token(model, monkeypatch):
    seen = mlp_rows(monkeypatch)
    model.encode_text(token_ids([[1, 2], [3]]))
    assert len(seen) == LAYERS and seen[-1] == 2
    model.encode_image(torch.zeros(1, 3, 32, 32).double())
    assert seen[LAYERS:] == [17] * (LAYERS - 1) + [1]


def test_packed_once_gives_the_same(model):
    ids = token_ids([[1, 2], [3]])
    packed = PackedText(ids)
    ctx = torch.ones(2, WIDTH).double()
    for prompts in (None, {0: Prompt(ctx, at=1)}, {0: Prompt(ctx, at=(3, 2))}):
        for _ in range(2):
            torch.testing.assert_close(
                model.encode_text(packed, prompts), plain.encode_text(model, ids, prompts)
            )


def test_length_first_transformer_is_the_same_encoder(model):
    """Callers written for upstream's package run the transformer themselves."""
    ids = token_ids([[1, 2], [3, 4, 5]])
    x = model.token_embedding(ids) + model.positional_embedding
    x = model.ln_final(model.transformer(x.permute(1, 0, 2)).permute(1, 0, 2))
    features = x[torch.arange(2), ids.argmax(-1)] @ model.text_projection
    torch.testing.assert_close(features, model.encode_text(ids))


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({LAYERS: Prompt(torch.zeros(1, WIDTH), at=1)}, "lower the prompt depth"),
        ({0: Prompt(torch.zeros(1, WIDTH))}, "needs a position"),
        ({0: Prompt(torch.zeros(1, WIDTH), at=9)}, "position 9"),
        ({0: Prompt(torch.zeros(1, WIDTH), at=1, drop=3)}, "end-of-text"),
        ({0: Prompt(torch.zeros(1, WIDTH + 1), at=1)}, "width 65"),
        ({0: Prompt(torch.zeros(3, 1, WIDTH), at=1)}, "3 sets"),
        ({0: Prompt(torch.zeros(30, WIDTH), at=1)}, "context holds 24"),
        ({0: Prompt(torch.zeros(1, WIDTH), at=(1, 1, 1))}, "3 prompt positions for 2"),
        (
            {i: Prompt(torch.zeros(i + 2, 1, 1, WIDTH), at=1) for i in range(2)},
            r"batches of different size: \[2, 3\]",
        ),
    ],
)
@pytest.mark.parametrize("plain", [False, True])
def test_impossible_text_prompts(model, prompts, message, plain):
    with pytest.raises(ValueError, match=message):
        model.encode_text(token_ids([[1, 2], [3, 4]]), prompts, plain)


@pytest.mark.parametrize("plain", [False, True])
def test_impossible_image_prompts(model, plain):
    image = torch.zeros(2, 3, 32, 32).double()
    with pytest.raises(ValueError, match="cannot drop 99"):
        model.encode_image(image, {1: Prompt(torch.zeros(1, VISION_WIDTH), drop=99)}, plain)
    with pytest.raises(ValueError, match="at position 0"):
        model.encode_image(image, {0: Prompt(torch.zeros(1, VISION_WIDTH), at=0)}, plain)
    with pytest.raises(ValueError, match="cannot drop 17"):
        model.encode_image(image, {1: Prompt(torch.zeros(1, VISION_WIDTH), drop=17)}, plain)
    with pytest.raises(ValueError, match="2 sequences"):
        model.encode_image(image, {0: Prompt(torch.zeros(3, 1, VISION_WIDTH))}, plain)
    with pytest.raises(ValueError, match="for text only"):
        model.encode_image(image, {0: Prompt(torch.zeros(1, VISION_WIDTH), at=(1, 2))}, plain)


def test_impossible_prompts_themselves():
    with pytest.raises(ValueError, match="dimensions"):
        Prompt(torch.zeros(3))
    with pytest.raises(ValueError, match="-1"):
        Prompt(torch.zeros(1, 3), drop=-1)


def test_empty_class_list():
    with pytest.raises(ValueError, match="one row per class"):
        PackedText(torch.zeros(0, 77, dtype=torch.long))


def test_attention_uses_fused_kernels(model):
    """Without a fused kernel that takes the shapes, PyTorch would raise here."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    ids = token_ids([[1, 2], [3], [4, 5, 6]])
    prompts = {0: Prompt(torch.ones(2, WIDTH).double(), at=1)}
    expected = model.encode_text(ids, prompts)
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]):
        torch.testing.assert_close(model.encode_text(ids, prompts), expected)


@settings(max_examples=25, deadline=None)
@given(
    rows=names,
    n=st.integers(1, 3),
    depth=st.integers(1, LAYERS),
    calls=st.integers(1, 3),
    kind=st.sampled_from(["shared", "per class", "per sample"]),
    seed=st.integers(0, 99),
)
def test_joined_text_prompts(model, rows, n, depth, calls, kind, seed):
    """One call with the prompts of several gives what they give one by one."""
    ids = token_ids(rows)
    sizes = [call + 1 if kind == "per sample" else 1 for call in range(calls)]
    prompts, first = [], []
    for call, size in enumerate(sizes):
        lead = {"shared": (), "per class": (len(rows),), "per sample": (size, 1)}[kind]
        start, *deeper = tensors((*lead, n, WIDTH), *[(n, WIDTH)] * (depth - 1), seed=seed + call)
        first += [start, *deeper]
        prompts.append(deep_prompts([start, *deeper], at=1))
    joined = model.encode_text(ids, join_changes(prompts, sizes, dims=4))
    alone = [
        model.encode_text(ids, one).reshape(-1, len(rows), joined.shape[-1]) for one in prompts
    ]
    assert_same(joined, torch.cat(alone), first)


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    n=st.integers(1, 3),
    depth=st.integers(1, LAYERS),
    per_image=st.booleans(),
    seed=st.integers(0, 99),
)
def test_joined_image_prompts(model, sizes, n, depth, per_image, seed):
    images = tensors(*[(size, 3, 32, 32) for size in sizes], seed=seed + 50)
    prompts, first = [], []
    for call, size in enumerate(sizes):
        shape = (size, n, VISION_WIDTH) if per_image else (n, VISION_WIDTH)
        first += tensors(*[shape] * depth, seed=seed + call)
        prompts.append(deep_prompts(first[-depth:]))
    joined = model.encode_image(torch.cat(images), join_changes(prompts, sizes, dims=3))
    alone = [model.encode_image(*pair) for pair in zip(images, prompts, strict=True)]
    assert_same(joined, torch.cat(alone), first)


def test_prompts_that_cannot_be_joined():
    none = Changes.of(None)
    assert not join_changes([none, none], [1, 1], dims=3)
    a, b = deep_prompts(tensors((2, WIDTH))), deep_prompts(tensors((3, WIDTH)))
    (prompt,) = a.prompts()
    for other in (b, none, {1: prompt}, {0: Prompt(prompt.tokens, at=1)}):
        with pytest.raises(ValueError, match="differ in place or length"):
            join_changes([a, Changes.of(other)], [1, 1], dims=3)
