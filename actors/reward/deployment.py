"""The Serve deployment behind the reward pool: one of the run's own, or a service that several runs share."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, ServeStatus

from actors.cluster.compat import keep_version, replica_ids
from actors.cluster.errors import import_hint
from actors.cluster.placement import Options, ray_options
from actors.cluster.waiting import POLL_S, WAY_OUT, Stopped
from actors.reward.calls import HandleCalls
from actors.reward.replica import RewardReplica
from rlir_ray.config import Config
from rlir_ray.rewards.base import Reward
from rlir_ray.rewards.fingerprint import check_identity, reward_identity

# Groups that a replica takes, more than runs have in flight, so that it refuses none. After a refusal the router asks
# another replica, and where answers above a small size lie in the object store (plan.py) the driver ends: Ray 2.60
# looks there for the answer to the refused call and finds that nobody owns it.
MAX_ONGOING = 4096
# Of a question to Serve's controller.
STATUS_TIMEOUT_S = 30.0
# How often Serve checks its replicas; how often a replica that is to end checks whether it has finished its groups, and
# how long it may take. Another replica scores the groups that are left.
HEALTH_PERIOD_S, DRAIN_LOOK_S, DRAIN_TIMEOUT_S = 0.5, 0.5, 60.0
# Serve's autoscaler: how often it reads the queue's length, over how long it averages, and how long the queue must be
# too long or too short before it acts. A replica takes seconds to start, so it is not ended early.
METRICS_INTERVAL_S, LOOK_BACK_S, UPSCALE_DELAY_S, DOWNSCALE_DELAY_S = 0.5, 2.0, 1.0, 30.0


def serve_options(config: Config) -> Options:
    """Return the deployment's options as the recipe sets them."""
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


def count_options(config: Config, num_replicas: int = 0) -> Options:
    """Return how many replicas Serve keeps: a number set by hand, the recipe's, or bounds for its autoscaler."""
    reward, (fewest, most) = config.reward, config.reward.bounds
    if num_replicas or fewest == most:
        return {"num_replicas": num_replicas or reward.num_replicas, "autoscaling_config": None}
    with warnings.catch_warnings():
        # One of two ways to set the interval; the other one, an environment variable, would hold for all of a cluster.
        warnings.simplefilter("ignore", DeprecationWarning)
        scaling = AutoscalingConfig(
            min_replicas=fewest,
            initial_replicas=reward.num_replicas,
            max_replicas=most,
            target_ongoing_requests=reward.target_queue,
            metrics_interval_s=METRICS_INTERVAL_S,
            look_back_period_s=LOOK_BACK_S,
            upscale_delay_s=UPSCALE_DELAY_S,
            downscale_delay_s=DOWNSCALE_DELAY_S,
        )
    return {"num_replicas": None, "autoscaling_config": scaling}


def frames_a_group(config: Config) -> int:
    return config.train.group_size * (config.world.num_context + config.world.num_frames)


class OwnDeployment(HandleCalls):
    """A Ray Serve deployment of the run's own, reached by its handle alone: no HTTP proxy is started."""

    def __init__(self, config: Config, make_reward: Callable[[], Reward], stop: threading.Event) -> None:
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        self.config, self.make_reward = config, make_reward
        self._num_seen = config.reward.num_replicas
        self.name = f"rlir_reward_{uuid.uuid4().hex[:8]}"
        self.deployment = serve.deployment(**serve_options(config))(RewardReplica)
        # Replicas that are there stay when their number changes.
        keep_version(self.deployment, self.name)
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
        """Return a batch's number of groups once each replica has two batches, since a call costs the driver 5 ms.

        Below that replicas could get nothing while others get more; and Serve's autoscaler counts calls, not groups.
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
        """Wait until the replicas are ready or have failed, or the user ends the run."""
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

    def _application(self) -> ApplicationStatusOverview:
        return _applications()[self.name]

    def _cause(self) -> str:
        """Return the last line of Serve's message about a failed deployment: the error raised in the replica."""
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
            self._num_seen = sum(deployment.replica_states.get(state, 0) for state in states)  # type: ignore[call-overload]  # an enum of texts
        return self._num_seen

    def actor_ids(self) -> list[str]:
        return replica_ids(self.name)

    def stop(self) -> None:
        # The handle's threads end the process when they find that Ray has gone before them.
        self.handle.shutdown()
        # A replica that is still busy ends when it has finished.
        with contextlib.suppress(TimeoutError):
            serve.delete(self.name)


class SharedService(HandleCalls):
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


def _applications() -> dict[str, ApplicationStatusOverview]:
    """Return Serve's applications by their names; raise TimeoutError where its controller does not answer."""
    answer: Future[ServeStatus] = Future()

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
    """Keep what is written inside off the terminal, by compiled code too; exceptions pass."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
