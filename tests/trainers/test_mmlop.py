"""MMLoP against its definition."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from dassl.engine import build_trainer
from trainers.mmlop import LowRankPromptLearner


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
    words = torch.randn(4, 16)
    learner = LowRankPromptLearner(3, 4, 16, 24, rank=2, ctx_init=words)
    text, vision = learner.text_prompts(), learner.image_prompts()
    assert set(text) == set(vision) == {0, 1, 2}
    for layer in range(3):
        up = learner.up[layer]
        expected = up @ learner.text[layer] + (words if layer == 0 else 0)
        torch.testing.assert_close(text[layer].tokens, expected)
        torch.testing.assert_close(vision[layer].tokens, up @ learner.vision[layer])
        assert text[layer].at == 1
        assert vision[layer].at is None
        assert text[layer].drop == vision[layer].drop == (0 if layer == 0 else 4)


def test_separate_up_projections():
    learner = LowRankPromptLearner(2, 4, 16, 24, shared_up=False)
    vision = learner.image_prompts()[1].tokens
    torch.testing.assert_close(vision, learner.up_vision[1] @ learner.vision[1])


@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize("std_up", [0.0, 1.0])
def test_initial_scale_of_a_prompt_entry(rank, std_up):
    torch.manual_seed(0)
    learner = LowRankPromptLearner(200, 4, 64, 64, rank=rank, init_std=0.02, init_std_up=std_up)
    prompts = torch.stack([p.tokens for p in learner.image_prompts().values()])
    assert float(prompts.detach().std()) == pytest.approx(0.02, rel=0.15)
    expected = std_up or math.sqrt(0.02 / math.sqrt(rank))
    assert float(learner.up.detach().std()) == pytest.approx(expected, rel=0.15)


def test_drift_correction_formula():
    torch.manual_seed(0)
    learner = LowRankPromptLearner(1, 4, 16, 24)
    frozen, prompted = (F.normalize(torch.randn(5, 16), dim=-1) for _ in range(2))
    residual = prompted - frozen
    expected = F.normalize(frozen + residual - residual.mean(0), dim=-1)
    torch.testing.assert_close(learner.correct_text(prompted, lambda: frozen), expected)


def test_a_common_drift_is_removed_and_one_class_stays_frozen():
    torch.manual_seed(0)
    learner = LowRankPromptLearner(1, 4, 16, 24)
    frozen = F.normalize(torch.randn(5, 16), dim=-1)
    shifted = frozen + torch.randn(16)
    torch.testing.assert_close(learner.correct_text(shifted, lambda: frozen), frozen)
    one = F.normalize(torch.randn(1, 16), dim=-1)
    torch.testing.assert_close(learner.correct_text(one, lambda: frozen[:1]), frozen[:1])


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


def test_loss_terms(make_cfg):
    trainer = build_trainer(make_cfg("MMLoP"))
    model, batch = trainer.model, next(iter(trainer.train_loader_x))
    prediction = model.predict(batch["img"])
    loss, terms = trainer.loss(prediction, batch["label"])
    frozen = model.predict_frozen(batch["img"])
    text, image = frozen.text_features, frozen.image_features
    q = (model.clip.logit_scale.exp() * image @ text.T).softmax(-1)
    p = prediction.logits.softmax(-1)
    expected = {
        "ce": F.cross_entropy(prediction.logits, batch["label"]),
        "text": 25 * (prediction.text_features - text).abs().mean(),
        "image": 10 * (prediction.image_features - image).abs().mean(),
        "logits": (q * (q.log() - p.log())).sum() / q.numel(),
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


def test_learning_rate_of_the_up_projection(make_cfg):
    trainer = build_trainer(make_cfg("MMLoP", "TRAINER.MMLOP.LR_MULT_U", 0.25))
    rates = {id(p): g["initial_lr"] for g in trainer.optim.param_groups for p in g["params"]}
    learner = trainer.model.learner
    assert rates[id(learner.up)] == pytest.approx(0.25 * rates[id(learner.text)])
    assert len(rates) == 3
