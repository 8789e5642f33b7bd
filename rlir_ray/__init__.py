"""Reinforcement learning with inverse rewards for action-conditioned video world models.

The public names are imported at their first use. Only `Pipeline` imports `actors`, so everything else works without
Ray.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from rlir_ray.run.environment import check_actors, version

if TYPE_CHECKING:
    from actors.pipeline import Pipeline
    from rlir_ray.config import Config
    from rlir_ray.config.load import load_config
    from rlir_ray.play.generate import generate
    from rlir_ray.spaces.space import ActionSpace

__all__ = ["ActionSpace", "Config", "Pipeline", "__version__", "generate", "load_config"]

__version__ = version()

if "gymnasium" in sys.modules:
    # Programs that use Gymnasium get the environment with `import rlir_ray`; others are spared Gymnasium's import.
    from rlir_ray import envs as _envs  # noqa: F401


def __getattr__(name: str) -> Any:
    if name == "Pipeline":
        check_actors()
        from actors.pipeline import Pipeline

        return Pipeline
    if name == "ActionSpace":
        from rlir_ray.spaces.space import ActionSpace

        return ActionSpace
    if name == "Config":
        from rlir_ray.config import Config

        return Config
    if name == "load_config":
        from rlir_ray.config.load import load_config

        return load_config
    if name == "generate":
        from rlir_ray.play.generate import generate

        return generate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
