"""Inverse rewards: decode a group's clips, let an inverse dynamics model read the actions, compare with the commands.

The decoder and the reader together, so that a video travels encoded. Knows nothing of pools.
Legend: G trajectories of a group, B clips, C context frames, F generated frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlir_ray.actions import GROUPS, Actions, group_classes
from rlir_ray.metrics import confusion
from rlir_ray.models.readings import class_tables, group_probabilities, recovered_classes
from rlir_ray.rewards.agreement import accepted_classes, agreement, class_weights, every_rule, frame_weights
from rlir_ray.trajectory import EncodedVideo, RewardScores, codes_tensor

if TYPE_CHECKING:
    from rlir_ray.config import RewardConfig, WorldConfig


class Decoder(Protocol):
    """What a reward needs of a tokenizer."""

    def decode(self, codes: Tensor) -> Tensor:
        """Encoded frames [n, ...] to uint8 [n, H, W, 3]."""


class InverseDynamics(Protocol):
    """What a reward needs of an inverse dynamics model."""

    def logits(self, frames: Tensor) -> dict[str, Tensor]:
        """uint8 [B, F, H, W, 3] to buttons [B, F, 20, 2] and camera [B, F, 2, 11]; index k leads into frame k."""


class InverseReward:
    """Scores groups of generated clips (RLIR, arXiv 2509.23958).

    Args:
        tokenizer: decodes encoded frames.
        idm: reads the actions; it sees the context frames too, only generated frames are scored.
        world: the action groups to compare.
        config: rule, camera, match, balance and the frames read at once.
        class_shares: action group -> how often each class is commanded, for `balance=class`.
        device: where encoded frames are sent; the models must be there.

    Raises:
        ValueError: `balance=class` without shares or with another rule than `groups`.
    """

    def __init__(
        self,
        tokenizer: Decoder,
        idm: InverseDynamics,
        *,
        world: WorldConfig,
        config: RewardConfig,
        class_shares: Mapping[str, npt.NDArray[np.floating]] | None = None,
        device: str = "cpu",
    ) -> None:
        if config.balance == "class" and (class_shares is None or config.rule != "groups"):
            found = f"rule {config.rule!r} and {'no ' if class_shares is None else ''}class shares"
            raise ValueError(
                f"reward.balance=class needs reward.rule=groups and class shares, got {found}; set reward.balance=none"
            )
        self.tokenizer, self.idm, self.world, self.config, self.device = tokenizer, idm, world, config, device
        self.weights: dict[str, npt.NDArray[np.float32]] | None = None
        if config.balance == "class" and class_shares is not None:
            self.weights = {name: class_weights(class_shares[name]) for name in world.groups}

    def score(self, videos: Sequence[EncodedVideo]) -> list[RewardScores]:
        """Rewards of whole groups, read together.

        Args:
            videos: groups of any size; all with the same number of frames.

        Returns:
            One `RewardScores` each, in the order given: `frame_rewards` [G, F] under the configured rule; `rules`:
            the mean under every rule (`agreement.every_rule`); `confusion` of each action group by the recovered class;
            `failure` where latents or readings are not finite.

        Raises:
            ValueError: videos of different lengths.
        """
        lengths = {(video.num_context, video.num_frames) for video in videos}
        if len(lengths) > 1:
            raise ValueError(f"videos scored together must be of one length, got {sorted(lengths)}; score them apart")
        whole = [video for video in videos if np.isfinite(video.codes).all()]
        scores = {
            video.group_id: self._failed(video, "its latents are NaN or infinite; lower train.learning_rate")
            for video in videos
        }
        if whole:
            scores |= {one.group_id: one for one in self._score_whole(whole)}
        return [scores[video.group_id] for video in videos]

    def _score_whole(self, videos: Sequence[EncodedVideo]) -> list[RewardScores]:
        soft, classes = self._read(codes_tensor(videos))
        sizes = [len(video.codes) for video in videos]
        parts = {name: table.split(sizes) for name, table in soft.items()}
        return [
            self._score_group(video, {name: tables[index] for name, tables in parts.items()}, recovered)
            for index, (video, recovered) in enumerate(zip(videos, classes.split(sizes), strict=True))
        ]

    @staticmethod
    def _failed(video: EncodedVideo, what: str) -> RewardScores:
        """One group that cannot be scored does not take the others along."""
        return RewardScores.failed(video.group_id, f"group {video.group_id} cannot be scored: {what}")

    @torch.no_grad()
    def _read(self, codes: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Encoded clips [B, C + F, ...] to probabilities [B, C + F, K] by group and classes [B, C + F, groups]."""
        num_clips, num_frames = codes.shape[:2]
        at_once = max(1, self.config.max_frames // num_frames)
        tables: dict[str, list[Tensor]] = {name: [] for name in self.world.groups}
        classes = []
        for start in range(0, num_clips, at_once):
            part = codes[start : start + at_once].to(self.device)
            frames = self.tokenizer.decode(part.flatten(0, 1)).unflatten(0, part.shape[:2])
            logits = self.idm.logits(frames)
            classes.append(recovered_classes(logits, self.world.groups))
            for name, table in group_probabilities(logits, self.world.groups).items():
                tables[name].append(table.float().cpu())
        return {name: torch.cat(parts) for name, parts in tables.items()}, torch.cat(classes)

    def _score_group(self, video: EncodedVideo, probabilities: dict[str, Tensor], classes: Tensor) -> RewardScores:
        config, groups = self.config, self.world.groups
        for name, table in probabilities.items():
            if not bool(torch.isfinite(table).all()):
                return self._failed(
                    video, f"the inverse dynamics model gives {name} no finite probabilities; check models.reward_idm"
                )
        commanded = video.actions[len(video.actions) - video.num_frames :]
        recovered = classes[:, video.num_context :]  # [G, F, groups]
        soft = {name: table[:, video.num_context :] for name, table in probabilities.items()}
        exact = class_tables(recovered, groups)
        accepted = accepted_classes(commanded, groups, camera=config.camera, tolerance=config.camera_tolerance)
        weights = frame_weights(commanded, tuple(accepted), self.weights) if self.weights else None
        tables = exact if config.match == "exact" else soft
        rewards = agreement(tables, accepted, rule=config.rule, weights=weights)
        return RewardScores(
            group_id=video.group_id,
            frame_rewards=rewards.numpy().astype(np.float32),
            rules=every_rule(exact, soft, commanded, camera=config.camera, tolerance=config.camera_tolerance),
            confusion=group_confusion(recovered.numpy(), commanded, groups),
        )


def group_confusion(
    recovered: npt.NDArray[np.int64], commanded: Actions, groups: Sequence[str]
) -> dict[str, npt.NDArray[np.int64]]:
    """Counts of commanded (rows) against recovered (columns) classes.

    Args:
        recovered: int64 [G, F, len(groups)].
        commanded: F actions, the same for all G clips.
        groups: names out of `rlir_ray.actions.GROUPS`.

    Returns:
        Action group -> int64 [classes, classes].
    """
    classes = np.broadcast_to(group_classes(commanded, groups), recovered.shape)
    return {
        name: confusion(recovered[..., column], classes[..., column], GROUPS[name].num_classes)
        for column, name in enumerate(groups)
    }
