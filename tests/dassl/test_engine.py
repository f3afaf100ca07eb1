from __future__ import annotations

import itertools
import re
import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import dassl.engine.trainer as trainer_module
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase
from dassl.engine import TRAINER_REGISTRY, SimpleTrainer, TrainerBase, TrainerX, build_trainer
from dassl.utils import SettingError, set_random_seed, setup_logger
from tests.dassl import toy

LINE = re.compile(
    r"epoch \[(\d)/3\] batch \[(\d)/2\] time \d+\.\d{3} \(\d+\.\d{3}\) "
    r"data \d+\.\d{3} \(\d+\.\d{3}\) loss \d+\.\d{4} \(\d+\.\d{4}\) "
    r"acc \d+\.\d{4} \(\d+\.\d{4}\) lr (\d\.\d{4}e-\d\d) eta \d+:\d\d:\d\d"
)


def trained(cfg):
    set_random_seed(0)
    trainer = build_trainer(cfg)
    trainer.train()
    return trainer


def scalars(cfg):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(f"{cfg.OUTPUT_DIR}/tensorboard")
    events.Reload()
    return {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}


def test_a_run_from_start_to_end(cfg, capsys):
    setup_logger(cfg.OUTPUT_DIR)
    trainer = trained(cfg)
    out = capsys.readouterr().out
    lines = LINE.findall(out)
    assert [(e, b) for e, b, _ in lines] == [(e, b) for e in "123" for b in "12"]
    assert lines[0][2] == "1.0000e-05" and lines[2][2] == "5.0000e-02"
    expected = [
        "Loading trainer: ToyTrainer",
        "Loading dataset: ToyColours",
        "Loading evaluator: Classification",
        "No checkpoint found, train from scratch",
        f"Initialize tensorboard (log_dir={cfg.OUTPUT_DIR}/tensorboard)",
        f"Checkpoint saved to {cfg.OUTPUT_DIR}/linear/model.pth.tar-3",
        "Finish training",
        "Deploy the last-epoch model",
        "Evaluate on the *test* set",
        "=> result",
        "* total: 6",
        "Elapsed: 0:00:0",
    ]
    positions = [out.index(text) for text in expected]
    assert positions == sorted(positions)
    assert (trainer.start_epoch, trainer.epoch, trainer.max_epoch) == (0, 2, 3)
    assert (trainer.num_classes, trainer.num_source_domains, trainer.num_batches) == (3, 0, 2)
    assert trainer.device == torch.device("cpu") and trainer.best_result == -float("inf")
    with open(f"{cfg.OUTPUT_DIR}/log.txt") as file:
        assert file.read() == out


def test_times_and_eta(cfg, capsys, monkeypatch):
    # Ten seconds pass between any two looks at the clock: loading takes one step, a batch two.
    clock = SimpleNamespace(time=itertools.count(0, 10).__next__)
    monkeypatch.setattr(trainer_module, "time", clock)
    trained(cfg)
    found = re.findall(r"time (\S+ \S+) data (\S+ \S+) .* eta (\S+)", capsys.readouterr().out)
    assert {(t, d) for t, d, _ in found} == {("20.000 (20.000)", "10.000 (10.000)")}
    assert [eta for _, _, eta in found] == [
        f"0:0{s // 60}:{s % 60:02}" for s in range(100, -1, -20)
    ]


def test_time_holds_what_a_device_still_has_to_do(cfg, capsys, monkeypatch):
    """Reading the losses waits for the steps that a device has not done yet."""
    clock = SimpleNamespace(time=lambda: clock.now, now=0.0)
    monkeypatch.setattr(trainer_module, "time", clock)
    flush = trainer_module.EpochLog.flush

    def waiting(log):
        clock.now += 2.0 * bool(log.pending)
        flush(log)

    monkeypatch.setattr(trainer_module.EpochLog, "flush", waiting)
    trained(cfg)
    found = re.findall(r"time (\S+ \S+) data (\S+ \S+) .* eta (\S+)", capsys.readouterr().out)
    assert {(t, d) for t, d, _ in found} == {("2.000 (2.000)", "0.000 (0.000)")}
    assert [eta for _, _, eta in found] == [f"0:00:{s:02}" for s in range(10, -1, -2)]


