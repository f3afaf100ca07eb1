from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dassl.data import DataManager, DatasetWrapper
from dassl.data.data_manager import build_data_loader
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum, build_dataset
from dassl.data.samplers import build_sampler
from dassl.utils import set_random_seed
from tests.dassl import toy


class Item:
    """What samplers and lists need of a Datum, without a file."""

    def __init__(self, index, label, domain=0):
        self.index, self.label, self.domain = index, label, domain
        self.classname = f"class_{label}"


def items_of(labels):
    return [Item(i, label) for i, label in enumerate(labels)]


@pytest.fixture
def base():
    return DatasetBase(train_x=items_of([0]))


def test_fewshot_results_by_number_of_sources(base, capsys):
    a, b = items_of([0, 0, 1]), items_of([1, 1])
    assert base.generate_fewshot_dataset(a, num_shots=-1) is a
    assert list(base.generate_fewshot_dataset(a, b, num_shots=0)) == [a, b]
    assert capsys.readouterr().out == ""
    chosen = base.generate_fewshot_dataset(a, b, num_shots=1)
    assert [[item.label for item in part] for part in chosen] == [[0, 1], [1]]
    assert capsys.readouterr().out == "Creating a 1-shot dataset\n"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(1, 6), st.booleans())
def test_fewshot_counts(labels, shots, repeat):
    base = DatasetBase(train_x=items_of([0]))
    chosen = base.generate_fewshot_dataset(items_of(labels), num_shots=shots, repeat=repeat)
    available = Counter(labels)
    expected = {c: shots if repeat else min(shots, n) for c, n in available.items()}
    assert Counter(item.label for item in chosen) == expected
    assert list(dict.fromkeys(item.label for item in chosen)) == list(dict.fromkeys(labels))
    if not repeat:
        assert len({item.index for item in chosen}) == len(chosen)


def test_datum(tmp_path):
    path = tmp_path / "a.png"
    path.touch()
    datum = Datum(str(path), 3, 1, "cat")
    assert (datum.impath, datum.label, datum.domain, datum.classname) == (str(path), 3, 1, "cat")
    assert (datum._impath, datum._label, datum._domain, datum._classname)[1:] == (3, 1, "cat")
    with pytest.raises(AttributeError):
        datum.label = 4
    with pytest.raises(FileNotFoundError, match=r"b\.png.*DATASET\.ROOT"):
        Datum(str(tmp_path / "b.png"))
    with pytest.raises(TypeError, match="PosixPath"):
        Datum(path)


def test_dataset_base_reads_classes_from_train_x():
    data = DatasetBase(train_x=items_of([2, 0, 2, 5]), test=items_of([1]))
    assert data.num_classes == 6
    assert data.lab2cname == {0: "class_0", 2: "class_2", 5: "class_5"}
    assert data.classnames == ["class_0", "class_2", "class_5"]
    assert data.val is None and data.train_u is None
    assert list(data.split_dataset_by_label(data.train_x)) == [2, 0, 5]
    assert list(data.split_dataset_by_domain(data.train_x)) == [0]


def test_a_label_with_two_names_takes_the_first():
    first, second = Item(0, 0), Item(1, 0)
    second.classname = "other"
    assert DatasetBase.get_lab2cname([first, second]) == ({0: "class_0"}, ["class_0"])


def test_no_training_images_means_no_classes():
    with pytest.raises(ValueError, match="DatasetBase has no training images"):
        DatasetBase(train_x=[], test=items_of([0]))


def test_domains():
    class Digits(DatasetBase):
        domains = ("mnist", "svhn")

    data = Digits(train_x=items_of([0]))
    data.check_input_domains(["mnist"], ["svhn"])
    with pytest.raises(ValueError, match="did you mean 'mnist'"):
        data.check_input_domains(["minst"], [])
    with pytest.raises(ValueError, match="source"):
        data.check_input_domains([], ["svhn"])


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_download_data_unpacks_beside_the_archive(tmp_path, kind, monkeypatch):
    import shutil

    import gdown

    (tmp_path / "content").mkdir()
    (tmp_path / "content" / "x.txt").write_text("hello")
    fmt = {"zip": "zip", "tar.gz": "gztar"}[kind]
    archive = shutil.make_archive(str(tmp_path / "archive"), fmt, tmp_path / "content")
    # The drive is out of reach; everything behind the transfer is real.
    monkeypatch.setattr(gdown, "download", lambda url, dst, **kw: shutil.copy(archive, dst))
    data = DatasetBase(train_x=items_of([0]))
    data.download_data("https://drive/x", str(tmp_path / "new" / f"a.{kind}"))
    assert (tmp_path / "new" / "x.txt").read_text() == "hello"
    monkeypatch.setattr(gdown, "download", lambda url, dst, **kw: None)
    with pytest.raises(OSError, match="could not download"):
        data.download_data("https://drive/x", str(tmp_path / "other" / f"a.{kind}"))
    with pytest.raises(ValueError, match="Google Drive"):
        data.download_data("https://host/a.zip", "a.zip", from_gdrive=False)


