"""What changes inside of blocks: both encoders, fast and plain, against the plain computation."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from adaptation.savings.chunks import encode_text_in_chunks
from clip import packed_attention, tokenize
from clip.changes import BlockChange, Changes, LowRank, Prompt, join_changes
from clip.layers import Attention
from clip.model import CLIP
from clip.packing import PackedText
from clip.weights import build_model, convert_weights
from tests.clip import plain, small
from tests.clip.small import LAYERS, VISION_WIDTH, WIDTH, assert_same, names, token_ids
from tests.parity_files import recorded_clip, relative_error

#: every part of a ``BlockChange`` but its prompts
PARTS = ("query", "key", "value", "out", "ln_1", "ln_2", "branch")

#: number of a block -> parts that change there
parts_of_blocks = st.dictionaries(
    st.integers(0, LAYERS - 1), st.sets(st.sampled_from(PARTS), min_size=1), min_size=1, max_size=3
)
shares = st.sampled_from([0.0, 0.3, 1.0])


class Drawn:
    """Learned tensors in the order in which they are made, for gradients."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float64) -> None:
        self.generator, self.dtype = torch.Generator().manual_seed(seed), dtype
        self.learned: list[Tensor] = []

    def tensor(self, *shape: int, scale: float = 1.0, mean: float = 0.0) -> Tensor:
        noise = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        self.learned.append((mean + scale * noise).to(self.dtype).requires_grad_())
        return self.learned[-1]

    def part(self, name: str, width: int) -> object:
        if name.startswith("ln"):
            return self.tensor(width, scale=0.3, mean=1.0), self.tensor(width, scale=0.3)
        down, up = (self.tensor(*shape, scale=0.2) for shape in ((3, width), (width, 3)))
        if name == "branch":
            bias = self.tensor(3)
            return lambda x: F.linear(torch.tanh(F.linear(x, down, bias)), up)
        return LowRank(down, up, scale=0.7)

    def inside(
        self, width: int, parts: dict[int, set[str]], prompts: dict[int, list[Prompt]] | None = None
    ) -> Changes:
        """Changes of these parts, and these prompts."""
        prompts = prompts or {}
        return Changes(
            {
                number: BlockChange(
                    tuple(prompts.get(number, ())),
                    **{name: self.part(name, width) for name in sorted(parts.get(number, ()))},
                )
                for number in sorted(parts.keys() | prompts.keys())
            }
        )


def images(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed)).double()


@settings(max_examples=25, deadline=None)
@given(
    rows=names,
    parts=parts_of_blocks,
    place=st.sampled_from(["none", "prefix", "behind the names"]),
    first=st.integers(0, LAYERS - 2),
    n=st.integers(1, 3),
    per_class=st.booleans(),
    keep=shares,
    embedded=st.booleans(),
    seed=st.integers(0, 99),
)
def test_text(model, rows, parts, place, first, n, per_class, keep, embedded, seed):
    """Any parts of any blocks, with prompts that later ones replace in part."""
    drawn, ids, prompts = Drawn(seed), token_ids(rows), {}
    at = 1 if place == "prefix" else tuple(len(row) + 1 for row in rows)
    if place != "none":
        lead = (len(rows),) if per_class else ()
        prompts[first] = [Prompt(drawn.tensor(*lead, n, WIDTH), at=at, embedded=embedded)]
        prompts[first + 1] = [Prompt(drawn.tensor(n, WIDTH), at=at, drop=n, keep=keep)]
    changes = drawn.inside(WIDTH, parts, prompts)
    slow = plain.encode_text(model, ids, changes)
    assert_same(model.encode_text(ids, changes), slow, drawn.learned)
    assert_same(model.encode_text(ids, changes, plain=True), slow, drawn.learned)


@settings(max_examples=15, deadline=None)
@given(
    rows=names,
    parts=parts_of_blocks,
    per_class=st.booleans(),
    keep=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 99),
)
def test_text_with_prompts_of_every_sample(model, rows, parts, per_class, keep, seed):
    drawn, ids = Drawn(seed), token_ids(rows)
    first = drawn.tensor(2, len(rows) if per_class else 1, 2, WIDTH)
    later = drawn.tensor(2, 1, 2, WIDTH)
    prompts = {0: [Prompt(first, at=1)], 2: [Prompt(later, at=1, drop=2, keep=keep)]}
    changes = drawn.inside(WIDTH, parts, prompts)

    def of_sample(sample: int) -> Changes:
        return changes.with_prompts(
            lambda p: Prompt(
                p.tokens[sample].expand(len(rows), -1, -1), at=p.at, drop=p.drop, keep=p.keep
            )
        )

    slow = torch.stack([plain.encode_text(model, ids, of_sample(sample)) for sample in range(2)])
    assert_same(model.encode_text(ids, changes), slow, drawn.learned)
    assert_same(model.encode_text(ids, changes, plain=True), slow, drawn.learned)


