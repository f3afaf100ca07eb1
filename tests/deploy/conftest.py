"""Predictors of fresh learners on a CLIP of two blocks, and a bundle of a finished run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from clip.model import CLIP
from dassl.engine import TRAINER_REGISTRY, config_node
from tests.conftest import CLASSNAMES
from trainers import Predictor


@pytest.fixture(scope="session")
def small_clip() -> CLIP:
    torch.manual_seed(2)
    return CLIP(16, 32, 2, 64, 16, 77, 49408, 64, 2, 2).eval()


@pytest.fixture()
def fresh(make_cfg, small_clip) -> Callable[..., Predictor]:
    """Function that gives an untrained predictor of any method: its name, then config pairs.

    With ``rows``, as in the second stage of a training that learns a row for each class.
    """

    def build(
        method: str, *pairs: object, clip: CLIP = small_clip, rows: bool = False
    ) -> Predictor:
        cfg, trainer = make_cfg(method), TRAINER_REGISTRY.get(method)
        node = cfg.TRAINER.get(config_node(method), {})
        for key in node:
            if key.startswith("PROMPT_DEPTH"):
                node[key] = 2
            if key in ("BLOCK", "ADAPTER_START"):
                node[key] = 1
            if key == "ADAPTER_END":
                node[key] = 2
        cfg.merge_from_list(list(pairs))
        torch.manual_seed(1)
        model = trainer.build_classifier(cfg, clip, CLASSNAMES)
        model.learner.set_n_images(10)
        model.learner.start(model)
        with torch.no_grad():  # a start at zero would not tell whether it is there
            for parameter in model.learner.parameters():
                parameter += 0.05 * torch.randn(parameter.shape)
            if rows:
                rows_of = torch.randn(len(CLASSNAMES), model.learner.embed_dim)
                model.learner.begin_rows(rows_of, CLASSNAMES)
        return Predictor(model, cfg, CLASSNAMES, torch.device("cpu"))

    return build


@pytest.fixture(scope="session")
def tiny_bundle(tiny_run, tmp_path_factory) -> Path:
    """Bundle of the tiny run."""
    from deploy.bundle import write_bundle

    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    predictor = Predictor.load(tiny_run, device="cpu", precision="fp32")
    write_bundle(predictor, folder, tiny_run)
    return folder
