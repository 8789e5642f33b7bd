"""Micro-batches: process waiting items together, as many as fit, in the order of their arrival.

This is for servers with one item per call. Independent of rewards and of Ray.

Ray 2.60's `@serve.batch(batch_size_fn=...)` does not fit. It closes a batch after a fixed wait, and only then waits for
the batch before it. In a test, 40 items arrived every 25 ms, and a batch took 200 ms: Serve made batches of one item,
this file made 6 batches of up to 8 items. Serve also rejects an item above the bound instead of processing it alone,
moves an item that does not fit to the end of the queue, and stops forever if the size function raises an error.
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

# Items arrive in bursts: while no batch runs, the first item of a burst waits this long for the other items.
GATHER_S = 0.01


@dataclass(eq=False, slots=True)
class _Waiting(Generic[Item, Result]):
    """An item that waits for its result."""

    item: Item
    size: int
    kind: Hashable
    future: asyncio.Future[Result]


class MicroBatches(Generic[Item, Result]):
    """A queue that collects items while a batch runs, so that collecting takes no extra time under load.

    Args:
        work: takes a batch and returns the result of each item, in order; called in a thread, one batch at a time. An
            exception among the results is raised for its item only; an exception that `work` raises is raised for all
            items of the batch.
        size: returns the size of an item.
        max_size: largest sum of sizes of a batch; a larger item is processed alone.
        kind: returns the kind of an item; only items of one kind share a batch.
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
        """Wait for an item's result and return it, or raise the exception of its work.

        Args:
            item: the item.
            is_alone: whether no other item is about to arrive, so that the item need not wait for a burst.
        """
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        # Compute the size here, so that an error affects this item only.
        self._waiting.append(_Waiting(item, self.size(item), self.kind(item), future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._process(0.0 if is_alone else GATHER_S))
        return await future

    async def run(self, call: Callable[[], Answer]) -> Answer:
        """Run another call in the same thread, between two batches."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    async def _process(self, gather_s: float) -> None:
        """Process batches until no item waits; the next item starts a new worker."""
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
        """Take the oldest item and the items of its kind that fit into the batch; keep the order of the other items."""
        batch: list[_Waiting[Item, Result]] = []
        left, total = deque[_Waiting[Item, Result]](), 0
        for each in self._waiting:
            if each.future.done():
                continue  # the caller was cancelled
            if not batch or (total + each.size <= self.max_size and each.kind == batch[0].kind):
                batch.append(each)
                total += each.size
            else:
                left.append(each)
        self._waiting = left
        return batch
