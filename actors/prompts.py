"""The prompt actor: it holds the prompts, makes the real clips and hands both to the other actors by reference."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ray

from rlir_ray.config import Config
from rlir_ray.data.prompts import PromptSet, PromptSplit, prepare_prompts
from rlir_ray.families import open_codec
from rlir_ray.trajectory import Prompt

PromptSource = Callable[[PromptSplit], PromptSet]


# Calls of this group are answered while prompts are made.
WATCHING = "watching"
SAY_EVERY_S, ANSWER_S = 15.0, 5.0


class ConfiguredPrompts:
    """Fresh clips of the embedded world, or clips of the user's recordings."""

    def __init__(self, config: Config, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.doing = ""
        """How far it is, for a person."""

    def __call__(self, split: PromptSplit) -> PromptSet:
        def note(done: int, total: int) -> None:
            self.doing = f"{done} of {total} frames of {split} episodes recorded"

        self.doing = f"{split} clips"
        return prepare_prompts(self.config, split, open_codec(self.config), self.folder, note)


class PromptActor:
    """Args:
    source: makes the prompt set of a split; called once for each.
    """

    def __init__(self, source: PromptSource) -> None:
        self.source = source
        self.sets: dict[str, PromptSet] = {}

    def prepare(self, split: PromptSplit, num_clips: int | None = None) -> list[str]:
        """Makes a split and keeps the frames of so many clips at most, or of all; returns its prompt ids."""
        made = self.source(split)
        self.sets[split] = made if num_clips is None else made.with_clips(num_clips)
        return [prompt.prompt_id for prompt in self.sets[split].prompts]

    def doing(self) -> str:
        """How far the source is; empty for one that does not say."""
        return getattr(self.source, "doing", "")

    def left_out(self) -> tuple[int, tuple[str, ...]]:
        """Of the splits that are made: how many recordings there were, and a line for each that was left out."""
        sets = self.sets.values()
        return sum(each.num_recordings for each in sets), tuple(line for each in sets for line in each.left_out)

    def prompts(self, indices: Sequence[int]) -> list[Prompt]:
        """Training prompts."""
        return [self.sets["train"].prompts[index] for index in indices]

    def hand_over(self, split: PromptSplit) -> PromptSet:
        """The prompts whose clips are kept, with the frames, which this actor lets go: ask once, keep the reference."""
        found = self.sets[split].with_frames()
        self.sets[split] = self.sets[split].with_clips(0)
        return found

    def class_shares(self, groups: tuple[str, ...]) -> dict[str, npt.NDArray[np.float64]]:
        """How often training commands each class."""
        return self.sets["train"].class_shares(groups)


class PromptWatch:
    """Says now and then how far the prompts are, for making them may take minutes.

    Args:
        actor: the prompt actor, whose calls of the group `WATCHING` are answered while it works.
        progress: called with a line every `SAY_EVERY_S` seconds.
    """

    def __init__(self, actor: Any, progress: Callable[[str], None]) -> None:
        self.actor, self.progress = actor, progress
        self.started = self.said = time.monotonic()

    def __call__(self) -> None:
        now = time.monotonic()
        if now - self.said < SAY_EVERY_S:
            return
        self.said, doing = now, ""
        # An actor that is too busy to answer, or has failed: the wait itself says so.
        with contextlib.suppress(ray.exceptions.RayError):
            doing = ray.get(self.actor.doing.options(concurrency_group=WATCHING).remote(), timeout=ANSWER_S)
        self.progress(f"making prompts for {now - self.started:.0f} s{f': {doing}' if doing else ''}")
