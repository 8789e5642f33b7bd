"""Training windows of inverse dynamics models: drawn from recordings, mirrored and augmented.

Legend: B windows, F frames, N frames of all recordings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from rlir_ray.data.recordings import Recording
from rlir_ray.spaces.actions import BUTTON_INDEX, IDM_BUTTONS, VPT_CAMERA

Frames = npt.NDArray[np.uint8]
Reconstruct = Callable[[Frames], Frames]
NUM_BUTTONS, NUM_BINS = len(IDM_BUTTONS), VPT_CAMERA.num_bins


@dataclass(frozen=True)
class LabelledFrames:
    """Frames of all recordings, end to end, with their labels.

    Args:
        frames: uint8 [N, H, W, 3].
        buttons: int64 [N, 20], 0 or 1.
        camera: int64 [N, 2], bins of `VPT_CAMERA`.
        offsets: int64 [recordings + 1], index of each recording's first frame, then N.
    """

    frames: Frames
    buttons: npt.NDArray[np.int64]
    camera: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]


def label_frames(recordings: Sequence[Recording]) -> LabelledFrames:
    """Concatenate recordings.

    Raises:
        ValueError: there are no recordings.
    """
    if not recordings:
        raise ValueError("training needs at least one recording, got none; make some with: python -m rlir_ray collect")
    actions = [recording.actions for recording in recordings]
    return LabelledFrames(
        frames=np.concatenate([recording.frames for recording in recordings]),
        buttons=np.concatenate([a.buttons[:, :NUM_BUTTONS] for a in actions]).astype(np.int64),
        camera=np.concatenate([VPT_CAMERA.bins(a.camera) for a in actions]),
        offsets=np.cumsum([0, *map(len, actions)]),
    )


def draw_windows(
    data: LabelledFrames,
    rng: np.random.Generator,
    num_clips: int,
    num_frames: int,
    *,
    augmentation: float = 0.0,
    reconstructed_share: float = 0.0,
    reconstruct: Reconstruct | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw windows within recordings; reconstruct a share of the windows, mirror half of them, augment all.

    Args:
        data: the recordings.
        rng: draws windows, mirroring and augmentation.
        num_clips: B.
        num_frames: F.
        augmentation: strength, see `augment`.
        reconstructed_share: share of the windows that are reconstructed.
        reconstruct: encodes and decodes frames uint8 [frames, H, W, 3] with a tokenizer.

    Returns:
        Frames uint8 [B, F, H, W, 3], buttons int64 [B, F, 20], camera int64 [B, F, 2].

    Raises:
        ValueError: no recording holds a window.
    """
    starts_in = np.maximum(np.diff(data.offsets) - num_frames + 1, 0)  # number of windows in each recording
    if not starts_in.sum():
        raise ValueError(
            f"a recording must hold {num_frames} frames, the longest has {np.diff(data.offsets).max()}; record longer "
            "episodes"
        )
    picks = rng.choice(len(starts_in), num_clips, p=starts_in / starts_in.sum())
    starts = data.offsets[picks] + rng.integers(starts_in[picks])
    rows = starts[:, None] + np.arange(num_frames)
    frames = data.frames[rows]
    if reconstruct and (num_reconstructed := round(reconstructed_share * num_clips)):
        chosen = frames[:num_reconstructed]
        frames[:num_reconstructed] = reconstruct(chosen.reshape(-1, *chosen.shape[2:])).reshape(chosen.shape)
    mirrored = rng.random(num_clips) < 0.5
    frames[mirrored] = frames[mirrored, :, :, ::-1]
    buttons, camera = mirror(data.buttons[rows], data.camera[rows], mirrored)
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    changed = augment(torch.from_numpy(frames), generator, augmentation)
    return changed, torch.from_numpy(buttons), torch.from_numpy(camera)


def mirror(
    buttons: npt.NDArray[np.int64], camera: npt.NDArray[np.int64], mirrored: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the labels of mirrored frames: swap left and right, negate yaw. [B, F, 20], [B, F, 2], mirrored [B]."""
    buttons, camera = buttons.copy(), camera.copy()
    left, right = BUTTON_INDEX["left"], BUTTON_INDEX["right"]
    buttons[mirrored, :, left], buttons[mirrored, :, right] = buttons[mirrored, :, right], buttons[mirrored, :, left]
    camera[mirrored, :, 1] = NUM_BINS - 1 - camera[mirrored, :, 1]
    return buttons, camera


def augment(frames: Tensor, generator: torch.Generator, strength: float) -> Tensor:
    """Imitate a tokenizer's errors (brightness, blur, flickering patches, noise) in frames uint8 [B, F, H, W, 3]."""
    if not strength:
        return frames
    num_clips, num_frames, height, width, _ = frames.shape

    def draw(*shape: int) -> Tensor:
        return torch.empty(shape).uniform_(-1, 1, generator=generator)

    per_clip = (num_clips, 1, 1, 1, 1)
    contrast, brightness = 1 + 0.15 * strength * draw(*per_clip), 10 * strength * draw(*per_clip)
    x = (frames.float() - 96) * contrast + (96 + brightness)
    images = x.flatten(0, 1).permute(0, 3, 1, 2)
    smooth = functional.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    blur = (0.9 * min(strength, 1) * draw(*per_clip).clamp_min(0)).expand(-1, num_frames, 1, 1, 1).reshape(-1, 1, 1, 1)
    # Patches of about a token's size flicker from frame to frame, as reconstructed frames do.
    patches = functional.interpolate(
        draw(num_clips * num_frames, 1, height // 4, width // 4), (height, width), mode="bilinear"
    )
    images = torch.lerp(images, smooth, blur) + 6 * strength * draw(1) * patches
    noise = 8 * strength * draw(1) * draw(*images.shape)
    changed = (images + noise).round_().clamp_(0, 255).to(torch.uint8)
    clips: Tensor = changed.permute(0, 2, 3, 1).unflatten(0, (num_clips, num_frames))
    return clips.contiguous()
