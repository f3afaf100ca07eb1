"""What every registered prompt method must do; a new method is covered by being registered."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import trainers  # noqa: F401  registers the methods
from adaptation.features import FeatureTrainer
from adaptation.trainer import PromptTrainer
from adaptation.version import __version__
from clip import packed_attention
from dassl.engine import TRAINER_REGISTRY, build_trainer, config_node
from dassl.engine.run_notes import run_facts
from dassl.utils import set_random_seed, use_deterministic_algorithms
from tests.parity_files import relative_error
from tests.tape import TapeCapture, capture_breakers

METHODS = [
    name
    for name in TRAINER_REGISTRY.registered_names()
    if issubclass(TRAINER_REGISTRY.get(name), PromptTrainer)
    and TRAINER_REGISTRY.get(name).has_steps
]
#: those whose steps are on features, which seeds do not share
ON_FEATURES = [name for name in METHODS if issubclass(TRAINER_REGISTRY.get(name), FeatureTrainer)]
TOGETHER = [
    name
    for name in METHODS
    if name not in ON_FEATURES and not TRAINER_REGISTRY.get(name).changes_blocks
]
#: settings with which a few steps train everything
EARLY = {
    "LPPlusPlus": ("TRAINER.LPPP.ALPHA_EVERY", 1),
    "MMRLPlusPlus": ("OPTIM.WARMUP_EPOCH", -1),  # factors whose partner starts at zero
}
#: methods that refuse OPTIM.CUDA_GRAPH
NOT_CAPTURED = ("LPPlusPlus",)
PRECISIONS = ("fp32", "amp", "bf16", "fp16")

pytestmark = pytest.mark.parametrize("method", METHODS)


def node(method: str) -> str:
    return f"TRAINER.{config_node(method)}"


def batch_of(trainer) -> dict:
    """A batch that the trainer steps on: of images, or of their features."""
    if isinstance(trainer, FeatureTrainer) and not hasattr(trainer, "pool"):
        trainer.before_epoch()
        trainer.set_model_mode("train")
    return next(iter(trainer.train_loader_x))


def images_of(trainer) -> torch.Tensor:
    loader = trainer.image_loader if isinstance(trainer, FeatureTrainer) else trainer.train_loader_x
    return next(iter(loader))["img"]


def snapshot(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(module.state_dict())


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_step_trains_the_learner_and_leaves_clip_alone(make_cfg, method, precision, device):
    # what starts as a product with 0 moves in the second step, if the first one is no warm-up
    pairs = (f"{node(method)}.PREC", precision, "OPTIM.WARMUP_EPOCH", -1)
    cfg = make_cfg(method, *pairs, "USE_CUDA", device == "cuda", *EARLY.get(method, ()))
    set_random_seed(1)  # a start that leaves no hidden unit of a small network dead
    trainer = build_trainer(cfg)
    assert trainer.device.type == device
    trainer.set_model_mode("train")
    clip, learner = snapshot(trainer.model.clip), snapshot(trainer.model.learner)
    trainer.num_batches = 100
    # automatic mixed precision skips steps until its loss scale fits
    for step in range(12 if precision == "amp" else 2):
        trainer.batch_idx = step
        summary = trainer.forward_backward(batch_of(trainer))
        now = trainer.model.learner.named_parameters()
        if not any(torch.equal(value.detach(), learner[key]) for key, value in now):
            break
    assert all(float(value) == float(value) for value in summary.values()), "a number, not NaN"
    assert {"loss", "acc"} <= summary.keys()
    for key, value in trainer.model.clip.state_dict().items():
        assert torch.equal(value, clip[key]), key
    assert all(p.grad is None for p in trainer.model.clip.parameters())
    for key, value in trainer.model.learner.named_parameters():
        assert value.dtype == torch.float32, key
        assert torch.isfinite(value).all(), key
        assert not torch.equal(value.detach(), learner[key]), f"{key} was not trained"
    assert 0.0 <= trainer.test() <= 100.0


@pytest.fixture()
def deterministic():
    """As with ``train.py --deterministic``."""
    use_deterministic_algorithms()
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_step_repeats_itself(make_cfg, method, device):
    """No operation lacks a deterministic algorithm, and gradients are equal to the last digit."""
    trainer = build_trainer(make_cfg(method, "USE_CUDA", device == "cuda"))
    trainer.set_model_mode("train")
    image, label = trainer.parse_batch_train(batch_of(trainer))

    def gradients():
        trainer.model.learner.zero_grad()
        prediction = trainer.predict(image)
        trainer.loss(prediction, label)[0].backward()
        return [parameter.grad.clone() for parameter in trainer.model.learner.parameters()]

    assert all(map(torch.equal, gradients(), gradients()))


class Reads(TorchDispatchMode):
    """Counts how often a value is taken out of a tensor, which waits for an accelerator."""

    n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_step_reads_nothing_from_the_device(make_cfg, method):
    trainer = build_trainer(make_cfg(method, "OPTIM.CLIP_GRAD_NORM", 1.0))
    trainer.set_model_mode("train")
    trainer.num_batches, batch = 100, batch_of(trainer)
    for trainer.batch_idx in range(2):  # what is computed once is computed in the first step
        with Reads() as reads:
            trainer.forward_backward(batch)
    assert reads.n == 0


@pytest.mark.gpu
@pytest.mark.parametrize("precision", [name for name in PRECISIONS if name != "amp"])
def test_step_does_not_wait_for_a_gpu(make_cfg, method, precision):
    """Copies to the device and the step itself; automatic scaling of the loss has to wait."""
    pairs = (f"{node(method)}.PREC", precision, "OPTIM.CLIP_GRAD_NORM", 1.0, "USE_CUDA", True)
    trainer = build_trainer(make_cfg(method, *pairs))
    trainer.set_model_mode("train")
    trainer.num_batches, batch = 100, batch_of(trainer)
    assert batch["img"].is_pinned()
    for trainer.batch_idx in range(2):  # what is computed once is computed in the first step
        trainer.forward_backward(batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.batch_idx = 2
        trainer.forward_backward(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture()
def attention_of_a_gpu(monkeypatch) -> None:
    """The text encoder attends as it does off the CPU."""
    monkeypatch.setattr(packed_attention, "GROUPS_ON", ())


@pytest.mark.usefixtures("attention_of_a_gpu")
@pytest.mark.parametrize("chunk", [0, 2])
def test_step_can_be_captured(make_cfg, monkeypatch, method, chunk):
    """No tensor of host data, no value read, no random number once everything has come once."""
    pairs = ("OPTIM.CLIP_GRAD_NORM", 1.0, "OPTIM.CUDA_GRAPH", True)
    if method in NOT_CAPTURED:
        with pytest.raises(ValueError, match=r"^OPTIM\.CUDA_GRAPH"):
            build_trainer(make_cfg(method, *pairs))
        return
    trainer = build_trainer(make_cfg(method, *pairs))
    monkeypatch.setattr(trainer.model, "texts_at_once", lambda *_, **__: chunk)
    trainer.set_model_mode("train")
    image, label = trainer.parse_batch_train(batch_of(trainer))
    with trainer.graph.rates.on_device():
        trainer.train_on(image, label)
        with capture_breakers() as found:
            trainer.train_on(image, label)
    assert found == []


def assert_graph_trains_as_single_operations(make_cfg, method, tmp_path, limit, *pairs):
    def run(folder: str, graph: bool):
        set_random_seed(3)
        cfg = make_cfg(
            method,
            *("OUTPUT_DIR", str(tmp_path / folder), "OPTIM.CUDA_GRAPH", graph),
            *("DATASET.NUM_SHOTS", 4, "OPTIM.MAX_EPOCH", 3, "TEST.NO_TEST", True, *pairs),
        )
        trainer = build_trainer(cfg)
        if graph and trainer.device.type == "cpu":
            trainer.graph.capture = TapeCapture()
        written, write = [], trainer.write_scalar

        def write_and_keep(tag, value, step):
            written.append((tag, step, value))
            write(tag, value, step)

        trainer.write_scalar = write_and_keep
        trainer.train()
        return trainer, written

    (eager, scalars), (graphed, same) = run("eager", False), run("graphed", True)
    assert graphed.graph.captured
    for (tag, step, value), (its_tag, its_step, its_value) in zip(scalars, same, strict=True):
        assert (tag, step) == (its_tag, its_step)
        if tag == "train/lr":
            assert value == its_value
        elif tag != "train/acc":  # one near tie of logits may fall either way
            assert value == pytest.approx(its_value, rel=limit, abs=limit), (tag, step)
    for key, value in eager.model.learner.state_dict().items():
        assert relative_error(graphed.model.learner.state_dict()[key], value) < limit, key
    return graphed


@pytest.mark.usefixtures("attention_of_a_gpu")
def test_replayed_steps_train_as_single_operations(make_cfg, method, tmp_path):
    """A run of three epochs, of which replays do all but three steps; a tape stands for the GPU."""
    pairs = ("OPTIM.CLIP_GRAD_NORM", 1.0)
    if method in NOT_CAPTURED:
        pytest.skip("refused, as the test above says")
    run = assert_graph_trains_as_single_operations(make_cfg, method, tmp_path, 2e-4, *pairs)
    assert (run.graph.capture.records, run.graph.capture.replays) == (1, 12)


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-3), ("bf16", 5e-2)])
def test_a_cuda_graph_trains_as_single_operations(make_cfg, method, tmp_path, precision, limit):
    pairs = (f"{node(method)}.PREC", precision, "OPTIM.CLIP_GRAD_NORM", 1.0, "USE_CUDA", True)
    assert_graph_trains_as_single_operations(make_cfg, method, tmp_path, limit, *pairs)


def test_fast_encoders_train_as_the_plain_ones(make_cfg, method):
    """Features, gradients of every learnable tensor, and where three steps lead."""

    def run(slow: bool):
        set_random_seed(3)
        pairs = ("OPTIM.WARMUP_EPOCH", -1, "MODEL.TEACHER_CACHE_MB", 0, *EARLY.get(method, ()))
        trainer = build_trainer(make_cfg(method, *pairs, "MODEL.FAST_ENCODERS", not slow))
        assert trainer.model.encoders.fast != slow
        trainer.set_model_mode("train")
        trainer.num_batches, batches = 100, [batch_of(trainer) for _ in range(3)]
        with torch.no_grad():
            prediction = trainer.predict(batches[0]["img"])
        learner, grads = trainer.model.learner, {}
        for trainer.batch_idx, batch in enumerate(batches):
            trainer.forward_backward(batch)
            grads = grads or {key: p.grad.clone() for key, p in learner.named_parameters()}
        return batches, prediction, grads, learner.state_dict()

    batches, fast, fast_grads, fast_end = run(slow=False)
    same, slow, slow_grads, slow_end = run(slow=True)
    limit = 2e-5 if method in ON_FEATURES else 0.0
    assert relative_error(batches[2]["img"], same[2]["img"]) <= limit
    for field in ("image_features", "text_features", "logits"):
        assert relative_error(getattr(fast, field), getattr(slow, field)) < 2e-5, field
    for key, grad in slow_grads.items():
        assert relative_error(fast_grads[key], grad) < 5e-4, key
        assert relative_error(fast_end[key], slow_end[key]) < 2e-4, key


@pytest.mark.parametrize("precision", ["amp", "bf16", "fp16"])
def test_plain_encoders_in_lower_precision(make_cfg, method, precision):
    def predict(fast: bool):
        set_random_seed(3)
        pairs = (f"{node(method)}.PREC", precision, "MODEL.FAST_ENCODERS", fast)
        trainer = build_trainer(make_cfg(method, *pairs))
        return trainer.predict(batch_of(trainer)["img"])

    fast, slow = predict(True), predict(False)
    for field, limit in (("image_features", 0.05), ("text_features", 0.05), ("logits", 0.1)):
        assert relative_error(getattr(fast, field), getattr(slow, field).detach()) < limit, field


@pytest.mark.parametrize(("precision", "limit"), [("fp32", 2e-4), ("amp", 5e-2)])
def test_chunks_of_text_train_as_the_whole(make_cfg, monkeypatch, method, precision, limit):
    """MODEL.MEMORY_GB changes neither predictions nor the gradient of any learnable tensor."""

    def run(chunk: int):
        set_random_seed(3)
        trainer = build_trainer(make_cfg(method, f"{node(method)}.PREC", precision))
        monkeypatch.setattr(trainer.model, "texts_at_once", lambda *_, **__: chunk)
        trainer.set_model_mode("train")
        sizes, encode = [], trainer.model.clip.encode_text

        def counted(text, prompts=None):
            sizes.append(len(text))
            return encode(text, prompts)

        batch = batch_of(trainer)
        trainer.loss(trainer.predict(batch["img"]), batch["label"])  # computes what is kept
        trainer.model.clip.encode_text = counted
        prediction = trainer.predict(batch["img"])
        loss, _ = trainer.loss(prediction, batch["label"])
        loss.backward()
        grads = {key: p.grad for key, p in trainer.model.learner.named_parameters()}
        return prediction, grads, sizes, trainer.model.learner

    whole, whole_grads, whole_sizes, learner = run(0)
    chunked, grads, sizes, _ = run(2)
    # texts that do not change are kept
    changes = learner.text_changes() is not None
    assert len(whole_sizes) == changes
    if changes:
        # five classes, once forward and once again for the backward pass
        assert sum(sizes) == 10 and max(sizes) <= 2
    for field in ("text_features", "logits"):
        expected = getattr(whole, field).detach()
        assert relative_error(getattr(chunked, field), expected) < limit, field
    for key, grad in whole_grads.items():
        assert relative_error(grads[key], grad) < limit, key


def test_impossible_memory(make_cfg, method):
    with pytest.raises(ValueError, match=r"MODEL\.MEMORY_GB is -1"):
        build_trainer(make_cfg(method, "MODEL.MEMORY_GB", -1))
    with pytest.raises(ValueError, match=r"bounds the fast encoders only"):
        build_trainer(make_cfg(method, "MODEL.MEMORY_GB", 1, "MODEL.FAST_ENCODERS", False))


def test_every_registered_parameter_is_optimised(make_cfg, method):
    trainer = build_trainer(make_cfg(method))
    optimised = {id(p) for group in trainer.optim.param_groups for p in group["params"]}
    assert optimised == {id(p) for p in trainer.model.learner.parameters()}


def test_run_saves_the_learner_only(make_cfg, method):
    cfg = make_cfg(method, "DATASET.NUM_SHOTS", 2)
    trainer = build_trainer(cfg)
    trainer.train()
    folder = Path(cfg.OUTPUT_DIR) / trainer.model_name
    assert (folder / "checkpoint").read_text() == "model.pth.tar-1\n"
    checkpoint = torch.load(folder / "model.pth.tar-1", weights_only=True)
    assert checkpoint["state_dict"].keys() == trainer.model.learner.state_dict().keys()
    meta = checkpoint["meta"]
    assert meta["method"] == method
    assert meta["classnames"] == trainer.dm.dataset.classnames
    assert meta["backbone"] == cfg.MODEL.BACKBONE.NAME
    n_values = sum(p.numel() for p in trainer.model.learner.parameters())
    assert run_facts(trainer)["parameters"] == n_values
    # weights, momentum and at most one average of them in float32; random state and metadata
    assert (folder / "model.pth.tar-1").stat().st_size < 12 * n_values + 60_000


def test_base_checkpoint_classifies_new_classes(make_cfg, method, tmp_path):
    base = build_trainer(make_cfg(method, "DATASET.SUBSAMPLE_CLASSES", "base"))
    base.num_batches, base.batch_idx = 100, 0
    base.forward_backward(batch_of(base))
    base.save_model(0, str(tmp_path / "base"))
    cfg = make_cfg(method, "DATASET.SUBSAMPLE_CLASSES", "new")
    new = build_trainer(cfg)
    if new.model.learner.class_specific:
        with pytest.raises(ValueError, match="is class-specific: it fits only the 3 classes"):
            new.load_model(str(tmp_path / "base"), epoch=1)
        return
    assert set(new.dm.dataset.classnames).isdisjoint(base.dm.dataset.classnames)
    new.load_model(str(tmp_path / "base"), epoch=1)
    for key, value in base.model.learner.state_dict().items():
        assert torch.equal(value, new.model.learner.state_dict()[key])
    assert 0.0 <= new.test() <= 100.0
    assert run_facts(new)["model"]["epoch"] == 1
    logits = new.model_inference(images_of(new))
    assert logits.shape[1] == len(new.dm.dataset.classnames)


def test_resumed_run_equals_a_straight_one(make_cfg, method, tmp_path):
    def run(folder: str, epochs_at_once: list[int]):
        for last in epochs_at_once:
            set_random_seed(5)
            trainer = build_trainer(
                make_cfg(
                    method,
                    *("OUTPUT_DIR", str(tmp_path / folder), "OPTIM.MAX_EPOCH", 3),
                    *("DATASET.NUM_SHOTS", 2, "TEST.NO_TEST", True, "TRAIN.CHECKPOINT_FREQ", 1),
                )
            )
            trainer.max_epoch = last
            trainer.train()
        return trainer

    straight, resumed = run("straight", [3]), run("resumed", [1, 3])
    assert resumed.get_current_lr() == straight.get_current_lr()
    for key, value in straight.model.learner.state_dict().items():
        assert torch.equal(value, resumed.model.learner.state_dict()[key]), key


def test_text_is_encoded_once_per_evaluation(make_cfg, method):
    trainer = build_trainer(make_cfg(method, "DATALOADER.TEST.BATCH_SIZE", 5))
    assert len(trainer.test_loader) > 1
    model, calls, encode = trainer.model, [], trainer.model.clip.encode_text

    def counted(text, prompts=None):
        if text is model.text:  # not the teacher's
            calls.append(prompts)
        return encode(text, prompts)

    model.clip.encode_text = counted
    trainer.test()
    if model.learner.image_conditioned:
        assert len(calls) == len(trainer.test_loader)
        return
    once = 0 if model.learner.class_rows else 1  # with vectors of its own it encodes no text
    assert len(calls) == once
    with torch.no_grad():
        image = images_of(trainer)
        before = trainer.model_inference(image)
        assert len(calls) == once, "nothing changed, nothing to encode again"
    trainer.num_batches, trainer.batch_idx = 100, 0
    trainer.forward_backward(batch_of(trainer))
    seen = len(calls)
    with torch.no_grad():
        trainer.model_inference(image)
    if model.learner.text_changes() is None:
        assert len(calls) == once, "hand-written text is encoded once, also in training"
        return
    assert len(calls) == seen + 1, "after a step the kept text features are stale"
    for parameter in model.learner.parameters():
        parameter.data = parameter.data + torch.randn_like(parameter)
    trainer.set_model_mode("eval")
    with torch.no_grad():
        assert not torch.allclose(trainer.model_inference(image), before, atol=1e-3)


def test_checkpoint_of_another_method_or_width(make_cfg, method, tmp_path):
    trainer = build_trainer(make_cfg(method))
    trainer.save_model(0, str(tmp_path))
    path = tmp_path / trainer.model_name / "model.pth.tar-1"
    good = torch.load(path, weights_only=True)

    other = copy.deepcopy(good)
    other["meta"]["method"] = "SomethingElse"
    torch.save(other, path)
    with pytest.raises(ValueError, match=f"method SomethingElse, this run has {method}"):
        trainer.load_model(str(tmp_path), epoch=1)

    wider = copy.deepcopy(good)
    key = next(iter(wider["state_dict"]))
    wider["state_dict"][key] = torch.cat([wider["state_dict"][key]] * 2, dim=-1)
    torch.save(wider, path)
    with pytest.raises(ValueError, match=rf"{key} has shape"):
        trainer.load_model(str(tmp_path), epoch=1)
    trainer.cfg.defrost()
    trainer.cfg.RESUME = str(tmp_path)
    with pytest.raises(ValueError, match=rf"{key} has shape"):
        trainer.before_train()

    unknown = copy.deepcopy(good)
    unknown["state_dict"] = {"something": torch.zeros(2)}
    torch.save(unknown, path)
    with pytest.raises(ValueError, match="something is not known to this method"):
        trainer.load_model(str(tmp_path), epoch=1)


def test_missing_checkpoint(make_cfg, method, tmp_path):
    trainer = build_trainer(make_cfg(method))
    with pytest.raises(FileNotFoundError, match="--model-dir"):
        trainer.load_model(str(tmp_path / "nowhere"), epoch=1)
    trainer.save_model(0, str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"There is: model\.pth\.tar-1"):
        trainer.load_model(str(tmp_path), epoch=9)


def test_file_that_is_no_checkpoint_or_too_new(make_cfg, method, tmp_path):
    trainer = build_trainer(make_cfg(method))
    trainer.save_model(0, str(tmp_path))
    path = tmp_path / trainer.model_name / "model.pth.tar-1"
    good = torch.load(path, weights_only=True)
    assert good["meta"]["library"] == __version__
    torch.save({"weights": 1}, path)
    with pytest.raises(ValueError, match="no state_dict and no epoch"):
        trainer.load_model(str(tmp_path), epoch=1)
    good["meta"]["version"] = 99
    torch.save(good, path)
    with pytest.raises(ValueError, match="layout 99, newer than"):
        trainer.load_model(str(tmp_path), epoch=1)
    del good["meta"]
    torch.save(good, path)
    trainer.cfg.defrost()
    trainer.cfg.RESUME = str(tmp_path)
    with pytest.raises(ValueError, match=r"cannot be resumed|does not fit"):
        trainer.before_train()


def test_unknown_precision(make_cfg, method):
    with pytest.raises(ValueError, match="PREC is 'fp8'"):
        build_trainer(make_cfg(method, f"{node(method)}.PREC", "fp8"))
