from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import importlib
import pickle
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

import clip
from clip import tiny
from clip.loading import _MODELS
from clip.model import CLIP
from clip.weights import build_model, convert_weights
from support.download import cache_folder

from .archives import save_torchscript

ROOT = Path(__file__).parents[2]
PARITY = ROOT / "tests/fixtures/parity"
VOCABULARY = 600
ARCHITECTURES = {
    "vit": {
        "embed_dim": 32,
        "image_resolution": 32,
        "vision_layers": 2,
        "vision_width": 64,
        "vision_patch_size": 8,
    },
    "resnet": {
        "embed_dim": 32,
        "image_resolution": 64,
        "vision_layers": (1, 2, 1, 1),
        "vision_width": 8,
        "vision_patch_size": None,
    },
}


@functools.cache
def random_clip(kind):
    """A random CLIP whose weights are stored as OpenAI stores them."""
    torch.manual_seed(0)
    model = CLIP(
        **ARCHITECTURES[kind],
        context_length=77,
        vocab_size=VOCABULARY,
        transformer_width=64,
        transformer_heads=1,
        transformer_layers=2,
    )
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 2)
    convert_weights(model)
    return model.eval()


def weights_of(kind):
    return {key: value.clone() for key, value in random_clip(kind).state_dict().items()}


def save_legacy(state_dict, path):
    torch.save(state_dict, path, _use_new_zipfile_serialization=False)


def save_parallel(state_dict, path):
    torch.save({f"module.{key}": value for key, value in state_dict.items()}, path)


def save_under(key):
    return lambda weights, path: torch.save({"epoch": 3, key: weights, "loss": [0.5]}, path)


FORMATS = {
    "torchscript": ("a.pt", save_torchscript),
    "plain": ("a.pt", torch.save),
    "legacy": ("a.bin", save_legacy),
    "nested": ("a.pth", save_under("state_dict")),
    "of a loop": ("a.pth", save_under("model_state_dict")),
    "of another loop": ("a.pth", save_under("model")),
    "parallel": ("a.ckpt", save_parallel),
    "safetensors": ("a.safetensors", save_file),
}


