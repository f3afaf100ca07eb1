"""Cached images give the batches that decoding gives, and get out of the way when they cannot."""

from __future__ import annotations

import json
import os
import pickle
import random
from pathlib import Path

import filelock
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision import transforms as T

from dassl.config import get_cfg_default
from dassl.data import DatasetWrapper, build_data_loader, image_cache
from dassl.data.datasets import Datum
from dassl.data.image_cache import DECODED, CacheError, PixelFile, cache_folder, open_cache
from dassl.data.loaders import CachingLoader
from dassl.data.transforms import build_transform, split_fixed
from dassl.data.transforms.pixels import ScaleShift, UnitRange
from dassl.utils import ImageError, set_random_seed, tools
from tests.parity_files import PARITY_DIR

SIZES = [(40, 36), (50, 30), (24, 70), (33, 32), (80, 60), (20, 20), (64, 48)]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty cache folder of the test's own."""
    monkeypatch.setenv("DASSL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def smooth(rng, width, height):
    coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.BICUBIC)


@pytest.fixture
def items(tmp_path):
    """Images of several sizes, kinds and modes."""
    rng, found = np.random.default_rng(0), []
    for n, size in enumerate(SIZES):
        path = tmp_path / f"{n}.{'png' if n % 2 else 'jpg'}"
        image = smooth(rng, *size)
        (image.convert("L") if n == 2 else image).save(path)
        found.append(Datum(str(path), label=n))
    return found


def make_cfg(cache="exact", *pairs):
    cfg = get_cfg_default()
    cfg.merge_from_list(
        ["INPUT.SIZE", (28, 28), "INPUT.INTERPOLATION", "bicubic", "DATASET.NAME", "Photos"]
        + ["INPUT.TRANSFORMS", ["random_resized_crop", "random_flip", "normalize"]]
        + ["DATALOADER.NUM_WORKERS", 0, "DATALOADER.CACHE", cache, *pairs]
    )
    return cfg


def make_loader(cfg, items, is_train):
    return build_data_loader(
        cfg,
        sampler_type="RandomSampler" if is_train else "SequentialSampler",
        data_source=items,
        batch_size=3,
        tfm=build_transform(cfg, is_train=is_train),
        is_train=is_train,
    )


def epochs(loader, count=2):
    """Batches of some epochs from a seed on, and what the generators give after them."""
    set_random_seed(3)
    batches = [batch for _ in range(count) for batch in loader]
    return batches, (torch.rand(1).item(), random.random(), np.random.rand())


def assert_same(found, expected):
    assert found[1] == expected[1]
    assert len(found[0]) == len(expected[0])
    for one, other in zip(found[0], expected[0], strict=True):
        assert set(one) == set(other)
        assert one["impath"] == other["impath"]
        for key in set(one) - {"impath"}:
            views = zip(one[key], other[key], strict=True) if key == "img" else ()
            assert all(torch.equal(a, b) for a, b in views)
            assert isinstance(one[key], list) or torch.equal(one[key], other[key])


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_to_the_bit(items, folder, is_train, workers):
    pairs = ("DATALOADER.NUM_WORKERS", workers)
    expected = epochs(make_loader(make_cfg("none", *pairs), items, is_train))
    assert not folder.exists()
    assert_same(epochs(make_loader(make_cfg("exact", *pairs), items, is_train)), expected)
    assert len(list(folder.glob("Photos-*.pixels"))) == 1
    # and so they are with the file that is there now
    assert_same(epochs(make_loader(make_cfg("exact", *pairs), items, is_train)), expected)
    assert len(list(folder.glob("*.pixels"))) == 1


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize("mode", ["bicubic", "bilinear", "nearest"])
@pytest.mark.parametrize(
    "choices",
    [
        [],
        ["normalize", "instance_norm"],
        ["random_translation", "colorjitter", "cutout"],
        ["random_crop", "randaugment", "gaussian_noise"],
    ],
)
def test_other_transforms_are_the_same_too(items, is_train, mode, choices):
    pairs = ("INPUT.TRANSFORMS", choices, "INPUT.INTERPOLATION", mode, "INPUT.SIZE", (20, 20))
    expected = epochs(make_loader(make_cfg("none", *pairs), items, is_train), 1)
    assert_same(epochs(make_loader(make_cfg("exact", *pairs), items, is_train), 1), expected)


