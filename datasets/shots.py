"""The draw of shots, and the file that keeps what was drawn."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dassl.data.datasets import Datum
from support.files import write_json

from .annotations import read_json
from .items import is_row, relative_path, to_rows
from .pickles import load_pickled_lists

if TYPE_CHECKING:
    from .fewshot import FewShotDataset

#: most validation images per class
MAX_VAL_SHOTS = 4
#: how many validation images there are: MAX_VAL_SHOTS, those of the training, or all
VAL_SHOTS = ("few", "same", "all")

Drawn = tuple[list[Datum], list[Datum] | None]


def sample_shots(
    dataset: FewShotDataset, train: list[Datum], val: list[Datum] | None, shots: int, seed: int
) -> Drawn:
    """Draw ``shots`` training and at most 4 validation images per class, once per (shots, seed).

    The draw uses Python's global generator, which the caller has seeded, and is kept in
    ``split_fewshot/shot_<shots>-seed_<seed>.json``. The generator is left in the same state whether
    the images were drawn or read. Classes with fewer images keep all of them, which a note says.

    ``dataset.val_shots`` "same" draws as many validation images as training images, and "all" keeps
    the whole list; with ``dataset.refill`` short classes have images several times.

    Args:
        dataset: names the folders, and draws from one list.
        train, val: lists of all classes; val None if the test list serves as validation.
        shots: images per class, 1 or more.
        seed: run seed, part of the file's name only.
    """
    counts = _count_labels(train)
    if not dataset.refill:
        _note_short(counts, shots)
    key = {
        "dataset": dataset.name,
        "shots": shots,
        "seed": seed,
        "num_classes": len(counts),
        "split_sha256": dataset.split_fingerprint(train, val),
    }
    same = dataset.val_shots == "same"
    other = f"{'-same_val' * same}{'-refilled' * dataset.refill}"  # another draw, in its own file
    path = os.path.join(dataset.split_fewshot_dir, f"shot_{shots}-seed_{seed}{other}.json")
    file = ShotsFile(path, key=key, dataset_dir=dataset.dataset_dir, train=train, val=val)
    val_shots = shots if same else min(shots, MAX_VAL_SHOTS)
    whole_val, refill = val, dataset.refill
    drawn = file.load()
    if drawn is not None:
        train, val = drawn
        _skip_draws(counts, shots, refill)
        if whole_val is not None:
            _skip_draws(_count_labels(whole_val), val_shots, refill)
    else:
        train = dataset.generate_fewshot_dataset(train, num_shots=shots, repeat=refill)
        if val is not None:
            val = dataset.generate_fewshot_dataset(val, num_shots=val_shots, repeat=refill)
        file.save(train, val)
    return train, whole_val if dataset.val_shots == "all" else val


class ShotsFile:
    """File that keeps which images of a split were drawn.

    Args:
        path: the JSON file. Where it is missing, upstream's pickle of that name is taken over.
        key: what the draw depends on; a file with another key is not used.
        dataset_dir: folder that its paths are relative to.
        train, val: present lists of all classes; val None if the test list serves as validation.
    """

    def __init__(
        self,
        path: str,
        key: Mapping[str, Any],
        dataset_dir: str,
        train: Sequence[Datum],
        val: Sequence[Datum] | None,
    ) -> None:
        self.path, self.key, self.dataset_dir = path, key, dataset_dir
        self.train, self.val = train, val

    def load(self) -> Drawn | None:
        """Return the images drawn before, or None if they have to be drawn."""
        pickled = f"{os.path.splitext(self.path)[0]}.pkl"
        try:
            if os.path.isfile(self.path):
                return self._find(self._read(), self.path)
            if os.path.isfile(pickled):
                print(f"Loading preprocessed few-shot data from {pickled}")
                drawn = self._find(load_pickled_lists(pickled), pickled)
                self.save(*drawn)
                return drawn
        except (OSError, ValueError) as error:
            print(f"Few-shot cache not used, samples are drawn again: {error}")
        return None

    def save(self, train: Sequence[Datum], val: Sequence[Datum] | None) -> None:
        """Keep the images drawn, in a folder that can be written to."""
        rows = {
            "train": to_rows(train, self.dataset_dir),
            "val": None if val is None else to_rows(val, self.dataset_dir),
        }
        try:
            write_json({**self.key, **rows}, self.path)
        except OSError as error:
            print(f"Few-shot data not saved ({error}); they are drawn anew at each start")
        else:
            print(f"Saving preprocessed few-shot data to {self.path}")

    def _read(self) -> dict[str, Any]:
        print(f"Loading preprocessed few-shot data from {self.path}")
        content = read_json(self.path, "a few-shot cache")
        if (
            not isinstance(content, dict)
            or {name: content.get(name) for name in self.key} != self.key
        ):
            raise ValueError(f"{self.path} was drawn from another split than the present one")
        return content

    def _find(self, content: Mapping[str, Any], source: str) -> Drawn:
        """Find the images that a file names in the present lists; every class must be there."""
        train = self._find_part(content, "train", self.train, source)
        if {item.label for item in train} != {item.label for item in self.train}:
            raise ValueError(f"{source} does not hold every class of the present split")
        if self.val is None:
            return train, None
        val = self._find_part(content, "val", self.val, source)
        if self.val and not val:
            raise ValueError(f"{source} holds no validation image")
        return train, val

    def _find_part(
        self, content: Mapping[str, Any], part: str, items: Sequence[Datum], source: str
    ) -> list[Datum]:
        """Find the items with the label and, below the data set's folder, the path of each row.

        Rows of upstream's pickles have absolute paths of some machine: the longest end of a path
        that is the path of an item counts.
        """
        rows = content.get(part)
        if not isinstance(rows, list) or not all(map(is_row, rows)):
            raise ValueError(f"{source} has no list {part!r} of [path, label, class name]")
        ends_of_rows = []
        for path, _, _ in rows:
            folders = path.split("/")
            ends_of_rows.append(["/".join(folders[start:]) for start in range(len(folders))])
        all_ends = {end for ends in ends_of_rows for end in ends}
        prefix = os.path.join(self.dataset_dir, "")
        by_path = {}
        for present in items:
            path = relative_path(present.impath, prefix)
            if path in all_ends:
                by_path[path] = present
        found = []
        for (path, label, _), ends in zip(rows, ends_of_rows, strict=True):
            item = next((by_path[end] for end in ends if end in by_path), None)
            if item is None or item.label != label:
                raise ValueError(f"{source} names {path}, which is not in the present split")
            found.append(item)
        return found


def _count_labels(items: Iterable[Datum]) -> Counter[int]:
    """Count the images per label; labels come in the order of their first image."""
    return Counter([item.label for item in items])


def _note_short(counts: Mapping[int, int], shots: int) -> None:
    """Say where classes have fewer images than shots; results/logs.py reads the first form."""
    short = [count for count in counts.values() if count < shots]
    if len(short) == len(counts):
        least, most = min(short), max(short)
        each = f"{most}" if least == most else f"{least} to {most}"
        print(f"Note: no class has {shots} training images: all are used, {each} per class")
    elif short:
        print(
            f"Note: {len(short)} of {len(counts)} classes have fewer than {shots} training "
            f"images (smallest: {min(short)}); they keep all they have"
        )


def _skip_draws(counts: Mapping[int, int], shots: int, refill: bool) -> None:
    """Advance Python's generator as drawing ``shots`` per class would."""
    for count in counts.values():
        if count >= shots:
            random.sample(range(count), shots)
        elif refill:
            random.choices(range(count), k=shots)
