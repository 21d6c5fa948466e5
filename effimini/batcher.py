"""Items of many requests, scored in batches.

Input: items, from coroutines of one event loop. Output: the stars of each. Guarantees: the model runs in one thread,
one batch at a time; items are scored in the order in which they came, at most `ITEMS_PER_BATCH` at once; an error in a
batch reaches those whose items were in it and nobody else; no more items wait than there are places.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from effimini.predict import ITEMS_PER_BATCH, Item

Stars = npt.NDArray[np.float32]


class Full(Exception):  # noqa: N818 -- an answer, not an error of the program
    """There are not enough places."""


class _Waiting(NamedTuple):
    """An item that waits to be scored."""

    item: Item
    arrived: float  # in the event loop's seconds
    stars: asyncio.Future[float]


class Batcher:
    """Collects items and scores them.

    Args:
        score: returns the stars, float32 [B], of at most `ITEMS_PER_BATCH` items; called in a thread.
        places: number of items that may wait.
        wait: seconds that an item waits for others to fill its batch.

    Attributes:
        items: number of items scored.
        batches: number of batches scored.
        taken: number of places that are taken.
    """

    def __init__(self, score: Callable[[Sequence[Item]], Stars], places: int, wait: float) -> None:
        self._score, self._places, self._wait = score, places, wait
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue()
        self.items = self.batches = self.taken = 0

    @contextmanager
    def reserve(self, items: int) -> Iterator[None]:
        """Take `items` places, before work is put into the items.

        Raises:
            Full: there are not so many.
        """
        if self.taken + items > self._places:
            raise Full
        self.taken += items
        try:
            yield
        finally:
            self.taken -= items

    async def score(self, items: Sequence[Item]) -> Stars:
        """Return the stars of items, float32 [N]."""
        loop = asyncio.get_running_loop()
        waiting = [_Waiting(item, loop.time(), loop.create_future()) for item in items]
        for one in waiting:
            self._queue.put_nowait(one)
        return np.array(await asyncio.gather(*(one.stars for one in waiting)), np.float32)

    async def run(self) -> None:
        """Score batches until cancelled."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, "score") as thread:
            while True:
                batch = await self._next_batch()
                scored = loop.run_in_executor(thread, self._score, [one.item for one in batch])
                await asyncio.wait([scored])
                self.items, self.batches = self.items + len(batch), self.batches + 1
                error = scored.exception()
                for row, one in enumerate(batch):
                    if one.stars.done():  # its request was cancelled
                        continue
                    if error is None:
                        one.stars.set_result(float(scored.result()[row]))
                    else:
                        one.stars.set_exception(error)

    async def _next_batch(self) -> list[_Waiting]:
        """Wait for an item, and for more until the batch is full or its first item has waited long enough.

        Items that came while the previous batch was computed are there without waiting.
        """
        batch = [await self._queue.get()]
        try:
            async with asyncio.timeout_at(batch[0].arrived + self._wait):
                while len(batch) < ITEMS_PER_BATCH:
                    batch.append(await self._queue.get())
        except TimeoutError:
            pass
        return batch
