"""Selection of clips from recordings, for prompts and for evaluations; the source `recordings`."""

from __future__ import annotations

import itertools
import logging
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from rlir_ray.config import Config, DataConfig, WorldConfig
from rlir_ray.data.clips import Clip, ClipAddress, ClipRequest, CutClips, clip_starts, cut_one, read_clip
from rlir_ray.data.recordings import Recorded, Recordings, nothing_readable, open_recordings
from rlir_ray.data.vpt.index import log_skipped

logger = logging.getLogger(__name__)

# Fewest clips that are taken from a recording before the next is opened: long recordings are slow to decode.
MIN_CLIPS_OF_RECORDING = 8


class RecordedSource:
    """The source `recordings`.

    Args:
        config: the source reads `prompts`, `data` and `world`.
    """

    def __init__(self, config: Config) -> None:
        self.config = config

    def clips(self, request: ClipRequest) -> CutClips:
        """Return clips that do not overlap, from all recordings of the split's folder.

        Raises:
            ValueError: there is no folder, no readable recording, or fewer clips than requested; with `data.strict`, a
                recording is broken.
        """
        config, split, num_prompts = self.config, request.split, request.num_clips
        part, length = config.prompts, config.world.num_context + config.world.num_frames
        key, path = ("path", part.path) if split == "train" else ("heldout_path", part.heldout_path)
        if not path:
            raise ValueError(
                f"prompts.{key} must name a folder of recordings or an index, got ''; set prompts.{key}=PATH"
            )
        source = open_recordings(path, config.data.camera)
        cut = cut_clips(
            source, num_prompts, config.world, part.min_wall_distance, request.seed, config.data, request.num_whole
        )
        if (num_found := len(cut.clips)) < num_prompts:
            broken = f"; {len(cut.skipped)} recordings were skipped, the first: {cut.skipped[0]}" if cut.skipped else ""
            ways = [f"set prompts.num_{split}={num_found}"] if num_found else []
            ways += ["lower world.num_frames"] if cut.longest < length else []
            ways += ["lower prompts.min_wall_distance"] if cut.num_near_walls else []
            raise ValueError(
                f"prompts.num_{split} must be at most the number of clips of {length} frames, {num_found} in {path} "
                f"(its longest recording has {cut.longest} frames), got {num_prompts}; "
                f"{', or '.join([*ways, f'add recordings of {length} frames or more'])}{broken}"
            )
        return cut


# ---------------------------------------------------------------------------------------------------------------------
# Clips for prompts


