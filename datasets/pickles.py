"""Pickled lists of images that upstream's code wrote, read without running anything in them."""

from __future__ import annotations

import io
import pickle

from support.files import read_bytes


class _PickledDatum:
    """Stand-in for upstream's ``Datum`` while its pickled lists are read."""


class _ListUnpickler(pickle.Unpickler):
    """Unpickler of plain containers of ``Datum`` that refuses any other class."""

    def find_class(self, module: str, name: str) -> type:
        if (module, name) == ("dassl.data.datasets.base_dataset", "Datum"):
            return _PickledDatum
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a list of images")


def load_pickled_lists(path: str) -> dict[str, list[tuple[str, int, str]]]:
    """Read upstream's ``{"train": [Datum], ...}`` pickle without running anything in it.

    Returns:
        per list, (absolute path with forward slashes on the machine that wrote it, label, class
        name) of each image.

    Raises:
        ValueError: the file is damaged or holds something else.
    """
    content = io.BytesIO(read_bytes(path))
    try:
        return {
            part: [(d._impath.replace("\\", "/"), int(d._label), d._classname) for d in items]
            for part, items in _ListUnpickler(content).load().items()
        }
    except Exception as error:  # damaged pickles raise nearly anything
        raise ValueError(f"{path} cannot be read: {error!r}") from error