@pytest.mark.parametrize("cache", ["exact", "fast"])
def test_several_views_and_the_plain_image(items, cache):
    pairs = ("DATALOADER.K_TRANSFORMS", 2, "DATALOADER.RETURN_IMG0", True)
    (found, *_), _ = epochs(make_loader(make_cfg(cache, *pairs), items, True), 1)
    (expected, *_), _ = epochs(make_loader(make_cfg("none", *pairs), items, True), 1)
    assert len(found["img"]) == 2 and torch.equal(found["img0"], expected["img0"])
    for view, other in zip(found["img"], expected["img"], strict=True):
        torch.testing.assert_close(view, other, rtol=0, atol=0 if cache == "exact" else 0.02)
    # the plain image needs the decoded one, which is not kept of test images
    (found, *_), _ = epochs(make_loader(make_cfg(cache, *pairs), items, False), 1)
    (expected, *_), _ = epochs(make_loader(make_cfg("none", *pairs), items, False), 1)
    assert torch.equal(found["img0"], expected["img0"])


def test_transforms_of_ones_own(items, folder):
    def size(image):
        return torch.tensor(image.size)

    for is_train in (True, False):
        loader = build_data_loader(
            make_cfg(), data_source=items, tfm=[size, size], is_train=is_train
        )
        batch = next(iter(loader))
        assert batch["img2"].tolist() == [list(pair) for pair in SIZES]
    assert len(list(folder.glob("*.pixels"))) == 1  # of the training images
    loader = make_loader(make_cfg(), items, False)
    next(iter(loader))
    loader.dataset.transform = size
    assert [loader.dataset[n]["img"].tolist() for n in range(2)] == [[40, 36], [50, 30]]


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize("cache", ["exact", "fast"])
def test_upright_images_have_files_of_their_own(items, folder, cache, is_train):
    exif = Image.Exif()
    exif[0x0112] = 6
    for item in items:
        with Image.open(item.impath) as image:
            image.save(item.impath, exif=exif)
    pairs = ("INPUT.TRANSFORMS", ["normalize"], "INPUT.EXIF")
    read = {}
    for upright in (False, True):
        for kind in ("none", cache, cache):  # made, then found
            read[kind], _ = epochs(make_loader(make_cfg(kind, *pairs, upright), items, is_train), 1)
            tolerance = 0.02 if kind == "fast" else 0
            for found, expected in zip(read[kind], read["none"], strict=True):
                torch.testing.assert_close(found["img"], expected["img"], rtol=0, atol=tolerance)
        assert len(list(folder.glob("*.pixels"))) == 1 + upright
        read[upright] = read["none"]
    both = zip(read[False], read[True], strict=True)
    assert not any(torch.equal(stored["img"], turned["img"]) for stored, turned in both)


def test_a_wrapper_of_ones_own_reads_its_images(items, folder):
    class Wrapper(DatasetWrapper):
        pass

    loader = build_data_loader(make_cfg(), data_source=items, tfm=len, dataset_wrapper=Wrapper)
    assert not isinstance(loader, CachingLoader) and not folder.exists()


def test_the_second_evaluation_reads_no_image(items):
    loader = make_loader(make_cfg(), items, False)
    first = epochs(loader, 1)
    for item in items:
        Path(item.impath).unlink()
    assert_same(epochs(loader, 1), first)
    # nor does a worker process that was not forked but got a copy
    copy = pickle.loads(pickle.dumps(loader.dataset))
    assert torch.equal(copy[1]["img"], first[0][0]["img"][1])


