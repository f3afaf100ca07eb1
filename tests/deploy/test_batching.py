"""The queue in front of a model: what goes together, what is lost, what is turned away."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from deploy.batching import Batcher, Overloaded


class Model:
    """Gives the mean of every picture, and keeps the sizes of the batches."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        self.sizes.append(len(pictures))
        if (pictures < 0).any():
            raise ValueError("a negative picture")
        return pictures.reshape(len(pictures), -1).mean(axis=1, keepdims=True)


def with_batcher(scenario, **limits) -> list[int]:
    """Run a scenario; returns the sizes of the batches."""
    model = Model()

    async def run() -> None:
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(model, executor, **limits)
            worker = asyncio.create_task(batcher.run())
            await asyncio.wait_for(scenario(batcher), 30)
            worker.cancel()

    asyncio.run(run())
    return model.sizes


def picture(value: float) -> np.ndarray:
    return np.full((3, 2, 2), value, np.float32)


def test_every_picture_gets_its_own_row():
    async def ask(batcher, first: int) -> None:
        rows = await asyncio.gather(*batcher.submit([picture(first), picture(first + 0.5)]))
        assert [row.tolist() for row in rows] == [[first], [first + 0.5]]

    async def scenario(batcher) -> None:
        await asyncio.gather(*(ask(batcher, number) for number in range(25)))

    sizes = with_batcher(scenario, max_batch=8, max_wait=0.05)
    assert sum(sizes) == 50
    assert max(sizes) <= 8
    assert len(sizes) <= 10, "pictures that wait go together"


def test_a_picture_alone_waits_no_longer_than_it_has_to():
    async def scenario(batcher) -> None:
        started = asyncio.get_running_loop().time()
        await asyncio.gather(*batcher.submit([picture(1)] * 4))
        assert asyncio.get_running_loop().time() - started < 5
        started = asyncio.get_running_loop().time()
        await asyncio.gather(*batcher.submit([picture(1)]))
        assert asyncio.get_running_loop().time() - started >= 0.2

    assert with_batcher(scenario, max_batch=4, max_wait=0.2) == [4, 1]


def test_an_error_reaches_those_who_wait_and_nobody_else():
    async def scenario(batcher) -> None:
        with pytest.raises(ValueError, match="negative"):
            await asyncio.gather(*batcher.submit([picture(-1)]))
        (row,) = await asyncio.gather(*batcher.submit([picture(2)]))
        assert row == 2

    assert with_batcher(scenario) == [1, 1]


def test_too_many_are_turned_away_and_none_of_them_waits():
    async def scenario(batcher) -> None:
        futures = batcher.submit([picture(1)] * 2)
        with pytest.raises(Overloaded):
            batcher.submit([picture(2)] * 2)
        futures += batcher.submit([picture(3)])
        assert [float(row[0]) for row in await asyncio.gather(*futures)] == [1, 1, 3]

    assert with_batcher(scenario, max_waiting=3) == [3]


def test_those_who_left_are_not_computed():
    async def scenario(batcher) -> None:
        gone, stays = batcher.submit([picture(1), picture(2)])
        gone.cancel()
        assert await stays == 2

    assert with_batcher(scenario) == [1]
