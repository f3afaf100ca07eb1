"""The layout of MATLAB's files (version 5), checked before they are read.

scipy's reader trusts the kinds and sizes in such a file, and one that is damaged can end the
process. Source of the layout: "MAT-File Format", MathWorks.
"""

from __future__ import annotations

import math
import zlib
from typing import Literal

#: bytes that the variables of a file may take; those of the data sets here take a few million
MOST_BYTES = 1 << 27
_HEADER, _TAG = 128, 8
_MATRIX, _COMPRESSED = 14, 15
_KINDS = {*range(1, 8), 9, *range(12, 19)}
_MOST_DEPTH = 20
_SPARSE = 5

Order = Literal["little", "big"]


def check_mat(content: bytes) -> None:
    """Check that the elements of a file have known kinds, and lie within it and in one another.

    Raises:
        ValueError: they do not, are too large, or the file is of another version.
    """
    mark = content[_HEADER - 2 : _HEADER]
    if mark not in (b"IM", b"MI"):
        raise ValueError("it is not of MATLAB's version 5")
    _check_elements(content[_HEADER:], "little" if mark == b"IM" else "big", 0)


def _check_elements(data: bytes, order: Order, depth: int) -> None:
    if depth > _MOST_DEPTH:
        raise ValueError("nested too deeply")
    place = 0
    while place < len(data):
        kind, start, end, place = _element(data, place, order)
        if kind == _MATRIX:
            _check_matrix(data[start:end], order, depth)
        elif kind == _COMPRESSED:
            unpacker = zlib.decompressobj()
            inside = unpacker.decompress(data[start:end], MOST_BYTES)
            if unpacker.unconsumed_tail:
                raise ValueError(f"it holds more than {MOST_BYTES:,} bytes, compressed")
            _check_elements(inside, order, depth + 1)


def _check_matrix(data: bytes, order: Order, depth: int) -> None:
    """Check an array: flags, sizes, and as many values as these say."""
    if not data:
        return  # an empty one, in a cell
    kind, start, end, place = _element(data, 0, order)
    if kind != 6 or end - start != 8:
        raise ValueError("an array has no flags")
    of_array = int.from_bytes(data[start : start + 4], order) & 255
    if not 1 <= of_array <= 17:
        raise ValueError(f"an array is of the kind {of_array}")
    if of_array < 16:  # others are of code, and not read
        kind, start, end, _ = _element(data, place, order)
        raw = data[start:end]
        sizes = [int.from_bytes(raw[i : i + 4], order, signed=True) for i in range(0, len(raw), 4)]
        # every value takes a byte at least
        too_many = of_array != _SPARSE and math.prod(sizes) > len(data)
        if kind != 5 or len(raw) % 4 or min(sizes, default=-1) < 0 or too_many:
            raise ValueError(f"an array has the sizes {sizes[:4]}")
    _check_elements(data[place:], order, depth + 1)


def _element(data: bytes, place: int, order: Order) -> tuple[int, int, int, int]:
    """Return kind, start and end of the element at ``place``, and the place of the next one."""
    word = int.from_bytes(data[place : place + 4], order)
    kind, size, start = word & 0xFFFF, word >> 16, place + 4
    if not size:  # else the data stand in the tag itself
        size, start = int.from_bytes(data[place + 4 : place + _TAG], order), place + _TAG
    end = start + size
    small = start == place + 4
    if kind not in _KINDS or end > len(data) or (small and size > 4):
        raise ValueError(f"at byte {place} there is an element of kind {kind} and {size:,} bytes")
    if small:
        return kind, start, end, place + _TAG
    padded = size if kind == _COMPRESSED else -(-size // 8) * 8
    return kind, start, end, start + padded
