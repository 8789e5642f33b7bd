"""Families of world models: one interface for all that differs between kinds of models.

`policy.family` names the family of a run's policy. Each built-in family is one file of this folder, which imports heavy
libraries only when a model is opened.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlir_ray.algorithm.guidance import NO_GUIDANCE
from rlir_ray.config import Config, asset_path
from rlir_ray.data.prompts import reads_recorded
from rlir_ray.learner.objectives import Objective, ObjectiveParts
from rlir_ray.learner.reference import FollowingReference
from rlir_ray.models.adapters import add_adapter, has_adapter, without_adapter
from rlir_ray.models.clip_codec import ClipCodec
from rlir_ray.models.clip_losses import ClipLoss
from rlir_ray.models.rescoring import Forward, Rescore
from rlir_ray.registry import build, load
from rlir_ray.samplers import Sampler
from rlir_ray.samplers.stepping import Stepper
from rlir_ray.spaces.layouts import ActionLayout, Cells
from rlir_ray.spaces.space import ActionSpace
from rlir_ray.trajectory import FlowRecord, FrameShape, TokenRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """A member of the axis `families`: the functions that differ between kinds of world models."""

    open_policy: Callable[[Path], nn.Module]
    """Opens the policy of a checkpoint folder, in float32 on the CPU."""
    codec: Callable[[Config], type[ClipCodec]]
    """Returns the class that encodes and decodes frames for the configured policy."""
    check_world: Callable[[Config], FrameShape]
    """Checks that policy and codec fit each other and the world; returns the shape of an encoded frame."""
    # Any: a policy of the family's own class, as `open_policy` opens it.
    rollout_sampler: Callable[[Config, Any], Sampler]
    """Builds the sampler of a policy for rollouts, which explores and keeps the data that rescoring needs."""
    evaluation_sampler: Callable[..., Sampler]
    """Builds the sampler of a policy for evaluation from configuration, policy and temperature; see the function."""
    rescorer: Callable[[Config, Any], Rescore]
    """Builds the function that scores a policy's stored decisions under given weights, exactly as the sampler did."""
    sampling_text: Callable[[Config], str]
    """Describes the sampling of an evaluation, for a person."""
    layout: Callable[[Config], ActionLayout]
    """Returns how the configured policy gets actions, from the settings of its checkpoint."""
    cells: Callable[[ActionLayout], Cells]
    """Returns which bins of an axis the policy cannot tell apart."""
    record: Callable[[Config, FrameShape, int], tuple[TokenRecord[torch.Tensor] | FlowRecord[torch.Tensor], int]]
    """Returns what a rollout stores of G clips, on the meta device, and T: its shapes give the run's memory."""
    clip_loss: Callable[[Config, Any], ClipLoss] | None = None
    """Builds the pretraining loss of recorded clips; None: the family has none (train.supervised_coefficient)."""
    # Any: a policy of the family's own class.
    stepper: Callable[[Config, Any, float, float], Stepper] | None = None
    """Builds the stepper of a policy from configuration, policy, temperature and guidance; it draws one frame a call.
    None: policies of the family cannot be driven."""
    tokens_per_keyframe: Callable[[Config], int] = lambda _: 0
    """Returns M, the tokens of a prompt's keyframe; 0: the codec decodes each frame alone."""


def family_of(config: Config) -> Family:
    """Return the configured family.

    Raises:
        ValueError: the family cannot be imported or lacks a part.
    """
    family: Family = load("families", config.policy.family)
    return family


def action_space(config: Config) -> ActionSpace:
    """Return the action space of the configured policy.

    Raises:
        ValueError: the policy's checkpoint states no space that can be read.
    """
    return family_of(config).layout(config).space


def cells_of(config: Config) -> Cells:
    """Return which bins of an axis the configured policy cannot tell apart."""
    family = family_of(config)
    return family.cells(family.layout(config))


def group_bytes(config: Config, frame: FrameShape) -> int:
    """Return the most bytes of one group in flight: its training columns and its encoded video.

    Args:
        config: the run's.
        frame: shape of an encoded frame.
    """
    group_size, world = config.train.group_size, config.world
    record, num_decisions = family_of(config).record(config, frame, group_size)
    columns = [getattr(record, entry.name) for entry in dataclasses.fields(record)]
    record_bytes = sum(int(column.nbytes) for column in columns if column is not None)
    # Log-probabilities in float32, and the mask.
    decision_bytes = (5 if config.stores_logprobs else 1) * num_decisions
    # The types of `stored_codes`.
    code_bytes = 4 if len(frame) == 1 and config.architecture.num_codes > 1 << 16 else 2
    frame_bytes = code_bytes * math.prod(frame)
    video_bytes = frame_bytes * (world.num_context + world.num_frames)
    prompt_bytes = 4 * family_of(config).tokens_per_keyframe(config)
    # The video holds the recorded future, the columns hold the recorded clip.
    prompt_bytes += frame_bytes * world.num_frames + video_bytes if reads_recorded(config) else 0
    return record_bytes + prompt_bytes + group_size * (decision_bytes + video_bytes)


