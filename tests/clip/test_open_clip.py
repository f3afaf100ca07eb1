"""Weights of open_clip in our model: the same features, the same prompts, and clear refusals."""

from __future__ import annotations

import copy
import functools
import http.server
import json
import subprocess
import sys
import threading
from pathlib import Path

import huggingface_hub
import open_clip
import pytest
import torch
from open_clip.pretrained import _PRETRAINED
from PIL import Image
from safetensors.torch import save_file

import clip
from adaptation.trainer import load_clip
from clip import openclip
from clip.changes import Prompt, deep_prompts
from clip.loading import check_name
from clip.model import EXTRA_ENTRIES
from clip.weights import build_model

from . import plain

ROOT = Path(__file__).parents[2]
PLAIN = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 96, "head_width": 32, "patch_size": 8},
    "text_cfg": {"width": 48, "heads": 3, "layers": 2},
}
RESNET = {"layers": [1, 2, 1, 1], "width": 8, "image_size": 64, "patch_size": None}


def changed(*changes: tuple[str, object]) -> dict:
    """The plain configuration with other values; names as in ``vision_cfg.width``."""
    config = copy.deepcopy(PLAIN)
    for name, value in changes:
        *parents, key = name.split(".")
        node = config
        for parent in parents:
            node = node[parent]
        node[key] = value
    return config


CONFIGS = {
    "gelu": PLAIN,
    "quickgelu": changed(("quick_gelu", True)),
    "ratio": changed(("vision_cfg.mlp_ratio", 4.3637), ("text_cfg.mlp_ratio", 2.0)),
    "context": changed(("text_cfg.context_length", 40), ("text_cfg.vocab_size", 49500)),
    "own-text": changed(("custom_text", True), ("nonscalar_logit_scale", True)),
    "resnet": changed(("vision_cfg", RESNET), ("text_cfg.heads", 4)),
    "resnet-heads": changed(("vision_cfg", RESNET | {"head_width": 32}), ("quick_gelu", True)),
}


def random_model(config: dict) -> torch.nn.Module:
    """A model of open_clip with random weights, none of them at a value it starts from."""
    torch.manual_seed(0)
    config = copy.deepcopy(config)
    custom = config.pop("custom_text", False)
    model = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config)
    for key, value in model.state_dict().items():
        if value.is_floating_point():
            value.add_(0.05 * torch.rand_like(value))
        elif key.endswith("num_batches_tracked"):
            value.fill_(7)
    return model.eval()


def write(folder: Path, config: dict, model: torch.nn.Module, name: str = "weights.pt") -> str:
    """Write configuration and weights; returns the name by which they are loaded."""
    (folder / "config.json").write_text(json.dumps(config))
    weights = model.state_dict()
    save = save_file if name.endswith(".safetensors") else torch.save
    save(weights, folder / name)
    return f"open_clip:{folder / 'config.json'}={folder / name}"


def token_ids(model) -> torch.Tensor:
    texts = ["a photo of a cat.", "two dogs", "a photo of a forget-me-not, a type of flower."]
    return clip.tokenize(texts, model.context_length)


def assert_same_features(ours, theirs, tolerance=1e-5):
    size = ours.visual.input_resolution
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    ids = token_ids(theirs)
    with torch.no_grad():
        for found, expected in (
            (ours.encode_image(images), theirs.encode_image(images)),
            (ours.encode_text(ids), theirs.encode_text(ids)),
        ):
            assert found.shape == expected.shape
            assert (found - expected).abs().max() < tolerance * expected.abs().max()
        assert ours.logit_scale.exp() == theirs.logit_scale.exp().reshape(())


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_features_are_those_of_open_clip(tmp_path, kind, name):
    theirs = random_model(CONFIGS[kind])
    ours, _ = clip.load(write(tmp_path, CONFIGS[kind], theirs, name), "cpu")
    assert ours.dtype == torch.float32 and not ours.training
    assert_same_features(ours, theirs)


