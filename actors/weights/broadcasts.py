"""Versions of the weights by broadcast, from learner rank 0 to the rollout actors while both go on with their work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ray

from actors.learner.command_queue import BroadcastOrder, SendingRank, StepReport
from actors.rollout.pool import RolloutPool
from rlir_ray.config import Config
from rlir_ray.transfer.broadcast import Channel

# So many versions in a row that did not go by broadcast will not; the store serves them sooner.
MAX_REFUSED = 3


class Broadcasts:
    """The driver's part: one group of sender and receivers, made anew when it broke or its members changed.

    Args:
        config: `weights`, and what says where the weights are.
        pool: who receives.
        progress: told when versions come from the store instead, and when they are broadcast again.
    """

    def __init__(self, config: Config, pool: RolloutPool, progress: Callable[[str], None]) -> None:
        self.config, self.pool, self.progress = config, pool, progress
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
        """Has a version sent, and hands it to every actor; each answers why it took the store's copy, or nothing."""

        def open_channel(actors: Sequence[Any]) -> Channel:
            members = (sender.host, sender.port, *actors)
            if self._channel is None or self._members != members:
                self._members, self._channel = members, self._new_channel(sender, len(actors))
            order = BroadcastOrder(channel=self._channel, version=report.version, weights_refs=report.weights_refs)
            sender.mailbox.order_broadcast.remote(order)
            return self._channel

        return self.pool.receive_weights(report.weights_refs[0], report.version, report.checksum, open_channel)

    def _new_channel(self, sender: SendingRank, num_receivers: int) -> Channel:
        self._num_groups += 1
        return Channel(
            host=sender.host, port=sender.port, key=f"weights {self._num_groups}", num_receivers=num_receivers,
            on_gpus=self.config.uses_nccl, bucket_bytes=self.config.weights.bucket_bytes,
            transfer_s=self.config.train.wait_timeout_s / 2,
        )  # fmt: skip

    def answered(self, version: int, answers: Sequence[str]) -> None:
        """What the actors said of a version."""
        causes = [answer for answer in answers if answer]
        if not causes:
            self.num_whole, self._num_refused = self.num_whole + 1, 0
            return
        self.broke()
        if self.has_given_up:
            self.progress(f"weights go through the object store from here on: {causes[0]}")
        elif self._num_refused == 1:
            count = f"{len(causes)} of {len(answers)} rollout actors"
            self.progress(f"weights of version {version}: {count} took them from the object store: {causes[0]}")

    def broke(self) -> None:
        """The next version needs another group."""
        self._num_refused, self._channel = self._num_refused + 1, None
