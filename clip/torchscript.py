"""The weights in a TorchScript archive, as OpenAI publishes CLIP's, read without its code.

An archive of ``torch.jit.save`` is a zip file. ``data.pkl`` pickles a tree of modules, whose
tensors lie in ``data/``; the classes of the modules are in ``code/``, and name there which of their
attributes are parameters and buffers. ``torch.jit.load`` would compile the code, and a damaged or
made-up archive can end the process in there; for the weights no code is needed.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import torch

#: far above those of any CLIP: modules, levels of them, characters of a name, bytes of ``data.pkl``
_MOST_MODULES, _MOST_LEVELS, _MOST_CHARACTERS, _MOST_BYTES = 20_000, 50, 1000, 1 << 26
_STORAGES = {
    f"{name}Storage": dtype
    for name, dtype in {
        "Double": torch.float64,
        "Float": torch.float32,
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Long": torch.int64,
        "Int": torch.int32,
        "Short": torch.int16,
        "Char": torch.int8,
        "Byte": torch.uint8,
        "Bool": torch.bool,
    }.items()
}
_CLASS = re.compile(
    r"^class (?P<name>\w+)\(Module\):\n"
    r"(?:  __parameters__ = \[(?P<parameters>.*)\]\n)?"
    r"(?:  __buffers__ = \[(?P<buffers>.*)\]\n)?",
    re.MULTILINE,
)
_QUOTED = re.compile(r'"([^"]*)"')


def is_torchscript(path: Path) -> bool:
    """Return whether a file is an archive of ``torch.jit.save``."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(PurePosixPath(name).name == "constants.pkl" for name in archive.namelist())


def load_weights(path: Path) -> OrderedDict[str, torch.Tensor]:
    """Return the state dict of a TorchScript archive, on the CPU.

    It is that of ``torch.jit.load(path).state_dict()``: of each module the parameters, then the
    buffers, then those of its modules.

    Raises:
        Exception: nearly any, where the archive is damaged, or holds something other than modules
            and their values.
    """
    with zipfile.ZipFile(path) as archive:
        return _Archive(archive).state_dict()


@dataclass(frozen=True, eq=False)
class _Name:
    """A class or function that the pickle names; nothing of it is looked up."""

    qualified: str


@dataclass(frozen=True, eq=False)
class _Module:
    """A module of the archive: its class and its attributes."""

    qualified: str
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Stored:
    """A tensor of the archive: where its values are, and how they are laid out."""

    record: str
    dtype: torch.dtype
    count: int
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Archive:
    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.zip = archive
        found = [name for name in archive.namelist() if re.fullmatch(r"[^/]*/data\.pkl", name)]
        if len(found) != 1:
            raise ValueError(f"{len(found)} of data.pkl in the archive")
        self.top = found[0].removesuffix("data.pkl")
        self.storages: dict[tuple[str, torch.dtype], torch.Tensor] = {}
        self.names_in = cache(self._names_in)

    def state_dict(self) -> OrderedDict[str, torch.Tensor]:
        if self.zip.getinfo(f"{self.top}data.pkl").file_size > _MOST_BYTES:
            raise ValueError("data.pkl is too large")
        weights: OrderedDict[str, torch.Tensor] = OrderedDict()
        # the modules that are still to be looked at, the next one last
        left, seen = [("", _unpickled(self.zip.read(f"{self.top}data.pkl")))], 0
        while left:
            prefix, module = left.pop()
            seen += 1
            if seen + len(left) > _MOST_MODULES or prefix.count(".") > _MOST_LEVELS:
                raise ValueError("too many modules")
            if len(prefix) > _MOST_CHARACTERS:
                raise ValueError("too long a name")
            values = module.values
            for names in self.names_in(module.qualified):
                for name in values:
                    if name in names and isinstance(values[name], _Stored):
                        weights[prefix + name] = self.tensor(values[name])
            for name, value in reversed(values.items()):
                if isinstance(value, _Module):
                    left.append((f"{prefix}{name}.", value))
        return weights

    def _names_in(self, qualified: str) -> tuple[set[str], set[str]]:
        """Return the parameters and the buffers of a class of modules."""
        path, _, name = qualified.rpartition(".")
        code = self.zip.read(f"{self.top}code/{path.replace('.', '/')}.py").decode()
        for found in _CLASS.finditer(code):
            if found["name"] == name:
                parameters, buffers = (_QUOTED.findall(found[k] or "") for k in (2, 3))
                return set(parameters), set(buffers)
        raise ValueError(f"no class {qualified} in the archive")

    def tensor(self, stored: _Stored) -> torch.Tensor:
        key = (stored.record, stored.dtype)
        if key not in self.storages:
            content = bytearray(self.zip.read(f"{self.top}data/{stored.record}"))
            if len(content) != stored.count * stored.dtype.itemsize:
                raise ValueError(f"{len(content)} bytes for {stored.count} {stored.dtype}")
            self.storages[key] = (
                torch.frombuffer(content, dtype=stored.dtype)
                if content
                else torch.empty(0, dtype=stored.dtype)
            )
        return self.storages[key].as_strided(stored.size, stored.stride, stored.offset)


_VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
_TEXTS = {"BINUNICODE", "SHORT_BINSTRING", "BINSTRING"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _unpickled(data: bytes) -> Any:
    """Return what ``data.pkl`` holds, with :class:`_Module` and :class:`_Stored` for its objects.

    Only what TorchScript's own pickler writes is understood, and nothing is called.
    """
    stack: list[Any] = []
    above: list[list[Any]] = []  # the stacks below each mark
    memo: dict[int, Any] = {}
    argument: Any
    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        if name in _VALUES or name in _TEXTS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "GLOBAL":
            stack.append(_Name(argument.replace(" ", ".")))
        elif name in ("EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT"):
            stack.append({"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}[name]())
        elif name in _TUPLES:
            stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
        elif name == "MARK":
            above.append(stack)
            stack = []
        elif name in ("TUPLE", "APPENDS", "SETITEMS"):
            values, stack = stack, above.pop()
            if name == "TUPLE":
                stack.append(tuple(values))
            elif name == "APPENDS":
                stack[-1].extend(values)
            else:
                _set_items(stack[-1], values)
        elif name == "APPEND":
            value = stack.pop()
            stack[-1].append(value)
        elif name == "SETITEM":
            values = [stack.pop(), stack.pop()][::-1]
            _set_items(stack[-1], values)
        elif name == "BINPERSID":
            stack.append(("storage of", *stack.pop()[1:]))
        elif name == "NEWOBJ":
            _, made = stack.pop(), stack.pop()
            stack.append(_Module(made.qualified))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_called(function.qualified, arguments))
        elif name == "BUILD":
            state = stack.pop()
            stack[-1].values.update(state)
        elif name == "STOP":
            return stack.pop()
        elif name != "PROTO":
            raise ValueError(f"TorchScript pickles nothing by {name}")
    raise ValueError("data.pkl has no end")


def _set_items(target: dict[Any, Any], values: list[Any]) -> None:
    for key, value in zip(values[::2], values[1::2], strict=True):
        if not isinstance(key, tuple):  # no attribute is, and no weights are in other dicts
            target[key] = value


def _called(function: str, arguments: Any) -> Any:
    """Return what stands for the result of a function that the pickle names."""
    if function == "torch._utils._rebuild_tensor_v2":
        (_, kind, record, _, count), offset, size, stride = arguments[:4]
        return _Stored(
            record, _STORAGES[kind.qualified.removeprefix("torch.")], count, offset, size, stride
        )
    if function.startswith(("torch.", "collections.")):  # lists with types, sizes, devices
        return None
    raise ValueError(f"TorchScript does not pickle {function}")
