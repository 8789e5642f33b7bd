"""Audit a reward: what it pays for real clips and for corrupted ones, and which fields its IDM can read.

Legend: P clips, K frames of a clip, C context frames, F = K - C, N kinds of clips.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlir_ray.algorithm.terms import term_advantages, weighted_sum
from rlir_ray.config import RewardConfig
from rlir_ray.idm.base import InverseDynamics
from rlir_ray.models.clip_codec import ClipCodec
from rlir_ray.rewards.base import Reward
from rlir_ray.rewards.classification import or_none
from rlir_ray.rewards.combined import CombinedReward
from rlir_ray.rewards.corruptions import Frames, corrupted_clips
from rlir_ray.rewards.field_scores import FieldValues, commanded_values, field_scores, read_clips
from rlir_ray.spaces.fields import ActionField
from rlir_ray.spaces.space import Actions
from rlir_ray.trajectory import EncodedClips, EncodedVideo, RewardScores, stored_codes

REAL, CODEC = "real", "codec"
# These clips do not show the commanded actions, so a reward must pay less for them.
MUST_LOSE = ("static", "shuffled", "reversed", "ping_pong", "other_clip", "random")
# These may show the actions, so a reward must only not pay more for them.
MUST_NOT_WIN = ("blurred", "darkened")
# Least lead of real clips, as a share of their lead over the kind of clip that earns least.
MIN_LEAD = 0.1
# Margin in score by which a field must be read better in real clips than in clips that do not show it.
FIELD_MARGIN = 0.1
# Frames in which a field must be used before its score says something.
MIN_USED = 20
# Parts of the clips that the jackknife leaves out, one at a time.
NUM_BLOCKS = 16
CLIPS_AT_ONCE = 16
TOTAL = "reward"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over clips with its standard error."""

    mean: float
    se: float

    def to_json(self) -> dict[str, float | None]:
        return {"mean": or_none(self.mean), "se": or_none(self.se)}


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardAudit:
    """What a reward pays for each kind of clip."""

    terms: dict[str, dict[str, Estimate]]
    """Label of a term, or `reward` for their combination -> kind of clip -> reward of a clip."""
    fields: dict[str, dict[str, Estimate]]
    """Field -> kind of clip -> score of the IDM (`field_scores`); empty: the reward reads no IDM."""
    faults: tuple[str, ...]
    """One line for each reason why the reward fails; empty: it passes."""
    num_clips: int

    def to_json(self) -> dict[str, object]:
        def plain(table: Mapping[str, Mapping[str, Estimate]]) -> dict[str, object]:
            return {name: {kind: each.to_json() for kind, each in row.items()} for name, row in table.items()}

        return {
            "passed": not self.faults,
            "faults": list(self.faults),
            "num_clips": self.num_clips,
            "terms": plain(self.terms),
            "fields": plain(self.fields),
        }


def audit_reward(
    reward: Reward,
    codec: ClipCodec,
    frames: Frames,
    actions: Sequence[Actions],
    num_context: int,
    settings: RewardConfig,
    seed: int = 0,
) -> RewardAudit:
    """Score real and corrupted clips as a run would: encoded, and all kinds of one clip as one group.

    Args:
        reward: the reward of the run.
        codec: encodes and decodes the clips.
        frames: uint8 [P, K, H, W, 3], real clips.
        actions: P times K - 1 actions; action i leads into frame i + 1.
        num_context: C, frames that all kinds share.
        settings: how terms are combined.
        seed: seed of the corruptions.
    """
    clips = {CODEC: frames, **corrupted_clips(frames, num_context, seed)}
    encoded = {kind: _encode(codec, each) for kind, each in clips.items()}
    rewards = _rewards(reward, encoded, actions, num_context, settings)
    fields: dict[str, dict[str, Estimate]] = {}
    if isinstance(reward, CombinedReward):
        rewards = _with_real(reward, rewards, frames, actions, num_context)
        if reward.idm is not None:
            decoded = {REAL: frames, **{kind: _decode(codec, each) for kind, each in encoded.items()}}
            fields = _field_table(reward.idm, decoded, actions, num_context, reward.names)
    faults = (*_reward_faults(rewards[TOTAL], settings), *_field_faults(fields))
    terms = {label: {kind: _estimate(values) for kind, values in row.items()} for label, row in rewards.items()}
    return RewardAudit(terms=terms, fields=fields, faults=faults, num_clips=len(frames))


