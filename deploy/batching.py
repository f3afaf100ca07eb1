"""Pictures of several requests go through a model together."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

import numpy as np


class Overloaded(Exception):
    """More pictures wait than are let in."""


class Batcher:
    """Queue in front of a model.

    A batch starts when ``max_batch`` pictures wait, or ``max_wait`` after the first of them came;
    while a batch is computed, the next one gathers.

    Args:
        compute: maps pictures ``(B, 3, height, width)`` to probabilities ``(B, C)``.
        executor: thread that computes.
        max_batch: pictures that go through the model together.
        max_wait: seconds that the first picture of a batch waits for others.
        max_waiting: pictures that may wait.
    """

    def __init__(
        self,
        compute: Callable[[np.ndarray], np.ndarray],
        executor: Executor,
        max_batch: int = 16,
        max_wait: float = 0.005,
        max_waiting: int = 256,
    ) -> None:
        self.compute, self.executor = compute, executor
        self.max_batch, self.max_wait = max_batch, max_wait
        self.max_waiting = max_waiting
        self._waiting: deque[tuple[np.ndarray, asyncio.Future]] = deque()
        self._came = asyncio.Event()

    def submit(self, pictures: Sequence[np.ndarray]) -> list[asyncio.Future]:
        """Let pictures wait; the futures give their probabilities ``(C,)``.

        Raises:
            Overloaded: there is no room for all of them; none waits then.
        """
        if len(self._waiting) + len(pictures) > self.max_waiting:
            raise Overloaded
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in pictures]
        self._waiting.extend(zip(pictures, futures, strict=True))
        self._came.set()
        return futures

    async def run(self) -> None:
        """Compute batch after batch, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._gather()
            count = min(self.max_batch, len(self._waiting))
            batch = [self._waiting.popleft() for _ in range(count)]
            # those who asked may be gone by now
            batch = [entry for entry in batch if not entry[1].cancelled()]
            if not batch:
                continue
            pictures = np.stack([picture for picture, _ in batch])
            try:
                rows = await loop.run_in_executor(self.executor, self.compute, pictures)
            except Exception as error:  # of the model; every one who waits for it hears of it
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), row in zip(batch, rows, strict=True):
                if not future.done():
                    future.set_result(row)

    async def _gather(self) -> None:
        """Return when a batch is to start."""
        while not self._waiting:
            self._came.clear()
            await self._came.wait()
        loop = asyncio.get_running_loop()
        until = loop.time() + self.max_wait
        while len(self._waiting) < self.max_batch and (left := until - loop.time()) > 0:
            self._came.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._came.wait(), left)
