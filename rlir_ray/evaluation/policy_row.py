"""A policy's row of a published table: generate clips after recorded frames and compare them with their recordings.

Clips are processed in chunks, so that any number of clips fits into memory. Independent of files.
Legend: B clips of a chunk, C context frames, F generated frames, K = C + F, N tokens a frame.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlir_ray.algorithm.seeds import group_seed
from rlir_ray.data.files import Json
from rlir_ray.data.prompts import encode_prompts
from rlir_ray.evaluation.columns import NO_WEIGHTS, column_lines
from rlir_ray.evaluation.evaluate import followed, read_generated
from rlir_ray.evaluation.fvd import I3D, frechet_distance, prefix_features
from rlir_ray.evaluation.gameworldscore import game_world_score
from rlir_ray.evaluation.mineworld import Columns, action_following, actions_clip, following_in_use, logits_clips
from rlir_ray.evaluation.quality import Quality, clip_quality, inner_ssim, join_quality
from rlir_ray.evaluation.rlvr_table import RlvrFigures, frame_errors, frame_repeats
from rlir_ray.models.lpips import LPIPS
from rlir_ray.rewards.classification import or_none
from rlir_ray.rewards.field_scores import FieldValues
from rlir_ray.spaces.layouts import check_space
from rlir_ray.spaces.space import Actions
from rlir_ray.spaces.vpt import VPT_SPACE
from rlir_ray.trajectory import encoded_clips

if TYPE_CHECKING:
    from rlir_ray.config import WorldConfig
    from rlir_ray.data.clips import Clip
    from rlir_ray.idm.base import InverseDynamics
    from rlir_ray.models.clip_codec import ClipCodec
    from rlir_ray.samplers import Sampler


# The published table's name of each column -> our figure.
MEANS = {"P": "precision_macro", "R": "recall_macro", "F1": "f1_macro", "camera": "camera_loss"}
Features = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyRow:
    """The figures of a policy; None for a figure whose network was not given."""

    num_clips: int
    fps: float
    """Frames generated in a second of sampling, without decoding; a chunk of clips is sampled at once."""
    psnr: float
    """dB, mean over the frames, like `ssim` (-1..1) and `lpips` (>= 0)."""
    ssim: float
    """Without the five pixels at each border, as MineWorld computes it."""
    following: Json | None
    """Result of `action_following`: MineWorld's means, over its seven tasks; None in another space than VPT's."""
    following_in_use: Json | None = None
    """Result of `following_in_use`: means over the tasks that the recordings use."""
    game_world_score: Json | None = None
    """Result of `game_world_score`; None in another space than VPT's."""
    fields: dict[str, dict[str, float | None]] | None = None
    """Field -> its figures, as `Following.per_group`; None in VPT's space."""
    lpips: float | None = None
    """With AlexNet, as MineWorld computes it; with VGG16 if `rlvr` is given."""
    fvd: float | None = None
    """Mean of the distances of the first 10, 11, ... F frames, as MineWorld reports it."""
    fvd_whole: float | None = None
    """Distance of all F frames."""
    rlvr: RlvrFigures | None = None
    """RLVR-World's columns; None: not asked for."""

    def lines(self) -> list[str]:
        """Format the figures of the actions in use, and the row of the published table, for a terminal.

        The row is RLVR-World's if `rlvr` is given, else MineWorld's.
        """
        return [*self._action_lines(), *(self.rlvr.lines() if self.rlvr else self._mineworld_lines())]

    def _action_lines(self) -> list[str]:
        if used := self.following_in_use:
            means = {name: used["mean"][key] for name, key in MEANS.items()}
            return [
                f"actions over the tasks in use ({', '.join(used['tasks']) or 'none'}) and the camera axes that turn",
                *column_lines({name: "–" if mean is None else f"{mean:.3f}" for name, mean in means.items()}),
                "",
            ]
        lines = []
        for name, part in (self.fields or {}).items():
            known = (f"{figure} {value:.3f}" for figure, value in part.items() if value is not None)
            lines.append(f"{name}: {', '.join(known) or 'not in use'}")
        return [*lines, ""] if lines else []

    def _mineworld_lines(self) -> list[str]:
        lines = []
        if self.following_in_use:
            lines.append("MineWorld's published columns, over its seven tasks (a task that never occurs counts 1)")
        following, cells = self.following, {"FPS": f"{self.fps:.2f}"}
        if self.fields is None:
            cells |= {name: f"{following['mean'][key]:.3f}" if following else NO_WEIGHTS for name, key in MEANS.items()}
        lines += column_lines({**cells, **self._picture_cells()})
        if self.fvd_whole is not None:
            lines.append(f"FVD is the mean over the first 10, 11, … frames; that of all frames is {self.fvd_whole:.1f}")
        if score := self.game_world_score:
            lines.append(f"GameWorldScore's accuracies: keyboard {score['keyboard']:.3f}, mouse {score['mouse']:.3f}")
        return lines

    def _picture_cells(self) -> dict[str, str]:
        return {
            "PSNR": f"{self.psnr:.2f}",
            "SSIM": f"{self.ssim:.3f}",
            "LPIPS": NO_WEIGHTS if self.lpips is None else f"{self.lpips:.3f}",
            "FVD": NO_WEIGHTS if self.fvd is None else f"{self.fvd:.1f}",
        }

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def evaluate_row(
    clips: Iterable[Clip],
    sampler: Sampler,
    tokenizer: ClipCodec,
    world: WorldConfig,
    *,
    seed: int,
    chunk: int,
    idm: InverseDynamics | None = None,
    judge_context: bool = False,
    lpips: LPIPS | None = None,
    i3d: I3D | None = None,
    rlvr: bool = False,
    progress: Callable[[int], None] | None = None,
) -> PolicyRow:
    """Generate the last F frames of each clip from its first C frames and its recorded actions, and evaluate them.

    Args:
        clips: recorded clips of K frames of the world's size.
        sampler: sampler that holds the policy.
        tokenizer: codec that encodes the context and decodes the clips.
        world: frame counts, and the fields to compare.
        seed: seed of sampling.
        chunk: B, number of clips that are sampled and evaluated at once.
        idm: model that reads the actions; None: leave out action following.
        judge_context: show `idm` the context frames too, which MineWorld's evaluator does not.
        lpips, i3d: networks of LPIPS and FVD; None: leave out the figure.
        rlvr: compute RLVR-World's columns too; `lpips` must then have VGG16.
        progress: called with the number of finished clips.

    Raises:
        ValueError: there are no clips, or fewer than FVD needs.
    """
    totals = _Totals()
    for part in _chunks(clips, chunk):
        real = torch.from_numpy(np.stack([clip.frames for clip in part]))  # [B, K, H, W, 3]
        prompts = encode_prompts(part, [clip.actions for clip in part], tokenizer, world)
        numbers = range(totals.num_clips, totals.num_clips + len(part))
        started = time.perf_counter()
        groups = sampler.sample(prompts, list(numbers), [group_seed(seed, number) for number in numbers], 1)
        totals.sampling_s += time.perf_counter() - started
        encoded = encoded_clips([video for _, video in groups])
        frames = tokenizer.decode_clips(encoded).cpu()
        totals.qualities.append(clip_quality(frames, world.num_frames, real))
        generated, recorded = frames[:, -world.num_frames :], real[:, -world.num_frames :]
        totals.ssim.append(inner_ssim(generated, recorded))
        if idm is not None:
            last = slice(-world.num_frames, None)
            if idm.space == VPT_SPACE:
                totals.read += logits_clips(_vpt_logits(idm, frames, world.num_frames, judge_context))
                pressed = [None if clip.pressed is None else clip.pressed[last] for clip in part]
                totals.commanded += [
                    actions_clip(clip.actions[last], pressed=buttons, whole_degrees=True)
                    for clip, buttons in zip(part, pressed, strict=True)
                ]
            else:
                check_space(part[0].actions.space, idm.space, "the recordings", "--idm")
                totals.readings.append(read_generated(idm, frames, world, judge_context))
                totals.commands += [clip.actions[last] for clip in part]
        if lpips is not None:
            totals.lpips.append(lpips(generated.flatten(0, 1), recorded.flatten(0, 1)))
        if i3d is not None:
            totals.features.append((prefix_features(i3d, generated), prefix_features(i3d, recorded)))
        if rlvr:
            totals.errors.append(frame_errors(generated, recorded))
            if (repeats := frame_repeats(encoded.codes, world.num_frames)) is not None:
                totals.repeats.append(repeats)
        totals.num_clips += len(part)
        if progress:
            progress(totals.num_clips)
    if not totals.num_clips:
        raise ValueError("an evaluation needs at least one clip, got none; add recordings longer than a clip")
    return totals.row(world)