@pytest.mark.parametrize("kind", CONFIGS)
def test_state_dict_says_all_there_is_to_know(tmp_path, kind):
    """Saved and loaded by path alone, and rebuilt from the model's own state dict."""
    theirs = random_model(CONFIGS[kind])
    weights = clip.load_state_dict(write(tmp_path, CONFIGS[kind], theirs))
    torch.save(weights, tmp_path / "converted.pt")
    again = clip.load_state_dict(tmp_path / "converted.pt")
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[key], weights[key]) for key in weights)
    assert_same_features(build_model(build_model(again).state_dict()), theirs)


def test_traits_decide(tmp_path):
    """Without them the same weights give other features: what is compared above can differ."""
    config = changed(("vision_cfg.width", 128), ("text_cfg.width", 128), ("text_cfg.heads", 4))
    theirs = random_model(config)
    weights = clip.load_state_dict(write(tmp_path, config, theirs))
    assert_same_features(build_model(weights), theirs)
    for name in ("quick_gelu", "vision_heads", "transformer_heads"):
        others = {key: value for key, value in weights.items() if key != name}
        with pytest.raises(AssertionError):
            assert_same_features(build_model(others), theirs, tolerance=1e-3)
    assert not {"image_mean", "image_std"} & weights.keys()


@functools.cache
def full_size() -> dict[str, torch.Tensor]:
    """Random weights of ViT-B/32, drawn fast."""
    with torch.device("meta"):
        shapes = open_clip.create_model("ViT-B-32", device="meta").state_dict()
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for key, value in shapes.items():
        weights[key] = torch.empty(value.shape).normal_(0, 0.02, generator=generator)
        if key.endswith("weight") and value.dim() == 1:
            weights[key] += 1
    return weights | {"logit_scale": torch.tensor(4.0)}


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-32-quickgelu"])
def test_full_size_architecture(name):
    with torch.device("meta"):
        theirs = open_clip.create_model(name, device="meta").eval()
    theirs.load_state_dict(full_size(), assign=True)
    mask = torch.full((77, 77), float("-inf")).triu(1)
    theirs.attn_mask = mask  # a buffer that is not among the weights
    source = openclip.find(f"open_clip:{name}={__file__}")
    ours = build_model(source.convert(full_size()))
    assert_same_features(ours, theirs)
    assert type(ours.visual.transformer.resblocks[0].mlp.gelu).__name__ == (
        "QuickGELU" if name.endswith("quickgelu") else "GELU"
    )


def test_supported_architectures():
    supported = set()
    for name in open_clip.list_models():
        try:
            openclip.find(f"open_clip:{name}={__file__}")
            supported.add(name)
        except ValueError as error:
            assert str(error).startswith(f"{name} of open_clip is not supported: "), name
    assert {
        *("RN50", "RN50x64-quickgelu", "ViT-B-16", "ViT-B-32-quickgelu", "ViT-L-14-336"),
        *("ViT-H-14", "ViT-g-14", "ViT-bigG-14", "ViT-S-32-alt"),
    } <= supported
    assert not {name for name in supported if not name.startswith(("ViT-", "RN"))}


@pytest.mark.parametrize("name", ["RN50x4", "ViT-B-16-plus-240", "ViT-g-14"])
def test_every_entry_has_a_place(name):
    """Large architectures, built without values."""
    with torch.device("meta"):
        theirs = open_clip.create_model(name, device="meta")
    build_model(openclip.find(f"open_clip:{name}={__file__}").convert(theirs.state_dict()))


