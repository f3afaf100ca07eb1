from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dassl.config import get_cfg_default
from dassl.data.transforms import (
    AVAI_CHOICES,
    Cutout,
    GaussianNoise,
    InstanceNormalization,
    Random2DTranslation,
    build_plain_transform,
    build_transform,
)
from dassl.data.transforms.transforms import INTERPOLATION_MODES


def small_cfg(*choices, size=16):
    cfg = get_cfg_default()
    cfg.INPUT.SIZE = (size, size)
    cfg.INPUT.TRANSFORMS = choices
    return cfg


def picture(width=24, height=20):
    noise = np.random.default_rng(1).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.mark.parametrize("choice", AVAI_CHOICES)
def test_every_name_gives_a_tensor_of_the_size(choice):
    cfg = small_cfg(choice)
    cfg.INPUT.GB_P = 1.0
    cfg.INPUT.GB_K = 3
    for is_train in (True, False):
        output = build_transform(cfg, is_train=is_train)(picture())
        assert output.shape == (3, 16, 16) and output.dtype == torch.float32
        assert output.isfinite().all()


CHANGING = sorted(set(AVAI_CHOICES) - {"center_crop"})


@pytest.mark.parametrize("choice", CHANGING)
def test_every_name_but_center_crop_changes_some_training_image(choice):
    cfg = small_cfg(choice)
    plain = build_transform(cfg, choices=())(picture())
    transform = build_transform(cfg)
    torch.manual_seed(0)
    assert any(not torch.equal(transform(picture()), plain) for _ in range(8))


def test_center_crop_has_no_effect_in_training():
    cfg = small_cfg("center_crop")
    assert torch.equal(build_transform(cfg)(picture()), build_transform(cfg, choices=())(picture()))


@settings(max_examples=25, deadline=None)
@given(
    st.permutations(["normalize", "random_flip", "random_resized_crop", "cutout"]), st.integers()
)
def test_the_order_of_the_list_does_not_matter(names, seed):
    seed %= 2**31
    expected_cfg, cfg = small_cfg(*sorted(names)), small_cfg(*names)
    torch.manual_seed(seed)
    expected = build_transform(expected_cfg)(picture())
    torch.manual_seed(seed)
    assert torch.equal(build_transform(cfg)(picture()), expected)


