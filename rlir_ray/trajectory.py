"""The payload: prompts, the trajectories for the learner, the videos for the rewards, and the rewards' scores.

All are frozen dataclasses of numpy arrays, because the object store shares numpy arrays without a copy.
Legend: G trajectories of a group, T decisions, C context and F generated frames, N tokens a frame, M tokens of a
keyframe, L tokens in all, S SDE steps of a frame, D h w a latent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from rlir_ray.spaces.space import Actions

if TYPE_CHECKING:
    from torch import Tensor

FrameShape = tuple[int, ...]
"""Shape of an encoded frame: (tokens,) or (channels, height, width)."""
Array = TypeVar("Array")
"""A numpy array in the object store, a torch tensor on the learner's device."""


def _require(rule: bool, what: str, got: object) -> None:
    if not rule:
        raise ValueError(f"{what}, got {got}")


def _nbytes(payload: object) -> int:
    """Sum the bytes of all arrays of a payload and its parts."""
    if isinstance(payload, np.ndarray):
        return payload.nbytes
    if not isinstance(payload, Actions | TokenRecord | FlowRecord | Prompt | TrajectoryGroup | EncodedVideo):
        return 0
    return sum(_nbytes(getattr(payload, entry.name)) for entry in fields(payload))


def _check_keyframe(keyframe: npt.NDArray[np.generic] | None) -> None:
    _require(
        keyframe is None or keyframe.ndim == 1, "a keyframe must be [M]", None if keyframe is None else keyframe.shape
    )


def _check_recorded(recorded: npt.NDArray[np.generic] | None, shape: FrameShape) -> None:
    _require(
        recorded is None or recorded.shape == shape,
        f"a recorded future must be {shape}",
        None if recorded is None else recorded.shape,
    )


NOT_FINITE = "must be finite, got NaN or infinity; lower train.learning_rate, or start from another policy"


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """Context frames and the commanded actions that follow.

    Example: one context frame of 48 tokens and eight commanded actions: ``context [1, 48]``, ``len(actions) == 8``.
    """

    prompt_id: str
    context: npt.NDArray[np.generic]
    """The encoded context frames, as `stored_codes`: tokens [C, N], or latents [C, D, h, w]."""
    actions: Actions
    """C - 1 + F actions; action i leads into frame i + 1, the last F actions are commanded."""
    keyframe: npt.NDArray[np.generic] | None = None
    """[M], the first context frame in full, as `stored_codes`; None: the codec decodes each frame alone."""
    recorded: npt.NDArray[np.generic] | None = None
    """The encoded recorded future, [F, N] or [F, D, h, w], as `stored_codes`; None: no part of the run reads it."""

    def __post_init__(self) -> None:
        _require(self.context.ndim in (2, 4), "prompt context must be [C, N] or [C, D, h, w]", self.context.shape)
        _require(self.num_frames >= 1, "a prompt must command at least one frame", len(self.actions))
        _check_recorded(self.recorded, (self.num_frames, *self.context.shape[1:]))
        _check_keyframe(self.keyframe)

    @property
    def num_frames(self) -> int:
        """F, the frames to generate."""
        return len(self.actions) - (len(self.context) - 1)

    @property
    def recorded_clip(self) -> npt.NDArray[np.generic] | None:
        """[C + F, N] or [C + F, D, h, w], the context and the recorded frames; None: not asked for."""
        return None if self.recorded is None else np.concatenate([self.context, self.recorded])

    @property
    def nbytes(self) -> int:
        return _nbytes(self)


@dataclass(frozen=True, slots=True)
class TokenRecord(Generic[Array]):
    """The data that rescoring an autoregressive rollout needs.

    Example: 8 clips of 1 + 8 frames with 48 tokens a frame and 11 action tokens between: ``tokens [8, 520]``.
    """

    tokens: Array
    """int32 [G, L], the whole sequence: keyframe if any, context frames, action tokens, generated frames."""


@dataclass(frozen=True, slots=True)
class FlowRecord(Generic[Array]):
    """The data that rescoring the SDE steps of a flow rollout needs: exactly the inputs of each step.

    Example: 8 clips of 1 + 8 frames, a window of 3 steps, latents 8 x 6 x 8: ``latents [8, 8, 4, 8, 6, 8]``,
    ``history [8, 8, 8, 6, 8]``.
    """

    latents: Array
    """float32 [G, F, S + 1, D, h, w], latents before each step of the window and after the last step; without a window
    (S = 0) the finished frame."""
    levels: Array
    """float32 [G, F, S + 1], noise levels of `latents`."""
    history: Array
    """float32 [G, C + F - 1, D, h, w], each frame as later frames saw it, with its slight noise."""
    history_levels: Array
    """float32 [G, C + F - 1], levels of the noise in `history`."""
    actions: Array
    """uint8 [G, C + F, columns], classes of the action that leads into each frame (`spaces.layouts`); no action leads
    into the first."""
    means: Array | None = None
    """float32 [G, F, S, D, h, w], mean of each step under the behavior policy; None: the objective needs no means."""
    pair_seeds: Array | None = None
    """int64 [G], seeds of the levels and noise at which the clean latents are scored; None: they are not scored."""


