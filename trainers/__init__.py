"""The methods, one file each. Every file here is imported: a new method registers by being one."""

from __future__ import annotations

from adaptation.methods import check_trainer, extend_cfg, register_all
from adaptation.predictor import Label, Predictor

__all__ = ["Label", "Predictor", "check_trainer", "extend_cfg"]

register_all(__name__, __path__)
