"""What a start of ``train.py`` imports and computes at first, for processes forked from here."""

from __future__ import annotations

import torch.utils.tensorboard  # noqa: F401

import adaptation.recording
import adaptation.seeds
import dassl.data.transforms
import datasets
import train
import trainers  # noqa: F401
from dassl.utils import collect_env_info

__all__ = ["adaptation", "dassl", "datasets", "train"]

collect_env_info()
