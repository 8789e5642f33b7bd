"""Guards: terms that keep the look of generated clips near that of real clips, so that a reward cannot be hacked.

Legend: G trajectories of a group, C context frames, F generated frames, P real clips, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlir_ray.config import require
from rlir_ray.rewards.frame_figures import FRAME_FIGURES, brightness, sharpness
from rlir_ray.rewards.term import GroupClips, Term
from rlir_ray.spaces.fields import Axis
from rlir_ray.spaces.space import Actions
from rlir_ray.trajectory import encoded_clips

if TYPE_CHECKING:
    from rlir_ray.models.clip_codec import ClipCodec
    from rlir_ray.rewards.base import RewardContext
    from rlir_ray.trajectory import EncodedVideo

# Weight of the squared coefficients in the regression, in clips: some classes occur in few of the real clips.
RIDGE = 1.0
# Real clips that are decoded together.
CLIPS_AT_ONCE = 16
# A deviation below this share of the figure's range is rounding.
LEAST_DEVIATION = 1e-3
# Fewer real clips do not tell what is usual under an action.
MIN_CLIPS = 16
NUM_BINS = 32


@dataclass(frozen=True, slots=True)
class UsualFigure:
    """The figure of real clips, predicted from the commanded actions and from the context frame."""

    coefficients: npt.NDArray[np.float64]
    """[features], of `_features`."""
    deviation: float
    """Standard deviation of real clips from the prediction."""

    @classmethod
    def fit(cls, features: npt.NDArray[np.float64], figures: npt.NDArray[np.float64]) -> UsualFigure:
        """Fit by ridge regression; features [P, n] with a constant first, figures [P]."""
        penalty = RIDGE * np.eye(features.shape[1])
        penalty[0, 0] = 0.0  # the mean is not pulled to zero
        coefficients = np.linalg.solve(features.T @ features + penalty, features.T @ figures).astype(np.float64)
        rest = figures - features @ coefficients
        return cls(coefficients, max(float(rest.std()), LEAST_DEVIATION))

    def distance(self, features: npt.NDArray[np.float64], figures: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the distance of figures [G] from the prediction for features [n], in standard deviations."""
        distance: npt.NDArray[np.float64] = np.abs(figures - features @ self.coefficients) / self.deviation
        return distance


