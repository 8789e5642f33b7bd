"""The prompt actor: makes the prompts and real clips, and hands both to the other actors by reference."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import ray

from actors.cluster.lifecycle import Handle
from rlir_ray.config import Config
from rlir_ray.data.clips import PromptSplit
from rlir_ray.data.prompts import PromptSet, prepare_prompts
from rlir_ray.families import open_codec
from rlir_ray.trajectory import Prompt

PromptSource = Callable[[PromptSplit], PromptSet]


# The concurrency group of calls that are answered while prompts are made.
WATCHING = "watching"
SAY_EVERY_S, ANSWER_S = 15.0, 5.0


class ConfiguredPrompts:
    """Make prompts of fresh clips of the embedded world, or of the user's recordings."""

    def __init__(self, config: Config, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.activity = ""
        """How far the recording is, for a person."""

    def __call__(self, split: PromptSplit) -> PromptSet:
        def note(done: int, total: int) -> None:
            self.activity = f"{done} of {total} frames of {split} episodes recorded"

        self.activity = f"{split} clips"
        return prepare_prompts(self.config, split, open_codec(self.config), self.folder, note)


class PromptActor:
    """Args:
    source: makes the prompt set of a split; called once a split.
    """

    def __init__(self, source: PromptSource) -> None:
        self.source = source
        self.sets: dict[str, PromptSet] = {}

    def prepare(self, split: PromptSplit, num_clips: int | None = None) -> list[str]:
        """Make a split, keep the frames of at most `num_clips` clips (None: all), and return the prompt ids."""
        made = self.source(split)
        self.sets[split] = made if num_clips is None else made.with_clips(num_clips)
        return [prompt.prompt_id for prompt in self.sets[split].prompts]

    def activity(self) -> str:
        """Say how far the source is; empty for a source that does not say."""
        return getattr(self.source, "activity", "")

    def left_out(self) -> tuple[int, tuple[str, ...]]:
        """Return how many recordings the splits have, and a line for each recording that was left out."""
        sets = self.sets.values()
        return sum(each.num_recordings for each in sets), tuple(line for each in sets for line in each.left_out)

    def prompts(self, indices: Sequence[int]) -> list[Prompt]:
        """Return training prompts."""
        return [self.sets["train"].prompts[index] for index in indices]

    def hand_over(self, split: PromptSplit) -> PromptSet:
        """Return the prompts whose clips are kept, with their frames, and drop the frames here: call this once."""
        found = self.sets[split].with_frames()
        self.sets[split] = self.sets[split].with_clips(0)
        return found

    def class_shares(self, groups: tuple[str, ...]) -> dict[str, npt.NDArray[np.float64]]:
        """Return how often training commands each class."""
        return self.sets["train"].class_shares(groups)


class PromptWatch:
    """Report now and then how far the prompts are, since making them may take minutes.

    Args:
        actor: the prompt actor, whose calls of the group `WATCHING` are answered while it works.
        progress: called with a line every `SAY_EVERY_S` seconds.
    """

    def __init__(self, actor: Handle, progress: Callable[[str], None]) -> None:
        self.actor, self.progress = actor, progress
        self.started = self.said = time.monotonic()

    def __call__(self) -> None:
        now = time.monotonic()
        if now - self.said < SAY_EVERY_S:
            return
        self.said, activity = now, ""
        # Ignore an actor that is too busy to answer, or has failed: the wait itself reports that.
        with contextlib.suppress(ray.exceptions.RayError):
            activity = ray.get(self.actor.activity.options(concurrency_group=WATCHING).remote(), timeout=ANSWER_S)
        self.progress(f"making prompts for {now - self.started:.0f} s{f': {activity}' if activity else ''}")