def assert_same_tensors(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype, key
        assert torch.equal(found[key], value), key


def assert_same_model(found, expected):
    """Weights and features in float32 are bit-equal."""
    assert_same_tensors(found.state_dict(), expected.state_dict())
    found, expected = (build_model(model.state_dict()).float() for model in (found, expected))
    generator = torch.Generator().manual_seed(1)
    size = expected.visual.input_resolution
    images = torch.randn(2, 3, size, size, generator=generator)
    ids = torch.zeros(3, 77, dtype=torch.long)
    ids[:, :6] = torch.randint(1, VOCABULARY - 1, (3, 6), generator=generator)
    ids[range(3), [6, 3, 5]] = VOCABULARY - 1
    with torch.no_grad():
        assert torch.equal(found.encode_image(images), expected.encode_image(images))
        assert torch.equal(found.encode_text(ids), expected.encode_text(ids))


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("form", FORMATS)
def test_local_file(tmp_path, kind, form, recwarn):
    name, save = FORMATS[form]
    save(weights_of(kind), tmp_path / name)
    state_dict = clip.load_state_dict(tmp_path / name)
    assert_same_tensors(state_dict, weights_of(kind))
    assert_same_model(build_model(state_dict), random_clip(kind))
    assert not [str(w.message) for w in recwarn]


def test_float32_file(tmp_path):
    weights = {k: v.float() if v.is_floating_point() else v for k, v in weights_of("vit").items()}
    torch.save(weights, tmp_path / "a.pt")
    state_dict = clip.load_state_dict(str(tmp_path / "a.pt"))
    assert_same_tensors(state_dict, weights)
    assert_same_model(build_model(state_dict), random_clip("vit"))


def test_path_below_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save(weights_of("vit"), tmp_path / "a.pt")
    assert_same_tensors(clip.load_state_dict("~/a.pt"), weights_of("vit"))


@contextlib.contextmanager
def serving(folder):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_archive_by_name(tmp_path, monkeypatch, kind):
    """Download, cache, TorchScript, model: the way of the official files."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    save_torchscript(weights_of(kind), tmp_path / "a.pt")
    sha256 = hashlib.sha256((tmp_path / "a.pt").read_bytes()).hexdigest()
    (tmp_path / "served" / sha256).mkdir(parents=True)
    (tmp_path / "a.pt").rename(tmp_path / "served" / sha256 / "a.pt")
    with serving(tmp_path / "served") as base:
        monkeypatch.setitem(_MODELS, "ViT-B/16", f"{base}/{sha256}/a.pt")
        first = clip.load_state_dict("ViT-B/16", root=tmp_path / "cache")
    model, _ = clip.load("ViT-B/16", "cpu", download_root=tmp_path / "cache")  # server is gone
    assert_same_tensors(first, weights_of(kind))
    assert model.dtype == torch.float32 and not model.training
    assert_same_model(build_model(model.state_dict()), random_clip(kind))


def upstream_load_clip_to_cpu(name):
    """What trainers written for OpenAI's package do with the names of `clip.clip`."""
    module = importlib.import_module("clip.clip")
    path = module._download(module._MODELS[name])
    try:
        archive = torch.jit.load(path, map_location="cpu").eval()
        state_dict = None
    except RuntimeError:
        state_dict = torch.load(path, map_location="cpu")
    return module.build_model(state_dict or archive.state_dict())


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """A packed file in the place of the embedded one; an empty cache folder."""
    path = tmp_path / "source" / "tiny.safetensors"
    notes = {"token_seed": 3, "token_std": 0.02}
    tiny.pack(weights_of("vit"), range(1, VOCABULARY, 2), path, notes)
    monkeypatch.setattr(tiny, "FOLDER", path.parent)
    monkeypatch.setenv("CLIP_CACHE", str(tmp_path / "cache"))
    return path


@pytest.mark.filterwarnings("ignore:.*torch.jit.load.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.load.*:DeprecationWarning")
def test_embedded_backbone_the_upstream_way(packed, tmp_path):
    model = upstream_load_clip_to_cpu("tiny")
    assert_same_model(model, build_model(clip.load_state_dict("tiny")))

    (expanded,) = (tmp_path / "cache").iterdir()
    before = expanded.stat()
    assert_same_model(upstream_load_clip_to_cpu("tiny"), model)
    assert expanded.stat().st_mtime_ns == before.st_mtime_ns  # not written twice
    with pytest.raises(RuntimeError):
        torch.jit.load(expanded)
    assert_same_tensors(clip.load_state_dict(expanded), clip.load_state_dict("tiny"))

    # Another file under the same name is another expansion.
    tiny.pack(weights_of("vit"), [1], packed)
    assert_same_model(upstream_load_clip_to_cpu("tiny"), build_model(tiny.unpack(packed)))
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_embedded_backbone_leaves_no_copy(packed, tmp_path):
    model, preprocess = clip.load("tiny", device="cpu")
    assert_same_model(build_model(model.state_dict()), build_model(tiny.unpack(packed)))
    assert preprocess(Image.new("RGB", (50, 40))).shape == (3, 32, 32)
    assert not (tmp_path / "cache").exists()


def test_missing_embedded_file(monkeypatch, tmp_path):
    monkeypatch.setattr(tiny, "FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"tiny.safetensors"):
        clip.load_state_dict("tiny")


def test_recorded_clip_as_packed_file(tmp_path):
    """The recorded reference model goes through pack, load and build to its own features."""
    with np.load(PARITY / "tiny_clip_vit.npz") as file:
        weights = {key: torch.from_numpy(file[key]) for key in file.files}
    ids, rows = weights.pop("token_embedding.ids"), weights.pop("token_embedding.rows")
    weights[tiny.TABLE] = torch.zeros(49408, rows.shape[1])
    weights[tiny.TABLE][ids.long()] = rows.float()
    tiny.pack(weights, ids, tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").stat().st_size < 7_000_000

    state_dict = clip.load_state_dict(tmp_path / "a.safetensors")
    assert_same_tensors(state_dict, {key: value.float() for key, value in weights.items()})
    model, _ = clip.load(str(tmp_path / "a.safetensors"), device="cpu")
    with np.load(PARITY / "zeroshot_vit.npz") as file:
        keys = ("images", "tokens", "image_features_raw", "text_features_raw")
        recorded = {key: torch.from_numpy(file[key]) for key in keys}
    with torch.no_grad():
        found = {
            "image_features_raw": model.encode_image(recorded["images"]),
            "text_features_raw": model.encode_text(recorded["tokens"].long()),
        }
    for key, value in found.items():
        assert (value - recorded[key]).abs().max() < 2e-5 * recorded[key].abs().max(), key


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.integers(0, VOCABULARY - 1), unique=True, max_size=50),
    st.none() | st.tuples(st.integers(0, 2**32 - 1), st.floats(0.001, 1)),
)
def test_packing_keeps_what_it_promises(ids, noise):
    notes = {"source": "test"} | ({"token_seed": noise[0], "token_std": noise[1]} if noise else {})
    weights = weights_of("vit")
    with tempfile.TemporaryDirectory() as folder:
        first, second = Path(folder, "a.safetensors"), Path(folder, "b.safetensors")
        tiny.pack(weights, ids, first, notes)
        tiny.pack(weights, sorted(ids), second, dict(reversed(notes.items())))
        assert first.read_bytes() == second.read_bytes()
        found, again = tiny.unpack(first), tiny.unpack(second)
    assert_same_tensors(found, again)
    table, found_table = weights.pop(tiny.TABLE), found.pop(tiny.TABLE)
    assert_same_tensors(found, {key: value.half().float() for key, value in weights.items()})
    assert found_table.shape == table.shape and found_table.dtype == torch.float32
    assert torch.equal(found_table[ids], table[ids].half().float())
    others = [i for i in range(VOCABULARY) if i not in ids]
    if noise:
        expected = np.random.RandomState(noise[0]).standard_normal(table.shape) * noise[1]
        assert np.array_equal(found_table[others].numpy(), expected.astype(np.float32)[others])
        assert found_table[others].std() == pytest.approx(noise[1], rel=0.05)
    else:
        assert not found_table[others].any()


def test_packing_keeps_integers(tmp_path):
    weights = weights_of("resnet")
    weights["visual.bn1.num_batches_tracked"] = torch.tensor(70_000)
    tiny.pack(weights, [5], tmp_path / "a.safetensors")
    found = clip.load_state_dict(tmp_path / "a.safetensors")["visual.bn1.num_batches_tracked"]
    assert found.dtype == torch.int64 and found == 70_000


def test_packing_refuses(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(ValueError, match="names 1 token more than once"):
        tiny.pack(weights_of("vit"), [3, 4, 3], path)
    with pytest.raises(ValueError, match=r"reach from 0 to 600, but .* rows 0 to 599"):
        tiny.pack(weights_of("vit"), [0, 600], path)
    with pytest.raises(ValueError, match="both token_seed and token_std"):
        tiny.pack(weights_of("vit"), [0], path, {"token_seed": 1})
    weights = weights_of("vit")
    weights["logit_scale"] = torch.tensor(1e5)
    with pytest.raises(ValueError, match="logit_scale holds values that are not finite"):
        tiny.pack(weights, [0], path)
    assert not list(tmp_path.iterdir())


def test_unpacking_another_safetensors_file(tmp_path):
    save_file(weights_of("vit"), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"a.safetensors lacks token_embedding.ids"):
        tiny.unpack(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("vit-b16", "ViT-B/16"),
        ("ViT-B-32", "ViT-B/32"),
        ("ViT-L/14-336", "ViT-L/14@336px"),
        ("rn 50", "RN50"),
        ("tinny", "tiny"),
        ("openai/clip-vit-base-patch16", "ViT-B/16"),
        ("openai/clip-vit-large-patch14", "ViT-L/14"),
    ],
)
def test_unknown_name(name, near):
    with pytest.raises(ValueError) as caught:
        clip.load_state_dict(name)
    message = str(caught.value)
    assert repr(name) in message and f"did you mean {near!r}?" in message
    assert all(model in message for model in clip.available_models())


def test_missing_path(tmp_path):
    for name in (tmp_path / "none.pt", "./none", "weights/none.safetensors"):
        with pytest.raises(FileNotFoundError, match=r"no such checkpoint file: .*none"):
            clip.load_state_dict(name)
    with pytest.raises(FileNotFoundError, match="is a folder"):
        clip.load_state_dict(tmp_path)


def test_other_values_than_were_written(tmp_path):
    path, weights = tmp_path / "vit.pt", weights_of("vit")
    torch.save(weights, path)
    content, values = path.read_bytes(), weights["visual.proj"].numpy().tobytes()
    assert content.count(values) == 1
    path.write_bytes(content.replace(values, bytes(len(values))))
    with pytest.raises(RuntimeError, match=r"vit\.pt: it is truncated, damaged.*copy it again"):
        clip.load_state_dict(path)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("left", [0.0, 0.001, 0.5, 0.999])
def test_truncated_file(tmp_path, form, left):
    name, save = FORMATS[form]
    path = tmp_path / name
    save(weights_of("vit"), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * left)])
    with pytest.raises(RuntimeError) as caught:
        clip.load_state_dict(path)
    message = str(caught.value)
    assert str(path) in message and f"({path.stat().st_size} bytes)" in message
    assert "copy it again from where it came from" in message


