"""Inverse rewards: decode a group's clips, recover the actions with an IDM, compare them with the commands.

Decoder and IDM live in the same process, so that videos travel encoded. Independent of pools.
Legend: G trajectories of a group, B clips, C context frames, F generated frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlir_ray.config import asset_path
from rlir_ray.idm.base import InverseDynamics, axis_values, load_inverse_dynamics, one_hot_classes, stack_classes
from rlir_ray.rewards.agreement import AxisMatch, agreement, class_credit, class_weights, every_rule, frame_weights
from rlir_ray.rewards.classification import confusion
from rlir_ray.spaces.fields import Axis
from rlir_ray.spaces.layouts import Cells, check_space
from rlir_ray.spaces.space import Actions, ActionSpace
from rlir_ray.trajectory import EncodedClips, EncodedVideo, RewardScores, encoded_clips

if TYPE_CHECKING:
    from rlir_ray.config import RewardConfig, WorldConfig
    from rlir_ray.rewards.base import RewardContext


class Decoder(Protocol):
    """The part of a frame codec that a reward uses."""

    def decode_clips(self, clips: EncodedClips) -> Tensor:
        """Decode clips to uint8 [B, n, H, W, 3]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipScores:
    """The scores of one clip of K frames; the first frame has no action."""

    agreement: npt.NDArray[np.float32]
    """[K - 1], agreement under the configured rule."""
    space: ActionSpace
    """The space of the actions."""
    commanded: dict[str, npt.NDArray[np.float32]]
    """Field -> [K - 1], commanded values."""
    recovered: dict[str, npt.NDArray[np.float32]]
    """Field -> [K - 1], the most probable class of a choice, the expected value of an axis."""
    by_field: dict[str, npt.NDArray[np.float32]]
    """Field -> [K - 1], agreement of the field: with match=soft the expected credit, with match=exact the credit of the
    recovered class."""


