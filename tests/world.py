"""The tiny world of these tests: its configuration and its prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from rlir_ray.config import Config
from rlir_ray.config.load import load_config
from rlir_ray.data.prompts import PromptSet, PromptSplit
from tests.fakes import HEIGHT, WIDTH, tiny_flow_prompts, tiny_prompts

MakeConfig = Callable[..., Config]


def tiny_config(checkpoints: Path, run_dir: Path, *overrides: str) -> Config:
    """Two steps of four groups of four; the torch engine unless a test asks for another."""
    fixed = [
        f"models.{name}={checkpoints / folder}"
        for name, folder in (
            ("policy", "policy"),
            ("tokenizer", "tokenizer"),
            ("reward_idm", "reward_idm"),
            ("judge_idm", "judge_idm"),
        )
    ]
    fixed += [
        f"run.dir={run_dir}",
        "run.name=tiny",
        f"world.height={HEIGHT}",
        f"world.width={WIDTH}",
        "world.num_frames=3",
        "prompts.num_train=12",
        "prompts.num_heldout=6",
        "rollout.prompts_per_call=2",
        "learner.engine=torch",
        "train.num_steps=2",
        "train.group_size=4",
        "train.prompts_per_step=4",
        "train.max_staleness=0",
        "train.learning_rate=0.001",
        "train.wait_timeout_s=250",
        "object_store_budget_bytes=10000000",
        "evaluation.num_videos=2",
    ]
    return load_config("", [*fixed, *overrides])


def flow_overrides(checkpoints: Path) -> list[str]:
    """The same world for the flow family."""
    return [
        f"models.policy={checkpoints / 'flow_policy'}",
        f"models.tokenizer={checkpoints / 'autoencoder'}",
        "policy.family=flow",
        "flow.num_steps=4",
        "flow.window=2",
        "flow.noise_level=0.5",
    ]


def tiny_flow_prompt_set(split: PromptSplit) -> PromptSet:
    """As `tiny_prompt_set`, with latents as contexts."""
    plain = tiny_prompt_set(split)
    prompts = tiny_flow_prompts(len(plain), num_frames=3, seed=1 if split == "train" else 2)
    return replace(plain, prompts=tuple(prompts), recorded=tuple(prompt.actions for prompt in prompts))


def tiny_prompt_set(split: PromptSplit) -> PromptSet:
    """Random frames and commands; another seed for each split."""
    seed, num_prompts = (1, 12) if split == "train" else (2, 6)
    prompts = tiny_prompts(num_prompts, num_frames=3, seed=seed)
    frames = np.random.default_rng(seed).integers(0, 256, (num_prompts, 4, HEIGHT, WIDTH, 3), dtype=np.uint8)
    return PromptSet(prompts=tuple(prompts), frames=frames, recorded=tuple(prompt.actions for prompt in prompts))
