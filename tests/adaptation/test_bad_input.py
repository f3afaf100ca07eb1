"""One clear error for settings that cannot work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adaptation.starts import context_init
from adaptation.texts import class_prompts
from clip.weights import build_model
from dassl.engine import build_trainer
from tests.parity_files import recorded_clip


@pytest.fixture(scope="module")
def clip():
    return build_model(recorded_clip()).float()


@pytest.mark.filterwarnings("ignore:TRAINER.COOP.N_CTX")
@pytest.mark.parametrize(
    ("method", "pairs", "message"),
    [
        (
            "CoOp",
            ["TRAINER.COOP.CLASS_TOKEN_POSITION", "back"],
            r"in .*end, middle, front",
        ),
        ("CoOp", ["TRAINER.COOP.N_CTX", 0], "N_CTX is 0"),
        ("CoOp", ["TRAINER.COOP.N_CTX", 76], "too long"),
        (
            "CoOp",
            ["TRAINER.COOP.CTX_INIT", "a photograph of antidisestablishmentarianism"],
            "words",
        ),
        ("CoOp", ["INPUT.SIZE", (224, 224)], "takes 32 x 32"),
        ("CoOp", ["OPTIM.LR", -1], r"OPTIM\.LR is -1\.0"),
        ("CoOp", ["OPTIM.CLIP_GRAD_NORM", -1], r"OPTIM\.CLIP_GRAD_NORM is -1\.0: use 0"),
        ("LoRVP", ["INPUT.SIZE", []], "INPUT.SIZE is .*: give height and width"),
        (
            "CoOp",
            ["OPTIM.CUDA_GRAPH", True, "TRAINER.COOP.PREC", "amp"],
            "TRAINER.COOP.PREC 'amp' reads on the host",
        ),
        ("CoOp", ["MODEL.BACKBONE.NAME", ""], "MODEL.BACKBONE.NAME is empty"),
        ("CoOp", ["MODEL.BACKBONE.NAME", "ViT-B/61"], "ViT-B/16"),
        ("MMLoP", ["TRAINER.MMLOP.PROMPT_DEPTH", 13], "PROMPT_DEPTH is 13: .* takes 1 to 12"),
        ("MMLoP", ["TRAINER.MMLOP.PROMPT_DEPTH", 0], "PROMPT_DEPTH is 0"),
        ("MMLoP", ["TRAINER.MMLOP.RANK", 0], "RANK is 0"),
        ("MMLoP", ["TRAINER.MMLOP.N_CTX", 80], "too long"),
        ("MMLoP", ["TRAINER.MMLOP.INIT_STD", 0.0], "INIT_STD is 0.0"),
        ("ZeroshotCLIP", ["INPUT.SIZE", (224, 224)], "takes 32 x 32"),
        ("CoCoOp", ["TRAINER.COCOOP.N_CTX", 0], "COCOOP.N_CTX is 0"),
        ("CoCoOp", ["TRAINER.COCOOP.N_CTX", 76], "too long"),
        ("VPT", ["TRAINER.VPT.N_CTX_VISION", 0], "VPT.N_CTX_VISION is 0"),
        ("VPT", ["TRAINER.VPT.PROMPT_DEPTH_VISION", 13], "DEPTH_VISION is 13: .* takes 1 to 12"),
        ("IVLP", ["TRAINER.IVLP.PROMPT_DEPTH_TEXT", 13], "DEPTH_TEXT is 13: .* takes"),
        ("IVLP", ["TRAINER.IVLP.PROMPT_DEPTH_VISION", 99], "DEPTH_VISION is 99: .* takes"),
        ("IVLP", ["TRAINER.IVLP.N_CTX_TEXT", 75], "too long"),
        ("MaPLe", ["TRAINER.MAPLE.PROMPT_DEPTH", 13], "DEPTH is 13: .* takes 1 to 12"),
        ("MaPLe", ["TRAINER.MAPLE.N_CTX", 0], "MAPLE.N_CTX is 0"),
        ("MaPLe", ["TRAINER.MAPLE.N_CTX", 75], "too long"),
        ("PromptSRC", ["TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT", 0], "DEPTH_TEXT is 0: .* takes"),
        ("PromptSRC", ["TRAINER.PROMPTSRC.N_CTX_TEXT", 75], "too long"),
        ("PromptSRC", ["TRAINER.PROMPTSRC.GPA_STD", 0.0], "GPA_STD is 0"),
        ("PromptSRC", ["TRAINER.PROMPTSRC.GPA_MEAN", 900.0], "no weight to any"),
        ("MPL", ["TRAINER.MPL.PROMPT_DEPTH", 0], "DEPTH is 0: .* takes 1 to 12"),
        ("MPL", ["TRAINER.MPL.N_ADD_OP", 0], "N_ADD_OP is 0: use 1 or more"),
        ("MPL", ["TRAINER.MPL.N_RM_OP", 19], "only 19 tokens are left in front of block 1"),
        ("MPL", ["TRAINER.MPL.N_RM_OP", 7], "only 7 tokens are left in front of block 5"),
    ],
)
def test_settings(make_cfg, method, pairs, message):
    with pytest.raises(ValueError, match=message):
        build_trainer(make_cfg(method, *pairs))


@pytest.mark.parametrize(
    "method", ["VPT", "IVLP", "MaPLe", "PromptSRC", "MPL", "MMLoP", "CoPrompt"]
)
def test_image_prompts_need_a_vit(make_cfg, rn_file, method):
    cfg = make_cfg(method, "MODEL.BACKBONE.NAME", rn_file, "INPUT.SIZE", (64, 64))
    with pytest.raises(ValueError, match="needs a vision transformer"):
        build_trainer(cfg)


def test_zero_shot_has_nothing_to_train(make_cfg, capsys):
    build_trainer(make_cfg("ZeroshotCLIP")).train()
    said = capsys.readouterr().out
    assert "ZeroshotCLIP has nothing to train" in said
    assert "* accuracy:" in said


@pytest.mark.parametrize("method", ["ZeroshotCLIP", "ZeroshotCLIP2"])
def test_zero_shot_draws_no_shots(make_cfg, method, data_root, capsys):
    cfg = make_cfg(method, "DATASET.NUM_SHOTS", 99)
    trainer = build_trainer(cfg)
    assert "99" not in capsys.readouterr().out
    assert len(trainer.dm.dataset.train_x) == 40
    assert not list(data_root.rglob("shot_99*"))
    assert cfg.DATASET.NUM_SHOTS == 99


def test_class_specific_context_for_other_classes(make_cfg, tmp_path):
    csc = ["TRAINER.COOP.CSC", True, "DATASET.SUBSAMPLE_CLASSES"]
    build_trainer(make_cfg("CoOp", *csc, "base")).save_model(0, str(tmp_path))
    with pytest.raises(ValueError, match="class-specific"):
        build_trainer(make_cfg("CoOp", *csc, "new")).load_model(str(tmp_path), epoch=1)


def test_ignored_settings_are_named(make_cfg):
    words = ["TRAINER.COOP.CTX_INIT", "a photo of a", "TRAINER.COOP.CSC", True]
    with pytest.warns(UserWarning, match="CSC = True is ignored"):
        trainer = build_trainer(make_cfg("CoOp", *words, "TRAINER.COOP.N_CTX", 4))
    assert trainer.model.learner.ctx.shape == (4, 64)


def test_loss_that_is_not_finite_stops_the_run(make_cfg):
    cfg = make_cfg("CoOp", "TRAIN.PRINT_FREQ", 3)
    trainer = build_trainer(cfg)
    with torch.no_grad():
        trainer.model.learner.ctx.fill_(float("nan"))
    with pytest.raises(FloatingPointError):
        trainer.train()
    assert not list(Path(cfg.OUTPUT_DIR).rglob("model*")), "nothing is saved of such a run"


def test_a_loss_without_values_for_the_log_is_named(make_cfg, monkeypatch):
    trainer = build_trainer(make_cfg("CoOp"))
    monkeypatch.setattr(trainer, "loss", lambda prediction, label: prediction.logits.sum())
    with pytest.raises(TypeError, match=r"CoOp\.loss must return the loss and a dictionary"):
        trainer.train()


def test_class_name_too_long_is_named(clip):
    with pytest.raises(ValueError, match=r"'long long.*has 8[0-9] tokens"):
        class_prompts(clip, ["cat", "long " * 80], "{}.")
    with pytest.raises(ValueError, match="is empty"):
        class_prompts(clip, [], "{}.")
    class_prompts(clip, ["x " * 70], "{}.", n_inserted=4)
    with pytest.raises(ValueError, match="has 78 tokens with 5 learned ones"):
        class_prompts(clip, ["x " * 70], "{}.", n_inserted=5)


def test_context_init_leaves_the_other_words(clip):
    start, template = context_init(clip, "a photo of a", 2)
    assert start.shape == (2, 64)
    assert template == "of a {}."
    assert context_init(clip, "a photo of a", 4)[1] == "{}."
    assert context_init(clip, "a photo of a", 5) == (None, "{}.")
    assert context_init(clip, "", 4) == (None, "{}.")
