"""LoR-VP's picture, its gradients through CLIP and a linear head, and the label mapping."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from adaptation.label_mapping import frequency_mapping
from clip.preprocessing import MEAN, STD
from tests.parity.limits import FEATURES, GRADIENTS, LOGITS, LOSS
from tests.parity_files import PARITY_DIR, Recorded, relative_error
from trainers.lorvp import PixelPromptLearner

pytestmark = pytest.mark.skipif(
    not (PARITY_DIR / "lorvp.npz").exists(), reason="nothing recorded for LoR-VP"
)
NORMALISERS = {"none": ([0.0] * 3, [1.0] * 3), "half": ([0.5] * 3, [0.5] * 3), "clip": (MEAN, STD)}


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    return Recorded("lorvp")


def normalise(recorded: Recorded, name: str = "clip") -> torch.Tensor:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in NORMALISERS[name])
    return (recorded["images_01"] - mean) / std


def load(learner: PixelPromptLearner, recorded: Recorded, case: str) -> None:
    with torch.no_grad():
        learner.left.copy_(recorded[f"{case}/left_bar"])
        learner.right.copy_(recorded[f"{case}/right_bar"])


@pytest.mark.parametrize("name", NORMALISERS)
def test_prompted_image(recorded, name):
    side, rank = recorded["rand/left_bar"].shape[1:]
    learner = PixelPromptLearner(side, rank, ("zero", "normal"), NORMALISERS[name][1])
    load(learner, recorded, "rand")
    assert relative_error(learner.picture, recorded["rand/program"]) < FEATURES
    image = learner.change_image(normalise(recorded, name))
    assert relative_error(image, recorded[f"rand/prompted_{name}"]) < FEATURES


@pytest.mark.parametrize("case", ["init", "rand"])
def test_gradients_of_the_picture_alone(recorded, case):
    side, rank = recorded["rand/left_bar"].shape[1:]
    learner = PixelPromptLearner(side, rank, ("zero", "normal"), STD)
    load(learner, recorded, case)
    loss = learner.change_image(normalise(recorded)).square().mean() / 2
    loss.backward()
    assert relative_error(loss, recorded[f"{case}/simple_loss"]) < LOSS
    for bar in ("left", "right"):
        grad = recorded[f"{case}/simple_grad/{bar}_bar"]
        assert relative_error(getattr(learner, bar).grad, grad) < GRADIENTS, bar


class _Named(Recorded):
    """The recorded file names no classes and no image as a trainer gets it; any will do."""

    classnames = property(lambda self: [f"class {n}" for n in range(len(self["head.bias"]))])

    def __getitem__(self, name: str) -> torch.Tensor:
        return super().__getitem__("images_01" if name == "images" else name)


@pytest.mark.parametrize("case", ["init", "rand"])
def test_step_with_a_linear_head(build, case):
    recorded = _Named("lorvp")
    rank = recorded["rand/left_bar"].shape[-1]
    trainer = build("LoRVP", recorded, "TRAINER.LORVP.HEAD", "lp", "TRAINER.LORVP.RANK", rank)
    learner = trainer.model.learner
    load(learner, recorded, case)
    learner.head.load_state_dict({"weight": recorded["head.weight"], "bias": recorded["head.bias"]})
    image, label = normalise(recorded), recorded["labels"]
    with torch.no_grad():
        found = F.log_softmax(trainer.model_inference(image), dim=-1)
    assert relative_error(found, recorded[f"{case}/log_probs"]) < LOGITS
    trainer.batch_idx, trainer.num_batches = 0, 2
    summary = trainer.forward_backward({"img": image, "label": label})
    assert relative_error(summary["loss"], recorded[f"{case}/ce_loss"]) < LOSS
    named = {"left_bar": "left", "right_bar": "right"}
    grads = recorded.named(f"{case}/ce_grad")
    learned = dict(learner.named_parameters())
    assert {named.get(key, key) for key in grads} == learned.keys()
    for key, grad in grads.items():
        assert relative_error(learned[named.get(key, key)].grad, grad) < GRADIENTS, key


def test_frequency_mapping(recorded):
    logits, target = recorded["mapping/source_logits"], recorded["mapping/targets"]
    sequence = recorded["mapping/sequence"]
    found = frequency_mapping(logits.argmax(dim=-1), target, logits.shape[1], len(sequence))
    assert torch.equal(found, sequence)
    mapped = logits[:3][:, found]
    assert torch.equal(mapped, recorded["mapping/mapped_logits_first3"])
