"""The methods, one file each. Every file here is imported, so that its method registers itself."""

from __future__ import annotations

from adaptation.config import extend_cfg
from adaptation.predictor import Label, Predictor
from dassl.engine import TRAINER_REGISTRY

__all__ = ["Label", "Predictor", "check_trainer", "extend_cfg"]

TRAINER_REGISTRY.import_files(__name__, __path__)
check_trainer = TRAINER_REGISTRY.check