@given(content=st.binary(max_size=200))
def test_arbitrary_bytes(tmp_path_factory, content):
    for name in ("a.pt", "a.safetensors"):
        path = tmp_path_factory.getbasetemp() / name
        path.write_bytes(content)
        with pytest.raises(RuntimeError, match="cannot read the checkpoint"):
            clip.load_state_dict(path)


def save_pickle(module, path):
    with open(path, "wb") as file:
        pickle.dump(module, file)


@pytest.mark.parametrize("save", [torch.save, save_legacy, save_pickle])
def test_a_whole_module_is_named_and_not_run(tmp_path, save):
    save(random_clip("vit"), tmp_path / "a.pt")
    with pytest.raises(RuntimeError) as caught:
        clip.load_state_dict(tmp_path / "a.pt")
    message = str(caught.value)
    assert "holds pickled objects (clip.model.CLIP, " in message
    assert "torch.save(model.state_dict(), FILE)" in message
    assert not {"elete", "remove", "truncated", "\x1b"} & set(re.findall(r"\w+|\x1b", message))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\n<!DOCTYPE html><html>Sign in</html>", "it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"", "it is empty"),
    ],
)
def test_what_was_downloaded_in_its_place(tmp_path, content, says):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(RuntimeError, match=says):
        clip.load_state_dict(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "no state dict"),
        (torch.zeros(1), "no state dict, but a Tensor"),
        ({"epoch": 3, "model": {}}, "no state dict.*model_state_dict, model; .* are epoch, model"),
        ({"net": {"w": torch.zeros(1)}, "args": {}}, "the file's keys are net, args"),
        ({"fc.weight": torch.zeros(1)}, "text_projection"),
    ],
)
def test_no_clip(tmp_path, content, message):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=rf"a\.pt: .*{message}"):
        clip.load_state_dict(tmp_path / "a.pt")


