"""One optimiser step over groups, whatever the engine and the number of ranks. Knows nothing of Ray or of versions.

Legend: B trajectories of a micro-batch, G of a group, T decisions, F generated frames, L sequence length.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlir_ray.batching import MicroBatch, micro_batches
from rlir_ray.config import LearnerConfig, TrainConfig
from rlir_ray.losses import combine, is_maximum, kl_loss, normalise, policy_gradient_loss
from rlir_ray.trajectory import TrajectoryGroup
from rlir_ray.weights import Weights, weights_of


@dataclass(frozen=True, slots=True)
class StepBatch:
    """One rank's share of a step.

    Example: 2 ranks, 4 groups of 8 clips with 384 decisions each: every rank gets 2 groups, advantages ``2 x [8, 8]``,
    and ``num_decisions = 4 * 8 * 384 = 12288``.
    """

    groups: list[TrajectoryGroup]
    advantages: list[npt.NDArray[np.float32]]
    """[G, F] of each group; a frame's value is that of all its T / F decisions."""
    num_decisions: int
    """Unmasked decisions of the whole step, over all ranks."""

    def __post_init__(self) -> None:
        if not self.groups or len(self.groups) != len(self.advantages):
            raise ValueError(
                f"a rank needs groups and as many advantages, got {len(self.groups)} and {len(self.advantages)}; "
                "set train.prompts_per_step to learner.num_workers or more"
            )
        for group, advantages in zip(self.groups, self.advantages, strict=True):
            rows, decisions = group.behavior_logprobs.shape
            if len(advantages) != rows or decisions % advantages.shape[1]:
                raise ValueError(
                    f"advantages must be [G, F] with F dividing T, got {advantages.shape} for {rows}, {decisions}; "
                    "give one advantage a frame"
                )


class Engine(Protocol):
    """Where gradients are accumulated, reduced over ranks and applied."""

    module: torch.nn.Module
    rank: int

    @property
    def device(self) -> torch.device: ...

    def forward(self, tokens: Tensor, num_decisions: int, temperature: float) -> Tensor: ...

    def backward(self, loss: Tensor, last: bool) -> None:
        """Accumulates the gradient of a loss that is summed over micro-batches and ranks."""

    def optimizer_step(self, learning_rate: float) -> float:
        """Clips, updates, forgets the gradient; returns its norm before clipping."""

    def reduce(self, values: Tensor, maximum: bool) -> Tensor:
        """Sum or maximum over ranks."""

    def gathered(self) -> AbstractContextManager[None]:
        """Inside it the module holds all its parameters; every rank enters."""


def learning_rate_at(step: int, learning_rate: float, warmup_steps: int) -> float:
    """Linear warmup, then constant. `step` counts from 0; step 0 of 3 warmup steps has a third."""
    return learning_rate * min(1.0, (step + 1) / warmup_steps) if warmup_steps else learning_rate


