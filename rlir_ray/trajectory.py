"""The payload: prompts, what a rollout leaves for the learner and for the rewards, and what those say.

Frozen dataclasses of numpy arrays, so that the object store hands them over without a copy.
Legend: G trajectories of a group, T decisions, C context and F generated frames, N tokens a frame, L tokens in all.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from rlir_ray.actions import Actions


def _require(rule: bool, what: str, got: object) -> None:
    if not rule:
        raise ValueError(f"{what}, got {got}")


def _nbytes(payload: Any) -> int:
    """Bytes of all arrays that a payload holds, actions included."""
    values = [getattr(payload, entry.name) for entry in fields(payload)]
    arrays = [value for value in values if isinstance(value, np.ndarray)]
    actions = [value for value in values if isinstance(value, Actions)]
    return sum(array.nbytes for array in arrays) + sum(a.buttons.nbytes + a.camera.nbytes for a in actions)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """Context frames and the commanded actions that follow.

    Example: one context frame of 48 tokens and eight commanded actions: ``context [1, 48]``, ``len(actions) == 8``.
    """

    prompt_id: str
    context: npt.NDArray[np.uint16]
    """[C, N], the encoded context frames."""
    actions: Actions
    """C - 1 + F actions; action i leads into frame i + 1, the last F of them are commanded."""

    def __post_init__(self) -> None:
        _require(self.context.ndim == 2, "prompt context must be [C, N]", self.context.shape)
        _require(self.num_frames >= 1, "a prompt must command at least one frame", len(self.actions))

    @property
    def num_frames(self) -> int:
        """F, the frames to generate."""
        return len(self.actions) - (len(self.context) - 1)

    @property
    def nbytes(self) -> int:
        return _nbytes(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrajectoryGroup:
    """The G trajectories of one prompt, with what is needed to rescore every decision.

    Example: G = 8 clips of 1 + 8 frames with 48 tokens a frame and 11 action tokens between frames:
    ``tokens [8, 520]`` (9 * 48 + 8 * 11), ``behavior_logprobs [8, 384]`` (8 * 48), ``loss_mask`` all true.
    """

    prompt_id: str
    group_id: int
    seed: int
    policy_version: int
    """Version of the weights that sampled; staleness is computed from it when the group is consumed."""
    tokens: npt.NDArray[np.int32]
    """[G, L], the whole sequence: context frames, action tokens, generated frames."""
    behavior_logprobs: npt.NDArray[np.float32]
    """[G, T], over the restricted vocabulary and at the temperature of sampling; T = F * N, frame after frame."""
    loss_mask: npt.NDArray[np.bool_]
    """[G, T], the decisions that train."""

    def __post_init__(self) -> None:
        _require(self.tokens.ndim == 2, "trajectory tokens must be [G, L]", self.tokens.shape)
        shapes = (self.behavior_logprobs.shape, self.loss_mask.shape)
        _require(shapes[0] == shapes[1] and len(shapes[0]) == 2, "logprobs and mask must both be [G, T]", shapes)
        _require(len(self.tokens) == shapes[0][0], "tokens and logprobs must have the same G", self.tokens.shape)

    @property
    def group_size(self) -> int:
        return len(self.tokens)

    @property
    def num_decisions(self) -> int:
        """Decisions that train, over all trajectories."""
        return int(self.loss_mask.sum())

    @property
    def nbytes(self) -> int:
        return _nbytes(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedVideo:
    """What a reward reads: the encoded frames of a group and the actions that were commanded."""

    group_id: int
    tokens: npt.NDArray[np.uint16]
    """[G, C + F, N], context frames first."""
    num_context: int
    actions: Actions
    """C - 1 + F actions, shared by the group; action i leads into frame i + 1."""

    def __post_init__(self) -> None:
        _require(self.tokens.ndim == 3, "video tokens must be [G, C + F, N]", self.tokens.shape)
        _require(
            len(self.actions) == self.tokens.shape[1] - 1, "a video of n frames has n - 1 actions", len(self.actions)
        )

    @property
    def num_frames(self) -> int:
        """F, the generated frames."""
        return self.tokens.shape[1] - self.num_context

    @property
    def nbytes(self) -> int:
        return _nbytes(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardScores:
    """What a reward says about one group; small, so that it may pass through the driver."""

    group_id: int
    frame_rewards: npt.NDArray[np.float32]
    """[G, F], under the configured rule."""
    rules: dict[str, float] = field(default_factory=dict)
    """Mean of each comparison rule over the group's frames, for the log."""
    confusion: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    """Action group -> [classes, classes] counts, rows commanded, columns recovered."""

    def __post_init__(self) -> None:
        _require(self.frame_rewards.ndim == 2, "frame rewards must be [G, F]", self.frame_rewards.shape)
