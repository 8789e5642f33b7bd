"""Broadcast versions of the weights from learner rank 0 to the rollout actors, beside the work of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ray

from actors.learner.command_queue import BroadcastCommand, SendingRank, StepReport
from actors.rollout.pool import RolloutPool
from rlir_ray.transfer.broadcast import Channel

# After so many failed broadcasts in a row the object store is faster than further tries.
MAX_REFUSED = 3


class Broadcasts:
    """The driver's part: one group of sender and receivers, replaced when it broke or its members changed.

    Args:
        pool: whose actors receive.
        progress: called with a line when versions go through the object store instead.
        bucket_bytes: size of a message.
        on_gpus: whether weights go from GPU to GPU.
        transfer_s: bound of the transfer of a version.
    """

    def __init__(
        self,
        pool: RolloutPool,
        progress: Callable[[str], None],
        *,
        bucket_bytes: int,
        on_gpus: bool,
        transfer_s: float,
    ) -> None:
        self.pool, self.progress = pool, progress
        self.bucket_bytes, self.on_gpus, self.transfer_s = bucket_bytes, on_gpus, transfer_s
        self.num_whole = 0
        """Versions that reached every actor by broadcast."""
        self._members: tuple[Any, ...] = ()
        self._channel: Channel | None = None
        self._num_refused = 0
        self._num_groups = 0

    @property
    def has_given_up(self) -> bool:
        return self._num_refused >= MAX_REFUSED

    def load(self, report: StepReport, sender: SendingRank) -> list[ray.ObjectRef]:
        """Broadcast a version to every actor; each answers why it loaded the store's copy, or an empty text."""

        def open_channel(actors: Sequence[Any]) -> Channel:
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
            bucket_bytes=self.bucket_bytes,
            on_gpus=self.on_gpus,
            transfer_s=self.transfer_s,
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
