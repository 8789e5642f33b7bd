"""Encoding of recordings into one file of tokens or latents, on which world models are trained."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from rlir_ray.data.recordings import Recording, load_recordings
from rlir_ray.models.frame_codec import FrameCodec
from rlir_ray.pretrain.settings import SPLITS
from rlir_ray.run.progress import counted, progress_bar
from rlir_ray.trajectory import stored_codes

logger = logging.getLogger(__name__)


def encode_recordings(codec: FrameCodec, recordings: Iterable[Recording], out_file: Path | str) -> int:
    """Encode every frame of recordings into one npz; the file appears only when it is complete.

    Args:
        codec: a tokenizer or an autoencoder of the recordings' frame size.
        recordings: the file keeps their order.
        out_file: receives `tokens` [F, tokens_per_frame] or `latents` [F, D, h, w] as `stored_codes`, `episode_starts`
            int64 [E] (index of each recording's first frame), `names` str [E], `buttons` bool [F, 23], `camera` float32
            [F, 2], and `wall_distance` float32 [F] when every event has a `wallDistance`.

    Returns:
        F, the number of frames.

    Raises:
        ValueError: no recordings.
    """
    names: list[str] = []
    columns: dict[str, list[npt.NDArray[np.generic]]] = {"codes": [], "buttons": [], "camera": [], "wall_distance": []}
    for recording in recordings:
        names.append(recording.name)
        encoded = codec.encode(torch.from_numpy(np.ascontiguousarray(recording.frames)))
        columns["codes"].append(stored_codes(encoded.cpu().numpy()))
        columns["buttons"].append(recording.actions.buttons)
        columns["camera"].append(recording.actions.camera)
        walls = [event.get("wallDistance", math.nan) for event in recording.events]
        columns["wall_distance"].append(np.array(walls, np.float32))
    if not names:
        raise ValueError(
            "an encoding needs at least one readable recording, got none; make some with: python -m rlir_ray collect"
        )
    lengths = [len(part) for part in columns["codes"]]
    arrays: dict[str, npt.NDArray[np.generic]] = {name: np.concatenate(parts) for name, parts in columns.items()}
    codes = arrays.pop("codes")
    arrays["latents" if codes.dtype.kind == "f" else "tokens"] = codes
    if np.isnan(arrays["wall_distance"]).any():
        del arrays["wall_distance"]
    starts = np.cumsum([0, *lengths[:-1]]).astype(np.int64)
    out_file = Path(out_file)
    out_file.parent.mkdir(parents=True, exist_ok=True)
    part = out_file.with_name(out_file.name + ".part")
    with part.open("wb") as file:
        np.savez(file, episode_starts=starts, names=np.array(names), **arrays)  # type: ignore[arg-type]  # no column is named allow_pickle
    part.replace(out_file)
    return sum(lengths)


def read_splits(data: Path, action_shift: int) -> dict[str, list[Recording]]:
    """Read the recordings of each split below the folder `data`."""
    logger.info("reading the recordings of %s", data)
    return {split: load_recordings(data / split, action_shift) for split in SPLITS}


def encode_splits(codec: FrameCodec, recordings: Mapping[str, Sequence[Recording]], folder: Path) -> None:
    """Encode the recordings of each split into the file SPLIT.npz in `folder`."""
    for split, recorded in recordings.items():
        with progress_bar(f"encoding {split}") as show:
            shown = counted(recorded, len(recorded), show, "recordings")
            count = encode_recordings(codec, shown, folder / f"{split}.npz")
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
            f"a window must fit into an episode, got no episode of {num_frames} frames or more; record longer ones"
        )
    return found
