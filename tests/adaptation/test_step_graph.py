"""When a step is captured, repeated, or run one operation at a time."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from adaptation.savings.graph import WARM_UP, CudaCapture, StepGraph
from dassl.config import get_cfg_default
from dassl.engine import build_trainer
from dassl.optim import AVAI_OPTIMS, build_lr_scheduler, build_optimizer
from tests.parity_files import relative_error
from tests.tape import TapeCapture, capture_breakers


class Line:
    """Least squares by SGD with momentum, captured or not."""

    def __init__(self, capture: object, name: str = "sgd", device: str = "cpu") -> None:
        self.weight = nn.Parameter(torch.ones(3, device=device))
        self.calls, node = 0, get_cfg_default().OPTIM
        node.NAME, node.LR, node.MAX_EPOCH, node.LR_SCHEDULER = name, 0.1, 8, "cosine"
        self.optimizer = build_optimizer([self.weight], node)
        self.schedule = build_lr_scheduler(self.optimizer, node)
        self.graph = StepGraph(self.step, self.optimizer, lambda: [self.weight], tuple, capture)

    def step(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        self.calls += 1
        loss = (x @ self.weight).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.detach(), "first": self.weight.detach()[:1].clone()}


def inputs(n: int, rows: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(rows, 3, generator=generator) for _ in range(n)]


def test_steps_in_front_of_the_capture_train_and_replays_run_no_python():
    eager, captured = Line(None), Line(TapeCapture())
    for index, x in enumerate(inputs(7)):
        one, other = eager.graph(x), captured.graph(x)
        assert captured.graph.captured == (index >= WARM_UP)
        assert captured.calls == min(index, WARM_UP) + 1
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert other[name].shape == ()
            assert other[name].item() == pytest.approx(value.item())
        assert torch.allclose(eager.weight, captured.weight)
    assert captured.graph.capture.replays == 7 - WARM_UP


def test_what_a_step_returned_stays_as_it_was():
    line = Line(TapeCapture())
    results = [line.graph(x)["loss"] for x in inputs(WARM_UP + 3)]
    values = [value.item() for value in results]
    line.graph(inputs(1)[0])
    assert [value.item() for value in results] == values
    assert len(set(values)) == len(values)


def test_other_shapes_run_one_operation_at_a_time():
    eager, captured = Line(None), Line(TapeCapture())
    whole, rest = inputs(8), inputs(8, rows=2)
    for x, part in zip(whole, rest, strict=True):
        for line in (eager, captured):
            line.graph(x)
            line.graph(part)
    assert captured.graph.capture.records == 1
    assert captured.calls == WARM_UP + 1 + len(rest)
    assert torch.allclose(eager.weight, captured.weight)


@pytest.mark.parametrize("what", ["weight", "momentum"])
def test_replaced_tensors_are_captured_anew(what):
    eager, captured = Line(None), Line(TapeCapture())
    batches = inputs(12)
    for index, x in enumerate(batches):
        if index == 6:
            for line in (eager, captured):
                if what == "weight":
                    line.weight.data = line.weight.data + 1.0
                else:
                    line.optimizer.load_state_dict(copy.deepcopy(line.optimizer.state_dict()))
        eager.graph(x)
        captured.graph(x)
    assert captured.graph.captured and captured.graph.capture.records == 2
    assert torch.allclose(eager.weight, captured.weight)


def test_writes_in_place_keep_the_capture():
    eager, captured = Line(None), Line(TapeCapture())
    for index, x in enumerate(inputs(8)):
        if index == 6:
            for line in (eager, captured):
                with torch.no_grad():
                    line.weight.copy_(torch.full((3,), 0.5))
        eager.graph(x)
        captured.graph(x)
    assert captured.graph.capture.records == 1
    assert torch.allclose(eager.weight, captured.weight)


@pytest.mark.gpu
@pytest.mark.parametrize("name", AVAI_OPTIMS)
def test_every_optimiser_on_a_gpu(name):
    """Steps captured on CUDA train as steps of one operation at a time do, at changing rates."""
    lines = [Line(capture, name, "cuda") for capture in (None, CudaCapture(torch.device("cuda")))]
    for x in inputs(4 * WARM_UP):
        for line in lines:
            line.graph(x.cuda())
            line.schedule.step()
    assert lines[1].graph.captured and lines[1].calls == WARM_UP + 1
    assert torch.allclose(lines[0].weight, lines[1].weight, rtol=1e-4, atol=1e-5)


VARIANTS = {
    "contexts of every class": ("CoOp", "TRAINER.COOP.CSC", True),
    "name in the middle": ("CoOp", "TRAINER.COOP.CLASS_TOKEN_POSITION", "middle"),
    "linear head": ("LoRVP", "TRAINER.LORVP.HEAD", "lp"),
    "mapping": ("LoRVP", "TRAINER.LORVP.HEAD", "flm"),
    "mapping of every epoch": ("LoRVP", "TRAINER.LORVP.HEAD", "ilm"),
    "independent full prompts": ("MMLoP", "TRAINER.MMLOP.LOW_RANK", False),
    "no drift correction": ("MMLoP", "TRAINER.MMLOP.DRIFT_CORRECTION", False),
    "plain encoders": ("MMLoP", "MODEL.FAST_ENCODERS", False),
    "adam": ("MMLoP", "OPTIM.NAME", "adam"),
    "named views": ("PromptSRC", "INPUT.SEEDED_VIEWS", True),
    "bfloat16": ("PromptSRC", "TRAINER.PROMPTSRC.PREC", "bf16"),
}


def run(make_cfg, tmp_path, folder: str, graph: bool, method: str, *pairs: object, epochs: int = 2):
    """A trainer after its run, in which a tape stands for the GPU."""
    torch.manual_seed(3)
    cfg = make_cfg(
        method,
        *("OUTPUT_DIR", str(tmp_path / folder), "OPTIM.CUDA_GRAPH", graph),
        *("DATASET.NUM_SHOTS", 4, "OPTIM.MAX_EPOCH", 3, "TEST.NO_TEST", True, *pairs),
    )
    trainer = build_trainer(cfg)
    trainer.max_epoch = epochs
    if graph:
        trainer.graph.capture = TapeCapture()
    trainer.train()
    return trainer


def assert_same_learner(one, other, limit: float = 2e-4) -> None:
    for key, value in one.model.learner.state_dict().items():
        assert relative_error(other.model.learner.state_dict()[key], value) < limit, key


@pytest.mark.parametrize("name", VARIANTS)
def test_settings_that_change_the_step(make_cfg, tmp_path, name):
    eager = run(make_cfg, tmp_path, "eager", False, *VARIANTS[name])
    captured = run(make_cfg, tmp_path, "captured", True, *VARIANTS[name])
    assert captured.graph.captured
    assert_same_learner(eager, captured, 2e-2 if name == "bfloat16" else 2e-4)


@pytest.mark.parametrize("name", ["sgd", "adam"])
@pytest.mark.parametrize("first", [True, False])
def test_a_run_goes_on_with_and_without_the_key(make_cfg, tmp_path, name, first):
    settings = ("PromptSRC", "OPTIM.NAME", name, "OPTIM.LR", 0.002, "TRAIN.CHECKPOINT_FREQ", 1)
    straight = run(make_cfg, tmp_path, "straight", False, *settings, epochs=3)
    run(make_cfg, tmp_path, "resumed", first, *settings, epochs=1)
    path = tmp_path / "resumed" / straight.model_name / "model.pth.tar-1"
    group = torch.load(path, weights_only=True)["optimizer"]["param_groups"][0]
    assert type(group["lr"]) is float and not group["fused" if "fused" in group else "capturable"]
    resumed = run(make_cfg, tmp_path, "resumed", not first, *settings, epochs=3)
    assert resumed.start_epoch == 1
    assert resumed.get_current_lr() == straight.get_current_lr()
    assert_same_learner(straight, resumed, 2e-3)


def test_another_class_list_is_captured_anew(make_cfg, tmp_path):
    trainer = run(make_cfg, tmp_path, "run", True, "CoOp")
    image, label = trainer.parse_batch_train(next(iter(trainer.train_loader_x)))
    trainer.graph(image, label)
    assert trainer.graph.capture.records == 1
    names, others = trainer.model.classnames, ["a whole", "other", "list of", "five", "names"]
    trainer.model.set_classes(others)
    for _ in range(WARM_UP + 1):
        trainer.graph(image, label)
    assert trainer.graph.capture.records == 2
    # what was captured is held, so that the memory of a list that came and went is no other's
    for records in (3, 4, 5):
        trainer.model.set_classes(names)
        trainer.model.set_classes(others)
        for _ in range(WARM_UP + 1):
            trainer.graph(image, label)
        assert trainer.graph.capture.records == records


def test_replays_make_kept_text_features_stale(make_cfg, tmp_path):
    """A replay on a GPU changes parameters without a new version, which kept features go by."""
    trainer = run(make_cfg, tmp_path, "run", True, "CoOp")
    batch = next(iter(trainer.train_loader_x))
    with torch.no_grad():
        trainer.model.text_features()
    assert trainer.model._kept_text is not None
    trainer.batch_idx, trainer.num_batches = 0, 100
    trainer.forward_backward(batch)
    assert trainer.model._kept_text is None


def test_a_step_reads_nothing_and_logs_plain_rates(make_cfg, tmp_path):
    trainer = run(make_cfg, tmp_path, "run", True, "MMLoP")
    batch = next(iter(trainer.train_loader_x))
    trainer.batch_idx, trainer.num_batches = 0, 100
    with capture_breakers() as found:
        trainer.forward_backward(batch)
        rate = trainer.get_current_lr()
    assert found == [] and type(rate) is float


def test_without_a_gpu_a_note_says_that_nothing_is_captured(make_cfg, capsys):
    trainer = build_trainer(make_cfg("CoOp", "OPTIM.CUDA_GRAPH", True))
    assert "OPTIM.CUDA_GRAPH has no CUDA device here" in capsys.readouterr().out
    assert trainer.graph.capture is None
    trainer = build_trainer(make_cfg("CoOp"))
    assert trainer.graph is None, "the key is off by default"