def test_scalars(cfg):
    trainer = trained(cfg)
    written = scalars(cfg)
    assert set(written) >= {"train/loss", "train/acc", "train/lr", "test/accuracy"}
    assert [event.step for event in written["train/loss"]] == list(range(6))
    assert written["train/lr"][0].value == pytest.approx(1e-5)
    assert trainer._writer is None


def steps(cfg):
    return {tag: [event.step for event in events] for tag, events in scalars(cfg).items()}


@pytest.mark.parametrize("split", ["val", "test"])
def test_tests_are_logged_on_the_axis_of_the_training(cfg, split):
    cfg.TEST.FINAL_MODEL = f"best_{split}"
    trained(cfg)
    found = steps(cfg)
    assert found["train/loss"] == list(range(6))
    each = found[f"{split}/accuracy"]
    assert each[:3] == [1, 3, 5]
    assert found["test/accuracy"][-1] == 6 and len(found["test/accuracy"]) in (1, 4)


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5])
def test_steps_come_once_after_a_resume(cfg, monkeypatch, stop):
    """The run stops in the middle of an epoch, goes on from its last checkpoint, and again."""
    cfg.TRAIN.CHECKPOINT_FREQ, cfg.TEST.FINAL_MODEL = 1, "best_val"
    step, done = toy.ToyTrainer.forward_backward, itertools.count(1)

    def stopping(self, batch):
        summary = step(self, batch)
        if next(done) == stop + 1:
            raise Stop
        return summary

    monkeypatch.setattr(toy.ToyTrainer, "forward_backward", stopping)
    with pytest.raises(Stop):
        trained(cfg)
    now = time.time
    for hours in (1, 2):  # the second time there is only the test to do
        # files of TensorBoard are ordered by the second of their creation
        monkeypatch.setattr(time, "time", lambda hours=hours: now() + 3600 * hours)
        trained(cfg)
        found = steps(cfg)
        assert found["train/loss"] == found["train/lr"] == list(range(6))
        assert found["val/accuracy"] == [1, 3, 5]
        assert found["test/accuracy"] == [6]


def test_print_freq(cfg, capsys):
    cfg.TRAIN.PRINT_FREQ = 2
    trained(cfg)
    assert [b for _, b, _ in LINE.findall(capsys.readouterr().out)] == ["2"] * 3
    cfg.TRAIN.PRINT_FREQ, cfg.RESUME = 50, f"{cfg.OUTPUT_DIR}/nothing"
    trained(cfg)
    assert len(LINE.findall(capsys.readouterr().out)) == 6


@pytest.mark.parametrize(
    ("freq", "files"), [(0, {3}), (1, {1, 2, 3}), (2, {2, 3}), (5, {3})], ids=str
)
def test_checkpoint_frequency(cfg, tmp_path, freq, files):
    cfg.TRAIN.CHECKPOINT_FREQ = freq
    trained(cfg)
    found = {p.name for p in (tmp_path / "out" / "linear").iterdir()}
    assert found == {"checkpoint"} | {f"model.pth.tar-{n}" for n in files}


