"""The trainer that all prompt methods share: build, freeze, precision, step, save, load."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clip.initial_draws import initial_draws
from clip.loading import check_name, load_state_dict
from clip.model import CLIP
from clip.weights import build_model
from dassl.config import CfgNode
from dassl.engine import TrainerX
from dassl.engine.going_on import Start
from dassl.metrics import compute_accuracy
from dassl.optim import build_optimizer
from dassl.utils import (
    check_range,
    count_num_param,
    load_checkpoint,
    load_pretrained_weights,
    ranks,
)

from .checkpoints import (
    CHECKPOINT_VERSION,
    check_continues,
    check_origin,
    checked_weights,
    checkpoint_path,
    trained_classes,
)
from .classifier import PRECISIONS, PromptedCLIP
from .config import check_shared_keys
from .learner import Prediction, PromptLearner
from .memory_check import check_file, check_runs, to_device
from .savings.graph import CudaCapture, StepGraph
from .templates import TEACHER_TEMPLATES, given_templates
from .version import __version__


def check_backbone(cfg: CfgNode) -> None:
    """Check the backbone's name before anything is loaded.

    Raises:
        ValueError: neither a known name nor a file; the nearest name is suggested.
        FileNotFoundError: the name is a path, and no file is there.
    """
    name = cfg.MODEL.BACKBONE.NAME
    if not name:
        raise ValueError("MODEL.BACKBONE.NAME is empty: name a CLIP, e.g. --backbone ViT-B/16")
    check_name(name)


def load_clip(cfg: CfgNode, device: torch.device | str = "cpu") -> CLIP:
    """Load the CLIP named by ``MODEL.BACKBONE.NAME``, as ``build_model`` stores it.

    Args:
        cfg: the whole config.
        device: where the model goes.

    Raises:
        ValueError: unknown name, or ``INPUT.SIZE``, ``INPUT.PIXEL_MEAN`` or ``INPUT.PIXEL_STD``
            differs from what the backbone states, or the weights do not fit into memory.
    """
    name, go_on = cfg.MODEL.BACKBONE.NAME, not cfg.MODEL.MEMORY_CHECK
    with initial_draws(cfg.MODEL.OPENAI_DRAWS):
        check = partial(check_file, go_on=go_on)
        clip = build_model(load_state_dict(name, before_reading=check))
    side = clip.visual.input_resolution
    if tuple(cfg.INPUT.SIZE) != (side, side):
        raise ValueError(
            f"INPUT.SIZE is {tuple(cfg.INPUT.SIZE)}, but backbone {name!r} takes {side} x {side} "
            f'pixels: set INPUT.SIZE "({side}, {side})"'
        )
    stated = {"PIXEL_MEAN": clip.image_mean, "PIXEL_STD": clip.image_std}
    wanted = {key: value.tolist() for key, value in stated.items() if value is not None}
    found = {key: list(cfg.INPUT[key]) for key in wanted}
    if any(
        len(found[key]) not in (1, len(value)) or not np.allclose(found[key], value, atol=1e-3)
        for key, value in wanted.items()
    ):
        pairs = [f'INPUT.{key} "{[round(v, 6) for v in value]}"' for key, value in wanted.items()]
        raise ValueError(
            f"INPUT.PIXEL_MEAN is {list(cfg.INPUT.PIXEL_MEAN)} and INPUT.PIXEL_STD "
            f"{list(cfg.INPUT.PIXEL_STD)}, but backbone {name!r} was trained with others: set "
            f"{' '.join(pairs)}"
        )
    return to_device(clip, torch.device(device), go_on)


class Losses(NamedTuple):
    """Losses of a batch, scaled for the backward pass, and values for the log."""

    loss: Tensor
    guide: Tensor | None
    summary: dict[str, Tensor]


def backward(trainers: Sequence[PromptTrainer], losses: Sequence[Losses]) -> None:
    """Compute the gradients of one step of each trainer, edited where the method has a guide.

    Args:
        trainers: of one method; each learner takes part only in its own losses, so that the
            gradients are those of a single run.
        losses: of each.
    """
    learned = [(trainer, p) for trainer in trainers for p in trainer.model.learner.parameters()]
    guides = [each.guide for each in losses if each.guide is not None]
    for trainer in trainers:
        trainer.optim.zero_grad()
    directions: list[Tensor | None] = []
    if guides:
        # into .grad, where the mean over processes is taken
        torch.autograd.backward(guides, retain_graph=True)
        directions = [parameter.grad for _, parameter in learned]
        for trainer in trainers:
            trainer.optim.zero_grad()
    torch.autograd.backward([each.loss for each in losses])
    if guides:
        for (trainer, parameter), direction in zip(learned, directions, strict=True):
            # all parameters of a learner are trained
            assert parameter.grad is not None and direction is not None
            parameter.grad.copy_(trainer.edit_gradient(parameter.grad, direction))


class PromptTrainer(TrainerX):
    """Trainer of one :class:`PromptLearner` on a frozen CLIP.

    A method sets ``node``, declares its config defaults in ``extend_cfg``, builds its learner in
    ``build_learner`` and, when its loss is not plain cross-entropy, overrides ``loss``.
    """

    #: False where the loss is no mean over images; tests/adaptation/test_ranks.py compares
    splits_batches = True
    model: PromptedCLIP
    #: whether there are parameters to train in steps
    has_steps = True
    #: optimiser and schedule; None without steps
    optim: Any
    sched: Any
    #: name of the method's config node under TRAINER
    node: str
    #: folder of the learner's checkpoints in a run folder
    model_name = "prompt_learner"
    #: the method's settings that decide what learned tensors mean, to which checkpoints are bound
    bound_settings: tuple[str, ...] = ()
    #: whether blocks of an encoder change inside, which seeds cannot do in one pass
    changes_blocks = False
    #: whether a run may go on beyond its last epoch (TRAIN.EXTEND); set it to False where more than
    #: the learning rate depends on the number of epochs
    extends = True
    #: whether the method's published code builds OpenAI's CLIP unchanged and then draws its start
    #: values in the order of ``build_learner``
    draws_as_published = False
    #: whether the memory that the run needs was compared with what is free
    memory_is_checked = False
    # whether the run becomes longer than it was when it began
    _is_extended = False
    _frozen_text: str | None = None
    #: views of a training image that a step can use (DATALOADER.K_TRANSFORMS): with two, the
    #: learner sees the first and the frozen CLIP the second
    most_views = 1
    #: name of a term of ``loss`` that is not part of the loss: ``edit_gradient`` gets its gradients
    guide: str | None = None

    @staticmethod
    def extend_cfg(cfg: CfgNode) -> None:
        """Declare the config defaults of the method, in its own node."""

    @classmethod
    def update_settings(cls, settings: dict[str, Any]) -> None:
        """Bring the method's settings in a checkpoint to this version, in place.

        Args:
            settings: the method's config node as stored in the checkpoint.
        """

    @property
    def node_cfg(self) -> CfgNode:
        """Config node of the method."""
        return self.cfg.TRAINER[self.node]

    def set_model_mode(self, mode: str = "train", names: str | list[str] | None = None) -> None:
        super().set_model_mode(mode, names)
        self.model.forget_text()

    def check_cfg(self, cfg: CfgNode) -> None:
        check_backbone(cfg)
        precision = cfg.TRAINER[self.node].PREC
        if precision not in PRECISIONS:
            raise ValueError(
                f"TRAINER.{self.node}.PREC is {precision!r}: use one of {', '.join(PRECISIONS)}"
            )
        check_shared_keys(cfg)
        n_views = cfg.DATALOADER.K_TRANSFORMS
        if n_views > self.most_views:
            raise ValueError(
                f"DATALOADER.K_TRANSFORMS is {n_views}: {cfg.TRAINER.NAME} uses at most "
                f"{self.most_views} of a training image's views (most_views of its class)"
            )
        if cfg.MODEL.OPENAI_DRAWS and not self.draws_as_published:
            raise ValueError(
                "MODEL.OPENAI_DRAWS is for CoOp, CoCoOp and trainer files of your own on an "
                f"unmodified CLIP: {cfg.TRAINER.NAME} would not have upstream's random numbers"
            )
        if (key := self.draws_in_steps(cfg)) and (cfg.OPTIM.CUDA_GRAPH or ranks.started() > 1):
            what = "OPTIM.CUDA_GRAPH" if cfg.OPTIM.CUDA_GRAPH else "torchrun"
            raise ValueError(
                f"{what}: training steps of {cfg.TRAINER.NAME} draw random numbers, which neither "
                f"captured steps nor several processes of a run do alike: set {key} 0, or leave "
                f"out {what}"
            )
        if cfg.OPTIM.CUDA_GRAPH and not self.has_steps:
            raise ValueError(
                f"OPTIM.CUDA_GRAPH captures training steps, and {cfg.TRAINER.NAME} takes none: set "
                "it to False"
            )
        if cfg.OPTIM.CUDA_GRAPH and precision == "amp":
            raise ValueError(
                f"OPTIM.CUDA_GRAPH: TRAINER.{self.node}.PREC 'amp' reads on the host whether "
                "gradients are finite, which a graph cannot: use bf16, fp16 or fp32"
            )

    @classmethod
    def draws_in_steps(cls, cfg: CfgNode) -> str | None:
        """Return the key that has training steps draw random numbers; None where they draw none."""
        return None

    def read_file(self, path: str) -> Mapping[str, Any]:
        """Return the content of a checkpoint file, of this toolbox or of the published code.

        A method whose published code saves something else than a table overrides this.

        Args:
            path: of the file.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is damaged, or of other settings.
        """
        return self.read_published(load_checkpoint(path), path)

    def read_published(self, content: Mapping[str, Any], path: str) -> Mapping[str, Any]:
        """Return a file's content as a checkpoint, ``state_dict`` and ``epoch``.

        A method whose published code saves something else overrides this.

        Args:
            content: of the file.
            path: of the file, for errors.

        Raises:
            ValueError: the file is damaged, or of other settings.
        """
        return content

    @classmethod
    def build_learner(cls, cfg: CfgNode, clip: CLIP, classnames: Sequence[str]) -> PromptLearner:
        """Build an untrained learner of the method.

        Args:
            cfg: the whole config.
            clip: model that the learner is for, frozen and in float32.
            classnames: classes that the learner starts with.
        """
        raise NotImplementedError

    @classmethod
    def teacher_templates(cls, cfg: CfgNode) -> Sequence[str]:
        """Return the texts that the frozen teacher averages over, DATASET.TEMPLATES aside.

        A method whose teacher reads the data set's own text overrides this and returns
        ``(dataset_template(cfg.DATASET.NAME),)`` (see :mod:`adaptation.templates`).

        Args:
            cfg: the whole config.

        Returns:
            at least one text with one ``{}`` for the class name.
        """
        return TEACHER_TEMPLATES

    @classmethod
    def build_classifier(
        cls,
        cfg: CfgNode,
        clip: CLIP,
        classnames: Sequence[str],
        templates: Sequence[str] = (),
    ) -> PromptedCLIP:
        """Build a CLIP with an untrained learner, on CLIP's device; no data set is needed.

        Args:
            cfg: the whole config.
            clip: model to freeze and use.
            classnames: the classes to tell apart.
            templates: templates in place of ``teacher_templates`` and of an unprompted text
                encoder's own.
        """
        clip = clip.requires_grad_(False).float()
        learner = cls.build_learner(cfg, clip, classnames).to(clip.logit_scale.device)
        if templates and learner.text_changes() is None:
            learner.template = templates[0]
        return PromptedCLIP(
            clip,
            learner,
            classnames,
            precision=cfg.TRAINER[cls.node].PREC,
            teacher_templates=templates or cls.teacher_templates(cfg),
            fast=cfg.MODEL.FAST_ENCODERS,
            memory_gb=cfg.MODEL.MEMORY_GB,
            cache_mb=cfg.MODEL.TEACHER_CACHE_MB,
        )

    def build_model(self) -> None:
        cfg = self.cfg
        print(f"Loading CLIP (backbone: {cfg.MODEL.BACKBONE.NAME})")
        clip = load_clip(cfg, self.device)
        self.given_templates = given_templates(cfg.DATASET.TEMPLATES, self.dm.dataset.dataset_dir)
        self.model = self.build_classifier(
            cfg, clip, self.dm.dataset.classnames, self.given_templates
        )
        learner = self.model.learner
        learner.set_n_images(len(self.dm.dataset.train_x))
        learner.start(self.model)
        if cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(learner, cfg.MODEL.INIT_WEIGHTS)
        print(f"Trainable parameters: {count_num_param(learner):,}")

        self.register_model(self.model_name, learner)
        self.optim, self.sched = None, None
        if self.has_steps:
            self.new_optimiser(learner)

    def trained_parameters(self) -> list[Tensor]:
        """Return all that the learner has, whichever stage trains it."""
        return list(self.model.learner.parameters())

    def new_optimiser(self, parameters: Any, stage: int = 0) -> None:
        """Train these parameters from now on, with the learning rates of a stage of the run.

        Args:
            parameters: the learner, or some of its parameters.
            stage: index of the stage, of those that the run has (``stages``).
        """
        check_range(self.cfg.OPTIM, "OPTIM", 0, math.inf, "CLIP_GRAD_NORM")
        groups = self.param_groups(parameters) if parameters is self.model.learner else None
        self.optim = build_optimizer(parameters, self.cfg.OPTIM, groups)
        self.sched = self.build_schedule(self.optim, stage)
        self._optims[self.model_name], self._scheds[self.model_name] = self.optim, self.sched
        # float16 gradients of automatic mixed precision need their loss scaled up
        scaled = self.node_cfg.PREC == "amp"
        self.scaler = torch.amp.GradScaler(self.device.type) if scaled else None
        self.graph = self._step_graph() if self.cfg.OPTIM.CUDA_GRAPH else None

    def param_groups(self, learner: Any) -> list[dict[str, Any]] | None:
        """Return the optimiser's groups, if the learner's parameters differ in its settings."""
        return None

    def _step_graph(self) -> StepGraph:
        on_gpu = self.device.type == "cuda"
        if not on_gpu:
            print("Note: OPTIM.CUDA_GRAPH has no CUDA device here: no step is captured")

        def state() -> list[Tensor]:
            return [*self.model.learner.parameters(), *self.model.learner.buffers()]

        capture = CudaCapture(self.device) if on_gpu else None
        constants = self.model.class_constants
        return StepGraph(
            self.train_on, self.optim, state=state, constants=constants, capture=capture
        )

    def loss(self, prediction: Prediction, label: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of a batch, and its terms for the log.

        Args:
            prediction: prompted features and logits.
            label: ``(B,)`` class indices.
        """
        return F.cross_entropy(prediction.logits, label), {}

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        image, label = self.parse_batch_train(batch)
        if self.graph is None:
            summary = self.train_on(image, label, batch.get("view"))
        else:
            # without names of views: a graph cannot look features up on the host
            summary = self.graph(image, label)
            # replays change parameters without increasing PyTorch's version counters
            self.model.forget_text()
        self.end_step()
        return summary

    def train_on(
        self, image: Tensor, label: Tensor, views: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Take one step on a batch that is on the device.

        Args:
            image: ``(B, 3, side, side)``.
            label: ``(B,)`` class indices.
            views: a loader's names of the images' views.

        Returns:
            values for the log, without gradients.
        """
        losses = self.losses(self.predict(image, views), label)
        self.step(losses)
        return losses.summary

    def predict(self, image: Tensor, views: Sequence[str] | None = None) -> Prediction:
        """Classify a training batch that is on the device; arguments as for ``train_on``."""
        return self.model.predict(image, views)

    def losses(self, prediction: Prediction, label: Tensor) -> Losses:
        """Compute the loss of a batch, the guide if there is one, and values for the log."""
        # left on the device: the engine reads them, and checks the loss, when it prints a line
        found = self.loss(prediction, label)
        if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], Mapping)):
            raise TypeError(
                f"{type(self).__name__}.loss must return the loss and a dictionary of values for "
                'the log: (loss, {"ce": ce})'
            )
        loss, terms = found
        summary = {"loss": loss, "acc": compute_accuracy(prediction.logits, label)[0], **terms}
        guide = None if self.guide is None else self.scaled(terms[self.guide])
        logged = {name: value.detach() for name, value in summary.items()}
        return Losses(self.scaled(loss), guide, logged)

    def step(self, losses: Losses) -> None:
        """Run the backward pass and the update."""
        backward([self], [losses])
        self.update()

    def edit_gradient(self, gradient: Tensor, guide: Tensor) -> Tensor:
        """Return what the optimiser gets in the place of a parameter's gradient.

        It is asked for each parameter where the method names a ``guide``. Both gradients may be
        scaled by a factor (``PREC`` amp), and no value of them may be read on the host.

        Args:
            gradient: of the loss.
            guide: of the guide, of the same shape.
        """
        return gradient

    def scaled(self, loss: Tensor) -> Tensor:
        """Scale the loss for the backward pass, where the precision needs it."""
        return loss if self.scaler is None else self.scaler.scale(loss)

    def update(self) -> None:
        """Clip gradients if ``OPTIM.CLIP_GRAD_NORM`` is set, and take the optimiser step.

        A ``forward_backward`` of your own has to call ``end_step`` after this.
        """
        if self.cfg.OPTIM.CLIP_GRAD_NORM > 0:
            if self.scaler is not None:
                self.scaler.unscale_(self.optim)
            torch.nn.utils.clip_grad_norm_(
                self.model.learner.parameters(), self.cfg.OPTIM.CLIP_GRAD_NORM
            )
        if self.scaler is None:
            self.optim.step()
        else:
            self.scaler.step(self.optim)
            self.scaler.update()

    def before_train(self) -> None:
        self.check_memory(training=True)
        super().before_train()

    def test(self, split: str | None = None) -> float:
        self.check_memory(training=False)
        return super().test(split)

    def check_memory(self, training: bool) -> None:
        """Check once, at the start, that the run fits into memory: see ``check_runs``."""
        if not self.memory_is_checked:
            self.memory_is_checked = True
            check_runs([self], training)

    def kept_bytes(self, training: bool) -> float:
        """Return the bytes of features that the run keeps beside weights and learner.

        Args:
            training: whether it trains, or only tests.
        """
        return 0.0

    def after_epoch(self) -> None:
        super().after_epoch()
        self.model.teacher_cache.save()

    def parse_batch_train(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Move images and labels of a batch to the device.

        Several views of an image become ``(B, views, 3, side, side)``. A method that changes the
        images here must remove ``view`` from the batch: the frozen features kept under that name
        belong to the unchanged images.
        """
        image, label = batch["img"], batch["label"].to(self.device, non_blocking=True)
        if isinstance(image, Tensor):
            return image.to(self.device, non_blocking=True), label
        views = [view.to(self.device, non_blocking=True) for view in image]
        return torch.stack(views, dim=1), label

    def checkpoint_state(
        self, name: str, epoch: int, val_result: float | None = None
    ) -> dict[str, Any]:
        """Return the learner (not CLIP) and plain values that are needed to load it elsewhere."""
        meta = {
            "version": CHECKPOINT_VERSION,
            "library": __version__,
            "method": self.cfg.TRAINER.NAME,
            "backbone": self.cfg.MODEL.BACKBONE.NAME,
            "classnames": list(self.model.classnames),
            "config": self._stored_text(),
            "torch": str(torch.__version__),
        }
        return {**super().checkpoint_state(name, epoch, val_result), "meta": meta}

    def _stored_text(self) -> str:
        """Return the config of checkpoints as YAML, written once where it cannot change.

        Writing it takes longer than an epoch on features.
        """
        if not self.cfg.is_frozen():
            return self._stored_cfg().dump()
        if self._frozen_text is None:
            self._frozen_text = self._stored_cfg().dump()
        return self._frozen_text

    def _stored_cfg(self) -> CfgNode:
        cfg = self.cfg.clone()
        cfg.defrost()
        # the texts themselves, since template files may be missing where the checkpoint is used
        cfg.DATASET.TEMPLATES = self.given_templates
        return cfg

    def check_start(self, start: Start) -> None:
        """Check that what the run goes on from is of a run with its settings and classes."""
        for name, checkpoint in start.checkpoints.items():
            path = start.paths[name]
            self._checked_weights(checkpoint, name, path)
            if "meta" not in checkpoint:
                raise ValueError(
                    f"{path} was not written by this toolbox and cannot be resumed: "
                    "use another output folder, or test it with --eval-only --model-dir"
                )
            classes = self.model.classnames
            stored = self._stored_cfg()
            self._is_extended = check_continues(checkpoint["meta"], stored, classes, path)
        if self._is_extended:
            print(f"TRAIN.EXTEND: the run continues to epoch {self.cfg.OPTIM.MAX_EPOCH}")

    def restore_start(self, start: Start) -> None:
        if self._is_extended:
            self._scheds[self.model_name] = None  # the stored schedule is of the shorter run
        super().restore_start(start)
        if self._is_extended:
            epoch, steps = start.position
            if self.cfg.OPTIM.SCHEDULE_PER == "batch":
                self._extend(epoch * self.steps_per_epoch() + steps)
            else:  # the last step of an epoch sets the rate of the next one
                self._extend(epoch + (steps > 0 and steps == self.steps_per_epoch()))

    def _extend(self, updates: int) -> None:
        """Use the learning rates of a run of ``OPTIM.MAX_EPOCH`` epochs after so many updates."""
        for group in self.optim.param_groups:
            group["lr"] = group["initial_lr"]
        self.sched = self.build_schedule(self.optim)
        with warnings.catch_warnings():  # PyTorch warns of a schedule stepped before its optimiser
            warnings.simplefilter("ignore", UserWarning)
            for _ in range(updates):
                self.sched.step()
        self._scheds[self.model_name] = self.sched

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load a trained learner, also one trained on other classes.

        Args:
            directory: run folder; empty loads nothing.
            epoch: number of the epoch; ``None`` for the best model if the run chose one, else the
                last one.

        Raises:
            FileNotFoundError: no such checkpoint.
            ValueError: a checkpoint of another method, backbone or width.
        """
        if not directory:
            print("Note that load_model() is skipped as no pretrained model is given")
            return
        for name in self.get_model_names():
            path = checkpoint_path(directory, name, epoch)
            checkpoint = self.read_file(path)
            weights = self._checked_weights(checkpoint, name, path, any_images=True)
            self._models[name].load_state_dict(weights)
            classes = self.model.classnames
            self.model.trained_classes = trained_classes(checkpoint, self.cfg, classes, path)
            print(f'Loading weights to {name} from "{path}" (epoch = {checkpoint["epoch"]})')
            self.run_notes.note_loaded(checkpoint)

    def _checked_weights(
        self,
        checkpoint: Mapping[str, Any],
        name: str,
        path: str,
        any_images: bool = False,
    ) -> dict[str, Tensor]:
        check_origin(checkpoint.get("meta", {}), self.cfg, path)
        learner: Any = self._models[name]
        of_variant = getattr(self.dm.dataset, "rows_of_all", None)  # of ImageNet's variants
        rows = of_variant() if of_variant and "meta" not in checkpoint else None
        return checked_weights(checkpoint, learner, self.model.classnames, path, any_images, rows)
