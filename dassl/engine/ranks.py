"""Training on several processes: gradients as those of one process on the whole batch.

Every process has the whole model, reads its part of every batch, and steps its own optimiser with
the mean gradient over all images. What is learned has a few thousand to a few million values, so
one sum of one vector at the end of each backward pass does; PyTorch's DistributedDataParallel
would have to wrap a module whose ``forward`` is the step, and averages over processes, not images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dassl.config import optional
from dassl.utils import SettingError, ranks
from dassl.utils.random_state import get_random_state, set_random_state

__all__ = ["check_can_share", "check_still_together", "shared_training"]


def check_can_share(trainer: type, cfg: Any) -> None:
    """Check that several processes can share the training of a run.

    Args:
        trainer: class of the trainer.
        cfg: the config of the run.

    Raises:
        SettingError: they cannot; names what is in the way.
    """
    n_ranks = ranks.started()
    if n_ranks == 1:
        return
    if not trainer.splits_batches:  # type: ignore[attr-defined]  # a trainer's
        raise SettingError(
            f"{trainer.__name__} does not say that its loss is a mean over the images of a batch, "
            f"so {n_ranks} processes cannot share one: run it without torchrun, or, if it is, set "
            "splits_batches = True in its class (docs/clusters.md)"
        )
    if cfg.OPTIM.get("CUDA_GRAPH"):
        raise SettingError(
            f"OPTIM.CUDA_GRAPH captures the step of one process, and torchrun started {n_ranks}: "
            "set it to False, or run without torchrun"
        )
    if cfg.SEED < 0:
        raise SettingError(
            f"{n_ranks} processes that share a run need its seed, but SEED is {cfg.SEED}: set one "
            "of 0 or more (--seed)"
        )
    if not optional(cfg, "INPUT.SEEDED_VIEWS"):
        raise SettingError(
            f"{n_ranks} processes that share a run need INPUT.SEEDED_VIEWS True, so that an "
            "image's view does not depend on the process that reads it"
        )


@contextmanager
def shared_training(trainer: Any) -> Iterator[None]:
    """Train in this context as one of several processes.

    All start with the main process's models and random states. Whenever a backward pass ends, the
    gradients of what the registered optimisers change become the mean over all images of the
    batch: before they are unscaled, clipped or used, wherever that is done.

    Args:
        trainer: with its models registered, and resumed if it is to go on.

    Raises:
        RankError: the processes begin at different epochs.
    """
    if not ranks.several():
        yield
        return
    ranks.check_agreement({"first epoch": getattr(trainer, "start_epoch", 0)})
    ranks.broadcast(_tensors(trainer))
    set_random_state(ranks.from_main(get_random_state))
    reducer = _Reducer(_trained(trainer))
    try:
        yield
    finally:
        reducer.remove()


def check_still_together(trainer: Any) -> None:
    """Check at the start of an epoch that the processes still are at one.

    Buffers, which a trainer may have computed by itself, become those of the main process.

    Raises:
        RankError: they have other parameters or random states, as after a step that draws random
            numbers.
    """
    if not ranks.several():
        return
    for model in trainer._models.values():
        ranks.broadcast(model.buffers())
    state = get_random_state()
    numpy_keys, *numpy_rest = state["numpy"]
    ranks.check_agreement(
        {
            "parameters": _digest(_tensors(trainer)),
            "random numbers": (
                state["python"],
                numpy_rest,
                _digest([numpy_keys, state["torch"], *state["cuda"]]),
            ),
        }
    )


def _tensors(trainer: Any) -> list[Tensor]:
    return [tensor for model in trainer._models.values() for tensor in model.state_dict().values()]


def _trained(trainer: Any) -> list[Tensor]:
    optimisers = [optimiser for optimiser in trainer._optims.values() if optimiser is not None]
    groups = [group for optimiser in optimisers for group in optimiser.param_groups]
    found = {id(p): p for group in groups for p in group["params"] if p.requires_grad}
    return list(found.values())


def _digest(tensors: list[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        data = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
        digest.update(data.numpy().data)
    return digest.hexdigest()


class _Reducer:
    """Takes the mean of gradients over all processes whenever a backward pass ends.

    Args:
        parameters: what is trained, in the same order in all processes.
    """

    def __init__(self, parameters: list[Tensor]) -> None:
        self.parameters, self.is_due = parameters, False
        self.hooks = [
            parameter.register_post_accumulate_grad_hook(self._wait_for_the_end)
            for parameter in parameters
        ]

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()

    def _wait_for_the_end(self, _: Tensor) -> None:
        if not self.is_due:
            self.is_due = True
            # as PyTorch's own data parallel modules do; it has no public name
            torch.autograd.Variable._execution_engine.queue_callback(self._reduce)

    def _reduce(self) -> None:
        self.is_due = False
        ranks.reduce_gradients(self.parameters)
