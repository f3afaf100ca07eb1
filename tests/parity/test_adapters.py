"""CLIP-LoRA, MMA and 2SFS: one step, its parts, and whole training runs through their trainers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import trainers  # noqa: F401  registers the methods
from adaptation.checkpoints import checked_weights
from tests.parity.limits import FEATURES, GRADIENTS, LOGITS, LOSS, TRAINING
from tests.parity.test_methods import settings
from tests.parity_files import Recorded, recorded_names, relative_error

#: logits of CLIP-LoRA are 100 times as large as their cosines: see the files' description
LOSS_OF_COSINES_TIMES_100 = 3e-5
RATES = 1e-9


def files(start: str) -> list[str]:
    return [name for name in recorded_names(start) if "training" not in name]


def build_loaded(build, recorded: Recorded, params: str, *pairs: object):
    """Trainer with the recorded parameters, which the published names are translated of."""
    method = recorded.config.setdefault("trainer", recorded.config.get("method"))
    trainer = build(method, recorded, *settings(recorded), *pairs)
    load(trainer, recorded.named(params))
    trainer.set_model_mode("train")
    return trainer


def load(trainer, params: dict[str, Tensor]) -> None:
    learner, names = trainer.model.learner, trainer.model.classnames
    checkpoint = {"state_dict": params, "epoch": 0}
    learner.load_state_dict(checked_weights(checkpoint, learner, names, "recorded"))


def assert_step(trainer, recorded: Recorded, loss_limit: float = LOSS) -> None:
    """Features and logits in evaluation and training, loss and gradients of one step."""
    model, learner = trainer.model, trainer.model.learner
    images, labels = recorded["images"], recorded["labels"]
    trainer.set_model_mode("eval")
    with torch.no_grad():
        prediction = model.predict(images)
        raw = {
            "image_features_raw": model.encode_image(images, learner.image_changes()),
            "text_features_raw": model.encode_text(learner.text_changes()),
            "image_features": prediction.image_features,
            "text_features": prediction.text_features,
        }
        for name, value in raw.items():
            if name in recorded.arrays:
                assert relative_error(value, recorded[name]) < FEATURES, name
        if "logits" in recorded.arrays:
            assert relative_error(prediction.logits, recorded["logits"]) < LOGITS
            assert relative_error(trainer.model_inference(images), recorded["logits"]) < LOGITS
    trainer.set_model_mode("train")
    prediction = model.predict(images)
    assert relative_error(prediction.logits, recorded["logits_train"]) < LOGITS
    trainer.batch_idx, trainer.num_batches = 0, 2
    summary = trainer.forward_backward({"img": images, "label": labels})
    assert relative_error(summary["loss"], recorded["loss"]) < loss_limit
    learned = dict(learner.named_parameters())
    grads = learner.from_upstream(recorded.named("grad"))
    assert grads.keys() <= learned.keys()
    for key, value in grads.items():
        assert relative_error(learned[key].grad, value) < GRADIENTS, key


class Mask(nn.Module):
    """Dropout with given masks, ``(N, length, d)``; the last block asks for its first rows."""

    def __init__(self, keep: Tensor, share: float) -> None:
        super().__init__()
        self.keep, self.share = keep, share

    def forward(self, x: Tensor) -> Tensor:
        return x * self.keep[:, : x.shape[1]] / (1 - self.share)


def put_masks(trainer, recorded: Recorded) -> int:
    masks = recorded.named("dropout_keep")
    learner, images = trainer.model.learner, recorded["images"]
    width = trainer.model.clip.visual.transformer.width
    length = len(trainer.model.clip.visual.positional_embedding)
    places = learner.from_upstream({f"{key}.w_lora_A": key for key in masks})
    for place, key in places.items():
        bits = np.unpackbits(masks[key].numpy())[: length * len(images) * width]
        keep = torch.from_numpy(bits).view(length, len(images), width).transpose(0, 1)
        term = learner.get_submodule(place.removesuffix(".down"))
        assert term.dropout == recorded.config["DROPOUT"]
        term.drop = Mask(keep, term.dropout)
    return len(places)


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
@pytest.mark.parametrize("name", files("cliplora"))
def test_step_of_cliplora(build, name, fast):
    recorded = Recorded(name)
    trainer = build_loaded(build, recorded, "param", "MODEL.FAST_ENCODERS", fast)
    masked = put_masks(trainer, recorded) if recorded.named("dropout_keep") else 0
    assert masked == len(recorded.named("dropout_keep"))
    assert_step(trainer, recorded, LOSS_OF_COSINES_TIMES_100)
    scale = trainer.model.learner.scale
    assert scale == pytest.approx(recorded.config.get("scaling", scale))


@pytest.mark.parametrize("name", [n for n in files("cliplora") if "dropout" not in n])
def test_projections_of_the_last_block(build, name):
    recorded = Recorded(name)
    trainer = build_loaded(build, recorded, "param")
    learner, clip = trainer.model.learner, trainer.model.clip
    towers = {"text": (clip.transformer, learner.text_changes())}
    towers["image"] = (clip.visual.transformer, learner.image_changes())
    seen = 0
    for tower, (transformer, changes) in towers.items():
        if f"block11_{tower}_input" in recorded.arrays:
            attn, change = transformer.resblocks[-1].attn, changes[11]
            found = attn.project(recorded[f"block11_{tower}_input"], change).chunk(3, dim=-1)
            for letter, value in zip("qkv", found, strict=True):
                wanted = recorded[f"block11_{tower}_{letter}_proj"]
                assert relative_error(value, wanted) < FEATURES, (tower, letter)
                seen += 1
    assert seen


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
@pytest.mark.parametrize("name", files("mma"))
def test_step_of_mma(build, name, fast):
    recorded = Recorded(name)
    lr = recorded.config["lr_of_after_step"]
    pairs = ("OPTIM.NAME", "sgd", "OPTIM.LR", lr, "OPTIM.WARMUP_EPOCH", 0)
    trainer = build_loaded(build, recorded, "param", *pairs, "MODEL.FAST_ENCODERS", fast)
    assert_step(trainer, recorded)
    state = trainer.model.learner.state_dict()
    for key, value in recorded.named("after_step").items():
        assert relative_error(state[key], value) < FEATURES, key


@pytest.mark.parametrize("name", files("mma"))
def test_adapters(build, name):
    """Hidden layers and results at the class token and at the end of text."""
    recorded = Recorded(name)
    trainer = build_loaded(build, recorded, "param", "MODEL.FAST_ENCODERS", False)
    model, learner = trainer.model, trainer.model.learner
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    for tower, ends in (("text", learner.text_adapter), ("visual", learner.visual_adapter)):
        for number, module in ends.items():

            def keep(_, args, result, key=f"{tower}.{number}"):
                seen[key] = args[0], result

            module.up.register_forward_hook(keep)
    with torch.no_grad():
        model.predict(recorded["images"])
    end = recorded["tokenized_prompts"].argmax(dim=-1)
    hidden, out = recorded.named("adapter_hidden"), recorded.named("adapter_out")
    assert seen.keys() == hidden.keys() == out.keys()
    for key, (before, after) in seen.items():
        is_text = key.startswith("text")
        rows = (torch.arange(len(end)), end) if is_text else (slice(None), 0)
        assert relative_error(before[rows], hidden[key]) < FEATURES, key
        assert relative_error(after[rows], out[key]) < FEATURES, key


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
@pytest.mark.parametrize("name", files("twostage"))
def test_step_of_two_stages(build, name, fast):
    recorded = Recorded(name)
    after = recorded.config.get("after_step", {})
    pairs = ("OPTIM.NAME", "adamw", "OPTIM.WARMUP_EPOCH", -1, "MODEL.FAST_ENCODERS", fast)
    pairs += ("OPTIM.LR", after.get("LR", 0.01))
    pairs += ("OPTIM.WEIGHT_DECAY", after.get("WEIGHT_DECAY", 0.01))
    trainer = build_loaded(build, recorded, "param", *pairs)
    learner = trainer.model.learner
    if recorded.config["stage"] == 2:
        rows = learner.rows.detach().clone()
        trainer.begin_stage(1)
        assert relative_error(learner.rows, recorded["init/classifier"]) < FEATURES
        learner.rows.data.copy_(rows)
    else:
        # its optimiser has more: these get no gradient, and are no parameters here
        untrained = learner.from_upstream(
            {key: key for key in recorded.arrays["listed_but_never_trained"]}
        )
        assert not untrained.keys() & dict(learner.named_parameters()).keys()
        assert recorded.named("grad").keys() == recorded.named("param").keys()
    norms = {key: value.clone() for key, value in learner.state_dict().items() if key != "rows"}
    assert_step(trainer, recorded)
    for key, value in learner.from_upstream(recorded.named("after_step")).items():
        assert relative_error(learner.state_dict()[key], value) < FEATURES, key
        assert all(torch.equal(learner.state_dict()[key], value) for key, value in norms.items())


@pytest.mark.parametrize("name", [n for n in files("twostage") if "stage2" in n])
def test_selective_inference(build, name):
    """Rows of the classes that are known by name, encoded names of the others."""
    recorded = Recorded(name)
    trainer = build_loaded(build, recorded, "param")
    trainer.set_model_mode("eval")
    model = trainer.model
    for kind in ("base", "new", "mixed"):
        model.set_classes([str(one) for one in recorded.arrays[f"infer/{kind}/classnames"]])
        with torch.no_grad():
            text, logits = model.text_features(), model(recorded["images"])
        assert relative_error(text, recorded[f"infer/{kind}/classifier"]) < FEATURES, kind
        assert relative_error(logits, recorded[f"infer/{kind}/logits"]) < LOGITS, kind


def step_on(trainer, recorded: Recorded, step: int, index: int) -> None:
    """Take a recorded step on one of the two batches, and compare loss and learning rate."""
    rate, loss = float(recorded["lr"][step]), float(recorded["loss"][step])
    assert trainer.get_current_lr() == pytest.approx(rate, rel=RATES), step
    trainer.batch_idx = index
    batch = {"img": recorded["images"][index], "label": recorded["labels"][index]}
    assert float(trainer.forward_backward(batch)["loss"]) == pytest.approx(loss, rel=TRAINING), step


def assert_end(trainer, recorded: Recorded, params: dict[str, Tensor]) -> None:
    learner = trainer.model.learner
    params = learner.from_upstream(params)
    assert params
    for key, value in params.items():
        assert relative_error(learner.state_dict()[key], value) < TRAINING, key
    trainer.set_model_mode("eval")
    if "final_logits_batch0" in recorded.arrays:
        with torch.no_grad():
            logits = trainer.model_inference(recorded["images"][0])
        assert relative_error(logits, recorded["final_logits_batch0"]) < TRAINING


def training(start: str) -> list[str]:
    return [name for name in recorded_names(start) if "training" in name]


def per_step(recorded: Recorded, steps: int) -> tuple[object, ...]:
    """Settings of a run whose recorded optimiser has another rate at every step."""
    optim = recorded.config["OPTIM"]
    optim |= {"MIN_LR": optim.pop("ETA_MIN"), "MAX_ITERATIONS": steps, "LR_SCHEDULER": "cosine"}
    optim.pop("TOTAL_ITERS", None)
    return "OPTIM.SCHEDULE_PER", "batch", "OPTIM.WARMUP_EPOCH", -1


@pytest.mark.parametrize("name", training("cliplora"))
def test_training_of_cliplora(build, name):
    recorded = Recorded(name)
    pairs = per_step(recorded, recorded.config["OPTIM"]["TOTAL_ITERS"])
    trainer = build_loaded(build, recorded, "init_param", *pairs)
    trainer.num_batches = 2
    for step in range(len(recorded["loss"])):
        step_on(trainer, recorded, step, step % 2)
    assert_end(trainer, recorded, recorded.named("final_param"))


@pytest.mark.parametrize("name", training("mma"))
def test_training_of_mma(build, name):
    recorded = Recorded(name)
    trainer = build_loaded(build, recorded, "init_param")
    trainer.num_batches = recorded.config["batches_per_epoch"]
    for step in range(len(recorded["loss"])):
        epoch, index = divmod(step, trainer.num_batches)
        step_on(trainer, recorded, step, index)
        for key, value in recorded.named("after_epoch").items():
            if index + 1 == trainer.num_batches:
                found = trainer.model.learner.state_dict()[key]
                assert relative_error(found, value[epoch]) < TRAINING, (key, epoch)
    assert_end(trainer, recorded, recorded.named("final_param"))


@pytest.mark.parametrize("name", training("twostage"))
def test_training_of_two_stages(build, name):
    recorded = Recorded(name)
    config = recorded.config
    pairs = per_step(recorded, config["N_ITERS"] * config["shots"])
    trainer = build_loaded(build, recorded, "init_param", *pairs)
    assert list(trainer.run_length.stages) == config["iterations"]
    trainer.num_batches, step = 2, 0
    for stage, steps in enumerate(config["iterations"]):
        if stage:
            trainer.begin_stage(stage)
            rows = trainer.model.learner.rows
            assert relative_error(rows, recorded["init/classifier"]) < TRAINING
        for index in range(steps):
            step_on(trainer, recorded, step, index % 2)
            step += 1
    assert_end(trainer, recorded, recorded.named("final_param"))
    for kind, names in (("base", "classnames"), ("new", "new_classnames")):
        trainer.model.set_classes([str(one) for one in recorded.arrays[names]])
        with torch.no_grad():
            logits = trainer.model_inference(recorded["test_images"])
        assert relative_error(logits, recorded[f"infer_{kind}_logits"]) < TRAINING, kind