class _Totals:
    """The values of all chunks so far."""

    def __init__(self) -> None:
        self.num_clips, self.sampling_s = 0, 0.0
        self.qualities: list[Quality] = []
        self.read: list[Columns] = []
        self.commanded: list[Columns] = []
        self.readings: list[FieldValues] = []
        self.commands: list[Actions] = []
        self.lpips: list[Tensor] = []
        self.ssim: list[Tensor] = []
        self.features: list[tuple[list[Features], list[Features]]] = []
        self.errors: list[Tensor] = []
        self.repeats: list[Tensor] = []

    def row(self, world: WorldConfig) -> PolicyRow:
        quality, distances = join_quality(self.qualities), self._distances()
        assert quality.psnr is not None
        ssim = float(torch.cat(self.ssim).mean())
        lpips = float(torch.cat(self.lpips).mean()) if self.lpips else None
        repeats = torch.cat(self.repeats) if self.repeats else None
        return PolicyRow(
            num_clips=self.num_clips,
            fps=self.num_clips * world.num_frames / self.sampling_s,
            psnr=float(quality.psnr.mean()),
            ssim=ssim,
            following=action_following(self.read, self.commanded) if self.read else None,
            following_in_use=following_in_use(self.read, self.commanded) if self.read else None,
            game_world_score=game_world_score(self.read, self.commanded) if self.read else None,
            fields=self._fields(world.groups) if self.readings else None,
            lpips=lpips,
            fvd=float(np.mean(distances)) if distances else None,
            fvd_whole=distances[-1] if distances else None,
            rlvr=RlvrFigures.of(torch.cat(self.errors), repeats, ssim, lpips) if self.errors else None,
        )

    def _distances(self) -> list[float]:
        """Return the Fréchet distances of the first 10, 11, ... F frames; empty without a network."""
        sides = [list(zip(*side, strict=True)) for side in zip(*self.features, strict=True)]  # prefixes of chunks
        return [
            frechet_distance(np.concatenate(generated), np.concatenate(real))
            for generated, real in zip(*sides, strict=True)
        ]

    def _fields(self, names: Sequence[str]) -> dict[str, dict[str, float | None]]:
        per_group = followed(self.commands, names, self.readings).per_group
        return {name: {figure: or_none(value) for figure, value in part.items()} for name, part in per_group.items()}


@torch.no_grad()
def _vpt_logits(idm: InverseDynamics, frames: Tensor, num_frames: int, judge_context: bool) -> dict[str, Tensor]:
    """Return the heads of a model in VPT's space for the generated frames: MineWorld keeps contradicting buttons.

    Raises:
        ValueError: the model has no such heads.
    """
    read = getattr(idm, "logits", None)
    if read is None:
        raise ValueError("--idm must have VPT's heads for MineWorld's table, got a model without logits; give another")
    logits = read(frames if judge_context else frames[:, -num_frames:])
    return {head: values[:, -num_frames:] for head, values in logits.items()}


def _chunks(clips: Iterable[Clip], size: int) -> Iterator[Sequence[Clip]]:
    reader = iter(clips)
    while part := list(islice(reader, size)):
        yield part
