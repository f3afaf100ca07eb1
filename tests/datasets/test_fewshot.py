"""Shots, their caches, and base/new classes."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dassl.data.datasets import build_dataset
from dassl.utils import set_random_seed
from datasets.fewshot import FewShotDataset
from datasets.items import list_images, make_item
from results.logs import read_facts
from tests.datasets.miniatures import BY_STEM


def rows(items):
    return [(item.impath, item.label, item.classname) for item in items]


def lists(dataset):
    return [rows(items) for items in (dataset.train_x, dataset.val, dataset.test)]


def labelled(labels, part):
    """Synthetic items whose path tells their position in the list."""
    return [make_item(f"/{part}/{n}", y, f"class_{y}") for n, y in enumerate(labels)]


# --- base and new -----------------------------------------------------------------------------


@given(st.lists(st.integers(0, 12), min_size=1, max_size=60), st.lists(st.integers(0, 12)))
def test_base_and_new_part_the_classes(train_labels, test_labels):
    train, test = labelled(train_labels, "train"), labelled(test_labels, "test")
    classes = sorted(set(train_labels))
    base = FewShotDataset.subsample_classes(train, test, subsample="base")
    base_names = {item.classname for item in base[0]}
    if len(classes) == 1:
        with pytest.raises(ValueError, match="leaves no class"):
            FewShotDataset.subsample_classes(train, test, subsample="new")
        new, new_names = ([], []), set()
    else:
        new = FewShotDataset.subsample_classes(train, test, subsample="new")
        new_names = {item.classname for item in new[0]}

    assert base_names.isdisjoint(new_names)
    assert base_names | new_names == {f"class_{label}" for label in classes}
    assert 0 <= len(base_names) - len(new_names) <= 1
    for half, offset in ((base, 0), (new, len(base_names))):
        for items, full in zip(half, (train, test), strict=True):
            for item in items:
                assert item.classname == f"class_{classes[item.label + offset]}"
            kept = {item.impath for item in items}
            assert [i.impath for i in items] == [i.impath for i in full if i.impath in kept]
    known = [item for item in test if item.label in classes]
    assert len(base[1]) + len(new[1]) == len(known)


def test_all_classes_returns_the_lists_untouched():
    train, test = labelled([3, 1], "train"), labelled([1], "test")
    kept = FewShotDataset.subsample_classes(train, test)
    assert kept[0] is train and kept[1] is test


@pytest.mark.parametrize(("value", "hint"), [("novel", ""), ("bases", "did you mean 'base'")])
def test_unknown_subsample_value(value, hint, tree, build):
    tree("dtd")
    with pytest.raises(ValueError, match=r"all, base, new.*" + hint) as caught:
        build("dtd", "DATASET.SUBSAMPLE_CLASSES", value)
    assert repr(value) in str(caught.value)


# --- shots and caches -------------------------------------------------------------------------


def shots(build, stem="dtd", k=2, seed=1, subsample="all"):
    set_random_seed(seed)
    options = ("DATASET.NUM_SHOTS", k, "SEED", seed, "DATASET.SUBSAMPLE_CLASSES", subsample)
    return build(stem, *options)


def cache_path(folder, k=2, seed=1, suffix="json"):
    return folder / "split_fewshot" / f"shot_{k}-seed_{seed}.{suffix}"


def test_shots_per_class_and_messages(tree, build, capsys):
    folder = tree("dtd")
    dataset = shots(build, k=5)
    assert [item.label for item in dataset.train_x] == [n for n in range(4) for _ in range(5)]
    # min(5, 4) of the two validation images there are
    assert len(dataset.val) == 8 and len(dataset.test) == 12
    out = capsys.readouterr().out
    assert "Creating a 5-shot dataset" in out and "Creating a 4-shot dataset" in out
    assert f"Saving preprocessed few-shot data to {cache_path(folder, 5)}" in out
    again = shots(build, k=5)
    assert lists(again) == lists(dataset)
    out = capsys.readouterr().out
    assert f"Loading preprocessed few-shot data from {cache_path(folder, 5)}" in out
    assert "Creating" not in out and "Saving" not in out


def test_seed_zero_and_full_data(tree, build):
    folder = tree("dtd")
    assert len(shots(build, seed=0).train_x) == 8
    assert cache_path(folder, seed=0).is_file()
    assert len(shots(build, k=-1).train_x) == len(shots(build, k=0).train_x) == 20


def test_base_and_new_share_the_shots(tree, build):
    folder = tree("dtd")
    everything = {path for path, _, _ in rows(shots(build).train_x)}
    base = {path for path, _, _ in rows(shots(build, subsample="base").train_x)}
    new = {path for path, _, _ in rows(shots(build, subsample="new").train_x)}
    assert base | new == everything and len(base) == len(new) == 4
    assert len(list((folder / "split_fewshot").iterdir())) == 1


def test_cache_is_portable(tree, build, tmp_path):
    folder = tree("stanford_cars")
    first = lists(shots(build, "stanford_cars"))
    assert str(tmp_path) not in cache_path(folder).read_text()
    moved = tmp_path / "other drive"
    moved.mkdir()
    shutil.move(folder, moved / folder.name)
    second = lists(shots(lambda *a: build(*a, root=moved), "stanford_cars"))
    assert [
        [(p.replace(str(moved), str(tmp_path)), n, c) for p, n, c in x] for x in second
    ] == first


def test_cache_wins_over_a_new_draw(tree, build):
    """Samples made with another stream (here: seed changed by hand) stay as they are."""
    folder = tree("dtd")
    other = lists(shots(build, seed=2))
    first = lists(shots(build, seed=1))
    assert other[0] != first[0]
    content = json.loads(cache_path(folder, seed=2).read_text())
    cache_path(folder, seed=1).write_text(json.dumps({**content, "seed": 1}))
    assert lists(shots(build, seed=1)) == other


def test_file_names_that_are_not_utf8(tree, build):
    folder = tree("dtd")
    for image in (folder / "images" / "banded").iterdir():
        image.rename(image.with_name(os.fsdecode(b"caf\xe9" + os.fsencode(image.name))))
    first = lists(shots(build))
    assert lists(shots(build)) == first
    assert all(os.path.isfile(path) for path, _, _ in first[0])


def test_listings_are_sorted_images_only(tmp_path):
    names = [f"{number:02d}.JPEG" for number in range(60)]
    for name in random.Random(0).sample(names, len(names)):
        (tmp_path / name).touch()
    for other in (".00.jpg", "Thumbs.db", "readme.txt"):
        (tmp_path / other).touch()
    assert rows(list_images(str(tmp_path), 3, "cat")) == [
        (str(tmp_path / name), 3, "cat") for name in names
    ]


def test_changed_split_is_drawn_again(tree, build, capsys):
    folder = tree("dtd")
    shots(build)
    split_path = folder / BY_STEM["dtd"].split_file
    split = json.loads(split_path.read_text())
    moved = [row for row in split["train"] if row[0].endswith("1.jpg")]
    split["train"] = [row for row in split["train"] if row not in moved]
    split["test"] += moved
    split_path.write_text(json.dumps(split))
    capsys.readouterr()
    dataset = shots(build)
    assert "drawn from another split" in capsys.readouterr().out
    test_paths = {path for path, _, _ in rows(dataset.test)}
    assert not test_paths & {path for path, _, _ in rows(dataset.train_x)}
    shots(build)
    assert "Loading preprocessed" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", '{"train": [', "[]", "null"])
def test_damaged_cache_is_drawn_again(text, tree, build, capsys):
    folder = tree("dtd")
    first = lists(shots(build))
    cache_path(folder).write_text(text)
    capsys.readouterr()
    assert lists(shots(build)) == first
    assert "cache not used" in capsys.readouterr().out
    assert json.loads(cache_path(folder).read_text())["shots"] == 2


def test_classes_with_fewer_images_keep_all(tree, build, capsys):
    folder = tree("dtd")
    build("dtd")
    split_path = folder / BY_STEM["dtd"].split_file
    split = json.loads(split_path.read_text())
    kept = [row for row in split["train"] if row[2] == "banded"][:2]
    split["train"] = kept + [row for row in split["train"] if row[2] != "banded"]
    split_path.write_text(json.dumps(split))
    capsys.readouterr()
    dataset = shots(build, k=4)
    assert "1 of 4 classes have fewer than 4 training images (smallest: 2)" in (
        capsys.readouterr().out
    )
    assert [item.label for item in dataset.train_x] == [0] * 2 + [1] * 4 + [2] * 4 + [3] * 4


@pytest.mark.parametrize(("left", "each"), [(5, "5"), (2, "2 to 5")])
def test_more_shots_than_any_class_has(tree, build, capsys, tmp_path, left, each):
    folder = tree("dtd")
    everything = build("dtd")
    split_path = folder / BY_STEM["dtd"].split_file
    split = json.loads(split_path.read_text())
    banded = [row for row in split["train"] if row[2] == "banded"]
    for row in banded[left:]:
        split["train"].remove(row)
    split_path.write_text(json.dumps(split))
    capsys.readouterr()
    dataset = shots(build, k=6)
    said = capsys.readouterr().out
    assert f"no class has 6 training images: all are used, {each} per class\n" in said
    gone = {str(folder / "images" / path) for path, *_ in banded[left:]}
    expected = {item.impath for item in everything.train_x} - gone
    assert {item.impath for item in dataset.train_x} == expected
    # which the tables of results know by that line
    (tmp_path / "log.txt").write_text(said)
    assert read_facts(tmp_path / "log.txt")["images_per_class"] == each


# --- caches made by upstream ------------------------------------------------------------------


def write_upstream_pickle(path, content):
    """Pickle lists of `Datum`, which has upstream's import path and private attributes."""
    path.parent.mkdir(exist_ok=True)
    data = {part: [make_item(*row) for row in items] for part, items in content.items()}
    pickled = pickle.dumps(data, protocol=pickle.HIGHEST_PROTOCOL)
    for name in (b"dassl.data.datasets.base_dataset", b"Datum", b"_impath", b"_label"):
        assert name in pickled
    path.write_bytes(pickled)


