"""The prompt actor: it holds the prompts, makes the real clips and hands both to the other actors by reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rlir_ray.config import Config
from rlir_ray.data.prompts import PromptSet, PromptSplit, prepare_prompts
from rlir_ray.families import open_codec
from rlir_ray.trajectory import Prompt

PromptSource = Callable[[PromptSplit], PromptSet]


def configured_prompts(config: Config, folder: Path, split: PromptSplit) -> PromptSet:
    """Fresh clips of the embedded world, or clips of the user's recordings."""
    return prepare_prompts(config, split, open_codec(config), folder)


def prompt_source(config: Config, folder: Path) -> PromptSource:
    return partial(configured_prompts, config, folder)


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
