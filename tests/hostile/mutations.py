"""Changes of valid files: of their bytes, of the values in them, of what lies at their place."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import pickle
import random
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Random = random.Random

WEB_PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n"
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"
#: characters and texts that break what was written with plain words in mind
TEXTS = (
    "",
    " ",
    "\t",
    "{}",
    "{0.__class__}",
    "{",
    "%s%n",
    "\0",
    "a\0b",
    "a\nb",
    "=> result\n* accuracy: 100.00%",
    "\x1b[31mred\x1b[0m\x1b]0;title\x07",
    "\u202etxt.exe",
    "\u0645\u0631\u062d\u0628\u0627",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467\U0001f600",
    "Z\u0351\u036b\u0343\u036a" * 20,
    "\ufeffcat",
    "\ud800",
    "\udcff",
    "\u2028",
    "../../outside",
    "/etc/passwd",
    "~",
    "C:\\con",
    "$(touch outside)",
    "; touch outside",
    "&lt;b&gt;",
    "_",
    "nan",
    "None",
    "1e999",
    "\u0661\u0662",
    "\u00b2",
    "x" * 300,
    "x" * 70_000,
    "word " * 20_000,
    "\u00e9" * 5000,
)
#: stand for values that the writers of JSON and YAML do not write: see ``as_json``, ``as_yaml``
DEEP, LONG_NUMBER, NAN, INFINITE = "@deep@", "@long number@", "@nan@", "@infinite@"
RAW = {
    DEEP: "[" * 20_000 + "]" * 20_000,
    LONG_NUMBER: "9" * 5000,
    NAN: "NaN",
    INFINITE: "-Infinity",
}
#: values in YAML only: tags, dates, references to themselves, and what multiplies when written out
YAML_VALUES = (
    '!!python/object/apply:os.system ["touch {canary}"]',
    "!!python/object/apply:builtins.eval [\"open({canary!r}, 'w')\"]",
    "!!python/name:os.system",
    "!!python/module:os",
    "!!binary x",
    "!!binary aGVsbG8=",
    "2001-99-99",
    "2001-12-14",
    "!!timestamp x",
    "!!int x",
    "!!float x",
    "!!bool x",
    "!!omap [a]",
    "!!pairs [{{a: 1}}]",
    "!!set {{a, b}}",
    "!<tag:evil> x",
    "&r [*r]",
    "&r {{a: *r}}",
    "{{? [a] : b}}",
    "{{<<: x}}",
    "{{<<: {{a: 1}}}}",
    "0x" + "f" * 6000,
    "1:60:60",
    ".nan",
    "-.inf",
    "1e999",
    "[&a [x,x,x,x,x,x,x,x], "
    + ", ".join(
        f"&{b} [{','.join([f'*{a}'] * 8)}]"
        for a, b in zip("abcdefghijklmno", "bcdefghijklmnop", strict=True)
    )
    + "]",
    "[" * 3000 + "]" * 3000,
)


class Payload:
    """Pickles as a call that creates the file at ``canary`` when it is unpickled."""

    def __init__(self, canary: Path, how: int = 0) -> None:
        self.canary, self.how = str(canary), how

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (
            (os.system, (f"touch {self.canary}",)),
            (open, (self.canary, "w")),
            (eval, (f"open({self.canary!r}, 'w')",)),
            (exec, (f"open({self.canary!r}, 'w')",)),
        )[self.how % 4]

    def __deepcopy__(self, memo: object) -> Payload:
        return self  # or copying would run it


def odd_text(rng: Random) -> str:
    """Return a text that was not expected."""
    if rng.random() < 0.2:
        points = [rng.choice((0x20, 0x300, 0x600, 0x4E00, 0x1F600, 0xD800)) for _ in range(8)]
        return "".join(chr(point + rng.randrange(96)) for point in points)
    return rng.choice(TEXTS)


def odd_value(rng: Random) -> Any:
    """Return a value in types of JSON that was not expected."""
    kind = rng.randrange(8)
    if kind < 2:
        return odd_text(rng)
    if kind == 2:
        return rng.choice((0, -1, 1, 2, 255, 10**6, 10**9, 2**31, 2**63, 2**64, -(10**18), 10**400))
    if kind == 3:
        return rng.choice((0.0, -0.5, 0.5, 1e-320, 1e308, 1.5, float(2**53)))
    if kind == 4:
        return rng.choice((None, True, False))
    if kind == 5:
        return rng.choice((DEEP, LONG_NUMBER, NAN, INFINITE))
    return rng.choice(
        ([], {}, [[]], {"": None}, ["a"], [None], {"a": {"b": []}}, [1, "a", {}], [0] * 3000)
    )


Path_ = tuple[Any, ...]


def _places(tree: Any, above: Path_ = ()) -> list[Path_]:
    """List the paths of all values below a tree of dicts and lists, the tree itself included."""
    found = [above]
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            found += _places(value, (*above, key))
    elif isinstance(tree, list | tuple):
        for index, value in enumerate(tree[:50]):
            found += _places(value, (*above, index))
    return found


def changed_tree(
    rng: Random, tree: Any, odd: Callable[[Random], Any] = odd_value, changes: int | None = None
) -> Any:
    """Return a tree of dicts and lists with a few values replaced, removed, added or repeated."""
    tree = copy.deepcopy(tree)
    for _ in range(changes or rng.choice((1, 1, 1, 2, 4))):
        places = _places(tree)
        # values near the root matter most, and are few
        depth = rng.randrange(max(map(len, places)) + 1)
        place = rng.choice([p for p in places if len(p) == min(depth, len(p))] or places)
        place = rng.choice([p for p in places if len(p) == depth] or [place])
        if not place:
            if rng.random() < 0.2:
                tree = odd(rng)
            continue
        tree = _changed_at(rng, tree, place, odd)
    return tree


def _changed_at(rng: Random, tree: Any, place: Path_, odd: Callable[[Random], Any]) -> Any:
    parents = [tree]
    for step in place[:-1]:
        parents.append(parents[-1][step])
    for depth, parent in enumerate(parents):  # a tuple cannot be changed
        if isinstance(parent, tuple):
            if depth == 0:
                return list(tree)
            parents[depth - 1][place[depth - 1]] = list(parent)
            return tree
    parent, key = parents[-1], place[-1]
    action = rng.randrange(6)
    if action < 3:
        parent[key] = odd(rng)
    elif action == 3:
        del parent[key]
    elif action == 4 and isinstance(parent, list):
        chosen = rng.choice(parent)
        with contextlib.suppress(NotImplementedError):  # of a sparse tensor there is no copy
            chosen = copy.deepcopy(chosen)
        parent.insert(rng.randrange(len(parent) + 1), chosen)
    elif action == 4:
        parent[odd_text(rng)] = parent.pop(key)
    elif isinstance(parent, list):
        rng.shuffle(parent)
    else:
        other = rng.choice(list(parent))
        parent[key], parent[other] = parent[other], parent[key]
    return tree


def with_raw_values(text: str, rng: Random) -> str:
    """Put the values into a text that ``RAW`` has names for, and now and then repeat a key."""
    for name, raw in RAW.items():
        text = text.replace(f'"{name}"', raw).replace(f"'{name}'", raw)
    if rng.random() < 0.05 and (match := re.search(r'"[^"]*": ', text)):
        text = text.replace(match[0], match[0] + "0, " + match[0], 1)
    return text


def as_json(rng: Random, tree: Any) -> bytes:
    """Write a tree that may hold anything as JSON."""
    import json

    text = json.dumps(tree, default=str, ensure_ascii=rng.random() < 0.8)
    return with_raw_values(text, rng).encode("utf-8", "surrogatepass")


def changed_safetensors(rng: Random, valid: bytes) -> bytes:
    """Change the header of a safetensors file, which is JSON, and keep its length right."""
    size = int.from_bytes(valid[:8], "little")
    header = as_json(rng, changed_tree(rng, json.loads(valid[8 : 8 + size])))
    if rng.random() < 0.9:
        size = len(header)
    return size.to_bytes(8, "little") + header + valid[8 + int.from_bytes(valid[:8], "little") :]


def as_yaml(rng: Random, tree: Any, canary: Path) -> bytes:
    """Write a tree that may hold anything as YAML, now and then with values of YAML alone."""
    import yaml

    text = with_raw_values(yaml.safe_dump(tree, allow_unicode=True, sort_keys=False), rng)
    if rng.random() < 0.4:
        lines = text.split("\n")
        number = rng.randrange(len(lines))
        value = rng.choice(YAML_VALUES).format(canary=str(canary))
        head, colon, _ = lines[number].partition(": ")
        lines[number] = f"{head}{colon or ': '}{value}"
        text = "\n".join(lines)
    return text.encode("utf-8", "surrogatepass")


def changed_bytes(rng: Random, data: bytes) -> bytes:
    """Return bytes of a file with one to three changes."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        data = rng.choice(_BYTE_CHANGES)(rng, data)
    return data


