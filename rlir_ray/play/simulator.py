"""The simulator: a world model that continues B clips frame by frame, for any number of frames.

Legend: B clips, C context frames, n frames so far, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlir_ray.algorithm.seeds import frame_seed
from rlir_ray.models.clip_codec import ClipCodec
from rlir_ray.spaces.layouts import check_space
from rlir_ray.spaces.space import Actions, ActionSpace
from rlir_ray.trajectory import EncodedClips

if TYPE_CHECKING:
    from rlir_ray.samplers.stepping import Stepper


@dataclass(frozen=True, slots=True)
class _Frame:
    """One frame of all clips."""

    codes: Tensor
    """[B, ...]."""
    pixels: npt.NDArray[np.uint8]
    """[B, H, W, 3]."""
    actions: tuple[Actions, ...]
    """The action that led into the frame, one of each clip."""
    start: int
    """First frame that the model read when it drew this frame."""


class Simulator:
    """A world model that continues clips, one frame a call.

    The model reads its last frames alone once a clip is longer than the model's window. The same context, seeds and
    actions give the same frames; after `undo`, but for rounding. A codec with keyframes encodes each new window anew,
    and after an undo again, which changes later frames a little.

    Args:
        stepper: draws the frames.
        codec: encodes the context and decodes the frames.
        space: of the actions.
    """

    def __init__(self, stepper: Stepper, codec: ClipCodec, space: ActionSpace) -> None:
        self.stepper, self.codec, self.space = stepper, codec, space
        self._frames: list[_Frame] = []
        self._seeds: tuple[int, ...] = ()
        self._num_context = 0
        self._start, self._is_read = 0, False
        self._first_keyframes: Tensor | None = None
        self._keyframes: Tensor | None = None

    @property
    def num_clips(self) -> int:
        """B; 0 before `reset`."""
        return len(self._seeds)

    @property
    def num_generated(self) -> int:
        """Frames after the context."""
        return len(self._frames) - self._num_context

    @property
    def frames(self) -> npt.NDArray[np.uint8]:
        """All frames so far, uint8 [B, n, H, W, 3], the context as the codec shows it."""
        return np.stack([frame.pixels for frame in self._frames], 1)

    def last_frames(self, number: int) -> npt.NDArray[np.uint8]:
        """Return the last frames, at most `number`, uint8 [B, n, H, W, 3]."""
        return np.stack([frame.pixels for frame in self._frames[-number:]], 1)

    @property
    def actions(self) -> list[Actions]:
        """The n actions of each clip; action i led into frame i, and the first one does nothing."""
        return [
            Actions(self.space, np.concatenate([frame.actions[clip].values for frame in self._frames]))
            for clip in range(self.num_clips)
        ]

    @torch.inference_mode()
    def reset(
        self, context: npt.NDArray[np.uint8], seeds: Sequence[int], actions: Sequence[Actions] | None = None
    ) -> npt.NDArray[np.uint8]:
        """Begin new clips.

        Args:
            context: uint8 [B, C, H, W, 3].
            seeds: one of each clip.
            actions: C - 1 actions of each clip, between the context frames; None: nothing was done.

        Returns:
            The last context frames as the codec shows them, uint8 [B, H, W, 3].

        Raises:
            ValueError: the frames have another size, or the numbers of clips or actions differ.
        """
        num_clips, num_context = context.shape[:2]
        self.codec.check_frames(torch.from_numpy(context))
        nothing = self.space.nothing(1)
        given = actions if actions is not None else [self.space.nothing(num_context - 1)] * num_clips
        found = len(seeds), len(given), {len(each) for each in given}
        if found != (num_clips, num_clips, {num_context - 1}) or not num_context:
            raise ValueError(
                f"clips must have a seed, a context frame and an action between two context frames each, got "
                f"{num_clips} clips of {num_context} frames, {found[0]} seeds and actions of {found[1]} clips in "
                f"numbers {sorted(found[2])}; give one of each"
            )
        for each in given:
            check_space(self.space, each.space, "the world model", "the actions")
        encoded = self.codec.encode_clips(torch.from_numpy(context))
        shown = self.codec.decode_clips(encoded).cpu().numpy()
        rows = [nothing.followed_by(each) for each in given]
        self._frames = [
            _Frame(encoded.codes[:, number], shown[:, number], tuple(row[number : number + 1] for row in rows), 0)
            for number in range(num_context)
        ]
        self._seeds, self._num_context = tuple(seeds), num_context
        self._first_keyframes = self._keyframes = encoded.keyframes
        self._start, self._is_read = max(0, num_context - self.stepper.num_frames + 1), False
        return shown[:, -1]

    @torch.inference_mode()
    def step(self, actions: Sequence[Actions]) -> npt.NDArray[np.uint8]:
        """Generate the next frame of each clip.

        Args:
            actions: one action of each clip, which leads into the new frame.

        Returns:
            uint8 [B, H, W, 3].

        Raises:
            ValueError: the numbers of clips differ, or the actions are of another space.
        """
        if not self._frames or [len(each) for each in actions] != [1] * self.num_clips:
            raise ValueError(
                f"a step needs one action of each of {self.num_clips} clips, got {[len(each) for each in actions]}; "
                "call reset first, and give one action a clip"
            )
        place = len(self._frames)
        if place - self._start >= self.stepper.num_frames:
            self._start, self._is_read = place - self.stepper.num_kept, False
        if not self._is_read:
            self._read_window()
        codes = self.stepper.step(actions, [frame_seed(seed, 0, place) for seed in self._seeds])
        pixels = self.codec.decode_clips(EncodedClips(codes[:, None], self._keyframes)).cpu().numpy()[:, 0]
        self._frames.append(_Frame(codes, pixels, tuple(actions), self._start))
        return pixels

    def undo(self) -> npt.NDArray[np.uint8]:
        """Drop the last frame; return the frame before it, uint8 [B, H, W, 3].

        Raises:
            ValueError: there is no frame after the context.
        """
        if not self.num_generated:
            raise ValueError("undo needs a frame after the context, got none; step first")
        self._start, self._is_read = self._frames.pop().start, False
        return self._frames[-1].pixels

    def _read_window(self) -> None:
        """Let the model read the frames of its window anew."""
        window = self._frames[self._start :]
        codes = torch.stack([frame.codes for frame in window], 1)
        if not self._start:
            self._keyframes = self._first_keyframes
        elif self._keyframes is not None:
            # A window has a keyframe of its own, its first frame.
            encoded = self.codec.encode_clips(torch.from_numpy(np.stack([frame.pixels for frame in window], 1)))
            codes, self._keyframes = encoded.codes, encoded.keyframes
        actions = [
            Actions(self.space, np.concatenate([frame.actions[clip].values for frame in window]))
            for clip in range(self.num_clips)
        ]
        numbers = range(self._start, len(self._frames))
        seeds = [[frame_seed(seed, 0, number) for number in numbers] for seed in self._seeds]
        self.stepper.start(EncodedClips(codes, self._keyframes), actions, seeds)
        self._is_read = True
