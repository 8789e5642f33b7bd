"""Gymnasium environments inside a world model: ``gymnasium.make("rlir_ray/WorldModel-v0", policy="first")``.

The import registers the environment. Heavy libraries are imported when an environment is made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlir_ray.play.environment import GoalPicture, WorldModelEnv, WorldModelVectorEnv

__all__ = ["GoalPicture", "WorldModelEnv", "WorldModelVectorEnv", "register_envs"]

ENV_ID = "rlir_ray/WorldModel-v0"
MODULE = "rlir_ray.play.environment"


def register_envs() -> None:
    """Register the environment with Gymnasium; a second call does nothing."""
    from gymnasium.envs.registration import register, registry

    if ENV_ID not in registry:
        register(id=ENV_ID, entry_point=f"{MODULE}:WorldModelEnv", vector_entry_point=f"{MODULE}:WorldModelVectorEnv")


def __getattr__(name: str) -> Any:
    if name in ("GoalPicture", "WorldModelEnv", "WorldModelVectorEnv"):
        from rlir_ray.play import environment

        return getattr(environment, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


register_envs()