def _at(rng: Random, data: bytes) -> int:
    # the start and the end of a file say what it is
    near = rng.choice((len(data), min(len(data), 64)))
    place = rng.randrange(near + 1)
    return place if rng.random() < 0.7 else len(data) - place


def _truncate(rng: Random, data: bytes) -> bytes:
    return data[: _at(rng, data)]


def _flip(rng: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 4, 40))):
        if changed:
            changed[min(_at(rng, data), len(changed) - 1)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _overwrite(rng: Random, data: bytes) -> bytes:
    place, size = _at(rng, data), rng.choice((1, 4, 8, 64))
    filling = rng.choice((b"\0" * size, b"\xff" * size, rng.randbytes(size)))
    return data[:place] + filling + data[place + size :]


def _insert(rng: Random, data: bytes) -> bytes:
    place = _at(rng, data)
    filling = rng.choice(
        (b"\0", b"\r", b"\n\n", b"\xef\xbb\xbf", b"\xff\xfe", b'"', b"\x80", b"  ")
    )
    return data[:place] + filling * rng.choice((1, 1, 100)) + data[place:]


def _cut(rng: Random, data: bytes) -> bytes:
    place = _at(rng, data)
    return data[:place] + data[place + rng.choice((1, 2, 16, 500)) :]


def _repeat(rng: Random, data: bytes) -> bytes:
    place = _at(rng, data)
    piece = data[place : place + rng.choice((8, 100, 2000))]
    return data[:place] + piece * rng.choice((2, 2, 30)) + data[place:]


def _larger_number(rng: Random, data: bytes) -> bytes:
    found = list(re.finditer(rb"\d+", data))
    if not found:
        return data
    match = rng.choice(found)
    number = rng.choice((b"99999999999", b"-1", b"0", b"1e999", b"4294967296", b"0.5", b"9" * 5000))
    return data[: match.start()] + number + data[match.end() :]


def _recode(rng: Random, data: bytes) -> bytes:
    text = data.decode("latin-1")
    return text.encode(rng.choice(("utf-16", "utf-16-le", "utf-32", "utf-8")))


def _binary_number(rng: Random, data: bytes) -> bytes:
    """Overwrite what may be a size, an offset or a count by an extreme number."""
    size = rng.choice((2, 4, 8))
    number = rng.choice((0, 1, (1 << (8 * size - 1)) - 1, 1 << (8 * size - 1), (1 << 8 * size) - 1))
    place = _at(rng, data)
    return (
        data[:place] + number.to_bytes(size, rng.choice(("little", "big"))) + data[place + size :]
    )


_BYTE_CHANGES = (
    _truncate,
    _flip,
    _overwrite,
    _insert,
    _cut,
    _repeat,
    _larger_number,
    _recode,
    _binary_number,
)


def changed_lines(rng: Random, valid: bytes) -> bytes:
    """Change some lines of a text file."""
    lines = valid.decode("utf-8", "replace").split("\n")
    for _ in range(rng.choice((1, 1, 3))):
        number = rng.randrange(len(lines))
        words = lines[number].split(" ")
        place = rng.randrange(len(words))
        action = rng.randrange(6)
        if action < 2:
            words[place] = odd_text(rng)
        elif action == 2:
            words[place] = str(rng.choice((0, -1, 1.5, 10**6, "9" * 5000, "٣", "²", "1_0")))
        elif action == 3:
            del words[place]
        elif action == 4:
            words = words * 2
        else:
            words[place] = rng.choice(("../../beside.txt", "/etc/passwd", "/", "\\", "#", "a/b/c"))
        lines[number] = " ".join(words)
        if rng.random() < 0.2:
            lines.insert(number, lines[rng.randrange(len(lines))])
    ending = rng.choice(("\n", "\n", "\r\n", "\r"))
    return ending.join(lines).encode("utf-8", "surrogatepass")


def foreign_file(rng: Random, canary: Path) -> bytes:
    """Return the content of a file of another kind, as it comes under a wrong name."""
    kind = rng.randrange(9)
    if kind == 0:
        return b""
    if kind == 1:
        return rng.choice((WEB_PAGE, LFS_POINTER))
    if kind == 2:
        return pickle.dumps(Payload(canary, rng.randrange(4)), protocol=rng.randrange(5))
    if kind == 3:
        return rng.randbytes(rng.choice((1, 10, 1000)))
    if kind == 4:
        return b"PK\x05\x06" + b"\0" * 18  # an empty zip archive
    if kind == 5:
        return b"\x89PNG\r\n\x1a\n" + rng.randbytes(50)
    if kind == 6:
        return rng.choice((b"null", b"[]", b"{}", b"0", b'""', b"true", b"\n", b"\0" * 100))
    if kind == 7:
        return rng.choice((b"[", b'{"a":', b"(")) * 100_000
    return bytes(odd_text(rng), "utf-8", "surrogatepass") * rng.choice((1, 50))


def put_else(rng: Random, path: Path) -> str:
    """Put something else in the place of a file: a folder, a broken link, a pipe, ..."""
    kind = rng.choice(("folder", "no file", "loop", "pipe", "endless", "huge"))
    if kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "pipe":  # opening it waits for somebody to write into it
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    elif kind == "huge":
        with open(path, "wb") as file:
            file.truncate(1 << 32)  # takes no place on the disk
    return kind


def write_hostile(
    rng: Random, path: Path, valid: bytes, change: Callable[[], bytes], canary: Path
) -> None:
    """Write a hostile file: mostly by ``change``, else of changed bytes or something else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    chance = rng.random()
    if chance < 0.05:
        put_else(rng, path)
        return
    if chance < 0.12:
        data = foreign_file(rng, canary)
    elif chance < 0.35:
        data = changed_bytes(rng, valid)
    else:
        data = change()
        if rng.random() < 0.1:
            data = changed_bytes(rng, data)
    path.write_bytes(data)
