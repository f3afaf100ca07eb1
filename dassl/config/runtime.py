"""Keys that decide how a run is computed and what it prints, not what it trains and tests.

Runs that differ in these keys alone are runs of one method in one setting: they continue from each
other's checkpoints (``adaptation.checkpoints``), and share their folder (``scripts/planning.py``)
and their row of a table. The log of each run shows the values.
"""

from __future__ import annotations

#: keys of ``cfg``
RUNTIME_KEYS = (
    # where things lie
    "OUTPUT_DIR",
    "RESUME",
    "DATASET.ROOT",
    # device and speed: they change roundings, or the stream of random numbers
    "USE_CUDA",
    "DEVICE",
    "DATALOADER.NUM_WORKERS",
    "DATALOADER.CACHE",
    "DATALOADER.CACHE_MB",
    "DATALOADER.TRANSFORM_DEVICE",
    "DATALOADER.TEST.BATCH_SIZE",
    "INPUT.SEEDED_VIEWS",
    "MODEL.FAST_ENCODERS",
    "MODEL.MEMORY_GB",
    "MODEL.MEMORY_CHECK",
    "MODEL.TEACHER_CACHE_MB",
    "OPTIM.CUDA_GRAPH",
    # what is printed and kept
    "VERBOSE",
    "TRAIN.PRINT_FREQ",
    "TRAIN.TRACKERS",
    "TRAIN.CHECKPOINT_FREQ",
    "TRAIN.SAVE_MINUTES",
    "TEST.NO_TEST",
    "TEST.PER_CLASS_RESULT",
    "TEST.COMPUTE_CMAT",
    "TEST.KEEP_PREDICTIONS",
    "TEST.BASE_AND_NEW",
    # permission to train for more epochs than the run was started with
    "TRAIN.EXTEND",
)


def is_runtime_key(key: str) -> bool:
    """Return whether a dotted key of the config is one of :data:`RUNTIME_KEYS`."""
    return key in RUNTIME_KEYS
