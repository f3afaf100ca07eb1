"""What every prompt method shares: build, freeze, precision, step, save, load."""

from __future__ import annotations

import os
import os.path as osp
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clip.clip import check_name, load_state_dict
from clip.model import CLIP, build_model
from dassl.config import CfgNode
from dassl.engine import TrainerX
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import count_num_param, load_checkpoint, load_pretrained_weights
from dassl.utils.checkpoint import BEST, latest_checkpoint

from .learner import PromptLearner
from .prompted_clip import PRECISIONS, Prediction, PromptedCLIP
from .templates import TEACHER_TEMPLATES, given_templates
from .version import __version__

#: version of the learner checkpoints' layout, stored in each of them
CHECKPOINT_VERSION = 1


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

    @staticmethod
    def extend_cfg(cfg: CfgNode) -> None:
        """Declare config defaults; a method overrides this with its own node."""

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
        if templates and learner.text_prompts() is None:
            learner.template = templates[0]
        teacher = templates or TEACHER_TEMPLATES
        return PromptedCLIP(clip, learner, classnames, cfg.TRAINER[cls.node].PREC, teacher)

    def param_groups(self, learner: PromptLearner) -> list[dict[str, Any]] | None:
        """Optimiser groups, where parameters differ in learning rate; ``None`` is one group."""
        return None

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

        self.optim = build_optimizer(learner, cfg.OPTIM, self.param_groups(learner))
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model(self.model_name, learner, self.optim, self.sched)
        # float16 gradients of automatic mixed precision need their loss scaled up
        scaled = self.node_cfg.PREC == "amp"
        self.scaler = torch.amp.GradScaler(self.device.type) if scaled else None

    def loss(self, prediction: Prediction, label: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and its terms for the log.

        Args:
            prediction: prompted features and logits.
            label: ``(B,)`` class indices.
        """
        return F.cross_entropy(prediction.logits, label), {}

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        # loss and terms are read, and the loss checked, when the engine prints a line
        image, label = self.parse_batch_train(batch)
        prediction = self.model.predict(image)
        loss, terms = self.loss(prediction, label)
        self.step(loss)
        summary = {"loss": loss, "acc": compute_accuracy(prediction.logits, label)[0], **terms}
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {name: value.detach() for name, value in summary.items()}

    def step(self, loss: Tensor) -> None:
        """Backward pass, gradient clipping when asked for, optimiser step."""
        self.optim.zero_grad()
        if self.scaler is None:
            loss.backward()
        else:
            self.scaler.scale(loss).backward()
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

    def parse_batch_train(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return batch["img"].to(self.device), batch["label"].to(self.device)

    def checkpoint_state(
        self, name: str, epoch: int, val_result: float | None = None
    ) -> dict[str, Any]:
        """The learner (not CLIP) with what is needed to load it elsewhere, as plain values."""
        cfg = self.cfg.clone()
        cfg.defrost()
        # the texts themselves: files may not be where the checkpoint is used
        cfg.DATASET.TEMPLATES = self.given_templates
        meta = {
            "version": CHECKPOINT_VERSION,
            "library": __version__,
            "method": self.cfg.TRAINER.NAME,
            "backbone": self.cfg.MODEL.BACKBONE.NAME,
            "classnames": list(self.model.classnames),
            "config": cfg.dump(),
            "torch": str(torch.__version__),
        }
        return {**super().checkpoint_state(name, epoch, val_result), "meta": meta}

    def resume_model_if_exist(self, directory: str) -> int:
        """Continue from a run folder after checking that its checkpoint fits this run."""
        for name in self.get_model_names():
            path = latest_checkpoint(osp.join(directory, name))
            if path is not None:
                checkpoint = load_checkpoint(path)
                self._check(checkpoint, self._models[name], path)
                if "meta" not in checkpoint:
                    raise ValueError(
                        f"{path} was not written by this toolbox and cannot be resumed: "
                        "use another output folder, or test it with --eval-only --model-dir"
                    )
        return super().resume_model_if_exist(directory)

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load a learner trained before, also one trained on other classes.

        Args:
            directory: run folder; empty loads nothing.
            epoch: number of the epoch; ``None`` for the best model.

        Raises:
            FileNotFoundError: no such checkpoint.
            ValueError: a checkpoint of another method, backbone or width.
        """
        if not directory:
            print("Note that load_model() is skipped as no pretrained model is given")
            return
        file = BEST if epoch is None else f"model.pth.tar-{epoch}"
        for name in self.get_model_names():
            path = osp.join(directory, name, file)
            if not osp.exists(path):
                raise FileNotFoundError(f"No model at {path}{self._found(directory, name)}")
            checkpoint = load_checkpoint(path)
            weights = self._check(checkpoint, self._models[name], path)
            self._models[name].load_state_dict(weights)
            print(f'Loading weights to {name} from "{path}" (epoch = {checkpoint["epoch"]})')

    @staticmethod
    def _found(directory: str, name: str) -> str:
        folder = osp.join(directory, name)
        if not osp.isdir(folder):
            return f": the folder {folder} does not exist. Train first, or correct --model-dir"
        with_models = sorted(f for f in os.listdir(folder) if f.startswith("model"))
        return f". There is: {', '.join(with_models) or 'nothing'}; correct --load-epoch"

    def _check(
        self, checkpoint: dict[str, Any], learner: PromptLearner, path: str
    ) -> dict[str, Tensor]:
        """Weights of a checkpoint, after a check that they are this run's learner's."""
        if missing := [key for key in ("state_dict", "epoch") if key not in checkpoint]:
            raise ValueError(f"{path} is not a checkpoint: it has no {' and no '.join(missing)}")
        meta = checkpoint.get("meta", {})
        if meta.get("version", 1) > CHECKPOINT_VERSION:
            raise ValueError(
                f"{path} has layout {meta['version']}, newer than this toolbox reads "
                f"({CHECKPOINT_VERSION}): update it (written by version {meta['library']})"
            )
        for key, mine, flag in (
            ("method", self.cfg.TRAINER.NAME, "--trainer"),
            ("backbone", self.cfg.MODEL.BACKBONE.NAME, "--backbone"),
        ):
            theirs = meta.get(key, mine)
            if theirs != mine:
                raise ValueError(
                    f"{path} was trained with {key} {theirs}, this run has {mine}: "
                    f"change {flag} or the folder"
                )
        own, weights = learner.state_dict(), checkpoint["state_dict"]
        if not meta:
            weights = learner.from_upstream(_trained_upstream(weights))
        problems = [f"{key} is missing" for key in own if key not in weights]
        problems += [f"{key} is not known to this method" for key in weights if key not in own]
        problems += [
            f"{key} has shape {tuple(weights[key].shape)}, this run needs {tuple(own[key].shape)}"
            for key in own
            if key in weights and own[key].shape != weights[key].shape
        ]
        if problems:
            raise ValueError(
                f"{path} does not fit this run: {'; '.join(problems)}. Use the config, backbone "
                "and (for class-specific contexts) the classes that it was trained with"
            )
        return weights


def _trained_upstream(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a checkpoint of the published code trained.

    Left out are the weights of the frozen CLIP that it holds as well, and the embedded class names,
    which belong to the classes of that run.
    """

    def frozen(key: str) -> bool:
        inside = key.startswith(("image_encoder.", "text_encoder.", "prompt_learner.ZS_image_enc"))
        names = key.removeprefix("prompt_learner.") in ("token_prefix", "token_suffix")
        return names or key == "logit_scale" or (inside and "VPT" not in key)

    weights = {key.removeprefix("module."): value for key, value in weights.items()}
    return {key: value.float() for key, value in weights.items() if not frozen(key)}
