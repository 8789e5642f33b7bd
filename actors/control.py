"""How a running driver is reached from another process: a small named actor that passes orders on.

`python -m rlir_ray scale` finds the run's folder, reads there which Ray the run is in, and asks the actor of that name.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import ray

from actors.errors import one_line
from actors.placement import node_id, on_node
from actors.plan import check_answers
from actors.pools import as_actor, stop_actors
from actors.run_control import Answer, RunControl, ScaleOrder
from actors.waiting import POLL_S
from rlir_ray.config import RunConfig, require
from rlir_ray.run import job_home

NAMESPACE = "rlir_ray"
# In the run's folder, while it trains.
ADDRESS_FILE = "ray.json"
# A driver answers between two looks; more than this means that it is gone or stuck.
ANSWER_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 120.0
POOLS = ("rollout", "reward")


class Control:
    """The driver's side: carries orders out in a thread of its own, while the loop goes on.

    Args:
        folder: of the run; its name is the actor's, and says there where the run is.
        scale: carries an order out; a ValueError refuses it.

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
        self._write_address()

    def _write_address(self) -> None:
        """For this user alone, as all that says how to reach a Ray."""
        content = {"address": ray.get_runtime_context().gcs_address, "actor": self.folder.name}
        path = self.folder / ADDRESS_FILE
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(content, file)

    def _work(self) -> None:
        """Unblocked by an order, or by `close`."""
        while True:
            ref = self.actor.next_order.remote()
            while not ray.wait([ref], timeout=POLL_S)[0]:
                if self._closing.is_set():
                    return
            try:
                order: ScaleOrder = ray.get(ref)
            except ray.exceptions.RayError:
                return  # the actor is gone: nobody can be answered
            self.actor.answer.remote(order.order_id, self._carry_out(order))

    def _carry_out(self, order: ScaleOrder) -> Answer:
        try:
            return Answer(text=self.scale(order.pool, order.number), is_refusal=False)
        except Exception as error:
            return Answer(text=one_line(error) if not isinstance(error, ValueError) else str(error), is_refusal=True)

    def close(self) -> None:
        """No more orders; the folder no longer says where the run is."""
        (self.folder / ADDRESS_FILE).unlink(missing_ok=True)
        self._closing.set()
        self._thread.join(STOP_TIMEOUT_S)
        stop_actors([self.actor])


# ---------------------------------------------------------------------------------------------------------------------
# The user's side


@dataclass(frozen=True, kw_only=True, slots=True)
class Whereabouts:
    """Of a run that trains, as far as can be told from outside."""

    address: str
    """Of its Ray."""
    actor: str
    refusal: str
    """What to say when nobody answers there."""


def scale_run(run: str, pool: str, number: int) -> str:
    """Scales a pool of a run that trains, from any process of a machine of its cluster.

    Args:
        run: its name below `runs`, or its folder; where there is no such folder, its name in the Ray of RAY_ADDRESS.
        pool: `rollout` or `reward`.
        number: actors or replicas.

    Returns:
        What will be, in a line.

    Raises:
        ValueError: no such run, or one that does not train; or what the driver says against it.
        TimeoutError: the driver did not answer.
    """
    require(number >= 1, f"the number of {pool} actors", "must be >= 1", number, "scale to 1 or more")
    found = find_run(run)
    with _joined(found):
        try:
            actor = ray.get_actor(found.actor, namespace=NAMESPACE)
            answer: Answer = ray.get(actor.scale.remote(pool, number), timeout=ANSWER_TIMEOUT_S)
        except (ValueError, ray.exceptions.RayActorError) as error:
            raise ValueError(found.refusal) from error
        except ray.exceptions.GetTimeoutError as error:
            raise TimeoutError(
                f"waited {ANSWER_TIMEOUT_S:.0f} s for the driver of {run}; look whether it still works and try again"
            ) from error
    if answer.is_refusal:
        raise ValueError(answer.text)
    return answer.text


def find_run(run: str) -> Whereabouts:
    """Where a run is, by its folder or, on other nodes than its driver's, by its name.

    Raises:
        ValueError: there is none, or its folder says that it does not train.
    """
    below = RunConfig().dir
    folders = (Path(below) / run, job_home() / below / run, Path(run))
    known = [each for each in folders if run and (each / "config.json").is_file()]
    # One that has ended must not hide another of its name that trains.
    folder = next((each for each in known if (each / ADDRESS_FILE).is_file()), None)
    if folder is None:
        if run and (address := os.environ.get("RAY_ADDRESS", "")):
            # The dashboard's address, which `ray job submit` takes; the Ray of this machine is meant.
            address = "auto" if address.startswith("http") else address
            refusal = f"--run must name a run that trains, got {run!r}, which none in the Ray at {address} is called"
            return Whereabouts(address=address, actor=run, refusal=f"{refusal}; give its run.name")
        if not known:
            raise ValueError(
                f"--run must name a run, got {run!r}; give a name below {below}/ or a run's folder, or set RAY_ADDRESS "
                "to the Ray that it trains in"
            )
        folder = known[0]
    state = "has saved its policy and ended" if (folder / "policy").exists() else "is starting or has ended"
    refusal = (
        f"--run must name a run that trains, got {folder}, which {state}; scale it between its first and last step"
    )
    try:
        content = json.loads((folder / ADDRESS_FILE).read_text())
    except (OSError, json.JSONDecodeError):
        raise ValueError(refusal) from None
    return Whereabouts(address=content["address"], actor=content["actor"], refusal=refusal)


@contextlib.contextmanager
def _joined(run: Whereabouts) -> Iterator[None]:
    """The run's Ray for the time inside; this process's own if it is in it already."""
    if ray.is_initialized():
        own = ray.get_runtime_context().gcs_address
        if run.address not in (own, "auto"):
            raise ValueError(
                f"{run.actor} trains in the Ray at {run.address}, and this process is in the one at {own}; scale it "
                "from another process"
            )
        yield
        return
    # Ray would take the dashboard's address, which may be there for `ray job submit`, instead of the one it is given.
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