# ---------------------------------------------------------------------------------------------------------------------
# Rewards

# Label -> kind -> reward of each clip, [P].
Rewards = dict[str, dict[str, npt.NDArray[np.float64]]]


def _rewards(
    reward: Reward,
    encoded: Mapping[str, EncodedClips],
    actions: Sequence[Actions],
    num_context: int,
    settings: RewardConfig,
) -> Rewards:
    """Score groups of one clip of each kind."""
    kinds, keyframes = tuple(encoded), encoded[CODEC].keyframes
    codes = stored_codes(np.stack([each.codes.cpu().numpy() for each in encoded.values()], 1))  # [P, N, K, ...]
    rows: list[dict[str, npt.NDArray[np.float64]]] = []
    for place, commanded in enumerate(actions):
        video = EncodedVideo(
            group_id=place,
            codes=codes[place],
            num_context=num_context,
            actions=commanded,
            keyframe=None if keyframes is None else stored_codes(keyframes[place].cpu().numpy()),
            recorded=codes[place, 0, num_context:],
        )
        (scores,) = reward.score([video])
        if scores.failure:
            raise ValueError(f"the reward must score real and corrupted clips, got: {scores.failure}")
        by_label = {label: _clip_means(values) for label, values in scores.terms.items()}
        rows.append({TOTAL: _total(scores, settings), **by_label})
    return {
        label: {kind: np.array([row[label][number] for row in rows]) for number, kind in enumerate(kinds)}
        for label in rows[0]
    }


def _total(scores: RewardScores, settings: RewardConfig) -> npt.NDArray[np.float64]:
    """Return what training would compare of each clip of a group, [N]: its reward, or its advantage."""
    if settings.combine == "rewards" or not scores.terms:
        return _clip_means(scores.frame_rewards)
    by_term = term_advantages(
        list(scores.terms.values()), settings.by_group, credit="clip", discount=1.0, min_reward_std=0.0
    )
    if by_term is None:
        return np.zeros(len(scores.frame_rewards))
    return _clip_means(weighted_sum(by_term, settings.weights))


