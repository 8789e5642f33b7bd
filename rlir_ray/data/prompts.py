"""Prompts: the encoded first frames of a source's clips, and the actions commanded after these frames.

Independent of policies and rewards; the source is a plug-in (`prompts.source`).
Legend: P prompts, C context frames, F generated frames, K = C + F, N tokens a frame, H W pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from rlir_ray.config import Config, WorldConfig
from rlir_ray.data.clips import Clip, ClipRequest, CutClips, Progress, PromptSplit, Source
from rlir_ray.registry import any_declares, build, load
from rlir_ray.spaces.space import Actions
from rlir_ray.trajectory import EncodedClips, EncodedVideo, Prompt, stored_codes

if TYPE_CHECKING:
    import torch

# Held-out prompts do not depend on the run's seed, so that all runs are evaluated on the same prompts.
HELDOUT_SEED = 20_250_928
# Number of training clips that keep their frames: the calibration checks on these that actions and frames are aligned.
NUM_ALIGNED = 128
# Clips that are encoded together.
CLIPS_AT_ONCE = 64


class Encoder(Protocol):
    """The part of a frame codec that prompts need."""

    def encode_clips(self, clips: torch.Tensor) -> EncodedClips:
        """Encode clips uint8 [B, n, H, W, 3]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptSet:
    """Prompts, and the recorded clips of the first R prompts; R = P for held-out prompts.

    Example: 128 held-out prompts of one context frame and eight commanded frames have ``frames [128, 9, 48, 64, 3]``,
    and each item of ``recorded`` has eight actions.
    """

    prompts: tuple[Prompt, ...]
    frames: npt.NDArray[np.uint8]
    """[R, K, H, W, 3], the recorded frames; for evaluation and calibration, never for training."""
    recorded: tuple[Actions, ...]
    """[P], the K - 1 recorded actions of each clip; action i leads into frame i + 1."""
    skipped: tuple[str, ...] = ()
    """One line for each broken or incomplete recording: file, line and reason."""
    num_recordings: int = 0
    """Recordings of the source, including the skipped ones."""

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
        """Return all prompts with the frames of at most `most` clips; a copy, so that the other frames can be freed."""
        return self if len(self.frames) <= most else replace(self, frames=self.frames[:most].copy())

    def with_frames(self) -> PromptSet:
        """Return the first R prompts, which have frames."""
        return self[: len(self.frames)]

    def class_shares(self, names: Sequence[str]) -> dict[str, npt.NDArray[np.float64]]:
        """Return how often each class of some fields is commanded: field -> float [classes], summing to 1."""
        commanded = [prompt.actions[len(prompt.actions) - prompt.num_frames :] for prompt in self.prompts]
        classes = np.concatenate([actions.classes_of(names) for actions in commanded])
        return {
            field.name: np.bincount(classes[:, column], minlength=field.num_classes) / len(classes)
            for column, field in enumerate(commanded[0].space.select(names))
        }


