"""The prompt actor: makes the prompts and real clips, and passes them to the other actors by reference."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import ray

from actors.cluster.placement import Handle
from rlir_ray.config import Config
from rlir_ray.data.clips import PromptSplit
from rlir_ray.data.prompts import PromptSet, encoded_real, prepare_prompts
from rlir_ray.trajectory import EncodedVideo, Prompt

PromptSource = Callable[[PromptSplit], PromptSet]


# Concurrency group of calls that the actor answers while it makes prompts.
WATCHING = "watching"
REPORT_EVERY_S, ANSWER_TIMEOUT_S = 15.0, 5.0


class ConfiguredPrompts:
    """The configured source of prompts: fresh clips of the embedded world, or the user's recordings.

    Args:
        config: the run's configuration.
        folder: the run's folder.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.activity = ""
        """The progress of the recording, for a person."""

    def __call__(self, split: PromptSplit) -> PromptSet:
        # Imported here: a source of the user's own may need no torch.
        from rlir_ray.families import open_codec

        def note(done: int, total: int) -> None:
            self.activity = f"{done} of {total} frames of {split} episodes recorded"

        self.activity = f"{split} clips"
        return prepare_prompts(self.config, split, open_codec(self.config), self.folder, note)


class PromptActor:
    """The Ray actor that holds the prompt sets of a run.

    Args:
        source: makes the prompt set of a split; called once per split.
    """

    def __init__(self, source: PromptSource) -> None:
        self.source = source
        self.sets: dict[str, PromptSet] = {}
        self._real: list[EncodedVideo] = []

    def prepare(self, split: PromptSplit, num_clips: int | None = None) -> list[str]:
        """Make the prompts of a split and return their ids.

        Args:
            split: the split.
            num_clips: number of clips whose frames are kept; None: all.
        """
        made = self.source(split)
        self.sets[split] = made if num_clips is None else made.with_clips(num_clips)
        return [prompt.prompt_id for prompt in self.sets[split].prompts]

    def activity(self) -> str:
        """Return the progress of the source; empty for a source that reports none."""
        return getattr(self.source, "activity", "")

    def skipped(self) -> tuple[int, tuple[str, ...]]:
        """Return the number of recordings of all splits, and a line for each recording that was left out."""
        sets = self.sets.values()
        return sum(each.num_recordings for each in sets), tuple(line for each in sets for line in each.skipped)

    def prompts(self, indices: Sequence[int]) -> list[Prompt]:
        """Return the training prompts at these indices."""
        return [self.sets["train"].prompts[index] for index in indices]

    def pop_clips(self, split: PromptSplit) -> PromptSet:
        """Return the prompts with frames, and drop these frames from the actor; call this once per split."""
        found = self.sets[split].with_frames()
        self.sets[split] = self.sets[split].with_clips(0)
        return found

    def encode_real(self, config: Config) -> None:
        """Encode the training clips that have frames, for `real_videos`; call this before `pop_clips`."""
        from rlir_ray.families import open_codec

        self._real = encoded_real(self.sets["train"].with_frames(), open_codec(config))

    def real_videos(self) -> list[EncodedVideo]:
        """Return the clips that `encode_real` has encoded."""
        return self._real

    def class_shares(self, groups: tuple[str, ...]) -> dict[str, npt.NDArray[np.float64]]:
        """Return how often training commands each class."""
        return self.sets["train"].class_shares(groups)


def real_videos(actor: Handle, timeout_s: float) -> list[EncodedVideo]:
    """Fetch the encoded real clips of a prompt actor; a reward replica calls this."""
    videos: list[EncodedVideo] = ray.get(actor.real_videos.remote(), timeout=timeout_s)
    return videos


class PromptProgress:
    """A periodic report on the progress of the prompts, which may take minutes; call it while waiting.

    Args:
        actor: the prompt actor, which answers calls of the concurrency group `WATCHING` while it works.
        progress: called with a line every `REPORT_EVERY_S` seconds.
    """

    def __init__(self, actor: Handle, progress: Callable[[str], None]) -> None:
        self.actor, self.progress = actor, progress
        self.started = self.last_report = time.monotonic()

    def __call__(self) -> None:
        now = time.monotonic()
        if now - self.last_report < REPORT_EVERY_S:
            return
        self.last_report, activity = now, ""
        # Ignore an actor that is too busy to answer, or has failed: the wait itself reports that.
        with contextlib.suppress(ray.exceptions.RayError):
            activity = ray.get(
                self.actor.activity.options(concurrency_group=WATCHING).remote(), timeout=ANSWER_TIMEOUT_S
            )
        self.progress(f"making prompts for {now - self.started:.0f} s{f': {activity}' if activity else ''}")