def _clip_means(rewards: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Average over the frames, [N, F] to [N]."""
    means: npt.NDArray[np.float64] = rewards.mean(1, dtype=np.float64)
    return means


class _Pixels:
    """A codec without loss, whose codes are the pixels."""

    def __init__(self, height: int, width: int) -> None:
        self.size = (height, width, 3)

    def decode_clips(self, clips: EncodedClips) -> Tensor:
        frames: Tensor = clips.codes.unflatten(-1, self.size)
        return frames.to(torch.uint8)


def _with_real(
    reward: CombinedReward, rewards: Rewards, frames: Frames, actions: Sequence[Actions], num_context: int
) -> Rewards:
    """Add the terms' rewards of real clips that did not go through the codec."""
    raw = copy.copy(reward)
    raw.codec = _Pixels(*frames.shape[2:4])
    found: dict[str, list[float]] = {}
    for clip, commanded in zip(frames, actions, strict=True):
        codes = clip.reshape(1, len(clip), -1)
        video = EncodedVideo(
            group_id=0, codes=codes, num_context=num_context, actions=commanded, recorded=codes[0, num_context:]
        )
        for label, values in raw.score([video])[0].terms.items():
            found.setdefault(label, []).append(float(values.mean()))
    return {label: ({REAL: np.array(found[label])} if label in found else {}) | row for label, row in rewards.items()}


def _reward_faults(row: Mapping[str, npt.NDArray[np.float64]], settings: RewardConfig) -> list[str]:
    best = row[CODEC]
    floor = min(float(values.mean()) for values in row.values())
    least = MIN_LEAD * (float(best.mean()) - floor)
    faults = []
    for kind in (*MUST_LOSE, *MUST_NOT_WIN):
        lead = _estimate(best - row[kind])
        loses = lead.mean > max(2 * lead.se, least) if kind in MUST_LOSE else lead.mean >= -2 * lead.se
        if not loses:
            rule = "pay real clips more than" if kind in MUST_LOSE else "not pay real clips less than"
            words = kind.replace("_", " ")
            faults.append(
                f"{settings.described} must {rule} {words} ones, got {best.mean():.3f} for real and "
                f"{row[kind].mean():.3f} for {words} clips (lead {lead.mean:.3f} ± {lead.se:.3f}); add a term that "
                "tells them apart"
            )
    return faults


# ---------------------------------------------------------------------------------------------------------------------
# Fields


def _field_table(
    idm: InverseDynamics,
    clips: Mapping[str, Frames],
    actions: Sequence[Actions],
    num_context: int,
    names: Sequence[str],
) -> dict[str, dict[str, Estimate]]:
    fields = idm.space.select(names)
    commanded = commanded_values(actions, names).frames(slice(num_context - 1, None))
    used = [
        int((commanded.classes[..., column] != (field.null_class or 0)).sum()) for column, field in enumerate(fields)
    ]
    table: dict[str, dict[str, Estimate]] = {
        field.name: {} for field, count in zip(fields, used, strict=True) if count >= MIN_USED
    }
    for kind, frames in clips.items():
        recovered = read_clips(idm, frames, names).frames(slice(num_context, None))
        scores = field_scores(recovered, commanded, fields)
        errors = _jackknife(recovered, commanded, fields)
        for column, field in enumerate(fields):
            if field.name in table:
                table[field.name][kind] = Estimate(float(scores[column]), float(errors[column]))
    return table


def _jackknife(
    recovered: FieldValues, commanded: FieldValues, fields: Sequence[ActionField]
) -> npt.NDArray[np.float64]:
    """Return the standard error of each field's score over clips: leave out one block of clips at a time."""
    num_clips = len(commanded.classes)
    blocks = np.array_split(np.arange(num_clips), min(NUM_BLOCKS, num_clips))
    found = []
    for block in blocks:
        kept = np.delete(np.arange(num_clips), block)
        found.append(field_scores(recovered.clips(kept), commanded.clips(kept), fields))
    spread = np.square(found - np.mean(found, 0)).sum(0)
    errors: npt.NDArray[np.float64] = np.sqrt((len(blocks) - 1) / len(blocks) * spread)
    return errors


def _field_faults(fields: Mapping[str, Mapping[str, Estimate]]) -> list[str]:
    faults = []
    for name, row in fields.items():
        chance = max(row["static"].mean, row["other_clip"].mean)
        if not row[CODEC].mean > chance + FIELD_MARGIN:
            faults.append(
                f"models.reward_idm must read {name} in real clips better than in clips that do not show it by "
                f"{FIELD_MARGIN}, got {row[CODEC].mean:.3f} and {chance:.3f}; train it longer, or leave {name} out of "
                "world.groups"
            )
    return faults


# ---------------------------------------------------------------------------------------------------------------------
# Clips


def _encode(codec: ClipCodec, frames: Frames) -> EncodedClips:
    parts = [codec.encode_clips(torch.from_numpy(np.ascontiguousarray(part))) for part in _chunks(frames)]
    keyframes = [part.keyframes for part in parts if part.keyframes is not None]
    return EncodedClips(torch.cat([part.codes for part in parts]), torch.cat(keyframes) if keyframes else None)


def _decode(codec: ClipCodec, clips: EncodedClips) -> Frames:
    starts = range(0, len(clips.codes), CLIPS_AT_ONCE)
    parts = [codec.decode_clips(clips[start : start + CLIPS_AT_ONCE]).cpu() for start in starts]
    return torch.cat(parts).numpy()


def _chunks(frames: Frames) -> list[Frames]:
    return [frames[start : start + CLIPS_AT_ONCE] for start in range(0, len(frames), CLIPS_AT_ONCE)]


def _estimate(values: npt.NDArray[np.float64]) -> Estimate:
    se = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
    return Estimate(float(values.mean()), se)
