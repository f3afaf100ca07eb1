"""JSON and YAML from outside, as values that can be kept in either: plain, finite, not too deep."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

#: deepest nesting of lists and mappings
MOST_DEPTH = 50
#: most values of a YAML file with its references written out
MOST_VALUES = 200_000
_LARGEST = 1 << 63
# half of a character beyond U+FFFF, as JSON's escapes can name it alone
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_ENDLESS = "nested too deeply"


def parse_json(
    text: str, object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None
) -> Any:
    """Return the value of a JSON text.

    Args:
        text: the whole text.
        object_pairs_hook: as for ``json.loads``.

    Raises:
        ValueError: it is not JSON, is nested too deeply, or holds a number or a text that neither
            JSON nor files can: infinite, beyond 64 bits, half a character.
    """
    try:
        value = json.loads(text, object_pairs_hook=object_pairs_hook, parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError(_ENDLESS) from error
    except ValueError as error:
        raise ValueError(_one_line(error)) from error
    _check_plain(value, finite=True)
    if _HALF.search(text):
        try:
            # names of files that are not UTF-8 are escaped so
            json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise ValueError("it holds half a character, as text cut in two does") from error
    return value


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML text, which is of the types that JSON has.

    Raises:
        ValueError: it is not YAML, is nested too deeply or in itself, is too large with its
            references written out, or holds another type, such as a date, or a tag.
    """
    import yaml

    try:
        value = yaml.safe_load(text)
    except RecursionError as error:
        raise ValueError(_ENDLESS) from error
    except Exception as error:  # values that a tag does not fit raise nearly anything
        raise ValueError(_one_line(error)) from error
    _check_plain(value, finite=False, most=MOST_VALUES)
    return value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _check_plain(value: Any, finite: bool, most: float = math.inf) -> None:
    """Check a value level by level, which ends also where a list holds itself."""
    level, count = [value], 0
    for _ in range(MOST_DEPTH):
        count += len(level)
        if count > most:
            raise ValueError(f"it holds more than {most:,} values, with references written out")
        below: list[Any] = []
        for item in level:
            kind = type(item)
            if kind is str:
                continue
            if kind is dict:
                below += item
                below += item.values()
            elif kind is list:
                below += item
            elif kind is int:
                if not -_LARGEST <= item < 2 * _LARGEST:
                    raise ValueError("it holds a whole number of more than 64 bits")
            elif kind is float:
                if finite and not math.isfinite(item):
                    raise ValueError("it holds a number that is not finite")
            elif kind is not bool and item is not None:
                raise ValueError(f"{str(item)!r:.80} is a {kind.__name__}: put it in quotes")
            if len(below) > most:
                raise ValueError(f"it holds more than {most:,} values, with references written out")
        if not below:
            return
        level = below
    raise ValueError(_ENDLESS)
