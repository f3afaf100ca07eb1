"""Config keys that all methods share."""

from __future__ import annotations

from dassl.config import CfgNode
from dassl.engine import TRAINER_REGISTRY


def extend_cfg(cfg: CfgNode) -> None:
    """Add the keys that all methods share, and those that the registered methods declare."""
    declare_shared_keys(cfg)
    TRAINER_REGISTRY.declare_keys(cfg)


def declare_shared_keys(cfg: CfgNode) -> None:
    """Add the keys with their defaults."""
    #: largest norm of the gradient over all trained parameters; 0 leaves gradients as they are
    cfg.OPTIM.CLIP_GRAD_NORM = 0.0
    #: False computes as public code does: every text at full context length, anew for every batch
    cfg.MODEL.FAST_ENCODERS = True
    #: what a step or a test batch may hold beside the weights, in 10^9 bytes, so that texts and
    #: test images are encoded in parts; 0 is no bound (docs/performance.md)
    cfg.MODEL.MEMORY_GB = 0.0
    cfg.register_renamed_key("OPTIM.TEXT_CHUNK", "MODEL.MEMORY_GB", "bytes, not texts")
    #: repeat the training step as a CUDA graph (docs/performance.md); has not been run on a GPU yet
    cfg.OPTIM.CUDA_GRAPH = False
    #: what features of the frozen CLIP may take on disk, in 10^6 bytes, so that they are computed
    #: once where they come again; 0 computes them each time (docs/performance.md)
    cfg.MODEL.TEACHER_CACHE_MB = 2000
    #: a run may go on with a larger OPTIM.MAX_EPOCH than it was begun with; its further epochs have
    #: the learning rates that they have in a run of that length
    cfg.TRAIN.EXTEND = False
    #: draw the random numbers that OpenAI's code draws while it builds CLIP, so that what follows
    #: has upstream's at the same seed (docs/own_trainer.md)
    cfg.MODEL.OPENAI_DRAWS = False


def check_shared_keys(cfg: CfgNode) -> None:
    """Raises: ValueError: a key has a value that cannot be."""
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
