"""A yacs node with clear errors, which converts numbers as users expect."""

from __future__ import annotations

import copy
import functools
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from yacs.config import CfgNode as YacsNode

from support.documents import parse_yaml
from support.files import as_text, read_bytes
from support.hints import nearest

#: key of a YAML file that names the file it builds on
BASE_KEY = "_BASE_"
#: key of a YAML file whose entries, by registry name, are settings for single data sets
DATA_SETS_KEY = "_DATASETS_"


class ConfigKeyError(KeyError):
    """Unknown configuration key (a ``KeyError`` whose text is printed as it is)."""

    def __str__(self) -> str:
        return self.args[0]


class CfgNode(YacsNode):
    """yacs's ``CfgNode`` with three changes when values are merged from a file or a list.

    * An integer is accepted for a float key and stored as float (``OPTIM.LR 1``).
    * Text from the command line is kept as text for a string key, also when it reads as a
      number (``DATASET.ROOT 2024``); ``None`` is still accepted for every key.
    * An unknown key raises a ``KeyError`` that names the nearest known key, a value of the wrong
      type a ``ValueError`` that names key, value and expected type; so does a number that is not
      finite, and anything but numbers in a list of numbers. Nothing is merged then: all values of
      one call are checked before the first is stored.
    """

    def register_renamed_key(
        self, old_name: str, new_name: str, message: str | None = None
    ) -> None:
        """Have an old key say its new name; to do so again, as a subclass of a method, is fine."""
        known = self.__dict__[YacsNode.RENAMED_KEYS].get(old_name)
        if known != (new_name, message):
            super().register_renamed_key(old_name, new_name, message)

    def merge_from_file(self, cfg_filename: str, data_set: str = "") -> None:
        """Merge a YAML file.

        Its key ``_BASE_`` may name another file, relative to its own folder, that is read first;
        what the file itself says wins. Its key ``_DATASETS_`` may hold settings for single data
        sets, by their registry names, which win over what else the file says.

        Args:
            cfg_filename: path of the file.
            data_set: registry name of the data set; by default this tree's DATASET.NAME.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is not a YAML mapping, or a value has the wrong type.
            KeyError: for an unknown key.
        """
        data_set = data_set or self.get("DATASET", {}).get("NAME", "")
        self._merge_tree(_read_for(cfg_filename, data_set), where=f" (in {cfg_filename})")

    def merge_from_other_cfg(self, cfg_other: YacsNode) -> None:
        """Merge another node; errors as in :meth:`merge_from_file`."""
        self._merge_tree(cfg_other, where="")

    def merge_from_list(self, cfg_list: Sequence[Any]) -> None:
        """Merge ``[key, value, key, value, ...]``, e.g. from the command line.

        Args:
            cfg_list: dotted keys and values in turn; text values are read as Python literals
                where they are one.

        Raises:
            ValueError: if a value is missing or has the wrong type.
            KeyError: for an unknown key.
        """
        if len(cfg_list) % 2:
            raise ValueError(
                "config options must come as KEY VALUE pairs, but there is an odd number of words: "
                f"{' '.join(map(str, cfg_list))!r} (an unset shell variable?)"
            )
        found = []
        for full_key, raw in zip(cfg_list[0::2], cfg_list[1::2], strict=True):
            if self.key_is_deprecated(full_key):
                continue
            if self.key_is_renamed(full_key):
                self.raise_key_rename_error(full_key)
            node, key = self._find(full_key, "")
            found.append((node, key, _coerce(raw, node[key], full_key, "", from_text=True)))
        for node, key, value in found:
            node[key] = value

    @classmethod
    def _decode_cfg_value(cls, value: Any) -> Any:
        """Read a text that is a Python literal as one, as yacs does; any other stays a text."""
        try:
            return super()._decode_cfg_value(value)
        except (RecursionError, MemoryError, TypeError):  # of brackets in brackets, {[]}
            return value

    def raise_key_rename_error(self, full_key: str) -> None:
        """Raise a ``ConfigKeyError`` that names the successor of a renamed key."""
        instead = self.__dict__[YacsNode.RENAMED_KEYS][full_key]
        new_key, note = instead if isinstance(instead, tuple) else (instead, "")
        note = f" ({note})" if note else ""
        raise ConfigKeyError(f"there is no {full_key} any more: use {new_key}{note}")

    def _merge_tree(self, tree: dict, where: str) -> None:
        found = []
        for full_key, raw in leaves(tree):
            if self.key_is_deprecated(full_key):
                continue
            if self.key_is_renamed(full_key):
                self.raise_key_rename_error(full_key)
            node, key = self._find(full_key, where)
            if key in node:
                value = _coerce(raw, node[key], full_key, where, from_text=False)
            else:
                value = self._decode_cfg_value(copy.deepcopy(raw))
            found.append((node, key, value))
        for node, key, value in found:
            node[key] = value

    def _find(self, full_key: str, where: str) -> tuple[YacsNode, str]:
        *parents, key = str(full_key).split(".")
        node: Any = self
        for parent in parents:
            if not isinstance(node, YacsNode) or parent not in node:
                raise _unknown_key(self, full_key, where)
            node = node[parent]
        if isinstance(node, YacsNode) and (key in node or node.is_new_allowed()):
            return node, key
        raise _unknown_key(self, full_key, where)