def test_steps_are_printed(capsys):
    build_transform(small_cfg("normalize", "random_flip"), is_train=True)
    build_transform(small_cfg("normalize"), is_train=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Building transform_train"
    assert lines[1] == "+ resize to 16x16" and lines[2] == "+ random flip"
    assert lines[3].startswith("+ to torch tensor") and lines[4].startswith("+ normalization")
    assert lines[5:8] == [
        "Building transform_test",
        "+ resize the smaller edge to 16",
        "+ 16x16 center crop",
    ]


def test_no_transform():
    cfg = small_cfg("normalize")
    cfg.INPUT.NO_TRANSFORM = True
    assert build_transform(cfg) is None


def test_unknown_names_say_where_and_suggest_the_nearest():
    with pytest.raises(ValueError, match=r"^INPUT\.TRANSFORMS: .*did you mean 'random_flip'"):
        build_transform(small_cfg("random_flop"))
    with pytest.raises(ValueError, match=r"^choices: .*did you mean 'random_flip'"):
        build_transform(small_cfg(), choices=("random_flop",))
    cfg = small_cfg()
    cfg.INPUT.INTERPOLATION = "bicubik"
    with pytest.raises(ValueError, match=r"^INPUT\.INTERPOLATION: .*did you mean 'bicubic'"):
        build_transform(cfg)
    assert set(INTERPOLATION_MODES) == {"bilinear", "bicubic", "nearest"}


@pytest.mark.parametrize(
    ("transform", "key", "value", "message"),
    [
        (None, "SIZE", (32,), r"is \(32,\): give height and width"),
        (None, "SIZE", (), r"is \(\): give height and width"),
        (None, "SIZE", (32, 1.5), "height and width"),
        (None, "SIZE", (0, 32), "height and width"),
        ("random_resized_crop", "RRCROP_SCALE", (0.5,), r"is \(0\.5,\): give the least"),
        ("random_resized_crop", "RRCROP_SCALE", (2, 1), r"is \(2, 1\): .*from 0 to 1"),
        ("random_resized_crop", "RRCROP_SCALE", (-0.5, 1), "from 0 to 1"),
        ("random_resized_crop", "RRCROP_SCALE", (0.5, 2), "from 0 to 1"),
        ("normalize", "PIXEL_STD", [0, 0, 0], r"is \[0, 0, 0\].* above 0"),
        ("normalize", "PIXEL_STD", [1, 1e-60, 1], "above 0"),
        ("normalize", "PIXEL_STD", [1, -1, 1], "above 0"),
        ("normalize", "PIXEL_STD", [0.5, 0.5], "three numbers"),
        ("normalize", "PIXEL_MEAN", [0.5, 0.5], "three numbers: give one for each"),
        ("random_crop", "CROP_PADDING", -1, "is -1: use 0 or more"),
        ("cutout", "CUTOUT_LEN", -1, "is -1: use 0 or more"),
        ("randaugment2", "RANDAUGMENT_N", -1, "is -1: use 0 or more"),
        ("gaussian_noise", "GN_STD", -1.0, r"is -1\.0: use 0 or more"),
        ("colorjitter", "COLORJITTER_B", -1.0, r"is -1\.0: use 0 or more"),
        ("colorjitter", "COLORJITTER_H", 0.6, r"is 0\.6: use 0 to 0\.5"),
        ("randomgrayscale", "RGS_P", 1.5, r"is 1\.5: use 0 to 1"),
        ("gaussian_blur", "GB_P", -0.5, r"is -0\.5: use 0 to 1"),
        ("gaussian_blur", "GB_K", 20, "is 20: use an odd number"),
        ("gaussian_blur", "GB_K", -1, "is -1: use 1 or more"),
    ],
)
def test_a_setting_that_cannot_be_names_its_key(transform, key, value, message):
    cfg = small_cfg(*filter(None, [transform]))
    cfg.INPUT[key] = value
    with pytest.raises(ValueError, match=rf"^INPUT\.{key} .*{message}"):
        build_transform(cfg)
    if transform is None:
        with pytest.raises(ValueError, match=message):
            build_transform(cfg, is_train=False)
        with pytest.raises(ValueError, match=message):
            build_plain_transform(cfg)
    else:  # who does not list the transform needs no setting of it
        build_transform(cfg, choices=())


def test_random_crop_pads():
    cfg = small_cfg("random_crop", size=28)
    assert build_transform(cfg)(picture(24, 24)).shape == (3, 28, 28)


def test_translation_with_certainty_and_never():
    flat = Image.fromarray(np.tile(np.arange(0, 240, 10, dtype=np.uint8), (24, 1)))
    never = Random2DTranslation(24, 24, p=0.0)
    assert np.array_equal(never(flat), flat)
    always = Random2DTranslation(24, 24, p=1.0)
    torch.manual_seed(0)
    starts = {np.asarray(always(flat))[0, 0] for _ in range(20)}
    assert len(starts) > 1 and always(flat).size == (24, 24)


@settings(deadline=None)
@given(st.integers(1, 3), st.integers(2, 10), st.integers(0, 1000))
def test_cutout_blanks_squares_and_keeps_its_input(n_holes, length, seed):
    torch.manual_seed(seed)
    image = torch.ones(3, 12, 10)
    output = Cutout(n_holes, length)(image)
    assert image.eq(1).all()
    holes = output.eq(0)
    assert torch.equal(holes[0], holes[1])
    assert 0 < holes[0].sum() <= n_holes * length**2
    assert (output.eq(0) | output.eq(1)).all()


def test_noise_and_instance_normalisation():
    image = torch.rand(3, 30, 30)
    noisy = GaussianNoise(0.5, 0.1, p=1.0)(image)
    assert (noisy - image).mean() == pytest.approx(0.5, abs=0.02)
    assert (noisy - image).std() == pytest.approx(0.1, abs=0.02)
    assert GaussianNoise(p=0.0)(image) is image or torch.equal(GaussianNoise(p=0.0)(image), image)
    normed = InstanceNormalization()(image)
    torch.testing.assert_close(normed.mean((1, 2)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(normed.std((1, 2)), torch.ones(3), atol=1e-5, rtol=0)