class Stop(Exception):
    pass


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
@pytest.mark.parametrize("schedule", ["cosine", "multi_step"])
def test_a_resumed_run_equals_an_uninterrupted_one(cfg, tmp_path, monkeypatch, stop, schedule):
    cfg.merge_from_list(["OPTIM.MAX_EPOCH", 5, "OPTIM.WARMUP_EPOCH", 2, "TRAIN.CHECKPOINT_FREQ", 1])
    cfg.merge_from_list(["OPTIM.LR_SCHEDULER", schedule, "OPTIM.STEPSIZE", (1, 2)])
    rates = {}

    class Recording(toy.ToyTrainer):
        def forward_backward(self, batch):
            rates.setdefault(self.epoch, []).append(self.get_current_lr())
            return super().forward_backward(batch)

        def after_epoch(self):
            super().after_epoch()
            if self.epoch + 1 == self.stop_after:
                raise Stop

    def run(seed, stop_after=None):
        set_random_seed(seed)
        trainer = Recording(cfg)
        trainer.stop_after = stop_after
        trainer.train()
        return trainer

    straight = run(0)
    expected_rates, expected = dict(rates), straight.model.state_dict()

    rates.clear()
    cfg.OUTPUT_DIR = str(tmp_path / "interrupted")
    with pytest.raises(Stop):
        run(0, stop_after=stop)
    # Another seed: the continuation must not depend on the state of the new process.
    resumed = run(99)
    assert resumed.start_epoch == stop
    assert rates == expected_rates
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, expected[name])


def test_resuming_a_finished_run_only_tests_it(cfg, capsys):
    before = trained(cfg).model[1].weight
    capsys.readouterr()
    after = trained(cfg).model[1].weight
    out = capsys.readouterr().out
    assert torch.equal(before, after)
    assert f"Found checkpoint at {cfg.OUTPUT_DIR} (will resume training)" in out
    assert not LINE.search(out) and "Finish training" in out and "* accuracy" in out


def test_resume_from_another_folder(cfg, tmp_path, capsys):
    trained(cfg)
    cfg.RESUME, cfg.OUTPUT_DIR = cfg.OUTPUT_DIR, str(tmp_path / "second")
    cfg.OPTIM.MAX_EPOCH = 4
    with pytest.warns(UserWarning, match=r"T_max 3\.0 \(configured: 4\.0\)"):
        assert trained(cfg).start_epoch == 3
    assert (tmp_path / "second" / "linear" / "model.pth.tar-4").exists()


def test_a_folder_without_a_finished_save_is_trained_from_scratch(cfg, tmp_path):
    (tmp_path / "out" / "linear").mkdir(parents=True)
    (tmp_path / "out" / "linear" / "model.pth.tar-2.tmp1").write_bytes(b"half a file")
    assert trained(cfg).start_epoch == 0


def test_a_resumed_run_keeps_its_gradient_scale(cfg):
    def scaled():
        trainer = build_trainer(cfg)
        trainer.scaler = torch.amp.GradScaler("cpu")
        return trainer

    first = scaled()
    first.scaler.load_state_dict({**first.scaler.state_dict(), "scale": 128.0})
    first.save_model(0, cfg.OUTPUT_DIR)
    second = scaled()
    assert second.resume_model_if_exist(cfg.OUTPUT_DIR) == 1
    assert second.scaler.state_dict()["scale"] == 128.0


def test_the_same_seed_gives_the_same_run(cfg, tmp_path):
    weights = []
    for name in ("a", "b"):
        cfg.OUTPUT_DIR = str(tmp_path / name)
        weights.append(trained(cfg).model[1].weight)
    assert torch.equal(*weights)


class Scripted(toy.ToyTrainer):
    """Validation results come from a list, so that the best epoch is known."""

    results = (50.0, 80.0, 60.0)

    def test(self, split=None):
        result = super().test(split)
        return self.results[self.epoch] if split == "val" else result


def test_best_val(cfg, tmp_path, capsys):
    cfg.TEST.FINAL_MODEL = "best_val"
    set_random_seed(0)
    trainer = Scripted(cfg)
    trainer.train()
    out = capsys.readouterr().out
    assert out.count("Evaluate on the *val* set") == 3
    assert "Deploy the model with the best val performance" in out
    assert "to linear (epoch=2, val_result=80.0)" in out
    stored = torch.load(tmp_path / "out" / "linear" / "model-best.pth.tar", weights_only=True)
    assert torch.equal(trainer.model[1].weight, stored["state_dict"]["1.weight"])


