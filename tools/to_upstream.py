"""Write a run as published code of its method saves it: ``python -m tools.to_upstream RUN OUT``.

OUT becomes a run folder that upstream's trainer of the same method loads with ``--model-dir OUT
--load-epoch N`` and its own config: ``OUT/<registered name>/model.pth.tar-<epoch>`` and the text
file ``checkpoint`` beside it. The file holds ``state_dict``, ``epoch``, ``optimizer``,
``scheduler`` and ``val_result``.

* CoOp, CoCoOp, TCP and ProGrad save their prompt learner: ``ctx`` (``meta_net.*``),
  ``token_prefix``, ``token_suffix``. Optimiser and schedule come along, the latter as upstream has
  it: with a warm-up it is a pickled object, so PyTorch from 2.6 on reads the file with
  ``weights_only=False`` alone. KgCoOp's file is alike, but without its unused tensors, which
  upstream gives to the optimiser as well: so optimiser and schedule are None.
* MMA saves its adapters, to which upstream adds embedded class names that it does not read again.
* CLIP-LoRA saves a file of its own, here ``OUT/lora_weights.pt``: ``weights`` by layer, and the
  settings as ``metadata``; it is for the run folder that upstream's ``--save_path`` leads to.
* CLIP-Adapter and TaskRes save their adapter or residuals alone: ``fc.0.weight`` and
  ``fc.2.weight``; ``text_feature_residuals`` and ``base_text_features``, with optimiser and
  schedule. ZS-LP and CLAP save ``prototypes``, ``base_text_features`` and the logit scale, which
  their optimiser has as well: so optimiser and schedule are None.
* VPT, IVLP, MaPLe, PromptSRC and MPL save the whole model: prompts, embedded class names, both
  frozen encoders and the logit scale; PromptSRC a second frozen image encoder. Optimiser and
  schedule are None: upstream numbers the parameters of the whole model there, in the order of its
  modules, so such a run can be tested and not resumed. So do MMRL and MMRL++ (without the logit
  scale, and with the embedded texts, ``prompt_embeddings``), and CoPrompt, which has the whole
  frozen CLIP once more.

Frozen weights have the types that upstream gives them in the run's precision; what was learned
stays float32, and is rounded where upstream loads it into a half-precision parameter.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from support.command_line import add_traceback, positive, run_command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from adaptation.learner import PromptLearner
    from clip.model import CLIP
    from dassl.config import CfgNode


class Layout(NamedTuple):
    """What the published trainer of a method saves."""

    #: the whole model, or the prompt learner alone
    whole: bool
    #: optimiser and schedule, where the learner is alone and its parameters are ours
    progress: bool = True
    #: CLIP in float32 in every precision
    float32: bool = False
    #: a second, frozen image encoder, in half precision
    teacher: bool = False
    #: embedded class names
    names: bool = True
    #: name of a file with a content of its own (the trainer's ``write_published``)
    file: str = ""
    #: embedded texts as they are, in place of parts around a context; and no logit scale
    embedded_texts: bool = False
    #: the whole frozen CLIP once more
    second_clip: bool = False
    #: CLIP's logit scale beside a learner that is saved alone
    scale: bool = False


LAYOUTS = {
    "CoOp": Layout(whole=False),
    "CoCoOp": Layout(whole=False),
    "KgCoOp": Layout(whole=False, progress=False),
    "TCP": Layout(whole=False),
    "ProGrad": Layout(whole=False),
    "CLIPLoRA": Layout(whole=False, file="lora_weights.pt"),
    "MMA": Layout(whole=False, progress=False, names=False),
    "CLIPAdapter": Layout(whole=False),
    "TaskRes": Layout(whole=False),
    "ZSLP": Layout(whole=False, progress=False, scale=True),
    "CLAP": Layout(whole=False, progress=False, scale=True),
    "VPT": Layout(whole=True, float32=True),
    "IVLP": Layout(whole=True),
    "MaPLe": Layout(whole=True),
    "PromptSRC": Layout(whole=True, teacher=True),
    "MPL": Layout(whole=True),
    "MMRL": Layout(whole=True, embedded_texts=True),
    "MMRLPlusPlus": Layout(whole=True, embedded_texts=True),
    "CoPrompt": Layout(whole=True, second_clip=True),
}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description="Write a run as the published code of its method saves it.",
        epilog="docs/own_trainer.md says what upstream does with it.",
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="output folder of a training run")
    add("out", metavar="OUT", help="run folder to write")
    add("--load-epoch", type=positive, metavar="N", help="epoch (default: the one tested)")
    add("--backbone", metavar="NAME", help="CLIP, by name or file (default: that of the run)")
    add_traceback(parser)
    return parser


def frozen_weights(clip: CLIP, half: bool) -> dict[str, Tensor]:
    """Return the weights of CLIP as OpenAI stores them, or in float32.

    Raises:
        ValueError: a model that OpenAI's code does not build.
    """
    from clip.model import EXTRA_ENTRIES

    if found := [name for name in EXTRA_ENTRIES if getattr(clip, name) is not None]:
        raise ValueError(
            f"the backbone says of itself {', '.join(found)}, as weights of open_clip do, which "
            "upstream's code does not read: only runs on OpenAI's CLIP can be written for it"
        )
    return {key: value if half else value.float() for key, value in clip.state_dict().items()}


def class_names(
    clip: CLIP, learner: PromptLearner, names: Sequence[str], dtype: Any
) -> dict[str, Tensor]:
    """Embed texts around the context: ``token_prefix`` (C, 1, d), ``token_suffix`` (C, ., d)."""
    import torch

    from clip.changes import Changes
    from clip.tokens import tokenize

    changes = Changes.of(learner.text_changes())
    if not changes:
        return {}
    n_ctx = sum(prompt.length for prompt in changes[0].prompts)
    words = " ".join(["X"] * n_ctx)
    texts = [f"{words} {learner.template.format(name.replace('_', ' '))}" for name in names]
    with torch.no_grad():
        embedded = clip.token_embedding(tokenize(texts, clip.context_length)).to(dtype)
    return {
        "token_prefix": embedded[:, :1].clone(),
        "token_suffix": embedded[:, 1 + n_ctx :].clone(),
    }


def state_dict(
    layout: Layout, precision: str, clip: CLIP, learner: PromptLearner, names: Sequence[str]
) -> dict[str, Tensor]:
    """Return the state dict of the published trainer.

    Args:
        layout: what it saves.
        precision: of the run.
        clip: as ``build_model`` stores it.
        learner: with its trained weights.
        names: the classes of the run.
    """
    import torch.nn.functional as F

    from adaptation.texts import class_prompts

    half = frozen = frozen_weights(clip, half=True)
    if layout.float32 or precision != "fp16":
        frozen = frozen_weights(clip, half=False)
    dtype = frozen["text_projection"].dtype
    learned = learner.to_upstream(learner.state_dict())
    named = layout.names and not layout.embedded_texts
    buffers = class_names(clip, learner, names, dtype) if named else {}
    if not layout.whole:
        scale = {"logit_scale": frozen["logit_scale"]} if layout.scale else {}
        return {**learned, **buffers, **scale}
    state = {f"prompt_learner.{key}": value for key, value in buffers.items()}
    if layout.teacher:
        state |= _renamed(half, "visual.", "prompt_learner.ZS_image_encoder.")
    if layout.second_clip:
        state |= {f"model_distill.{key}": value for key, value in frozen.items()}
    state |= learned
    state |= _renamed(frozen, "visual.", "image_encoder.")
    state |= _renamed(frozen, "transformer.", "text_encoder.transformer.")
    state |= _renamed(frozen, "ln_final.", "text_encoder.ln_final.")
    for key in ("positional_embedding", "text_projection"):
        state[f"text_encoder.{key}"] = frozen[key]
    if layout.embedded_texts:
        texts = class_prompts(clip, names, learner.template).ids
        texts = F.pad(texts, (0, clip.context_length - texts.shape[1]))
        return state | {"prompt_embeddings": clip.token_embedding(texts).detach().to(dtype)}
    return state | {"logit_scale": frozen["logit_scale"]}


def _renamed(weights: dict[str, Tensor], start: str, other: str) -> dict[str, Tensor]:
    return {
        other + key.removeprefix(start): value
        for key, value in weights.items()
        if key.startswith(start)
    }


def progress(checkpoint: dict[str, Any], cfg: CfgNode, learner: PromptLearner) -> dict[str, Any]:
    """Return optimiser and schedule as upstream has them, for a learner saved by itself."""
    from torch.optim.lr_scheduler import LRScheduler

    from dassl.optim import build_lr_scheduler, build_optimizer

    optimizer = build_optimizer(learner, cfg.OPTIM)
    scheduler = build_lr_scheduler(optimizer, cfg.OPTIM)
    optimizer.load_state_dict(checkpoint["optimizer"])
    scheduler.load_state_dict(checkpoint["scheduler"])
    # the warm-up of upstream keeps the schedule that follows as an object
    return {
        "optimizer": optimizer.state_dict(),
        "scheduler": LRScheduler.state_dict(scheduler),
    }


def convert(args: argparse.Namespace) -> None:
    """Write the run folder that the command line asks for."""
    import torch

    import trainers  # noqa: F401  registers the methods
    from adaptation.checkpoints import checked_weights, find_checkpoint, stored_cfg
    from adaptation.trainer import check_backbone, load_clip
    from dassl.engine import TRAINER_REGISTRY
    from dassl.utils import check_availability, load_checkpoint, save_checkpoint
    from dassl.utils.checkpoint import BEST
    from support.files import replacing

    path = find_checkpoint(args.run, args.load_epoch)
    checkpoint = load_checkpoint(path)
    cfg = stored_cfg(checkpoint, path)
    method = cfg.TRAINER.NAME
    check_availability(method, LAYOUTS, f"{path}: published code of its method is not known here")
    if args.backbone is not None:
        cfg.MODEL.BACKBONE.NAME = args.backbone
    trainer = TRAINER_REGISTRY.get(method)
    layout, precision = LAYOUTS[method], cfg.TRAINER[trainer.node].PREC
    folder = Path(args.out, layout.file or trainer.model_name)
    if folder.exists():
        raise FileExistsError(f"OUT: {folder} exists: name another folder, or remove it")
    check_backbone(cfg)
    clip, names = load_clip(cfg), checkpoint["meta"]["classnames"]
    learner = trainer.build_learner(cfg, clip, names)
    weights = checked_weights(checkpoint, learner, names, path, any_images=True)
    learner.load_state_dict(weights)

    if layout.file:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with replacing(folder) as temporary:
            torch.save(trainer.write_published(cfg, learner), temporary)
        return
    state: dict[str, Any] = {
        "state_dict": state_dict(layout, precision, clip, learner, names),
        "epoch": checkpoint["epoch"],
    }
    if layout.whole or not layout.progress:
        state |= {"optimizer": None, "scheduler": None}
    else:
        state |= progress(checkpoint, cfg, learner)
    state["val_result"] = checkpoint["val_result"]
    best = Path(path).name == BEST
    save_checkpoint(state, str(folder), model_name=BEST if best else "")


if __name__ == "__main__":
    sys.exit(run_command(build_parser(), convert))
