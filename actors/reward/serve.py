"""Ray Serve as a backend of the reward pool: a deployment of the run's own, or a service that several runs share."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import ApplicationStatus

from actors.cluster.diagnostics import ids
from actors.cluster.errors import import_hint, one_line
from actors.cluster.placement import ray_options
from actors.cluster.waiting import POLL_S, WAY_OUT, Stopped
from actors.reward.backend import ReplicaLost, is_lost
from actors.reward.serving import Reward, RewardDeployment, Scored
from rlir_ray.config import Config
from rlir_ray.rewards.fingerprint import check_identity, reward_identity

# Groups that a Serve replica takes, more than runs have in flight: it refuses none. A refusal sends the router round
# again, and ends the driver where answers above a small size lie in the object store (plan.py): Ray 2.60 looks there
# for the answer to the call that was given up, and finds that nobody owns it.
MAX_ONGOING = 4096
# How long the end of a run waits for groups that replicas of Serve are reading: calls given up are those refused above.
GIVE_UP_S = 10.0
# Of a question to Serve's controller.
STATUS_TIMEOUT_S = 30.0
# How often Serve looks after its replicas; how often one that goes looks whether it has finished, and how long it may
# take. What comes to it too late is scored by another.
HEALTH_PERIOD_S, DRAIN_LOOK_S, DRAIN_TIMEOUT_S = 0.5, 0.5, 60.0
# Serve's autoscaler: how often the queue is looked at, over how long it is averaged, and how long it must stay too
# long or too short. A replica takes seconds to start, and one that is let go too early must start again.
METRICS_INTERVAL_S, LOOK_BACK_S, UPSCALE_DELAY_S, DOWNSCALE_DELAY_S = 0.5, 2.0, 1.0, 30.0


def serve_options(config: Config) -> dict[str, Any]:
    """Options of the deployment, out of the recipe."""
    return {
        "ray_actor_options": ray_options(config.reward),
        "max_ongoing_requests": MAX_ONGOING,
        "health_check_period_s": HEALTH_PERIOD_S,
        # A replica is asked between two batches, and a batch may be long.
        "health_check_timeout_s": config.train.wait_timeout_s,
        "graceful_shutdown_wait_loop_s": DRAIN_LOOK_S,
        "graceful_shutdown_timeout_s": DRAIN_TIMEOUT_S,
        **count_options(config),
    }


def count_options(config: Config, num_replicas: int = 0) -> dict[str, Any]:
    """How many replicas: the number that was set by hand, the recipe's, or as the queue asks."""
    reward, (fewest, most) = config.reward, config.reward.bounds
    if num_replicas or fewest == most:
        return {"num_replicas": num_replicas or reward.num_replicas, "autoscaling_config": None}
    with warnings.catch_warnings():
        # One of two ways to set the interval; the other one, an environment variable, would hold for all of a cluster.
        warnings.simplefilter("ignore", DeprecationWarning)
        scaling = AutoscalingConfig(
            min_replicas=fewest, initial_replicas=reward.num_replicas, max_replicas=most,
            target_ongoing_requests=reward.target_queue, metrics_interval_s=METRICS_INTERVAL_S,
            look_back_period_s=LOOK_BACK_S, upscale_delay_s=UPSCALE_DELAY_S, downscale_delay_s=DOWNSCALE_DELAY_S,
        )  # fmt: skip
    return {"num_replicas": None, "autoscaling_config": scaling}


def frames_a_group(config: Config) -> int:
    return config.train.group_size * (config.world.num_context + config.world.num_frames)


@dataclass(eq=False, slots=True)
class _Asked:
    """A group that waits for its scores."""

    video_ref: ray.ObjectRef
    answer: asyncio.Future[Scored]