def test_a_changed_image_is_read_again(items, folder):
    before = epochs(make_loader(make_cfg(), items, False), 1)[0][0]["img"]
    Image.new("RGB", (30, 30), "red").save(items[1].impath)
    after = epochs(make_loader(make_cfg(), items, False), 1)[0][0]["img"]
    assert torch.equal(before[0], after[0]) and not torch.equal(before[1], after[1])
    assert len(list(folder.glob("*.pixels"))) == 2


def test_another_crop_has_a_file_of_its_own(items, folder):
    for pairs in ((), ("INPUT.SIZE", (16, 16)), ("INPUT.INTERPOLATION", "bilinear")):
        next(iter(make_loader(make_cfg("exact", *pairs), items, False)))
    assert len(list(folder.glob("*.pixels"))) == 3


@pytest.fixture
def other_source(monkeypatch, tmp_path):
    """other_source(module): let a module's source have a further line."""

    def change(module):
        copy = tmp_path / "changed.py"
        copy.write_text(Path(module.__file__).read_text() + "# another way to read\n")
        monkeypatch.setattr(module, "__file__", str(copy))
        image_cache.source_fingerprint.cache_clear()

    yield change
    monkeypatch.undo()
    image_cache.source_fingerprint.cache_clear()


def test_other_code_that_reads_images_has_a_file_of_its_own(items, folder, other_source):
    next(iter(make_loader(make_cfg(), items, True)))
    other_source(tools)
    next(iter(make_loader(make_cfg(), items, True)))
    assert len(list(folder.glob("*.pixels"))) == 2


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize(("workers", "part"), [(0, 0.9), (1, 0.9), (0, 0.1)])
def test_a_damaged_image_is_named(items, folder, is_train, workers, part):
    path = Path(items[4].impath)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    cfg = make_cfg("exact", "DATALOADER.NUM_WORKERS", workers)
    with pytest.raises(ImageError, match=rf"{path.name}.* of data set Photos"):
        epochs(make_loader(cfg, items, is_train))
    assert not list(folder.glob("*.pixels*"))
    path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{path.name}.* of data set Photos"):
        epochs(make_loader(cfg, items, is_train))


def too_small(cfg, folder):
    cfg.DATALOADER.CACHE_MB = 0


def no_folder(cfg, folder):
    folder.write_text("a file")


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize(
    ("spoil", "says"), [(too_small, "more than DATALOADER.CACHE_MB, 0 MB"), (no_folder, "cache")]
)
def test_without_a_cache_images_are_decoded(items, folder, capsys, is_train, spoil, says):
    expected = epochs(make_loader(make_cfg("none"), items, is_train))
    cfg = make_cfg()
    spoil(cfg, folder)
    assert_same(epochs(make_loader(cfg, items, is_train)), expected)
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Note")]
    assert len(notes) == 1 and "Photos are decoded each time" in notes[0] and says in notes[0]
    assert not folder.is_dir()


def test_a_million_images_are_refused_at_the_first_look(items, folder):
    looked_at = []

    class Paths(list):
        def __iter__(self):
            for path in super().__iter__():
                looked_at.append(path)
                yield path

    size = os.path.getsize(items[0].impath)
    paths = Paths([items[0].impath] * 1000)
    with pytest.raises(CacheError, match="CACHE_MB"):
        open_cache(paths, decode, DECODED, "Photos", limit=10 * size)
    assert len(looked_at) == 11 and not folder.exists()


def decode(path):
    return np.asarray(Image.open(path).convert("RGB"))