@pytest.mark.parametrize("filters", [True, False], ids=["filters", "older Python"])
def test_an_archive_that_escapes_is_refused(tmp_path, filters, monkeypatch):
    import io
    import shutil
    import tarfile

    import gdown

    if not filters:
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
    with tarfile.open(tmp_path / "archive.tar", "w") as archive:
        for name in ("fine.txt", "../../escaped.txt"):
            member = tarfile.TarInfo(name)
            member.size = 5
            archive.addfile(member, io.BytesIO(b"hello"))
    monkeypatch.setattr(
        gdown, "download", lambda url, dst, **kw: shutil.copy(tmp_path / "archive.tar", dst)
    )
    data = DatasetBase(train_x=items_of([0]))
    with pytest.raises(ValueError, match="is not a zip or tar archive"):
        data.download_data("https://drive/x", str(tmp_path / "a" / "b" / "a.tar"))
    assert not list(tmp_path.glob("**/escaped.txt"))


def test_build_dataset(cfg, capsys):
    assert isinstance(build_dataset(cfg), toy.ToyColours)
    assert "Loading dataset: ToyColours" in capsys.readouterr().out
    cfg.DATASET.NAME = "ToyColors"
    with pytest.raises(ValueError, match=r"^DATASET\.NAME: .*did you mean 'ToyColours'"):
        build_dataset(cfg)


def test_data_manager(cfg, capsys):
    dm = DataManager(cfg)
    assert (dm.num_classes, dm.num_source_domains) == (3, 0)
    assert dm.lab2cname == {0: "colour_0", 1: "colour_1", 2: "colour_2"}
    batch = next(iter(dm.train_loader_x))
    assert batch["img"].shape == (5, 3, 8, 8) and batch["label"].shape == (5,)
    assert set(batch) == {"label", "domain", "impath", "index", "img"}
    # 12 images in batches of 5: the rest is dropped in training and kept in tests.
    assert len(dm.train_loader_x) == 2 and len(dm.test_loader) == 2
    assert len(dm.val_loader) == 1
    table = [line.split() for line in capsys.readouterr().out.splitlines()[-8:]]
    assert ["Dataset", "ToyColours"] in table
    for name, count in {"classes": 3, "train_x": 12, "train_u": 12, "val": 3, "test": 6}.items():
        assert ["#", name, str(count)] in table


def test_batch_larger_than_the_data_is_not_dropped(cfg):
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE = 13
    assert len(DataManager(cfg).train_loader_x) == 1
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE = 12
    assert len(DataManager(cfg).train_loader_x) == 1


def test_unlabelled_loader_has_its_own_settings(cfg):
    cfg.DATALOADER.TRAIN_U.BATCH_SIZE = 3
    assert DataManager(cfg).train_loader_u.batch_size == 5
    cfg.DATALOADER.TRAIN_U.SAME_AS_X = False
    assert DataManager(cfg).train_loader_u.batch_size == 3


@pytest.mark.parametrize("part", ["TRAIN_X", "TRAIN_U", "TEST"])
def test_a_wrong_sampler_names_its_key_before_any_image_is_read(cfg, part, monkeypatch):
    monkeypatch.delattr("dassl.data.data_manager.build_dataset")
    cfg.DATALOADER.TRAIN_U.SAME_AS_X = False
    cfg.DATALOADER[part].SAMPLER = "RandmSampler"
    with pytest.raises(ValueError, match=rf"^DATALOADER\.{part}\.SAMPLER: .*did you mean 'Rand"):
        DataManager(cfg)


@pytest.mark.parametrize("size", [0, -1])
@pytest.mark.parametrize("part", ["TRAIN_X", "TRAIN_U", "TEST"])
def test_a_batch_holds_at_least_one_image(cfg, part, size, monkeypatch):
    monkeypatch.delattr("dassl.data.data_manager.build_dataset")
    cfg.DATALOADER.TRAIN_U.SAME_AS_X = False
    cfg.DATALOADER[part].BATCH_SIZE = size
    expected = rf"^DATALOADER\.{part}\.BATCH_SIZE: {size} is not a number of images from 1 on"
    with pytest.raises(ValueError, match=expected):
        DataManager(cfg)


def test_custom_transforms_and_wrapper(cfg):
    class Wrapper(DatasetWrapper):
        def __getitem__(self, idx):
            return {**super().__getitem__(idx), "extra": idx}

    def mean_colour(image):
        return torch.tensor(image.resize((1, 1)).getpixel((0, 0))).float()

    dm = DataManager(cfg, mean_colour, mean_colour, Wrapper)
    batch = next(iter(dm.train_loader_x))
    assert batch["img"].shape == (5, 3) and batch["extra"].shape == (5,)


def test_an_empty_list_is_refused(cfg):
    with pytest.raises(ValueError, match="ToyColours has no test images"):
        build_data_loader(cfg, data_source=[], is_train=False)