class HandleBackend:
    """Asks through a Serve handle; each call goes to the replica that has the fewest.

    Args:
        handle: of a deployment with `score`.
        timeout_s: bound of an answer, its time in the queue included; infinity: the replicas bound it themselves.
    """

    def __init__(self, handle: Any, timeout_s: float = math.inf) -> None:
        self.handle, self.timeout_s = handle, timeout_s
        self._waiting: list[_Asked] = []
        self._calls: set[asyncio.Task[None]] = set()
        self._num_out = 0

    async def ask(self, video_ref: ray.ObjectRef) -> Scored:
        loop = asyncio.get_running_loop()
        if not self._waiting:
            # What else becomes ready in this turn of the loop may go along.
            loop.call_soon(self._send)
        answer: asyncio.Future[Scored] = loop.create_future()
        self._waiting.append(_Asked(video_ref, answer))
        # Whoever waits may give up; the call goes on (GIVE_UP_S).
        done, _ = await asyncio.wait([answer], timeout=None if self.timeout_s == math.inf else self.timeout_s)
        if not done:
            answer.cancel()
            raise ReplicaLost(f"no answer within {self.timeout_s:g} s")
        return await answer

    def groups_a_call(self, num_out: int) -> int:
        """How many groups may share the next call while so many are out."""
        return 1

    def _send(self) -> None:
        while self._waiting:
            size = self.groups_a_call(self._num_out)
            self._start(self._waiting[:size])
            del self._waiting[:size]

    def _start(self, asked: list[_Asked]) -> None:
        self._num_out += len(asked)
        call = asyncio.get_running_loop().create_task(self._call(asked))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def _call(self, asked: list[_Asked]) -> None:
        found: Sequence[Scored | Exception | None]
        try:
            # In a list a reference travels as it is, and the replica gets the video itself.
            found = await self.handle.score.remote([each.video_ref for each in asked])
        except Exception as error:
            # Those that shared a call find out one by one which of them it was.
            found = [error if len(asked) == 1 else None] * len(asked)
        self._num_out -= len(asked)
        for each, scored in zip(asked, found, strict=True):
            if each.answer.done():
                continue
            if scored is None:
                self._start([each])
            elif isinstance(scored, Scored):
                each.answer.set_result(scored)
            else:
                each.answer.set_exception(ReplicaLost(one_line(scored)) if is_lost(scored) else scored)

    async def wind_up(self) -> None:
        """Waits a while for the calls that are out."""
        if self._calls:
            await asyncio.wait(self._calls, timeout=GIVE_UP_S)


class ServeBackend(HandleBackend):
    """A Ray Serve deployment of the run's own, reached by its handle alone: no HTTP proxy is started."""

    def __init__(self, config: Config, make_reward: Callable[[], Reward], stop: threading.Event) -> None:
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        self.config, self.make_reward = config, make_reward
        self._num_seen = config.reward.num_replicas
        self.name = f"rlir_reward_{uuid.uuid4().hex[:8]}"
        self.deployment = serve.deployment(**serve_options(config))(RewardDeployment)
        # Serve starts all replicas anew when the code's version changes, and takes every call for a new one otherwise.
        self.deployment._version = self.name
        # With our small inline limit (plan.py) the controller's arguments lie in the object store, which Ray's core
        # reports on the terminal as an error although they stay there as long as the driver does.
        with _quiet_stderr():
            serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR"})
        try:
            self._deploy()
            self._wait_running(stop)
        except BaseException:
            # A user's own Ray goes on: nothing of ours may stay in it.
            with contextlib.suppress(TimeoutError):
                serve.delete(self.name)
            raise
        super().__init__(serve.get_app_handle(self.name))

    def groups_a_call(self, num_out: int) -> int:
        """As many as a batch takes when every replica has one and the next one waits; a call costs the driver 5 ms.

        One where Serve's autoscaler counts calls, and where replicas would get nothing while others get more.
        """
        if not self._num_replicas:
            return 1
        groups_a_batch = max(1, self.config.reward.max_frames // frames_a_group(self.config))
        return groups_a_batch if num_out >= 2 * groups_a_batch * self._num_replicas else 1

    def _deploy(self, num_replicas: int = 0) -> None:
        options = count_options(self.config, num_replicas)
        self._num_replicas: int = options["num_replicas"] or 0
        """Of a number that was set; 0: as many as the queue asks for."""
        deployment = self.deployment.options(**options)
        application = deployment.bind(self.make_reward, self.config.reward.max_frames, self.config.reward_timeout_s)
        target = serve.RunTarget(target=application, name=self.name, route_prefix=None)
        serve.run_many([target], wait_for_applications_running=False)

    def _wait_running(self, stop: threading.Event) -> None:
        """Unblocked by the replicas, by their failure, or by the user."""
        deadline = time.monotonic() + self.config.train.wait_timeout_s
        while (status := self._application().status) != ApplicationStatus.RUNNING:
            if status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY):
                cause = self._cause()
                way_out = import_hint(cause) or "check models.* and reward.*"
                raise RuntimeError(f"the reward pool did not start: {cause}; {way_out}")
            if stop.is_set():
                raise Stopped
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"waited {self.config.train.wait_timeout_s:.0f} s for {self.config.reward.num_replicas} reward "
                    "replicas; look into Ray's logs (/tmp/ray/session_latest/logs/serve), or raise train.wait_timeout_s"
                )
            time.sleep(POLL_S)

    def _application(self) -> Any:
        return _applications()[self.name]

    def _cause(self) -> str:
        """The last line of what Serve tells about a deployment that failed: the error raised in the replica."""
        deployments = self._application().deployments.values()
        lines = [line for each in deployments for line in each.message.splitlines() if line.strip()]
        return lines[-1].strip() if lines else "Serve gives no cause"

    def scale(self, num_replicas: int) -> None:
        self._deploy(num_replicas)

    def num_replicas(self) -> int:
        if self._num_replicas:
            return self._num_replicas
        # Fault tolerance: a controller that starts again answers later; until then the last number holds.
        with contextlib.suppress(TimeoutError, ray.exceptions.RayError):
            (deployment,) = self._application().deployments.values()
            states = ("STARTING", "UPDATING", "RUNNING")
            self._num_seen = sum(deployment.replica_states.get(state, 0) for state in states)
        return self._num_seen

    def actor_ids(self) -> list[str]:
        prefix = f"SERVE_REPLICA::{self.name}#"
        named = ray.util.list_named_actors(all_namespaces=True)
        own = [each["name"] for each in named if each["namespace"] == "serve" and each["name"].startswith(prefix)]
        found = []
        for name in own:
            # One that has just gone has no name any more.
            with contextlib.suppress(ValueError):
                found.append(ray.get_actor(name, namespace="serve"))
        return ids(found)

    def stop(self) -> None:
        # The handle's threads end the process when they find that Ray has gone before them.
        self.handle.shutdown()
        # A replica that is still busy ends when it has finished.
        with contextlib.suppress(TimeoutError):
            serve.delete(self.name)


