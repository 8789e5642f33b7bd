"""Rewards: terms and their combination, comparison rules, and the checks that a judge must pass on real clips."""

from rlir_ray.rewards.term import GroupClips, Recovered, Term

__all__ = ["GroupClips", "Recovered", "Term"]