@settings(max_examples=25, deadline=None)
@given(
    parts=parts_of_blocks,
    at=st.sampled_from([None, 1]),
    first=st.integers(0, LAYERS - 2),
    n=st.integers(0, 3),
    per_image=st.booleans(),
    keep=shares,
    embedded=st.booleans(),
    n_rows=st.sampled_from([None, 1, 4]),
    seed=st.integers(0, 99),
)
def test_image(model, parts, at, first, n, per_image, keep, embedded, n_rows, seed):
    """As for text; and the first rows of the last block in place of the features."""
    drawn, prompts, x = Drawn(seed), {}, images(2, seed)
    if n:
        lead = (2,) if per_image else ()
        prompts[first] = [Prompt(drawn.tensor(n, VISION_WIDTH), at=at, embedded=embedded)]
        later = drawn.tensor(*lead, n, VISION_WIDTH)
        prompts[first + 1] = [Prompt(later, at=at, drop=n, keep=keep)]
    changes = drawn.inside(VISION_WIDTH, parts, prompts)
    slow = plain.encode_image(model, x, changes, n_rows)
    for plain_too in (False, True):
        fast = model.visual(x, changes, n_rows=n_rows, plain=plain_too)
        assert_same(fast, slow, drawn.learned)
    with torch.no_grad():
        torch.testing.assert_close(model.visual(x, changes, n_rows=n_rows), slow)


def test_prompts_of_the_input_layer_come_first(model):
    """Those behind its embedding follow, in whatever order they are given."""
    drawn, ids = Drawn(0), token_ids([[1, 2], [3]])
    first, behind = drawn.tensor(2, WIDTH), drawn.tensor(3, WIDTH)
    pair = [Prompt(behind, at=2, drop=1, embedded=True), Prompt(first, at=1)]
    expected = plain.encode_text(model, ids, {0: pair})
    for plain_too in (False, True):
        for prompts in (pair, pair[::-1]):
            found = model.encode_text(ids, {0: prompts}, plain=plain_too)
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("number", [0, LAYERS - 1])
def test_every_part_counts(model, part, number):
    """In the first block, and in the last one, which is finished for some rows only."""
    ids, x = token_ids([[1, 2], [3]]), images(1)
    text = Drawn(0).inside(WIDTH, {number: {part}})
    vision = Drawn(0).inside(VISION_WIDTH, {number: {part}})
    assert relative_error(model.encode_text(ids, text), model.encode_text(ids)) > 1e-3
    assert relative_error(model.encode_image(x, vision), model.encode_image(x)) > 1e-3


@settings(max_examples=10, deadline=None)
@given(rows=names, parts=parts_of_blocks, size=st.integers(1, 4), seed=st.integers(0, 99))
def test_chunks_of_classes(model, rows, parts, size, seed):
    drawn, text = Drawn(seed), PackedText(token_ids(rows))
    prompts = {0: [Prompt(drawn.tensor(len(rows), 2, WIDTH), at=1)]}
    changes = drawn.inside(WIDTH, parts, prompts)
    chunked = encode_text_in_chunks(model, text, changes, size)
    assert_same(chunked, model.encode_text(text, changes), drawn.learned)


def test_kept_shares_that_cannot_be():
    tokens = torch.zeros(2, WIDTH)
    with pytest.raises(ValueError, match="drop as many as are inserted"):
        Prompt(tokens, at=1, drop=1, keep=0.5)
    for keep in (-0.1, 1.5):
        with pytest.raises(ValueError, match=rf"share of {keep}"):
            Prompt(tokens, at=1, drop=2, keep=keep)


def test_a_block_that_does_not_exist(model):
    changes = {LAYERS: BlockChange(ln_1=(torch.ones(WIDTH), torch.zeros(WIDTH)))}
    for way in (False, True):
        with pytest.raises(ValueError, match=rf"block {LAYERS}, but the encoder has {LAYERS}"):
            model.encode_text(token_ids([[1]]), changes, way)
        with pytest.raises(ValueError, match=rf"block {LAYERS}, but the encoder has {LAYERS}"):
            model.encode_image(images(1), changes, way)


@pytest.mark.parametrize("way", [False, True])
@pytest.mark.parametrize("n_rows", [0, 18])
def test_rows_that_do_not_exist(model, n_rows, way):
    with pytest.raises(ValueError, match=rf"{n_rows} rows .* 1 to 17"):
        model.visual(images(1), n_rows=n_rows, plain=way)


