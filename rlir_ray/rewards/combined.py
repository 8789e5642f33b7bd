"""The reward of a run: decode a group's clips once, read them once, score each term, and combine the terms.

Decoder, inverse dynamics model and terms live in one process, so that videos travel encoded. Independent of pools.
Legend: G trajectories of a group, B clips, C context frames, F generated frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlir_ray.algorithm.terms import weighted_rewards
from rlir_ray.idm.base import InverseDynamics, stack_classes
from rlir_ray.rewards.agreement import AxisMatch
from rlir_ray.rewards.inverse import ClipScores, InverseTerm, following
from rlir_ray.rewards.term import GroupClips, Recovered, Term
from rlir_ray.spaces.layouts import Cells, check_space
from rlir_ray.spaces.space import Actions
from rlir_ray.trajectory import EncodedClips, EncodedVideo, RewardScores, encoded_clips

if TYPE_CHECKING:
    from rlir_ray.config import RewardConfig


class Decoder(Protocol):
    """The part of a frame codec that a reward uses."""

    def decode_clips(self, clips: EncodedClips) -> Tensor:
        """Decode clips to uint8 [B, n, H, W, 3]."""


class CombinedReward:
    """The sum of the terms of a run's reward; a member of the protocol `Reward`.

    Args:
        codec: decodes encoded frames.
        terms: label -> term, in the order of the configuration.
        idm: recovers the actions, also with the help of the context frames; None: no term reads it.
        names: the fields to compare.
        config: weights and normalisation of the terms, comparison of axes for the log, and the number of frames read at
            once.
        device: device of the codec and the IDM.
        cells: which bins the world model cannot tell apart, for `axis=cell`.
    """

    def __init__(
        self,
        codec: Decoder,
        terms: Mapping[str, Term],
        idm: InverseDynamics | None,
        *,
        names: Sequence[str],
        config: RewardConfig,
        device: str = "cpu",
        cells: Cells | None = None,
    ) -> None:
        self.codec, self.terms, self.idm, self.names = codec, dict(terms), idm, tuple(names)
        self.config, self.device, self.cells = config, device, cells

    @torch.no_grad()
    def score(self, videos: Sequence[EncodedVideo]) -> list[RewardScores]:
        """Score groups together.

        Args:
            videos: groups of any size, all with the same number of frames.

        Returns:
            One `RewardScores` per group, in order: `frame_rewards` [G, F], the sum of the terms; `terms`, the rewards
            of each term; if an IDM reads the clips, the figures of `inverse.following`; `failure` if latents,
            probabilities or a term's rewards are not finite.

        Raises:
            ValueError: the videos have different lengths, or lack the recorded future that a term reads.
        """
        lengths = {(video.num_context, video.num_frames) for video in videos}
        if len(lengths) > 1:
            raise ValueError(f"videos scored together must be of one length, got {sorted(lengths)}; score them apart")
        # Identify groups by position: groups of several runs in one batch may have the same id.
        finite = [place for place, video in enumerate(videos) if np.isfinite(video.codes).all()]
        scores = [_failed(video, "its latents are NaN or infinite; lower train.learning_rate") for video in videos]
        if finite:
            for place, clips in zip(finite, self._open([videos[place] for place in finite]), strict=True):
                scores[place] = self._score_group(videos[place], clips)
        return scores

    @torch.no_grad()
    def score_clip(self, frames: npt.NDArray[np.uint8], actions: Actions) -> ClipScores:
        """Score one clip of frames by the first term, which must be `inverse`.

        Args:
            frames: uint8 [K, H, W, 3], of the world's size.
            actions: K - 1 actions; action i leads into frame i + 1.

        Raises:
            ValueError: `balance=class` is set, whose weights belong to the commands of a run, or the actions have
                another space than the inverse dynamics model.
        """
        term = next(iter(self.terms.values()))
        assert self.idm is not None and isinstance(term, InverseTerm), "a service has the term inverse alone"
        check_space(self.idm.space, actions.space, "the inverse dynamics model", "the clip's actions")
        recovered = self._read(self.idm, torch.from_numpy(frames)[None].to(self.device))
        return term.clip_scores(recovered, actions)

    # -----------------------------------------------------------------------------------------------------------------
    # One decoding and one reading

    def _open(self, videos: Sequence[EncodedVideo]) -> list[GroupClips]:
        """Decode and read groups, as many frames at once as the configuration allows."""
        with_recorded = any(term.reads_recorded for term in self.terms.values())
        rows = [part for video in videos for part in ((video, _recorded(video)) if with_recorded else (video,))]
        codes = encoded_clips(rows)
        num_clips, num_frames = codes.codes.shape[:2]
        at_once = max(1, self.config.max_frames // num_frames)
        frames, readings = [], []
        for start in range(0, num_clips, at_once):
            decoded = self.codec.decode_clips(codes[start : start + at_once])
            frames.append(decoded)
            if self.idm is not None:
                readings.append(self._read(self.idm, decoded))
        sizes = [len(row.codes) for row in rows]
        parts = torch.cat(frames).split(sizes)
        recovered = _split(readings, sizes) if readings else [None] * len(rows)
        step = 2 if with_recorded else 1
        return [
            GroupClips(
                frames=parts[place],
                num_context=video.num_context,
                actions=video.actions,
                policy_version=video.policy_version,
                recorded=parts[place + 1][0, video.num_context :] if with_recorded else None,
                recovered=recovered[place],
            )
            for place, video in zip(range(0, len(rows), step), videos, strict=True)
        ]

    def _read(self, idm: InverseDynamics, frames: Tensor) -> Recovered:
        """Read clips of frames, uint8 [B, C + F, H, W, 3]."""
        reading = idm.read(frames, self.names)
        tables = {name: table.float().cpu() for name, table in reading.probabilities.items()}
        return Recovered(probabilities=tables, classes=stack_classes(reading, self.names))

    # -----------------------------------------------------------------------------------------------------------------
    # The terms

    def _score_group(self, video: EncodedVideo, clips: GroupClips) -> RewardScores:
        if clips.recovered is not None:
            for name, table in clips.recovered.probabilities.items():
                if not bool(torch.isfinite(table).all()):
                    return _failed(
                        video,
                        f"the inverse dynamics model gives {name} no finite probabilities; check models.reward_idm",
                    )
        found: dict[str, npt.NDArray[np.float32]] = {}
        for label, term in self.terms.items():
            rewards = _array(term.score(clips))
            if rewards.shape != (len(video.codes), video.num_frames):
                raise ValueError(
                    f"the term {label} must give [G, F] = {(len(video.codes), video.num_frames)} rewards, got "
                    f"{rewards.shape}; correct its score"
                )
            if not np.isfinite(rewards).all():
                return _failed(video, f"the term {label} gives NaN or infinity; check reward.terms")
            found[label] = rewards
        scores = RewardScores(
            group_id=video.group_id,
            frame_rewards=weighted_rewards(list(found.values()), self.config.weights, self.config.by_group),
            terms=found,
        )
        if clips.recovered is None:
            return scores
        figures = following(clips, self.names, AxisMatch.of(self.config.at_version(clips.policy_version), self.cells))
        return replace(
            scores,
            rules=figures.rules,
            confusion=figures.confusion,
            null_classes=figures.null_classes,
            axis_errors=figures.axis_errors,
        )


def _array(rewards: npt.NDArray[np.floating] | Tensor) -> npt.NDArray[np.float32]:
    found = rewards.detach().float().cpu().numpy() if isinstance(rewards, Tensor) else np.asarray(rewards)
    return found.astype(np.float32)


def _recorded(video: EncodedVideo) -> EncodedVideo:
    """Return the recorded clip of a group's prompt, as a group of one clip.

    Raises:
        ValueError: the video holds no recorded future.
    """
    if video.recorded is None:
        raise ValueError(
            f"a term that compares with the recorded future needs prompts that hold it, got none in group "
            f"{video.group_id}; use the configured prompts with prompts.actions=recorded"
        )
    codes = np.concatenate([video.codes[0, : video.num_context], video.recorded])
    return replace(video, codes=codes[None])


def _split(readings: Sequence[Recovered], sizes: Sequence[int]) -> list[Recovered]:
    """Join readings of consecutive clips and split them into groups of these sizes."""
    names = readings[0].probabilities
    tables = {name: torch.cat([each.probabilities[name] for each in readings]).split(list(sizes)) for name in names}
    classes = torch.cat([each.classes for each in readings]).split(list(sizes))
    return [
        Recovered(probabilities={name: parts[place] for name, parts in tables.items()}, classes=classes[place])
        for place in range(len(sizes))
    ]


def _failed(video: EncodedVideo, cause: str) -> RewardScores:
    """Return the scores of a group that cannot be scored."""
    return RewardScores.failed(video.group_id, f"group {video.group_id} cannot be scored: {cause}")
