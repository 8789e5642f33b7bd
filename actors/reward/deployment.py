"""The Serve deployment behind the reward pool: the run's own deployment, or a service that several runs share."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, ServeStatus

from actors.cluster.compat import pin_version, replica_ids, start_deleting
from actors.cluster.diagnostics import import_hint
from actors.cluster.placement import Options, ray_options
from actors.cluster.waiting import POLL_S, WAY_OUT, Stopped
from actors.reward.calls import HandleCalls
from actors.reward.replica import RewardReplica
from rlir_ray.config import Config, RewardConfig
from rlir_ray.rewards.base import Reward
from rlir_ray.rewards.fingerprint import check_fingerprint

# Most calls that a replica accepts: more than runs have in flight, so that no replica ever rejects a call. After a
# rejection the router tries another replica. With our small inline limit (SYSTEM_CONFIG in cluster/start.py) the driver
# then crashes: Ray 2.60 looks for the answer to the rejected call in the object store, where it has no owner.
MAX_ONGOING = 4096
# Bound of a request to Serve's controller.
STATUS_TIMEOUT_S = 30.0
# The interval of Serve's health checks; the interval at which a replica that is stopping checks whether it has finished
# its groups; and the bound of that wait, after which another replica scores the remaining groups.
HEALTH_PERIOD_S, DRAIN_POLL_S, DRAIN_TIMEOUT_S = 0.5, 0.1, 60.0
# Serve's autoscaler: the interval at which it reads the queue's length, the period of its average, and how long the
# queue must be too long or too short before it acts. Scaling down waits longest, because a replica starts slowly.
METRICS_INTERVAL_S, LOOK_BACK_S, UPSCALE_DELAY_S, DOWNSCALE_DELAY_S = 0.5, 2.0, 1.0, 30.0


def serve_options(reward: RewardConfig, wait_timeout_s: float) -> Options:
    """Return the options of the deployment for the configured pool."""
    return {
        "ray_actor_options": ray_options(reward),
        "max_ongoing_requests": MAX_ONGOING,
        "health_check_period_s": HEALTH_PERIOD_S,
        # A replica answers health checks between two batches, and a batch may take long.
        "health_check_timeout_s": wait_timeout_s,
        "graceful_shutdown_wait_loop_s": DRAIN_POLL_S,
        "graceful_shutdown_timeout_s": DRAIN_TIMEOUT_S,
        **count_options(reward),
    }


def count_options(reward: RewardConfig, num_replicas: int = 0) -> Options:
    """Return the options for the number of replicas: a fixed number, or bounds for Serve's autoscaler.

    Args:
        reward: the pool's configuration.
        num_replicas: number that a user has set while the run trains; 0: use the configuration.
    """
    fewest, most = reward.bounds
    if num_replicas or fewest == most:
        return {"num_replicas": num_replicas or reward.num_replicas, "autoscaling_config": None}
    with warnings.catch_warnings():
        # Use the deprecated field for the interval: its replacement, an environment variable, applies to the cluster.
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


def group_frames(config: Config) -> int:
    """Count the frames of a group's clips, context frames included."""
    return config.train.group_size * (config.world.num_context + config.world.num_frames)


