"""What a CUDA graph does to a training step, on the CPU: captured once, repeated without Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

#: operations whose result or its size depends on values, and those that draw random numbers
UNREPEATABLE = {
    torch.Tag.data_dependent_output,
    torch.Tag.dynamic_output_shape,
    torch.Tag.nondeterministic_seeded,
}
#: how Python takes values out of a tensor without an operation on it
TO_HOST = (Tensor.cpu, Tensor.tolist, Tensor.numpy, Tensor.__array__)


def tensors_of(values: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


class _Operations(TorchDispatchMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        if name in ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"):
            breaks = any(index.dtype == torch.bool for index in tensors_of(args[1]))
        elif "scaled_dot_product" in name:
            breaks = kwargs is not None and kwargs.get("dropout_p", 0.0) > 0.0
        else:
            breaks = bool(UNREPEATABLE & set(func.tags))
        # torch.tensor makes its result of host data, even where it is given a device
        breaks |= name in ("aten::lift_fresh", "aten::lift_fresh_copy")
        if breaks:
            self.found.append(name)
        return result


class _Calls(TorchFunctionMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        # Seen here and not as an operation: torch.tensor makes a tensor of host data without one.
        # One without elements, as checkpoints of PyTorch 2.11 make it, has nothing to repeat.
        made = any(tensor.is_meta and tensor.numel() for tensor in tensors_of(result))
        if func in TO_HOST or made:
            self.found.append(func.__name__)
        return result


@contextmanager
def capture_breakers() -> Iterator[list[str]]:
    """Names of what is done in the block that a CUDA graph cannot repeat.

    These are operations that read values on the host, that draw random numbers, and that make
    tensors on the host: the meta device stands for the host here, so that a tensor made without a
    device is told from one made on the device of the model, the CPU.
    """
    found: list[str] = []
    with torch.device("meta"), _Calls(found), _Operations(found):
        yield found


class _Tape(TorchDispatchMode):
    """Keeps operations with the very tensors that they had, and what these held before."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple] = []
        self.before: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for index, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = args[index] if index < len(args) else kwargs.get(argument.name)
                for tensor in tensors_of(value):
                    place = (tensor.data_ptr(), tensor.numel())
                    self.before.setdefault(place, (tensor, tensor.clone()))
        result = func(*args, **kwargs)
        self.operations.append((func, args, kwargs, result))
        return result

    @torch.no_grad()
    def undo(self) -> None:
        for tensor, value in reversed(self.before.values()):
            tensor.copy_(value)

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, result in self.operations:
            again = func(*args, **kwargs)
            if not func._schema.is_mutable:
                for old, new in zip(tensors_of(result), tensors_of(again), strict=True):
                    if old.data_ptr() != new.data_ptr():
                        old.copy_(new)


class TapeCapture:
    """Stands for ``CudaCapture``: a step that is captured changes nothing, replays run no Python.

    Args:
        host_constants: let ``torch.tensor`` pass, which some of PyTorch's optimisers use for step
            counts on the CPU and not for those on a GPU.

    Attributes:
        records: how often something was captured.
        replays: how often something was replayed.
    """

    def __init__(self, host_constants: bool = False) -> None:
        self.host_constants = host_constants
        self.records = self.replays = 0

    def warm_up(self):
        return nullcontext()

    def record(self, function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        tape = _Tape()
        with tape, capture_breakers() as found:
            result = function()
        allowed = {"aten::lift_fresh"} if self.host_constants else set()
        assert not set(found) - allowed, found
        tape.undo()
        self.records += 1

        def replay() -> None:
            self.replays += 1
            tape.replay()

        return replay, result
