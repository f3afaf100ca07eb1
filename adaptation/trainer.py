"""What every prompt method shares: build, freeze, precision, step, save, load."""

from __future__ import annotations

import os.path as osp
import warnings
from collections.abc import Sequence
from typing import Any

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
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import count_num_param, load_checkpoint, load_pretrained_weights
from dassl.utils.checkpoint import latest_checkpoint

from .checkpoints import (
    CHECKPOINT_VERSION,
    check_continues,
    check_origin,
    checked_weights,
    checkpoint_path,
)
from .classifier import PRECISIONS, PromptedCLIP
from .config import check_shared_keys
from .learner import Prediction, PromptLearner
from .savings.graph import CudaCapture, StepGraph
from .templates import TEACHER_TEMPLATES, given_templates
from .version import __version__


def check_backbone(cfg: CfgNode) -> None:
    """Check the backbone's name before anything is loaded.

    Raises:
        ValueError: neither a known name nor a file; the nearest name is suggested.
        FileNotFoundError: looks like a file that does not exist.
    """
    name = cfg.MODEL.BACKBONE.NAME
    if not name:
        raise ValueError("MODEL.BACKBONE.NAME is empty: name a CLIP, e.g. --backbone ViT-B/16")
    check_name(name)


def load_clip(cfg: CfgNode) -> CLIP:
    """The CLIP named by ``MODEL.BACKBONE.NAME``, on the CPU, as ``build_model`` stores it.

    Raises:
        ValueError: unknown name, or ``INPUT.SIZE``, ``INPUT.PIXEL_MEAN`` or ``INPUT.PIXEL_STD``
            differs from what the backbone says of its images.
    """
    name = cfg.MODEL.BACKBONE.NAME
    with initial_draws(cfg.MODEL.OPENAI_DRAWS):
        clip = build_model(load_state_dict(name))
    side = clip.visual.input_resolution
    if tuple(cfg.INPUT.SIZE) != (side, side):
        raise ValueError(
            f"INPUT.SIZE is {tuple(cfg.INPUT.SIZE)}, but backbone {name!r} takes {side} x {side} "
            f'pixels: set INPUT.SIZE "({side}, {side})"'
        )
    stated = {"PIXEL_MEAN": clip.image_mean, "PIXEL_STD": clip.image_std}
    wanted = {key: value.tolist() for key, value in stated.items() if value is not None}
    if any(not np.allclose(cfg.INPUT[key], value, atol=1e-3) for key, value in wanted.items()):
        pairs = [f'INPUT.{key} "{[round(v, 6) for v in value]}"' for key, value in wanted.items()]
        raise ValueError(
            f"INPUT.PIXEL_MEAN is {list(cfg.INPUT.PIXEL_MEAN)} and INPUT.PIXEL_STD "
            f"{list(cfg.INPUT.PIXEL_STD)}, but backbone {name!r} was trained with others: set "
            f"{' '.join(pairs)}"
        )
    return clip


