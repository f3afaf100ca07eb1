"""Attention of the class token: equal to a plain computation, and tied to the right patches."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from PIL import Image

from clip.changes import BlockChange, Changes, LowRank, Prompt
from clip.layers import Attention
from dassl.engine import TRAINER_REGISTRY, build_trainer
from support.command_line import run_command
from tests.trainers.test_contract import METHODS
from tools import attention
from trainers import Predictor


def run(*words: object) -> int:
    return run_command(attention.build_parser(), attention.run, [str(word) for word in words])


@settings(deadline=None, max_examples=20)
@given(
    st.integers(1, 3),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 5),
    st.integers(1, 9),
    st.integers(0, 9),
)
@torch.no_grad()
def test_weights_are_those_of_the_fused_attention(n, heads, q_len, k_len, seed):
    torch.manual_seed(seed)
    width = 8 * heads
    attn = Attention(width, heads)
    q, k, v = (2 * torch.randn(n, length, width) for length in (q_len, k_len, k_len))
    weights = attn.weights(q, k)
    assert weights.shape == (n, heads, q_len, k_len)
    assert torch.allclose(weights.sum(-1), torch.ones(n, heads, q_len))
    for head in range(heads):
        part = slice(8 * head, 8 * head + 8)
        scores = torch.einsum("nqd,nkd->nqk", q[..., part], k[..., part]) / 8**0.5
        scores = scores.double().exp()
        plain = (scores / scores.sum(-1, keepdim=True)).float()
        assert torch.allclose(weights[:, head], plain, atol=1e-5)
    mixed = (weights @ attn.split(v)).transpose(1, 2).reshape(q.shape)
    assert torch.allclose(mixed, attn.attend(q, k, v), atol=1e-5)


@pytest.mark.parametrize("layer", [0, 7, 11])
@torch.no_grad()
def test_what_is_seen_is_what_the_pass_computes(tiny_run, monkeypatch, layer):
    predictor = Predictor.load(tiny_run)
    blocks = predictor.model.clip.visual.transformer.resblocks
    image, calls, attend = torch.randn(3, 3, 32, 32), [], F.scaled_dot_product_attention

    def recording(q, k, v, *rest, **options):
        calls.append((q, k, v, attend(q, k, v, *rest, **options)))
        return calls[-1][-1]

    before = predictor.model.image_features(image)
    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", recording)
        found = attention.class_attention(
            blocks[layer], lambda: predictor.model.image_features(image)
        )
    assert torch.equal(predictor.model.image_features(image), before)
    # the weights give the fused attention's result in this pass, and the command shows their mean
    assert len(calls) == len(blocks)
    q, k, v, mixed = calls[layer]
    weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(dim=-1)
    assert torch.allclose(weights @ v, mixed, atol=1e-5)
    assert torch.allclose(found, weights[:, :, 0].mean(dim=1), atol=1e-6)
    assert found.shape == (3, 1 + 16 + 4)


def test_tokens_are_followed_through_the_blocks():
    def tokens(n: int) -> torch.Tensor:
        return torch.zeros(n, 8)

    prompts = {
        0: Prompt(tokens(2)),
        1: (Prompt(tokens(1), at=1), Prompt(tokens(3), drop=4)),
        4: Prompt(tokens(1), at=2, drop=2),
    }
    assert attention.token_origins(4, None, 5) == [0, 1, 2, 3, 4]
    assert attention.token_origins(4, prompts, 0) == [0, 1, 2, 3, 4, -1, -1]
    assert attention.token_origins(4, prompts, 1) == [0, -1, 1, 2, -1, -1, -1]
    assert attention.token_origins(4, prompts, 3) == [0, -1, 1, 2, -1, -1, -1]
    assert attention.token_origins(4, prompts, 11) == [0, -1, -1, -1, -1, -1]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_and_block_has_rows_of_sum_one(fresh, method):
    predictor = fresh(method, f"TRAINER.{TRAINER_REGISTRY.get(method).node}.PREC", "bf16")
    images = torch.randn(2, 3, 32, 32)
    for layer in (0, 5, None):
        for rows in attention.token_weights(predictor, images, layer):
            assert rows[0][0] == "class"
            n_patches = sum(row[0] == "patch" for row in rows)
            assert n_patches == len(predictor.model.clip.visual.positional_embedding) - 1
            for column in ("frozen", "prompted"):
                weights = [row[attention.COLUMNS.index(column)] or 0.0 for row in rows]
                assert sum(weights) == pytest.approx(1, abs=1e-5)
                assert min(weights) >= 0
    kinds = {row[0] for row in rows}
    # other changes, as low-rank terms, add no tokens
    changes = Changes.of(predictor.model.learner.image_changes())
    assert ("prompt" in kinds) == any(change.prompts for change in changes.blocks.values())


def test_command_writes_a_picture_and_a_table_per_image(tiny_run, data_root, tmp_path, capsys):
    folder = data_root / "test-images" / "test"
    images = [folder / "cat" / "0.png", folder / "tree" / "0.png"]
    assert run(tiny_run, *images, "--layer", 10, "--out", tmp_path / "out") == 0
    names = ["0_0.csv", "0_0.png", "1_0.csv", "1_0.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert str(tmp_path / "out" / "1_0.csv") in capsys.readouterr().out
    predictor = Predictor.load(tiny_run)
    batch = torch.stack([predictor.read(image) for image in images])
    for i, expected in enumerate(attention.token_weights(predictor, batch, 10)):
        with open(tmp_path / "out" / f"{i}_0.csv", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        assert tuple(header) == attention.COLUMNS
        assert len(rows) == len(expected) == 1 + 16 + 4
        for row, values in zip(rows, expected, strict=True):
            assert row[:3] == ["" if value is None else str(value) for value in values[:3]]
            for cell, value in zip(row[3:], values[3:], strict=True):
                assert (
                    cell == "" if value is None else float(cell) == pytest.approx(value, abs=1e-6)
                )
        with Image.open(tmp_path / "out" / f"{i}_0.png") as picture:
            assert picture.format == "PNG"
            # three panels, not one flat colour
            assert picture.width > 2 * picture.height
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 100


@pytest.mark.parametrize(
    ("size", "part"),
    [((64, 32), (16, 0, 48, 32)), ((300, 500), (0, 100, 300, 400)), ((40, 40), (0, 0, 40, 40))],
)
def test_maps_lie_over_the_part_that_the_model_sees(tiny_run, size, part):
    found = attention.seen_part(Predictor.load(tiny_run), size)
    assert found == pytest.approx(part, abs=size[0] / 32)


def table(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_heads_and_prompts_side_by_side_over_an_image_of_its_own_size(tiny_run, tmp_path):
    photo = Image.radial_gradient("L").resize((640, 400)).convert("RGB")
    photo.save(tmp_path / "photo.jpg")
    out = tmp_path / "out"
    assert run(tiny_run, tmp_path / "photo.jpg", "--heads", "--prompts", "--out", out) == 0
    with Image.open(out / "photo.png") as picture:
        assert picture.width >= 3 * 640 and picture.height >= 400
    mean, heads = table(out / "photo.csv"), table(out / "photo_heads.csv")
    by_head = [[row for row in heads if row["head"] == number] for number in ("0", "1")]
    assert len(heads) == sum(map(len, by_head)) == 2 * len(mean)
    for column in ("frozen", "prompted"):
        for one, *of_heads in zip(mean, *by_head, strict=True):
            if one[column]:
                values = [float(row[column]) for row in of_heads]
                assert float(one[column]) == pytest.approx(sum(values) / 2, abs=1e-6)
    prompts = table(out / "photo_prompts.csv")
    assert {row["prompt"] for row in prompts} == {"0", "1", "2", "3"}
    assert len(prompts) == 4 * 16
    for name in ("photo_heads.png", "photo_prompts.png"):
        with Image.open(out / name) as picture:
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 100


def test_no_image_is_overwritten(tiny_run, data_root, tmp_path, capsys):
    image = tmp_path / "0.png"
    shutil.copy(data_root / "test-images" / "test" / "cat" / "0.png", image)
    before = image.read_bytes()
    assert run(tiny_run, image, "--out", tmp_path) == 2
    assert str(image) in capsys.readouterr().err
    assert image.read_bytes() == before and list(tmp_path.iterdir()) == [image]


@torch.no_grad()
def test_changes_inside_of_the_block_count(tiny_run):
    """Low-rank terms of queries and other layer norms are those that the pass has."""
    predictor, images = Predictor.load(tiny_run), torch.randn(2, 3, 32, 32)
    model = predictor.model
    block = model.clip.visual.transformer.resblocks[3]
    width = block.ln_1.weight.numel()
    term = LowRank(torch.randn(4, width), torch.randn(width, 4))
    norm = (torch.rand(width) + 0.5, torch.randn(width))

    def weights(change: BlockChange) -> torch.Tensor:
        return attention.class_attention(block, lambda: model.encode_image(images, {3: change}))

    plain = weights(BlockChange(prompts=(Prompt(torch.zeros(1, width)),)))
    changed = weights(BlockChange((Prompt(torch.zeros(1, width)),), query=term))
    normed = weights(BlockChange((Prompt(torch.zeros(1, width)),), ln_1=norm))
    assert not torch.allclose(plain, changed, atol=1e-4)
    assert not torch.allclose(plain, normed, atol=1e-4)
    for found in (plain, changed, normed):
        assert torch.allclose(found.sum(dim=1), torch.ones(2), atol=1e-5)


def test_bad_input(tiny_run, make_cfg, rn_file, data_root, tmp_path, capsys):
    image = data_root / "test-images" / "test" / "cat" / "0.png"
    assert run(tiny_run, image, "--layer", 12, "--out", tmp_path / "out") == 2
    assert "--layer is 12: this backbone has the blocks 0 to 11" in capsys.readouterr().err
    assert run(tiny_run, Path("nothing.png"), "--out", tmp_path / "out") == 2
    assert "nothing.png" in capsys.readouterr().err
    cfg = make_cfg("CoOp", "MODEL.BACKBONE.NAME", rn_file, "INPUT.SIZE", (64, 64))
    build_trainer(cfg).save_model(0, str(tmp_path / "rn"))
    assert run(tmp_path / "rn", image) == 2
    assert "no class token" in capsys.readouterr().err
    coop = build_trainer(make_cfg("CoOp"))
    coop.save_model(0, str(tmp_path / "coop"))
    assert run(tmp_path / "coop", image, "--prompts", "--out", tmp_path / "out") == 2
    assert "CoOp puts no prompts" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
