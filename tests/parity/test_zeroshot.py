"""Zero-shot CLIP, single template and ensemble, through its trainers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from adaptation.templates import IMAGENET_TEMPLATES_SELECT, dataset_template
from clip.tokens import tokenize
from tests.parity.limits import FEATURES, LOGITS
from tests.parity_files import Recorded, recorded_names, relative_error


@pytest.fixture(params=recorded_names("zeroshot"))
def recorded(request) -> Recorded:
    return Recorded(request.param)


def test_single_template(build, recorded):
    data_set = recorded.config["dataset_name_used_for_template"]
    assert dataset_template(data_set) == recorded.config["template"]
    trainer = build("ZeroshotCLIP", recorded, data_set=data_set)
    model = trainer.model
    assert relative_error(model.text_features(), recorded["text_features"]) < FEATURES
    features = model.clip.encode_image(recorded["images"])
    assert relative_error(features, recorded["image_features_raw"]) < FEATURES
    normalised = F.normalize(features, dim=-1)
    assert relative_error(normalised, recorded["image_features"]) < FEATURES
    logits = trainer.model_inference(recorded["images"])
    assert relative_error(logits, recorded["logits"]) < LOGITS
    assert relative_error(logits.T, recorded["logits_per_text"]) < LOGITS


def test_raw_text_features_and_ids(build, recorded):
    data_set = recorded.config["dataset_name_used_for_template"]
    clip = build("ZeroshotCLIP", recorded, data_set=data_set).model.clip
    names = [name.replace("_", " ") for name in recorded.classnames]
    ids = tokenize([recorded.config["template"].format(name) for name in names])
    assert torch.equal(ids, recorded["tokens"].long())
    assert relative_error(clip.encode_text(ids), recorded["text_features_raw"]) < FEATURES


def test_ensemble(build, recorded):
    data_set = recorded.config["dataset_name_used_for_template"]
    trainer = build("ZeroshotCLIP2", recorded, data_set=data_set)
    expected = recorded["ensemble_text_features"]
    assert relative_error(trainer.model.text_features(), expected) < FEATURES
    logits = trainer.model_inference(recorded["images"])
    assert relative_error(logits, recorded["ensemble_logits"]) < LOGITS


def test_ensemble_ids_and_second_construction(build, recorded):
    data_set = recorded.config["dataset_name_used_for_template"]
    trainers = [build("ZeroshotCLIP2", recorded, data_set=data_set) for _ in range(2)]
    first, second = (trainer.templates(trainer.cfg) for trainer in trainers)
    assert first == second == (*IMAGENET_TEMPLATES_SELECT, recorded.config["template"])
    names = [name.replace("_", " ") for name in recorded.classnames]
    for template, ids in zip(first, recorded["ensemble_tokens"], strict=True):
        assert torch.equal(tokenize([template.format(name) for name in names]), ids.long())
