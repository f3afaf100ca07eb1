"""The processes of one run that ``torchrun`` starts: who they are, and what they tell each other.

A process alone is the main one; for it every function here does nothing but what is said of it.
"""

from __future__ import annotations

import atexit
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from support.words import counted

from .logger import QUIET, LabelledStream, Logger

__all__ = [
    "RankError",
    "ShareOfStep",
    "barrier",
    "broadcast",
    "check_agreement",
    "from_main",
    "in_order",
    "is_main",
    "join",
    "largest",
    "main_first",
    "mean_over_images",
    "portable",
    "rank",
    "reduce_gradients",
    "several",
    "silence_others",
    "started",
    "sum_over_ranks",
    "world_size",
]

Value = TypeVar("Value")

#: what ``torchrun`` sets for each process
VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
#: longest wait for another process; the longest work that one does alone is filling an image cache
PATIENCE = timedelta(hours=1)


class RankError(RuntimeError):
    """The processes of a run cannot go on together."""


class ShareOfStep:
    """How many images of the present batch are this process's own."""

    #: 1 in each process where the batch is not split: the means are then plain ones
    n_images = 1
    #: whether no process has a stand-in
    all_have_images = True


def started() -> int:
    """Return the number of processes that ``torchrun`` started for this run; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in VARIABLES) else 1


def several() -> bool:
    """Return whether this process has joined others."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def world_size() -> int:
    """Return the number of processes that have joined."""
    return dist.get_world_size() if several() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if several() else 0


def is_main() -> bool:
    """Return whether this process is the one that writes and prints."""
    return rank() == 0


def silence_others() -> None:
    """Have all processes but the main one print nothing but errors, with their number in front."""
    if started() == 1 or os.environ["RANK"] == "0":
        return
    warnings.simplefilter("ignore")
    if not isinstance(sys.stderr, LabelledStream):
        sys.stderr = LabelledStream(sys.stderr, f"[rank {os.environ['RANK']}] ")
    # open until the process ends
    sys.stdout = Logger(console=open(os.devnull, "w", encoding="utf-8"), level=QUIET)


def join(use_cuda: bool) -> None:
    """Join the processes that ``torchrun`` started, if it did.

    They talk through gloo, and about what is on a GPU through NCCL. Each takes the GPU of its
    number on the machine.

    Args:
        use_cuda: whether the run uses GPUs, where there are some.

    Raises:
        RankError: a machine has fewer GPUs than processes, or the processes do not meet.
    """
    if started() == 1 or several():
        return
    backend = "gloo"
    if use_cuda and torch.cuda.is_available():
        n_processes, n_devices = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        if n_processes > n_devices:
            raise RankError(
                f"torchrun started {n_processes} processes here, but this machine shows "
                f"{counted(n_devices, 'GPU')}: use --nproc_per_node {n_devices}, or "
                "USE_CUDA False"
            )
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    with _talking():
        dist.init_process_group(backend, timeout=PATIENCE)
    atexit.register(dist.destroy_process_group)


@contextmanager
def _talking() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # PyTorch's, whose classes for it are new
        raise RankError(
            "another process of this run has ended or does not answer; what it printed says why "
            f"({' '.join(str(error).split())[:200]})"
        ) from error


def barrier() -> None:
    """Wait for all processes."""
    if several():
        sum_over_ranks(torch.zeros(1))


@contextmanager
def main_first() -> Iterator[None]:
    """Let the main process do what is in this context first, and the others then."""
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()


def sum_over_ranks(values: Tensor) -> Tensor:
    """Add a tensor up over the processes, in place; all get the same sum."""
    if several():
        with _talking():
            dist.all_reduce(values)
    return values


def from_main(compute: Callable[[], Value]) -> Value:
    """Return in every process what ``compute`` returns in the main one, which alone calls it."""
    if not several():
        return compute()
    box: list[Any] = [compute() if is_main() else None]
    with _talking():
        dist.broadcast_object_list(box, src=0)
    return box[0]


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Write the main process's values into the tensors of all processes."""
    if several():
        with _talking():
            for tensor in tensors:
                dist.broadcast(tensor.data, src=0)


