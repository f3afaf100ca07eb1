"""MMLoP against its definition."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clip.simple_tokenizer import SimpleTokenizer
from clip.tokens import tokenize
from dassl.config.node import ConfigKeyError
from dassl.engine import build_trainer
from dassl.utils import set_random_seed
from tests.parity.limits import LOGITS
from tests.parity_files import relative_error
from trainers import Predictor
from trainers.mmlop import LowRankPromptLearner, correct_drift


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([], 9 * (4 + 64 + 128)),
        (["RANK", 2], 9 * 2 * (4 + 64 + 128)),
        (["SHARED_U", False], 9 * (2 * 4 + 64 + 128)),
        (["LOW_RANK", False], 9 * 4 * (64 + 128)),
        (["PROMPT_DEPTH", 3], 3 * (4 + 64 + 128)),
        (["N_CTX", 2], 9 * (2 + 64 + 128)),
    ],
)
def test_ablation_switches(make_cfg, pairs, expected, capsys):
    pairs = [f"TRAINER.MMLOP.{w}" if i % 2 == 0 else w for i, w in enumerate(pairs)]
    trainer = build_trainer(make_cfg("MMLoP", *pairs))
    assert sum(p.numel() for p in trainer.model.learner.parameters()) == expected
    assert f"Trainable parameters: {expected:,}" in capsys.readouterr().out


def test_prompts_are_products_of_the_factors():
    learner = LowRankPromptLearner(3, 4, 16, 24, rank=2)
    text, vision = list(learner.text_changes().prompts()), list(learner.image_changes().prompts())
    assert len(text) == len(vision) == 3
    for layer in range(3):
        up = learner.up[layer]
        torch.testing.assert_close(text[layer].tokens, up @ learner.text[layer])
        torch.testing.assert_close(vision[layer].tokens, up @ learner.vision[layer])
        assert text[layer].at == 1
        assert vision[layer].at is None
        assert text[layer].drop == vision[layer].drop == (0 if layer == 0 else 4)


def test_separate_up_projections():
    learner = LowRankPromptLearner(2, 4, 16, 24, shared_up=False)
    vision = learner.image_changes()[1].prompts[0].tokens
    torch.testing.assert_close(vision, learner.up_vision[1] @ learner.vision[1])


def texts(model) -> list[str]:
    """The frozen words around the learned tokens, class by class."""
    ends = model.text.ids.argmax(dim=-1).tolist()
    return [
        SimpleTokenizer().decode(ids[1:end]).strip()
        for ids, end in zip(model.text.ids.tolist(), ends, strict=True)
    ]


@pytest.mark.parametrize(
    ("place", "n_ctx", "words"),
    [
        ("replace", 4, ""),
        ("replace", 2, ""),
        ("before", 4, "a photo of a "),
        ("before", 2, "a photo of a "),
        ("added", 4, ""),
        ("added", 2, "of a "),
    ],
)
def test_place_of_the_first_text_prompt(make_cfg, place, n_ctx, words):
    """What stands behind the learned tokens, and what the tokens themselves are."""
    pairs = ["TRAINER.MMLOP.TEXT_PROMPT", place, "TRAINER.MMLOP.N_CTX", n_ctx]
    model = build_trainer(make_cfg("MMLoP", *pairs)).model
    for text, name in zip(texts(model), model.classnames, strict=True):
        assert text.replace(" ", "") == f"{words}{name}.".lower().replace("_", "").replace(" ", "")
    learner = model.learner
    tokens = learner.text_changes()[0].prompts[0].tokens
    product = learner.up[0] @ learner.text[0]
    ids = tokenize("a photo of a")[0, 1 : 1 + n_ctx]
    embedded = model.clip.token_embedding(ids).float() if place == "added" else 0
    torch.testing.assert_close(tokens, product + embedded)
    torch.testing.assert_close(
        learner.text_changes()[1].prompts[0].tokens, learner.up[1] @ learner.text[1]
    )


@pytest.mark.parametrize("rank", [1, 4])
def test_every_factor_starts_with_the_same_deviation(rank):
    torch.manual_seed(0)
    learner = LowRankPromptLearner(200, 4, 64, 64, rank=rank, shared_up=False)
    for name, factor in learner.named_parameters():
        assert float(factor.detach().std()) == pytest.approx(0.05, rel=0.1), name


def test_full_prompts_start_as_ivlp(make_cfg):
    """With the seed of a run they are the same numbers, and the same words stand behind them."""
    shape = {"N_CTX_TEXT": 4, "N_CTX_VISION": 4, "PROMPT_DEPTH_TEXT": 9, "PROMPT_DEPTH_VISION": 9}
    ivlp = [word for key, value in shape.items() for word in (f"TRAINER.IVLP.{key}", value)]
    models = []
    for method, pairs in (("IVLP", ivlp), ("MMLoP", ["TRAINER.MMLOP.LOW_RANK", False])):
        cfg = make_cfg(method, *pairs)
        set_random_seed(1)
        models.append(build_trainer(cfg).model)
    first, second = models
    assert torch.equal(first.learner.text, second.learner.text)
    assert torch.equal(first.learner.vision, second.learner.vision)
    assert torch.equal(first.text.ids, second.text.ids)


def test_drift_correction_formula():
    torch.manual_seed(0)
    frozen, prompted = (F.normalize(torch.randn(5, 16), dim=-1) for _ in range(2))
    residual = prompted - frozen
    expected = F.normalize(frozen + residual - residual.mean(0), dim=-1)
    torch.testing.assert_close(correct_drift(prompted, frozen), expected)


def test_a_common_drift_is_removed_and_one_class_stays_frozen():
    torch.manual_seed(0)
    frozen = F.normalize(torch.randn(5, 16), dim=-1)
    shifted = frozen + torch.randn(16)
    torch.testing.assert_close(correct_drift(shifted, frozen), frozen)
    one = F.normalize(torch.randn(1, 16), dim=-1)
    torch.testing.assert_close(correct_drift(one, frozen[:1]), frozen[:1])


def test_drift_is_that_of_the_current_classes(make_cfg):
    """The same learner, corrected over another class list, gives other features for a class."""
    model = build_trainer(make_cfg("MMLoP", "TRAINER.MMLOP.INIT_STD", 0.5)).model
    with torch.no_grad():
        all_classes = model.text_features()
        names = model.classnames
        model.set_classes(names[:2])
        two = model.text_features()
    assert two.shape == (2, all_classes.shape[1])
    assert not torch.allclose(two, all_classes[:2], atol=1e-4)
    model.learner.drift_correction = False
    with torch.no_grad():
        model.set_classes(names)
        plain = model.text_features()
        model.set_classes(names[:2])
        torch.testing.assert_close(model.text_features(), plain[:2])


@pytest.mark.parametrize("way", ["symmetric", "one-way"])
def test_loss_terms(make_cfg, way):
    trainer = build_trainer(make_cfg("MMLoP", "TRAINER.MMLOP.LOGIT_LOSS", way))
    model, batch = trainer.model, next(iter(trainer.train_loader_x))
    prediction = model.predict(batch["img"])
    loss, terms = trainer.loss(prediction, batch["label"])
    frozen = model.predict(batch["img"]).frozen()
    text, image = frozen.text_features, frozen.image_features
    q = (model.clip.logit_scale.exp() * image @ text.T).softmax(-1)
    p = prediction.logits.softmax(-1)
    divergence = (q * (q.log() - p.log())).sum() / q.numel()
    if way == "symmetric":
        divergence = (divergence + (p * (p.log() - q.log())).sum() / q.numel()) / 2
    expected = {
        "ce": F.cross_entropy(prediction.logits, batch["label"]),
        "text": 25 * (prediction.text_features - text).abs().mean(),
        "image": 10 * (prediction.image_features - image).abs().mean(),
        "logits": divergence,
    }
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(loss, sum(expected.values()), rtol=1e-4, atol=1e-6)


def test_gradient_clipping_bounds_the_step(make_cfg):
    pairs = ["OPTIM.WEIGHT_DECAY", 0.0, "OPTIM.MOMENTUM", 0.0, "OPTIM.WARMUP_EPOCH", 0]
    trainer = build_trainer(make_cfg("MMLoP", *pairs, "OPTIM.LR", 1.0, "OPTIM.CLIP_GRAD_NORM", 0.1))
    before = [p.detach().clone() for p in trainer.model.learner.parameters()]
    trainer.num_batches, trainer.batch_idx = 100, 0
    trainer.forward_backward(next(iter(trainer.train_loader_x)))
    after = [p.detach() for p in trainer.model.learner.parameters()]
    moved = math.sqrt(sum(float(((a - b) ** 2).sum()) for a, b in zip(after, before, strict=True)))
    assert moved == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (["TEXT_PROMPT", "behind"], "TEXT_PROMPT: 'behind' is not in .*replace, before, added"),
        (["LOGIT_LOSS", "both"], "LOGIT_LOSS: 'both' is not in .*symmetric, one-way"),
        (["TEXT_PROMPT", "before", "CTX_INIT", ""], "CTX_INIT has no words"),
        (["TEXT_PROMPT", "before", "CTX_INIT", "_"], "CTX_INIT has no words"),
        (["TEXT_PROMPT", "added", "CTX_INIT", " __ "], "CTX_INIT has no words"),
        (["INIT_STD", 0.0], "INIT_STD is 0.0"),
        (["RANK", 0], "RANK is 0"),
        (["TEXT_LOSS_WEIGHT", -25.0], "TEXT_LOSS_WEIGHT is -25.0"),
    ],
)
def test_settings_that_do_not_exist(make_cfg, pair, message):
    pairs = [f"TRAINER.MMLOP.{word}" if i % 2 == 0 else word for i, word in enumerate(pair)]
    with pytest.raises(ValueError, match=message):
        build_trainer(make_cfg("MMLoP", *pairs))


@pytest.mark.parametrize(
    ("key", "instead"),
    [("INIT_STD_U", r"use TRAINER\.MMLOP\.INIT_STD \("), ("LR_MULT_U", r"use OPTIM\.LR \(")],
)
def test_removed_keys_say_what_replaces_them(make_cfg, tmp_path, key, instead):
    with pytest.raises(ConfigKeyError, match=instead):
        make_cfg("MMLoP", f"TRAINER.MMLOP.{key}", 1.0)
    cfg = make_cfg("MMLoP")
    cfg.defrost()
    (tmp_path / "old.yaml").write_text(f"TRAINER:\n  MMLOP:\n    {key}: 1.0\n")
    with pytest.raises(ConfigKeyError, match=instead):
        cfg.merge_from_file(str(tmp_path / "old.yaml"))


# --- a run that version 0.1 wrote -----------------------------------------------------------------

OLD_RUN = Path(__file__).parents[1] / "fixtures" / "mmlop_0.1"


def test_old_run_predicts_as_it_did():
    predictor = Predictor.load(OLD_RUN)
    with np.load(OLD_RUN / "predicted.npz") as recorded, torch.no_grad():
        logits = predictor.model(torch.from_numpy(recorded["images"]).float())
        assert relative_error(logits, torch.from_numpy(recorded["logits"])) < LOGITS


def test_old_run_is_not_taken_for_one_of_the_present_defaults(make_cfg):
    """It is tested with its own text prompt, not silently with another, and not gone on with."""
    pairs = ["MODEL.BACKBONE.NAME", "tiny"]
    trainer = build_trainer(make_cfg("MMLoP", *pairs))
    message = r"TRAINER\.MMLOP\.TEXT_PROMPT added, this run has replace"
    with pytest.raises(ValueError, match=message):
        trainer.load_model(str(OLD_RUN), epoch=2)
    with pytest.raises(ValueError, match=message):
        trainer.resume_model_if_exist(str(OLD_RUN))
    trainer = build_trainer(make_cfg("MMLoP", *pairs, "TRAINER.MMLOP.TEXT_PROMPT", "added"))
    trainer.load_model(str(OLD_RUN), epoch=2)
    weights = torch.load(OLD_RUN / "prompt_learner" / "model.pth.tar-2", weights_only=True)
    for name, value in trainer.model.learner.state_dict().items():
        assert torch.equal(value, weights["state_dict"][name])
