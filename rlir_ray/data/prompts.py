"""Prompts: clips cut from recordings, their first frames encoded, and the actions to command after them.

The recordings are fresh ones of the embedded world or a user's own. Knows nothing of policies or rewards.
Legend: P prompts, C context frames, F generated frames, K = C + F, N tokens a frame, H W pixels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from rlir_ray.config import Config, WorldConfig
from rlir_ray.data.clips import Clip, CutClips, cut_clips
from rlir_ray.data.sources import find_recordings
from rlir_ray.spaces.actions import GROUPS, Actions, group_classes
from rlir_ray.trajectory import Prompt, stored_codes
from rlir_ray.worlds.doom import WORLD_MAPS, DoomWorld, collect, draw_commands

PromptSplit = Literal["train", "heldout"]
Progress = Callable[[int, int], None]

# Held-out prompts do not depend on the run's seed, so that all runs are judged on the same ones.
HELDOUT_SEED = 20_250_928
# Share of the clips that the walls leave, measured on the scripted player; more is recorded where it is too few.
EXPECTED_SHARE, MAX_ROUNDS = 0.75, 5
# Training clips whose frames are kept: those on which the calibration checks that actions and frames fit.
NUM_ALIGNED = 128


class Encoder(Protocol):
    """What prompts need of a tokenizer."""

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        """uint8 [n, H, W, 3] to tokens int64 [n, N] or latents float [n, D, h, w]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptSet:
    """Prompts with the real clips that the first R of them were cut from: R = P of held-out prompts.

    Example: 128 prompts of one context and eight commanded frames: ``frames [128, 9, 48, 64, 3]``, each of
    ``recorded`` eight actions.
    """

    prompts: tuple[Prompt, ...]
    frames: npt.NDArray[np.uint8]
    """[R, K, H, W, 3], what really happened; for evaluation and calibration, never for training."""
    recorded: tuple[Actions, ...]
    """P times K - 1 actions that led to `frames`; action i leads into frame i + 1."""
    left_out: tuple[str, ...] = ()
    """A line for each recording that is broken or not whole: file, line and reason."""
    num_recordings: int = 0
    """Recordings that the prompts were looked for in, those that were left out among them."""

    def __post_init__(self) -> None:
        if not len(self.frames) <= len(self.prompts) == len(self.recorded):
            sizes = (len(self.prompts), len(self.frames), len(self.recorded))
            raise ValueError(
                f"a prompt set must have recorded actions of every prompt and no more clips than prompts, got {sizes} "
                "prompts, clips and recorded actions; drop the clips that have no prompt"
            )

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, part: slice) -> PromptSet:
        return replace(self, prompts=self.prompts[part], frames=self.frames[part], recorded=self.recorded[part])

    def with_clips(self, most: int) -> PromptSet:
        """All prompts, with the frames of so many clips at most; the memory of the others comes free."""
        return self if len(self.frames) <= most else replace(self, frames=self.frames[:most].copy())

    def with_frames(self) -> PromptSet:
        """Its first R prompts."""
        return self[: len(self.frames)]

    def class_shares(self, groups: Sequence[str]) -> dict[str, npt.NDArray[np.float64]]:
        """How often each class of a group is commanded: action group -> float [classes], summing to 1."""
        commanded = [prompt.actions[len(prompt.actions) - prompt.num_frames :] for prompt in self.prompts]
        classes = np.concatenate([group_classes(actions, groups) for actions in commanded])
        return {
            name: np.bincount(classes[:, column], minlength=GROUPS[name].num_classes) / len(classes)
            for column, name in enumerate(groups)
        }


def prepare_prompts(
    config: Config, split: PromptSplit, tokenizer: Encoder, folder: Path, progress: Progress | None = None
) -> PromptSet:
    """Cuts exactly the prompts that the configuration asks for; the same ones for the same settings.

    With `prompts.source=doom` fresh episodes are recorded on the world's maps into `folder`/recordings-SPLIT: train
    prompts with draws of their own (from `config.seed`), held-out ones from starting points and walks that training
    never sees (from `HELDOUT_SEED`). With `prompts.source=recordings` they come from the user's recordings.

    Args:
        config: `prompts`, `data`, `world` and `seed` are read.
        split: ``train`` or ``heldout``.
        tokenizer: encodes the context frames.
        folder: for fresh recordings; a later call with the same settings takes them up again.
        progress: called with recorded frames done and in all.

    Returns:
        `prompts.num_train` or `prompts.num_heldout` prompts; of training prompts at most the first `NUM_ALIGNED` with
        their clips. With `prompts.actions=sampled` the commands after the
        context are drawn by the scripted player's script (doom), or are those of another clip (recordings).

    Raises:
        ValueError: no folder, nothing in it that can be read, or fewer clips than asked for; with `data.strict` a
            broken recording too.
    """
    part, train = config.prompts, split == "train"
    num_prompts = part.num_train if train else part.num_heldout
    seed = config.seed if train else HELDOUT_SEED
    if part.source == "doom":
        cut = _record_doom(config, split, folder / f"recordings-{split}", num_prompts, seed, progress)
    else:
        cut = _from_recordings(config, split, num_prompts, seed)
    return _prompt_set(cut, _commands(cut.clips, config, seed), tokenizer, config.world)


def _num_whole(split: PromptSplit) -> int | None:
    return NUM_ALIGNED if split == "train" else None


