"""Config keys that all methods share."""

from __future__ import annotations

from dassl.config import CfgNode
from dassl.engine import TRAINER_REGISTRY


def extend_cfg(cfg: CfgNode) -> None:
    """Add the keys that all methods share, and those that the registered methods declare."""
    declare_shared_keys(cfg)
    TRAINER_REGISTRY.declare_keys(cfg)


def declare_shared_keys(cfg: CfgNode) -> None:
    """Add the keys that all methods share, with their defaults."""
    #: largest norm of the gradient over all trained parameters; 0 leaves gradients as they are
    cfg.OPTIM.CLIP_GRAD_NORM = 0.0
    #: False computes as public code does: every text at full context length, anew for every batch
    cfg.MODEL.FAST_ENCODERS = True
    #: memory for a step or a test batch in addition to the weights, in 10^9 bytes; texts and test
    #: images are encoded in parts to keep it; 0 is no bound (docs/performance.md)
    cfg.MODEL.MEMORY_GB = 0.0
    #: compare what a run needs with what is free before it starts, and refuse what cannot fit
    cfg.MODEL.MEMORY_CHECK = True
    cfg.register_renamed_key("OPTIM.TEXT_CHUNK", "MODEL.MEMORY_GB", "bytes, not texts")
    #: repeat the training step as a CUDA graph (docs/gpu.md); has not been run on a GPU yet
    cfg.OPTIM.CUDA_GRAPH = False
    #: disk space for features of the frozen CLIP, in 10^6 bytes, so that repeated ones are computed
    #: once; 0 computes them each time (docs/performance.md)
    cfg.MODEL.TEACHER_CACHE_MB = 2000
    #: let a run continue with a larger OPTIM.MAX_EPOCH than it began with; added epochs have the
    #: learning rates that they have in a run of that length
    cfg.TRAIN.EXTEND = False
    #: draw the random numbers that OpenAI's code draws while it builds CLIP, so that later draws
    #: equal upstream's at the same seed (docs/own_trainer.md)
    cfg.MODEL.OPENAI_DRAWS = False


def check_shared_keys(cfg: CfgNode) -> None:
    """Check the values of the keys that all methods share.

    Raises:
        ValueError: a value is out of range, or two keys exclude each other.
    """
    if cfg.MODEL.MEMORY_GB < 0:
        raise ValueError(
            f"MODEL.MEMORY_GB is {cfg.MODEL.MEMORY_GB}: use 0 (no bound) or what a step may "
            "hold beside the weights, in 10^9 bytes"
        )
    if cfg.MODEL.MEMORY_GB and not cfg.MODEL.FAST_ENCODERS:
        raise ValueError(
            "MODEL.MEMORY_GB bounds the fast encoders only: leave out MODEL.FAST_ENCODERS False"
        )
    if cfg.MODEL.TEACHER_CACHE_MB < 0:
        raise ValueError(
            f"MODEL.TEACHER_CACHE_MB is {cfg.MODEL.TEACHER_CACHE_MB}: use 0 (features of "
            "the frozen CLIP are computed each time) or what they may take on disk"
        )
