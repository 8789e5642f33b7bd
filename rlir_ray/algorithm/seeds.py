"""Seeds: a group's seed and prompt depend on the run's seed and the group's number, never on the worker."""

from __future__ import annotations

import numpy as np


def group_seed(seed: int, group_id: int) -> int:
    """Return the seed of a group's draws, a uint32."""
    return int(np.random.SeedSequence([seed, group_id]).generate_state(1)[0])


def prompt_index(seed: int, group_id: int, num_prompts: int) -> int:
    """Return the index of a group's prompt; each epoch is a new seeded permutation of all prompts.

    Raises:
        ValueError: there are no prompts.
    """
    if num_prompts < 1:
        raise ValueError(f"there must be at least one prompt, got {num_prompts}; check prompts.num_train")
    epoch, place = divmod(group_id, num_prompts)
    # The leading 1 makes this stream independent of the groups' seeds.
    generator = np.random.default_rng([1, seed, epoch])
    return int(generator.permutation(num_prompts)[place])


def trajectory_seed(seed: int, row: int, step: int) -> int:
    """Return the seed of a trajectory's draws in a learner's step, a uint32 that is equal on all ranks.

    Args:
        seed: seed of the trajectory's group.
        row: row of the trajectory in its group.
        step: number of the learner's step.
    """
    return int(np.random.SeedSequence([2, seed, row, step]).generate_state(1)[0])


def pair_seed(seed: int, row: int) -> int:
    """Return the seed of the pairs at which a trajectory's clean latents are scored, a uint32 as of `trajectory_seed`.

    It does not depend on the learner's step, so that sampler and learner draw the same pairs.
    """
    return int(np.random.SeedSequence([4, seed, row]).generate_state(1)[0])


def frame_seed(seed: int, row: int, frame: int) -> int:
    """Return the seed of an engine's draws for one frame of a trajectory, a uint32; `seed` is its group's."""
    return int(np.random.SeedSequence([3, seed, row, frame]).generate_state(1)[0])
