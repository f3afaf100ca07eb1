from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dassl.config import get_cfg_default
from dassl.evaluation import EVALUATOR_REGISTRY, EvaluatorBase, build_evaluator
from dassl.metrics import compute_accuracy, compute_distance_matrix

NAMES = {0: "cat", 1: "dog", 2: "owl"}


def evaluator(**test):
    cfg = get_cfg_default()
    for key, value in test.items():
        cfg.TEST[key] = value
    return build_evaluator(cfg, lab2cname=NAMES)


def feed(ev, true, pred, batch=2):
    logits = torch.nn.functional.one_hot(torch.tensor(pred), 3).float()
    for start in range(0, len(true), batch):
        ev.process(logits[start : start + batch], torch.tensor(true[start : start + batch]))


def test_block_and_results(capsys):
    ev = evaluator(PER_CLASS_RESULT=True)
    feed(ev, [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 1, 0])
    results = ev.evaluate()
    assert list(results) == ["accuracy", "error_rate", "macro_f1", "perclass_accuracy"]
    # f1: cat 2/3, dog 4/5, owl 0
    assert list(results.values()) == pytest.approx(
        [400 / 6, 200 / 6, 100 * (2 / 3 + 4 / 5) / 3, 500 / 9]
    )
    assert capsys.readouterr().out.endswith(
        "=> result\n"
        "* total: 6\n"
        "* correct: 4\n"
        "* accuracy: 66.67%\n"
        "* error: 33.33%\n"
        "* macro_f1: 48.89%\n"
        "=> per-class result\n"
        "* class: 0 (cat)\ttotal: 3\tcorrect: 2\tacc: 66.67%\n"
        "* class: 1 (dog)\ttotal: 2\tcorrect: 2\tacc: 100.00%\n"
        "* class: 2 (owl)\ttotal: 1\tcorrect: 0\tacc: 0.00%\n"
        "* average: 55.56%\n"
    )


def test_thousands_are_separated(capsys):
    ev = evaluator()
    feed(ev, [0] * 2465, [0] * 2350 + [1] * 115, batch=1000)
    ev.evaluate()
    out = capsys.readouterr().out
    assert "* total: 2,465\n* correct: 2,350\n* accuracy: 95.33%" in out


def test_macro_f1_counts_only_classes_of_the_ground_truth():
    ev = evaluator()
    feed(ev, [0, 0], [0, 2])
    assert ev.evaluate()["macro_f1"] == pytest.approx(100 * 2 / 3)


def test_reset_forgets():
    ev = evaluator(PER_CLASS_RESULT=True)
    feed(ev, [0, 1], [1, 1])
    ev.reset()
    feed(ev, [2], [2])
    assert ev.evaluate()["perclass_accuracy"] == 100.0
    assert (ev._correct, ev._total, ev._y_true, ev._y_pred) == (1, 1, [2], [2])
    ev.reset()
    with pytest.raises(ValueError, match="nothing to evaluate"):
        ev.evaluate()


def test_confusion_matrix(tmp_path, capsys):
    cfg = get_cfg_default()
    cfg.OUTPUT_DIR = str(tmp_path / "new")
    cfg.TEST.COMPUTE_CMAT = True
    ev = build_evaluator(cfg, lab2cname=NAMES)
    feed(ev, [0, 0, 1, 2], [0, 1, 1, 0])
    ev.evaluate()
    path = tmp_path / "new" / "cmat.pt"
    expected = torch.tensor([[0.5, 0.5, 0], [0, 1, 0], [1, 0, 0]]).double()
    torch.testing.assert_close(torch.load(path, weights_only=True), expected)
    assert f"Confusion matrix is saved to {path}" in capsys.readouterr().out
    assert [p.name for p in path.parent.iterdir()] == ["cmat.pt"]


