"""Commands from another process to a running driver, through a small named actor.

`python -m rlir_ray scale` reads the address of the run's Ray in the run's folder and calls the actor in that Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import ray

from actors.cluster.diagnostics import one_line
from actors.cluster.placement import Handle, as_actor, node_id, on_node, stop_actors
from actors.cluster.start import check_answers
from actors.cluster.waiting import POLL_S
from rlir_ray.run.address import ADDRESS_FILE, RunAddress, write_address


@dataclass(frozen=True, kw_only=True, slots=True)
class ScaleCommand:
    """The command to scale a pool."""

    command_id: int
    pool: str
    """`rollout` or `reward`."""
    number: int
    """The wanted number of actors or replicas."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """The driver's answer to a command."""

    text: str
    is_rejected: bool
    """Whether the driver rejected the command; `text` then says why."""


class ControlActor:
    """The queue of commands and their answers. An async actor, so that waiting takes no thread and no CPU."""

    def __init__(self) -> None:
        self._commands: asyncio.Queue[ScaleCommand] = asyncio.Queue()
        self._answers: list[asyncio.Future[Answer]] = []

    async def scale(self, pool: str, number: int) -> Answer:
        """Queue a command and wait for the driver's answer."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._answers.append(future)
        self._commands.put_nowait(ScaleCommand(command_id=len(self._answers) - 1, pool=pool, number=number))
        return await future

    async def next_command(self) -> ScaleCommand:
        """Wait for the next command."""
        return await self._commands.get()

    async def answer(self, command_id: int, answer: Answer) -> None:
        """Pass the driver's answer to the sender of a command."""
        if not self._answers[command_id].done():
            self._answers[command_id].set_result(answer)


NAMESPACE = "rlir_ray"
# A working driver answers within a second or two; a longer wait means that the driver has ended or is stuck.
ANSWER_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 120.0
POOLS = ("rollout", "reward")


class Control:
    """The driver's side: a thread that executes commands while the training loop runs.

    Args:
        folder: the run's folder; the actor gets the folder's name, and the folder gets the actor's address.
        scale: executes a command; a ValueError rejects the command.

    Raises:
        ValueError: a run with this name already trains in this Ray.
    """

    def __init__(self, folder: Path, scale: Callable[[str, int], str]) -> None:
        self.folder, self.scale = folder, scale
        try:
            self.actor = as_actor(
                ControlActor, name=folder.name, namespace=NAMESPACE, scheduling_strategy=on_node(node_id())
            ).remote()
        except ValueError as error:
            raise ValueError(
                f"run.name must be free in the Ray that it trains in, got {folder.name}, which trains there; choose "
                "another run.name"
            ) from error
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="run control", daemon=True)
        self._thread.start()
        write_address(folder, ray.get_runtime_context().gcs_address, folder.name)

    def _work(self) -> None:
        """Execute commands; block until the next command, and return after `close`."""
        while True:
            ref = self.actor.next_command.remote()
            while not ray.wait([ref], timeout=POLL_S)[0]:
                if self._closing.is_set():
                    return
            try:
                command: ScaleCommand = ray.get(ref, timeout=ANSWER_TIMEOUT_S)
            except ray.exceptions.RayError:
                return  # the actor has died, and its callers have got an error
            self.actor.answer.remote(command.command_id, self._execute(command))

    def _execute(self, command: ScaleCommand) -> Answer:
        try:
            return Answer(text=self.scale(command.pool, command.number), is_rejected=False)
        except Exception as error:
            return Answer(text=one_line(error) if not isinstance(error, ValueError) else str(error), is_rejected=True)

    def close(self) -> None:
        """Stop the thread and the actor; remove the address from the folder."""
        (self.folder / ADDRESS_FILE).unlink(missing_ok=True)
        self._closing.set()
        self._thread.join(STOP_TIMEOUT_S)
        stop_actors([self.actor])


# ---------------------------------------------------------------------------------------------------------------------
# The caller's side


def scale_run(run: RunAddress, pool: str, number: int) -> str:
    """Scale a pool of a running run, from any process on a machine of its cluster.

    Args:
        run: the address of the run, from `find_run`.
        pool: `rollout` or `reward`.
        number: the wanted number of actors or replicas.

    Returns:
        A line with the old and the new number.

    Raises:
        ValueError: the run does not train, or the driver rejects the command.
        TimeoutError: the driver did not answer.
    """
    with _joined(run):
        try:
            actor: Handle = ray.get_actor(run.actor, namespace=NAMESPACE)
            answer: Answer = ray.get(actor.scale.remote(pool, number), timeout=ANSWER_TIMEOUT_S)
        except (ValueError, ray.exceptions.RayActorError) as error:
            raise ValueError(run.not_running) from error
        except ray.exceptions.GetTimeoutError as error:
            raise TimeoutError(
                f"waited {ANSWER_TIMEOUT_S:.0f} s for the driver of {run.actor}; check that it still works and try "
                "again"
            ) from error
    if answer.is_rejected:
        raise ValueError(answer.text)
    return answer.text


@contextlib.contextmanager
def _joined(run: RunAddress) -> Iterator[None]:
    """Join the run's Ray until the context ends; keep this process's own Ray if it is the same one."""
    if ray.is_initialized():
        own = ray.get_runtime_context().gcs_address
        if run.address not in (own, "auto"):
            raise ValueError(
                f"{run.actor} trains in the Ray at {run.address}, and this process is in the one at {own}; scale it "
                "from another process"
            )
        yield
        return
    # Hide RAY_ADDRESS, which may name a dashboard for `ray job submit`: Ray would prefer it to the given address.
    kept = os.environ.pop("RAY_ADDRESS", None)
    try:
        check_answers(run.address)
        ray.init(address=run.address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        raise ValueError(run.not_running) from error
    finally:
        if kept is not None:
            os.environ["RAY_ADDRESS"] = kept
    try:
        yield
    finally:
        ray.shutdown()