@pytest.mark.parametrize("kind", ["gelu", "ratio"])
def test_prompts_take_the_fast_path(tmp_path, kind):
    """Packed text and early-finished images equal the plain computation, also in the gradient."""
    config = CONFIGS[kind]
    model = build_model(clip.load_state_dict(write(tmp_path, config, random_model(config))))
    model = model.double().requires_grad_(False)
    generator = torch.Generator().manual_seed(2)

    def tokens(width):
        return [
            torch.randn(2, width, generator=generator).double().requires_grad_() for _ in range(2)
        ]

    text, image = tokens(48), tokens(96)
    ids = token_ids(model)
    images = torch.randn(2, 3, 32, 32, generator=generator).double()
    per_class = {0: [Prompt(text[0], at=1)], 1: [Prompt(text[1], at=(2, 1, 3), drop=1)]}
    for encode, slow, given, prompts, learned in (
        (model.encode_text, plain.encode_text, ids, deep_prompts(text, at=1), text),
        (model.encode_text, plain.encode_text, ids, per_class, text),
        (model.encode_image, plain.encode_image, images, deep_prompts(image), image),
    ):
        found, expected = encode(given, prompts), slow(model, given, prompts)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        for one, other in zip(
            torch.autograd.grad(found.square().sum(), learned),
            torch.autograd.grad(expected.square().sum(), learned),
            strict=True,
        ):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def test_configuration_beside_a_published_file(tmp_path):
    theirs = random_model(PLAIN)
    preprocess = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.25], "interpolation": "bicubic"}
    content = {"model_cfg": PLAIN, "preprocess_cfg": preprocess}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    torch.save(theirs.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    ours, prepare = clip.load(str(tmp_path / "open_clip_pytorch_model.bin"), "cpu")
    assert_same_features(ours, theirs)
    grey = prepare(Image.new("RGB", (40, 40), (51, 102, 153)))[:, 0, 0]
    torch.testing.assert_close(grey, torch.tensor([-1.5, 0.0, 1.2]))


def test_training_checkpoint_of_open_clip(tmp_path):
    """What open_clip's training writes: more than the weights, in data-parallel naming."""
    theirs = random_model(PLAIN)
    weights = {f"module.{key}": value for key, value in theirs.state_dict().items()}
    write(tmp_path, PLAIN, theirs)
    torch.save({"epoch": 3, "name": "run", "state_dict": weights}, tmp_path / "epoch_3.pt")
    ours, _ = clip.load(f"open_clip:{tmp_path / 'config.json'}={tmp_path / 'epoch_3.pt'}", "cpu")
    assert_same_features(ours, theirs)


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A small architecture with weights that open_clip downloads from a local server."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "served").mkdir()
    (tmp_path / "small-for-test.json").write_text(json.dumps(PLAIN))
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", dict(open_clip.factory._MODEL_CONFIGS))
    paths = open_clip.factory._MODEL_CONFIG_PATHS
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", list(paths))
    open_clip.add_model_config(tmp_path / "small-for-test.json")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def end_headers(self):  # what the hub says of a file
            self.send_header("ETag", '"0123456789abcdef"')
            self.send_header("X-Repo-Commit", 40 * "a")
            super().end_headers()

    handler = functools.partial(Quiet, directory=tmp_path / "served")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    half = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    tags = {
        "noise_s1": {"url": f"{url}/noise.pt", **half},
        "noise_quick": {"url": f"{url}/noise.pt", "quick_gelu": True, "resize_mode": "squash"},
        "gone": {"url": f"{url}/gone.pt"},
        "hub": {"hf_hub": "org/small/", **half},
    }
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    monkeypatch.setattr(
        huggingface_hub.constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        url + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setitem(_PRETRAINED, "small-for-test", tags)
    yield tmp_path
    server.shutdown()
    thread.join()
    server.server_close()


def test_download_by_name(published):
    theirs = random_model(PLAIN)
    torch.save(theirs.state_dict(), published / "served" / "noise.pt")
    check_name("open_clip:small-for-test/noise_s1")
    assert not (published / "cache").exists()
    # open_clip itself takes tags in either spelling
    weights = clip.load_state_dict("open_clip:small-for-test/Noise-S1", published / "cache")
    assert weights["image_mean"].tolist() == weights["image_std"].tolist() == [0.5, 0.5, 0.5]
    assert_same_features(build_model(weights), theirs)
    (published / "served" / "noise.pt").unlink()
    again = clip.load_state_dict("open_clip:small-for-test/noise_s1", published / "cache")
    assert again.keys() == weights.keys()


def test_download_from_the_hub(published):
    theirs = random_model(PLAIN)
    folder = published / "served" / "org" / "small" / "resolve" / "main"
    folder.mkdir(parents=True)
    save_file(theirs.state_dict(), folder / "open_clip_model.safetensors")
    ours, _ = clip.load("open_clip:small-for-test/hub", "cpu", False, published / "cache")
    assert_same_features(ours, theirs)
    assert list((published / "cache").glob("models--org--small/**/open_clip_model.safetensors"))


def test_a_tag_knows_its_activation(published):
    quick = changed(("quick_gelu", True))
    theirs = random_model(quick)
    torch.save(theirs.state_dict(), published / "served" / "noise.pt")
    with pytest.warns(UserWarning, match="prepared with resize_mode 'squash'"):
        ours, _ = clip.load("open_clip:small-for-test/noise_quick", "cpu", False, published / "c")
    assert_same_features(ours, theirs)
    # the same for a file that has been downloaded elsewhere
    file = published / "served" / "noise.pt"
    with pytest.warns(UserWarning, match="squash"):
        ours, _ = clip.load(f"open_clip:small-for-test/noise_quick={file}", "cpu")
    assert_same_features(ours, theirs)


def test_failed_download(published):
    name = "open_clip:small-for-test/gone"
    with pytest.raises(RuntimeError, match=r"could not download .*gone.*=FILE"):
        clip.load_state_dict(name, published / "cache")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("ViT-B-61/openai", ["no architecture 'ViT-B-61'", "did you mean 'ViT-B-16'"]),
        ("ViT-B/16", ["ViT-B-16 names no weights", "laion2b_s34b_b88k", "=FILE"]),
        ("ViT-B-16/laion2b", ["no ViT-B-16 'laion2b'", "did you mean 'laion2b_s34b_b88k'?"]),
        ("ViT-B-16/laoin400m_e32", ["did you mean 'laion400m_e32'"]),
        ("ViT-S-16/openai", ["no ViT-S-16 'openai'", "Its tags: none", "=FILE"]),
        ("", ["no architecture ''"]),
        ("=weights.pt", ["no architecture ''"]),
        ("ViT-B-16-SigLIP/webli", ["init_logit_bias = -10", "timm_model_name"]),
        ("coca_ViT-B-32/laion2b_s13b_b90k", ["multimodal_cfg", "attentional_pool", "embed_cls"]),
        ("ViT-L-14-CLIPA/datacomp1b", ["no_ln_pre = True", "pool_type = 'avg'"]),
        ("roberta-ViT-B-32/laion2b_s12b_b32k", ["hf_model_name = 'roberta-base'"]),
    ],
)
def test_wrong_names(name, parts):
    with pytest.raises(ValueError) as caught:
        check_name(f"open_clip:{name}")
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        ("init_logit_bias", -10),
        ("multimodal_cfg", {"width": 512}),
        ("vision_cfg.patch_dropout", 0.5),
        ("vision_cfg.no_ln_pre", True),
        ("vision_cfg.pool_type", "avg"),
        ("vision_cfg.attentional_pool", True),
        ("vision_cfg.ls_init_value", 1e-4),
        ("vision_cfg.qk_norm", True),
        ("vision_cfg.timm_model_name", "vit_base_patch16_224"),
        ("vision_cfg.image_size", [32, 40]),
        ("vision_cfg.image_size", 36),
        ("vision_cfg.width", None),
        ("vision_cfg.made_up", 1),
        ("text_cfg.embed_cls", True),
        ("text_cfg.no_causal_mask", True),
        ("text_cfg.pool_type", "last"),
        ("text_cfg.hf_model_name", "roberta-base"),
        ("text_cfg.hf_tokenizer_name", "roberta-base"),
        ("text_cfg.act_kwargs", {"approximate": "tanh"}),
        ("text_cfg.proj_bias", True),
    ],
)
def test_what_is_not_supported_is_named(tmp_path, change):
    (tmp_path / "config.json").write_text(json.dumps(changed(change)))
    with pytest.raises(ValueError, match="is not supported: ") as caught:
        check_name(f"open_clip:{tmp_path / 'config.json'}={__file__}")
    problem = str(caught.value).split("not supported: ")[1]
    assert problem.startswith(change[0])