def elsewhere(items, folder):
    """The same items as another machine would have named them."""
    return [
        (path.replace(str(folder), f"/home/someone/data/{folder.name}"), n, c)
        for path, n, c in items
    ]


def test_upstream_cache_is_kept(tree, build, capsys):
    folder = tree("dtd")
    train, val, _ = lists(build("dtd"))
    # other samples than we would draw: the last two training images of each class, reversed
    chosen = [row for label in range(4) for row in [r for r in train if r[1] == label][:-3:-1]]
    pickled = cache_path(folder, suffix="pkl")
    content = {"train": elsewhere(chosen, folder), "val": elsewhere(val[::2], folder)}
    write_upstream_pickle(pickled, content)
    dataset = shots(build)
    after_pickle = random.random()
    assert rows(dataset.train_x) == chosen
    assert rows(dataset.val) == val[::2]
    assert f"from {pickled}" in capsys.readouterr().out
    assert pickled.is_file()

    again = shots(build)
    assert lists(again) == lists(dataset)
    assert random.random() == after_pickle
    assert f"from {cache_path(folder)}" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["other image", "other label", "class left out", "no val list"])
def test_upstream_cache_of_another_split(change, tree, build, capsys):
    folder = tree("dtd")
    expected = lists(shots(build))
    cache_path(folder).unlink()
    content = {"train": expected[0], "val": expected[1]}
    path, label, name = expected[0][0]
    if change == "other image":
        content["train"] = [(path.replace(".jpg", "x.jpg"), label, name), *expected[0][1:]]
    elif change == "other label":
        content["train"] = [(path, label + 1, name), *expected[0][1:]]
    elif change == "class left out":
        content["train"] = [row for row in expected[0] if row[1]]
    else:
        del content["val"]
    write_upstream_pickle(cache_path(folder, suffix="pkl"), content)
    capsys.readouterr()
    assert lists(shots(build)) == expected
    assert "cache not used" in capsys.readouterr().out