def test_the_least_recently_used_make_room(items, folder):
    paths = [item.impath for item in items]

    def make(chosen, limit=10**6):
        return Path(open_cache(chosen, decode, DECODED, "Photos", limit).path)

    first, second = make(paths[:1]), make(paths[1:2])
    (folder / "Photos-1.pixels.tmp123").write_text("left by a killed process")
    (folder / "notes.txt").write_text("not ours")
    for age, path in ((30, first), (20, second)):
        os.utime(path, (1e9 - age, 1e9 - age))
    assert make(paths[:1]) == first  # used again
    third = make(paths[2:3], limit=first.stat().st_size + 3 * 24 * 70 + 30)
    assert sorted(folder.glob("*.pixels*")) == sorted([first, third])
    assert (folder / "notes.txt").exists()


@pytest.mark.parametrize("is_train", [True, False])
def test_all_unreadable_images_are_named_at_once(items, folder, is_train, monkeypatch, capsys):
    paths = [Path(item.impath) for item in items]
    paths[1].write_bytes(b"<html>")
    paths[3].write_bytes(paths[3].read_bytes()[:-200])
    paths[4].write_bytes(b"")
    bad = [paths[i].name for i in (1, 3, 4)]
    with pytest.raises(ImageError, match=r"3 images of .* cannot be read"):
        make_loader(make_cfg(), items, is_train).dataset.open_cache()
    listed = capsys.readouterr().out.splitlines()[-3:]
    assert [name for name, line in zip(bad, listed, strict=True) if f'{name}"' in line] == bad
    assert not list(folder.glob("*.pixels*"))
    monkeypatch.setattr(image_cache, "MOST_NAMED", 2)
    with pytest.raises(ImageError, match=r"more than 2 images of .* cannot be read"):
        make_loader(make_cfg(), items, is_train).dataset.open_cache()
    assert capsys.readouterr().out.splitlines()[-1] == "  and more"


def test_a_busy_cache_is_tried_again(items, folder, capsys):
    folder.mkdir()
    loader = make_loader(make_cfg(), items, True)
    expected = epochs(make_loader(make_cfg("none"), items, True), 1)
    with filelock.FileLock(folder / "lock"):
        assert_same(epochs(loader, 1), expected)
    assert "decoded this time: another process" in capsys.readouterr().out
    assert not list(folder.glob("*.pixels"))
    assert_same(epochs(loader, 1), expected)
    assert len(list(folder.glob("*.pixels"))) == 1


@pytest.mark.parametrize("keep", [0, 10, -1])
def test_a_file_that_is_not_complete_is_made_anew(items, folder, keep, capsys):
    expected = epochs(make_loader(make_cfg(), items, False), 1)
    (path,) = folder.glob("*.pixels")
    content = path.read_bytes()
    path.write_bytes(content[:keep])
    assert_same(epochs(make_loader(make_cfg(), items, False), 1), expected)
    assert f"{path} cannot be used and is made anew" in capsys.readouterr().out
    assert path.read_bytes() == content


SHAPES = st.tuples(*[st.integers(1, 5)] * 3)


@settings(max_examples=30, deadline=None)
@given(st.lists(SHAPES, min_size=1, max_size=6))
def test_arrays_come_back(tmp_path_factory, shapes):
    path = str(tmp_path_factory.mktemp("pixels") / "x.pixels")
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]
    # views in another order of memory come back as they look
    PixelFile.write(path, [array.transpose(2, 0, 1) for array in arrays])
    file = PixelFile(path, len(arrays))
    copy = pickle.loads(pickle.dumps(file))
    for found in (file, copy):
        assert len(found) == len(arrays)
        for one, array in zip(found, arrays, strict=True):
            assert np.array_equal(one, array.transpose(2, 0, 1))
        assert np.array_equal(found[-1], found[len(arrays) - 1])
    with pytest.raises(IndexError):
        file[len(arrays)]
    before = Path(path).read_bytes()
    file[0][:] = 7
    assert Path(path).read_bytes() == before and np.array_equal(copy[0], found[0])


def test_a_file_is_handed_over_by_name(items):
    loader = make_loader(make_cfg(), items, True)
    next(iter(loader))
    pixels = sum(3 * width * height for width, height in SIZES)
    assert len(pickle.dumps(loader.dataset._decoded)) < 500 < pixels