class InverseReward:
    """The inverse reward of groups of generated clips (RLIR, arXiv 2509.23958).

    Args:
        tokenizer: decodes encoded frames.
        idm: recovers the actions; the IDM also sees the context frames, but only generated frames are scored.
        world: the fields to compare.
        config: rule, axis, match, balance, and the number of frames read at once.
        class_shares: field -> frequency of each commanded class, for `balance=class`.
        device: device of both models.
        cells: which bins the world model cannot tell apart, for `axis=cell`.

    Raises:
        ValueError: `balance=class` is set without shares, or with another rule than `groups`.
    """

    reads_idm = True

    def __init__(
        self,
        tokenizer: Decoder,
        idm: InverseDynamics,
        *,
        world: WorldConfig,
        config: RewardConfig,
        class_shares: Mapping[str, npt.NDArray[np.floating]] | None = None,
        device: str = "cpu",
        cells: Cells | None = None,
    ) -> None:
        if config.balance == "class" and (class_shares is None or config.rule != "groups"):
            found = f"rule {config.rule!r} and {'no ' if class_shares is None else ''}class shares"
            raise ValueError(
                f"reward.balance=class needs reward.rule=groups and class shares, got {found}; set reward.balance=none"
            )
        self.tokenizer, self.idm, self.world, self.config, self.device = tokenizer, idm, world, config, device
        self.axis_match = AxisMatch.of(config, cells)
        self.weights: dict[str, npt.NDArray[np.float32]] | None = None
        if config.balance == "class" and class_shares is not None:
            self.weights = {name: class_weights(class_shares[name]) for name in world.groups}

    @classmethod
    def from_context(cls, context: RewardContext) -> InverseReward:
        """Build the inverse reward of the configured checkpoints."""
        config, device = context.config, context.device
        idm = load_inverse_dynamics(asset_path(config.models.reward_idm)).to(device)
        return cls(
            context.open_codec().to(device),
            idm,
            world=config.world,
            config=config.reward,
            class_shares=context.class_shares,
            device=device,
            cells=context.cells,
        )

    def score(self, videos: Sequence[EncodedVideo]) -> list[RewardScores]:
        """Score groups together.

        Args:
            videos: groups of any size, all with the same number of frames.

        Returns:
            One `RewardScores` per group, in order: `frame_rewards` [G, F] under the configured rule; `rules`, the mean
            under every rule (`agreement.every_rule`); `confusion` of each field by the recovered class;
            `failure` if latents or probabilities are not finite.

        Raises:
            ValueError: the videos have different lengths.
        """
        lengths = {(video.num_context, video.num_frames) for video in videos}
        if len(lengths) > 1:
            raise ValueError(f"videos scored together must be of one length, got {sorted(lengths)}; score them apart")
        # Identify groups by position: groups of several runs in one batch may have the same id.
        finite = [place for place, video in enumerate(videos) if np.isfinite(video.codes).all()]
        scores = [self._failed(video, "its latents are NaN or infinite; lower train.learning_rate") for video in videos]
        if finite:
            for place, score in zip(finite, self._score_finite([videos[place] for place in finite]), strict=True):
                scores[place] = score
        return scores

    @torch.no_grad()
    def score_clip(self, frames: npt.NDArray[np.uint8], actions: Actions) -> ClipScores:
        """Score one clip of frames.

        Args:
            frames: uint8 [K, H, W, 3], of the world's size.
            actions: K - 1 actions; action i leads into frame i + 1.

        Raises:
            ValueError: `balance=class` is set, whose weights belong to the commands of a run, or the actions have
                another space than the inverse dynamics model.
        """
        if self.weights:
            raise ValueError("single clips need reward.balance=none, got 'class'; set reward.balance=none")
        check_space(self.idm.space, actions.space, "the inverse dynamics model", "the clip's actions")
        config, names = self.config, self.world.groups
        fields = dict(zip(names, actions.space.select(names), strict=True))
        soft, classes = self._read_frames(torch.from_numpy(frames)[None].to(self.device))
        soft = {name: table[:, 1:] for name, table in soft.items()}  # [1, K - 1, classes]
        classes = classes[:, 1:]  # [1, K - 1, fields]
        credit = class_credit(actions, names, self.axis_match)
        tables = one_hot_classes(classes, tuple(fields.values())) if config.match == "exact" else soft
        recovered = {
            name: axis_values(soft[name][0], field) if isinstance(field, Axis) else classes[0, :, column]
            for column, (name, field) in enumerate(fields.items())
        }
        return ClipScores(
            agreement=agreement(tables, credit, rule=config.rule, fields=fields)[0].numpy().astype(np.float32),
            space=actions.space,
            commanded=dict(zip(names, actions.values_of(names).T, strict=True)),
            recovered={name: values.numpy().astype(np.float32) for name, values in recovered.items()},
            by_field={name: (tables[name].float() * credit[name]).sum(-1)[0].numpy() for name in credit},
        )

    def _score_finite(self, videos: Sequence[EncodedVideo]) -> list[RewardScores]:
        soft, classes = self._read(encoded_clips(videos))
        sizes = [len(video.codes) for video in videos]
        parts = {name: table.split(sizes) for name, table in soft.items()}
        return [
            self._score_group(video, {name: tables[index] for name, tables in parts.items()}, recovered)
            for index, (video, recovered) in enumerate(zip(videos, classes.split(sizes), strict=True))
        ]

    @staticmethod
    def _failed(video: EncodedVideo, cause: str) -> RewardScores:
        """Return the scores of a group that cannot be scored."""
        return RewardScores.failed(video.group_id, f"group {video.group_id} cannot be scored: {cause}")

    @torch.no_grad()
    def _read(self, clips: EncodedClips) -> tuple[dict[str, Tensor], Tensor]:
        """Read encoded clips of C + F frames.

        Returns:
            Field -> probabilities [B, C + F, K], and the most probable classes [B, C + F, fields].
        """
        num_clips, num_frames = clips.codes.shape[:2]
        at_once = max(1, self.config.max_frames // num_frames)
        tables: dict[str, list[Tensor]] = {name: [] for name in self.world.groups}
        classes = []
        for start in range(0, num_clips, at_once):
            frames = self.tokenizer.decode_clips(clips[start : start + at_once])
            found, recovered = self._read_frames(frames)
            classes.append(recovered)
            for name, table in found.items():
                tables[name].append(table)
        return {name: torch.cat(parts) for name, parts in tables.items()}, torch.cat(classes)

    def _read_frames(self, frames: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Read clips of frames, uint8 [B, C + F, H, W, 3]; return probabilities and classes as `_read`."""
        reading = self.idm.read(frames, self.world.groups)
        tables = {name: table.float().cpu() for name, table in reading.probabilities.items()}
        return tables, stack_classes(reading, self.world.groups)

    def _score_group(self, video: EncodedVideo, probabilities: dict[str, Tensor], classes: Tensor) -> RewardScores:
        config, names = self.config, self.world.groups
        for name, table in probabilities.items():
            if not bool(torch.isfinite(table).all()):
                return self._failed(
                    video, f"the inverse dynamics model gives {name} no finite probabilities; check models.reward_idm"
                )
        commanded = video.actions[len(video.actions) - video.num_frames :]
        recovered = classes[:, video.num_context :]  # [G, F, fields]
        soft = {name: table[:, video.num_context :] for name, table in probabilities.items()}
        fields = dict(zip(names, commanded.space.select(names), strict=True))
        exact = one_hot_classes(recovered, tuple(fields.values()))
        credit = class_credit(commanded, names, self.axis_match)
        weights = frame_weights(commanded, tuple(credit), self.weights) if self.weights else None
        tables = exact if config.match == "exact" else soft
        rewards = agreement(tables, credit, rule=config.rule, fields=fields, weights=weights)
        return RewardScores(
            group_id=video.group_id,
            frame_rewards=rewards.numpy().astype(np.float32),
            rules=every_rule(exact, soft, commanded, self.axis_match),
            confusion=field_confusion(recovered.numpy(), commanded, names),
            null_classes={name: field.null_class for name, field in fields.items() if not field.is_graded},
            axis_errors=axis_errors(soft, commanded, names),
        )


def field_confusion(
    recovered: npt.NDArray[np.int64], commanded: Actions, names: Sequence[str]
) -> dict[str, npt.NDArray[np.int64]]:
    """Count each pair of commanded (rows) and recovered (columns) classes, of every field but graded axes.

    Args:
        recovered: int64 [G, F, len(names)], recovered classes.
        commanded: F commanded actions, the same for all G clips.
        names: fields of their space.

    Returns:
        Field -> int64 [classes, classes].
    """
    classes = np.broadcast_to(commanded.classes_of(names), recovered.shape)
    return {
        field.name: confusion(recovered[..., column], classes[..., column], field.num_classes)
        for column, field in enumerate(commanded.space.select(names))
        if not field.is_graded
    }


def axis_errors(probabilities: Mapping[str, Tensor], commanded: Actions, names: Sequence[str]) -> dict[str, float]:
    """Average the distance of the expected from the commanded number, as a share of the range, of every graded axis.

    Args:
        probabilities: field -> [G, F, K].
        commanded: F commanded actions, the same for all G clips.
        names: fields of their space.
    """
    errors = {}
    for field in commanded.space.select(names):
        if isinstance(field, Axis) and field.is_graded:
            wanted = torch.from_numpy(commanded.values_of([field.name])[:, 0].clip(field.low, field.high))
            distance = (axis_values(probabilities[field.name], field) - wanted).abs().mean()
            errors[field.name] = float(distance) / (field.high - field.low)
    return errors
