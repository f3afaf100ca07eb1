"""Users' files of weights: where the weights are in them, and why a file cannot be read."""

from __future__ import annotations

import io
import pickletools
import warnings
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from .files import require_ordinary

#: keys under which training code stores a state dict, tried in this order
STATE_KEYS = ("state_dict", "model_state_dict", "model")

# What torch.save itself needs for tensors and dicts of them, and torch.jit.save for modules.
_PLAIN = (
    *("collections.OrderedDict", "__builtin__.", "builtins."),
    *("torch._utils.", "torch.storage.", "torch.serialization.", "torch._tensor."),
    *("__torch__.", "torch.jit._pickle."),
)
_MOST_NAMED = 3
# how much larger than its file the content may be: code and notes beside weights are compressed
_MOST_INFLATED, _SMALL_PARTS = 2, 1 << 26


def state_dict_in(content: Any, tensor: type) -> Mapping[str, Any]:
    """Return the state dict that a file holds, by itself or under one of :data:`STATE_KEYS`.

    Args:
        content: what was read.
        tensor: class of the weights.

    Raises:
        ValueError: there is none, or :func:`check_weights` refuses it; says what there is.
    """

    def holds_weights(value: Any) -> bool:
        if not isinstance(value, Mapping) or not value:
            return False
        return all(isinstance(weight, tensor) for weight in value.values())

    if not isinstance(content, Mapping):
        raise ValueError(f"no state dict, but a {type(content).__name__}")
    for key in STATE_KEYS:
        if holds_weights(content.get(key)):
            return check_weights(content[key], tensor)
    if holds_weights(content):
        return check_weights(content, tensor)
    raise ValueError(
        "no state dict (names to tensors), by itself or under one of the keys "
        f"{', '.join(STATE_KEYS)}; the file's keys are {_some(content) or 'none'}"
    )


def check_weights(weights: Any, tensor: type) -> Mapping[str, Any]:
    """Return a state dict whose tensors are such as training leaves them.

    Args:
        weights: what should be one.
        tensor: class of the weights.

    Raises:
        ValueError: it is no mapping of names to tensors, or one of these is sparse, quantised,
            complex, without values, larger in memory than in its file, or not finite.
    """
    if not isinstance(weights, Mapping):
        raise ValueError(f"its state dict is a {type(weights).__name__}")
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, tensor):
            raise ValueError(f"{name!r:.80} in its state dict is a {type(value).__name__}")
        if problem := _oddity(value):
            raise ValueError(f"the weights {name!r:.80} are {problem}")
    return weights


def _oddity(value: Any) -> str:
    if str(value.layout) != "torch.strided" or value.is_quantized or value.is_complex():
        return "sparse, quantised or complex, which those of no model here are"
    if value.device.type == "meta":
        return "without values"
    # one stored value may stand for any number of them
    if value.untyped_storage().nbytes() < value.numel() * value.element_size():
        return f"of shape {tuple(value.shape)}, but fewer values are stored"
    return (
        "" if bool(value.isfinite().all()) else "not all finite numbers: train or fetch them anew"
    )


def check_container(path: str | Path) -> None:
    """Check that a file is an ordinary one, and an archive about as large as what it holds.

    ``torch.save`` and ``torch.jit.save`` compress no weights; an archive may be made so that its
    parts fill any memory.

    Raises:
        ValueError: the parts of the archive are much larger than the file.
        OSError: the file is none, or cannot be read.
    """
    require_ordinary(path)
    size, inside = Path(path).stat().st_size, 0
    # a damaged archive makes Python's reader raise nearly anything, and no archive is small
    with suppress(Exception), zipfile.ZipFile(path) as archive:
        inside = sum(part.file_size for part in archive.infolist())
    if inside > _MOST_INFLATED * size + _SMALL_PARTS:
        raise ValueError(
            f"{path} holds {inside:,} bytes in {size:,}, which weights are never compressed to"
        )


def require_intact(path: str | Path) -> None:
    """Check the parts of an archive by their checksums, which ``torch.load`` does not compare.

    Args:
        path: a file that :func:`check_container` lets pass; one that is no archive passes.

    Raises:
        ValueError: a part is not what was written.
    """
    # of an archive whose directory is damaged the reader of tensors says so
    part = None
    with suppress(Exception), zipfile.ZipFile(path) as archive:
        part = archive.testzip()
    if part is not None:
        raise ValueError(
            f"{path} is damaged: its part {part!r} is not what was written (wrong checksum): copy "
            "it again from where it came from"
        )


def why_unreadable(path: str | Path) -> str:
    """Say why a file cannot be read as weights, and what to do; nothing in it is run.

    Args:
        path: a file that a reader of tensors has refused.
    """
    path = Path(path)
    with open(path, "rb") as file:
        start = file.read(200).lstrip()
    size, again = f"({path.stat().st_size} bytes)", "copy it again from where it came from"
    if not start:
        return f"it is empty {size}: {again}"
    if start.startswith(b"version https://git-lfs"):
        return f"it is Git LFS's pointer to the file, not the file {size}: git lfs pull gets it"
    if start.startswith(b"<"):
        return f"it is a web page, not the file behind it {size}: download that one"
    if classes := pickled_classes(path):
        return (
            f"it holds pickled objects ({_some(classes)}), not weights alone, and reading those "
            "could run code. With the code that made it, write the weights to another file: "
            "torch.save(model.state_dict(), FILE)"
        )
    return f"it is truncated, damaged, or not of torch.save or safetensors {size}: {again}"


def pickled_classes(path: str | Path) -> list[str]:
    """Return the names of what a pickled file needs besides tensors, without running it.

    Args:
        path: of ``torch.save`` or ``pickle.dump``; in any other file nothing is found.
    """
    found: dict[str, None] = {}
    # a damaged file makes Python's scanner raise nearly anything, and warn
    with suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    if name.rpartition("/")[2] == "data.pkl":
                        _collect(io.BytesIO(archive.read(name)), found)
        else:
            with open(path, "rb") as file:
                # of torch.save before 1.6: magic number, version, system, content
                while file.peek(1)[:1] == b"\x80":
                    _collect(file, found)
    return sorted(found, key=lambda name: name.startswith("torch."))


def _collect(file: BinaryIO, found: dict[str, None]) -> None:
    """Add the classes and functions that one pickle names, but for those of plain tensors."""
    memo: list[str] = []
    words = ["", ""]  # the last two strings
    argument: Any
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "MEMOIZE":
            memo.append(words[-1])
        elif "GET" in opcode.name:
            words = [words[-1], memo[argument] if argument < len(memo) else ""]
        elif isinstance(argument, str) and opcode.name != "GLOBAL":
            words = [words[-1], argument]
        elif opcode.name in ("GLOBAL", "STACK_GLOBAL"):
            name = argument.replace(" ", ".") if argument else ".".join(words)
            if not name.startswith(_PLAIN) and not name.endswith("Storage"):
                found[name] = None


def _some(names: Any) -> str:
    names = [str(name) for name in names]
    return ", ".join(names[:_MOST_NAMED]) + (", ..." if len(names) > _MOST_NAMED else "")