Record = TokenRecord[npt.NDArray[np.generic]] | FlowRecord[npt.NDArray[np.generic]]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrajectoryGroup:
    """The G trajectories of one prompt, with all data that rescoring their decisions needs.

    Example: G = 8 clips of 8 generated frames: with 48 tokens a frame ``behavior_logprobs [8, 384]``, with a window of
    3 SDE steps ``[8, 24]``; ``loss_mask`` all true.
    """

    prompt_id: str
    group_id: int
    seed: int
    policy_version: int
    """Version of the weights that sampled; the driver computes staleness from this version when it consumes the
    group."""
    record: Record
    """The columns of the model's family."""
    behavior_logprobs: npt.NDArray[np.float32] | None
    """[G, T], frame after frame. Tokens: over the ids drawn from, at the sampling temperature, T = F * N. SDE
    steps: mean over the latent's numbers, T = F * S. Clean latents: the negative flow-matching error of each of a
    frame's S pairs, T = F * S. None: the objective needs no log-probabilities (DiffusionNFT)."""
    loss_mask: npt.NDArray[np.bool_]
    """[G, T], the decisions that train; without log-probabilities T = F, one decision a frame."""
    recorded: npt.NDArray[np.generic] | None = None
    """[C + F, N] or [C + F, D, h, w], the recorded clip of the prompt (`Prompt.recorded_clip`); None: not asked for."""

    def __post_init__(self) -> None:
        size, mask = self.group_size, self.loss_mask
        _require(mask.ndim == 2 and len(mask) == size, f"a mask of {size} clips must be [G, T]", mask.shape)
        if self.behavior_logprobs is not None:
            shapes = (self.behavior_logprobs.shape, mask.shape)
            _require(shapes[0] == shapes[1], "logprobs and mask must both be [G, T]", shapes)
        sizes = {
            len(getattr(self.record, entry.name))
            for entry in fields(self.record)
            if getattr(self.record, entry.name) is not None
        }
        _require(sizes == {size}, "all columns of a record must have the same G", sizes)

    @property
    def group_size(self) -> int:
        first: npt.NDArray[np.generic] = getattr(self.record, fields(self.record)[0].name)
        return len(first)

    def not_finite(self) -> str:
        """Say in one line which column holds NaN or infinity, so that the group cannot train; empty: all are finite."""
        logprobs = self.behavior_logprobs
        if logprobs is not None and not np.isfinite(logprobs[self.loss_mask]).all():
            return f"behavior log-probabilities {NOT_FINITE}"
        for entry in fields(self.record):
            column = getattr(self.record, entry.name)
            if column is not None and not np.isfinite(column).all():
                return f"a rollout's {entry.name} {NOT_FINITE}"
        return ""

    @property
    def num_decisions(self) -> int:
        """Decisions that train, over all trajectories."""
        return int(self.loss_mask.sum())

    @property
    def nbytes(self) -> int:
        return _nbytes(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedVideo:
    """The input of a reward: the encoded frames of a group and its commanded actions."""

    group_id: int
    codes: npt.NDArray[np.generic]
    """Context frames first, as `stored_codes`: tokens [G, C + F, N], or latents [G, C + F, D, h, w]."""
    num_context: int
    actions: Actions
    """C - 1 + F actions, shared by the group; action i leads into frame i + 1."""
    keyframe: npt.NDArray[np.generic] | None = None
    """[M], shared by the group: the prompt's keyframe, which decoding needs; None: each frame is decoded alone."""
    policy_version: int = 0
    """Version of the weights that sampled."""
    recorded: npt.NDArray[np.generic] | None = None
    """[F, N] or [F, D, h, w], shared by the group: the prompt's recorded future; None: the prompt holds none."""

    def __post_init__(self) -> None:
        _require(
            self.codes.ndim in (3, 5), "video codes must be [G, C + F, N] or [G, C + F, D, h, w]", self.codes.shape
        )
        _require(
            len(self.actions) == self.codes.shape[1] - 1, "a video of n frames has n - 1 actions", len(self.actions)
        )
        _check_keyframe(self.keyframe)
        _check_recorded(self.recorded, (self.num_frames, *self.codes.shape[2:]))

    @property
    def num_frames(self) -> int:
        """F, the generated frames."""
        return int(self.codes.shape[1]) - self.num_context

    @property
    def nbytes(self) -> int:
        return _nbytes(self)


def stored_codes(codes: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Convert encoded frames of any shape to the narrowest type that holds all values.

    Tokens become uint16, or uint32 if a token is above 65,535. Latents become float16, which is more precise than their
    decoder needs, or float32 if a value is beyond float16's 65,504.

    Raises:
        ValueError: a token is negative or above 4,294,967,295.
    """
    if codes.dtype.kind == "f":
        with np.errstate(over="ignore"):
            narrow = codes.astype(np.float16)
        return codes.astype(np.float32) if (np.isinf(narrow) & np.isfinite(codes)).any() else narrow
    least, most = (int(codes.min()), int(codes.max())) if codes.size else (0, 0)
    if least < 0 or most > np.iinfo(np.uint32).max:
        raise ValueError(f"tokens must be in 0..4294967295, got {least}..{most}; encode with the policy's tokenizer")
    return codes.astype(np.uint16 if most <= np.iinfo(np.uint16).max else np.uint32)


@dataclass(frozen=True, slots=True)
class EncodedClips:
    """Clips of one length as a frame codec encodes them."""

    codes: Tensor
    """int64 [B, n, N] or float32 [B, n, D, h, w]."""
    keyframes: Tensor | None = None
    """int64 [B, M]; None: the codec decodes each frame alone."""

    def __getitem__(self, rows: slice) -> EncodedClips:
        return EncodedClips(self.codes[rows], None if self.keyframes is None else self.keyframes[rows])


def encoded_clips(videos: Sequence[EncodedVideo]) -> EncodedClips:
    """Stack the clips of videos of one length, all with a keyframe or all without one."""
    # Imported here: processes that only pass payloads on, or score them without torch, need not load torch.
    import torch

    codes = np.concatenate([video.codes for video in videos])
    found = torch.from_numpy(codes.astype(np.float32 if codes.dtype.kind == "f" else np.int64))
    given = [video.keyframe.astype(np.int64) for video in videos if video.keyframe is not None]
    if not given:
        return EncodedClips(found)
    _require(len(given) == len(videos), "all videos of a batch must have a keyframe, or none", len(given))
    keyframes = np.repeat(np.stack(given), [len(video.codes) for video in videos], 0)
    return EncodedClips(found, torch.from_numpy(keyframes))


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardScores:
    """The result of a reward for one group, small enough to pass through the driver."""

    group_id: int
    frame_rewards: npt.NDArray[np.float32]
    """[G, F], under the configured rule."""
    rules: dict[str, float] = field(default_factory=dict)
    """Mean of each comparison rule over the group's frames, for the log."""
    terms: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    """Label of a term of the reward -> [G, F], its own rewards, without weight; empty: the reward has no terms."""
    confusion: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    """Field -> [classes, classes] counts, rows commanded, columns recovered."""
    null_classes: dict[str, int | None] = field(default_factory=dict)
    """Field of `confusion` -> its class that does nothing; 0 for a field that is missing here."""
    axis_errors: dict[str, float] = field(default_factory=dict)
    """Graded axis -> mean distance of the recovered from the commanded numbers, as a share of its range."""
    failure: str = ""
    """Why the group could not be scored, in one line; the ledger counts the group as failed, and training goes on."""

    def __post_init__(self) -> None:
        _require(self.frame_rewards.ndim == 2, "frame rewards must be [G, F]", self.frame_rewards.shape)
        if not self.failure and not (self.frame_rewards.size and np.isfinite(self.frame_rewards).all()):
            found = "none" if not self.frame_rewards.size else "NaN or infinity"
            object.__setattr__(self, "failure", f"rewards must be finite numbers, got {found}; check the reward")

    @classmethod
    def failed(cls, group_id: int, cause: str) -> RewardScores:
        """Return the scores of a group that could not be scored."""
        return cls(group_id=group_id, frame_rewards=np.zeros((0, 0), np.float32), failure=cause)

    def to_json(self) -> dict[str, object]:
        """Return plain values for a checkpoint; `from_json` reads them."""
        return {
            "group_id": self.group_id,
            "frame_rewards": self.frame_rewards.tolist(),
            "rules": {name: float(value) for name, value in self.rules.items()},
            "terms": {label: rewards.tolist() for label, rewards in self.terms.items()},
            "confusion": {name: np.asarray(counts).tolist() for name, counts in self.confusion.items()},
            "null_classes": self.null_classes,
            "axis_errors": self.axis_errors,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> RewardScores:
        return cls(
            group_id=content["group_id"],
            frame_rewards=np.array(content["frame_rewards"], np.float32),
            rules=content["rules"],
            terms={label: np.array(rewards, np.float32) for label, rewards in content.get("terms", {}).items()},
            confusion={name: np.array(counts, np.int64) for name, counts in content["confusion"].items()},
            null_classes=content.get("null_classes", {}),
            axis_errors=content.get("axis_errors", {}),
        )


def check_scores(scores: Sequence[RewardScores], videos: Sequence[EncodedVideo]) -> None:
    """Check that a reward has scored every clip and frame of every video; the reward may be a user's own.

    Raises:
        ValueError: scores are missing, in another order, or of another type or shape.
    """
    if len(scores) != len(videos):
        raise ValueError(f"a reward must score every video, got {len(scores)} scores of {len(videos)} videos")
    for each, video in zip(scores, videos, strict=True):
        if not isinstance(each, RewardScores):
            raise ValueError(f"a reward must give RewardScores for every video, got {type(each).__name__}")
        if each.group_id != video.group_id:
            raise ValueError(f"scores must be in the order of the videos, got {each.group_id} for {video.group_id}")
        _require(
            bool(each.failure) or each.frame_rewards.shape == (len(video.codes), video.num_frames),
            f"frame rewards of group {video.group_id} must be {(len(video.codes), video.num_frames)}",
            each.frame_rewards.shape,
        )
