"""The prompt actor: it alone holds prompts and recorded frames, and hands them to the other actors by reference."""

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

    def prepare(self, split: PromptSplit) -> list[str]:
        """Makes a split; returns its prompt ids."""
        self.sets[split] = self.source(split)
        return [prompt.prompt_id for prompt in self.sets[split].prompts]

    def left_out(self) -> tuple[int, tuple[str, ...]]:
        """Of the splits that are made: how many recordings there were, and a line for each that was left out."""
        sets = self.sets.values()
        return sum(each.num_recordings for each in sets), tuple(line for each in sets for line in each.left_out)

    def prompts(self, indices: Sequence[int]) -> list[Prompt]:
        """Training prompts."""
        return [self.sets["train"].prompts[index] for index in indices]

    def prompt_set(self, split: PromptSplit, count: int | None = None) -> PromptSet:
        """A split, or its first `count` prompts."""
        return self.sets[split][:count]

    def class_shares(self, groups: tuple[str, ...]) -> dict[str, npt.NDArray[np.float64]]:
        """How often training commands each class."""
        return self.sets["train"].class_shares(groups)
