"""The small named actor through which another process gives a running driver a command. No torch here."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class ScaleCommand:
    command_id: int
    pool: str
    number: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    text: str
    is_refusal: bool
    """The command was refused: the text says why."""


class RunControl:
    """Commands in, answers out. An async actor, so that waiting takes no thread and no CPU."""

    def __init__(self) -> None:
        self._commands: asyncio.Queue[ScaleCommand] = asyncio.Queue()
        self._answers: list[asyncio.Future[Answer]] = []

    async def scale(self, pool: str, number: int) -> Answer:
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._answers.append(future)
        self._commands.put_nowait(ScaleCommand(command_id=len(self._answers) - 1, pool=pool, number=number))
        return await future

    async def next_command(self) -> ScaleCommand:
        return await self._commands.get()

    async def answer(self, command_id: int, answer: Answer) -> None:
        if not self._answers[command_id].done():
            self._answers[command_id].set_result(answer)
