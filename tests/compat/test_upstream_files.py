"""Files written for upstream Dassl and CoOp's clip package run here unchanged."""

from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from yacs.config import CfgNode as CN

import datasets
import trainers
from clip import clip
from clip.initial_draws import initial_draws
from dassl.config import get_cfg_default
from dassl.engine import build_trainer
from dassl.utils import set_random_seed
from tests.compat import upstream_dataset, upstream_trainer

NAMES = ["red", "green", "dark_blue", "yellow", "white"]
COLOURS = [(220, 20, 20), (20, 180, 20), (10, 10, 120), (230, 230, 20), (250, 250, 250)]
SIDE = 32


@pytest.fixture
def data_root(tmp_path):
    """Five colours: five training, two validation and three test images each."""
    folder = tmp_path / "data" / upstream_dataset.UpstreamColours.dataset_dir
    (folder / "images").mkdir(parents=True)
    split = {"train": [], "val": [], "test": []}
    rng = np.random.default_rng(0)
    for label, (name, colour) in enumerate(zip(NAMES, COLOURS, strict=True)):
        for index, part in enumerate(["train"] * 5 + ["val"] * 2 + ["test"] * 3):
            path = f"{name}_{index}.png"
            pixels = np.clip(rng.normal(colour, 25, (40, 36, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "images" / path)
            split[part].append([path, label, name])
    (folder / "split.json").write_text(json.dumps(split))
    return folder.parent


@pytest.fixture
def cfg(tmp_path, data_root):
    cfg = get_cfg_default()
    # As extend_cfg of published train.py files does it.
    cfg.TRAINER.UPSTREAMCOOP = CN()
    cfg.TRAINER.UPSTREAMCOOP.N_CTX = 16
    cfg.TRAINER.UPSTREAMCOOP.CTX_INIT = ""
    cfg.TRAINER.UPSTREAMCOOP.PREC = "fp16"
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"
    cfg.merge_from_list(
        [
            *("TRAINER.NAME", "UpstreamCoOp", "TRAINER.UPSTREAMCOOP.PREC", "fp32"),
            *("TRAINER.UPSTREAMCOOP.CTX_INIT", "a photo of a"),
            *("MODEL.BACKBONE.NAME", "tiny"),
            *("DATASET.NAME", "UpstreamColours", "DATASET.ROOT", str(data_root)),
            *("DATASET.NUM_SHOTS", "4", "DATASET.SUBSAMPLE_CLASSES", "base"),
            *("OUTPUT_DIR", str(tmp_path / "out"), "SEED", "1"),
            *("INPUT.SIZE", f"({SIDE}, {SIDE})", "INPUT.INTERPOLATION", "bicubic"),
            *("INPUT.PIXEL_MEAN", "[0.48145466, 0.4578275, 0.40821073]"),
            *("INPUT.PIXEL_STD", "[0.26862954, 0.26130258, 0.27577711]"),
            *("INPUT.TRANSFORMS", "['random_resized_crop', 'random_flip', 'normalize']"),
            *("DATALOADER.NUM_WORKERS", "0", "DATALOADER.TRAIN_X.BATCH_SIZE", "4"),
            *("OPTIM.NAME", "sgd", "OPTIM.LR", "0.05", "OPTIM.MAX_EPOCH", "2"),
            *("OPTIM.LR_SCHEDULER", "cosine", "OPTIM.WARMUP_EPOCH", "1"),
            *("OPTIM.WARMUP_TYPE", "constant", "TRAIN.CHECKPOINT_FREQ", "1"),
            *("TRAIN.PRINT_FREQ", "1"),
        ]
    )
    return cfg


def built(cfg, seed=1):
    set_random_seed(seed)
    frozen = cfg.clone()
    frozen.freeze()
    return build_trainer(frozen)


def stored(cfg, epoch):
    path = f"{cfg.OUTPUT_DIR}/prompt_learner/model.pth.tar-{epoch}"
    return torch.load(path, weights_only=True)


def test_train_resume_and_test_on_new_classes(cfg, tmp_path, capsys):
    trainer = built(cfg)
    start = trainer.model.prompt_learner.ctx.detach().clone()
    frozen = {n: p.clone() for n, p in trainer.model.named_parameters() if not p.requires_grad}
    trainer.train()
    out = capsys.readouterr().out
    assert "epoch [2/2] batch [3/3]" in out and "Finish training" in out
    assert "* total: 9" in out
    ctx = trainer.model.prompt_learner.ctx.detach().clone()
    assert start.shape == (4, 64) and not torch.equal(ctx, start)
    for name, param in trainer.model.named_parameters():
        assert name == "prompt_learner.ctx" or torch.equal(param, frozen[name])
    assert set(stored(cfg, 2)["state_dict"]) == {"ctx", "token_prefix", "token_suffix"}

    # Stopped after the first epoch: the second one comes out the same.
    folder = tmp_path / "out" / "prompt_learner"
    (folder / "model.pth.tar-2").unlink()
    (folder / "checkpoint").write_text("model.pth.tar-1\n")
    resumed = built(cfg, seed=5)
    resumed.train()
    out = capsys.readouterr().out
    assert "will resume training" in out and "epoch [1/2]" not in out
    assert resumed.start_epoch == 1
    assert torch.equal(resumed.model.prompt_learner.ctx, ctx)

    # Other classes have other token buffers; the learned context is taken over.
    cfg.DATASET.SUBSAMPLE_CLASSES, cfg.OUTPUT_DIR = "new", str(tmp_path / "new")
    other = built(cfg)
    assert other.dm.dataset.classnames == NAMES[3:]
    suffix = other.model.prompt_learner.token_suffix.clone()
    other.load_model(str(tmp_path / "out"), epoch=2)
    out = capsys.readouterr().out
    assert f'Loading weights to prompt_learner from "{folder}/model.pth.tar-2" (epoch = 2)' in out
    assert torch.equal(other.model.prompt_learner.ctx, ctx)
    assert torch.equal(other.model.prompt_learner.token_suffix, suffix)
    assert 0 <= other.test() <= 100
    assert "* total: 6" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="model-best"):
        other.load_model(str(tmp_path / "out"))


@pytest.mark.parametrize("precision", ["fp16", "amp"])
@pytest.mark.filterwarnings("ignore:.*torch.cuda.amp.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*CUDA is not available.*:UserWarning")
def test_other_precisions_take_a_step(cfg, precision):
    cfg.merge_from_list(["TRAINER.UPSTREAMCOOP.PREC", precision, "OPTIM.WARMUP_EPOCH", 0])
    cfg.merge_from_list(["TRAINER.UPSTREAMCOOP.CTX_INIT", "", "TRAINER.UPSTREAMCOOP.N_CTX", 3])
    cfg.OPTIM.MAX_EPOCH = 1
    trainer = built(cfg)
    ctx = trainer.model.prompt_learner.ctx
    before = ctx.detach().clone()
    trainer.train()
    assert ctx.dtype == (torch.float16 if precision == "fp16" else torch.float32)
    assert ctx.shape == (3, 64) and ctx.isfinite().all() and not torch.equal(ctx, before)


def test_the_encoder_of_such_a_file_equals_encode_text(cfg):
    trainer = built(cfg)
    learner = trainer.model.prompt_learner
    texts = [f"a photo of a {name.replace('_', ' ')}." for name in trainer.dm.dataset.classnames]
    model = clip.build_model(clip.load_state_dict("tiny")).float()
    with torch.no_grad():
        features = trainer.model.text_encoder(learner(), learner.tokenized_prompts)
        expected = model.encode_text(clip.tokenize(texts))
    torch.testing.assert_close(features, expected, rtol=0, atol=2e-5 * expected.abs().max().item())


def test_the_downloaded_file_is_a_plain_state_dict(tmp_path):
    path = clip._download(clip._MODELS["tiny"], str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RuntimeError):
            torch.jit.load(path, map_location="cpu")
    state = torch.load(path, map_location="cpu")
    assert state["token_embedding.weight"].shape[0] == 49408
    assert math.isfinite(float(state["logit_scale"]))
    assert upstream_trainer.clip._MODELS["tiny"] == "embedded:tiny"


@pytest.mark.parametrize("wanted", [True, False])
def test_our_coop_starts_as_such_a_file_at_the_same_seed(cfg, data_root, wanted):
    """Whether what OpenAI's code draws while it builds CLIP is drawn or not, for both alike."""
    trainers.extend_cfg(cfg)
    datasets.extend_cfg(cfg)
    cfg.merge_from_list(["TRAINER.UPSTREAMCOOP.CTX_INIT", "", "MODEL.OPENAI_DRAWS", wanted])
    cfg.merge_from_list(["TRAINER.COOP.PREC", "fp32", "TRAINER.COOP.N_CTX", 16])

    def start(name):
        cfg.TRAINER.NAME = name
        with initial_draws(wanted):
            trainer = built(cfg)
        return trainer, torch.get_rng_state()

    theirs, their_state = start("UpstreamCoOp")
    ours, our_state = start("CoOp")
    assert torch.equal(ours.model.learner.ctx, theirs.model.prompt_learner.ctx)
    assert torch.equal(our_state, their_state)
    set_random_seed(1)
    assert torch.equal(torch.empty(16, 64).normal_(std=0.02), ours.model.learner.ctx) != wanted


def test_a_method_that_draws_its_own_does_not_take_upstreams_numbers(cfg):
    trainers.extend_cfg(cfg)
    datasets.extend_cfg(cfg)
    cfg.merge_from_list(["TRAINER.NAME", "MaPLe", "MODEL.OPENAI_DRAWS", True])
    with pytest.raises(ValueError, match=r"OPENAI_DRAWS is for CoOp, CoCoOp .*MaPLe would not"):
        built(cfg)
