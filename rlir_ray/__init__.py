"""Reinforcement learning with inverse rewards for action-conditioned video world models.

`Pipeline` is the one name that reaches into `actors`, and only when it is asked for: all else works without Ray.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlir_ray.config.load import load_config
from rlir_ray.config.sections import Config
from rlir_ray.run.installed import check_actors, version

if TYPE_CHECKING:
    from actors.pipeline import Pipeline

__all__ = ["Config", "Pipeline", "__version__", "load_config"]

__version__ = version()


def __getattr__(name: str) -> Any:
    if name == "Pipeline":
        check_actors()
        from actors.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
