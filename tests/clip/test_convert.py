"""The command that converts checkpoints: every bit stays, nothing is lost when it cannot."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file

import clip
from clip import convert
from clip.model import CLIP, EXTRA_ENTRIES
from clip.weights import build_model, convert_weights

from .archives import save_torchscript

ROOT = Path(__file__).parents[2]
TEXT = {
    "context_length": 77,
    "vocab_size": 49408,
    "transformer_width": 512,
    "transformer_heads": 8,
    "transformer_layers": 12,
}
FULL_SIZE = {
    "ViT-B-16": {
        "embed_dim": 512,
        "vision_layers": 12,
        "vision_width": 768,
        "vision_patch_size": 16,
    },
    "RN50": {
        "embed_dim": 1024,
        "vision_layers": (3, 4, 6, 3),
        "vision_width": 64,
        "vision_patch_size": None,
    },
}
PARAMETERS = {"ViT-B-16": "149,620,737", "RN50": "102,007,137"}


def random_weights(**sizes: object) -> dict[str, torch.Tensor]:
    """Random weights stored as OpenAI stores them; 150 million are drawn at once, from few."""
    with torch.device("meta"):
        model = CLIP(**TEXT | sizes)
        convert_weights(model)
    few = torch.randn(2**20 + 7, generator=torch.Generator().manual_seed(0)).mul_(0.02)
    weights, start = {}, 0
    for key, value in model.state_dict().items():
        if not value.is_floating_point():
            weights[key] = torch.full(value.shape, 5, dtype=value.dtype)
            continue
        shifted = few.roll(start).to(value.dtype)
        drawn = shifted.repeat(-(-value.numel() // len(few)))[: value.numel()]
        weights[key] = drawn.clone().reshape(value.shape)
        if key.endswith("running_var") or (key.endswith("weight") and value.dim() == 1):
            weights[key] += 1
        start += 101
    return weights


@pytest.fixture(scope="session", params=FULL_SIZE)
def archive(request, tmp_path_factory):
    """Weights of full size, and their archive in OpenAI's format."""
    folder = tmp_path_factory.mktemp("full-size")
    weights = random_weights(image_resolution=224, **FULL_SIZE[request.param])
    path = folder / f"{request.param}.pt"
    save_torchscript(weights, path, 224)
    yield request.param, weights, path
    path.unlink()


@pytest.fixture
def small(tmp_path) -> tuple[dict[str, torch.Tensor], Path]:
    """Weights of a small model, and their archive."""
    sizes = {"image_resolution": 32, "vision_layers": 1, "vision_width": 64, "vision_patch_size": 8}
    text = {"transformer_width": 64, "transformer_heads": 1, "transformer_layers": 1}
    weights = random_weights(embed_dim=16, **sizes, **text | {"vocab_size": 100})
    save_torchscript(weights, tmp_path / "small.pt")
    return weights, tmp_path / "small.pt"


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype, key
        assert torch.equal(found[key], value), key


def test_full_size_round_trip(archive, tmp_path):
    """Archive -> safetensors -> plain state dict, with the archive's weights in all of them."""
    name, weights, path = archive
    target = tmp_path / "a.safetensors"
    if name == "RN50":
        lines = convert.convert(str(path), target)
        assert lines[0].endswith("ResNet, [3, 4, 6, 3] blocks from width 64, pooled by 32 heads")
    else:
        words = [sys.executable, "-m", "clip.convert", path, target]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        lines = done.stdout.splitlines()
        assert "ViT, patches of 16, 12 blocks of width 768, 12 heads, 3072 hidden" in lines[0]
    assert f"parameters: {PARAMETERS[name]}" in lines
    assert f"SHA-256: {hashlib.sha256(target.read_bytes()).hexdigest()}" in lines
    assert lines[0].startswith("image encoder: 224 x 224 pixels, ")
    assert lines[1].endswith("12 blocks of width 512, 8 heads, 2048 hidden units")
    assert "activation: QuickGELU (not stated, so OpenAI's)" in lines
    assert_same_bits(load_file(target), weights)

    convert.convert(str(target), tmp_path / "b.pt")
    plain = torch.load(tmp_path / "b.pt", weights_only=True, mmap=True)
    assert_same_bits(plain, weights)
    for file in (target, tmp_path / "b.pt"):
        file.unlink()


def run(*words: object) -> int:
    return convert.main([str(word) for word in words])


@pytest.mark.parametrize("suffix", convert.SUFFIXES)
def test_types(small, tmp_path, suffix):
    weights, path = small
    single, half = tmp_path / f"single{suffix}", tmp_path / f"half{suffix}"
    assert run(path, single, "--dtype", "fp32") == 0
    assert_same_bits(clip.load_state_dict(single), {k: v.float() for k, v in weights.items()})
    assert run(single, half, "--dtype", "fp16") == 0
    assert_same_bits(clip.load_state_dict(half), weights)


