"""Trainer with data, one model and checkpoints; the training step is left open."""

from __future__ import annotations

import datetime
import os.path as osp
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from tqdm import tqdm

from dassl.config import optional
from dassl.data import DataManager
from dassl.data.datasets import check_is_for_training
from dassl.data.rank_batches import dealt_batches, sliced
from dassl.evaluation import build_evaluator
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import (
    SettingError,
    check_availability,
    count_num_param,
    device_of_run,
    hides_bars,
    load_pretrained_weights,
    print_result,
    ranks,
)

from .base import TrainerBase
from .going_on import Start
from .length import RunLength, check_length, iterations
from .run_notes import device_of
from .trackers import tracker_names

__all__ = ["SimpleNet", "SimpleTrainer"]

FINAL_MODELS = ["last_step", "best_val", "best_test"]
#: what to do without validation images
NO_VALIDATION = (
    "use TEST.FINAL_MODEL last_step and TEST.SPLIT test, or give the data set validation images of "
    "its own. TEST.FINAL_MODEL best_test has the test images choose the epoch, and says so"
)


class SimpleNet(nn.Module):
    """Backbone, optional head, linear classifier.

    Args:
        cfg: configuration (not read; part of upstream's signature).
        model_cfg: node ``MODEL``.
        num_classes: number of classes; 0 leaves the classifier out.
        kwargs: passed on to the backbone.
    """

    def __init__(self, cfg: Any, model_cfg: Any, num_classes: int, **kwargs: Any) -> None:
        super().__init__()
        # The networks need torchvision's models, which prompt trainers do not.
        from dassl.modeling import build_backbone, build_head

        self.backbone = build_backbone(
            model_cfg.BACKBONE.NAME,
            verbose=cfg.VERBOSE,
            pretrained=model_cfg.BACKBONE.PRETRAINED,
            **kwargs,
        )
        fdim = self.backbone.out_features
        self.head: Any = None
        if model_cfg.HEAD.NAME and model_cfg.HEAD.HIDDEN_LAYERS:
            self.head = build_head(
                model_cfg.HEAD.NAME,
                verbose=cfg.VERBOSE,
                in_features=fdim,
                hidden_layers=model_cfg.HEAD.HIDDEN_LAYERS,
                activation=model_cfg.HEAD.ACTIVATION,
                bn=model_cfg.HEAD.BN,
                dropout=model_cfg.HEAD.DROPOUT,
            )
            fdim = self.head.out_features
        self.classifier = nn.Linear(fdim, num_classes) if num_classes > 0 else None
        self._fdim = fdim

    @property
    def fdim(self) -> int:
        """Width of the features."""
        return self._fdim

    def forward(
        self, x: torch.Tensor, return_feature: bool = False
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Return logits ``(batch, num_classes)``, with features ``(batch, fdim)`` on request."""
        f = self.backbone(x)
        if self.head is not None:
            f = self.head(f)
        if self.classifier is None:
            return f
        y = self.classifier(f)
        return (y, f) if return_feature else y


class SimpleTrainer(TrainerBase):
    """Data, model, evaluator, checkpoints and test; subclasses add the epoch.

    Args:
        cfg: configuration.
    """

    #: whether ``train`` trains; False where it only tests
    trains = True
    # `build_data_loader` sets them; `epoch` is assigned before that
    train_loader_x: Any = None
    train_loader_u: Any = None
    # set by build_model
    model: Any

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        check_availability(cfg.TEST.FINAL_MODEL, FINAL_MODELS, "TEST.FINAL_MODEL")
        check_availability(cfg.TEST.SPLIT, ["test", "val"], "TEST.SPLIT")
        tracker_names(optional(cfg, "TRAIN.TRACKERS"))  # says what is wrong with them
        check_length(cfg)
        self.check_cfg(cfg)
        self.device = device_of_run(cfg)
        on_gpu = self.device.type == "cuda"
        print(f"Device: {torch.cuda.get_device_name(self.device) if on_gpu else 'CPU'}")
        self.start_epoch = self.epoch = 0
        self.has_ended = False
        self.stage = 0
        self.max_epoch = cfg.OPTIM.MAX_EPOCH
        self.output_dir = cfg.OUTPUT_DIR
        self.cfg = cfg
        with ranks.main_first():  # which writes lists of images, for the others to read
            self.build_data_loader()
        self.train_loader_x = sliced(self.train_loader_x)
        if iterations(cfg):
            if not self.run_epoch.__module__.startswith("dassl."):
                raise ValueError(
                    f"OPTIM.MAX_ITERATIONS: {type(self).__name__} has its own run_epoch, which "
                    "ends no epoch early: use OPTIM.MAX_EPOCH"
                )
            self.max_epoch = self.run_length.epochs
        self.build_model()
        self.evaluator = build_evaluator(cfg, lab2cname=self.lab2cname)
        self.best_result = -float("inf")

    @property
    def epoch(self) -> int:
        """Index of the epoch, from 0; setting it tells the data sets of the training loaders."""
        return self._epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch = epoch
        for loader in (self.train_loader_x, self.train_loader_u):
            dataset: Any = getattr(loader, "dataset", None)
            if hasattr(dataset, "set_epoch"):  # what was written for upstream has none
                dataset.set_epoch(epoch)

    @property
    def evaluator(self) -> Any:
        """Evaluator of the tests; ``run_notes`` keeps what it returns."""
        return self._evaluator

    @evaluator.setter
    def evaluator(self, evaluator: Any) -> None:
        self._evaluator = evaluator
        self.run_notes.keep_results(evaluator)

    @property
    def chosen_on(self) -> str | None:
        """The split that chooses the epoch: "val", "test", or None where the last one counts."""
        choice = self.cfg.TEST.FINAL_MODEL
        return choice.removeprefix("best_") if choice.startswith("best_") else None

    def check_validation(self, setting: str, instead: str = NO_VALIDATION) -> None:
        """Check that there are validation images, and that none of them is a test image.

        Args:
            setting: what needs them, named in the error.
            instead: what to do where there are none; by default for the engine's own settings.

        Raises:
            SettingError: there are none, or some are test images.
        """
        name, dataset = self.cfg.DATASET.NAME, self.dm.dataset
        if self.val_loader is None:
            problem = f"data set {name} has none"
        elif {item.impath for item in dataset.val} & {item.impath for item in dataset.test or ()}:
            problem = f"those of data set {name} are its test images"
        else:
            return
        raise SettingError(f"{setting} needs validation images, and {problem}: {instead}")

    def check_training_images(self) -> None:
        """Check that the training images are not the test images.

        Raises:
            SettingError: the data set is for tests only.
        """
        # a trainer with loaders of its own may have no data manager
        check_is_for_training(type(getattr(getattr(self, "dm", None), "dataset", None)))

    def check_cfg(self, cfg: Any) -> None:
        """Check that the configuration fits the trainer; this class accepts any."""

    def build_data_loader(self) -> None:
        """Create the data manager and take over its loaders and class names."""
        dm = DataManager(self.cfg)
        self.train_loader_x = dm.train_loader_x
        self.train_loader_u = dm.train_loader_u
        self.val_loader = dm.val_loader
        self.test_loader = dm.test_loader
        self.num_classes = dm.num_classes
        self.num_source_domains = dm.num_source_domains
        self.lab2cname = dm.lab2cname
        self.dm = dm

    def build_model(self) -> None:
        """Build and register a backbone with a linear classifier."""
        cfg = self.cfg
        print("Building model")
        self.model = SimpleNet(cfg, cfg.MODEL, self.num_classes)
        if cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(self.model, cfg.MODEL.INIT_WEIGHTS)
        self.model.to(self.device)
        print(f"# params: {count_num_param(self.model):,}")
        self.optim = build_optimizer(self.model, cfg.OPTIM)
        self.sched = self.build_schedule(self.optim)
        self.register_model("model", self.model, self.optim, self.sched)
        devices = torch.cuda.device_count()
        if self.device == torch.device("cuda") and devices > 1 and not ranks.several():
            print(f"Detected {devices} GPUs (use nn.DataParallel)")
            self.model = nn.DataParallel(self.model)

    def steps_per_epoch(self) -> int:
        """Return the number of training steps of an epoch that is not cut short."""
        return len(self.train_loader_x)

    @property
    def run_length(self) -> RunLength:
        """Training steps of the run: ``OPTIM.MAX_ITERATIONS``, or ``max_epoch`` epochs."""
        per_epoch, steps = self.steps_per_epoch(), iterations(self.cfg)
        if steps:
            return RunLength(self.stages(steps), per_epoch)
        return RunLength([n * per_epoch for n in self.stages(self.max_epoch)], per_epoch)

    def stages(self, length: int) -> Sequence[int]:
        """Return the lengths of the stages of a run; this class has one stage.

        Args:
            length: steps or epochs of the run.
        """
        return [length]

    def begin_stage(self, stage: int) -> None:
        """Prepare the second or a later stage of the training; this class has one stage.

        It is called in front of the first epoch of the stage, and when a run goes on in it, before
        what was saved is loaded.

        Args:
            stage: index of the stage.
        """

    def _enter_stage(self, stage: int) -> None:
        while self.stage < stage:
            self.stage += 1
            self.begin_stage(self.stage)

    def before_epoch(self) -> None:
        self._enter_stage(self.run_length.stage(self.epoch))

    def restore_start(self, start: Start) -> None:
        epoch, steps = start.position
        self._enter_stage(self.run_length.stage(epoch if steps else max(epoch - 1, 0)))
        super().restore_start(start)

    def build_schedule(self, optim: Optimizer, stage: int = 0) -> LRScheduler:
        """Build the learning-rate schedule of a stage, which :meth:`end_step` steps.

        Args:
            optim: optimiser whose rates are set.
            stage: index of the stage.
        """
        length = self.run_length
        if self._schedule_per_batch:
            updates, per_epoch = length.stages[stage], length.per_epoch
        else:
            updates, per_epoch = length.epochs_of(stage), 1
        return build_lr_scheduler(optim, self.cfg.OPTIM, updates, per_epoch)

    @property
    def _schedule_per_batch(self) -> bool:
        return optional(self.cfg, "OPTIM.SCHEDULE_PER") == "batch"

    def end_step(self) -> None:
        """Set the learning rate of the next step, where it is another one.

        ``forward_backward`` calls it at its end. The rate changes after every step, or after the
        last one of an epoch (``OPTIM.SCHEDULE_PER``).
        """
        if self._schedule_per_batch or self.batch_idx + 1 == self.num_batches:
            self.update_lr()

    def test_step(self) -> int:
        """Return the step at which a test is logged, on the axis of the training's scalars.

        A test after an epoch has the epoch's last step, the test of the final model the next one:
        a finished run that only tests again replaces the latter alone.
        """
        if self.has_ended:
            return self.run_length.steps
        return self.run_length.first_step(self.epoch + 1) - 1

    def train(self) -> None:  # type: ignore[override]  # Dassl's: the config says which epochs
        """Train from ``start_epoch`` to ``max_epoch``.

        Raises:
            SettingError: the data set is for tests only.
        """
        self.check_training_images()
        super().train(self.start_epoch, self.max_epoch)

    def before_train(self) -> None:
        """Resume if possible, open the trackers, start the clock.

        Raises:
            SettingError: the folder holds checkpoints that this run cannot go on from, or there are
                no images of a split that a setting needs.
        """
        if not self.cfg.TEST.NO_TEST:
            for key, value in (("FINAL_MODEL", "best_val"), ("SPLIT", "val")):
                if self.cfg.TEST[key] == value:
                    self.check_validation(f"TEST.{key} {value}")
            if self.chosen_on == "test" and self.test_loader is None:
                raise SettingError(
                    "TEST.FINAL_MODEL best_test has the test images choose the epoch, and data set "
                    f"{self.cfg.DATASET.NAME} has none: use TEST.FINAL_MODEL last_step"
                )
        directory = self.cfg.RESUME or self.cfg.OUTPUT_DIR
        try:
            self.start_epoch = self.resume_model_if_exist(directory)
        except (ValueError, OSError, RuntimeError) as error:  # PyTorch's of weights that do not fit
            raise SettingError(f"cannot resume the run in {directory}: {error}") from error
        self.going_on.enable(self.cfg)
        epoch, steps = self.going_on.position
        start = self.going_on.start
        device = device_of(self)["name"]
        self.run_notes.begin(epoch, steps, None if start is None else start.path, device)
        self.init_writer(
            osp.join(self.output_dir, "tensorboard"), self.run_length.first_step(epoch) + steps
        )
        self.has_ended = False
        self.time_start = time.time()

    def after_train(self) -> None:
        """Test the final model if there are images for it, report the time, close the trackers."""
        print("Finish training")
        self.has_ended = True
        if self.cfg.TEST.NO_TEST:
            self.run_notes.not_tested = "TEST.NO_TEST"
        elif self.loader_of(self.cfg.TEST.SPLIT) is None:
            self.run_notes.not_tested = "no test images"
        if self.run_notes.not_tested:
            # this line tells results/logs.py that no result follows
            print(f"Not tested: {self.run_notes.not_tested}")
        else:
            chosen_on = self.chosen_on
            if chosen_on is None:
                print("Deploy the last-epoch model")
            else:
                print(f"Deploy the model with the best {chosen_on} performance")
                self.load_model(self.output_dir)
            self.test()
            self.write_result(self.run_notes.results)
            if chosen_on == "test":
                print_result("Note: the test images chose the epoch (TEST.FINAL_MODEL best_test)")
        elapsed = round(time.time() - self.time_start)
        print(f"Elapsed: {datetime.timedelta(seconds=elapsed)}")
        self.close_writer()

    def after_epoch(self) -> None:
        """Evaluate where the best epoch is kept (``TEST.FINAL_MODEL``), and save when due."""
        last_epoch = (self.epoch + 1) == self.max_epoch
        freq = self.cfg.TRAIN.CHECKPOINT_FREQ
        due = freq > 0 and (self.epoch + 1) % freq == 0
        if not self.cfg.TEST.NO_TEST and self.chosen_on is not None:
            self.keep_best()
        if due or last_epoch:
            self.save_model(self.epoch, self.output_dir)

    def keep_best(self) -> None:
        """Evaluate, and save the model if it is better than those of all earlier epochs."""
        curr_result = self.test(split=self.chosen_on)
        if curr_result > self.best_result:
            self.best_result = curr_result
            self.save_model(
                self.epoch,
                self.output_dir,
                val_result=curr_result,
                model_name="model-best.pth.tar",
            )

    def trainer_state(self) -> dict[str, Any]:
        return {**super().trainer_state(), "best_result": float(self.best_result)}

    def load_trainer_state(self, state: dict[str, Any]) -> None:
        super().load_trainer_state(state)
        self.best_result = float(state["best_result"])

    def loader_of(self, split: str) -> DataLoader | None:
        """Return the loader of "val" or "test"; None where there are no such images."""
        return self.val_loader if split == "val" else self.test_loader

    @torch.no_grad()
    def test(self, split: str | None = None) -> float:
        """Evaluate on a split.

        Args:
            split: "val" or "test"; None means ``TEST.SPLIT``.

        Returns:
            The first result of the evaluator (accuracy in percent).

        Raises:
            SettingError: there are no such images, or "val" without validation images that are not
                test images as well.
        """
        split = self.cfg.TEST.SPLIT if split is None else split
        if split == "val":
            self.check_validation("TEST.SPLIT val")
        data_loader = self.loader_of(split)
        if data_loader is None:
            raise SettingError(
                f"data set {self.cfg.DATASET.NAME} has no {split} images to evaluate on: its "
                "settings (DATASET.*) or folders leave none"
            )
        self.run_notes.on_start()
        start = time.perf_counter()
        self.set_model_mode("eval")
        self.evaluator.reset()
        print_result(f"Evaluate on the *{split}* set")
        for output, label in ranks.in_order(self._outputs(data_loader), len(data_loader)):
            self.evaluator.process(output, label)
        results = ranks.from_main(self.evaluator.evaluate)
        self.run_notes.test_seconds = time.perf_counter() - start
        for name, value in results.items():
            self.write_scalar(f"{split}/{name}", value, self.test_step())
        return next(iter(results.values()))

    def _outputs(self, data_loader: DataLoader) -> Iterator[tuple[Any, torch.Tensor]]:
        """Yield outputs and labels of the batches that are this process's to evaluate."""
        n_own = -(-len(data_loader) // ranks.world_size())
        for batch in tqdm(dealt_batches(data_loader), total=n_own, disable=hides_bars()):
            inputs, label = self.parse_batch_test(batch)
            yield ranks.portable((self.model_inference(inputs), label))

    def model_inference(self, input: torch.Tensor) -> torch.Tensor:
        return self.model(input)

    def parse_batch_test(self, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images and labels on the device."""
        image, label = batch["img"], batch["label"]
        return image.to(self.device, non_blocking=True), label.to(self.device, non_blocking=True)

    def get_current_lr(self, names: str | list[str] | None = None) -> float:
        """Return the learning rate of the first parameter group of the first model."""
        name = self.get_model_names(names)[0]
        return self._optims[name].param_groups[0]["lr"]