@pytest.mark.parametrize("content", ["", "[]", '{"embed_dim": 32}', '{"model_cfg": 3}', "{"])
def test_wrong_configuration_file(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json is (not JSON|no configuration)"):
        check_name(f"open_clip:{tmp_path / 'config.json'}={__file__}")


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such checkpoint file: .*none\.pt"):
        check_name("open_clip:ViT-B-16=none.pt")
    with pytest.raises(FileNotFoundError, match=r"no such configuration file: .*none\.json"):
        check_name("open_clip:none.json=none.pt")
    (tmp_path / "config.json").write_text(json.dumps(PLAIN))
    with pytest.raises(ValueError, match="names no weights: add =FILE"):
        check_name(f"open_clip:{tmp_path / 'config.json'}")


def test_weights_of_another_architecture(tmp_path, published):
    write(tmp_path, PLAIN, random_model(PLAIN))
    with pytest.raises(ValueError) as caught:
        clip.load_state_dict(f"open_clip:ViT-B-16={tmp_path / 'weights.pt'}")
    message = str(caught.value)
    assert "weights.pt: the weights are not those of ViT-B-16: embed_dim is 32 instead" in message
    assert "The shapes are those of small-for-test" in message


def test_entries_without_a_place(tmp_path):
    weights = random_model(PLAIN).state_dict()
    (tmp_path / "config.json").write_text(json.dumps(PLAIN))
    name = f"open_clip:{tmp_path / 'config.json'}={tmp_path / 'a.pt'}"
    for change, message in (
        ({"logit_bias": torch.zeros(())}, "the bias of a sigmoid loss"),
        ({"visual.trunk.norm.weight": torch.zeros(1)}, "an image tower of timm"),
        ({"visual.extra": torch.zeros(1)}, "visual.extra is not part of it"),
    ):
        torch.save(weights | change, tmp_path / "a.pt")
        with pytest.raises(ValueError, match=message):
            clip.load_state_dict(name)
    del weights["visual.ln_post.bias"]
    torch.save(weights, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"visual\.ln_post\.bias is missing"):
        clip.load_state_dict(name)


@pytest.mark.parametrize("left", [0.0, 0.5, 0.99])
def test_truncated_file(tmp_path, left):
    name = write(tmp_path, PLAIN, random_model(PLAIN))
    content = (tmp_path / "weights.pt").read_bytes()
    (tmp_path / "weights.pt").write_bytes(content[: int(len(content) * left)])
    with pytest.raises(RuntimeError, match=r"cannot read the checkpoint .*weights\.pt"):
        clip.load_state_dict(name)


def test_converted_file_needs_no_architecture(tmp_path):
    name = write(tmp_path, PLAIN, random_model(PLAIN))
    torch.save(clip.load_state_dict(name), tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="give its path alone"):
        clip.load_state_dict(name)


def test_path_alone_is_not_guessed(tmp_path, recwarn):
    """Files that are open_clip's for certain are refused; likely ones cause a warning."""
    square = changed(("vision_cfg.head_width", 64), ("vision_cfg.width", 128))
    weights = random_model(square).state_dict()
    torch.save(weights, tmp_path / "open_clip_pytorch_model.bin")
    with pytest.raises(ValueError, match=r"open_clip:ARCHITECTURE=.*No architecture of open_clip"):
        clip.load_state_dict(tmp_path / "open_clip_pytorch_model.bin")
    torch.save(random_model(CONFIGS["ratio"]).state_dict(), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"418 hidden units .* no CLIP of OpenAI.*ARCHITECTURE="):
        clip.load_state_dict(tmp_path / "a.pt")
    torch.save(random_model(CONFIGS["own-text"]).state_dict(), tmp_path / "a.pt")
    with pytest.raises(ValueError, match="a file of open_clip: name the architecture"):
        clip.load_state_dict(tmp_path / "a.pt")
    torch.save({"vision_model.x": torch.zeros(1)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="the layout of Hugging Face's transformers"):
        clip.load_state_dict(tmp_path / "a.pt")
    assert not recwarn.list

    torch.save(weights, tmp_path / "a.pt")
    with pytest.warns(UserWarning, match=r"taken as OpenAI's .*open_clip:ARCHITECTURE="):
        found = clip.load_state_dict(tmp_path / "a.pt")
    assert not set(EXTRA_ENTRIES) & found.keys()
    halved = {key: value.half().float() for key, value in weights.items()}
    torch.save(halved, tmp_path / "a.pt")  # as OpenAI's weights in float32
    recwarn.clear()
    clip.load_state_dict(tmp_path / "a.pt")
    assert not recwarn.list


def test_shapes_name_the_architecture(tmp_path):
    torch.save(full_size(), tmp_path / "open_clip_pytorch_model.bin")
    with pytest.raises(ValueError, match=r"those of ViT-B-32 and ViT-B-32-quickgelu$"):
        clip.load_state_dict(tmp_path / "open_clip_pytorch_model.bin")


def test_training_from_the_command_line(tmp_path):
    config = changed(("vision_cfg.image_size", 40))
    words = [
        *("--trainer", "MMLoP", "--seed", "1"),
        *("--backbone", write(tmp_path, {"model_cfg": config}, random_model(config))),
        *("--root", str(tmp_path / "data"), "--output-dir", str(tmp_path / "run")),
        *("--dataset-config-file", "configs/datasets/digits.yaml"),
        *("--config-file", "configs/trainers/MMLoP/tiny.yaml"),
        *("DATASET.NUM_SHOTS", "1", "DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.MAX_EPOCH", "1"),
        *("TRAINER.MMLOP.PROMPT_DEPTH", "2", "DATALOADER.NUM_WORKERS", "0", "USE_CUDA", "False"),
        *("INPUT.SIZE", "(40, 40)"),
    ]
    done = subprocess.run(
        [sys.executable, "train.py", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "* accuracy: " in done.stdout
    assert list((tmp_path / "run" / "prompt_learner").glob("model*"))


def test_settings_that_do_not_fit(tmp_path, make_cfg):
    config = changed(("vision_cfg.image_size", 40))
    weights = clip.load_state_dict(write(tmp_path, config, random_model(config)))
    half = {"image_mean": torch.full((3,), 0.5), "image_std": torch.full((3,), 0.25)}
    save_file(weights | half, tmp_path / "half.safetensors")
    settings = ["MODEL.BACKBONE.NAME", str(tmp_path / "half.safetensors")]
    for more, wanted in (
        (["INPUT.SIZE", (40, 40)], 'set INPUT.SIZE "(40, 40)"'),
        (
            ["INPUT.PIXEL_MEAN", [0.5, 0.5, 0.5], "INPUT.PIXEL_STD", [0.25, 0.25, 0.25]],
            'set INPUT.PIXEL_MEAN "[0.5, 0.5, 0.5]" INPUT.PIXEL_STD "[0.25, 0.25, 0.25]"',
        ),
    ):
        with pytest.raises(ValueError) as caught:
            load_clip(make_cfg("CoOp", *settings))
        assert str(caught.value).endswith(wanted)
        settings += more
    assert load_clip(make_cfg("CoOp", *settings)).visual.input_resolution == 40
    with pytest.raises(ValueError, match="was trained with others"):
        load_clip(make_cfg("CoOp", *settings, "INPUT.PIXEL_STD", [0.25, 0.25]))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_precisions_take_a_step(tmp_path, make_cfg, precision):
    from dassl.engine import build_trainer

    name = write(tmp_path, PLAIN, random_model(PLAIN))
    cfg = make_cfg("CoOp", "MODEL.BACKBONE.NAME", name, "TRAINER.COOP.PREC", precision)
    trainer = build_trainer(cfg)
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision, torch.float32)
    block = trainer.model.clip.transformer.resblocks[0]
    assert block.mlp.c_fc.weight.dtype == block.attn.in_proj_weight.dtype == dtype
    before = {key: value.clone() for key, value in trainer.model.clip.state_dict().items()}
    learner = [value.clone() for value in trainer.model.learner.parameters()]
    trainer.train()
    after = trainer.model.clip.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    moved = zip(trainer.model.learner.parameters(), learner, strict=True)
    assert all(p.isfinite().all() and not torch.equal(p, old) for p, old in moved)