def keys_of_file(path: str, data_set: str = "") -> list[str]:
    """Return the dotted keys that a YAML file and the files it builds on set.

    Args:
        path: path of the file.
        data_set: registry name of the data set whose settings are read with the others.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a YAML mapping.
    """
    return list(values_of_file(path, data_set))


def values_of_file(path: str, data_set: str = "") -> dict[str, Any]:
    """Return dotted key -> value, as a YAML file and the files it builds on set them.

    Args:
        path: path of the file.
        data_set: registry name of the data set whose settings are read with the others.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a YAML mapping.
    """
    return dict(leaves(_read_for(path, data_set)))


def keys_of_data_set(path: str, data_set: str) -> list[str]:
    """Return the dotted keys that a YAML file, or one it builds on, sets for one data set alone.

    Raises:
        FileNotFoundError, ValueError: as for :func:`values_of_file`.
    """
    return [key for key, _ in leaves(_data_sets(_read_yaml(path), path).get(data_set, {}))]


def data_sets_of_file(path: str) -> list[str]:
    """Return the registry names of the data sets that a YAML file has settings for.

    Raises:
        FileNotFoundError, ValueError: as for :func:`values_of_file`.
    """
    return list(_data_sets(_read_yaml(path), path))


def decoded(value: Any) -> Any:
    """Return what a value in a file, on the command line or in a printed config stands for.

    A text that is a Python literal is read as one; a tuple becomes a list.
    """
    value = CfgNode._decode_cfg_value(copy.deepcopy(value))
    return [decoded(item) for item in value] if isinstance(value, (list, tuple)) else value


def declare_from_file(cfg: CfgNode, path: str) -> None:
    """Add the keys of a YAML file to a configuration; a known key gets a new default.

    Args:
        cfg: unfrozen configuration, extended in place.
        path: path of the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a YAML mapping, or a known key has another type.
    """
    _declare(cfg, _read_for(path, ""), "", f" (in {path})")


def _declare(node: YacsNode, tree: dict, prefix: str, where: str) -> None:
    for key, value in tree.items():
        full_key = f"{prefix}{key}"
        if isinstance(value, dict):
            below = node.setdefault(key, CfgNode())
            if not isinstance(below, YacsNode):
                raise ValueError(
                    f"config key {full_key}{where} is a value so far, no group of keys"
                )
            _declare(below, value, f"{full_key}.", where)
        elif key in node:
            node[key] = _coerce(value, node[key], full_key, where, from_text=False)
        else:
            node[key] = CfgNode._decode_cfg_value(value)


@functools.lru_cache(256)
def _parsed(text: str) -> Any:
    """Return what a YAML text says; who plans many runs reads the same files again and again."""
    return parse_yaml(text) or {}


def _read_yaml(path: str, readers: tuple[str, ...] = ()) -> dict:
    if os.path.realpath(path) in readers:
        raise ValueError(f"{path} names itself as its {BASE_KEY}, directly or through others")
    content = read_bytes(path)
    try:
        tree = copy.deepcopy(_parsed(as_text(content)))
    except ValueError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path} must hold 'KEY: value' lines, found a {type(tree).__name__}")
    _check_keys(tree, path)
    base = tree.pop(BASE_KEY, None)
    if base is None:
        return tree
    if not isinstance(base, str) or not base or not base.isprintable():
        raise ValueError(f"{path}: {BASE_KEY} must name the file it builds on, and is {base!r}")
    base_path = os.path.join(os.path.dirname(path), base)
    return _overlay(_read_yaml(base_path, (*readers, os.path.realpath(path))), tree)


