"""Samplers, one file for each engine. A sampler turns prompts into trajectory groups and loads new weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rlir_ray.trajectory import EncodedVideo, Prompt, TrajectoryGroup
    from rlir_ray.transfer.weights import Received


@dataclass(frozen=True, slots=True)
class LogprobDifference:
    """Difference between the log-probabilities of an engine and of the learner's model, with the same weights."""

    mean: float
    """Mean absolute difference over the compared decisions."""
    maximum: float
    """Largest absolute difference."""


def difference_metrics(found: Sequence[LogprobDifference | None]) -> dict[str, float]:
    """Summarise the differences of a step's groups for the log; empty if no group was compared."""
    known = [each for each in found if each is not None]
    if not known:
        return {}
    return {
        "logprob_difference/mean": sum(each.mean for each in known) / len(known),
        "logprob_difference/max": max(each.maximum for each in known),
    }


class Sampler(Protocol):
    """A rollout engine with the policy's weights; each rollout actor holds one."""

    policy_version: int
    difference: LogprobDifference | None
    """Difference in the last call; None: the call was not compared, or has no log-probabilities."""

    def sample(
        self, prompts: Sequence[Prompt], group_ids: Sequence[int], seeds: Sequence[int], group_size: int
    ) -> list[tuple[TrajectoryGroup, EncodedVideo]]: ...

    def load_weights(self, weights: Received, version: int, published: str = "") -> None:
        """Load the weights of a version, and verify their checksum if given; on an error keep the old weights."""
