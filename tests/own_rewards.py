"""Rewards of a user's own, for tests and benchmarks of the pool; nothing heavy is imported."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlir_ray.spaces.vpt import VPT_SPACE
from rlir_ray.trajectory import EncodedVideo, RewardScores


def small_video(group_id: int, group_size: int = 2, num_frames: int = 3) -> EncodedVideo:
    """A group of clips with one context frame and one token a frame, its number."""
    actions = VPT_SPACE.nothing(num_frames)
    codes = np.full((group_size, 1 + num_frames, 1), group_id, np.uint16)
    return EncodedVideo(group_id=group_id, codes=codes, num_context=1, actions=actions)


@dataclass
class SleepReward:
    """Takes a while for each group and gives it its number.

    Args:
        folder: where each process writes down the groups that it scores, one a line, in a file of its own.
        seconds: for each group.
    """

    folder: Path
    seconds: float = 0.01

    def score(self, videos: list[EncodedVideo]) -> list[RewardScores]:
        time.sleep(self.seconds * len(videos))
        with (self.folder / str(os.getpid())).open("a") as lines:
            lines.writelines(f"{video.group_id}\n" for video in videos)
        return [scores_of(video) for video in videos]


@dataclass
class DeadlyReward:
    """Ends its process over one group: the first time that anyone meets it, or always."""

    folder: Path
    group_id: int
    always: bool = False

    def score(self, videos: list[EncodedVideo]) -> list[RewardScores]:
        met = self.folder / "met"
        if any(video.group_id == self.group_id for video in videos) and (self.always or not met.exists()):
            with met.open("a") as lines:
                lines.write(f"{os.getpid()}\n")
            os.kill(os.getpid(), signal.SIGKILL)
        return [scores_of(video) for video in videos]


@dataclass
class SickeningReward:
    """Raises over one group, and over everything after it in the same process; fresh processes are immune."""

    folder: Path
    group_id: int
    is_sick: bool = False

    def score(self, videos: list[EncodedVideo]) -> list[RewardScores]:
        met = self.folder / "met"
        if any(video.group_id == self.group_id for video in videos) and not met.exists():
            met.touch()
            self.is_sick = True
        if self.is_sick:
            raise RuntimeError("the device is lost")
        return [scores_of(video) for video in videos]


@dataclass
class FastidiousReward:
    """Raises over one group, and is none the worse for it."""

    group_id: int

    def score(self, videos: list[EncodedVideo]) -> list[RewardScores]:
        if any(video.group_id == self.group_id for video in videos):
            raise ValueError(f"group {self.group_id} cannot be read")
        return [scores_of(video) for video in videos]


@dataclass
class StuckReward:
    """Never comes back from one group: the first time that anyone meets it, or always."""

    folder: Path
    group_id: int
    always: bool = False

    def score(self, videos: list[EncodedVideo]) -> list[RewardScores]:
        met = self.folder / "met"
        if any(video.group_id == self.group_id for video in videos) and (self.always or not met.exists()):
            with met.open("a") as lines:
                lines.write(f"{os.getpid()}\n")
            time.sleep(3600)
        return [scores_of(video) for video in videos]


@dataclass
class MoodyReward:
    """Raises when it meets a group for the first time, and over the group `never` each time."""

    folder: Path
    group_id: int
    never: int = -1

    def score(self, videos: list[EncodedVideo]) -> list[RewardScores]:
        met = self.folder / "met"
        if any(video.group_id == self.never for video in videos):
            raise ValueError(f"group {self.never} cannot be read")
        if any(video.group_id == self.group_id for video in videos) and not met.exists():
            met.touch()
            raise RuntimeError("not now")
        return [scores_of(video) for video in videos]


@dataclass
class TokenReward:
    """The higher a frame's ids, the better."""

    num_codes: int

    def score(self, videos: list[EncodedVideo]) -> list[RewardScores]:
        return [
            RewardScores(
                group_id=video.group_id,
                frame_rewards=(video.codes[:, video.num_context :].mean(-1) / self.num_codes).astype(np.float32),
            )
            for video in videos
        ]


class BrokenReward:
    """Cannot be built."""

    def __init__(self) -> None:
        raise ValueError("no such network")


def wait_for_video(path: Path) -> EncodedVideo:
    """A video that exists as soon as a file does."""
    while not path.exists():
        time.sleep(0.01)
    return small_video(7)


def scores_of(video: EncodedVideo) -> RewardScores:
    rewards = np.full((len(video.codes), video.num_frames), video.group_id, np.float32)
    return RewardScores(group_id=video.group_id, frame_rewards=rewards)