class Runs:
    """Pickles into a call, as a harmful file would."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (str(self.target),))


def test_pickle_runs_nothing(tree, build, tmp_path, capsys):
    folder = tree("dtd")
    pickled = cache_path(folder, suffix="pkl")
    pickled.parent.mkdir()
    pickled.write_bytes(pickle.dumps({"train": [Runs(tmp_path / "ran")], "val": []}))
    dataset = shots(build)
    assert len(dataset.train_x) == 8
    assert not (tmp_path / "ran").exists()
    assert "not allowed" in capsys.readouterr().out


def test_imagenet_takes_over_upstream_lists(tree, build):
    """The order of upstream's unsorted listing decides what a seed draws, so it is kept."""
    folder = tree("imagenet")
    train, _, test = lists(build("imagenet"))
    (folder / "preprocessed.json").unlink()
    train = [row for label in range(5) for row in [r for r in train if r[1] == label][::-1]]
    content = {"train": elsewhere(train, folder), "test": elsewhere(test, folder)}
    write_upstream_pickle(folder / "preprocessed.pkl", content)
    assert lists(build("imagenet")) == [train, test, test]
    (folder / "preprocessed.pkl").unlink()
    assert lists(build("imagenet")) == [train, test, test]


@pytest.mark.parametrize("change", ["other image", "other label"])
def test_imagenet_lists_of_another_tree(change, tree, build, capsys):
    folder = tree("imagenet")
    expected = lists(build("imagenet"))
    (folder / "preprocessed.json").unlink()
    path, label, name = expected[0][0]
    if change == "other image":
        wrong = (path.replace(".JPEG", "x.JPEG"), label, name)
    else:
        wrong = (path, label + 1, name)
    content = {"train": [wrong, *expected[0][1:]], "test": expected[2]}
    write_upstream_pickle(folder / "preprocessed.pkl", content)
    capsys.readouterr()
    assert lists(build("imagenet")) == expected
    assert "folders are listed again" in capsys.readouterr().out


