"""The rollout actor: a Ray actor around a `Sampler`.

Nothing heavy is imported before a sampler is built: an actor starts as fast as its sampler does.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import ray

from actors.cluster.diagnostics import one_line
from rlir_ray.config import Config
from rlir_ray.run.attempts import Attempts
from rlir_ray.run.tracing import Span, span_since
from rlir_ray.run.watchdog import bounded, show_stack_on_signal
from rlir_ray.samplers import LogprobDifference, Sampler
from rlir_ray.trajectory import EncodedVideo, Prompt, TrajectoryGroup

if TYPE_CHECKING:
    from rlir_ray.transfer.broadcast import Channel, Receiver
    from rlir_ray.transfer.weights import Received

RECEIVING = "receiving"
"""Concurrency group of `RolloutActor.receive`, which runs in parallel with the ordered calls of the actor."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CallReport:
    """The actor's report of one rollout call to the driver."""

    call_id: int
    """The first group id of the call."""
    policy_version: int
    span: Span
    column_bytes: dict[int, int]
    """Group id -> bytes of its training columns in the object store."""
    difference: LogprobDifference | None = None
    """Difference of log-probabilities between engine and learner's model; None: the engine does not compare them."""
    failures: dict[int, str] = field(default_factory=dict)
    """Group id -> why the group cannot train; only groups with numbers that are not finite."""


@dataclass(frozen=True, slots=True)
class Published:
    """A published version. Every call carries one: an actor with another version loads this version first."""

    weights_ref: ray.ObjectRef[Received]
    version: int
    checksum: str
    oldest: int
    """The oldest version that may sample if this version cannot be loaded."""


def build_sampler(config: Config) -> Sampler:
    """Build the sampler of the configured policy, on the actor's GPU if it has one."""
    import torch

    from rlir_ray.families import family_of, open_policy

    torch.set_num_threads(config.rollout.num_threads)
    policy = open_policy(config, "cuda" if config.rollout.num_gpus else "cpu")
    return family_of(config).rollout_sampler(config, policy.eval())


class RolloutActor:
    """The Ray actor that samples groups and loads weights.

    Args:
        make_sampler: builds the sampler in the actor's process.
        timeout_s: bound of a call; a longer call ends the process.
        attempts: refuses a call that has ended the process too often; None: no call is refused.
    """

    def __init__(
        self, make_sampler: Callable[[], Sampler], timeout_s: float = 300.0, attempts: Attempts | None = None
    ) -> None:
        show_stack_on_signal()
        self.sampler, self.timeout_s, self.attempts = make_sampler(), timeout_s, attempts
        self._receiver: Receiver | None = None
        self._received: dict[int, Received] = {}

    def sample(
        self,
        group_ids: Sequence[int],
        seeds: Sequence[int],
        group_size: int,
        published: Published | None,
        prompts: Sequence[Prompt],
    ) -> tuple[TrajectoryGroup | EncodedVideo | CallReport, ...]:
        """Sample one group for each prompt.

        Args:
            group_ids: id of each group.
            seeds: seed of each group.
            group_size: number of trajectories of a group.
            published: version to sample with; an actor that has restarted or missed this version loads it first. None:
                no version is published yet.
            prompts: prompt of each group.

        Returns:
            Group and video of each prompt in turn, then a `CallReport`.

        Raises:
            RuntimeError: the call has ended the process too often.
        """
        with self.attempts.count(f"sampling group {group_ids[0]}") if self.attempts else contextlib.nullcontext():
            # Load the published version also over a newer one, which can only come from a learner that has crashed.
            if published is not None and self.sampler.policy_version != published.version:
                self._catch_up(published)
            started = time.time()
            with bounded(self.timeout_s):
                pairs = self.sampler.sample(prompts, group_ids, seeds, group_size)
        sizes = {group_id: group.nbytes for group_id, (group, _) in zip(group_ids, pairs, strict=True)}
        failures = {group.group_id: cause for group, _ in pairs if (cause := group.not_finite())}
        report = CallReport(
            call_id=group_ids[0],
            policy_version=self.sampler.policy_version,
            span=span_since(started),
            column_bytes=sizes,
            difference=self.sampler.difference,
            failures=failures,
        )
        return (*(column for pair in pairs for column in pair), report)

    def load_weights(self, weights: Received, version: int, published: str) -> int:
        """Load a version's weights; the sampler first compares the checksum.

        Args:
            weights: the weights.
            version: their version.
            published: the published checksum.

        Raises:
            ValueError: the checksums differ; the sampler keeps its version.
        """
        self.sampler.load_weights(weights, version, published)
        return version

    def receive(self, channel: Channel, rank: int, version: int) -> str:
        """Receive a version by broadcast and keep it for `load_received`; return the cause of a failure, or ""."""
        from rlir_ray.transfer.broadcast import Receiver

        try:
            if self._receiver is None or self._receiver.channel != channel:
                if self._receiver is not None:
                    self._receiver.close()
                self._receiver = Receiver(channel, rank)
            for old in [each for each in tuple(self._received) if each <= self.sampler.policy_version]:
                # Drop versions whose `load_received` stopped waiting for the broadcast.
                self._received.pop(old, None)
            self._received[version] = self._receiver.receive(version)
        except Exception as error:
            # Fault tolerance: the actor loads the object store's copy instead.
            return one_line(error)
        return ""

    def load_received(self, published: Published, receiving: list[ray.ObjectRef[str]]) -> str:
        """Load the version that the broadcast brought, or the object store's copy if the broadcast failed.

        Args:
            published: the version.
            receiving: reference to the result of `receive`, in a list so that Ray does not wait for it.

        Returns:
            Why the object store's copy was loaded; empty: the broadcast's copy was loaded.
        """
        cause = self._load_broadcast(published, receiving[0])
        if cause:
            self._load_stored(published)
        return cause

    def _load_broadcast(self, published: Published, receiving: ray.ObjectRef[str]) -> str:
        try:
            cause: str = ray.get(receiving, timeout=self.timeout_s)
            if cause:
                return cause
            weights = self._received.pop(published.version, None)
            if weights is None:
                return "the actor restarted after it received the version"
            self.load_weights(weights, published.version, published.checksum)
        except (ray.exceptions.RayError, ValueError) as error:
            # Fault tolerance: load the object store's copy if the actor has restarted or received other bytes.
            return one_line(error)
        return ""

    def _load_stored(self, published: Published) -> None:
        weights = ray.get(published.weights_ref, timeout=self.timeout_s)
        self.load_weights(weights, published.version, published.checksum)

    def _catch_up(self, published: Published) -> None:
        try:
            self._load_stored(published)
        except Exception:
            # Fault tolerance: sample with an older version if its groups may still train; groups record their version.
            if not published.oldest <= self.sampler.policy_version <= published.version:
                raise

    def version(self) -> int:
        """Return the version of the sampler's weights."""
        return self.sampler.policy_version
