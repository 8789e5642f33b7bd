"""The memory that a learner rank needs, from shapes alone: on torch's meta device, tensors have no numbers.

Independent of Ray and of GPUs, so that a laptop can tell whether a recipe fits a cluster.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from unittest.mock import patch

import torch
from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker, _MemRefType

from rlir_ray.config import Config, LearnerConfig
from rlir_ray.families import family_of
from rlir_ray.models.rescoring import Rescore
from rlir_ray.trajectory import FlowRecord, FrameShape, TokenRecord

FLOAT32_BYTES, BF16_BYTES = 4, 2
# AdamW's two moments, in float32.
MOMENT_BYTES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnerMemory:
    """Bytes on the device of one learner rank, without the reserve of torch's allocator and of NCCL."""

    weights: int
    """The policy, the frozen copies that the objective compares it with, and the moving average."""
    gradients: int
    """Gradients of the trained parameters."""
    optimizer: int
    """Moments of AdamW, and with bf16 the float32 weights."""
    activations: int
    """Most bytes that the pass of a micro-batch holds beside these."""
    num_clips: int
    """Clips of a micro-batch."""

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations

    def text(self) -> str:
        """Describe the parts for a person."""
        parts = ("weights", "gradients", "optimizer", "activations")
        listed = ", ".join(f"{name} {getattr(self, name) / 1e9:.1f}" for name in parts)
        return f"{self.total / 1e9:.1f} GB a rank ({listed} of {self.num_clips} clips at once)"

    def remedy(self, learner: LearnerConfig) -> str:
        """Return the change that saves most."""
        if self.activations > self.total / 2:
            if not learner.gradient_checkpointing:
                return "set learner.gradient_checkpointing=true"
            if self.num_clips > 1:
                return f"lower learner.decision_budget to {learner.decision_budget // 2}"
            return "lower world.num_frames or flow.window"
        if learner.engine == "deepspeed" and learner.zero_stage < 3 and learner.num_workers > 1:
            return f"set learner.zero_stage={learner.zero_stage + 1}"
        return "train an adapter (lora.rank=16), or use more learner.num_workers with learner.zero_stage=3"


def learner_memory(config: Config, policy: nn.Module, frame: FrameShape) -> LearnerMemory:
    """Compute the memory of a learner rank.

    Weights, gradients and moments are counted, each divided by the ranks that share it in the configured ZeRO stage
    (https://arxiv.org/abs/1910.02054). The activations are those that the objective's pass over one clip holds at most,
    times the clips of a micro-batch.

    Args:
        config: the run's.
        policy: the policy with its adapter, on the meta device; do not use it again.
        frame: shape of an encoded frame.

    Raises:
        RuntimeError: the policy's pass depends on numbers, which the meta device does not have.
    """
    learner = config.learner
    if learner.gradient_checkpointing:
        policy.enable_gradient_checkpointing()  # type: ignore[operator]  # a method of every family's policy
    is_low = learner.precision == "bf16" and learner.engine == "deepspeed"
    weight_bytes = BF16_BYTES if is_low else FLOAT32_BYTES
    num_weights = sum(weight.numel() for weight in policy.parameters())
    num_trained = sum(weight.numel() for weight in policy.parameters() if weight.requires_grad)
    held, gradients, moments = _shares(learner)
    has_masters = is_low and not learner.offload_optimizer
    # The reference of a policy with a fresh adapter is the policy without it.
    num_copies = int(config.train.needs_reference and not (config.lora.rank and not config.models.adapter))
    num_copies += config.train.objective == "nft"
    average_bytes = num_trained * FLOAT32_BYTES * (config.train.ema_decay > 0)
    activations, num_clips = _activations(config, nn.Module.to(policy, torch.bfloat16) if is_low else policy, frame)
    return LearnerMemory(
        weights=int(num_weights * weight_bytes * held) + num_copies * num_weights * FLOAT32_BYTES + average_bytes,
        gradients=int(num_trained * FLOAT32_BYTES * gradients),
        optimizer=int(num_trained * (MOMENT_BYTES + FLOAT32_BYTES * has_masters) * moments),
        activations=activations,
        num_clips=num_clips,
    )


class _Rescoring(nn.Module):
    """Rescoring as a module around the policy, because the tracker refuses two passes of an outermost module."""

    def __init__(self, policy: nn.Module, rescore: Rescore) -> None:
        super().__init__()
        self.policy, self.rescore = policy, rescore

    def forward(self, record: TokenRecord[torch.Tensor] | FlowRecord[torch.Tensor], num_decisions: int) -> torch.Tensor:
        """Return the log-probabilities [B, T] of a record's decisions."""
        return self.rescore(self.policy, record, num_decisions).logprobs


def _shares(learner: LearnerConfig) -> tuple[float, float, float]:
    """Return the shares of weights, gradients and moments that one rank holds."""
    ranks = learner.num_workers
    stage = learner.zero_stage if learner.engine == "deepspeed" else 0
    held, gradients, moments = (1 / ranks if stage >= first else 1.0 for first in (3, 2, 1))
    return held, gradients, 0.0 if learner.offload_optimizer else moments


def _activations(config: Config, policy: nn.Module, frame: FrameShape) -> tuple[int, int]:
    """Return the most bytes that a micro-batch holds beside weights and gradients, and its clips."""
    learner, train, family = config.learner, config.train, family_of(config)
    _, num_decisions = family.record(config, frame, 1)
    if not train.explores:
        # Its pass compares each frame at several noise levels, as rescoring does with as many SDE steps.
        window = train.num_levels
        flow = dataclasses.replace(config.flow, window=window, num_steps=max(config.flow.num_steps, window + 1))
        config = dataclasses.replace(config, flow=flow, train=dataclasses.replace(train, objective="grpo"))
    record, num_rescored = family.record(config, frame, 1)
    # The tracker takes no frozen parameters: with an adapter the activations are a bound from above.
    policy.requires_grad_(True)
    rescoring = _Rescoring(policy, family.rescorer(config, policy))
    tracker = MemTracker()
    tracker.track_external(rescoring)
    # Elsewhere transformers looks for several sequences in a row of positions, whose numbers are not there.
    with tracker, patch("transformers.masking_utils.is_tracing", return_value=True):
        rescoring(record, num_rescored).sum().backward()
    peak = tracker.get_tracker_snapshot("peak")[torch.device("meta")]
    per_clip = sum(num_bytes for kind, num_bytes in peak.items() if kind in (_MemRefType.ACT, _MemRefType.TEMP))
    most_clips = (sum(train.chosen_clips) or train.group_size) * train.prompts_per_step // learner.num_workers
    num_clips = max(train.rows_together, min(most_clips, learner.decision_budget // num_decisions))
    return num_clips * per_clip, num_clips
