"""Samplers: one file per engine. A sampler turns prompts into trajectory groups and takes new weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rlir_ray.trajectory import EncodedVideo, Prompt, TrajectoryGroup
    from rlir_ray.transfer.weights import Received


@dataclass(frozen=True, slots=True)
class LogprobDifference:
    """How far an engine's log-probabilities are from those of the learner's model with the same weights."""

    mean: float
    """Absolute, over the decisions that were compared."""
    maximum: float


def difference_metrics(found: Sequence[LogprobDifference | None]) -> dict[str, float]:
    """Of a step's groups, for the log; nothing where nothing was compared."""
    known = [each for each in found if each is not None]
    if not known:
        return {}
    return {
        "logprob_difference/mean": sum(each.mean for each in known) / len(known),
        "logprob_difference/max": max(each.maximum for each in known),
    }


class Sampler(Protocol):
    """What a rollout actor holds."""

    policy_version: int
    difference: LogprobDifference | None
    """Of the last call; None: it was not compared, or has no log-probabilities."""

    def sample(
        self, prompts: Sequence[Prompt], group_ids: Sequence[int], seeds: Sequence[int], group_size: int
    ) -> list[tuple[TrajectoryGroup, EncodedVideo]]: ...

    def load_weights(self, weights: Received, version: int, published: str = "") -> None:
        """Takes the weights of a version, proven by their checksum if one is given; raises and keeps its own else."""
