"""The protocol of a reward, and the parts of a run that a reward may need. Independent of pools; loads no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from rlir_ray.config import Config, TermConfig
    from rlir_ray.models.clip_codec import ClipCodec
    from rlir_ray.rewards.term import Term
    from rlir_ray.spaces.layouts import Cells
    from rlir_ray.trajectory import EncodedVideo, RewardScores


class Reward(Protocol):
    """The reward of a run; each replica of the reward pool builds one.

    The usual reward is a `CombinedReward` of terms. Another class with this method may stand in `reward.name`; it is
    built as a term is. A class that reads models.reward_idm must set `reads_idm = True`.
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
    real: Callable[[], Sequence[EncodedVideo]] = tuple
    """Returns real clips of the training prompts, encoded, one clip a group; none if no term has `reads_real`."""
    open_external: Callable[[TermConfig], Term] | None = None
    """Starts a term in a Python environment of its own; None: outside of Ray."""
