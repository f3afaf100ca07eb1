"""A whole training step as one CUDA graph: captured once, then repeated by a single launch.

A graph repeats kernels on the memory that they had when they were captured and runs no Python. So
inputs are copied into buffers, learning rates are read from the device (``DeviceRates``), and what
the step trains must stay where it is. The order of events is that of PyTorch's notes on CUDA graphs
("Whole-network capture"): steps on a side stream, capture on the same stream, replays.
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
    """How kernels are captured on a CUDA device.

    Args:
        device: the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)

    @contextmanager
    def warm_up(self) -> Iterator[None]:
        """What runs in the block runs on the stream of the capture.

        Libraries keep handles and workspaces for each stream, which a capture must find made.
        """
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            yield
        current.wait_stream(self.stream)

    def record(self, function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Capture what a function launches, without executing it.

        Returns:
            what repeats it, and the tensor that every repetition writes anew.
        """
        graph = torch.cuda.CUDAGraph()
        # the data loader's thread may pin memory meanwhile, which the default mode takes as an
        # error of the capture
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            result = function()
        return graph.replay, result


class StepGraph:
    """Repeats a training step as a graph once it has run some times.

    The first ``WARM_UP`` steps run one operation at a time and train like any other. So do steps on
    inputs of another shape than the first ones had, and all steps without a device that captures.
    When something that the graph works on was replaced, it is captured anew.

    Args:
        step: from input tensors on the device to what is logged, tensors with one element by name.
            Updates parameters with ``optimizer``; draws no random numbers and reads nothing on the
            host.
        optimizer: makes the updates.
        state: gives the tensors besides the optimiser's own that must stay where they are.
        constants: gives the objects whose tensors the step reads and never writes. They are kept as
            long as the graph, so that nothing else can take their place in memory.
        capture: how to capture; ``None`` runs all steps one operation at a time.

    Raises:
        ValueError: an optimiser whose steps cannot be captured.
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
        # the graph goes before the memory that it works on
        self._replay: Callable[[], None] | None = None
        self._buffers: list[Tensor] = []
        self._constants: list[object] = []

    def __call__(self, *inputs: Tensor) -> dict[str, Tensor]:
        """One step; inputs and outputs are those of ``step``, outputs without gradients."""
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
                # the next replay writes over them, and they are read when a log line is due
                values = self._values.clone()
            return dict(zip(self._names, values.unbind(), strict=True))

    def _values_of(self, inputs: Iterable[Tensor]) -> Tensor:
        """Run a step; what is logged of it as one tensor, which takes one copy per replay."""
        summary = self.step(*inputs)
        self._names = list(summary)
        return torch.stack([value.reshape(()) for value in summary.values()])

    def _record(self, capture: CudaCapture, inputs: Iterable[Tensor]) -> None:
        self._buffers = [tensor.clone() for tensor in inputs]
        # gradients that the capture makes lie in the graph's own memory, where replays rewrite them
        self.rates.optimizer.zero_grad(set_to_none=True)
        self._replay, self._values = capture.record(lambda: self._values_of(self._buffers))
        self.captured, self._captured_places = True, self._places()
        self._constants = list(self.constants())

    def _replaced(self) -> bool:
        pairs = zip(self._constants, self.constants(), strict=True)
        return self._places() != self._captured_places or any(a is not b for a, b in pairs)

    def _places(self) -> list[int]:
        """Addresses that the graph reads and writes between steps."""
        own = (value for entry in self.rates.optimizer.state.values() for value in entry.values())
        kept = (*self.state(), *(value for value in own if isinstance(value, Tensor)))
        return [tensor.data_ptr() for tensor in kept]