# --- several processes, and folders that cannot be written --------------------------------------


def build_in_child(cfg, user, gate, results):
    """Build the data set as that user, when all processes are ready."""
    try:
        if user is not None:
            os.setuid(user)
        set_random_seed(cfg.SEED)
        gate.wait()
        results.put(lists(build_dataset(cfg)))
    except BaseException as error:
        results.put(repr(error))
        raise


def run_children(cfgs, user=None):
    context = multiprocessing.get_context("fork")
    gate, results = context.Barrier(len(cfgs)), context.Queue()
    children = [
        context.Process(target=build_in_child, args=(cfg, user, gate, results)) for cfg in cfgs
    ]
    for child in children:
        child.start()
    gathered = [results.get(timeout=60) for _ in children]
    for child in children:
        child.join(60)
    return gathered


@pytest.mark.parametrize("stem", ["dtd", "imagenet"])
def test_processes_starting_at_once(stem, tree, dataset_cfg, build):
    folder = tree(stem)
    gathered = run_children([dataset_cfg(stem, "DATASET.NUM_SHOTS", 2) for _ in range(6)])
    assert len(gathered) == 6
    assert all(result == gathered[0] for result in gathered)
    assert gathered[0] == lists(shots(build, stem))
    leftovers = [path.name for path in folder.rglob("*") if ".tmp" in path.name]
    assert not leftovers
    assert json.loads(cache_path(folder).read_text())["num_classes"] == len(
        BY_STEM[stem].classnames
    )


@pytest.fixture
def readable_root():
    """A data root that other users can read (pytest's own folders are private)."""
    root = Path(tempfile.mkdtemp())
    root.chmod(0o755)
    yield root
    for path in [root, *root.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(root)


@pytest.mark.parametrize("stem", ["dtd", "imagenet"])
def test_data_root_that_cannot_be_written(stem, readable_root, dataset_cfg, capfd):
    folder = BY_STEM[stem].make(readable_root)
    before = sorted(folder.rglob("*"))
    for path in [folder, *before]:
        if path.is_dir():
            path.chmod(0o555)
    cfg = dataset_cfg(stem, "DATASET.NUM_SHOTS", 2, root=readable_root)
    nobody = 65534 if os.geteuid() == 0 else None
    first, second = run_children([cfg], nobody)[0], run_children([cfg], nobody)[0]
    assert isinstance(first, list), first
    assert first == second
    assert len(first[0]) == 2 * len(BY_STEM[stem].classnames)
    assert sorted(folder.rglob("*")) == before
    out = capfd.readouterr().out
    assert "Few-shot data not saved" in out and "Permission denied" in out


# --- other draws ------------------------------------------------------------------------------


class Uneven(FewShotDataset):
    """Lists with 2, 6 and 9 images of three classes, without files."""

    def __init__(self, val_shots, refill, folder):
        self.dataset_dir, self.split_fewshot_dir = str(folder), str(folder / "split_fewshot")
        self.val_shots, self.refill = val_shots, refill


@pytest.mark.parametrize("refill", [False, True])
@pytest.mark.parametrize("val_shots", ["few", "same", "all"])
def test_validation_images_and_refilled_classes(tmp_path, val_shots, refill):
    """Read from the file of the draw or drawn, the images and the random stream are the same."""
    labels = [0] * 2 + [1] * 6 + [2] * 9
    train, val = (
        [make_item(str(tmp_path / f"{p}{n}"), y, str(y)) for n, y in enumerate(labels)]
        for p in ("t", "v")
    )
    found = []
    for _ in range(2):
        random.seed(3)
        dataset = Uneven(val_shots, refill, tmp_path)
        found.append([*map(rows, dataset.sample_shots(train, val, 6, 3)), random.random()])
    assert found[0] == found[1]
    drawn, validation, _ = found[0]
    counts = [sum(label == y for _, label, _ in drawn) for y in range(3)]
    assert counts == [6 if refill else 2, 6, 6]
    if refill:
        assert {label for _, label, _ in drawn[:6]} == {0} and len(set(drawn[:6])) <= 2
    short = 2 if not refill else {"few": 4, "same": 6, "all": 2}[val_shots]
    most = {"few": 4, "same": 6, "all": 9}[val_shots]
    counts = [sum(label == y for _, label, _ in validation) for y in range(3)]
    assert counts == [short, min(most, 6), most]
    random.seed(3)
    plain = rows(Uneven("few", False, tmp_path).sample_shots(train, val, 6, 3)[0])
    if not refill:  # the training images do not depend on the validation images
        assert drawn == plain