def prepare_prompts(
    config: Config, split: PromptSplit, tokenizer: Encoder, folder: Path, progress: Progress | None = None
) -> PromptSet:
    """Make the prompts of a configuration; the same settings give the same prompts.

    Args:
        config: the function reads `prompts`, `data`, `world` and `seed`.
        split: ``train`` or ``heldout``.
        tokenizer: encodes the context frames.
        folder: folder for new recordings; a later call with the same settings uses them again.
        progress: called with the numbers of recorded frames and of all frames.

    Returns:
        `prompts.num_train` or `prompts.num_heldout` prompts; at most the first `NUM_ALIGNED` training prompts have
        frames. With `prompts.actions=sampled`, the source draws the commands after the context; if the source draws no
        commands, each prompt gets the commands of another clip.

    Raises:
        ValueError: the source cannot be built, or gives another number of clips.
    """
    part, train = config.prompts, split == "train"
    with_recorded = train and reads_recorded(config)
    num_prompts = part.num_train if train else part.num_heldout
    seed = config.seed if train else HELDOUT_SEED
    source = open_source(config)
    request = ClipRequest(
        split=split,
        num_clips=num_prompts,
        num_whole=NUM_ALIGNED if train and not with_recorded else None,
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
    prompts = encode_prompts(
        cut.clips, _commands(cut.clips, source, config, seed), tokenizer, config.world, with_recorded=with_recorded
    )
    return _prompt_set(cut, prompts, config.world, most=NUM_ALIGNED if train else None)


def reads_recorded(config: Config) -> bool:
    """Return whether a part of the run reads the recorded future of the training prompts."""
    is_supervised = config.train.supervised_coefficient > 0
    return is_supervised or any_declares("rewards", config.reward.local_names, "reads_recorded")


def open_source(config: Config) -> Source:
    """Build the configured source of clips.

    Raises:
        ValueError: the source cannot be imported, lacks a method, or does not accept `prompts.args`.
    """
    part = config.prompts
    source: Source = build("sources", part.source, part.args, load("sources", part.source), config)
    return source


def heldout_bytes(config: Config) -> int:
    """Return the bytes of the held-out clips' frames."""
    world = config.world
    return config.prompts.num_heldout * (world.num_context + world.num_frames) * world.height * world.width * 3


# ---------------------------------------------------------------------------------------------------------------------
# Commands and contexts


def _commands(clips: Sequence[Clip], source: Source, config: Config, seed: int) -> list[Actions]:
    """Return the K - 1 actions of each prompt; the actions between context frames are always the recorded ones."""
    recorded = [clip.actions for clip in clips]
    if config.prompts.actions == "recorded":
        return recorded
    past, num_frames = config.world.num_context - 1, config.world.num_frames
    if draw := getattr(source, "commands", None):
        drawn = [draw(num_frames, np.random.default_rng([seed, 1, index])) for index in range(len(clips))]
    else:
        # A cycle through all clips in random order: no clip keeps its commands, and their distribution is unchanged.
        order = np.random.default_rng([seed, 1]).permutation(len(clips))
        partner = dict(zip(order, np.roll(order, 1), strict=True))
        drawn = [recorded[partner[index]][past:] for index in range(len(clips))]
    return [own[:past].followed_by(new) for own, new in zip(recorded, drawn, strict=True)]


def _prompt_set(cut: CutClips, prompts: Sequence[Prompt], world: WorldConfig, most: int | None) -> PromptSet:
    """Return prompts with the frames of at most `most` clips; None: of all clips that have all frames."""
    length = world.num_context + world.num_frames
    whole = [clip.frames for clip in itertools.takewhile(lambda clip: len(clip.frames) == length, cut.clips)]
    return PromptSet(
        prompts=tuple(prompts),
        frames=np.stack(whole[:most]),
        recorded=tuple(clip.actions for clip in cut.clips),
        skipped=cut.skipped,
        num_recordings=cut.num_recordings,
    )


def encode_prompts(
    clips: Sequence[Clip],
    commands: Sequence[Actions],
    tokenizer: Encoder,
    world: WorldConfig,
    *,
    with_recorded: bool = False,
) -> list[Prompt]:
    """Build prompts from the first C frames of clips and K - 1 actions each.

    Args:
        clips: with C frames or more; with K frames for `with_recorded`.
        commands: the actions of each prompt.
        tokenizer: encodes the frames.
        world: C and F.
        with_recorded: whether the prompts also hold the encoded recorded future.
    """
    # Imported here: processes that only hold prompts need not load torch.
    import torch

    num_context = world.num_context
    length = num_context + world.num_frames if with_recorded else num_context
    prompts = []
    for start in range(0, len(clips), CLIPS_AT_ONCE):
        part = clips[start : start + CLIPS_AT_ONCE]
        encoded = tokenizer.encode_clips(torch.from_numpy(np.stack([clip.frames[:length] for clip in part])))
        codes, keyframes = _stored(encoded)
        prompts += [
            Prompt(
                prompt_id=clip.address.prompt_id,
                context=one[:num_context],
                actions=actions,
                keyframe=keyframe,
                recorded=one[num_context:] if with_recorded else None,
            )
            for clip, one, actions, keyframe in zip(
                part, codes, commands[start : start + CLIPS_AT_ONCE], keyframes, strict=True
            )
        ]
    return prompts


def encoded_real(real: PromptSet, codec: Encoder) -> list[EncodedVideo]:
    """Encode real clips with their recorded actions, one clip a group, for the terms of a reward that read them."""
    import torch

    videos = []
    for start in range(0, len(real), CLIPS_AT_ONCE):
        part = real[start : start + CLIPS_AT_ONCE]
        codes, keyframes = _stored(codec.encode_clips(torch.from_numpy(part.frames)))
        videos += [
            EncodedVideo(
                group_id=start + place,
                codes=codes[place : place + 1],
                num_context=len(part.prompts[place].context),
                actions=part.recorded[place],
                keyframe=keyframes[place],
            )
            for place in range(len(part))
        ]
    return videos


def _stored(encoded: EncodedClips) -> tuple[npt.NDArray[np.generic], Sequence[npt.NDArray[np.generic] | None]]:
    """Return the codes and keyframes of clips as payloads store them."""
    codes = stored_codes(encoded.codes.cpu().numpy())
    if encoded.keyframes is None:
        return codes, [None] * len(codes)
    return codes, list(stored_codes(encoded.keyframes.cpu().numpy()))
