"""MMLoP against values computed from its paper, and its parts against the methods that share them.

With full prompts and no drift correction it is independent vision-language prompting; with the
one-way consistency loss on top it is PromptSRC's loss.
"""

from __future__ import annotations

import pytest
import torch

from adaptation.losses import logit_consistency
from tests.parity.limits import FEATURES, GRADIENTS, LOGITS, LOSS
from tests.parity.test_methods import settings
from tests.parity_files import Recorded, recorded_names, relative_error

#: names of the learner's factors by those of the paper
FACTORS = {"U": "up", "U_vision": "up_vision", "V_text": "text", "V_vision": "vision"}


@pytest.mark.parametrize("name", recorded_names("mmlop"))
def test_step(build, name):
    """Features before and after drift correction, every loss term, gradients of every factor."""
    recorded = Recorded(name)
    trainer = build("MMLoP", recorded, *settings(recorded))
    model, learner = trainer.model, trainer.model.learner
    factors = {FACTORS[key]: value for key, value in recorded.named("param").items()}
    learned = dict(learner.named_parameters())
    assert factors.keys() == learned.keys()
    learner.load_state_dict(factors)

    images, labels = recorded["images"], recorded["labels"]
    raw = model.clip.encode_image(images, learner.image_prompts())
    assert relative_error(raw, recorded["image_features_raw"]) < FEATURES
    raw = model.clip.encode_text(model.text, learner.text_prompts())
    assert relative_error(raw, recorded["text_features_raw"]) < FEATURES
    prompted = torch.nn.functional.normalize(raw, dim=-1)
    assert relative_error(prompted, recorded["text_features_prompted"]) < FEATURES
    prediction, frozen = model.predict(images), model.predict(images).frozen()
    for found, prefix in ((prediction, ""), (frozen, "teacher_")):
        text = "text" if prefix else "text_features"
        image = "image" if prefix else "image_features"
        assert relative_error(found.text_features, recorded[prefix + text]) < FEATURES
        assert relative_error(found.image_features, recorded[prefix + image]) < FEATURES
        assert relative_error(found.logits, recorded[prefix + "logits"]) < LOGITS
    with torch.no_grad():
        assert relative_error(trainer.model_inference(images), recorded["logits"]) < LOGITS

    logits = prediction.logits.detach(), frozen.logits
    for pair, key in (
        (logits, "loss_kl_frozen_to_prompted"),
        (logits[::-1], "loss_kl_prompted_to_frozen"),
    ):
        assert float(logit_consistency(*pair)) == pytest.approx(float(recorded[key]), rel=LOSS)

    trainer.batch_idx, trainer.num_batches = 0, 2
    summary = trainer.forward_backward({"img": images, "label": labels})
    assert relative_error(summary["loss"], recorded["loss"]) < LOSS
    for term in ("ce", "text", "image", "logits"):
        expected = float(recorded[f"loss_{term}"])
        assert float(summary[term]) == pytest.approx(expected, rel=LOSS), term
    for key, value in recorded.named("grad").items():
        assert relative_error(learned[FACTORS[key]].grad, value) < GRADIENTS, key


def recorded_with_equal_prompts() -> list[str]:
    """Files with the same depth and number of tokens in both encoders."""
    names = []
    for name in recorded_names("ivlp", "promptsrc"):
        config = Recorded(name).config
        same = all(
            config.get(f"{key}_TEXT") == config.get(f"{key}_VISION", -1)
            for key in ("PROMPT_DEPTH", "N_CTX")
        )
        if same and "logits" in Recorded(name).arrays:
            names.append(name)
    return names


def stack(tensors: dict[str, torch.Tensor], first: str, tower: str) -> torch.Tensor:
    """Prompts of all blocks, ``(depth, n, d)``, from upstream's one parameter per block."""
    deep = [key for key in tensors if key.startswith(f"{tower}.") and "VPT_shallow" in key]
    deep.sort(key=lambda key: int(key.split(".")[3]))
    return torch.stack([tensors[key] for key in (first, *deep)])


@pytest.mark.parametrize("name", recorded_with_equal_prompts())
def test_full_prompts(build, name):
    recorded = Recorded(name)
    config, node = recorded.config, "TRAINER.MMLOP."
    consistency = "loss_scl_logits" in recorded.arrays
    weights = [
        word
        for key in ("TEXT_LOSS_WEIGHT", "IMAGE_LOSS_WEIGHT")
        if key in config
        for word in (node + key, float(config[key]))
    ]
    trainer = build(
        "MMLoP",
        recorded,
        *(node + "LOW_RANK", False, node + "DRIFT_CORRECTION", False),
        *(node + "CONSISTENCY", consistency, node + "CTX_INIT", config["CTX_INIT"]),
        *(node + "N_CTX", config["N_CTX_TEXT"], node + "LOGIT_LOSS", "one-way"),
        *(node + "PROMPT_DEPTH", config["PROMPT_DEPTH_TEXT"]),
        *weights,
    )
    learner = trainer.model.learner
    params, grads = recorded.named("param"), recorded.named("grad")
    for start in recorded.named("init").values():
        assert relative_error(learner.text[0], start) < 1e-7
    text = stack(params, "prompt_learner.ctx", "text_encoder")
    with torch.no_grad():
        learner.text.copy_(text)
        learner.vision.copy_(stack(params, "image_encoder.VPT", "image_encoder"))

    images, labels = recorded["images"], recorded["labels"]
    prediction = trainer.model.predict(images)
    assert relative_error(prediction.text_features, recorded["text_features"]) < FEATURES
    assert relative_error(prediction.image_features, recorded["image_features"]) < FEATURES
    assert relative_error(prediction.logits, recorded["logits"]) < LOGITS

    trainer.batch_idx, trainer.num_batches = 0, 2
    summary = trainer.forward_backward({"img": images, "label": labels})
    assert relative_error(summary["loss"], recorded["loss"]) < LOSS
    expected = stack(grads, "prompt_learner.ctx", "text_encoder")
    assert relative_error(learner.text.grad, expected) < GRADIENTS
    expected = stack(grads, "image_encoder.VPT", "image_encoder")
    assert relative_error(learner.vision.grad, expected) < GRADIENTS

    if consistency:
        teacher = trainer.model.predict(images).frozen()
        assert relative_error(teacher.text_features, recorded["teacher_text"]) < FEATURES
        assert relative_error(teacher.image_features, recorded["teacher_image"]) < FEATURES
        assert relative_error(teacher.logits, recorded["teacher_logits"]) < LOGITS
        for term, recorded_term, weight in (
            ("ce", "loss_ce", 1.0),
            ("text", "loss_scl_text_unweighted", config["TEXT_LOSS_WEIGHT"]),
            ("image", "loss_scl_image_unweighted", config["IMAGE_LOSS_WEIGHT"]),
            ("logits", "loss_scl_logits", 1.0),
        ):
            expected = weight * float(recorded[recorded_term])
            assert float(summary[term]) == pytest.approx(expected, rel=LOSS)
