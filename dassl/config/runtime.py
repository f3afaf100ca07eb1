"""Settings of how a run is computed and what it prints, not of what it trains and tests.

A run that differs in nothing else is a run of the same method in the same setting: it goes on from
another's checkpoints (``adaptation.checkpoints``) and has the same folder and row of a table
(``scripts/run.sh``). Their values stand in the log of each run.
"""

from __future__ import annotations

#: keys of ``cfg``
RUNTIME_KEYS = (
    # where things lie
    "OUTPUT_DIR",
    "RESUME",
    "DATASET.ROOT",
    # device and speed: other roundings, or another stream of random numbers
    "USE_CUDA",
    "DATALOADER.NUM_WORKERS",
    "DATALOADER.CACHE",
    "DATALOADER.CACHE_MB",
    "DATALOADER.TRANSFORM_DEVICE",
    "DATALOADER.TEST.BATCH_SIZE",
    "INPUT.SEEDED_VIEWS",
    "MODEL.FAST_ENCODERS",
    "MODEL.MEMORY_GB",
    "MODEL.TEACHER_CACHE_MB",
    "OPTIM.CUDA_GRAPH",
    # what is printed and kept
    "VERBOSE",
    "TRAIN.PRINT_FREQ",
    "TRAIN.CHECKPOINT_FREQ",
    "TEST.NO_TEST",
    "TEST.PER_CLASS_RESULT",
    "TEST.COMPUTE_CMAT",
    # leave to train for longer than the run was begun with
    "TRAIN.EXTEND",
)


def is_runtime_key(key: str) -> bool:
    """Return whether a dotted key of the config is one of :data:`RUNTIME_KEYS`."""
    return key in RUNTIME_KEYS
