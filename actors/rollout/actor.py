"""The rollout actor: the shell of a sampler."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import ray
import torch

from actors.cluster.errors import one_line
from rlir_ray.config import Config
from rlir_ray.families import family_of, open_policy
from rlir_ray.run.tracing import Span, span_since
from rlir_ray.run.watchdog import bounded, show_stack_on_signal
from rlir_ray.samplers import LogprobDifference, Sampler
from rlir_ray.trajectory import EncodedVideo, Prompt, TrajectoryGroup
from rlir_ray.transfer.broadcast import Channel, Receiver
from rlir_ray.transfer.weights import Received

RECEIVING = "receiving"
"""The concurrency group of `RolloutActor.receive`, which runs beside the calls that are executed in order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CallReport:
    """What the driver gets of one rollout call."""

    call_id: int
    """The first of its group ids."""
    policy_version: int
    span: Span
    column_bytes: dict[int, int]
    """Group id -> what its training columns hold in the object store."""
    difference: LogprobDifference | None = None
    """Between the engine's log-probabilities and the learner's model, where the engine compares them."""
    failures: dict[int, str] = field(default_factory=dict)
    """Group id -> why the group cannot train; only of groups with numbers that are not finite."""


@dataclass(frozen=True, slots=True)
class Published:
    """A version in the object store. Every call carries one: an actor without that version loads it first."""

    weights_ref: ray.ObjectRef[Received]
    version: int
    checksum: str
    oldest: int
    """The oldest version that may sample where this version cannot be loaded."""


def build_sampler(config: Config) -> Sampler:
    """Build the sampler of the configured policy, on a GPU where the actor has one."""
    torch.set_num_threads(config.rollout.num_threads)
    policy = open_policy(config, "cuda" if config.rollout.num_gpus else "cpu")
    return family_of(config).rollout_sampler(config, policy.eval())


class RolloutActor:
    """Args:
    make_sampler: builds the sampler in the actor's process.
    timeout_s: a call that takes longer ends the process.
    """

    def __init__(self, make_sampler: Callable[[], Sampler], timeout_s: float = 300.0) -> None:
        show_stack_on_signal()
        self.sampler, self.timeout_s = make_sampler(), timeout_s
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
        """Sample one group a prompt; return group and video of each prompt in turn, then a `CallReport`.

        Args:
            published: the version to sample with; an actor that was restarted or could not load it loads it first.
                None: no version was published yet.
        """
        # A newer version can only come from a learner that was lost: load the published one.
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
        """Load a version's weights; the sampler compares the checksum before it serves them.

        Raises:
            ValueError: the checksums differ; the sampler keeps its version.
        """
        self.sampler.load_weights(weights, version, published)
        return version

    def receive(self, channel: Channel, rank: int, version: int) -> str:
        """Receive a version by broadcast and keep it for `load_received`; return why this failed, or an empty text."""
        try:
            if self._receiver is None or self._receiver.channel != channel:
                if self._receiver is not None:
                    self._receiver.close()
                self._receiver = Receiver(channel, rank)
            for old in [each for each in tuple(self._received) if each <= self.sampler.policy_version]:
                # The load of this version gave up waiting for the broadcast.
                self._received.pop(old, None)
            self._received[version] = self._receiver.receive(version)
        except Exception as error:
            # Fault tolerance: the actor loads the copy in the object store.
            return one_line(error)
        return ""

    def load_received(self, published: Published, receiving: list[ray.ObjectRef[str]]) -> str:
        """Load the version that the broadcast brought, else the copy in the object store.

        Args:
            published: the version.
            receiving: the call of `receive`.

        Returns:
            Why the store's copy was loaded; empty: the broadcast's was.
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
            # Fault tolerance: the actor restarted meanwhile, or received other bytes than the published ones.
            return one_line(error)
        return ""

    def _load_stored(self, published: Published) -> None:
        weights = ray.get(published.weights_ref, timeout=self.timeout_s)
        self.load_weights(weights, published.version, published.checksum)

    def _catch_up(self, published: Published) -> None:
        try:
            self._load_stored(published)
        except Exception:
            # Fault tolerance: groups of an older version may still train; each group records its version.
            if not published.oldest <= self.sampler.policy_version <= published.version:
                raise

    def version(self) -> int:
        return self.sampler.policy_version