def test_missing_keys_are_named(tmp_path):
    weights = weights_of("vit")
    del weights["ln_final.weight"], weights["visual.class_embedding"]
    torch.save(weights, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt: .*visual\.class_embedding.*ln_final\.weight"):
        clip.load_state_dict(tmp_path / "a.pt")


def test_jit_is_refused():
    with pytest.raises(NotImplementedError, match="jit=True is not supported"):
        clip.load("RN50", jit=True)


def test_preprocessing(packed):
    _, preprocess = clip.load("tiny", device="cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 61, 4), dtype=np.uint8)
    image = Image.fromarray(pixels, "RGBA")
    resized = image.resize((int(32 * 61 / 40), 32), Image.Resampling.BICUBIC)
    left = round((resized.width - 32) / 2)
    cropped = resized.crop((left, 0, left + 32, 32)).convert("RGB")
    expected = np.asarray(cropped).transpose(2, 0, 1) / 255
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    expected = (expected - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    np.testing.assert_allclose(preprocess(image).numpy(), expected, atol=1e-5)
    assert preprocess(Image.new("L", (32, 32))).shape == (3, 32, 32)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_half_precision_on_cuda(packed):
    model, preprocess = clip.load("tiny")
    assert model.dtype == torch.float16 and model.logit_scale.is_cuda
    image = preprocess(Image.new("RGB", (32, 32)))[None].cuda()
    assert model.encode_image(image).isfinite().all()


@pytest.mark.weights
@pytest.mark.parametrize(
    ("name", "embed_dim", "resolution", "text_width"),
    [
        ("RN50", 1024, 224, 512),
        ("RN101", 512, 224, 512),
        ("RN50x4", 640, 288, 640),
        ("RN50x16", 768, 384, 768),
        ("RN50x64", 1024, 448, 1024),
        ("ViT-B/32", 512, 224, 512),
        ("ViT-B/16", 512, 224, 512),
        ("ViT-L/14", 768, 224, 768),
        ("ViT-L/14@336px", 768, 336, 768),
    ],
)
def test_official_weights(name, embed_dim, resolution, text_width):
    if not (cache_folder() / _MODELS[name].rsplit("/", 1)[1]).is_file():
        pytest.skip(f"{name} is not in {cache_folder()}")
    model, preprocess = clip.load(name, device="cpu")
    assert model.visual.input_resolution == resolution
    assert model.text_projection.shape == (text_width, embed_dim)
    if name == "ViT-B/16":
        assert sum(parameter.numel() for parameter in model.parameters()) == 149_620_737
    image = preprocess(Image.new("RGB", (resolution, resolution)))[None]
    with torch.no_grad():
        logits, _ = model(image, clip.tokenize(["a dark image", "a cat"]))
    assert logits.shape == (1, 2) and logits.isfinite().all()


def test_names_of_the_package():
    module = importlib.import_module("clip.clip")
    assert clip.clip is module
    assert clip.available_models() == list(module._MODELS)
    assert clip.tokenize is module.tokenize and clip.load is module.load
    assert clip.build_model is module.build_model is build_model


def test_import_is_light():
    """Nothing heavy; and open_clip, which takes seconds, for weights of open_clip only."""
    code = """
import sys, clip, clip.convert
clip.convert.build_parser()
print(set(sys.modules) & {"torch"})
clip.load_state_dict("tiny")
print({"torchvision", "requests", "open_clip"} & set(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\nset()\n"