class Guard(Term):
    """Minus the distance of a clip's figure from that of real clips with the same actions and a like context frame.

    The figure is the mean over the generated frames. A linear model, fitted on the real clips of the training prompts
    through the codec, predicts it from the shares of the commanded classes, the means of the commanded axes, and the
    context frame. Every frame of a clip gets the clip's number.

    Args:
        codec: decodes the real clips.
        real: encoded real clips, one a group.
        names: the fields of the actions that the prediction uses.
        tolerance: distance in standard deviations that costs nothing.

    Raises:
        ValueError: there are too few real clips.
    """

    reads_real = True
    figure: ClassVar[str]
    """Name in `FRAME_FIGURES`."""
    is_ratio: ClassVar[bool] = False
    """Whether the figure is compared by its logarithm, as a ratio."""

    def __init__(
        self, codec: ClipCodec, real: Sequence[EncodedVideo], names: Sequence[str], tolerance: float = 0.0
    ) -> None:
        require(tolerance >= 0, "args.tolerance of a guard", "must be >= 0", tolerance, "use 0")
        require(
            len(real) >= MIN_CLIPS,
            "a guard",
            f"must have {MIN_CLIPS} real clips of the training prompts or more",
            len(real),
            "raise prompts.num_train, or give the prompts of your program their frames",
        )
        self.names, self.tolerance = tuple(names), tolerance
        features, figures = [], []
        for start in range(0, len(real), CLIPS_AT_ONCE):
            part = real[start : start + CLIPS_AT_ONCE]
            frames = codec.decode_clips(encoded_clips(part))
            for video, clip in zip(part, frames, strict=True):
                commanded = video.actions[video.num_context - 1 :]
                found, context = self._figures(clip[None], video.num_context)
                features.append(_features(commanded, self.names, context))
                figures.append(found[0])
        self.usual = UsualFigure.fit(np.stack(features), np.array(figures))

    @classmethod
    def from_context(cls, context: RewardContext, tolerance: float = 0.0) -> Guard:
        codec = context.open_codec().to(context.device)
        with torch.no_grad():
            return cls(codec, context.real(), context.config.world.groups, tolerance)

    def score(self, clips: GroupClips) -> npt.NDArray[np.float32]:
        """Return the clip's number for each frame, [G, F]."""
        figures, context = self._figures(clips.frames, clips.num_context)
        distance = self.usual.distance(_features(clips.commanded, self.names, context), figures)
        costs = np.maximum(distance - self.tolerance, 0)
        return np.repeat(-costs[:, None], len(clips.commanded), 1).astype(np.float32)

    def _figures(self, frames: Tensor, num_context: int) -> tuple[npt.NDArray[np.float64], list[float]]:
        """Return the figure of each clip [G], and the figures of the context frame that predict it."""
        figures = FRAME_FIGURES[self.figure](frames, frames.shape[1] - num_context).double().cpu().numpy()  # [G, F]
        last = frames[:1, num_context - 1 : num_context]
        light, detail = float(brightness(last, 1)), float(sharpness(last, 1))
        if self.is_ratio:
            return np.log(figures + 1).mean(1), [np.log(light + 1), np.log(detail + 1)]
        return figures.mean(1), [light, detail]


class Brightness(Guard):
    """The guard of the mean pixel."""

    figure = "brightness"


class Sharpness(Guard):
    """The guard of fine detail: blurred or over-sharpened clips."""

    figure = "sharpness"
    is_ratio = True


class Motion(Guard):
    """The guard of the change between frames: frozen or shaking clips."""

    figure = "motion"
    is_ratio = True


class Context(Term):
    """Minus the distance of each frame's colours to those of the last context frame.

    The distance is the earth mover's distance of the histograms of red, green and blue, in shares of the range 0..255,
    averaged over the colours. It sees other colours, not the motion.
    """

    def score(self, clips: GroupClips) -> Tensor:
        """Return minus the distance of each frame, [G, F]."""
        generated = _cumulative(clips.generated)
        context = _cumulative(clips.frames[:, clips.num_context - 1 : clips.num_context])
        return -(generated - context).abs().mean((-2, -1))


def _cumulative(frames: Tensor) -> Tensor:
    """Return the cumulative histograms of the colours, uint8 [B, n, H, W, 3] to float32 [B, n, 3, bins]."""
    bins = (frames.long() * NUM_BINS) // 256
    flat = bins.movedim(-1, 2).flatten(3)  # [B, n, 3, H W]
    counts = torch.zeros(*flat.shape[:3], NUM_BINS, device=frames.device)
    counts.scatter_add_(-1, flat, torch.ones_like(flat, dtype=torch.float32))
    return counts.cumsum(-1) / flat.shape[-1]


def _features(commanded: Actions, names: Sequence[str], context: Sequence[float]) -> npt.NDArray[np.float64]:
    """Return what predicts the figure of a clip: 1, the context's figures, and means over the commanded actions."""
    parts = [np.ones(1), np.asarray(context, np.float64)]
    for field in commanded.space.select(names):
        values = commanded.values_of([field.name])[:, 0]
        if isinstance(field, Axis):
            # Also the size: turning left or right moves the picture alike.
            share = values.clip(field.low, field.high) / max(abs(field.low), abs(field.high))
            parts.append(np.array([share.mean(), np.abs(share).mean()]))
        else:
            parts.append(np.bincount(field.bins(values), minlength=field.num_classes) / len(values))
    return np.concatenate(parts)
