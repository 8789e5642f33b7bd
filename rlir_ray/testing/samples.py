"""Small models, prompts, videos and clips for contract tests, and the check that all of them use."""

from __future__ import annotations

import numpy as np
import torch

from rlir_ray.models.autoregressive import WorldModel
from rlir_ray.rewards.term import GroupClips
from rlir_ray.spaces.fields import Axis
from rlir_ray.spaces.space import Actions, ActionSpace
from rlir_ray.spaces.vpt import VPT_SPACE
from rlir_ray.trajectory import EncodedVideo, Prompt

NUM_CODES, TOKENS_PER_FRAME, NUM_FRAMES = 32, 12, 3
# Largest difference between rewards or losses that are computed together and apart, which only rounding may cause.
TOLERANCE = 1e-3
# Largest difference of log-probabilities at the same weights at which the ratio of the first update counts as 1.
LOGPROB_TOLERANCE = 1e-3


def check(holds: bool, rule: str, got: object) -> None:
    """Raise an AssertionError with the rule and the found value, unless the rule holds."""
    if not holds:
        raise AssertionError(f"{rule}, got {got}")


def sample_actions(num_actions: int, seed: int = 0, space: ActionSpace = VPT_SPACE) -> Actions:
    """Return random actions: of a choice any class in half of the frames, of an axis a normal number in its range."""
    random = np.random.default_rng(seed)
    values = space.nothing(num_actions).values
    for column, field in enumerate(space.fields):
        if isinstance(field, Axis):
            spread = (field.high - field.low) / 4
            values[:, column] = random.normal((field.high + field.low) / 2, spread, num_actions).clip(
                field.low, field.high
            )
        else:
            acts = random.random(num_actions) < 0.5
            values[acts, column] = random.integers(0, field.num_classes, num_actions)[acts]
    return Actions(space, values)


def sample_videos(num_groups: int = 2, group_size: int = 3, num_frames: int = NUM_FRAMES) -> list[EncodedVideo]:
    """Return groups of random tokens, [G, 1 + F, 12] each, with one context frame."""
    random = np.random.default_rng(0)
    return [
        EncodedVideo(
            group_id=10 + number,
            num_context=1,
            actions=sample_actions(num_frames, number),
            codes=random.integers(0, NUM_CODES, (group_size, 1 + num_frames, TOKENS_PER_FRAME)).astype(np.uint16),
        )
        for number in range(num_groups)
    ]


def sample_prompts(num_prompts: int = 2, num_frames: int = NUM_FRAMES) -> list[Prompt]:
    """Return prompts of one context frame with 12 random tokens."""
    random = np.random.default_rng(0)
    contexts = random.integers(0, NUM_CODES, (num_prompts, 1, TOKENS_PER_FRAME)).astype(np.uint16)
    return [
        Prompt(prompt_id=f"sample-{number}", context=context, actions=sample_actions(num_frames, number))
        for number, context in enumerate(contexts)
    ]


def sample_policy() -> WorldModel:
    """Return a token policy of about 0.1 M parameters with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return WorldModel.create(
            num_codes=NUM_CODES,
            tokens_per_frame=TOKENS_PER_FRAME,
            hidden_size=64,
            intermediate_size=96,
            num_layers=2,
            num_heads=4,
            num_key_value_heads=2,
            max_positions=512,
        ).eval()


def sample_groups(num_groups: int = 2, group_size: int = 3, num_frames: int = NUM_FRAMES) -> list[GroupClips]:
    """Return groups of random frames 24 x 32, with one context frame that all clips of a group share."""
    random = torch.Generator().manual_seed(0)
    groups = []
    for number in range(num_groups):
        frames = torch.randint(256, (group_size + 1, 1 + num_frames, 24, 32, 3), generator=random, dtype=torch.uint8)
        frames[:, 0] = frames[0, 0]
        groups.append(
            GroupClips(
                frames=frames[:-1],
                num_context=1,
                actions=sample_actions(num_frames, number),
                recorded=frames[-1, 1:],
            )
        )
    return groups