def test_the_folder_by_default(monkeypatch):
    monkeypatch.delenv("DASSL_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "dassl"


def test_an_unknown_choice(items):
    with pytest.raises(ValueError, match=r"^DATALOADER\.CACHE: .*did you mean 'fast'"):
        make_loader(make_cfg("fats"), items, True)


# --- fast: uint8 tensors instead of PIL images ------------------------------------------------


def levels(image, mode, seed, choices=("random_resized_crop", "random_flip")):
    """Grey levels (3, 28, 28) between both transforms of one image."""
    views = []
    for cache, picture in (("none", image), ("fast", np.array(image)), ("fast", image)):
        cfg = make_cfg(cache, "INPUT.TRANSFORMS", list(choices), "INPUT.INTERPOLATION", mode)
        torch.manual_seed(seed)
        views.append(build_transform(cfg)(picture))
        views.append(torch.rand(1))
    assert torch.equal(views[1], views[3])  # equally many random numbers were drawn
    assert torch.equal(views[2], views[4])  # array or PIL image
    return ((views[0] - views[2]) * 255).abs()


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 90), st.integers(2, 90), st.integers(0, 10**6))
def test_bilinear_tensors_are_within_one_grey_level(width, height, seed):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    for choices in (("random_resized_crop", "random_flip"), ()):
        found = levels(Image.fromarray(noise), "bilinear", seed, choices)
        # two roundings that add up are rare
        assert found.max() < 2.01 and (found > 1.01).float().mean() < 2e-3


@pytest.mark.parametrize("number", [0, 1])
def test_bicubic_tensors_of_photographs(number):
    image = Image.fromarray(load_sample_images().images[number])
    found = torch.stack([levels(image, "bicubic", seed) for seed in range(40)])
    # where an edge overshoots, the order of the two passes matters, and Pillow's varies
    assert (found > 1.01).float().mean() < 1e-3
    assert found.mean() < 0.05 and found.max() < 20


RECORDED = np.load(PARITY_DIR / "image_transforms.npz")


@pytest.mark.parametrize("seed", range(len(RECORDED["train_wide_torchseed_0_3"])))
def test_tensors_equal_the_recorded_images_to_a_grey_level(seed):
    cfg = make_cfg("fast")
    for key, value in json.loads(str(RECORDED["config"]))["INPUT"].items():
        cfg.merge_from_list([f"INPUT.{key}", value])
    torch.manual_seed(seed)
    found = build_transform(cfg)(RECORDED["image_wide_hwc_uint8"])
    np.testing.assert_allclose(found, RECORDED["train_wide_torchseed_0_3"][seed], atol=0.016)


def test_fast_batches_differ_by_the_pixels_only(items):
    found, after = epochs(make_loader(make_cfg("fast"), items, True))
    expected, after_expected = epochs(make_loader(make_cfg("none"), items, True))
    assert after == after_expected
    for one, other in zip(found, expected, strict=True):
        assert one["impath"] == other["impath"]
        torch.testing.assert_close(one["img"], other["img"], rtol=0, atol=0.04)


CHOICES = ("random_resized_crop", "random_flip", "normalize", "gaussian_noise", "instance_norm")


@pytest.mark.parametrize("choices", [CHOICES, CHOICES[:2], ("normalize",)])
def test_every_step_works_where_the_images_are(items, choices):
    """Tensors without content stand for a GPU: none of the steps may leave their device."""
    cfg = make_cfg("fast", "INPUT.TRANSFORMS", choices, "DATALOADER.NUM_WORKERS", 2)
    cfg.DATALOADER.TRANSFORM_DEVICE = "meta"
    loader = make_loader(cfg, items, True)
    assert loader.num_workers == 0
    shapes = {(batch["img"].device.type, *batch["img"].shape[1:]) for batch in loader}
    assert shapes == {("meta", 3, 28, 28)}
    assert {batch["img"].dtype for batch in loader} == {torch.float32}


