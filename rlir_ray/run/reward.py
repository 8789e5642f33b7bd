"""Build the configured reward in this process, with the codec and the family of the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from rlir_ray.config import Config, TermConfig
from rlir_ray.families import cells_of, open_codec
from rlir_ray.models.clip_codec import ClipCodec
from rlir_ray.rewards.base import Reward, RewardContext
from rlir_ray.rewards.construction import open_reward
from rlir_ray.rewards.term import Term
from rlir_ray.trajectory import EncodedVideo


def run_reward(
    config: Config,
    class_shares: Mapping[str, npt.NDArray[np.floating]] | None,
    real: Callable[[], Sequence[EncodedVideo]] = tuple,
    open_external: Callable[[TermConfig], Term] | None = None,
    *,
    device: str,
    codec: ClipCodec | None = None,
) -> Reward:
    """Build the reward of a run.

    Args:
        config: the run's configuration.
        class_shares, real, open_external, device: as in `RewardContext`.
        codec: the run's codec, if this process has opened it already.
    """
    context = RewardContext(
        config=config,
        device=device,
        class_shares=class_shares,
        open_codec=partial(open_codec, config) if codec is None else lambda: codec,
        cells=cells_of(config),
        real=real,
        open_external=open_external,
    )
    return open_reward(context)
