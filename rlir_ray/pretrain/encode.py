"""Encoding of recordings into one file of tokens or latents, on which world models are trained.

Legend: F or n frames, E recordings or clips of them, N tokens a frame, M tokens of a keyframe, D h w a latent; the
actions have a column a field.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from rlir_ray.data.recordings import Recording, Split
from rlir_ray.models.clip_codec import ClipCodec
from rlir_ray.run.progress import counted, progress_bar
from rlir_ray.spaces.layouts import SPACE_KEY, ActionLayout, check_layout, check_space
from rlir_ray.spaces.space import Actions, ActionSpace
from rlir_ray.trajectory import stored_codes

logger = logging.getLogger(__name__)

CLIP_FRAMES = 9


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedRecordings:
    """The content of a file that `encode_recordings` wrote: n frames of all recordings, end to end."""

    codes: npt.NDArray[np.generic]
    """Tokens [n, N] or latents [n, D, h, w]."""
    actions: Actions
    """n actions; action k leads into frame k."""
    episode_starts: npt.NDArray[np.int64]
    """[E], first frame of each recording, or of each clip with a keyframe."""
    num_codes: int
    """Number of image ids; 0: the codes are latents."""
    keyframes: npt.NDArray[np.generic] | None = None
    """[E, M]; None: each frame is encoded alone."""
    num_keyframe_codes: int = 0


def encode_recordings(
    codec: ClipCodec, recordings: Iterable[Recording], out_file: Path | str, clip_frames: int = CLIP_FRAMES
) -> int:
    """Encode every frame of recordings into one npz; the file appears only when it is complete.

    Args:
        codec: a tokenizer or an autoencoder of the recordings' frame size.
        recordings: of one action space; the file keeps their order.
        out_file: receives `tokens` [F, tokens_per_frame] or `latents` [F, D, h, w] as `stored_codes`, `num_codes` (with
            tokens), `episode_starts` int64 [E] (index of each recording's first frame), `names` str [E], `actions`
            float32 [F, fields], `action_space` (JSON), and `wall_distance` float32 [F] when every event of every
            recording has a `wallDistance`.
        clip_frames: frames of a clip with a compressive tokenizer. The recordings are cut into such clips, each of
            which starts half a clip after the one before; shorter recordings are left out. The file has the clips end
            to end instead of the recordings, and `keyframes` [E, M] with `num_keyframe_codes`.

    Returns:
        F, the number of encoded frames.

    Raises:
        ValueError: no recordings, or recordings of several action spaces.
    """
    names: list[str] = []
    codes: list[npt.NDArray[np.generic]] = []
    keyframes: list[npt.NDArray[np.generic]] = []
    actions: list[Actions] = []
    walls: list[npt.NDArray[np.float32]] = []
    for recording in recordings:
        parts = _clips(len(recording.frames), clip_frames if codec.num_keyframe_codes else None)
        if not parts:
            continue
        encoded = codec.encode_clips(torch.from_numpy(np.stack([recording.frames[part] for part in parts])))
        codes += list(stored_codes(encoded.codes.cpu().numpy()))
        if encoded.keyframes is not None:
            keyframes.append(stored_codes(encoded.keyframes.cpu().numpy()))
        names += [recording.name] * len(parts)
        actions += [recording.actions[part] for part in parts]
        check_space(actions[0].space, recording.actions.space, f"recording {names[0]}", f"recording {recording.name}")
        walls += [_wall_distance(recording)[part] for part in parts]
    if not names:
        least = f" of {clip_frames} frames" if codec.num_keyframe_codes else ""
        raise ValueError(
            f"an encoding needs at least one readable recording{least}, got none; make some with: python -m rlir_ray "
            "collect"
        )
    frames = np.concatenate(codes)
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "latents" if frames.dtype.kind == "f" else "tokens": frames,
        "episode_starts": np.cumsum([0, *map(len, codes[:-1])]).astype(np.int64),
        "names": np.array(names),
        "actions": np.concatenate([part.values for part in actions]),
        SPACE_KEY: np.array(actions[0].space.to_json()),
    }
    if codec.num_codes is not None:
        arrays["num_codes"] = np.array(codec.num_codes)
    if codec.num_keyframe_codes:
        arrays |= {"keyframes": np.concatenate(keyframes), "num_keyframe_codes": np.array(codec.num_keyframe_codes)}
    if not np.isnan(distances := np.concatenate(walls)).any():
        arrays["wall_distance"] = distances
    out_file = Path(out_file)
    out_file.parent.mkdir(parents=True, exist_ok=True)
    part = out_file.with_name(out_file.name + ".part")
    with part.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # no column is named allow_pickle
    part.replace(out_file)
    return len(frames)


def _clips(num_frames: int, clip_frames: int | None) -> list[slice]:
    """Return the clips of a recording; without `clip_frames` the one clip of all its frames."""
    if clip_frames is None:
        return [slice(num_frames)]
    starts = range(0, num_frames - clip_frames + 1, max(1, clip_frames // 2))
    return [slice(start, start + clip_frames) for start in starts]


def _wall_distance(recording: Recording) -> npt.NDArray[np.float32]:
    """Return the distance to the wall in each frame, NaN where no event says it; only Doom's events do."""
    # Recordings of other formats have no events.
    events = recording.events or [{}] * len(recording.frames)
    return np.array([event.get("wallDistance", math.nan) for event in events], np.float32)


def read_encoded(path: Path | str, kind: str) -> EncodedRecordings:
    """Read a file that `encode_recordings` wrote.

    Args:
        path: the npz.
        kind: `tokens` or `latents`.

    Raises:
        ValueError: the file does not exist, holds codes of the other kind, or is of an earlier version.
    """
    path, codec = Path(path), {"tokens": "a tokenizer", "latents": "an autoencoder"}[kind]
    if not path.is_file():
        raise ValueError(f"a file of {kind} must exist, got {path}; encode the recordings with {codec} first")
    with np.load(path, allow_pickle=False) as file:
        if kind not in file:
            raise ValueError(f"{path} must hold {kind}, got {sorted(file)}; encode with {codec}")
        if "actions" not in file or SPACE_KEY not in file or (kind == "tokens" and "num_codes" not in file):
            raise ValueError(
                f"{path} must hold actions, their space and the number of codes, got a file of an earlier version; "
                "encode the recordings again"
            )
        found = EncodedRecordings(
            codes=file[kind],
            actions=Actions(ActionSpace.from_json(str(file[SPACE_KEY])), file["actions"].astype(np.float32)),
            episode_starts=file["episode_starts"].astype(np.int64),
            num_codes=int(file["num_codes"]) if kind == "tokens" else 0,
            keyframes=file.get("keyframes"),
            num_keyframe_codes=int(file.get("num_keyframe_codes", 0)),
        )
    if found.keyframes is not None and len(found.keyframes) != len(found.episode_starts):
        raise ValueError(
            f"{path} must hold one keyframe a clip, got {len(found.keyframes)} of {len(found.episode_starts)} clips; "
            "encode the recordings again"
        )
    if len(found.codes) != len(found.actions):
        raise ValueError(
            f"{path} must hold one action a frame, got {len(found.codes)} frames and {len(found.actions)} actions; "
            "encode the recordings again"
        )
    return found


def encode_splits(
    codec: ClipCodec,
    recordings: Mapping[Split, Sequence[Recording]],
    folder: Path,
    clip_frames: int = CLIP_FRAMES,
) -> None:
    """Encode the recordings of each split into the file SPLIT.npz in `folder`."""
    for split, recorded in recordings.items():
        with progress_bar(f"encoding {split}") as show:
            shown = counted(recorded, len(recorded), show, "recordings")
            count = encode_recordings(codec, shown, folder / f"{split}.npz", clip_frames)
        logger.info("%d frames encoded into %s", count, folder / f"{split}.npz")


def window_starts(episode_starts: npt.NDArray[np.int64], num_recorded: int, num_frames: int) -> npt.NDArray[np.int64]:
    """Return the first frames of all windows that lie within one episode.

    Args:
        episode_starts: int64 [E], as `encode_recordings` writes them.
        num_recorded: number of frames of all recordings.
        num_frames: number of frames of a window.

    Raises:
        ValueError: no episode is long enough.
    """
    ends = np.append(episode_starts[1:], num_recorded)
    starts = [np.arange(a, b - num_frames + 1) for a, b in zip(episode_starts, ends, strict=True)]
    found = np.concatenate(starts)
    if not len(found):
        raise ValueError(
            f"a window must fit into an episode, got no episode of {num_frames} frames or more; record longer ones, or "
            "encode with a larger --clip-frames if the tokenizer is compressive"
        )
    return found


@dataclass(frozen=True)
class Form:
    """What recordings must share with each other and with the world model that is trained on them."""

    layout: ActionLayout
    frame: str
    """An encoded frame in words: `48 tokens of 512 codes`, `latents of (8, 6, 8)`."""

    def check(self, given: Form, wants: str, gives: str) -> None:
        """Check that `gives` has this form, which is that of `wants`.

        Raises:
            ValueError: the action space (named field by field), the layout, or the encoded frames differ.
        """
        check_layout(self.layout, given.layout, wants, gives)
        if self.frame != given.frame:
            raise ValueError(
                f"{gives} must have {self.frame} a frame as {wants}, got {given.frame}; encode all recordings with "
                "one codec"
            )
