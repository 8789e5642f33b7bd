"""The protocol of a reward, and the construction of the configured one. Independent of pools."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from rlir_ray.registry import build, load

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from rlir_ray.config import Config
    from rlir_ray.models.clip_codec import ClipCodec
    from rlir_ray.spaces.layouts import Cells
    from rlir_ray.trajectory import EncodedVideo, RewardScores


class Reward(Protocol):
    """A member of the axis `rewards`; each replica of the reward pool builds one.

    A class with `from_context` is built by `from_context(context, **reward.args)`, any other class by
    `Class(**reward.args)`. A class that reads models.reward_idm must set `reads_idm = True`.
    """

    def score(self, videos: Sequence[EncodedVideo]) -> list[RewardScores]:
        """Return one `RewardScores` per video, in order; `frame_rewards` is [G, F], and higher is better."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardContext:
    """The parts of a run that a reward may need."""

    config: Config
    device: str
    """`cuda` if the replica has a GPU, otherwise `cpu`."""
    class_shares: Mapping[str, npt.NDArray[np.floating]] | None
    """Frequency of each class in the training commands, by field; None without reward.balance=class."""
    open_codec: Callable[[], ClipCodec]
    """Opens what decodes frames, on the CPU."""
    cells: Cells
    """Which bins of an axis the world model cannot tell apart."""


def open_reward(context: RewardContext) -> Reward:
    """Build the configured reward.

    Raises:
        ValueError: the class cannot be imported, has no `score`, or does not take `reward.args`.
    """
    settings = context.config.reward
    member = load("rewards", settings.name)
    if make := getattr(member, "from_context", None):
        reward: Reward = build("rewards", settings.name, settings.args, make, context)
    else:
        reward = build("rewards", settings.name, settings.args, member)
    return reward