def heldout_bytes(config: Config) -> int:
    """What the frames of the held-out clips hold."""
    world = config.world
    return config.prompts.num_heldout * (world.num_context + world.num_frames) * world.height * world.width * 3


def _from_recordings(config: Config, split: PromptSplit, num_prompts: int, seed: int) -> CutClips:
    """Clips of the user's recordings."""
    part, length = config.prompts, config.world.num_context + config.world.num_frames
    key, path = ("path", part.path) if split == "train" else ("heldout_path", part.heldout_path)
    if not path:
        raise ValueError(f"prompts.{key} must name a folder of recordings or an index, got ''; set prompts.{key}=PATH")
    source = find_recordings(Path(path))
    num_whole = _num_whole(split)
    cut = cut_clips(source, num_prompts, config.world, part.min_wall_distance, seed, config.data, num_whole)
    if (num_found := len(cut.clips)) < num_prompts:
        broken = f"; {len(cut.left_out)} recordings are left out, the first: {cut.left_out[0]}" if cut.left_out else ""
        ways = [f"set prompts.num_{split}={num_found}"] if num_found else []
        ways += ["lower world.num_frames"] if cut.longest < length else []
        ways += ["lower prompts.min_wall_distance"] if cut.num_near_walls else []
        raise ValueError(
            f"prompts.num_{split} must be at most the clips of {length} frames that are found, {num_found} in {path} "
            f"(its longest recording has {cut.longest} frames), got {num_prompts}; "
            f"{', or '.join([*ways, f'add recordings of {length} frames or more'])}{broken}"
        )
    return cut


def _record_doom(
    config: Config, split: PromptSplit, folder: Path, num_prompts: int, seed: int, progress: Progress | None
) -> CutClips:
    """Records until there are clips enough; what is there already is kept."""
    length = config.world.num_context + config.world.num_frames
    game = DoomWorld(height=config.world.height, width=config.world.width, episode_frames=max(160, 2 * length))
    per_episode = EXPECTED_SHARE * (game.episode_frames // length)
    # Few prompts still come from several maps.
    num_episodes = max(math.ceil(num_prompts / per_episode), min(len(WORLD_MAPS), num_prompts // 4))
    for _ in range(MAX_ROUNDS):
        collect(
            folder,
            num_frames=num_episodes * game.episode_frames,
            split="prompts" if split == "train" else "validation",
            seed=seed,
            world=game,
            maps=WORLD_MAPS,
            progress=progress,
        )
        source = find_recordings(folder)
        distance, num_whole = config.prompts.min_wall_distance, _num_whole(split)
        cut = cut_clips(source, num_prompts, config.world, distance, seed, config.data, num_whole)
        if len(cut.clips) == num_prompts:
            return cut
        num_episodes = math.ceil(1.5 * num_episodes)
    raise ValueError(
        f"prompts.min_wall_distance must leave clips enough, got {config.prompts.min_wall_distance}: {len(cut.clips)} "
        f"of {num_prompts} in {num_episodes} episodes; lower it (96 is the default)"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Commands and contexts


def _commands(clips: Sequence[Clip], config: Config, seed: int) -> list[Actions]:
    """The K - 1 actions of each prompt; those between context frames are always the recorded ones."""
    recorded = [clip.actions for clip in clips]
    if config.prompts.actions == "recorded":
        return recorded
    past, num_frames = config.world.num_context - 1, config.world.num_frames
    if config.prompts.source == "doom":
        drawn = [draw_commands(num_frames, np.random.default_rng([seed, 1, index])) for index in range(len(clips))]
    else:
        # A cycle through all clips in random order: none keeps its own, and the distribution stays the recorded one.
        order = np.random.default_rng([seed, 1]).permutation(len(clips))
        giver = dict(zip(order, np.roll(order, 1), strict=True))
        drawn = [recorded[giver[index]][past:] for index in range(len(clips))]
    return [
        Actions(np.concatenate([own.buttons[:past], new.buttons]), np.concatenate([own.camera[:past], new.camera]))
        for own, new in zip(recorded, drawn, strict=True)
    ]


def _prompt_set(cut: CutClips, commands: Sequence[Actions], tokenizer: Encoder, world: WorldConfig) -> PromptSet:
    length = world.num_context + world.num_frames
    whole = [clip.frames for clip in itertools.takewhile(lambda clip: len(clip.frames) == length, cut.clips)]
    return PromptSet(
        prompts=tuple(encode_prompts(cut.clips, commands, tokenizer, world)),
        frames=np.stack(whole), recorded=tuple(clip.actions for clip in cut.clips),
        left_out=cut.left_out, num_recordings=cut.num_recordings,
    )  # fmt: skip


def encode_prompts(
    clips: Sequence[Clip], commands: Sequence[Actions], tokenizer: Encoder, world: WorldConfig
) -> list[Prompt]:
    """Prompts of clips' first C frames and of K - 1 actions each."""
    context = torch.from_numpy(np.stack([clip.frames[: world.num_context] for clip in clips]))
    codes = tokenizer.encode(context.flatten(0, 1)).unflatten(0, context.shape[:2])
    stored = stored_codes(codes.cpu().numpy())
    return [
        Prompt(prompt_id=clip.address.prompt_id, context=one, actions=actions)
        for clip, one, actions in zip(clips, stored, commands, strict=True)
    ]
