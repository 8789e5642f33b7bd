"""Broadcasts of weights from learner rank 0 to the rollout actors, while both keep working."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ray

from actors.cluster.placement import Handle
from actors.learner.command_queue import BroadcastCommand, SendingRank, StepReport
from actors.rollout.pool import RolloutPool
from rlir_ray.transfer.broadcast import Channel

# After this many failed broadcasts in a row, the object store is faster than more attempts.
MAX_FAILED = 3


class Broadcasts:
    """The driver's side: one group of sender and receivers, replaced when it breaks or its members change.

    Args:
        pool: the pool whose actors receive.
        progress: called with a line when versions go through the object store instead.
        bucket_bytes: size of a message.
        on_gpus: whether weights go from GPU to GPU.
        transfer_s: bound of the transfer of a version, in seconds.
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
        self.num_complete = 0
        """Number of versions that reached every actor by broadcast."""
        self._members: tuple[Handle, ...] = ()
        self._channel: Channel | None = None
        self._num_failed = 0
        """Number of failed broadcasts in a row."""
        self._num_groups = 0

    @property
    def is_disabled(self) -> bool:
        """Whether too many broadcasts in a row failed, so that all versions go through the object store."""
        return self._num_failed >= MAX_FAILED

    def load(self, report: StepReport, sender: SendingRank) -> list[ray.ObjectRef[str]]:
        """Broadcast a version to every actor.

        Returns:
            The load of each actor: its result is empty, or says why the actor loaded the object store's copy.
        """

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
            bucket_bytes=self.bucket_bytes,
            on_gpus=self.on_gpus,
            transfer_s=self.transfer_s,
        )

    def record(self, version: int, results: Sequence[str]) -> None:
        """Count a version as complete or failed.

        Args:
            version: the version.
            results: the results of the loads: empty, or why an actor loaded the object store's copy.
        """
        causes = [result for result in results if result]
        if not causes:
            self.num_complete, self._num_failed = self.num_complete + 1, 0
            return
        self.record_failure()
        if self.is_disabled:
            self.progress(f"weights go through the object store from here on: {causes[0]}")
        elif self._num_failed == 1:
            count = f"{len(causes)} of {len(results)} rollout actors"
            self.progress(f"weights of version {version}: {count} loaded them from the object store: {causes[0]}")

    def record_failure(self) -> None:
        """Count a failed broadcast; the next version needs a new group."""
        self._num_failed, self._channel = self._num_failed + 1, None