@pytest.mark.parametrize("suffix", convert.SUFFIXES)
def test_same_input_gives_same_bytes(small, tmp_path, suffix):
    for name in ("one", "another"):
        assert run(small[1], tmp_path / f"{name}{suffix}") == 0
    one, another = ((tmp_path / f"{name}{suffix}").read_bytes() for name in ("one", "another"))
    assert one == another


def test_embedded_model_by_name(tmp_path, capsys):
    assert run("tiny", tmp_path / "new folder" / "tiny.safetensors") == 0
    expected = clip.load_state_dict("tiny")
    assert_same_bits(load_file(tmp_path / "new folder" / "tiny.safetensors"), expected)
    assert "image encoder: 32 x 32 pixels, ViT" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", convert.DTYPES)
def test_open_clip_file_needs_no_architecture_afterwards(tmp_path, capsys, dtype):
    config = {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": 32,
            "layers": 1,
            "width": 96,
            "head_width": 32,
            "patch_size": 8,
            "mlp_ratio": 3.0,
        },
        "text_cfg": {"width": 64, "heads": 2, "layers": 1, "vocab_size": 100},
    }
    statistics = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    content = {"model_cfg": config, "preprocess_cfg": statistics}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    theirs = open_clip.CLIP(**config).eval()
    torch.save(theirs.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    source, target = tmp_path / "open_clip_pytorch_model.bin", tmp_path / "a.safetensors"
    assert run(source, target, "--dtype", dtype) == 0
    output = capsys.readouterr().out
    assert "ViT, patches of 8, 1 block of width 96, 3 heads, 288 hidden units" in output
    assert "activation: GELU\n" in output
    assert "mean [0.5, 0.5, 0.5], standard deviation [0.25, 0.25, 0.25]" in output
    weights = clip.load_state_dict(target)
    assert set(EXTRA_ENTRIES) <= weights.keys()
    if dtype != "fp16":
        assert_same_bits(weights, clip.load_state_dict(source))
        images = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            found, expected = build_model(weights).encode_image(images), theirs.visual(images)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    else:
        assert weights["text_projection"].dtype == torch.float16
        assert torch.equal(weights["text_projection"], theirs.text_projection.half())


def test_existing_file_is_kept_unless_forced(small, tmp_path, capsys):
    target = tmp_path / "a.pt"
    target.write_bytes(b"precious")
    assert run(small[1], target) == 2
    assert capsys.readouterr().err == (
        f"error: {target} exists: give another name, or --force to replace it\n"
    )
    assert target.read_bytes() == b"precious"
    assert run(small[1], target, "--force") == 0
    assert_same_bits(torch.load(target, weights_only=True), small[0])
    # also in place
    assert run(target, target, "--force", "--dtype", "fp32") == 0
    assert torch.load(target, weights_only=True)["text_projection"].dtype == torch.float32


@pytest.mark.filterwarnings("ignore:large.pt does not say")
@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("small.pt", "a.bin", "must end in .pt or .safetensors"),
        ("small.pt", "folder.pt", "folder.pt is a folder"),
        ("none.pt", "a.pt", "no such checkpoint file: "),
        ("vit-b16", "a.pt", "did you mean 'ViT-B/16'?"),
        ("open_clip:ViT-B-16/laion", "a.pt", "did you mean 'laion400m_e31'"),
        ("cut.pt", "a.pt", "it is truncated, damaged"),
        ("text.pt", "a.pt", "it is truncated, damaged"),
        ("other.pt", "a.pt", "not a CLIP state dict: "),
        ("extra.pt", "a.pt", "does not fit the CLIP it describes"),
        ("large.pt", "a.pt --dtype fp16", "text_projection holds values that are not finite"),
    ],
)
def test_what_cannot_be_converted(small, tmp_path, capsys, monkeypatch, source, target, message):
    weights, path = small
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "cut.pt").write_bytes(path.read_bytes()[:-1000])
    (tmp_path / "text.pt").write_text("hello")
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "other.pt")
    torch.save(weights | {"extra": torch.zeros(1)}, tmp_path / "extra.pt")
    large = weights | {"text_projection": weights["text_projection"].float() + 65536 * 2}
    torch.save(large, tmp_path / "large.pt")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    assert run(source, *target.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert sorted(tmp_path.rglob("*")) == before


def test_what_was_written_is_read_back(small, tmp_path, capsys, monkeypatch):
    """A file that does not hold what was to be written never gets its name."""
    target = tmp_path / "a.safetensors"
    target.write_bytes(b"precious")
    save_file = safetensors.torch.save_file

    def save_damaged(tensors, path, metadata):
        save_file(tensors, path, metadata)
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)

    monkeypatch.setattr(safetensors.torch, "save_file", save_damaged)
    assert run(small[1], target, "--force") == 2
    assert "was not written: read back, " in capsys.readouterr().err
    assert target.read_bytes() == b"precious"
    assert {path.name for path in tmp_path.iterdir()} == {"a.safetensors", "small.pt"}
