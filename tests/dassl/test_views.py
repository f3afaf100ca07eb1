"""Seeded views: the same from any process, in any order and after a resume; and their names."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms as T

from dassl.data import DataManager, DatasetWrapper
from dassl.data.datasets import build_dataset
from dassl.data.transforms import AVAI_CHOICES, build_transform
from dassl.data.transforms.parameters import draws_nothing, transform_parameters
from dassl.data.transforms.pixels import PixelCompose
from dassl.data.transforms.transforms import ON_PIXELS
from dassl.engine import build_trainer
from dassl.utils import set_random_seed
from dassl.utils.random_state import get_random_state, seeded_generators
from tests.dassl import toy


@pytest.fixture
def cfg(cfg):
    """The toy data with noise in place of flat colours, of which every crop would be the same."""
    folder, rng = Path(cfg.DATASET.ROOT), np.random.default_rng(0)
    folder.mkdir()
    for label in range(len(toy.COLOURS)):
        for index in range(7):
            pixels = rng.integers(0, 256, (toy.SIDE + 4, toy.SIDE + 2, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{label}_{index}.png")
    # a blur that fits into the small images
    cfg.merge_from_list(["INPUT.SEEDED_VIEWS", True, "SEED", 1, "INPUT.GB_K", 3])
    return cfg


def views_of(cfg, epoch=0, workers=0):
    """Images and names of views of one epoch by file, and the order of the files."""
    cfg.DATALOADER.NUM_WORKERS = workers
    loader = DataManager(cfg).train_loader_x
    loader.dataset.set_epoch(epoch)
    images, names, order = {}, {}, []
    for batch in loader:
        order += batch["impath"]
        images.update(zip(batch["impath"], batch["img"], strict=True))
        names.update(zip(batch["impath"], batch.get("view", ()), strict=False))
    return images, names, order


def assert_same_where_both(a, b):
    both = a.keys() & b.keys()
    assert len(both) >= 8
    assert all(torch.equal(a[path], b[path]) for path in both)


@pytest.mark.parametrize("cache", ["exact", "fast", "none"])
def test_views_do_not_depend_on_workers_or_order(cfg, cache):
    cfg.DATALOADER.CACHE = cache
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE = 6
    set_random_seed(1)
    images, names, order = views_of(cfg, epoch=3)
    assert len(images) == 12
    state = get_random_state()
    set_random_seed(1)
    by_workers, their_names, same_order = views_of(cfg, epoch=3, workers=2)
    assert same_order == order, "drawing views must leave the run's generators alone"
    assert torch.equal(get_random_state()["torch"], state["torch"])
    assert_same_where_both(images, by_workers)
    set_random_seed(2)
    shuffled, other_names, other_order = views_of(cfg, epoch=3)
    assert other_order != order
    assert_same_where_both(images, shuffled)
    assert names == their_names == other_names and len(set(names.values())) == 12


@pytest.mark.parametrize(("epoch", "seed"), [(1, 1), (0, 2)])
def test_views_differ_between_epochs_and_seeds(cfg, epoch, seed):
    images, names, _ = views_of(cfg)
    cfg.SEED = seed
    others, other_names, _ = views_of(cfg, epoch)
    both = images.keys() & others.keys()
    assert len(both) >= 8
    assert sum(torch.equal(images[path], others[path]) for path in both) <= 1
    assert not set(names.values()) & set(other_names.values())


def test_cached_images_have_the_names_of_their_pixels(cfg):
    """exact gives the pixels of none, so it shares its names; fast gives others."""
    names = {}
    for cache in ("none", "exact", "fast"):
        cfg.DATALOADER.CACHE, cfg.DATALOADER.TRAIN_X.BATCH_SIZE = cache, 12
        names[cache] = set(views_of(cfg)[1].values())
    assert names["exact"] == names["none"] and not names["exact"] & names["fast"]


def test_upright_images_have_names_of_their_own(cfg):
    stored = set(views_of(cfg)[1].values())
    cfg.INPUT.EXIF = True
    assert not stored & set(views_of(cfg)[1].values())


def test_images_have_views_of_their_own(cfg):
    """Noise alone, so that the same draws would give the same change."""
    cfg.INPUT.TRANSFORMS = ("gaussian_noise",)
    noisy, _, _ = views_of(cfg)
    cfg.INPUT.TRANSFORMS = ()
    plain, _, _ = views_of(cfg)
    noise = [noisy[path] - plain[path] for path in noisy.keys() & plain.keys()]
    drawn = [change for change in noise if change.abs().max() > 0]
    assert len(drawn) >= 2
    assert all(not torch.allclose(drawn[0], change, atol=1e-3) for change in drawn[1:])


def test_a_moved_data_root_gives_the_same_views(cfg, tmp_path):
    images, names, _ = views_of(cfg)
    moved = shutil.copytree(cfg.DATASET.ROOT, tmp_path / "moved")  # with times of change
    cfg.DATASET.ROOT = str(moved)
    others, other_names, _ = views_of(cfg)
    by_name = {names[path]: image for path, image in images.items()}
    assert_same_where_both(by_name, {other_names[p]: image for p, image in others.items()})


def two_views(cfg, transform):
    """The view of the first image, drawn twice with whatever other draws between."""
    data = DatasetWrapper(cfg, build_dataset(cfg).train_x, transform, is_train=True)
    set_random_seed(3)
    first = data[0]
    random.random(), np.random.rand(2), torch.rand(3)
    return first, data[0]


@pytest.mark.parametrize(
    ("choice", "cache"),
    [(choice, "exact") for choice in AVAI_CHOICES]
    + [(choice, "fast") for choice in sorted(ON_PIXELS)],
)
def test_every_augmentation_can_be_seeded(cfg, choice, cache):
    cfg.DATALOADER.CACHE = cache
    transform = build_transform(cfg, choices=[choice])
    assert isinstance(transform, PixelCompose) == (cache == "fast")
    first, again = two_views(cfg, transform)
    assert torch.equal(first["img"], again["img"])
    assert first["view"] == again["view"]
    fixed = choice in ("normalize", "instance_norm", "center_crop")
    assert draws_nothing(transform) == fixed
    cfg.INPUT.SEEDED_VIEWS = False
    assert ("view" in two_views(cfg, transform)[0]) == fixed


def test_a_transform_of_ones_own_is_seeded_but_has_no_name(cfg):
    def draw(image):
        return torch.tensor([random.random(), np.random.rand(), torch.rand(1).item()])

    first, again = two_views(cfg, draw)
    assert torch.equal(first["img"], again["img"]) and "view" not in first
    assert transform_parameters(draw) is None
    assert transform_parameters(T.Compose([T.Lambda(draw)])) is None


def test_views_without_a_name(cfg):
    transform = build_transform(cfg)
    item = Changed(cfg, build_dataset(cfg).train_x, transform, is_train=True)[0]
    assert "view" not in item, "a subclass may have changed the image"
    assert "view" not in DatasetWrapper(cfg, build_dataset(cfg).test, transform)[0]
    cfg.DATALOADER.K_TRANSFORMS = 2
    first, again = two_views(cfg, transform)
    assert "view" not in first
    assert not torch.equal(*first["img"])
    assert all(map(torch.equal, first["img"], again["img"]))


class Changed(DatasetWrapper):
    def __getitem__(self, idx):
        item = super().__getitem__(idx)
        return {**item, "img": 1 - item["img"]}


def test_another_file_content_gives_another_name(cfg):
    data = DatasetWrapper(cfg, build_dataset(cfg).train_x, build_transform(cfg), is_train=True)
    path, before = data.data_source[0].impath, data[0]["view"]
    stat = os.stat(path)
    assert data[0]["view"] == before
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    touched = data[0]["view"]
    Image.new("RGB", (30, 30)).save(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    names = [before, touched, data[0]["view"]]
    assert len(set(names)) == 3, "time and size of the file count"
    assert len({name.split("/")[0] for name in names}) == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("SIZE", (8, 9)), ("INTERPOLATION", "nearest"), ("PIXEL_MEAN", [0.5, 0.456, 0.406])],
        *[("PIXEL_STD", [0.5, 0.224, 0.225]), ("CROP_PADDING", 3), ("RRCROP_SCALE", (0.0801, 1.0))],
        *[("CUTOUT_N", 2), ("CUTOUT_LEN", 8), ("GN_MEAN", 0.1), ("GN_STD", 0.1)],
        *[("RANDAUGMENT_N", 3), ("RANDAUGMENT_M", 9), ("COLORJITTER_H", 0.2), ("RGS_P", 0.3)],
        *[("GB_P", 0.4), ("GB_K", 19), ("TRANSFORMS", ("normalize",))],
    ],
)
def test_every_parameter_of_a_transform_is_in_its_text(cfg, key, value):
    cfg.INPUT.TRANSFORMS = tuple(AVAI_CHOICES)
    before = transform_parameters(build_transform(cfg))
    assert transform_parameters(build_transform(cfg)) == before
    cfg.INPUT[key] = value
    after = transform_parameters(build_transform(cfg))
    assert after != before and "Normalize" in after


def test_a_run_without_a_seed_is_refused(cfg):
    cfg.SEED = -1
    with pytest.raises(ValueError, match=r"SEEDED_VIEWS needs the seed .* SEED is -1.*--seed"):
        DataManager(cfg)


@pytest.mark.parametrize("workers", [0, 2])
def test_views_of_a_run_follow_its_epochs_also_after_a_resume(cfg, workers):
    def run(folder, epochs_at_once):
        seen = {}
        for last in epochs_at_once:
            cfg.OUTPUT_DIR, cfg.TRAIN.CHECKPOINT_FREQ = folder, 1
            cfg.DATALOADER.NUM_WORKERS, cfg.TEST.NO_TEST = workers, True
            set_random_seed(7)
            trainer = build_trainer(cfg)
            trainer.max_epoch, step = last, trainer.forward_backward

            def recorded(batch, trainer=trainer, step=step):
                epoch = seen.setdefault(trainer.epoch, {})
                epoch.update(zip(batch["impath"], batch["img"].clone(), strict=True))
                return step(batch)

            trainer.forward_backward = recorded
            trainer.train()
        return seen

    out = cfg.OUTPUT_DIR
    straight, resumed = run(f"{out}/straight", [3]), run(f"{out}/resumed", [1, 3])
    assert straight.keys() == resumed.keys() == {0, 1, 2}
    for epoch, images in straight.items():
        assert_same_where_both(images, resumed[epoch])
    one, two = straight[0], straight[1]
    assert not any(torch.equal(one[path], two[path]) for path in one.keys() & two.keys())


class OwnReader(DatasetWrapper):
    """A data set as written for upstream, with a constructor of its own."""

    def __init__(self, cfg, data_source, transform=None, is_train=False):
        self.data_source, self.transform = data_source, transform

    def __getitem__(self, idx):
        item = self.data_source[idx]
        return {"img": self.transform(Image.open(item.impath)), "label": item.label}


class ToldEpochs(OwnReader):
    def set_epoch(self, epoch):
        self.epochs = [*getattr(self, "epochs", []), epoch]


@pytest.mark.parametrize("reader", [OwnReader, ToldEpochs, None])
def test_a_trainer_with_loaders_of_its_own(cfg, reader):
    """``None``: its loader is a list of batches, which has no data set."""

    class OwnLoaders(toy.ToyTrainer):
        def build_data_loader(self):
            super().build_data_loader()
            loader = DataManager(self.cfg, dataset_wrapper=reader or OwnReader).train_loader_x
            self.train_loader_x, self.train_loader_u = loader if reader else list(loader), None

    trainer = OwnLoaders(cfg)
    trainer.train()
    assert trainer.epoch + 1 == trainer.max_epoch
    if reader is ToldEpochs:
        told = trainer.train_loader_x.dataset.epochs
        assert list(dict.fromkeys(told)) == list(range(trainer.max_epoch))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**63 - 1), st.integers(0, 20), st.integers(1, 20))
def test_seeded_generators_leave_no_trace(seed, inside, outside):
    def draw(n):
        return [(random.random(), np.random.rand(), torch.rand(1).item()) for _ in range(n)]

    set_random_seed(5)
    expected = draw(outside)
    set_random_seed(5)
    with seeded_generators(seed):
        first = draw(inside)
    with pytest.raises(KeyError), seeded_generators(seed):
        assert draw(inside) == first
        raise KeyError
    assert draw(outside) == expected
