"""Clips of a user's own recordings: VPT pairs in a folder, or their published index."""

from __future__ import annotations

from pathlib import Path

from rlir_ray.config import Config
from rlir_ray.data.clips import ClipRequest, CutClips, cut_clips
from rlir_ray.data.sources import find_recordings


class RecordedSource:
    """The source `recordings`.

    Args:
        config: `prompts`, `data` and `world` are read.
    """

    def __init__(self, config: Config) -> None:
        self.config = config

    def clips(self, request: ClipRequest) -> CutClips:
        """Clips that do not overlap, from all recordings of the split's folder.

        Raises:
            ValueError: no folder, nothing in it that can be read, or fewer clips than asked for; with `data.strict` a
                broken recording too.
        """
        config, split, num_prompts = self.config, request.split, request.num_clips
        part, length = config.prompts, config.world.num_context + config.world.num_frames
        key, path = ("path", part.path) if split == "train" else ("heldout_path", part.heldout_path)
        if not path:
            raise ValueError(
                f"prompts.{key} must name a folder of recordings or an index, got ''; set prompts.{key}=PATH"
            )
        source = find_recordings(Path(path))
        cut = cut_clips(
            source, num_prompts, config.world, part.min_wall_distance, request.seed, config.data, request.num_whole
        )
        if (num_found := len(cut.clips)) < num_prompts:
            broken = (
                f"; {len(cut.left_out)} recordings are left out, the first: {cut.left_out[0]}" if cut.left_out else ""
            )
            ways = [f"set prompts.num_{split}={num_found}"] if num_found else []
            ways += ["lower world.num_frames"] if cut.longest < length else []
            ways += ["lower prompts.min_wall_distance"] if cut.num_near_walls else []
            raise ValueError(
                f"prompts.num_{split} must be at most the clips of {length} frames that are found, {num_found} in "
                f"{path} (its longest recording has {cut.longest} frames), got {num_prompts}; "
                f"{', or '.join([*ways, f'add recordings of {length} frames or more'])}{broken}"
            )
        return cut
