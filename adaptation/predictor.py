"""Prediction with a trained run or zero-shot CLIP: class names of pictures, and probabilities."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from clip.loading import load_state_dict
from clip.weights import build_model
from dassl.config import CfgNode, get_cfg_default
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import choose_device, load_checkpoint, read_image
from dassl.utils.tools import to_rgb, turned_upright

from .checkpoints import (
    checked_weights,
    find_checkpoint,
    stored_cfg,
    trained_classes,
    untrained_run,
)
from .config import extend_cfg
from .templates import given_templates
from .trainer import PromptTrainer, check_backbone, load_clip

#: settings of a zero-shot prediction, which are those of all runs; they hold the image statistics
#: of OpenAI's CLIP, and weights of open_clip may state others
BASE_CONFIG = Path(__file__).resolve().parent.parent / "configs" / "base.yaml"

Picture = str | Path | Image.Image


class Label(NamedTuple):
    """A class name and its probability, 0 to 1."""

    name: str
    probability: float


class Predictor:
    """Classifier with the transform of its images; :meth:`load` makes one from a run folder.

        predictor = Predictor.load("output/run")
        for labels in predictor.predict(["cat.jpg", "dog.jpg"]):
            print(labels[0].name, labels[0].probability)

    Args:
        model: maps normalised images ``(B, 3, side, side)`` to logits ``(B, C)``.
        cfg: config of the run; its test transform is used.
        classnames: the ``C`` classes.
        device: device that the model is on.
    """

    def __init__(
        self, model: Any, cfg: CfgNode, classnames: Sequence[str], device: torch.device
    ) -> None:
        # torchvision takes seconds to import, and the package imports this module
        from dassl.data.transforms import build_transform

        self.model, self.cfg, self.device = model.eval(), cfg, device
        self.classnames = list(classnames)
        self.transform: Any = build_transform(cfg, is_train=False, verbose=False)

    @classmethod
    def load(
        cls,
        run: str | Path,
        classnames: Sequence[str] | None = None,
        epoch: int | None = None,
        device: str | None = None,
        backbone: str | None = None,
        precision: str | None = None,
    ) -> Predictor:
        """Load a run; neither its data set nor its config files are needed.

        Args:
            run: output folder of a run that trained, or of a method that trains nothing.
            classnames: classes to choose from; by default those of the run.
            epoch: number of the epoch; by default the model that the run was tested with.
            device: e.g. ``cpu`` or ``cuda:1``; by default CUDA when available, else the CPU.
            backbone: the run's CLIP under another name or path, e.g. a local file.
            precision: one of ``PRECISIONS`` in ``adaptation.classifier``, in place of the run's.

        Raises:
            FileNotFoundError: no such run, model or backbone file.
            ValueError: a checkpoint that is damaged or of other code, classes that a class-specific
                learner was not trained with, an epoch of a method that trains nothing, or a device
                that this machine lacks.
        """
        if found := untrained_run(str(run)):
            cfg, of_run = found
            return cls._untrained(
                run, cfg, classnames or of_run, epoch, device, backbone, precision
            )
        path, chosen = find_checkpoint(str(run), epoch), choose_device(device)
        checkpoint = load_checkpoint(path)
        cfg = stored_cfg(checkpoint, path)
        if backbone is not None:
            cfg.MODEL.BACKBONE.NAME = backbone
        check_backbone(cfg)
        names = checkpoint["meta"]["classnames"] if classnames is None else classnames
        trainer = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
        if precision is not None:
            cfg.TRAINER[trainer.node].PREC = precision
        clip, templates = load_clip(cfg).to(chosen), cfg.DATASET.get("TEMPLATES", ())
        model = trainer.build_classifier(cfg, clip, names, templates)
        weights = checked_weights(checkpoint, model.learner, names, path, any_images=True)
        model.learner.load_state_dict(weights)
        model.trained_classes = trained_classes(checkpoint, cfg, names, path)
        return cls(model, cfg, names, chosen)

    @classmethod
    def _untrained(
        cls,
        run: str | Path,
        cfg: CfgNode,
        classnames: Sequence[str],
        epoch: int | None,
        device: str | None,
        backbone: str | None,
        precision: str | None,
    ) -> Predictor:
        """Build the classifier of a run that trained nothing."""
        method = cfg.TRAINER.NAME
        if epoch is not None:
            raise ValueError(f"{run}: {method} trains nothing: leave --load-epoch {epoch} out")
        if precision not in (None, "fp32"):
            raise ValueError(f"{method} has no PREC: use fp32, not {precision}")
        if backbone is not None:
            cfg.MODEL.BACKBONE.NAME = backbone
        check_backbone(cfg)
        templates = given_templates(cfg.DATASET.TEMPLATES, cfg.DATASET.ROOT)
        chosen = choose_device(device)
        clip = load_clip(cfg)
        clip = (clip.float() if precision else clip).to(chosen)
        model = TRAINER_REGISTRY.get(method).build_classifier(cfg, clip, classnames, templates)
        return cls(model, cfg, classnames, chosen)

    @classmethod
    def zero_shot(
        cls,
        backbone: str,
        classnames: Sequence[str],
        trainer: str = "ZeroshotCLIP",
        device: str | None = None,
    ) -> Predictor:
        """Load CLIP with hand-written templates, without any run.

        Args:
            backbone: name of a CLIP, or a checkpoint file.
            classnames: classes to choose from.
            trainer: name of a method that trains nothing, in any case.
            device: as in :meth:`load`.

        Raises:
            ValueError: unknown backbone or trainer, one that has to be trained, or no class.
        """
        trainer = TRAINER_REGISTRY.resolve(trainer)
        TRAINER_REGISTRY.check(trainer)
        method = TRAINER_REGISTRY.get(trainer)
        if issubclass(method, PromptTrainer):
            raise ValueError(f"{trainer} has to be trained: name the folder of a run (--model-dir)")

        cfg, chosen = get_cfg_default(), choose_device(device)
        extend_cfg(cfg)
        cfg.merge_from_file(str(BASE_CONFIG))
        cfg.TRAINER.NAME, cfg.MODEL.BACKBONE.NAME = trainer, backbone
        check_backbone(cfg)
        clip = build_model(load_state_dict(backbone))
        cfg.INPUT.SIZE = (clip.visual.input_resolution,) * 2
        for key, stated in (("PIXEL_MEAN", clip.image_mean), ("PIXEL_STD", clip.image_std)):
            if stated is not None:
                cfg.INPUT[key] = stated.tolist()
        model = method.build_classifier(cfg, clip.to(chosen), classnames)
        return cls(model, cfg, classnames, chosen)

    def read(self, image: Picture, upright: bool = True) -> Tensor:
        """Read and transform an image: ``(3, side, side)``.

        Args:
            image: path, or PIL image.
            upright: whether to turn a photo as its EXIF orientation says.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not an image; the text names the file.
        """
        if isinstance(image, Image.Image):
            return self.transform(to_rgb(turned_upright(image) if upright else image))
        return self.transform(read_image(str(image), upright=upright))

    @torch.no_grad()
    def probabilities(self, batch: Tensor) -> Tensor:
        """Compute the probabilities of the classes, the softmax of the logits.

        Args:
            batch: transformed images ``(B, 3, side, side)``.

        Returns:
            ``(B, C)`` float32 on the CPU, in the order of the class names.
        """
        return self.model(batch.to(self.device)).float().softmax(dim=-1).cpu()

    def label(self, batch: Tensor, top_k: int = 5) -> list[list[Label]]:
        """Return the most probable classes of transformed images, the most probable one first.

        Args:
            batch: ``(B, 3, side, side)``.
            top_k: classes per image; all if there are fewer.
        """
        top = self.probabilities(batch).topk(min(top_k, len(self.classnames)))
        return [
            [Label(self.classnames[index], value) for index, value in zip(*pair, strict=True)]
            for pair in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ]

    def predict(
        self, images: Iterable[Picture], top_k: int = 5, batch_size: int = 100
    ) -> list[list[Label]]:
        """Return the most probable classes of pictures, the most probable one first.

        Args:
            images: paths, or PIL images; read batch by batch.
            top_k: classes per image; all if there are fewer.
            batch_size: images that go through the model together.

        Raises:
            FileNotFoundError, ValueError: see :meth:`read`.
            ValueError: ``images`` is one path.
        """
        if isinstance(images, str | Path):
            raise ValueError(f"predict takes a list of pictures: [{str(images)!r}]")
        images, labels = list(images), []
        for start in range(0, len(images), batch_size):
            batch = torch.stack([self.read(image) for image in images[start : start + batch_size]])
            labels += self.label(batch, top_k)
        return labels