class PromptTrainer(TrainerX):
    """Trains one :class:`PromptLearner` on a frozen CLIP.

    A method sets ``node``, declares its config defaults in ``extend_cfg``, builds its learner in
    ``build_learner`` and, when its loss is not plain cross-entropy, overrides ``loss``.
    """

    #: name of the method's config node under TRAINER
    node: str
    #: folder of the learner's checkpoints in a run folder
    model_name = "prompt_learner"
    #: settings of the method under whose other values learned tensors mean something else
    bound_settings: tuple[str, ...] = ()
    #: whether a run may go on beyond its last epoch (TRAIN.EXTEND); not where something besides the
    #: learning rate depends on the number of epochs
    extends = True
    #: whether published code of the method starts from OpenAI's CLIP as it is, and draws nothing
    #: else in another order than ``build_learner``
    draws_as_published = False

    @staticmethod
    def extend_cfg(cfg: CfgNode) -> None:
        """Declare config defaults; a method overrides this with its own node."""

    @classmethod
    def update_settings(cls, settings: dict[str, Any]) -> None:
        """Turn a checkpoint's settings of the method into this version's, in place.

        Args:
            settings: what the method's config node held when the checkpoint was written.
        """

    @property
    def node_cfg(self) -> CfgNode:
        """The method's own part of the config."""
        return self.cfg.TRAINER[self.node]

    def set_model_mode(self, mode: str = "train", names: Sequence[str] | None = None) -> None:
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
        if cfg.MODEL.OPENAI_DRAWS and not self.draws_as_published:
            raise ValueError(
                "MODEL.OPENAI_DRAWS is for CoOp, CoCoOp and trainer files of your own on an "
                f"unmodified CLIP: {cfg.TRAINER.NAME} would not have upstream's random numbers"
            )
        if cfg.OPTIM.CUDA_GRAPH and precision == "amp":
            raise ValueError(
                f"OPTIM.CUDA_GRAPH: TRAINER.{self.node}.PREC 'amp' reads on the host whether "
                "gradients are finite, which a graph cannot: use bf16, fp16 or fp32"
            )

    @classmethod
    def build_learner(cls, cfg: CfgNode, clip: CLIP, classnames: Sequence[str]) -> PromptLearner:
        """A fresh learner of the method.

        Args:
            cfg: the whole config.
            clip: the model it is for, frozen and in float32.
            classnames: the classes that it starts with.
        """
        raise NotImplementedError

    @classmethod
    def build_classifier(
        cls,
        cfg: CfgNode,
        clip: CLIP,
        classnames: Sequence[str],
        templates: Sequence[str] = (),
    ) -> PromptedCLIP:
        """CLIP with a fresh learner, on CLIP's device; needs no data set.

        Args:
            cfg: the whole config.
            clip: frozen here.
            classnames: the classes to tell apart.
            templates: texts in place of the teacher's and of an unprompted text encoder's.
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
            teacher_templates=templates or TEACHER_TEMPLATES,
            fast=cfg.MODEL.FAST_ENCODERS,
            memory_gb=cfg.MODEL.MEMORY_GB,
            cache_mb=cfg.MODEL.TEACHER_CACHE_MB,
        )

    def build_model(self) -> None:
        cfg = self.cfg
        print(f"Loading CLIP (backbone: {cfg.MODEL.BACKBONE.NAME})")
        clip = load_clip(cfg).to(self.device)
        self.given_templates = given_templates(cfg.DATASET.TEMPLATES, self.dm.dataset.dataset_dir)
        self.model = self.build_classifier(
            cfg, clip, self.dm.dataset.classnames, self.given_templates
        )
        learner = self.model.learner
        if cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(learner, cfg.MODEL.INIT_WEIGHTS)
        print(f"Trainable parameters: {count_num_param(learner):,}")

        self.optim = build_optimizer(learner, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model(self.model_name, learner, self.optim, self.sched)
        # float16 gradients of automatic mixed precision need their loss scaled up
        scaled = self.node_cfg.PREC == "amp"
        self.scaler = torch.amp.GradScaler(self.device.type) if scaled else None
        self.graph = self._step_graph() if cfg.OPTIM.CUDA_GRAPH else None

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
        """The loss of a batch, and its terms for the log.

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
            # without names of the views, which features would be looked up by on the host
            summary = self.graph(image, label)
            # replays change parameters without PyTorch's counting it
            self.model.forget_text()
        self.end_step()
        return summary

    def train_on(
        self, image: Tensor, label: Tensor, views: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """One step on a batch that is on the device; returns what is logged, without gradients.

        Args:
            image: ``(B, 3, side, side)``.
            label: ``(B,)`` class indices.
            views: a loader's names of the images' views.
        """
        prediction = self.model.predict(image, views)
        loss, summary = self.summarised_loss(prediction, label)
        self.step(loss)
        return summary

    def summarised_loss(
        self, prediction: Prediction, label: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and what is logged of the step, without gradients."""
        # loss and terms are read, and the loss checked, when the engine prints a line
        loss, terms = self.loss(prediction, label)
        summary = {"loss": loss, "acc": compute_accuracy(prediction.logits, label)[0], **terms}
        return loss, {name: value.detach() for name, value in summary.items()}

    def step(self, loss: Tensor) -> None:
        """Backward pass and update."""
        self.optim.zero_grad()
        self.scaled(loss).backward()
        self.update()

    def scaled(self, loss: Tensor) -> Tensor:
        """What the backward pass starts from."""
        return loss if self.scaler is None else self.scaler.scale(loss)

    def update(self) -> None:
        """What follows the backward pass: gradient clipping when asked for, optimiser step.

        ``end_step`` follows, which a ``forward_backward`` of one's own has to call.
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

    def end_step(self) -> None:
        """Set the learning rate of the next epoch after the last batch of this one."""
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()

    def after_epoch(self) -> None:
        super().after_epoch()
        self.model.teacher_cache.save()

    def parse_batch_train(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Images and labels on the device.

        A method that changes the images here must take ``view`` out of the batch: the frozen
        features known by that name belong to the images as they were.
        """
        image, label = batch["img"], batch["label"]
        return image.to(self.device, non_blocking=True), label.to(self.device, non_blocking=True)

    def checkpoint_state(
        self, name: str, epoch: int, val_result: float | None = None
    ) -> dict[str, Any]:
        """The learner (not CLIP) with what is needed to load it elsewhere, as plain values."""
        meta = {
            "version": CHECKPOINT_VERSION,
            "library": __version__,
            "method": self.cfg.TRAINER.NAME,
            "backbone": self.cfg.MODEL.BACKBONE.NAME,
            "classnames": list(self.model.classnames),
            "config": self._stored_cfg().dump(),
            "torch": str(torch.__version__),
        }
        return {**super().checkpoint_state(name, epoch, val_result), "meta": meta}

    def _stored_cfg(self) -> CfgNode:
        cfg = self.cfg.clone()
        cfg.defrost()
        # the texts themselves: files may not be where the checkpoint is used
        cfg.DATASET.TEMPLATES = self.given_templates
        return cfg

    def resume_model_if_exist(self, directory: str) -> int:
        """Continue from a run folder after checking that its checkpoint fits this run."""
        extended = False
        for name in self.get_model_names():
            path = latest_checkpoint(osp.join(directory, name))
            if path is not None:
                checkpoint = load_checkpoint(path)
                self._checked_weights(checkpoint, name, path)
                if "meta" not in checkpoint:
                    raise ValueError(
                        f"{path} was not written by this toolbox and cannot be resumed: "
                        "use another output folder, or test it with --eval-only --model-dir"
                    )
                classes = self.model.classnames
                extended = check_continues(checkpoint["meta"], self._stored_cfg(), classes, path)
        if extended:
            self._scheds[self.model_name] = None  # the stored one ends with the run as begun
        epoch = super().resume_model_if_exist(directory)
        if extended:
            self._extend(epoch)
        return epoch

    def _extend(self, epoch: int) -> None:
        """Take the learning rates of a run of ``OPTIM.MAX_EPOCH`` epochs from this one on."""
        for group in self.optim.param_groups:
            group["lr"] = group["initial_lr"]
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        with warnings.catch_warnings():  # of a schedule that is stepped before the optimiser
            warnings.simplefilter("ignore", UserWarning)
            for _ in range(epoch):
                self.sched.step()
        self._scheds[self.model_name] = self.sched
        print(f"TRAIN.EXTEND: the run goes on to epoch {self.cfg.OPTIM.MAX_EPOCH}")

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load a learner trained before, also one trained on other classes.

        Args:
            directory: run folder; empty loads nothing.
            epoch: number of the epoch; ``None`` for the best model or, where the run chose none,
                the last one.

        Raises:
            FileNotFoundError: no such checkpoint.
            ValueError: a checkpoint of another method, backbone or width.
        """
        if not directory:
            print("Note that load_model() is skipped as no pretrained model is given")
            return
        for name in self.get_model_names():
            path = checkpoint_path(directory, name, epoch)
            checkpoint = load_checkpoint(path)
            self._models[name].load_state_dict(self._checked_weights(checkpoint, name, path))
            print(f'Loading weights to {name} from "{path}" (epoch = {checkpoint["epoch"]})')
            self.run_notes.loaded(checkpoint)

    def _checked_weights(
        self, checkpoint: dict[str, Any], name: str, path: str
    ) -> dict[str, Tensor]:
        check_origin(checkpoint.get("meta", {}), self.cfg, path)
        return checked_weights(checkpoint, self._models[name], self.model.classnames, path)
