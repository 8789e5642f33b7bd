"""Make Ray actors of plain classes, and stop them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray


def as_actor(shell: type, *, num_cpus: float = 0, num_gpus: float = 0, **options: Any) -> Any:
    """A plain class as a Ray actor class."""
    return ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, **options)(shell)


def stop_actors(actors: Sequence[Any]) -> None:
    for actor in actors:
        ray.kill(actor)
