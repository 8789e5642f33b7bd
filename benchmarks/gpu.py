"""What one GPU does at published sizes: both samplers, the learner's step and the VPT inverse dynamics model.

Weights are random: speeds and memory do not depend on them. The differences of log-probabilities are those between the
sampler and the learner's model on the same weights. Writes JSON with the machine. Run: `python -m benchmarks.gpu`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.flow_rollout import random_prompts as flow_prompts
from benchmarks.rollout_engines import random_prompts as token_prompts
from rlir_ray.algorithm.advantages import GroupAdvantages
from rlir_ray.config import Config
from rlir_ray.config.load import load_config
from rlir_ray.data.files import write_json
from rlir_ray.families import make_objective
from rlir_ray.idm.vpt import VptInverseDynamics
from rlir_ray.idm.vpt_config import VPT_CONFIG
from rlir_ray.learner.batches import StepBatch, trained_decisions
from rlir_ray.learner.step import Learner
from rlir_ray.learner.torch_engine import TorchEngine
from rlir_ray.models.autoregressive import WorldModel
from rlir_ray.models.flow import FlowWorldModel
from rlir_ray.run.environment import versions
from rlir_ray.samplers.flow import FlowSampler
from rlir_ray.samplers.torch_sampler import TorchSampler
from rlir_ray.trajectory import TrajectoryGroup

# One process, one GPU; no reference, so that the policy alone is measured.
OWN = ["learner.engine=torch", "learner.num_workers=1", "train.kl_coefficient=0"]


def timed(run: Callable[[], Any], repeats: int = 1) -> tuple[Any, dict[str, float]]:
    """The result, the fewest seconds of some repeats and the most memory that tensors held meanwhile."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    seconds = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        found = run()
        torch.cuda.synchronize()
        seconds = min(seconds, time.perf_counter() - started)
    return found, {"seconds": round(seconds, 4), "peak_memory_bytes": torch.cuda.max_memory_allocated()}


def learner_step(config: Config, policy: Any, groups: list[TrajectoryGroup]) -> dict[str, float]:
    """The second of two updates, at a learning rate of nearly nothing; with the ratio of the first."""
    policy.enable_gradient_checkpointing()
    config = replace(config, train=replace(config.train, learning_rate=1e-12))
    learner = Learner(
        TorchEngine(policy, config.train, config.learner), make_objective(config, policy), config.train, config.learner
    )
    signs = np.where(np.arange(groups[0].group_size) % 2, 1, -1).astype(np.float32)[:, None]
    advantages = [GroupAdvantages.of_all(signs) for _ in groups]
    batch = StepBatch(groups, advantages, trained_decisions(groups, advantages))
    first = learner.step(batch)
    _, found = timed(lambda: learner.step(batch))
    return {
        "decisions_per_s": round(batch.num_decisions / found["seconds"], 1),
        "max_abs_log_ratio": first["ratio/max_abs_log"],
        **found,
    }


def tokens(recipe: str, group_size: int, num_frames: int) -> dict[str, Any]:
    """The torch sampler in both precisions, and an update on what it drew."""
    config = load_config(recipe, OWN)
    stated = asdict(config.architecture)
    sizes = ("num_codes", "tokens_per_frame", "hidden_size", "intermediate_size", "num_layers", "num_heads")
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = WorldModel.create(**{name: stated[name] for name in (*sizes, "num_key_value_heads", "max_positions")})
    prompts, content, drawn = token_prompts(model, 1, num_frames), {}, []
    for dtype in (torch.float32, torch.bfloat16):
        sampler = TorchSampler(model, temperature=1.0, dtype=dtype)
        sampler.sample(token_prompts(model, 1, 1), [0], [0], group_size)
        drawn, found = timed(lambda sampler=sampler: sampler.sample(prompts, [0], [0], group_size))
        rate = group_size * num_frames * model.tokens_per_frame / found["seconds"]
        content[f"sample {dtype}"] = {
            "tokens_per_s": round(rate, 1),
            "logprob_difference": asdict(sampler.difference),
            **found,  # type: ignore[arg-type]
        }
        del sampler
        for precision in ("fp32", "bf16") if dtype == torch.float32 else ():
            own = replace(config, learner=replace(config.learner, precision=precision))
            content[f"learner step {precision}"] = learner_step(own, model, [group for group, _ in drawn])
    parameters = sum(weight.numel() for weight in model.parameters())
    return {"recipe": recipe, "parameters": parameters, "group_size": group_size, "frames": num_frames, **content}


