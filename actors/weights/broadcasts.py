"""Broadcast versions of the weights from learner rank 0 to the rollout actors, beside the work of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ray

from actors.cluster.lifecycle import Handle
from actors.learner.command_queue import BroadcastCommand, SendingRank, StepReport
from actors.rollout.pool import RolloutPool
from rlir_ray.config import Config
from rlir_ray.transfer.broadcast import Channel

# After so many failed broadcasts in a row the object store is faster than further tries.
MAX_REFUSED = 3


class Broadcasts:
    """The driver's part: one group of sender and receivers, replaced when it broke or its members changed.

    Args:
        config: `weights` and the placement of learner and rollout actors are read.
        pool: whose actors receive.
        progress: called with a line when versions go through the object store instead.
    """

    def __init__(self, config: Config, pool: RolloutPool, progress: Callable[[str], None]) -> None:
        self.config, self.pool, self.progress = config, pool, progress
        self.num_whole = 0
        """Versions that reached every actor by broadcast."""
        self._members: tuple[Handle, ...] = ()
        self._channel: Channel | None = None
        self._num_refused = 0
        self._num_groups = 0

    @property
    def has_given_up(self) -> bool:
        return self._num_refused >= MAX_REFUSED

    def load(self, report: StepReport, sender: SendingRank) -> list[ray.ObjectRef[str]]:
        """Broadcast a version to every actor; each answers why it loaded the store's copy, or an empty text."""

        def open_channel(actors: Sequence[Handle]) -> Channel:
            members = (sender.host, sender.port, *actors)
            if self._channel is None or self._members != members:
                self._members, self._channel = members, self._new_channel(sender, len(actors))
            command = BroadcastCommand(channel=self._channel, version=report.version, weights_refs=report.weights_refs)
            sender.queue.submit_broadcast.remote(command)
            return self._channel

        return self.pool.receive_weights(report.weights_refs[0], report.version, report.checksum, open_channel)

    def _new_channel(self, sender: SendingRank, num_receivers: int) -> Channel:
        self._num_groups += 1
        return Channel(
            host=sender.host,
            port=sender.port,
            key=f"weights {self._num_groups}",
            num_receivers=num_receivers,
            on_gpus=self.config.uses_nccl,
            bucket_bytes=self.config.weights.bucket_bytes,
            transfer_s=self.config.train.wait_timeout_s / 2,
        )

    def answered(self, version: int, answers: Sequence[str]) -> None:
        """Take the answers of the actors for a version."""
        causes = [answer for answer in answers if answer]
        if not causes:
            self.num_whole, self._num_refused = self.num_whole + 1, 0
            return
        self.broke()
        if self.has_given_up:
            self.progress(f"weights go through the object store from here on: {causes[0]}")
        elif self._num_refused == 1:
            count = f"{len(causes)} of {len(answers)} rollout actors"
            self.progress(f"weights of version {version}: {count} loaded them from the object store: {causes[0]}")

    def broke(self) -> None:
        """Note that the group broke: the next version needs another one."""
        self._num_refused, self._channel = self._num_refused + 1, None
