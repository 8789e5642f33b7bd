"""What the reward pool asks of a backend, and what a backend says when a replica is gone."""

from __future__ import annotations

from typing import Protocol

import ray
from ray.exceptions import RayActorError, RayTaskError

from actors.reward.serving import Scored


class ReplicaLost(Exception):
    """The replica that had a group is gone; the group is not."""


class RewardBackend(Protocol):
    """Where groups are scored. Coroutines run on the pool's loop, everything else in any thread."""

    async def ask(self, video_ref: ray.ObjectRef) -> Scored:
        """Scores a video that exists. Raises ReplicaLost, or what the reward raised."""

    async def drain(self) -> None:
        """Before `stop`, when nobody waits for answers any more."""

    def scale(self, num_replicas: int) -> None:
        """Starts to grow or to shrink; replicas that go finish what they hold."""

    def num_replicas(self) -> int:
        """As many as there are to be."""

    def actor_ids(self) -> list[str]:
        """Of the replicas; none where they are another's."""

    def stop(self) -> None: ...


def is_lost(error: Exception, actor_id: str | None = None) -> bool:
    """Whether an error says that a replica is gone, and not the actor that made its video.

    Args:
        actor_id: of the replica, where it is known.
    """
    if not isinstance(error, RayActorError) or isinstance(error, RayTaskError):
        return False
    return actor_id is None or error.actor_id is None or error.actor_id == actor_id
