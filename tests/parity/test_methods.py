"""Every recorded method through its trainer: features, logits, loss and gradients of one step.

The recorded parameters are read from a checkpoint file as the published code writes it. Some
methods have tests of their own.
"""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

import trainers  # noqa: F401  registers the methods
from adaptation.features import FeaturePool, FeatureTrainer
from adaptation.learner import PromptLearner
from dassl.config import CfgNode
from dassl.engine import TRAINER_REGISTRY
from tests.parity.limits import FEATURES, GRADIENTS, LOGITS, LOSS
from tests.parity_files import PARITY_DIR, Recorded, recorded_clip, relative_error
from tools.to_upstream import LAYOUTS

plain_text_features = PromptLearner.text_features


#: methods whose recorded steps have tests of their own
OWN_TESTS = ("MMLoP", "TipAdapter", "TipAdapterF", "LPPlusPlus", "CLIPLoRA", "MMA", "TwoStageFS")


def steps() -> list[str]:
    """Names of the recorded files that hold one step of one of our methods."""
    names = []
    for path in sorted(PARITY_DIR.glob("*.npz")):
        recorded = Recorded(path.stem)
        method = recorded.config.get("trainer")
        known = method in TRAINER_REGISTRY.registered_names() and method not in OWN_TESTS
        if known and "loss" in recorded.arrays:
            names.append(path.stem)
    return names


#: modules of the published models that are saved by themselves
SAVED_ALONE = ("prompt_learner.", "adapter.")


def alone(name: str) -> str:
    """Return a tensor's name in the module that is saved by itself."""
    return next((name[len(m) :] for m in SAVED_ALONE if name.startswith(m)), name)


def upstream_state(method: str, params: dict[str, Tensor], n_classes: int) -> dict[str, Tensor]:
    """State dict of the published trainer: learned tensors, class names, and mostly all of CLIP."""
    width = 64
    names = {
        "prompt_learner.token_prefix": torch.zeros(n_classes, 1, width),
        "prompt_learner.token_suffix": torch.zeros(n_classes, 72, width),
    }
    if LAYOUTS[method].embedded_texts:
        names = {"prompt_embeddings": torch.zeros(n_classes, 77, width)}
    state = names | params
    if not LAYOUTS[method].whole:
        return {alone(key): value for key, value in state.items()}
    clip = recorded_clip()
    for key, value in clip.items():
        if LAYOUTS[method].second_clip:
            state[f"model_distill.{key}"] = value
        if key.startswith("visual."):
            state["image_encoder." + key.removeprefix("visual.")] = value
            if LAYOUTS[method].teacher:
                frozen = "prompt_learner.ZS_image_encoder."
                state[frozen + key.removeprefix("visual.")] = value
        elif key == "logit_scale":
            state |= {} if LAYOUTS[method].embedded_texts else {key: value}
        elif not key.startswith("token_embedding"):
            state["text_encoder." + key] = value
    return state


def save_upstream(trainer, state: dict[str, Tensor], folder) -> str:
    path = folder / "upstream" / trainer.model_name
    path.mkdir(parents=True, exist_ok=True)
    keys = {"optimizer": None, "scheduler": None, "val_result": None}
    torch.save({"state_dict": state, "epoch": 7, **keys}, path / "model.pth.tar-7")
    return str(path.parent)


#: settings that are recorded under another name than their key here
RENAMED = {
    "W_effective": "W",
    "class_token_block": "BLOCK",
    "CTX_INIT_from_template": "CTX_INIT",
    "LOSS_T": "T",
    "LOSS_LAMBDA": "LAMBDA",
}
#: methods whose recorded start values are random numbers
RANDOM_START = ("CLIPAdapter",)
OPTIM = {"NESTEROV": "SGD_NESTEROV", "DAMPENING": "SGD_DAMPNING", "EPS": "ADAM_EPS"}


def settings(recorded: Recorded) -> list[object]:
    """Config pairs: recorded settings that the method's node has, and the optimiser's."""
    trainer = TRAINER_REGISTRY.get(recorded.config["trainer"])
    cfg = CfgNode({"TRAINER": CfgNode()})
    trainer.extend_cfg(cfg)
    recorded_settings = {RENAMED.get(key, key): value for key, value in recorded.config.items()}
    pairs = {
        f"TRAINER.{trainer.node}.{key}": "" if value == "none" else value
        for key, value in recorded_settings.items()
        if key in cfg.TRAINER[trainer.node]
    }
    if "FEATURES" in cfg.TRAINER[trainer.node]:  # the file does not tell what it was trained on
        pairs[f"TRAINER.{trainer.node}.FEATURES"] = "both"
    optimiser = dict(recorded.config.get("OPTIM", {}))
    if "adam_eps" in recorded.config:
        optimiser["EPS"] = recorded.config["adam_eps"]
    betas = optimiser.pop("BETAS", ())
    optimiser |= {f"ADAM_BETA{number}": beta for number, beta in enumerate(betas, 1)}
    pairs |= {f"OPTIM.{OPTIM.get(key, key)}": value for key, value in optimiser.items()}
    return [word for pair in pairs.items() for word in pair]