def in_order(items: Iterable[Value], total: int) -> Iterator[Value]:
    """Bring the items of all processes to the main one, in turn: one of each, as they were dealt.

    Args:
        items: those of this process, any that ``pickle`` can pass on, no None among them; number
            ``k`` of all is number ``k // world_size()`` of process ``k % world_size()``.
        total: number of the items of all processes.

    Yields:
        All items in the main process, and none in the others.
    """
    if not several():
        yield from items
        return
    own, n_ranks = iter(items), world_size()
    for _ in range(0, total, n_ranks):
        item = next(own, None)
        gathered: list[Any] = [None] * n_ranks
        with _talking():
            dist.gather_object(item, gathered if is_main() else None, dst=0)
        yield from (each for each in gathered if each is not None)
    next(own, None)  # ends it, and a progress bar with it


def portable(value: Any) -> Any:
    """Return a tensor, or a tuple or list with tensors, as another process can take it."""
    if not several():
        return value
    if isinstance(value, (tuple, list)):
        return type(value)(portable(each) for each in value)
    return value.cpu() if isinstance(value, Tensor) else value


def mean_over_images(values: Mapping[str, float | Tensor]) -> Mapping[str, float | Tensor]:
    """Average what each process computed on its images of the present batch, over all images.

    Args:
        values: numbers or one-element tensors, by names that are the same in all processes.
    """
    if not several() or not values:
        return values
    tensors = [value for value in values.values() if isinstance(value, Tensor)]
    device = tensors[0].device if tensors else torch.device("cpu")
    own = torch.stack(
        [torch.as_tensor(v).detach().float().reshape(()).to(device) for v in values.values()]
    )
    means, _ = _mean_and_sum(own, own[:0])
    return dict(zip(values, means.unbind(), strict=True))


def _mean_and_sum(values: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of values over the images of the present batch, and the sum of counts.

    Args:
        values, counts: vectors of this process, as long in all of them.
    """
    n_images = ShareOfStep.n_images
    # a process without images has computed on a stand-in, whatever came of it
    weighted = values * n_images if n_images else torch.zeros_like(values)
    total = sum_over_ranks(torch.cat([weighted, counts, weighted.new_full((1,), n_images)]))
    return total[: len(values)] / total[-1], total[len(values) : -1]


def reduce_gradients(parameters: Sequence[Tensor]) -> None:
    """Replace gradients by their mean over the images of all processes; to do so twice is harmless.

    Args:
        parameters: the same in all processes. One that has no gradient in any of them keeps none.
    """
    gradients = [parameter.grad for parameter in parameters]
    has_gradient = [gradient is not None for gradient in gradients]
    flat = torch.cat(
        [
            (torch.zeros_like(parameter) if gradient is None else gradient).reshape(-1).float()
            for parameter, gradient in zip(parameters, gradients, strict=True)
        ]
    )
    means, counts = _mean_and_sum(flat, torch.tensor(has_gradient, device=flat.device).float())
    parts = means.split([parameter.numel() for parameter in parameters])
    for index, (parameter, mean) in enumerate(zip(parameters, parts, strict=True)):
        if parameter.grad is None:
            if not counts[index]:
                continue
            parameter.grad = torch.empty_like(parameter)
        parameter.grad.copy_(mean.view_as(parameter))


def check_agreement(own: Mapping[str, object]) -> None:
    """Check that all processes have the same of everything.

    Args:
        own: name in the error -> what this process has, any that ``pickle`` can pass on.

    Raises:
        RankError: they have not.
    """
    if not several():
        return
    of_all: list[Any] = [None] * world_size()
    with _talking():
        dist.all_gather_object(of_all, dict(own))
    if other := [name for name in own if any(each[name] != of_all[0][name] for each in of_all)]:
        raise RankError(
            f"the {world_size()} processes of this run do not have the same {' and '.join(other)}: "
            "a step that draws random numbers, or changes parameters in a way of its own, cannot "
            "be shared; run it without torchrun"
        )


def largest(number: int) -> int:
    """Return in every process the largest of the numbers that they have."""
    if not several():
        return number
    values = torch.tensor([number])
    with _talking():
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return int(values)