def test_a_resumed_run_remembers_the_best_result(cfg, tmp_path):
    cfg.TEST.FINAL_MODEL, cfg.TRAIN.CHECKPOINT_FREQ = "best_val", 1

    class Worse(Scripted):
        results = (90.0, 10.0, 20.0)

        def after_epoch(self):
            super().after_epoch()
            if self.epoch == 0 and self.start_epoch == 0:
                raise Stop

    with pytest.raises(Stop):
        Worse(cfg).train()
    trainer = Worse(cfg)
    trainer.train()
    assert trainer.best_result == 90.0
    best = torch.load(tmp_path / "out" / "linear" / "model-best.pth.tar", weights_only=True)
    assert best["epoch"] == 1


def test_splits(cfg, capsys):
    trainer = build_trainer(cfg)
    trainer.test(split="val")
    assert "*val* set\n=> result\n* total: 3" in capsys.readouterr().out
    result = trainer.test()
    out = capsys.readouterr().out
    assert "*test* set\n=> result\n* total: 6" in out
    assert f"* accuracy: {result:.2f}%" in out
    assert not trainer.model.training


def without_validation(dataset):
    dataset._val = None


def validation_is_the_test(dataset):
    dataset._val = list(dataset.test)


@pytest.mark.parametrize("change", [without_validation, validation_is_the_test])
@pytest.mark.parametrize(("key", "value"), [("FINAL_MODEL", "best_val"), ("SPLIT", "val")])
def test_test_images_do_not_pass_for_validation_images(
    cfg, monkeypatch, capsys, change, key, value
):
    class Lacking(toy.ToyColours):
        def __init__(self, cfg):
            super().__init__(cfg)
            change(self)

    monkeypatch.setitem(DATASET_REGISTRY._obj_map, "ToyColours", Lacking)
    cfg.TEST[key] = value
    keys = rf"TEST\.{key} {value} needs validation images.*TEST\.FINAL_MODEL best_test"
    with pytest.raises(SettingError, match=keys):
        trained(cfg)
    assert not LINE.search(capsys.readouterr().out)
    cfg.TEST[key] = {"FINAL_MODEL": "best_test", "SPLIT": "test"}[key]
    trained(cfg)
    cfg.TEST.FINAL_MODEL, cfg.TEST.SPLIT = "best_val", "test"
    build_trainer(cfg).test()  # which needs none


def test_the_test_images_choose_the_epoch_on_request_and_it_is_said(cfg, tmp_path, capsys):
    class OnTest(Scripted):
        def test(self, split=None):
            super().test(split)
            return self.results[self.epoch]

    cfg.TEST.FINAL_MODEL = "best_test"
    OnTest(cfg).train()
    out = capsys.readouterr().out
    assert out.count("Evaluate on the *test* set") == 4
    assert "*val*" not in out
    assert "Deploy the model with the best test performance" in out
    assert "to linear (epoch=2, val_result=80.0)" in out
    result, _, after = out.partition("Note: the test images chose the epoch")
    assert "* accuracy" in result and after


def test_no_test(cfg, capsys):
    cfg.TEST.NO_TEST = True
    trained(cfg)
    out = capsys.readouterr().out
    assert "Finish training" in out and "Elapsed" in out and "=> result" not in out
    assert "Not tested: TEST.NO_TEST\n" in out


@pytest.fixture
def without_test(cfg, monkeypatch):
    """The toy data without a test part."""
    build = DatasetBase.__init__
    monkeypatch.setattr(
        DatasetBase, "__init__", lambda self, **parts: build(self, **parts | {"test": None})
    )
    return cfg


def test_without_test_images(without_test, capsys):
    trainer = trained(without_test)
    out = capsys.readouterr().out
    order = ["# test     0", f"Checkpoint saved to {without_test.OUTPUT_DIR}", "Finish training"]
    order += ["Not tested: no test images\n", "Elapsed"]
    assert [out.index(text) for text in order] == sorted(out.index(text) for text in order)
    assert "=> result" not in out and "accuracy" not in out
    with pytest.raises(SettingError, match="ToyColours has no test images to evaluate on"):
        trainer.test()
    trainer.test(split="val")
    assert "* total: 3" in capsys.readouterr().out