def replace_block(model: CLIP) -> None:
    model.transformer.resblocks[1] = nn.Sequential(model.transformer.resblocks[1])


#: what somebody may do to a model so that a change of block 1 would pass by it
DEEDS: dict[str, Callable[[CLIP, pytest.MonkeyPatch], object]] = {
    "hooked": lambda model, _: model.transformer.resblocks[1].mlp.register_forward_hook(print),
    "replaced": lambda model, _: replace_block(model),
    "stack": lambda model, _: model.transformer.register_forward_hook(print),
    "class": lambda _, patch: patch.setattr(
        Attention, "forward", lambda *args, **words: nn.MultiheadAttention.forward(*args, **words)
    ),
}


@pytest.mark.filterwarnings("ignore:.*hooked, wrapped, replaced or patched")
@pytest.mark.parametrize("deed", DEEDS)
def test_blocks_of_somebodys_own_are_not_passed_by(deed, monkeypatch):
    model, changes = small.build(), Drawn(0).inside(WIDTH, {1: {"query"}})
    DEEDS[deed](model, monkeypatch)
    with pytest.raises(ValueError, match=r"change.* would pass by") as refused:
        model.encode_text(token_ids([[1]]), changes)
    assert "\n" not in str(refused.value)


@pytest.mark.filterwarnings("ignore:.*hooked, wrapped, replaced or patched")
def test_other_blocks_may_be_hooked(model):
    """And what stands around them, which runs module by module then."""
    own, ids = deepcopy(model), token_ids([[1, 2], [3]])
    calls, changes = [], Drawn(0).inside(WIDTH, {1: set(PARTS)})
    for part in (own.transformer.resblocks[0].ln_1, own.ln_final):
        part.register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(own.encode_text(ids, changes), model.encode_text(ids, changes))
    assert len(calls) == 2


def test_a_resnet_has_no_blocks_to_change():
    model = build_model(recorded_clip("rn")).float()
    image = torch.zeros(1, 3, *[model.visual.input_resolution] * 2)
    changes = {0: BlockChange(ln_1=(torch.ones(4), torch.zeros(4)))}
    for arguments in ({"changes": changes}, {"n_rows": 2}):
        with pytest.raises(ValueError, match="need a vision transformer"):
            model.visual(image, **arguments)
    for way in (False, True):
        with pytest.raises(ValueError, match="need a vision transformer"):
            model.encode_image(image, changes, way)


def test_changes_inside_cannot_be_joined():
    changes = Drawn(0).inside(WIDTH, {1: {"key"}})
    with pytest.raises(ValueError, match="only prompts can"):
        join_changes([changes, changes], [1, 1], dims=4)


@pytest.mark.parametrize("kinds", [("cpu",), ()], ids=["groups", "sequences"])
@pytest.mark.parametrize("way", [False, True], ids=["fast", "plain"])
@pytest.mark.parametrize(("precision", "limit"), [("amp", 2e-2), ("bf16", 1e-1), ("fp16", 2e-2)])
def test_half_precision(monkeypatch, precision, limit, way, kinds):
    """Features and gradients near those of float32, of float32 tensors."""
    monkeypatch.setattr(packed_attention, "GROUPS_ON", kinds)
    text = PackedText(torch.cat([tokenize(words) for words in ("a cat", "a golden retriever")]))

    def run(precision: str) -> list[Tensor]:
        model = build_model(recorded_clip()).float().requires_grad_(False)
        half = {"amp": torch.float16, "bf16": torch.bfloat16}.get(precision)
        if precision == "fp16":
            convert_weights(model)
        elif half:
            convert_weights(model, half, convolutions=False)
        drawn, parts = Drawn(0, torch.float32), {0: {"branch", "value"}, 7: {"ln_1"}, 11: PARTS}
        widths = model.transformer.width, model.visual.transformer.width
        tokens = [
            Prompt(drawn.tensor(2, widths[0]), at=1),
            Prompt(drawn.tensor(2, widths[0]), at=1, drop=2, keep=0.5),
        ]
        prompts = {6: tokens[:1], 7: tokens[1:]}
        texts, vision = drawn.inside(widths[0], parts, prompts), drawn.inside(widths[1], parts)
        with torch.autocast("cpu", dtype=half, enabled=half is not None):
            text_features = model.encode_text(text, texts, way).float()
            image_features = model.encode_image(images(2), vision, way).float()
        (text_features.sum() + image_features.sum()).backward()
        return [text_features, image_features, *(tensor.grad for tensor in drawn.learned)]

    for value, exact in zip(run(precision), run("fp32"), strict=True):
        assert value.dtype == torch.float32
        assert relative_error(value, exact.detach()) < limit
