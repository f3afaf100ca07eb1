"""MMLoP's parts against recorded methods that share them.

No reference values of MMLoP itself exist. With full prompts and no drift correction it is
independent vision-language prompting; with the consistency loss on top it is PromptSRC's loss.
"""

from __future__ import annotations

import pytest
import torch

from tests.parity.limits import FEATURES, GRADIENTS, LOGITS, LOSS
from tests.parity_files import Recorded, recorded_names, relative_error


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
        *(node + "N_CTX", config["N_CTX_TEXT"]),
        *(node + "PROMPT_DEPTH", config["PROMPT_DEPTH_TEXT"]),
        *weights,
    )
    learner = trainer.model.learner
    params, grads = recorded.named("param"), recorded.named("grad")
    text = stack(params, "prompt_learner.ctx", "text_encoder")
    text[0] -= learner.ctx_init
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
        teacher = trainer.model.predict_frozen(images)
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
