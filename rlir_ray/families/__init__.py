"""Families of world models: all in which they differ, behind one set of names.

`policy.family` says which family a run's policy is of. Each built-in family is one file of this folder; heavy libraries
load when a model is opened.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlir_ray.config import Config, asset_path
from rlir_ray.learner.objectives import Objective, ObjectiveParts
from rlir_ray.models.adapters import add_adapter, has_adapter, without_adapter
from rlir_ray.models.frame_codec import FrameCodec
from rlir_ray.models.rescoring import Forward, Rescore
from rlir_ray.registry import build, load
from rlir_ray.samplers import Sampler
from rlir_ray.spaces.actions import CameraBins
from rlir_ray.trajectory import FrameShape


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """A member of the axis `families`: an object of this class."""

    open_policy: Callable[[Path], nn.Module]
    """A checkpoint folder to a policy, in float32 on the CPU."""
    codec: Callable[[], type[FrameCodec]]
    """What frames are encoded with."""
    check_world: Callable[[Config], FrameShape]
    """Whether the checkpoints of policy and codec fit each other and the world; the shape of an encoded frame."""
    # Any: a policy of the family's own class, as `open_policy` opens it.
    rollout_sampler: Callable[[Config, Any], Sampler]
    """Explores, and keeps what rescoring needs."""
    evaluation_sampler: Callable[[Config, Any, float], Sampler]
    """At a temperature."""
    rescorer: Callable[[Config], Rescore]
    """Scores stored decisions under the policy's weights, as the sampler did."""
    sampling_text: Callable[[Config], str]
    """How an evaluation samples, for a person."""
    camera_bins: CameraBins
    """What a policy is told of the camera's angles."""
    group_bytes: Callable[[Config, FrameShape], int]
    """Of one group in flight: the training columns and the encoded video."""


def family_of(config: Config) -> Family:
    """The configured family.

    Raises:
        ValueError: it cannot be imported, or lacks a part.
    """
    family: Family = load("families", config.policy.family)
    return family


def compares(config: Config) -> bool:
    """Whether a rollout's log-probabilities are compared with the learner's model's."""
    return config.rollout.max_logprob_difference > 0


def open_policy(config: Config, device: torch.device | str = "cpu") -> nn.Module:
    """The configured policy, with its adapter if it trains one or is given one.

    Raises:
        ValueError: weights are missing, unexpected, of another shape, NaN or infinite.
    """
    policy = family_of(config).open_policy(asset_path(config.models.policy))
    if config.lora.rank or config.models.adapter:
        add_adapter(policy, config.lora, config.models.adapter)
    return policy.to(device)


def open_codec(config: Config) -> FrameCodec:
    """The configured tokenizer or autoencoder; a plain one is taken to be of the world's size."""
    folder, world = asset_path(config.models.tokenizer), config.world
    return family_of(config).codec().from_pretrained(folder, height=world.height, width=world.width)


def open_reference(config: Config, policy: nn.Module) -> Forward | None:
    """The forward pass of the frozen reference; None where nothing holds the policy near it."""
    if not config.train.kl_coefficient:
        return None
    if has_adapter(policy) and not config.models.adapter:
        return without_adapter(policy)
    device = next(policy.parameters()).device
    return open_policy(config, device).requires_grad_(False).eval()


def make_objective(config: Config, policy: nn.Module) -> Objective:
    """What the run optimises.

    Raises:
        ValueError: the objective cannot be imported, lacks a method, or does not take `train.objective_args`.
    """
    parts = ObjectiveParts(
        config=config,
        policy=policy,
        rescore=family_of(config).rescorer(config),
        reference=open_reference(config, policy),
    )
    name, member = config.train.objective, load("objectives", config.train.objective)
    objective: Objective = build("objectives", name, config.train.objective_args, member.from_parts, parts)
    return objective