def test_without_test_images_they_cannot_choose_the_epoch(without_test, capsys):
    without_test.TEST.FINAL_MODEL = "best_test"
    with pytest.raises(SettingError, match=r"best_test .* ToyColours has none: .* last_step"):
        trained(without_test)
    assert not LINE.search(capsys.readouterr().out)
    without_test.TEST.NO_TEST = True
    trained(without_test)


def test_without_test_images_validation_can_be_the_result(without_test, capsys):
    without_test.TEST.SPLIT = "val"
    trained(without_test)
    assert "*val* set\n=> result\n* total: 3" in capsys.readouterr().out


def test_load_model(cfg, capsys):
    trainer = trained(cfg)
    fresh = build_trainer(cfg)
    capsys.readouterr()
    fresh.load_model(cfg.OUTPUT_DIR, epoch=3)
    assert torch.equal(fresh.model[1].weight, trainer.model[1].weight)
    path = f"{cfg.OUTPUT_DIR}/linear/model.pth.tar-3"
    assert f"Load {path} to linear (epoch=3, val_result=none)" in capsys.readouterr().out
    fresh.load_model(cfg.OUTPUT_DIR)  # no best one was chosen
    assert f"Load {path} to linear (epoch=3, val_result=none)" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match=r"No model at .*model\.pth\.tar-2"):
        fresh.load_model(cfg.OUTPUT_DIR, epoch=2)
    with pytest.raises(FileNotFoundError, match=r"No model at .*model-best\.pth\.tar"):
        fresh.load_model(f"{cfg.OUTPUT_DIR}/none")
    fresh.load_model("")
    assert "skipped" in capsys.readouterr().out


def test_registered_models():
    with pytest.raises(AttributeError, match="super"):
        TrainerBase.register_model(TrainerBase.__new__(TrainerBase))
    trainer = TrainerBase()
    net, frozen = nn.Linear(1, 1), nn.Linear(1, 1)
    optim = torch.optim.SGD(net.parameters(), lr=0.5)
    trainer.register_model("a", net, optim, None)
    trainer.register_model("b", frozen)
    assert trainer.get_model_names() == ["a", "b"] and trainer.get_model_names("b") == ["b"]
    with pytest.raises(ValueError, match="'a' is already registered"):
        trainer.register_model("a", net)
    with pytest.raises(KeyError, match="registered: a, b"):
        trainer.get_model_names(["a", "c"])
    trainer.set_model_mode("eval", "b")
    assert net.training and not frozen.training
    trainer.set_model_mode("test")
    assert not net.training
    with pytest.raises(ValueError, match="mode"):
        trainer.set_model_mode("evaluate")
    trainer.update_lr()
    trainer.write_scalar("x", 1.0)
    before = net.weight.item(), frozen.weight.item()
    trainer.model_backward_and_update((net(torch.ones(1, 1)) + frozen(torch.ones(1, 1))).sum())
    assert net.weight.item() == pytest.approx(before[0] - 0.5)
    assert frozen.weight.item() == before[1]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops(value):
    with pytest.raises(FloatingPointError, match="Loss is infinite or NaN!"):
        TrainerBase().model_backward(torch.tensor(value, requires_grad=True))


def test_hooks_run_in_order():
    class Hooks(TrainerBase):
        def __init__(self):
            super().__init__()
            self.calls = []

        def before_train(self):
            self.calls.append("before_train")
            self.start_epoch = 1

        def after_train(self):
            self.calls.append("after_train")

        def before_epoch(self):
            self.calls.append(f"before_epoch {self.epoch}")

        def run_epoch(self):
            self.calls.append("run_epoch")

        def after_epoch(self):
            self.calls.append("after_epoch")

    trainer = Hooks()
    trainer.train(0, 3)
    epochs = [[f"before_epoch {e}", "run_epoch", "after_epoch"] for e in (1, 2)]
    assert trainer.calls == ["before_train", *epochs[0], *epochs[1], "after_train"]


