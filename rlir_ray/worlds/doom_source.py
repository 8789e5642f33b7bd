"""Source of prompts in the embedded world: new episodes of the scripted player."""

from __future__ import annotations

import math

import numpy as np

from rlir_ray.config import Config
from rlir_ray.data.clips import ClipRequest, CutClips
from rlir_ray.data.recorded_clips import cut_clips
from rlir_ray.data.vpt.index import find_recordings
from rlir_ray.spaces.space import Actions
from rlir_ray.worlds.doom import WORLD_MAPS, DoomWorld, collect, draw_commands

# Share of clips that no near wall excludes, measured on the scripted player. If too few clips remain, the source
# records half as many episodes again, in at most MAX_ROUNDS rounds.
EXPECTED_SHARE, MAX_ROUNDS = 0.75, 5


class DoomSource:
    """The source `doom`.

    Args:
        config: the source reads `prompts`, `data` and `world`.
    """

    def __init__(self, config: Config) -> None:
        self.config = config

    def clips(self, request: ClipRequest) -> CutClips:
        """Record episodes into `request.folder`/recordings-SPLIT until there are enough clips; keep existing episodes.

        Held-out episodes have other starting points and commands than training episodes.

        Raises:
            ValueError: near walls exclude too many clips.
        """
        config, num_prompts = self.config, request.num_clips
        folder = request.folder / f"recordings-{request.split}"
        length = config.world.num_context + config.world.num_frames
        game = DoomWorld(height=config.world.height, width=config.world.width, episode_frames=max(160, 2 * length))
        per_episode = EXPECTED_SHARE * (game.episode_frames // length)
        # A small number of prompts also comes from several maps.
        num_episodes = max(math.ceil(num_prompts / per_episode), min(len(WORLD_MAPS), num_prompts // 4))
        for _ in range(MAX_ROUNDS):
            collect(
                folder,
                num_frames=num_episodes * game.episode_frames,
                split="prompts" if request.split == "train" else "validation",
                seed=request.seed,
                world=game,
                maps=WORLD_MAPS,
                progress=request.progress,
            )
            source = find_recordings(folder)
            cut = cut_clips(
                source,
                num_prompts,
                config.world,
                config.prompts.min_wall_distance,
                request.seed,
                config.data,
                request.num_whole,
            )
            if len(cut.clips) == num_prompts:
                return cut
            num_episodes = math.ceil(1.5 * num_episodes)
        raise ValueError(
            f"prompts.min_wall_distance must leave enough clips, got {config.prompts.min_wall_distance}: "
            f"{len(cut.clips)} of {num_prompts} in {num_episodes} episodes; lower it (96 is the default)"
        )

    def commands(self, num_frames: int, generator: np.random.Generator) -> Actions:
        """Draw commands from the script of the scripted player."""
        return draw_commands(num_frames, generator)
