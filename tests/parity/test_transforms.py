"""Training and test transforms equal the recorded ones to a grey level."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from dassl.config import get_cfg_default
from dassl.data.transforms import build_transform
from tests.parity_files import PARITY_DIR

RECORDED = np.load(PARITY_DIR / "image_transforms.npz")
# One grey level after normalisation, for another Pillow or torchvision than the recording's.
GREY_LEVEL = 0.016


def recorded_cfg():
    cfg = get_cfg_default()
    for key, value in json.loads(str(RECORDED["config"]))["INPUT"].items():
        cfg.merge_from_list([f"INPUT.{key}", value])
    return cfg


@pytest.mark.parametrize("name", ["wide", "tall"])
def test_the_test_transform_equals_the_recorded_images(name):
    image = Image.fromarray(RECORDED[f"image_{name}_hwc_uint8"])
    output = build_transform(recorded_cfg(), is_train=False)(image)
    np.testing.assert_allclose(output, RECORDED[f"test_{name}"], atol=GREY_LEVEL)


@pytest.mark.parametrize("seed", range(len(RECORDED["train_wide_torchseed_0_3"])))
def test_the_training_transform_equals_the_recorded_images(seed):
    image = Image.fromarray(RECORDED["image_wide_hwc_uint8"])
    transform = build_transform(recorded_cfg(), is_train=True)
    torch.manual_seed(seed)
    expected = RECORDED["train_wide_torchseed_0_3"][seed]
    np.testing.assert_allclose(transform(image), expected, atol=GREY_LEVEL)