def test_errors():
    cfg = get_cfg_default()
    cfg.TEST.EVALUATOR = "Clasification"
    with pytest.raises(ValueError, match="did you mean 'Classification'"):
        build_evaluator(cfg)
    cfg = get_cfg_default()
    cfg.TEST.PER_CLASS_RESULT = True
    with pytest.raises(ValueError, match="lab2cname"):
        build_evaluator(cfg)


@pytest.mark.parametrize(
    ("dtype", "kept"), [("float16", "float16"), ("bfloat16", "float32"), ("float32", "float32")]
)
def test_logits_are_held_as_they_came(dtype, kept):
    ev = evaluator()
    logits = torch.randn(5, 3).to(getattr(torch, dtype))
    batches = [logits[:3].clone(), logits[3:].clone()]
    for batch, labels in zip(batches, ([0, 1, 2], [2, 0]), strict=True):
        ev.process(batch, torch.tensor(labels))
        batch.zero_()  # as a model that fills the same memory again
    held, labels = ev.logits_and_labels()
    assert torch.equal(held.to(logits.dtype), logits) and held.dtype == getattr(torch, kept)
    assert labels.tolist() == [0, 1, 2, 2, 0] and labels.dtype == torch.int32
    ev.reset()
    assert ev.logits_and_labels() is None


def test_logits_are_held_as_asked_for(monkeypatch):
    monkeypatch.setattr("dassl.evaluation.evaluator.MOST_HELD", 5)
    for keep, images in {"auto": None, "never": None, "always": 2}.items():
        ev = evaluator(KEEP_PREDICTIONS=keep)
        feed(ev, [0, 1], [1, 1], batch=1)
        held = ev.logits_and_labels()
        assert held == images if images is None else len(held[1]) == images
    ev = evaluator()
    feed(ev, [0], [1])
    assert len(ev.logits_and_labels()[0]) == 1
    with pytest.raises(ValueError, match=r"KEEP_PREDICTIONS.*did you mean 'always'"):
        evaluator(KEEP_PREDICTIONS="alway")


def test_another_evaluator_can_be_registered():
    @EVALUATOR_REGISTRY.register(force=True)
    class CountOnly(EvaluatorBase):
        def reset(self):
            self.n = 0

        def process(self, mo, gt):
            self.n += len(gt)

        def evaluate(self):
            return {"count": self.n}

    cfg = get_cfg_default()
    cfg.TEST.EVALUATOR = "CountOnly"
    ev = build_evaluator(cfg)
    ev.reset()
    feed(ev, [0, 1, 2], [0, 0, 0])
    assert ev.evaluate() == {"count": 3}


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(2, 6), st.integers(0, 10**6))
def test_accuracy(batch, n_cls, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, n_cls, generator=generator)
    target = torch.randint(n_cls, (batch,), generator=generator)
    top1, top2 = compute_accuracy(logits, target, topk=(1, 2))
    rank = (logits > logits.gather(1, target[:, None])).sum(1)
    assert top1.shape == (1,)
    assert top1.item() == pytest.approx(100 * (rank < 1).float().mean().item(), abs=1e-3)
    assert top2.item() == pytest.approx(100 * (rank < 2).float().mean().item(), abs=1e-3)
    assert torch.equal(compute_accuracy((logits, None), target)[0], top1)


def test_distances():
    a, b = torch.randn(4, 3), torch.randn(5, 3)
    expected = torch.cdist(a, b) ** 2
    torch.testing.assert_close(compute_distance_matrix(a, b), expected, atol=1e-5, rtol=1e-5)
    cosine = 1 - torch.cosine_similarity(a[:, None], b[None], dim=-1)
    torch.testing.assert_close(compute_distance_matrix(a, b, "cosine"), cosine)
    with pytest.raises(ValueError, match="did you mean 'cosine'"):
        compute_distance_matrix(a, b, "cosin")
    with pytest.raises(ValueError, match="same width"):
        compute_distance_matrix(a, b[:, :2])