def data_set(recorded: Recorded) -> str:
    """Registry name of the data set whose texts a recorded method read."""
    keys = ("DATASET", "dataset_name_used_for_template")
    return next((recorded.config[k] for k in keys if k in recorded.config), "RecordedClasses")


def give_pool(trainer, recorded: Recorded) -> None:
    """Let a trainer that learns from features take the recorded ones of its training images."""
    if isinstance(trainer, FeatureTrainer) and "train_features_raw" in recorded.arrays:
        trainer.pool = FeaturePool(recorded["train_features_raw"], recorded["train_labels"])
        trainer.take_pool(trainer.pool)


@pytest.mark.filterwarnings("ignore:TRAINER.(COOP|KGCOOP)")
@pytest.mark.parametrize("name", steps())
def test_step(build, name, tmp_path):
    recorded = Recorded(name)
    method = recorded.config["trainer"]
    trainer = build(method, recorded, *settings(recorded), data_set=data_set(recorded))
    model, learner = trainer.model, trainer.model.learner
    for key, value in recorded.named("init").items():
        if method in RANDOM_START:
            continue
        start = dict(learner.named_parameters()).get(key.removeprefix("prompt_learner."))
        start = learner.text[0] if start is None else start
        assert relative_error(start, value) < 1e-7, key

    params = recorded.named("param")
    fixed = [key for key, _ in learner.named_buffers()]
    for key in fixed:  # which a checkpoint holds as well
        assert relative_error(learner.get_buffer(key), recorded[key]) < FEATURES, key
        params |= {key: recorded[key]}
    state = upstream_state(method, params, len(recorded.classnames))
    trainer.load_model(save_upstream(trainer, state, tmp_path), epoch=7)

    images, labels = recorded["images"], recorded["labels"]
    prediction = model.predict(images)
    raw = model.clip.encode_image(images, learner.image_changes())
    assert relative_error(raw, recorded["image_features_raw"]) < FEATURES
    if not learner.image_conditioned and learner.text_features.__func__ is plain_text_features:
        raw = model.clip.encode_text(model.text, learner.text_changes())
        assert relative_error(raw, recorded["text_features_raw"]) < FEATURES
    assert relative_error(prediction.text_features, recorded["text_features"]) < FEATURES
    assert relative_error(prediction.image_features, recorded["image_features"]) < FEATURES
    assert relative_error(prediction.logits, recorded["logits"]) < LOGITS
    with torch.no_grad():
        assert relative_error(trainer.model_inference(images), recorded["logits"]) < LOGITS

    trainer.batch_idx, trainer.num_batches = 0, 2
    give_pool(trainer, recorded)
    seen = recorded["image_features_raw"] if isinstance(trainer, FeatureTrainer) else images
    if "images2" in recorded.arrays:
        seen = [images, recorded["images2"]]
    random.seed(recorded.config.get("python_seed_before_step", 0))
    summary = trainer.forward_backward({"img": seen, "label": labels})
    assert relative_error(summary["loss"], recorded["loss"]) < LOSS
    plain_names = not LAYOUTS[method].whole
    grads = {
        alone(key) if plain_names else key: value for key, value in recorded.named("grad").items()
    }
    grads = learner.from_upstream(grads)
    learned = dict(learner.named_parameters())
    assert grads.keys() == learned.keys()
    for key, value in grads.items():
        assert relative_error(learned[key].grad, value) < GRADIENTS, key


@pytest.mark.parametrize(
    "name", [n for n in steps() if "vision_tokens_per_block" in Recorded(n).arrays]
)
def test_sequence_lengths_of_the_image_encoder(build, name, tmp_path):
    recorded = Recorded(name)
    trainer = build(recorded.config["trainer"], recorded, *settings(recorded))
    seen, model = [], trainer.model
    hooks = [
        block.ln_1.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[0]))
        for block in model.clip.visual.transformer.resblocks
    ]
    with torch.no_grad():
        model.image_features(recorded["images"])
    for hook in hooks:
        hook.remove()
    assert seen == recorded["vision_tokens_per_block"].tolist()


def test_something_not_understood_is_named(build, tmp_path):
    recorded = Recorded("ivlp_4_4")
    n_classes = len(recorded.classnames)
    trainer = build("IVLP", recorded, *settings(recorded))
    state = upstream_state("IVLP", recorded.named("param"), n_classes)
    state["prompt_learner.something_else"] = torch.zeros(2)
    with pytest.raises(ValueError, match=r"prompt_learner\.something_else is not known"):
        trainer.load_model(save_upstream(trainer, state, tmp_path), epoch=7)
    del state["prompt_learner.something_else"]
    state.pop("image_encoder.transformer.resblocks.3.VPT_shallow")
    with pytest.raises(ValueError, match="vision is missing"):
        trainer.load_model(save_upstream(trainer, state, tmp_path), epoch=7)
    wrapped = {
        f"module.{k}": v.half()
        for k, v in upstream_state("IVLP", recorded.named("param"), n_classes).items()
    }
    trainer.load_model(save_upstream(trainer, wrapped, tmp_path), epoch=7)
    ctx = recorded["param/prompt_learner.ctx"]
    assert relative_error(trainer.model.learner.text[0], ctx) < 1e-3