class ServiceBackend(HandleBackend):
    """A reward service that other runs share: its replicas are not this run's to start, scale or stop."""

    def __init__(self, config: Config) -> None:
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        self.address = config.reward.address
        name = self.address.removeprefix("serve://")
        running = [each for each, found in _applications().items() if found.status == "RUNNING"]
        if name not in running:
            raise ValueError(
                f"reward.address must name a Serve application that runs, got {self.address} where "
                f"{', '.join(running) or 'none'} runs; start it with: serve deploy deploy/serve_reward.yaml, and join "
                "its cluster (RAY_ADDRESS)"
            )
        # The service has a bound of its own, which may be another one.
        super().__init__(serve.get_app_handle(name), config.reward_timeout_s)
        try:
            served = self.handle.identity.remote().result(timeout_s=config.train.wait_timeout_s)
            check_identity(reward_identity(config), served, self.address)
        except BaseException:
            self.handle.shutdown()
            raise

    def scale(self, num_replicas: int) -> None:
        raise ValueError(
            f"only a pool of the run's own can be scaled, got reward.address={self.address}; set the number of "
            "replicas in the service's YAML and deploy it again"
        )

    def num_replicas(self) -> int:
        return 0

    def actor_ids(self) -> list[str]:
        return []

    def stop(self) -> None:
        self.handle.shutdown()


def _applications() -> dict[str, Any]:
    """Of Serve, by their names; raises TimeoutError where its controller does not answer."""
    answer: Future[Any] = Future()

    def ask() -> None:
        try:
            answer.set_result(serve.status())
        except Exception as error:
            answer.set_exception(error)

    # Serve waits for its controller without a bound.
    threading.Thread(target=ask, name="serve status", daemon=True).start()
    try:
        return answer.result(STATUS_TIMEOUT_S).applications
    except TimeoutError:
        raise TimeoutError(f"waited {STATUS_TIMEOUT_S:.0f} s for Ray Serve's controller; {WAY_OUT}") from None


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Nothing reaches the terminal from inside, compiled code included; exceptions pass."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
