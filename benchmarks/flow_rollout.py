"""Frames per second of the flow sampler with and without its cache, and of RL with a window against all SDE steps.

Without the cache every denoising step passes over all frames so far, as a plain diffusion sampler would. The learner's
part compares one forward and backward pass over the same clips with a window of half the SDE steps and with all of
them; "sampling and training" is both together, what a step of RL costs. All ratios are within this one run.
Writes JSON with the machine and the load average. Run: `python benchmarks/flow_rollout.py`.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlir_ray.algorithm.advantages import GroupAdvantages
from rlir_ray.algorithm.batching import micro_batches
from rlir_ray.algorithm.flow_steps import noise_levels, ode_step
from rlir_ray.config import FlowConfig
from rlir_ray.data.files import write_json
from rlir_ray.learner.batches import StepBatch, stack, trained_trajectories
from rlir_ray.models.flow import FlowWorldModel, open_flow_model
from rlir_ray.models.rescoring import FlowRescorer
from rlir_ray.run.environment import versions
from rlir_ray.samplers.flow import FlowSampler
from rlir_ray.testing import sample_actions
from rlir_ray.trajectory import Prompt, TrajectoryGroup


def random_prompts(model: FlowWorldModel, num_prompts: int, num_frames: int) -> list[Prompt]:
    """One context frame each, and random actions."""
    random = np.random.default_rng(0)
    return [
        Prompt(
            prompt_id=str(index),
            context=random.normal(size=(1, *model.latent_shape)).astype(np.float16),
            actions=sample_actions(num_frames, index),
        )
        for index in range(num_prompts)
    ]


@torch.inference_mode()
def sample_without_cache(
    model: FlowWorldModel, config: FlowConfig, prompts: list[Prompt], group_size: int
) -> torch.Tensor:
    """The ODE, every step a pass over all frames so far; latents [B, F, D, h, w]."""
    device = next(model.parameters()).device
    clip = torch.from_numpy(np.stack([p.context for p in prompts]).astype(np.float32)).to(device)
    clip = clip.repeat_interleave(group_size, 0)
    nothing = model.layout.space.nothing(1)
    classes = [model.layout.classes(nothing.followed_by(p.actions)) for p in prompts]
    actions = torch.from_numpy(np.stack(classes)).to(device).repeat_interleave(group_size, 0)
    steps = noise_levels(config.num_steps, config.shift).to(device)
    for _ in range(prompts[0].num_frames):
        x = torch.randn_like(clip[:, 0])
        for level, following in itertools.pairwise(steps):
            frames = torch.cat([clip, x[:, None]], 1)
            levels = torch.full(frames.shape[:2], config.history_noise, device=device)
            levels[:, -1] = level
            velocity = model(frames, levels, actions[:, : frames.shape[1]])[:, -1]
            x = ode_step(x, velocity, level.expand(len(x)), following.expand(len(x)))
        clip = torch.cat([clip, x[:, None]], 1)
    return clip[:, 1:]


def train_pass(model: FlowWorldModel, config: FlowConfig, groups: list[TrajectoryGroup], budget: int) -> None:
    """Forward and backward over all decisions, in micro-batches of `budget` denoised frames."""
    advantages = [GroupAdvantages.of_all(np.ones(group.loss_mask.shape, np.float32)[:, :1]) for group in groups]
    batch = StepBatch(groups, advantages, sum(group.num_decisions for group in groups))
    shapes = [(group.group_size, group.loss_mask.shape[1], 0) for group in groups]
    rescore, device = FlowRescorer(config), next(model.parameters()).device
    for micro in micro_batches(shapes, budget):
        columns = stack(batch, micro, 0, device, trained_trajectories(groups, advantages))
        rescore(model, columns.record, columns.loss_mask.shape[1]).logprobs.sum().backward()
    model.zero_grad(set_to_none=True)


def best_seconds(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The shortest of some repeats of each, turn about, after a first one that is not counted."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat:
                found[name].append(time.perf_counter() - started)
    return {name: min(seconds) for name, seconds in found.items()}


def measure(model: FlowWorldModel, options: argparse.Namespace) -> dict[str, Any]:
    prompts = random_prompts(model, options.prompts, options.frames)
    numbers = list(range(options.prompts))
    configs = {
        "window": FlowConfig(num_steps=options.steps, window=options.steps // 2, skip_last=False),
        "full": FlowConfig(num_steps=options.steps, window=options.steps, skip_last=False),
    }
    samplers = {name: FlowSampler(model, config, explore=True) for name, config in configs.items()}

    def sample(name: str) -> list[TrajectoryGroup]:
        return [group for group, _ in samplers[name].sample(prompts, numbers, numbers, options.group_size)]

    drawn = {name: sample(name) for name in configs}
    runs: dict[str, Callable[[], object]] = {
        "cached": lambda: FlowSampler(model, configs["full"], explore=False).sample(
            prompts, numbers, numbers, options.group_size
        ),
        "uncached": lambda: sample_without_cache(model, configs["full"], prompts, options.group_size),
    }
    for name, config in configs.items():
        runs[f"sample {name}"] = lambda n=name: sample(n)
        runs[f"train {name}"] = lambda n=name, c=config: train_pass(model, c, drawn[n], options.budget)
    seconds = best_seconds(runs, options.repeats)
    both = {name: seconds[f"sample {name}"] + seconds[f"train {name}"] for name in configs}
    num_frames = options.prompts * options.group_size * options.frames
    return {
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "frames_per_s": {name: round(num_frames / seconds[name], 2) for name in ("cached", "uncached")}
        | {f"sampling and training, {name}": round(num_frames / value, 2) for name, value in both.items()},
        "cached_over_uncached": round(seconds["uncached"] / seconds["cached"], 2),
        "window_over_full_sampling_and_training": round(both["full"] / both["window"], 2),
        "window_over_full_stored_bytes": round(
            sum(g.nbytes for g in drawn["window"]) / sum(g.nbytes for g in drawn["full"]), 2
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="flow model folder; empty: random weights of the Doom world's size")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--steps", type=int, default=8, help="denoising steps of a frame; the window is half of them")
    parser.add_argument("--budget", type=int, default=256, help="denoised frames in one pass of the learner")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/flow_rollout.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = (open_flow_model(options.model) if options.model else FlowWorldModel()).eval()
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    before = os.getloadavg()
    found = measure(model, options)
    report = {
        "versions": versions(),
        "load_average": before,
        "load_average_after": os.getloadavg(),
        "threads": options.threads,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "clips": options.prompts * options.group_size,
        "frames": options.frames,
        "steps": options.steps,
        **found,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.out, report)
    print({name: report[name] for name in found})


if __name__ == "__main__":
    main()
