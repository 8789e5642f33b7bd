"""Training windows of inverse dynamics models: drawn from recordings, mirrored and augmented.

Legend: B windows, F frames, N frames of all recordings, h heads of one kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from rlir_ray.data.recordings import Recording
from rlir_ray.idm.base import resize_frames
from rlir_ray.idm.heads import Heads
from rlir_ray.spaces.fields import Axis
from rlir_ray.spaces.layouts import check_space
from rlir_ray.spaces.space import Actions, ActionSpace

Frames = npt.NDArray[np.uint8]
Reconstruct = Callable[[Frames], Frames]
Labels = Mapping[str, npt.NDArray[np.int64]]
"""Kind of head -> labels, int64 [..., h]."""


@dataclass(frozen=True)
class LabelledFrames:
    """Frames of all recordings, end to end, with their labels.

    Args:
        frames: uint8 [N, H, W, 3].
        labels: kind of head -> int64 [N, h].
        mirrored: the labels of the mirrored frames; None: a mirrored picture would show unknown actions.
        offsets: int64 [recordings + 1], index of each recording's first frame, then N.
    """

    frames: Frames
    labels: Labels
    mirrored: Labels | None
    offsets: npt.NDArray[np.int64]


def recorded_space(recordings: Sequence[Recording]) -> ActionSpace:
    """Return the action space of recordings.

    Raises:
        ValueError: there are no recordings, or they have several spaces.
    """
    if not recordings:
        raise ValueError("training needs at least one recording, got none; make some with: python -m rlir_ray collect")
    first, *others = recordings
    for one in others:
        check_space(first.actions.space, one.actions.space, f"recording {first.name}", f"recording {one.name}")
    return first.actions.space


def label_frames(recordings: Sequence[Recording], heads: Heads) -> LabelledFrames:
    """Concatenate recordings.

    Raises:
        ValueError: there are no recordings, or the heads are of another action space.
    """
    space, actions = recorded_space(recordings), [recording.actions for recording in recordings]
    is_mirrored = any(field.is_mirrored for field in space.fields)
    return LabelledFrames(
        frames=np.concatenate([recording.frames for recording in recordings]),
        labels=_joined([heads.labels(each) for each in actions]),
        mirrored=_joined([heads.labels(mirror(each)) for each in actions]) if is_mirrored else None,
        offsets=np.cumsum([0, *map(len, actions)]),
    )


def _joined(parts: Sequence[Labels]) -> Labels:
    return {kind: np.concatenate([part[kind] for part in parts]) for kind in parts[0]}


def mirror(actions: Actions) -> Actions:
    """Return the actions that mirrored frames show, as left for right; numbers become the centres of their bins."""
    values = actions.values.copy()
    for column, field in enumerate(actions.space.fields):
        if field.is_mirrored:
            centres = field.centres(field.mirrored(actions.classes[:, column]))
            # Rounding may bring the centre of the last bin of a mu-law out of the range.
            values[:, column] = centres.clip(field.low, field.high) if isinstance(field, Axis) else centres
    return Actions(actions.space, values)


def draw_windows(
    data: LabelledFrames,
    rng: np.random.Generator,
    num_clips: int,
    num_frames: int,
    *,
    size: tuple[int, int] | None = None,
    augmentation: float = 0.0,
    reconstructed_share: float = 0.0,
    reconstruct: Reconstruct | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Draw windows within recordings; reconstruct a share of the windows, mirror half of them, resize and augment all.

    Args:
        data: the recordings.
        rng: draws windows, mirroring and augmentation.
        num_clips: B.
        num_frames: F.
        size: height and width of the windows; None: those of the recordings.
        augmentation: strength, see `augment`.
        reconstructed_share: share of the windows that are reconstructed.
        reconstruct: encodes and decodes clips uint8 [B, F, H, W, 3] with a tokenizer.

    Returns:
        Frames uint8 [B, F, H, W, 3] and labels, kind of head -> int64 [B, F, h].

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
        frames[:num_reconstructed] = reconstruct(frames[:num_reconstructed])
    labels = {kind: table[rows] for kind, table in data.labels.items()}
    if data.mirrored is not None:
        mirrored = rng.random(num_clips) < 0.5
        frames[mirrored] = frames[mirrored, :, :, ::-1]
        for kind, table in data.mirrored.items():
            labels[kind][mirrored] = table[rows[mirrored]]
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    pictures = resize_frames(torch.from_numpy(frames), *(size or frames.shape[2:4]))
    changed = augment(pictures, generator, augmentation)
    return changed, {kind: torch.from_numpy(table) for kind, table in labels.items()}


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