def flow(recipe: str, group_size: int, num_frames: int) -> dict[str, Any]:
    """The flow sampler and an update on what it drew, in float32, which the recipe asks for."""
    config = load_config(recipe, OWN)
    stated, world = config.architecture, config.world
    torch.manual_seed(0)
    model = FlowWorldModel(
        latent_channels=stated.latent_channels,
        latent_height=world.height // 8,
        latent_width=world.width // 8,
        patch_size=stated.patch_size,
        hidden_size=stated.hidden_size,
        num_layers=stated.num_layers,
        num_heads=stated.num_heads,
        mlp_ratio=stated.intermediate_size / stated.hidden_size,
    ).cuda()
    # A fresh model's velocity is zero everywhere, and with it every difference.
    torch.nn.init.normal_(model.head.weight, std=0.02)
    prompts, sampler = flow_prompts(model, 1, num_frames), FlowSampler(model, config.flow, explore=True)
    sampler.sample(flow_prompts(model, 1, 1), [0], [0], group_size)
    drawn, found = timed(lambda: sampler.sample(prompts, [0], [0], group_size))
    sampled = {
        "frames_per_s": round(group_size * num_frames / found["seconds"], 2),
        "steps": config.flow.num_steps,
        "logprob_difference": asdict(sampler.difference),
        **found,  # type: ignore[arg-type]
    }
    return {
        "recipe": recipe,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "group_size": group_size,
        "frames": num_frames,
        "sample torch.float32": sampled,
        "learner step fp32": learner_step(config, model, [group for group, _ in drawn]),
    }


@torch.inference_mode()
def inverse_dynamics(num_clips: int, num_frames: int) -> dict[str, Any]:
    """VPT's network at its published size on clips of 128 x 128 pixels, in float32 and under bf16 autocast."""
    torch.manual_seed(0)
    model = VptInverseDynamics(VPT_CONFIG).eval().cuda()
    clips = torch.randint(0, 256, (num_clips, num_frames, 128, 128, 3), dtype=torch.uint8, device="cuda")
    content: dict[str, Any] = {"parameters": sum(weight.numel() for weight in model.parameters())}
    for precision in ("fp32", "bf16"):
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            model.logits(clips)
            _, found = timed(lambda: model.logits(clips), repeats=5)
        content[precision] = {"frames_per_s": round(num_clips * num_frames / found["seconds"], 1), **found}
    return {"clips": num_clips, "frames": num_frames, **content}


PARTS: dict[str, Callable[[], Any]] = {
    "idm": lambda: inverse_dynamics(8, 16),
    "nfd_310m": lambda: flow("nfd_310m", 4, 3),
    "mineworld_300m": lambda: tokens("mineworld_300m", 16, 2),
    "mineworld_700m": lambda: tokens("mineworld_700m", 16, 2),
    "mineworld_1200m": lambda: tokens("mineworld_1200m", 16, 2),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gpu.json")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/gpu.py needs a GPU; the other benchmarks run without one")
    content: dict[str, Any] = {"versions": versions(), "gpu": torch.cuda.get_device_name()}
    for name in arguments.only:
        content[name] = PARTS[name]()
        # What was measured stays, if a later part needs more memory than there is.
        write_json(arguments.out, content)
        print(name, content[name], flush=True)


if __name__ == "__main__":
    main()
