"""Evaluation: sample a clip for each held-out prompt, recover its actions, compare them with the commands.

Real clips, unchanged and reconstructed by the tokenizer, give the ceiling. Independent of pools and folders.
Legend: P prompts, B clips of a chunk, C context frames, F generated frames, K fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlir_ray.algorithm.guidance import NO_GUIDANCE
from rlir_ray.algorithm.seeds import group_seed
from rlir_ray.evaluation.following import Following
from rlir_ray.evaluation.quality import Quality, clip_quality, join_quality
from rlir_ray.evaluation.results import REAL, RECONSTRUCTED, Evaluation
from rlir_ray.evaluation.video import Clips
from rlir_ray.rewards.field_scores import FieldValues, commanded_values, read_values
from rlir_ray.spaces.layouts import check_space
from rlir_ray.spaces.space import Actions, ActionSpace
from rlir_ray.trajectory import encoded_clips

if TYPE_CHECKING:
    from rlir_ray.config import WorldConfig
    from rlir_ray.data.prompts import PromptSet
    from rlir_ray.idm.base import InverseDynamics
    from rlir_ray.models.clip_codec import ClipCodec
    from rlir_ray.samplers import Sampler
    from rlir_ray.trajectory import Prompt

    Readers = Mapping[str, InverseDynamics]

# Prompts in a chunk: enough to use the sampler well, and few enough to bound the pixels in memory.
CHUNK = 64
JUDGE = "judge"


def evaluate_policy(
    sampler: Sampler,
    prompt_set: PromptSet,
    tokenizer: ClipCodec,
    idms: Readers,
    world: WorldConfig,
    temperature: float,
    seed: int,
    *,
    name: str = "post-trained",
    num_videos: int = 6,
    judge_context: bool = True,
    guidance: float = NO_GUIDANCE,
) -> tuple[Evaluation, Clips]:
    """Sample one clip for each prompt and evaluate the clip.

    Args:
        sampler: sampler that holds the weights and samples at `temperature`.
        prompt_set: P held-out prompts with the real frames.
        tokenizer: codec that decodes the clips.
        idms: inverse dynamics models by name (`reward`, `judge`); if empty, the evaluation has picture quality only.
        world: fields to compare and frame counts.
        temperature: the sampler's temperature, which the evaluation records.
        seed: seed of sampling; the same seed gives every policy the same draws.
        name: name of the evaluation, see `results.NAMES`.
        num_videos: number of clips to return.
        judge_context: show the models the context frames too, as the reward does; False: generated frames only.
        guidance: the sampler's guidance, which the evaluation records.

    Returns:
        The evaluation, and clips of prompts spread evenly over the set. PSNR and SSIM are None if a command differs
        from the recording.

    Raises:
        ValueError: an inverse dynamics model gives values that are not finite.
    """
    commands = [prompt.actions for prompt in prompt_set.prompts]
    # A clip with other commands than the recording has no real counterpart.
    as_recorded = all(one.equals(other) for one, other in zip(commands, prompt_set.recorded, strict=True))
    following, quality, clips = _evaluate(
        name,
        _sampled_chunks(sampler, prompt_set.prompts, tokenizer, seed),
        prompt_set.frames if as_recorded else None,
        commands,
        [prompt.prompt_id for prompt in prompt_set.prompts],
        idms,
        world,
        num_videos,
        judge_context,
    )
    evaluation = Evaluation(
        name=name,
        temperature=temperature,
        guidance=guidance,
        seed=seed,
        policy_version=sampler.policy_version,
        following=following,
        quality=quality,
    )
    return evaluation, clips


def evaluate_real(
    prompt_set: PromptSet,
    tokenizer: ClipCodec,
    idms: Readers,
    world: WorldConfig,
    seed: int,
    *,
    num_videos: int = 6,
    judge_context: bool = True,
) -> tuple[dict[str, Evaluation], Clips]:
    """Evaluate the recorded clips, unchanged and reconstructed by the tokenizer: the ceiling of a policy's figures.

    Args:
        prompt_set, tokenizer, idms, world, num_videos, judge_context: as in `evaluate_policy`.
        seed: the seed that the evaluation records; nothing is drawn.

    Returns:
        The evaluations `real` and `reconstructed`, and some of the real clips.
    """
    frames = prompt_set.frames
    sources = {REAL: _real_chunks(frames), RECONSTRUCTED: _reconstructed_chunks(frames, tokenizer)}
    prompt_ids = [prompt.prompt_id for prompt in prompt_set.prompts]
    ceiling, kept = {}, []
    for name, chunks in sources.items():
        real = frames if name == RECONSTRUCTED else None
        following, quality, clips = _evaluate(
            name, chunks, real, prompt_set.recorded, prompt_ids, idms, world, num_videos, judge_context
        )
        ceiling[name] = Evaluation(name=name, seed=seed, following=following, quality=quality)
        kept.append(clips)
    return ceiling, kept[0]


def _sampled_chunks(sampler: Sampler, prompts: Sequence[Prompt], tokenizer: ClipCodec, seed: int) -> Iterator[Tensor]:
    for start in range(0, len(prompts), CHUNK):
        part = prompts[start : start + CHUNK]
        numbers = range(start, start + len(part))
        groups = sampler.sample(part, list(numbers), [group_seed(seed, number) for number in numbers], 1)
        yield tokenizer.decode_clips(encoded_clips([video for _, video in groups])).cpu()


def _real_chunks(frames: npt.NDArray[np.uint8]) -> Iterator[Tensor]:
    for start in range(0, len(frames), CHUNK):
        yield torch.from_numpy(np.array(frames[start : start + CHUNK]))


def _reconstructed_chunks(frames: npt.NDArray[np.uint8], tokenizer: ClipCodec) -> Iterator[Tensor]:
    for clips in _real_chunks(frames):
        yield tokenizer.decode_clips(tokenizer.encode_clips(clips)).cpu()


def _evaluate(
    name: str,
    chunks: Iterable[Tensor],
    real: npt.NDArray[np.uint8] | None,
    actions: Sequence[Actions],
    prompt_ids: Sequence[str],
    idms: Readers,
    world: WorldConfig,
    num_videos: int,
    judge_context: bool,
) -> tuple[dict[str, Following], Quality, Clips]:
    """Recover the actions of P clips, given in chunks uint8 [B, C + F, H, W, 3], and compute all figures."""
    commands = [each[len(each) - world.num_frames :] for each in actions]
    shown = evenly_spaced(len(prompt_ids), num_videos)
    readings: dict[str, list[FieldValues]] = {idm: [] for idm in idms}
    qualities: list[Quality] = []
    sizes: list[int] = []
    frames: list[npt.NDArray[np.uint8]] = []
    for clips in chunks:
        start = sum(sizes)
        for idm, model in idms.items():
            check_space(commands[0].space, model.space, "the commanded actions", f"models.{idm}_idm")
            readings[idm].append(read_generated(model, clips, world, judge_context))
        reference = None if real is None else torch.from_numpy(np.array(real[start : start + len(clips)]))
        qualities.append(clip_quality(clips, world.num_frames, reference))
        sizes.append(len(clips))
        frames.append(clips[[index - start for index in shown if start <= index < start + len(clips)]].numpy())
    following = {idm: followed(commands, world.groups, parts) for idm, parts in readings.items()}
    judged = following.get(JUDGE)
    kept = Clips(
        name=name,
        frames=np.concatenate(frames),
        space=ActionSpace(commands[0].space.select(world.groups)),
        commanded=np.stack([each.values_of(world.groups) for each in commands])[shown],
        recovered=None if judged is None else judged.recovered.pictured(judged.fields)[shown],
        prompt_ids=tuple(prompt_ids[index] for index in shown),
    )
    return following, join_quality(qualities), kept


def followed(commands: Sequence[Actions], names: Sequence[str], readings: Sequence[FieldValues]) -> Following:
    """Join the readings of all chunks.

    Args:
        commands: the F commanded actions of each of the P clips.
        names: the fields to compare.
        readings: of the clips in order.
    """
    return Following(
        fields=commands[0].space.select(names),
        commanded=commanded_values(commands, names),
        recovered=FieldValues.joined(readings),
    )


@torch.no_grad()
def read_generated(idm: InverseDynamics, frames: Tensor, world: WorldConfig, judge_context: bool = True) -> FieldValues:
    """Recover the actions of the generated frames with an inverse dynamics model.

    Args:
        idm: model; index k of its reading leads into frame k.
        frames: uint8 [B, C + F, H, W, 3].
        world: fields and F.
        judge_context: show the model the context frames too.

    Returns:
        Classes and values [B, F, K].

    Raises:
        ValueError: the model gives values that are not finite.
    """
    names, num_frames = world.groups, world.num_frames
    reading = idm.read(frames if judge_context else frames[:, -num_frames:], names)
    if not all(bool(torch.isfinite(table).all()) for table in reading.probabilities.values()):
        raise ValueError("an inverse dynamics model must give finite values, got others; check models.*_idm")
    return read_values(reading, idm.space.select(names)).frames(slice(-num_frames, None))


def evenly_spaced(num_prompts: int, count: int) -> list[int]:
    """Return the indices of up to `count` evenly spaced prompts; the choice does not depend on the results."""
    return [int(index) for index in np.unique(np.linspace(0, num_prompts - 1, min(count, num_prompts)).round())]
