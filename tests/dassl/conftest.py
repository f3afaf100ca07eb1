from __future__ import annotations

import sys

import pytest

from dassl.config import get_cfg_default
from dassl.utils import Logger


@pytest.fixture(autouse=True)
def console():
    """Undo what setup_logger does to sys.stdout."""
    before = sys.stdout
    yield
    if isinstance(sys.stdout, Logger) and sys.stdout is not before:
        sys.stdout.close()
        sys.stdout = before


@pytest.fixture
def cfg(tmp_path):
    """Configuration of a run of three short epochs on the toy data."""
    from tests.dassl import toy

    cfg = get_cfg_default()
    cfg.merge_from_list(
        [
            *("TRAINER.NAME", "ToyTrainer"),
            *("DATASET.NAME", "ToyColours"),
            *("DATASET.ROOT", str(tmp_path / "data")),
            *("OUTPUT_DIR", str(tmp_path / "out")),
            *("INPUT.SIZE", [toy.SIDE, toy.SIDE]),
            *("INPUT.TRANSFORMS", ["random_resized_crop", "random_flip", "normalize"]),
            *("DATALOADER.NUM_WORKERS", 0),
            *("DATALOADER.TRAIN_X.BATCH_SIZE", 5),
            *("DATALOADER.TEST.BATCH_SIZE", 4),
            *("OPTIM.NAME", "sgd"),
            *("OPTIM.LR", 0.05),
            *("OPTIM.MAX_EPOCH", 3),
            *("OPTIM.LR_SCHEDULER", "cosine"),
            *("OPTIM.WARMUP_EPOCH", 1),
            *("OPTIM.WARMUP_TYPE", "constant"),
            *("TRAIN.PRINT_FREQ", 1),
            *("USE_CUDA", False),
        ]
    )
    return cfg