def test_constructor_order(cfg):
    order = []

    class Ordered(toy.ToyTrainer):
        def check_cfg(self, cfg):
            order.append(("check_cfg", hasattr(self, "device")))

        def build_data_loader(self):
            order.append(("build_data_loader", self.output_dir))
            super().build_data_loader()

        def build_model(self):
            order.append(("build_model", self.dm.dataset.classnames))
            super().build_model()

    Ordered(cfg)
    assert order == [
        ("check_cfg", False),
        ("build_data_loader", cfg.OUTPUT_DIR),
        ("build_model", ["colour_0", "colour_1", "colour_2"]),
    ]


def test_a_step_that_returns_no_dict_is_explained(cfg):
    class Wrong(toy.ToyTrainer):
        def forward_backward(self, batch):
            return 1.0

    with pytest.raises(TypeError, match="forward_backward"):
        Wrong(cfg).train()


@pytest.mark.parametrize(("count", "batches"), [("train_x", 2), ("train_u", 4), ("smaller_one", 2)])
def test_trainer_xu(cfg, count, batches):
    cfg.TRAINER.NAME, cfg.TRAIN.COUNT_ITER = "ToyTrainerXU", count
    cfg.DATALOADER.TRAIN_U.merge_from_list(["SAME_AS_X", False, "BATCH_SIZE", 3])
    trainer = trained(cfg)
    assert trainer.num_batches == batches
    assert [e.step for e in scalars(cfg)["train/loss"]] == list(range(3 * batches))


def test_trainer_xu_says_what_is_missing(cfg):
    cfg.TRAINER.NAME = "ToyTrainerXU"
    trainer = build_trainer(cfg)
    trainer.train_loader_u = None
    with pytest.raises(ValueError, match=r"ToyColours has none \(train_u\)"):
        trainer.train()
    cfg.TRAIN.COUNT_ITER = "train_y"
    with pytest.raises(ValueError, match="did you mean 'train_"):
        build_trainer(cfg).train()


@pytest.mark.parametrize("key", ["FINAL_MODEL", "SPLIT"])
def test_unknown_test_settings_stop_before_training(cfg, key):
    cfg.TEST[key] = "best"
    with pytest.raises(ValueError, match="'best' is not"):
        build_trainer(cfg)


def test_unknown_trainer(cfg):
    cfg.TRAINER.NAME = "ToyTrainr"
    with pytest.raises(ValueError, match="did you mean 'ToyTrainer'"):
        build_trainer(cfg)


def test_default_model_trains(cfg, capsys):
    @TRAINER_REGISTRY.register(force=True)
    class Plain(TrainerX):
        forward_backward = toy.ToyTrainer.forward_backward
        parse_batch_train = toy.ToyTrainer.parse_batch_train

    assert issubclass(Plain, SimpleTrainer)
    cfg.TRAINER.NAME = "Plain"
    cfg.MODEL.BACKBONE.merge_from_list(["NAME", "resnet18", "PRETRAINED", False])
    cfg.MODEL.HEAD.merge_from_list(["NAME", "mlp", "HIDDEN_LAYERS", (16,), "DROPOUT", 0.1])
    cfg.OPTIM.MAX_EPOCH = 1
    trainer = trained(cfg)
    assert trainer.model.fdim == 16 and trainer.get_model_names() == ["model"]
    assert "Backbone: resnet18\nHead: mlp" in capsys.readouterr().out
    logits, features = trainer.model(torch.zeros(2, 3, 8, 8), return_feature=True)
    assert logits.shape == (2, 3) and features.shape == (2, 16)


def test_initial_weights_are_loaded(cfg, tmp_path):
    cfg.MODEL.BACKBONE.merge_from_list(["NAME", "resnet18", "PRETRAINED", False])

    class Plain(SimpleTrainer):
        pass

    first = Plain(cfg)
    torch.save(first.model.state_dict(), tmp_path / "w.pth")
    cfg.MODEL.INIT_WEIGHTS = str(tmp_path / "w.pth")
    second = Plain(cfg)
    assert torch.equal(first.model.classifier.weight, second.model.classifier.weight)
