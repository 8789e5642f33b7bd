"""Who draws what: a group's seed and prompt follow from the run's seed and the group's number, never from a worker."""

from __future__ import annotations

import numpy as np


def group_seed(seed: int, group_id: int) -> int:
    """The seed of a group's draws, a uint32."""
    return int(np.random.SeedSequence([seed, group_id]).generate_state(1)[0])


def prompt_index(seed: int, group_id: int, num_prompts: int) -> int:
    """The prompt of a group: a seeded permutation of all prompts an epoch, another one for each epoch.

    Raises:
        ValueError: there are no prompts.
    """
    if num_prompts < 1:
        raise ValueError(f"there must be at least one prompt, got {num_prompts}; check prompts.num_train")
    epoch, place = divmod(group_id, num_prompts)
    # The leading 1 keeps this stream apart from the groups' seeds.
    generator = np.random.default_rng([1, seed, epoch])
    return int(generator.permutation(num_prompts)[place])


def trajectory_seed(seed: int, row: int, step: int) -> int:
    """What a learner's step draws for one trajectory of a group with this seed, a uint32; the same on any rank."""
    return int(np.random.SeedSequence([2, seed, row, step]).generate_state(1)[0])


def frame_seed(seed: int, row: int, frame: int) -> int:
    """What an engine draws for one frame of one trajectory of a group with this seed, a uint32."""
    return int(np.random.SeedSequence([3, seed, row, frame]).generate_state(1)[0])
