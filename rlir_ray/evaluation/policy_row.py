"""A policy's row of MineWorld's table: clips generated after recorded frames, judged against their recordings.

Clips pass through in chunks, so that any number of them fits into memory. Knows nothing of files.
Legend: B clips of a chunk, C context frames, F generated frames, K = C + F, N tokens a frame.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rlir_ray.algorithm.seeds import group_seed
from rlir_ray.data.files import Json
from rlir_ray.data.prompts import encode_prompts
from rlir_ray.evaluation.actions import decode_clips, generated_logits
from rlir_ray.evaluation.fvd import I3D, frechet_distance
from rlir_ray.evaluation.lpips import LPIPS
from rlir_ray.evaluation.mineworld import (
    Columns,
    action_following,
    actions_clip,
    following_in_use,
    in_use_lines,
    logits_clips,
    table_lines,
)
from rlir_ray.evaluation.quality import Quality, clip_quality, join_quality
from rlir_ray.trajectory import codes_tensor

if TYPE_CHECKING:
    from rlir_ray.config import WorldConfig
    from rlir_ray.data.clips import Clip
    from rlir_ray.idm.base import InverseDynamics
    from rlir_ray.models.frame_codec import FrameCodec
    from rlir_ray.samplers import Sampler


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyRow:
    """The figures of a policy; None for those whose weights were not given."""

    num_clips: int
    fps: float
    """Frames generated in a second of sampling, decoding left out; clips are sampled a chunk at once."""
    psnr: float
    ssim: float
    following: Json | None
    """Result of `action_following`: MineWorld's means, over its seven tasks."""
    following_in_use: Json | None = None
    """Result of `following_in_use`: means over the tasks that the recordings use."""
    lpips: float | None = None
    fvd: float | None = None

    def lines(self) -> list[str]:
        """Return the figures over the tasks in use, and the published columns, for a terminal."""
        published = table_lines(
            self.following, fps=self.fps, psnr=self.psnr, ssim=self.ssim, lpips=self.lpips, fvd=self.fvd
        )
        return [*(in_use_lines(self.following_in_use) if self.following_in_use else ()), *published]

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def evaluate_row(
    clips: Iterable[Clip],
    sampler: Sampler,
    tokenizer: FrameCodec,
    world: WorldConfig,
    *,
    seed: int,
    chunk: int,
    idm: InverseDynamics | None = None,
    judge_context: bool = False,
    lpips: LPIPS | None = None,
    i3d: I3D | None = None,
    progress: Callable[[int], None] | None = None,
) -> PolicyRow:
    """Generate the last F frames of each clip from its first C frames and its recorded actions, and evaluate them.

    Args:
        clips: of K frames of the world's size.
        sampler: holds the policy.
        tokenizer: encodes the context and decodes the clips.
        world: frame counts.
        seed: of sampling.
        chunk: B, clips sampled and judged at once.
        idm: reads the actions; None leaves action following out.
        judge_context: show it the context frames too, which MineWorld's evaluator does not.
        lpips, i3d: networks of the two figures; None leaves them out.
        progress: called with the clips done.

    Raises:
        ValueError: there are no clips, or too few for the FVD.
    """
    rows = _Rows()
    for part in _chunks(clips, chunk):
        real = torch.from_numpy(np.stack([clip.frames for clip in part]))  # [B, K, H, W, 3]
        prompts = encode_prompts(part, [clip.actions for clip in part], tokenizer, world)
        numbers = range(rows.num_clips, rows.num_clips + len(part))
        started = time.perf_counter()
        groups = sampler.sample(prompts, list(numbers), [group_seed(seed, number) for number in numbers], 1)
        rows.sampling_s += time.perf_counter() - started
        frames = decode_clips(tokenizer, codes_tensor([video for _, video in groups]))
        rows.qualities.append(clip_quality(frames, world.num_frames, real))
        generated, recorded = frames[:, -world.num_frames :], real[:, -world.num_frames :]
        if idm is not None:
            rows.read += logits_clips(generated_logits(idm, frames, world.num_frames, judge_context))
            rows.commanded += [actions_clip(clip.actions[-world.num_frames :], whole_degrees=True) for clip in part]
        if lpips is not None:
            rows.lpips.append(lpips(generated.flatten(0, 1), recorded.flatten(0, 1)))
        if i3d is not None:
            rows.features.append((i3d(generated), i3d(recorded)))
        rows.num_clips += len(part)
        if progress:
            progress(rows.num_clips)
    if not rows.num_clips:
        raise ValueError("an evaluation needs at least one clip, got none; add recordings longer than a clip")
    return rows.row(world.num_frames)


class _Rows:
    """The accumulated figures of all chunks."""

    def __init__(self) -> None:
        self.num_clips, self.sampling_s = 0, 0.0
        self.qualities: list[Quality] = []
        self.read: list[Columns] = []
        self.commanded: list[Columns] = []
        self.lpips: list[Tensor] = []
        self.features: list[tuple[np.ndarray, np.ndarray]] = []

    def row(self, num_frames: int) -> PolicyRow:
        quality = join_quality(self.qualities)
        distance = None
        if self.features:
            generated, real = (np.concatenate(side) for side in zip(*self.features, strict=True))
            distance = frechet_distance(generated, real)
        assert quality.psnr is not None and quality.ssim is not None
        return PolicyRow(
            num_clips=self.num_clips,
            fps=self.num_clips * num_frames / self.sampling_s,
            psnr=float(quality.psnr.mean()),
            ssim=float(quality.ssim.mean()),
            following=action_following(self.read, self.commanded) if self.read else None,
            following_in_use=following_in_use(self.read, self.commanded) if self.read else None,
            lpips=float(torch.cat(self.lpips).mean()) if self.lpips else None,
            fvd=distance,
        )


def _chunks(clips: Iterable[Clip], size: int) -> Iterator[Sequence[Clip]]:
    reader = iter(clips)
    while part := list(islice(reader, size)):
        yield part