def _read_for(path: str, data_set: str) -> dict:
    """Read a YAML file as it is for a data set."""
    tree = _read_yaml(path)
    own = _data_sets(tree, path).get(data_set, {})
    tree.pop(DATA_SETS_KEY, None)
    return _overlay(tree, own)


def _data_sets(tree: dict, path: str) -> dict[str, dict]:
    found = tree.get(DATA_SETS_KEY, {})
    if not isinstance(found, dict) or not all(isinstance(own, dict) for own in found.values()):
        raise ValueError(
            f"{path}: {DATA_SETS_KEY} must hold settings by data set, as in "
            f"{DATA_SETS_KEY}: {{Food101: {{OPTIM: {{MAX_EPOCH: 5}}}}}}"
        )
    return found


def _check_keys(tree: dict, path: str) -> None:
    for key, value in tree.items():
        if not isinstance(key, str):
            raise ValueError(
                f"{path}: the key {key!r:.80} is no text (YAML reads on, off, yes and no as truth "
                "values): put it in quotes"
            )
        if isinstance(value, dict):
            _check_keys(value, path)


def _overlay(below: dict, above: dict) -> dict:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(below.get(key), dict)
        merged[key] = _overlay(below[key], value) if both else value
    return merged


def leaves(tree: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the value of everything below a mapping of mappings."""
    for key, value in tree.items():
        full_key = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{full_key}.")
        else:
            yield full_key, value


def _unknown_key(root: YacsNode, full_key: str, where: str) -> ConfigKeyError:
    known = [key for key, _ in leaves(root)]
    # A right last word in the wrong node says more than a similar spelling.
    last = str(full_key).rpartition(".")[2]
    same_name = [key for key in known if key.rpartition(".")[2] == last]
    hint = nearest(str(full_key), same_name or known, cutoff=0.0)
    return ConfigKeyError(f"unknown config key {full_key}{where}{hint}")


def _coerce(raw: Any, old: Any, full_key: str, where: str, from_text: bool) -> Any:
    value = CfgNode._decode_cfg_value(copy.deepcopy(raw))
    if isinstance(old, YacsNode):
        if isinstance(value, YacsNode) and not value:
            return old
        raise ValueError(
            f"config key {full_key}{where} is a group of keys ({', '.join(old)}) and takes no value"
        )
    number = type(value) in (int, float)
    if isinstance(old, float) and _is_finite(old) and number and not _is_finite(value):
        raise ValueError(f"config key {full_key}{where} is {value!r:.80}: give a finite number")
    if _are_numbers(old) and isinstance(value, (list, tuple)) and value and not _are_numbers(value):
        example = _asked(full_key, list(old), from_text)
        raise ValueError(
            f"config key {full_key}{where} takes a list of finite numbers, not {value!r:.80}: "
            f"write numbers without quotes, as in {example}"
        )
    if value is None or old is None or type(value) is type(old):
        return value
    if isinstance(old, str) and from_text and isinstance(raw, str):
        return raw
    if isinstance(old, float) and type(value) is int:
        return float(value)
    if isinstance(old, (list, tuple)) and isinstance(value, (list, tuple)):
        return type(old)(value)
    if isinstance(old, (list, tuple)):
        asked = [raw if isinstance(raw, str) else value]
        if _are_numbers(old):
            fits = _are_numbers([value]) and type(value) in (int, *map(type, old))
            asked = [value] * len(old) if fits else list(old)
        raise ValueError(
            f"config key {full_key}{where} takes a list (so far {list(old)}), not {value!r} "
            f"({type(value).__name__}): write {_asked(full_key, asked, from_text)}"
        )
    raise ValueError(
        f"config key {full_key}{where} takes {type(old).__name__} values (so far "
        f"{old!r}), not {value!r} ({type(value).__name__})"
    )


def _are_numbers(values: Any) -> bool:
    """Return whether this is a list of finite numbers, of one at least."""
    return (
        isinstance(values, (list, tuple))
        and bool(values)
        and all(type(value) in (int, float) and _is_finite(value) for value in values)
    )


def _is_finite(value: float) -> bool:
    """Return whether a number is neither NaN nor infinite, nor whole and too large for a float."""
    return abs(value) <= sys.float_info.max


def _asked(full_key: str, value: list, from_text: bool) -> str:
    """Return the words or the line that set a list, as they are written."""
    return f'{full_key} "{value}"' if from_text else f"{full_key.rpartition('.')[2]}: {value}"
