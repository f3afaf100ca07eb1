"""A whole training step as one CUDA graph: captured once, then repeated by a single launch.

A graph repeats kernels on the memory addresses of the capture and runs no Python. Therefore inputs
are copied into buffers, learning rates are read from the device (``DeviceRates``), and trained
tensors must stay where they are in memory. As in PyTorch's notes on CUDA graphs ("Whole-network
capture"), some steps run on a side stream, then follow the capture on that stream and the replays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim import Optimizer

from dassl.optim import DeviceRates

#: steps on the side stream in front of a capture; PyTorch's notes have as many
WARM_UP = 3


class CudaCapture:
    """Capture of kernels on a CUDA device.

    Args:
        device: the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)

    @contextmanager
    def warm_up(self) -> Iterator[None]:
        """Run the code in this context on the stream of the capture.

        It makes libraries create their handles and workspaces for the stream before the capture.
        """
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            yield
        current.wait_stream(self.stream)

    def record(self, function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Capture what a function launches, without executing it.

        Returns:
            a function that replays it, and the tensor that every replay writes anew.
        """
        graph = torch.cuda.CUDAGraph()
        # the default mode fails when the data loader's thread pins memory during the capture
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            result = function()
        return graph.replay, result


class StepGraph:
    """Training step that is captured as a graph after its first runs, and replayed from then on.

    The first ``WARM_UP`` steps run one operation at a time and train like any other. So do steps
    whose inputs differ in shape from the first ones, and all steps without a CUDA device. When a
    tensor that the graph works on was replaced, the step is captured anew.

    Args:
        step: maps input tensors on the device to values for the log, one-element tensors by name.
            It updates parameters with ``optimizer``, draws no random numbers and reads nothing on
            the host.
        optimizer: optimiser that makes the updates.
        state: returns the tensors, besides the optimiser's own, that must stay where they are.
        constants: returns the objects whose tensors the step reads and never writes. The graph
            keeps them alive, so that nothing else can take their place in memory.
        capture: how to capture; ``None`` runs all steps one operation at a time.

    Raises:
        ValueError: the steps of the optimiser cannot be captured.
    """

    def __init__(
        self,
        step: Callable[..., dict[str, Tensor]],
        optimizer: Optimizer,
        state: Callable[[], Iterable[Tensor]],
        constants: Callable[[], Sequence[object]],
        capture: CudaCapture | None,
    ) -> None:
        self.step, self.capture = step, capture
        self.state, self.constants = state, constants
        self.rates = DeviceRates(optimizer)
        self._forget()

    def _forget(self) -> None:
        #: whether the next step on inputs of the usual shape is a replay
        self.captured = False
        self._n_warm = 0
        self._shapes: list[tuple[torch.Size, torch.dtype]] | None = None
        # release the graph before the memory that it works on
        self._replay: Callable[[], None] | None = None
        self._buffers: list[Tensor] = []
        self._constants: list[object] = []

    def __call__(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Take one step; inputs and outputs are those of ``step``, outputs without gradients."""
        with self.rates.on_device():
            if self.captured and self._replaced():
                self._forget()
            shapes = [(tensor.shape, tensor.dtype) for tensor in inputs]
            if self.capture is None or self._shapes not in (None, shapes):
                return self.step(*inputs)
            self._shapes = shapes
            if self._n_warm < WARM_UP:
                self._n_warm += 1
                with self.capture.warm_up():
                    values = self._values_of(inputs)
            else:
                if not self.captured:
                    self._record(self.capture, inputs)
                for buffer, tensor in zip(self._buffers, inputs, strict=True):
                    buffer.copy_(tensor)
                assert self._replay is not None  # recorded by now
                self._replay()
                # a copy, since the next replay overwrites them before the log reads them
                values = self._values.clone()
            return dict(zip(self._names, values.unbind(), strict=True))

    def _values_of(self, inputs: Iterable[Tensor]) -> Tensor:
        """Run a step and stack its values for the log, so that a replay takes a single copy."""
        summary = self.step(*inputs)
        self._names = list(summary)
        return torch.stack([value.reshape(()) for value in summary.values()])

    def _record(self, capture: CudaCapture, inputs: Iterable[Tensor]) -> None:
        self._buffers = [tensor.clone() for tensor in inputs]
        # have the capture allocate gradients in the graph's own memory, where replays write them
        self.rates.optimizer.zero_grad(set_to_none=True)
        self._replay, self._values = capture.record(lambda: self._values_of(self._buffers))
        self.captured, self._captured_places = True, self._places()
        self._constants = list(self.constants())

    def _replaced(self) -> bool:
        pairs = zip(self._constants, self.constants(), strict=True)
        return self._places() != self._captured_places or any(a is not b for a, b in pairs)

    def _places(self) -> list[int]:
        """Return the addresses of the tensors that the graph reads and updates."""
        own = (value for entry in self.rates.optimizer.state.values() for value in entry.values())
        kept = (*self.state(), *(value for value in own if isinstance(value, Tensor)))
        return [tensor.data_ptr() for tensor in kept]
