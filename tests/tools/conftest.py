"""Predictors of fresh learners of any method, on one small CLIP."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from clip.weights import build_model
from dassl.engine import TRAINER_REGISTRY
from tests.conftest import CLASSNAMES
from tests.parity_files import recorded_clip
from trainers import Predictor


@pytest.fixture(scope="session")
def clip():
    return build_model(recorded_clip()).float()


@pytest.fixture()
def fresh(make_cfg, clip) -> Callable[..., Predictor]:
    """Function that gives an untrained predictor: trainer name, then config pairs."""

    def build(method: str, *pairs: object) -> Predictor:
        cfg = make_cfg(method, *pairs)
        torch.manual_seed(1)
        model = TRAINER_REGISTRY.get(method).build_classifier(cfg, clip, CLASSNAMES)
        return Predictor(model, cfg, CLASSNAMES, torch.device("cpu"))

    return build
