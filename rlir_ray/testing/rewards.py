"""Contract tests of rewards and of their terms.

Legend: G trajectories, C context frames, F generated frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from torch import Tensor

from rlir_ray.rewards.base import Reward
from rlir_ray.rewards.term import GroupClips, Recovered, Term
from rlir_ray.testing.samples import TOLERANCE, check, sample_groups, sample_videos
from rlir_ray.trajectory import EncodedVideo, RewardScores, check_scores


def check_reward(reward: Reward, videos: Sequence[EncodedVideo] | None = None) -> None:
    """Check a reward: finite rewards [G, F] for each video, equal at every call, alone and together with others.

    Args:
        reward: the reward.
        videos: at least two videos of one length that the reward can read; None: videos of random tokens.
    """
    videos = list(videos or sample_videos())
    first = _scores(reward, videos)
    for scores, video in zip(first, videos, strict=True):
        check(not scores.failure, f"score must give finite rewards for group {video.group_id}", scores.failure)
        dtype = scores.frame_rewards.dtype
        check(dtype == np.float32, "frame_rewards must be float32", dtype)
    _check_same(first, _scores(reward, videos), "score must give the same rewards at every call")
    alone = [_scores(reward, [video])[0] for video in videos]
    _check_same(first, alone, "score must give a group the same rewards alone and together with others")
    back = _scores(reward, videos[::-1])[::-1]
    _check_same(first, back, "score must give a group the same rewards in any order")


def check_reward_term(term: Term, groups: Sequence[GroupClips] | None = None) -> None:
    """Check a term of a reward: finite numbers [G, F], equal at every call, and of each clip by itself.

    Args:
        term: the term.
        groups: groups that the term can read; None: groups of random frames, with a recorded future.
    """
    for number, clips in enumerate(groups or sample_groups()):
        shape = (len(clips.frames), len(clips.commanded))
        first = _term_rewards(term, clips)
        check(first.shape == shape, f"score must give [G, F] = {shape} rewards", first.shape)
        check(bool(np.isfinite(first).all()), f"score must give finite rewards for group {number}", first)
        gap = float(np.abs(first - _term_rewards(term, clips)).max())
        check(gap <= TOLERANCE, "score must give the same rewards at every call", f"a difference of {gap:.3g}")
        backwards = replace(clips, frames=clips.frames.flip(0), recovered=_flipped(clips.recovered))
        gap = float(np.abs(first - _term_rewards(term, backwards)[::-1]).max())
        check(gap <= TOLERANCE, "score must not depend on the order of the clips", f"a difference of {gap:.3g}")


def _term_rewards(term: Term, clips: GroupClips) -> npt.NDArray[np.floating]:
    found = term.score(clips)
    return found.detach().cpu().numpy() if isinstance(found, Tensor) else np.asarray(found)


def _flipped(recovered: Recovered | None) -> Recovered | None:
    if recovered is None:
        return None
    tables = {name: table.flip(0) for name, table in recovered.probabilities.items()}
    return Recovered(probabilities=tables, classes=recovered.classes.flip(0))


def _scores(reward: Reward, videos: Sequence[EncodedVideo]) -> list[RewardScores]:
    scores = reward.score(list(videos))
    try:
        check_scores(scores, videos)
    except ValueError as error:
        raise AssertionError(str(error)) from None
    return scores


def _check_same(one: Sequence[RewardScores], other: Sequence[RewardScores], rule: str) -> None:
    for each, again in zip(one, other, strict=True):
        gap = float(np.abs(each.frame_rewards - again.frame_rewards).max())
        check(gap <= TOLERANCE, rule, f"a difference of {gap:.3g} in group {each.group_id}")
