"""World models, frame tokenizers and inverse dynamics models, and the loaders of published checkpoints."""

from rlir_ray.models.inverse_dynamics import InverseDynamicsModel

__all__ = ["InverseDynamicsModel"]