def evaluation_sampler(config: Config, policy: nn.Module, temperature: float, guidance: float = NO_GUIDANCE) -> Sampler:
    """Build the sampler of a policy for evaluation at a temperature and a scale of the action guidance.

    A family gets the scale as a fourth argument if it is not 1; only families that guide have this argument.
    """
    options = () if guidance == NO_GUIDANCE else (guidance,)
    return family_of(config).evaluation_sampler(config, policy, temperature, *options)


def make_stepper(config: Config, policy: nn.Module, temperature: float = 1.0, guidance: float = NO_GUIDANCE) -> Stepper:
    """Build the stepper of a policy, which draws clips frame by frame.

    Raises:
        ValueError: the family has none.
    """
    if (make := family_of(config).stepper) is None:
        raise ValueError(
            f"driving a world model needs a family with stepper, got none in policy.family={config.policy.family}; "
            "add one to the family"
        )
    return make(config, policy, temperature, guidance)


def guidance_text(config: Config) -> str:
    """Describe the guidance of an evaluation, for a person; empty without guidance."""
    scale = config.evaluation.guidance[0]
    return "" if scale == NO_GUIDANCE else f", action guidance {scale:g}"


def compares(config: Config) -> bool:
    """Return whether the log-probabilities of rollouts are compared with those of the learner's model."""
    return config.rollout.max_logprob_difference > 0


def open_policy(config: Config, device: torch.device | str = "cpu") -> nn.Module:
    """Open the configured policy, with its adapter if it has one.

    Raises:
        ValueError: weights are missing, unexpected, of another shape, NaN or infinite.
    """
    policy = family_of(config).open_policy(asset_path(config.models.policy))
    if config.lora.rank or config.models.adapter:
        add_adapter(policy, config.lora, config.models.adapter)
    return policy.to(device)


def open_codec(config: Config) -> ClipCodec:
    """Open the configured tokenizer or autoencoder; one that states no frame size gets the world's."""
    folder, world = asset_path(config.models.tokenizer), config.world
    return family_of(config).codec(config).from_pretrained(folder, height=world.height, width=world.width)


def open_reference(config: Config, policy: nn.Module) -> Forward | None:
    """Return the forward pass of the frozen reference policy; None where the objective needs none."""
    if not config.train.needs_reference:
        return None
    if has_adapter(policy) and not config.models.adapter:
        return without_adapter(policy)
    device = next(policy.parameters()).device
    return open_policy(config, device).requires_grad_(False).eval()


def open_clip_loss(config: Config, policy: nn.Module) -> ClipLoss | None:
    """Return the pretraining loss of recorded clips; None without train.supervised_coefficient.

    Raises:
        ValueError: the family has none.
    """
    if not config.train.supervised_coefficient:
        return None
    if (make := family_of(config).clip_loss) is None:
        raise ValueError(
            "train.supervised_coefficient needs a family with clip_loss, got none in "
            f"policy.family={config.policy.family}; set train.supervised_coefficient=0"
        )
    return make(config, policy)


def make_objective(config: Config, policy: nn.Module) -> Objective:
    """Build the configured objective for a policy.

    Raises:
        ValueError: the objective cannot be imported, lacks a method, or does not take `train.objective_args`.
    """
    parts = ObjectiveParts(
        config=config,
        policy=policy,
        rescore=family_of(config).rescorer(config, policy),
        reference=open_reference(config, policy),
    )
    name, member = config.train.objective, load("objectives", config.train.objective)
    objective: Objective = build("objectives", name, config.train.objective_args, member.from_parts, parts)
    if not config.train.reference_every:
        return objective
    # The configuration allows it only for a reference with weights of its own.
    assert isinstance(parts.reference, nn.Module)
    return FollowingReference(
        objective, policy, parts.reference, config.train.reference_every, config.train.reference_decay
    )  # type: ignore[return-value]  # it is built around a member of the axis, and so has no `from_parts`