def cut_clips(
    source: Recordings,
    num_clips: int,
    world: WorldConfig,
    min_wall_distance: float,
    seed: int,
    data: DataConfig | None = None,
    num_whole: int | None = None,
) -> CutClips:
    """Cut clips that do not overlap, evenly from all recordings; decode only the frames of these clips.

    Args:
        source: the recordings.
        num_clips: maximum number of clips.
        world: number and size of a clip's frames; frames of another size are resized.
        min_wall_distance: skip clips whose first frame faces a nearer wall, if the recording has `wallDistance`.
        seed: seed of the order of recordings and of clips.
        data: settings for reading recordings; None: the defaults.
        num_whole: number of clips, from the first on, that keep all frames; the others keep the context frames; None:
            all clips keep all frames.

    Returns:
        At most `num_clips`; fewer if the recordings do not hold this number.

    Raises:
        ValueError: every recording is broken, or, with `data.strict`, an opened recording is broken.
    """
    data = data or DataConfig()
    if data.strict and source.skipped:
        raise ValueError(source.skipped[0])
    log_skipped(source.skipped)
    rng = np.random.default_rng([seed, 0])
    names = list(source.names)
    quota = max(MIN_CLIPS_OF_RECORDING, math.ceil(num_clips / max(1, len(names))))
    clips: list[Clip] = []
    spare: list[ClipAddress] = []
    broken: dict[str, str] = {}
    num_near_walls = longest = 0
    # Only one recording is open at a time, and only the needed recordings are opened.
    for name in (names[index] for index in rng.permutation(len(names))):
        try:
            recording = source.recording(name, data.action_shift)
            starts = rng.permutation(clip_starts(recording, world, min_wall_distance)).tolist()
            longest = max(longest, len(recording))
            num_near_walls += len(clip_starts(recording, world, 0)) - len(starts)
            taken = starts[: min(quota, num_clips - len(clips))]
            clips += _cut_all(recording, taken, world, data, num_whole, len(clips))
        except ValueError as error:
            _skip(name, error, broken, data)
            continue
        spare += [ClipAddress(name, start) for start in starts[quota:]]
        if len(clips) == num_clips:
            break
    # If the quota leaves clips missing, take the spare clips of the opened recordings.
    for name, addresses in itertools.groupby(spare, lambda address: address.recording):
        if len(clips) == num_clips:
            break
        try:
            recording = source.recording(name, data.action_shift)
            taken = [address.first_frame for address in itertools.islice(addresses, num_clips - len(clips))]
            clips += _cut_all(recording, taken, world, data, num_whole, len(clips))
        except ValueError as error:
            _skip(name, error, broken, data)
            # Drop the earlier clips of a broken recording too.
            clips = [clip for clip in clips if clip.address.recording != name]
    skipped = (*source.skipped, *broken.values())
    if broken and len(broken) == len(names):
        raise ValueError(nothing_readable(source.path, skipped))
    return CutClips(
        clips=clips, skipped=skipped, num_recordings=len(source), num_near_walls=num_near_walls, longest=longest
    )


def _cut_all(
    recording: Recorded,
    starts: Sequence[int],
    world: WorldConfig,
    data: DataConfig,
    num_whole: int | None,
    num_before: int,
) -> list[Clip]:
    clips = []
    for number, start in enumerate(starts, num_before):
        clip = cut_one(recording, start, world, data.resize)
        if num_whole is not None and number >= num_whole:
            # A copy: a view would keep all frames in memory.
            clip = replace(clip, frames=clip.frames[: world.num_context].copy())
        clips.append(clip)
    return clips


def _skip(name: str, error: ValueError, broken: dict[str, str], data: DataConfig) -> None:
    if data.strict:
        raise error
    logger.warning("skipped: %s", error)
    broken[name] = str(error)


# ---------------------------------------------------------------------------------------------------------------------
# Clips for an evaluation


def round_robin_clips(
    source: Recordings, num_clips: int, world: WorldConfig, data: DataConfig, skipped: list[str] | None = None
) -> Iterator[Clip]:
    """Yield one clip of each recording before a second clip of any, in the order of names; open only needed recordings.

    If every file holds one clip, as in MineWorld's validation set, the clips are the first frames of every file.

    Args:
        source: the recordings.
        num_clips: maximum number of clips.
        world: number and size of a clip's frames.
        data: settings for reading recordings.
        skipped: receives a line for each broken or incomplete recording.

    Raises:
        ValueError: with `data.strict`, at the first such recording.
    """
    broken = skipped if skipped is not None else []
    if data.strict and source.skipped:
        raise ValueError(source.skipped[0])
    broken += source.skipped
    names = sorted(source.names, key=_natural_key)
    starts: dict[str, list[int]] = {}
    while names and num_clips:
        for name in list(names):
            try:
                if name not in starts:
                    starts[name] = clip_starts(source.recording(name, data.action_shift), world, 0.0)
                if not starts[name]:
                    names.remove(name)
                    continue
                clip = read_clip(source, ClipAddress(name, starts[name].pop(0)), world, data)
            except ValueError as error:
                if data.strict:
                    raise
                broken.append(str(error))
                names.remove(name)
                continue
            yield clip
            num_clips -= 1
            if not num_clips:
                return


def _natural_key(name: str) -> list[tuple[str, int]]:
    """Split a name into texts and numbers, so that clip_9 sorts before clip_10."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", name)]
