"""Source of prompts in PushT: new episodes of the scripted player."""

from __future__ import annotations

import math

import numpy as np

from rlir_ray.config import Config
from rlir_ray.data.clips import ClipRequest, CutClips
from rlir_ray.data.recorded_clips import cut_clips
from rlir_ray.data.recordings import open_recordings
from rlir_ray.spaces.space import Actions
from rlir_ray.worlds.pusht import PUSHT_SPACE, PUSHT_WORLD, collect_pusht
from rlir_ray.worlds.pusht_player import draw_commands

# An episode ends when the T is in its goal. If too few clips result, the source records a tenth more frames.
MORE_FRAMES = 1.1


class PushtSource:
    """The source `pusht`.

    Args:
        config: the source reads `world`.
    """

    def __init__(self, config: Config) -> None:
        self.config = config

    def clips(self, request: ClipRequest) -> CutClips:
        """Record episodes into `request.folder`/recordings-SPLIT until there are enough clips; keep existing episodes.

        Held-out episodes have other starts and commands than training episodes.

        Raises:
            ValueError: gym-pusht is not installed, or the folder holds recordings of another size.
        """
        world = self.config.world
        folder, length = request.folder / f"recordings-{request.split}", world.num_context + world.num_frames
        episode_frames = max(PUSHT_WORLD.episode_frames, 2 * length)
        num_frames = math.ceil(request.num_clips / (episode_frames // length)) * episode_frames
        while True:
            collect_pusht(
                folder,
                num_frames=num_frames,
                split="prompts" if request.split == "train" else "validation",
                seed=request.seed,
                size=(world.height, world.width),
                episode_frames=episode_frames,
                progress=request.progress,
            )
            cut = cut_clips(
                open_recordings(folder),
                request.num_clips,
                world,
                min_wall_distance=0.0,
                seed=request.seed,
                num_whole=request.num_whole,
            )
            if len(cut.clips) == request.num_clips:
                return cut
            num_frames = math.ceil(MORE_FRAMES * num_frames)

    def commands(self, num_frames: int, generator: np.random.Generator) -> Actions:
        """Draw commands from the script of the scripted player."""
        return Actions(PUSHT_SPACE, draw_commands(num_frames, generator))