def test_thousands_are_separated(cfg, capsys):
    dm = DataManager(cfg)
    dm.dataset._test = dm.dataset._test * 500
    capsys.readouterr()
    dm.show_dataset_summary(cfg)
    assert "3,000" in capsys.readouterr().out


def first_item(cfg, transform, is_train=False):
    return DatasetWrapper(cfg, build_dataset(cfg).train_x, transform, is_train)[0]


def test_wrapper_views(cfg):
    assert first_item(cfg, None)["img"].size == (12, 10)
    item = first_item(cfg, [lambda image: "a", lambda image: "b"])
    assert (item["img"], item["img2"]) == ("a", "b")
    cfg.DATALOADER.K_TRANSFORMS = 3
    assert first_item(cfg, lambda image: "v", is_train=True)["img"] == ["v"] * 3
    assert first_item(cfg, lambda image: "v", is_train=False)["img"] == "v"
    with pytest.raises(ValueError, match="K_TRANSFORMS"):
        first_item(cfg, None, is_train=True)


def test_wrapper_returns_the_plain_image_on_request(cfg):
    cfg.DATALOADER.RETURN_IMG0 = True
    plain = first_item(cfg, None)["img0"]
    assert plain.shape == (3, 8, 8) and plain.min() < 0
    cfg.INPUT.TRANSFORMS = ()
    assert first_item(cfg, None)["img0"].min() >= 0


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named_with_its_data_set(cfg, workers):
    cfg.DATALOADER.NUM_WORKERS = workers
    loader = DataManager(cfg).test_loader
    path = Path(loader.dataset.data_source[0].impath)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=rf"{path.name}.* of data set ToyColours"):
        next(iter(loader))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_seed_gives_the_same_batches(cfg, workers):
    cfg.DATALOADER.NUM_WORKERS = workers

    def epoch(seed):
        set_random_seed(seed)
        return torch.cat([batch["img"] for batch in DataManager(cfg).train_loader_x])

    assert torch.equal(epoch(0), epoch(0))
    assert not torch.equal(epoch(0), epoch(1))


def domain_items(sizes):
    domains = [d for d, n in enumerate(sizes) for _ in range(n)]
    return [Item(i, 0, domain) for i, domain in enumerate(domains)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=4), st.integers(1, 3))
def test_random_domain_sampler(sizes, per_domain):
    data = domain_items(sizes)
    n_domain = max(1, len(sizes) - 1)
    batch = n_domain * per_domain
    sampler = build_sampler(
        "RandomDomainSampler", data_source=data, batch_size=batch, n_domain=n_domain
    )
    order = list(sampler)
    assert order and len(order) % batch == 0
    for start in range(0, len(order), batch):
        counts = Counter(data[i].domain for i in order[start : start + batch])
        assert set(counts.values()) == {per_domain} and len(counts) == n_domain


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(2, 12), min_size=1, max_size=4), st.integers(1, 2))
def test_seq_domain_sampler(sizes, per_domain):
    data = domain_items(sizes)
    batch = len(sizes) * per_domain
    sampler = build_sampler("SeqDomainSampler", data_source=data, batch_size=batch)
    order = list(sampler)
    assert len(order) == len(sampler) == batch * (min(sizes) // per_domain)
    assert len(set(order)) == len(order)
    for start in range(0, len(order), batch):
        domains = [data[i].domain for i in order[start : start + batch]]
        assert domains == sorted(domains) and len(set(domains)) == len(sizes)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=6), st.integers(1, 4))
def test_random_class_sampler(sizes, n_ins):
    labels = [c for c, n in enumerate(sizes) for _ in range(n)]
    data = items_of(labels)
    sampler = build_sampler(
        "RandomClassSampler", data_source=data, batch_size=2 * n_ins, n_ins=n_ins
    )
    order = list(sampler)
    assert order and len(order) % (2 * n_ins) == 0
    for start in range(0, len(order), n_ins):
        assert len({labels[i] for i in order[start : start + n_ins]}) == 1


def test_samplers_say_what_does_not_fit():
    data = domain_items([2, 2])
    with pytest.raises(ValueError, match="multiple"):
        build_sampler("RandomDomainSampler", data_source=data, batch_size=3, n_domain=2)
    with pytest.raises(ValueError, match="exceeds"):
        build_sampler("RandomDomainSampler", data_source=data, batch_size=3, n_domain=3)
    with pytest.raises(ValueError, match="N_INS"):
        build_sampler("RandomClassSampler", data_source=data, batch_size=2, n_ins=4)
    with pytest.raises(ValueError, match="needs 2 classes"):
        build_sampler("RandomClassSampler", data_source=data, batch_size=4, n_ins=2)
    with pytest.raises(ValueError, match="did you mean 'RandomSampler'"):
        build_sampler("RandmSampler", data_source=data)


def test_registry_holds_data_sets():
    assert DATASET_REGISTRY.get("ToyColours") is toy.ToyColours