class Learner:
    """Turns groups and advantages into an update of the policy. Every rank holds one and calls it alike.

    Args:
        model: the policy, `forward(tokens [B, L], num_decisions, temperature) -> log-probabilities [B, T]`.
        reference: the frozen reference policy; None when `kl_coefficient` is 0.
        engine: holds `model`.
        train: step, clipping and penalty.
        learner: decision budget.
        temperature: of sampling, and so of rescoring.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        reference: torch.nn.Module | None,
        engine: Engine,
        train: TrainConfig,
        learner: LearnerConfig,
        temperature: float,
    ) -> None:
        if (train.kl_coefficient > 0) != (reference is not None):
            raise ValueError(
                f"a reference policy goes with train.kl_coefficient > 0, got {train.kl_coefficient} and "
                f"{'no ' if reference is None else 'a '}reference; give both or neither"
            )
        self.model = model
        self.engine = engine
        self.train = train
        self.learner = learner
        self.temperature = temperature
        self.num_steps = 0
        self.reference = reference.requires_grad_(False).eval() if reference is not None else None

    def step(self, batch: StepBatch) -> dict[str, float]:
        """One update. Returns the metrics of the whole step, the same on every rank."""
        shapes = [(*group.behavior_logprobs.shape, group.tokens.shape[1]) for group in batch.groups]
        own = micro_batches(shapes, self.learner.decision_budget)
        most = int(self.engine.reduce(torch.tensor(float(len(own))), maximum=True))
        parts = []
        for number, micro in enumerate(micro_batches(shapes, self.learner.decision_budget, most), start=1):
            loss, metrics = self._loss(_stack(batch, micro, self.engine.device), batch.num_decisions)
            self.engine.backward(loss, last=number == most)
            parts.append(metrics)
        rate = learning_rate_at(self.num_steps, self.train.learning_rate, self.train.warmup_steps)
        grad_norm = self.engine.optimizer_step(rate)
        self.num_steps += 1
        metrics = {name: float(self.engine.reduce(value, is_maximum(name))) for name, value in combine(parts).items()}
        return normalise(metrics, batch.num_decisions) | {"grad_norm": grad_norm, "learning_rate": rate}

    def _loss(self, columns: Mapping[str, Tensor], num_decisions: int) -> tuple[Tensor, dict[str, Tensor]]:
        tokens, mask = columns["tokens"], columns["loss_mask"]  # [B, L], [B, T]
        policy_logprobs = self.engine.forward(tokens, mask.shape[1], self.temperature)  # [B, T]
        loss, metrics = policy_gradient_loss(
            policy_logprobs, columns["behavior_logprobs"], columns["advantages"], mask, num_decisions,
            self.train.clip_low, self.train.clip_high,
        )  # fmt: skip
        if self.reference is None:
            return loss, metrics
        with torch.no_grad():
            ref_logprobs = self.reference(tokens, mask.shape[1], self.temperature)
        penalty, more = kl_loss(policy_logprobs, ref_logprobs, mask, num_decisions)
        return loss + self.train.kl_coefficient * penalty, metrics | more

    def weights(self) -> Weights:
        """The policy's weights, gathered: every rank calls, rank 0 gets them, the others an empty dict."""
        with self.engine.gathered():
            return weights_of(self.model) if self.engine.rank == 0 else {}

    def save(self, folder: str | Path) -> None:
        """Saves the policy with `save_pretrained`; every rank calls, rank 0 writes.

        The folder appears whole or not at all.

        Raises:
            ValueError: it cannot be written.
        """
        with self.engine.gathered():
            if self.engine.rank == 0:
                save_whole(self.model, Path(folder))


def save_whole(model: Any, folder: Path) -> None:
    """`save_pretrained` into a neighbouring folder, which then takes the place of `folder`."""
    partial = folder.with_name(f".{folder.name}.partial")
    previous = folder.with_name(f".{folder.name}.previous")
    try:
        for leftover in (partial, previous):
            shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir(parents=True)
        model.save_pretrained(partial)
        if folder.exists():
            os.replace(folder, previous)
        os.replace(partial, folder)
        shutil.rmtree(previous, ignore_errors=True)
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        # safetensors reports a full disk in an error of its own, which names no file.
        if not isinstance(error, OSError) and type(error).__name__ != "SafetensorError":
            raise
        raise ValueError(f"a policy must be saved whole, got {error} at {folder}; make room or set run.dir") from None


def _stack(batch: StepBatch, micro: MicroBatch, device: torch.device) -> dict[str, Tensor]:
    """The columns of a micro-batch: tokens [B, L]; behavior_logprobs, advantages, loss_mask [B, T]."""
    groups = [(batch.groups[row.group], batch.advantages[row.group], row.trajectory) for row in micro.rows]
    columns = {
        "tokens": np.stack([group.tokens[row] for group, _, row in groups]).astype(np.int64),
        "behavior_logprobs": np.stack([group.behavior_logprobs[row] for group, _, row in groups]),
        "loss_mask": np.stack([group.loss_mask[row] & (not micro.is_empty) for group, _, row in groups]),
        "advantages": np.stack([_per_decision(advantages[row], group) for group, advantages, row in groups]),
    }
    return {name: torch.from_numpy(column).to(device) for name, column in columns.items()}


def _per_decision(advantages: npt.NDArray[np.float32], group: TrajectoryGroup) -> npt.NDArray[np.float32]:
    """[F] to [T]: each frame's advantage for all its decisions."""
    num_decisions = group.behavior_logprobs.shape[1]
    return np.repeat(advantages, num_decisions // len(advantages)).astype(np.float32)
