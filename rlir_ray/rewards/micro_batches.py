"""Micro-batches: process waiting items together, as many as fit, in the order of their arrival.

For servers that answer one item a call. Knows nothing of rewards and of Ray.

Ray 2.60's `@serve.batch(batch_size_fn=...)` does not do this. It closes a batch after its wait, and only then waits for
the batch before it: of 40 items that came every 25 ms to work of 200 ms a batch it made batches of one, where this file
makes 6 of up to 8. An item above the bound gets an error instead of a batch of its own, one that does not fit goes to
the end of the queue, and a size function that raises ends the queue for good.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Answer = TypeVar("Answer")

# Items come in bursts: while no batch runs, the first item of a burst waits this long for the others.
GATHER_S = 0.01


@dataclass(eq=False, slots=True)
class _Waiting(Generic[Item, Result]):
    item: Item
    size: int
    kind: Hashable
    future: asyncio.Future[Result]


class MicroBatches(Generic[Item, Result]):
    """Collect items while the batch before runs, so that waiting costs no time under load.

    Args:
        work: a batch to its results, in order; called in a thread, one batch at a time. An exception among the results
            is raised for its item alone, one that is raised for all of them.
        size: of an item.
        max_size: of a batch; a larger item is processed alone.
        kind: only items of one kind share a batch.
    """

    def __init__(
        self,
        work: Callable[[list[Item]], Sequence[Result | Exception]],
        *,
        size: Callable[[Item], int],
        max_size: int,
        kind: Callable[[Item], Hashable],
    ) -> None:
        self.work, self.size, self.max_size, self.kind = work, size, max_size, kind
        self._waiting: deque[_Waiting[Item, Result]] = deque()
        self._thread = ThreadPoolExecutor(1)
        self._worker: asyncio.Task[None] | None = None

    async def submit(self, item: Item, is_alone: bool = False) -> Result:
        """Return the item's result; raise what its work raised.

        Args:
            is_alone: no other item is on its way: do not wait for a burst.
        """
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        # Here, so that an item which has no size fails alone.
        self._waiting.append(_Waiting(item, self.size(item), self.kind(item), future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work_off(0.0 if is_alone else GATHER_S))
        return await future

    async def run(self, call: Callable[[], Answer]) -> Answer:
        """Run another call in the same thread, between two batches."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    async def _work_off(self, gather_s: float) -> None:
        """Process batches until no item waits; the next item starts this again."""
        await asyncio.sleep(gather_s)
        while batch := self._next_batch():
            items = [each.item for each in batch]
            results: Sequence[Result | Exception]
            try:
                results = await self.run(partial(self.work, items))
            except Exception as error:
                results = [error] * len(items)
            for each, result in zip(batch, results, strict=True):
                if each.future.done():
                    continue
                if isinstance(result, Exception):
                    each.future.set_exception(result)
                else:
                    each.future.set_result(result)

    def _next_batch(self) -> list[_Waiting[Item, Result]]:
        """Take the oldest item and the items of its kind that fit beside it; the others keep their places."""
        batch: list[_Waiting[Item, Result]] = []
        left, total = deque[_Waiting[Item, Result]](), 0
        for each in self._waiting:
            if each.future.done():
                continue  # its caller is gone
            if not batch or (total + each.size <= self.max_size and each.kind == batch[0].kind):
                batch.append(each)
                total += each.size
            else:
                left.append(each)
        self._waiting = left
        return batch
