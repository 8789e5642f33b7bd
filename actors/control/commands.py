"""Reach a running driver from another process, through a small named actor that passes commands on.

`python -m rlir_ray scale` reads in the run's folder in which Ray the run trains, and calls the actor there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import ray

from actors.cluster.errors import one_line
from actors.cluster.lifecycle import Handle, as_actor, stop_actors
from actors.cluster.placement import node_id, on_node
from actors.cluster.start import check_answers
from actors.cluster.waiting import POLL_S
from actors.control.actor import Answer, RunControl, ScaleCommand
from rlir_ray.run.address import ADDRESS_FILE, RunAddress, write_address

NAMESPACE = "rlir_ray"
# A driver answers between two polls; a longer wait means that it is gone or stuck.
ANSWER_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 120.0
POOLS = ("rollout", "reward")


class Control:
    """The driver's side: execute commands in a thread of its own, while the loop goes on.

    Args:
        folder: of the run; the actor has its name, and the folder gets the actor's address.
        scale: executes a command; a ValueError refuses the command.

    Raises:
        ValueError: a run of this name trains in this Ray already.
    """

    def __init__(self, folder: Path, scale: Callable[[str, int], str]) -> None:
        self.folder, self.scale = folder, scale
        try:
            self.actor = as_actor(
                RunControl, name=folder.name, namespace=NAMESPACE, scheduling_strategy=on_node(node_id())
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
        """Block until a command or `close`; execute commands."""
        while True:
            ref = self.actor.next_command.remote()
            while not ray.wait([ref], timeout=POLL_S)[0]:
                if self._closing.is_set():
                    return
            try:
                command: ScaleCommand = ray.get(ref, timeout=ANSWER_TIMEOUT_S)
            except ray.exceptions.RayError:
                return  # the actor is gone, and with it everybody who waits for an answer
            self.actor.answer.remote(command.command_id, self._execute(command))

    def _execute(self, command: ScaleCommand) -> Answer:
        try:
            return Answer(text=self.scale(command.pool, command.number), is_refusal=False)
        except Exception as error:
            return Answer(text=one_line(error) if not isinstance(error, ValueError) else str(error), is_refusal=True)

    def close(self) -> None:
        """Take no more commands; remove the address from the folder."""
        (self.folder / ADDRESS_FILE).unlink(missing_ok=True)
        self._closing.set()
        self._thread.join(STOP_TIMEOUT_S)
        stop_actors([self.actor])


# ---------------------------------------------------------------------------------------------------------------------
# The user's side


def scale_run(run: RunAddress, pool: str, number: int) -> str:
    """Scale a pool of a run that trains, from any process on a machine of its cluster.

    Args:
        run: its address, from `find_run`.
        pool: `rollout` or `reward`.
        number: actors or replicas.

    Returns:
        What the pool will be, in a line.

    Raises:
        ValueError: the run does not train, or the driver refuses.
        TimeoutError: the driver did not answer.
    """
    with _joined(run):
        try:
            actor: Handle = ray.get_actor(run.actor, namespace=NAMESPACE)
            answer: Answer = ray.get(actor.scale.remote(pool, number), timeout=ANSWER_TIMEOUT_S)
        except (ValueError, ray.exceptions.RayActorError) as error:
            raise ValueError(run.refusal) from error
        except ray.exceptions.GetTimeoutError as error:
            raise TimeoutError(
                f"waited {ANSWER_TIMEOUT_S:.0f} s for the driver of {run.actor}; check that it still works and try "
                "again"
            ) from error
    if answer.is_refusal:
        raise ValueError(answer.text)
    return answer.text


@contextlib.contextmanager
def _joined(run: RunAddress) -> Iterator[None]:
    """Join the run's Ray for the time inside; keep this process's Ray where it is the same."""
    if ray.is_initialized():
        own = ray.get_runtime_context().gcs_address
        if run.address not in (own, "auto"):
            raise ValueError(
                f"{run.actor} trains in the Ray at {run.address}, and this process is in the one at {own}; scale it "
                "from another process"
            )
        yield
        return
    # Ray prefers RAY_ADDRESS, which may be a dashboard's for `ray job submit`, to the address that it is given.
    kept = os.environ.pop("RAY_ADDRESS", None)
    try:
        check_answers(run.address)
        ray.init(address=run.address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        raise ValueError(run.refusal) from error
    finally:
        if kept is not None:
            os.environ["RAY_ADDRESS"] = kept
    try:
        yield
    finally:
        ray.shutdown()
