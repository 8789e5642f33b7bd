"""Prompts: clips of a source, their first frames encoded, and the actions to command after them.

Knows nothing of policies or rewards; the source is a plug-in (`prompts.source`).
Legend: P prompts, C context frames, F generated frames, K = C + F, N tokens a frame, H W pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from rlir_ray.config import Config, WorldConfig
from rlir_ray.data.clips import Clip, ClipRequest, CutClips, Progress, PromptSplit, Source
from rlir_ray.registry import build, load
from rlir_ray.spaces.actions import GROUPS, Actions, group_classes
from rlir_ray.trajectory import Prompt, stored_codes

# Held-out prompts do not depend on the run's seed, so that all runs are judged on the same ones.
HELDOUT_SEED = 20_250_928
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
    """Make exactly the prompts that the configuration asks for; the same ones for the same settings.

    Args:
        config: `prompts`, `data`, `world` and `seed` are read.
        split: ``train`` or ``heldout``.
        tokenizer: encodes the context frames.
        folder: for fresh recordings; a later call with the same settings takes them up again.
        progress: called with recorded frames done and in all.

    Returns:
        `prompts.num_train` or `prompts.num_heldout` prompts; of training prompts at most the first `NUM_ALIGNED` with
        their clips. With `prompts.actions=sampled` the commands after the context are drawn by the source, or are
        those of another clip where the source draws none.

    Raises:
        ValueError: the source cannot be built, or does not give as many clips.
    """
    part, train = config.prompts, split == "train"
    num_prompts = part.num_train if train else part.num_heldout
    seed = config.seed if train else HELDOUT_SEED
    source = open_source(config)
    request = ClipRequest(
        split=split,
        num_clips=num_prompts,
        num_whole=NUM_ALIGNED if train else None,
        seed=seed,
        folder=folder,
        progress=progress,
    )
    cut = source.clips(request)
    if len(cut.clips) != num_prompts:
        raise ValueError(
            f"prompts.source={part.source} must give prompts.num_{split}={num_prompts} clips, got {len(cut.clips)}; "
            f"set prompts.num_{split}={len(cut.clips)} or correct the source"
        )
    return _prompt_set(cut, _commands(cut.clips, source, config, seed), tokenizer, config.world)


def open_source(config: Config) -> Source:
    """The configured source of clips.

    Raises:
        ValueError: it cannot be imported, lacks a method, or does not take `prompts.args`.
    """
    part = config.prompts
    source: Source = build("sources", part.source, part.args, load("sources", part.source), config)
    return source


def heldout_bytes(config: Config) -> int:
    """What the frames of the held-out clips hold."""
    world = config.world
    return config.prompts.num_heldout * (world.num_context + world.num_frames) * world.height * world.width * 3


# ---------------------------------------------------------------------------------------------------------------------
# Commands and contexts


def _commands(clips: Sequence[Clip], source: Source, config: Config, seed: int) -> list[Actions]:
    """The K - 1 actions of each prompt; those between context frames are always the recorded ones."""
    recorded = [clip.actions for clip in clips]
    if config.prompts.actions == "recorded":
        return recorded
    past, num_frames = config.world.num_context - 1, config.world.num_frames
    if draw := getattr(source, "commands", None):
        drawn = [draw(num_frames, np.random.default_rng([seed, 1, index])) for index in range(len(clips))]
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
        frames=np.stack(whole),
        recorded=tuple(clip.actions for clip in cut.clips),
        left_out=cut.left_out,
        num_recordings=cut.num_recordings,
    )


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
