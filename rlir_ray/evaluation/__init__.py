"""Evaluation: action following, picture quality, and the report of a run."""

from rlir_ray.evaluation.mineworld import action_following

__all__ = ["action_following"]
