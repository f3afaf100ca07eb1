"""A device on which the CPU computes, and which refuses what a GPU would refuse.

Tensors on it say that they are elsewhere. An operation on tensors of both devices is an error, as
are Python's ways into a tensor's memory. PyTorch's interface for devices written in Python carries
it (``torch.utils.backend_registration``), under the name ``pretend``. Where there is a GPU, that is
used instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

NAME = "pretend"
#: what may have one argument here and one there
BETWEEN_DEVICES = {"aten::copy_"}


class There(Tensor):
    """A tensor on the pretended device; ``here`` holds its numbers."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> There:
        result = Tensor._make_wrapper_subclass(
            cls,
            here.shape,
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=f"{NAME}:0",
            requires_grad=here.requires_grad,
        )
        result.here = here
        return result

    @property
    def data(self) -> Tensor:
        return Tensor.data.__get__(self)

    @data.setter
    def data(self, value: There) -> None:
        Tensor.data.__set__(self, value)
        self.here = value.here

    def tolist(self) -> object:
        return self.here.tolist()

    def __repr__(self) -> str:
        return f"There({self.here})"

    def __reduce_ex__(self, protocol: int):
        # a saved tensor is read back on the CPU, as one of a GPU is with map_location="cpu"
        return self.here.detach().__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})


def compute(func, args, kwargs):
    """Run an operation on the CPU; its results are where its tensors or its ``device`` are."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    name, there = func._schema.name, any(isinstance(tensor, There) for tensor in tensors)
    others = [tensor for tensor in tensors if not isinstance(tensor, There) and tensor.dim()]
    if there and others and name not in BETWEEN_DEVICES:
        shapes = [tuple(tensor.shape) for tensor in others]
        raise RuntimeError(f"{name} has arguments on two devices; on the CPU are those of {shapes}")
    if (device := kwargs.get("device")) is None and not there:
        return func(*args, **kwargs)
    if device is not None:
        there = device.type == NAME
        kwargs = {**kwargs, "device": torch.device("cpu") if there else device}

    def to_here(value):
        return value.here if isinstance(value, There) else value

    def to_there(value):
        if not isinstance(value, Tensor):
            return value
        # what an operation writes to is its result, not a copy
        return next((t for t in tensors if to_here(t) is value), There(value))

    results = func(*tree_map(to_here, args), **tree_map(to_here, kwargs))
    return tree_map(to_there, results) if there else results


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})


class _Backend(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


# before any backward pass: PyTorch's engine starts its threads for the devices that it then knows
if not torch.cuda.is_available():
    _setup_privateuseone_for_python_backend(NAME, _Backend())


@contextmanager
def another_device() -> Iterator[torch.device]:
    """Within the block there is a device beside the CPU."""
    if torch.cuda.is_available():
        yield torch.device("cuda", 0)
        return
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    # in place a parameter would keep its numbers and change its device only
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with _Mode():
            yield torch.device(NAME, 0)
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrite)
