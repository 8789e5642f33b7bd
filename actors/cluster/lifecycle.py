"""Make Ray actors of plain classes, and stop them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray

Handle = Any
"""A handle of an actor or a deployment, or an actor class. Ray's types for these do not know the methods of a shell."""


def as_actor(shell: type, *, num_cpus: float = 0, num_gpus: float = 0, **options: object) -> Handle:
    """A plain class as a Ray actor class."""
    return ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, **options)(shell)  # type: ignore[call-overload]  # any option


def stop_actors(actors: Sequence[Handle]) -> None:
    for actor in actors:
        ray.kill(actor)