@pytest.mark.gpu
def test_augmentation_on_a_gpu(items):
    """The same crops and flips; pixels within the rounding of two ways to interpolate."""
    choices = ("INPUT.TRANSFORMS", CHOICES[:3])
    expected, _ = epochs(make_loader(make_cfg("fast", *choices), items, True))
    cfg = make_cfg("fast", *choices, "DATALOADER.TRANSFORM_DEVICE", "cuda")
    found, _ = epochs(make_loader(cfg, items, True))
    for one, other in zip(expected, found, strict=True):
        assert other["img"].is_cuda
        assert (one["img"] - other["img"].cpu()).abs().max() < 0.05


def test_scaling_away_from_the_cpu_is_the_same():
    class Elsewhere(torch.Tensor):
        is_cpu = False

    pixels = torch.randint(0, 256, (3, 9, 7), dtype=torch.uint8)
    for step in (ScaleShift(T.Normalize([0.5, 0.4, 0.3], [0.2, 0.3, 0.25])), UnitRange()):
        moved = step(pixels.as_subclass(Elsewhere)).as_subclass(torch.Tensor)
        assert (moved - step(pixels)).abs().max() < 1e-6


def test_augmentation_where_it_cannot_be():
    for device, message in (
        ("meta", "only the uint8 tensors of DATALOADER.CACHE fast"),
        ("cuda", "there is no CUDA device|only the uint8"),
        ("gpu", "TRANSFORM_DEVICE is 'gpu': use cpu, cuda"),
    ):
        with pytest.raises(ValueError, match=message):
            build_transform(make_cfg("exact", "DATALOADER.TRANSFORM_DEVICE", device))


@pytest.mark.parametrize("choices", [[], ["normalize"], ["normalize", "instance_norm"]])
def test_fast_evaluation_differs_by_rounding(items, folder, choices):
    pairs = ("INPUT.TRANSFORMS", choices)
    found, _ = epochs(make_loader(make_cfg("fast", *pairs), items, False))
    expected, _ = epochs(make_loader(make_cfg("none", *pairs), items, False))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one["img"], other["img"], rtol=0, atol=2e-6)
    next(iter(make_loader(make_cfg("exact", *pairs), items, False)))
    assert len(list(folder.glob("*.pixels"))) == 1  # both keep the same crops


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0.05, 1)), min_size=3, max_size=3),
)
def test_normalisation_of_every_pixel_value(channels):
    mean, std = zip(*channels, strict=True)
    pixels = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256).contiguous()
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    tfm = T.Compose([T.CenterCrop((1, 256)), T.ToTensor(), T.Normalize(mean, std)])
    for fast in (False, True):
        fixed, rest = split_fixed(tfm, fast)
        assert np.array_equal(fixed(image), image)
        error = (rest(pixels) - tfm(image)).abs().max()
        assert error <= (1e-5 if fast else 0)
    assert torch.equal(pixels[0, 0], torch.arange(256))


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("INPUT.TRANSFORMS", ["random_flip", "colorjitter", "normalize"], "colorjitter"),
        ("INPUT.TRANSFORMS", ["cutout"], "cutout"),
        ("INPUT.INTERPOLATION", "nearest", "nearest"),
    ],
)
def test_what_tensors_cannot_do_is_done_on_images(items, capsys, key, value, says):
    expected = epochs(make_loader(make_cfg("none", key, value), items, True))
    capsys.readouterr()
    assert_same(epochs(make_loader(make_cfg("fast", key, value), items, True)), expected)
    assert f"in spite of CACHE fast, for {says}" in capsys.readouterr().out


def test_a_standard_deviation_of_zero(items):
    cfg = make_cfg("exact", "INPUT.PIXEL_STD", [0.2, 0.0, 0.2])
    with pytest.raises(ValueError, match="PIXEL_STD"):
        next(iter(make_loader(cfg, items, False)))