class OwnDeployment(HandleCalls):
    """The run's own Ray Serve deployment. Calls use its handle, so no HTTP proxy starts.

    Args:
        reward: number and resources of the replicas, and the bound of a batch.
        make_reward: builds the reward in a replica.
        stop: event that ends the wait for the replicas early.
        group_frames: number of frames of a group's clips.
        timeout_s: bound of a batch; a longer batch ends the replica's process.
        wait_timeout_s: bound of the wait for replicas that start.
    """

    def __init__(
        self,
        reward: RewardConfig,
        make_reward: Callable[[], Reward],
        stop: threading.Event,
        *,
        group_frames: int,
        timeout_s: float,
        wait_timeout_s: float,
    ) -> None:
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        self.config, self.make_reward, self.wait_timeout_s = reward, make_reward, wait_timeout_s
        self._batch_groups, self._batch_timeout_s = max(1, reward.max_frames // group_frames), timeout_s
        self._num_seen = reward.num_replicas
        self.name = f"rlir_reward_{uuid.uuid4().hex[:8]}"
        self.deployment = serve.deployment(**serve_options(reward, wait_timeout_s))(RewardReplica)
        # Keep running replicas when their number changes.
        pin_version(self.deployment, self.name)
        # With our small inline limit (SYSTEM_CONFIG in cluster/start.py) the controller's arguments lie in the object
        # store. Ray's core prints this as an error, although the arguments stay there as long as the driver lives.
        with _quiet_stderr():
            serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR"})
        try:
            self._deploy()
            self._wait_running(stop)
        except BaseException:
            # Delete the deployment: the user's own Ray may continue after this run.
            self._delete()
            raise
        super().__init__(serve.get_app_handle(self.name))

    def groups_per_call(self, num_in_flight: int) -> int:
        """Return the groups of a batch if each replica has two batches in flight, otherwise 1.

        A call costs the driver 5 ms, so larger calls save time. With fewer groups in flight, larger calls could leave
        replicas idle. Serve's autoscaler counts calls, not groups, so a pool that follows its queue gets single groups.
        """
        if not self._num_replicas:
            return 1
        return self._batch_groups if num_in_flight >= 2 * self._batch_groups * self._num_replicas else 1

    def _deploy(self, num_replicas: int = 0) -> None:
        options = count_options(self.config, num_replicas)
        self._num_replicas: int = options["num_replicas"] or 0
        """The fixed number of replicas; 0: the number follows the queue."""
        deployment = self.deployment.options(**options)
        application = deployment.bind(self.make_reward, self.config.max_frames, self._batch_timeout_s)
        target = serve.RunTarget(target=application, name=self.name, route_prefix=None)
        serve.run_many([target], wait_for_applications_running=False)

    def _wait_running(self, stop: threading.Event) -> None:
        """Block until the replicas are ready.

        Raises:
            RuntimeError: the replicas failed.
            Stopped: the user ended the run.
            TimeoutError: the replicas are not ready within wait_timeout_s.
        """
        deadline = time.monotonic() + self.wait_timeout_s
        while (status := self._application().status) != ApplicationStatus.RUNNING:
            if status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY):
                cause = self._cause()
                way_out = import_hint(cause) or "check models.* and reward.*"
                raise RuntimeError(f"the reward pool did not start: {cause}; {way_out}")
            if stop.is_set():
                raise Stopped
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"waited {self.wait_timeout_s:.0f} s for {self.config.num_replicas} reward "
                    "replicas; look into Ray's logs (/tmp/ray/session_latest/logs/serve), or raise train.wait_timeout_s"
                )
            time.sleep(POLL_S)

    def _application(self) -> ApplicationStatusOverview:
        return _applications()[self.name]

    def _cause(self) -> str:
        """Return the error that was raised in the replica: the last line of Serve's message about the deployment."""
        deployments = self._application().deployments.values()
        lines = [line for each in deployments for line in each.message.splitlines() if line.strip()]
        return lines[-1].strip() if lines else "Serve gives no cause"

    def scale(self, num_replicas: int) -> None:
        """Fix the number of replicas."""
        self._deploy(num_replicas)

    def num_replicas(self) -> int:
        """Return the wanted number of replicas."""
        if self._num_replicas:
            return self._num_replicas
        # Fault tolerance: while Serve's controller restarts, return the last known number.
        with contextlib.suppress(TimeoutError, ray.exceptions.RayError):
            (deployment,) = self._application().deployments.values()
            states = ("STARTING", "UPDATING", "RUNNING")
            self._num_seen = sum(deployment.replica_states.get(state, 0) for state in states)  # type: ignore[call-overload]  # an enum of texts
        return self._num_seen

    def actor_ids(self) -> list[str]:
        """Return the actor ids of the replicas."""
        return replica_ids(self.name)

    def stop(self) -> None:
        """Delete the deployment."""
        # Stop the handle first: its threads would end the process if Ray shut down before them.
        self.handle.shutdown()
        self._delete()

    def _delete(self) -> None:
        """Delete the application; a replica that is still busy after DRAIN_TIMEOUT_S ends by itself."""
        start_deleting(self.name)
        deadline = time.monotonic() + DRAIN_TIMEOUT_S
        with contextlib.suppress(TimeoutError):
            while self.name in _applications() and time.monotonic() < deadline:
                time.sleep(POLL_S / 2)


class SharedService(HandleCalls):
    """A reward service that several runs share. This run cannot start, scale or stop its replicas.

    Args:
        address: `serve://` and the name of the Serve application.
        wanted: fingerprint of the run's reward.
        stop: unused, because the service already runs; present for the same signature as `OwnDeployment`.
        timeout_s: bound of an answer.
        wait_timeout_s: bound of the wait for the service's fingerprint.

    Raises:
        ValueError: the service does not run, or its reward differs from the run's.
    """

    def __init__(
        self, address: str, wanted: Mapping[str, str], stop: threading.Event, *, timeout_s: float, wait_timeout_s: float
    ) -> None:
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        self.address = address
        name = address.removeprefix("serve://")
        running = [each for each, found in _applications().items() if found.status == "RUNNING"]
        if name not in running:
            raise ValueError(
                f"reward.address must name a Serve application that runs, got {address} where "
                f"{', '.join(running) or 'none'} runs; start it with: serve deploy deploy/serve_reward.yaml, and join "
                "its cluster (RAY_ADDRESS)"
            )
        # Bound the answers here: the service's own bound of a batch may be larger than the run's.
        super().__init__(serve.get_app_handle(name), timeout_s)
        try:
            served = self.handle.fingerprint.remote().result(timeout_s=wait_timeout_s)
            check_fingerprint(wanted, served, address)
        except BaseException:
            self.handle.shutdown()
            raise

    def scale(self, num_replicas: int) -> None:
        """Reject the change: the service's own configuration sets the number."""
        raise ValueError(
            f"only a pool of the run's own can be scaled, got reward.address={self.address}; set the number of "
            "replicas in the service's YAML and deploy it again"
        )

    def num_replicas(self) -> int:
        """Return 0: the replicas do not belong to this run."""
        return 0

    def actor_ids(self) -> list[str]:
        """Return an empty list: the replicas do not belong to this run."""
        return []

    def stop(self) -> None:
        """Disconnect from the service."""
        self.handle.shutdown()


def _applications() -> dict[str, ApplicationStatusOverview]:
    """Return Serve's applications by name.

    Raises:
        TimeoutError: Serve's controller did not answer.
    """
    answer: Future[ServeStatus] = Future()

    def ask() -> None:
        try:
            answer.set_result(serve.status())
        except Exception as error:
            answer.set_exception(error)

    # Ask in a thread, because Serve waits for its controller without a bound.
    threading.Thread(target=ask, name="serve status", daemon=True).start()
    try:
        return answer.result(STATUS_TIMEOUT_S).applications
    except TimeoutError:
        raise TimeoutError(f"waited {STATUS_TIMEOUT_S:.0f} s for Ray Serve's controller; {WAY_OUT}") from None


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Discard standard error until the context ends, including output of compiled code; exceptions pass."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
