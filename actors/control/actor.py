"""The small named actor through which another process gives a running driver an order. No torch here."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class ScaleOrder:
    order_id: int
    pool: str
    number: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    text: str
    is_refusal: bool
    """The order was a bad one: the text says why."""


class RunControl:
    """Orders in, answers out. An async actor, so that waiting takes no thread and no CPU."""

    def __init__(self) -> None:
        self._orders: asyncio.Queue[ScaleOrder] = asyncio.Queue()
        self._answers: list[asyncio.Future[Answer]] = []

    async def scale(self, pool: str, number: int) -> Answer:
        future = asyncio.get_running_loop().create_future()
        self._answers.append(future)
        self._orders.put_nowait(ScaleOrder(order_id=len(self._answers) - 1, pool=pool, number=number))
        return await future

    async def next_order(self) -> ScaleOrder:
        return await self._orders.get()

    async def answer(self, order_id: int, answer: Answer) -> None:
        if not self._answers[order_id].done():
            self._answers[order_id].set_result(answer)
