"""The `Learner`: one optimiser step over groups, for any engine and number of ranks.

Independent of Ray and of policy versions.
Legend: B trajectories of a micro-batch, G of a group, T decisions, F generated frames.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from rlir_ray.algorithm.advantages import GroupAdvantages
from rlir_ray.algorithm.batching import MicroBatch, micro_batches
from rlir_ray.algorithm.losses import combine, is_maximum, normalise
from rlir_ray.algorithm.seeds import trajectory_seed
from rlir_ray.config import LearnerConfig, TrainConfig
from rlir_ray.learner.objectives import Columns, Objective
from rlir_ray.learner.state import Part, State, trained_parameters
from rlir_ray.models.adapters import save_policy
from rlir_ray.trajectory import Record, TrajectoryGroup
from rlir_ray.transfer.weights import Weights, check_finite, weights_of

# Keys of a learner's state, beside the engine's keys.
NUM_STEPS, OBJECTIVE = "num_steps", "objective/"


@dataclass(frozen=True, slots=True)
class StepBatch:
    """One rank's share of a step.

    Example: 2 ranks, 4 groups of 8 clips with 384 decisions each: every rank gets 2 groups, advantages ``2 x [8, 8]``,
    and ``num_decisions = 4 * 8 * 384 = 12288``.
    """

    groups: list[TrajectoryGroup]
    advantages: list[GroupAdvantages]
    """Advantages of each group; all T / F decisions of a frame share the frame's value."""
    num_decisions: int
    """Trained decisions of the whole step, over all ranks: the sum of `trained_decisions`."""

    def __post_init__(self) -> None:
        if not self.groups or len(self.groups) != len(self.advantages):
            raise ValueError(
                f"a rank needs groups and as many advantages, got {len(self.groups)} and {len(self.advantages)}; "
                "set train.prompts_per_step to learner.num_workers or more"
            )
        for group, advantages in zip(self.groups, self.advantages, strict=True):
            size, decisions = group.loss_mask.shape
            if advantages.rows.max() >= size or decisions % advantages.values.shape[1]:
                raise ValueError(
                    f"advantages must be of rows below G, with F dividing T, got rows up to {advantages.rows.max()} "
                    f"and F = {advantages.values.shape[1]} for {size}, {decisions}; give one advantage a frame"
                )


def trained_decisions(groups: Sequence[TrajectoryGroup], advantages: Sequence[GroupAdvantages]) -> int:
    """Count the decisions that train: the unmasked decisions of rows with advantages."""
    return sum(int(group.loss_mask[each.rows].sum()) for group, each in zip(groups, advantages, strict=True))


class Engine(Protocol):
    """The optimiser's backend: accumulates gradients, reduces them over ranks and updates the weights."""

    module: torch.nn.Module
    rank: int

    @property
    def device(self) -> torch.device:
        """Device of the policy."""

    def forward(self, *inputs: object) -> Tensor:
        """Run the policy's forward pass."""

    def backward(self, loss: Tensor, last: bool) -> None:
        """Accumulate the gradient of a loss that is summed over micro-batches and ranks."""

    def optimizer_step(self, learning_rate: float) -> float:
        """Clip the gradient, update, and clear the gradient; return its norm before clipping, equal on every rank.

        If the norm is not finite, skip the update: weights and moments do not change.
        """

    def reduce(self, values: Tensor, maximum: bool) -> Tensor:
        """Return the sum or maximum over ranks."""

    def gathered(self) -> AbstractContextManager[None]:
        """Return a context in which the trained parameters are whole; every rank must enter."""

    def state(self) -> Weights:
        """Return all weights and moments in the format of `rlir_ray.learner.state`; every rank calls, rank 0 gets them.

        Other ranks get an empty dict.
        """

    def load_state(self, state: State) -> None:
        """Load a state that any engine has written; every rank calls with the same state.

        Raises:
            ValueError: the state belongs to another policy.
        """


def learning_rate_at(step: int, learning_rate: float, warmup_steps: int) -> float:
    """Return the learning rate of a step: linear warmup, then constant.

    `step` counts from 0; step 0 of 3 warmup steps has a third of the learning rate.
    """
    return learning_rate * min(1.0, (step + 1) / warmup_steps) if warmup_steps else learning_rate


class Learner:
    """The learner of one rank, which updates the policy from groups and advantages. All ranks make the same calls.

    Args:
        engine: the engine that holds the policy.
        objective: the objective of the same policy.
        train: the learning rate and its warmup.
        learner: the decision budget.
    """

    def __init__(self, engine: Engine, objective: Objective, train: TrainConfig, learner: LearnerConfig) -> None:
        self.engine, self.objective = engine, objective
        self.train, self.learner = train, learner
        self.num_steps = 0
        self.skipped = ""
        """Why the last update was skipped, equal on every rank; empty: the update was done."""
        self._watch = GradientWatch(engine.module, engine.device)

    def step(self, batch: StepBatch) -> dict[str, float]:
        """Do one update; all ranks skip it if a loss, a metric or a gradient is not finite on any rank.

        Returns:
            The finite metrics of the whole step, equal on every rank; `updates/skipped` is 1 or 0.
        """
        shapes = [
            (len(advantages.rows), group.loss_mask.shape[1], layout(group.record))
            for group, advantages in zip(batch.groups, batch.advantages, strict=True)
        ]
        budget, together = self.learner.decision_budget, self.train.rows_together
        own = micro_batches(shapes, budget, rows_together=together)
        most = int(self.engine.reduce(torch.tensor(float(len(own))), maximum=True))
        parts, bad_group = [], math.inf
        for number, micro in enumerate(micro_batches(shapes, budget, most, together), start=1):
            columns = stack(batch, micro, self.num_steps, self.engine.device)
            loss, sums = self.objective.loss(self.engine.forward, columns, batch.num_decisions)
            if not _are_finite([loss, *sums.values()]):
                bad_group = min(bad_group, batch.groups[micro.rows[0].group].group_id)
                # Gradients become NaN on this rank, and so does their sum over ranks: all ranks skip the update.
                loss = loss * math.nan
            self.engine.backward(loss, last=number == most)
            parts.append(sums)
        rate = learning_rate_at(self.num_steps, self.train.learning_rate, self.train.warmup_steps)
        grad_norm = self.engine.optimizer_step(rate)
        self.num_steps += 1
        self.skipped = "" if math.isfinite(grad_norm) else self._cause(bad_group)
        if not self.skipped:
            self.objective.end_step(self.num_steps, self.engine.gathered)
        totals = {name: self.engine.reduce(value, is_maximum(name)) for name, value in combine(parts).items()}
        metrics = normalise(totals, batch.num_decisions) | {"grad_norm": grad_norm, "learning_rate": rate}
        metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
        return metrics | {"updates/skipped": float(bool(self.skipped))}

    def _cause(self, bad_group: float) -> str:
        """Return the cause of a skipped update, equal on every rank.

        Args:
            bad_group: id of this rank's first group in a micro-batch with a loss that is not finite; infinity: all
                losses are finite.
        """
        first = -float(self.engine.reduce(torch.tensor(-bad_group, dtype=torch.float64), maximum=True))
        bad_gradient = self._watch.first_bad(self.engine)
        if math.isfinite(first):
            return f"loss or log-probabilities of group {first:.0f} or its micro-batch are not finite"
        return f"gradient of {bad_gradient} is not finite" if bad_gradient else "the gradient's norm is not finite"

    def weights(self) -> Weights:
        """Gather the weights for the samplers; every rank calls, rank 0 gets the weights, other ranks an empty dict.

        Raises:
            ValueError: a weight is not finite.
        """
        with self.engine.gathered():
            weights = weights_of(self.objective.sampling_policy) if self.engine.rank == 0 else {}
        check_finite(weights, "weights to be published")
        return weights

    def state(self) -> Weights:
        """Gather the state for a checkpoint; every rank calls, rank 0 gets the state, other ranks an empty dict.

        Raises:
            ValueError: a value is not finite.
        """
        state = self.engine.state()
        if self.engine.rank != 0:
            return {}
        check_finite(state, "the values of a checkpoint")
        memory = {OBJECTIVE + name: value for name, value in self.objective.state().items()}
        return state | memory | {NUM_STEPS: np.array(self.num_steps, np.int64)}

    def load_state(self, state: State) -> None:
        """Resume from the state of another learner; every rank calls with the same state.

        Raises:
            ValueError: the state belongs to another policy or objective, or a value is not finite.
        """
        check_finite(state, "the values of a checkpoint")
        memory = {name: state[name] for name in state if name.startswith(OBJECTIVE)}
        own = {name for name in state if name not in memory and name != NUM_STEPS}
        self.engine.load_state(Part(state, own))
        self.objective.load_state({name.removeprefix(OBJECTIVE): value for name, value in memory.items()})
        self.num_steps = int(state[NUM_STEPS])

    def save(self, folder: str | Path) -> None:
        """Save the sampling policy with `save_pretrained`; every rank calls, rank 0 writes.

        The folder appears complete or not at all.

        Raises:
            ValueError: the folder cannot be written, or a weight is not finite.
        """
        with self.engine.gathered():
            if self.engine.rank == 0:
                check_finite(self.objective.sampling_policy.state_dict(), "a policy to be saved")
                save_whole(self.objective.sampling_policy, Path(folder))


class GradientWatch:
    """A record of the parameters whose gradients were not finite. It stays on the device, so that the host never waits.

    Args:
        module: the module whose trained parameters are watched.
        device: the engine's device.
    """

    def __init__(self, module: torch.nn.Module, device: torch.device) -> None:
        trained = trained_parameters(module)
        self._names = list(trained)
        self._is_bad = torch.zeros(len(trained), device=device)
        for place, weight in enumerate(trained.values()):
            weight.register_hook(functools.partial(self._record, place))

    def _record(self, place: int, gradient: Tensor) -> None:
        self._is_bad[place] += ~gradient.sum().isfinite()

    def first_bad(self, engine: Engine) -> str:
        """Return the first parameter with a bad gradient on any rank, or "", and clear the record. Every rank calls."""
        found = engine.reduce(self._is_bad, maximum=True).nonzero().flatten().tolist()
        self._is_bad.zero_()
        return self._names[found[0]] if found else ""


def _are_finite(tensors: Sequence[Tensor]) -> bool:
    # Concatenate the tensors, so that the host waits for the device only once.
    return bool(torch.cat([tensor.detach().flatten().float() for tensor in tensors]).isfinite().all())


def save_whole(model: nn.Module, folder: Path) -> None:
    """Save into a temporary folder beside `folder`, then rename it, so that `folder` is never half-written."""
    partial = folder.with_name(f".{folder.name}.partial")
    previous = folder.with_name(f".{folder.name}.previous")
    try:
        for leftover in (partial, previous):
            shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir(parents=True)
        save_policy(model, partial)
        if folder.exists():
            os.replace(folder, previous)
        os.replace(partial, folder)
        shutil.rmtree(previous, ignore_errors=True)
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        # Convert safetensors' own error for a full disk too, because it names no file.
        if not isinstance(error, OSError) and type(error).__name__ != "SafetensorError":
            raise
        raise ValueError(f"a policy must be saved whole, got {error} at {folder}; make room or set run.dir") from None


def stack(batch: StepBatch, micro: MicroBatch, step: int, device: torch.device) -> Columns:
    """Stack the columns of a micro-batch, one row a trajectory; B rows."""
    rows = [(batch.groups[row.group], batch.advantages[row.group], row.trajectory) for row in micro.rows]
    places = [int(advantages.rows[number]) for _, advantages, number in rows]
    groups = [group for group, _, _ in rows]

    def tensor(arrays: Sequence[npt.NDArray[np.generic]]) -> Tensor:
        return torch.from_numpy(np.stack(arrays)).to(device)

    def column(name: str) -> Tensor | None:
        whole = [getattr(group.record, name) for group in groups]
        return None if whole[0] is None else tensor([each[row] for each, row in zip(whole, places, strict=True)])

    kind, logprobs = type(groups[0].record), [group.behavior_logprobs for group in groups]
    masks = [group.loss_mask[row] & (not micro.is_empty) for group, row in zip(groups, places, strict=True)]
    has_logprobs = logprobs[0] is not None
    return Columns(
        record=kind(*(column(entry.name) for entry in dataclasses.fields(kind))),  # type: ignore[arg-type]  # of the same class
        behavior_logprobs=tensor([each[row] for each, row in zip(logprobs, places, strict=True)])  # type: ignore[index]  # none is None
        if has_logprobs
        else None,
        loss_mask=tensor(masks),
        advantages=tensor([_per_decision(each.values[number], group) for group, each, number in rows]),
        seeds=[trajectory_seed(group.seed, row, step) for group, row in zip(groups, places, strict=True)],
    )


def layout(record: Record) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of a trajectory's columns; only trajectories with equal shapes can be stacked."""
    columns = [getattr(record, entry.name) for entry in dataclasses.fields(record)]
    return tuple(column.shape[1:] for column in columns if column is not None)


def _per_decision(advantages: npt.NDArray[np.float32], group: TrajectoryGroup) -> npt.NDArray[np.float32]:
    """Repeat each frame's advantage for all its decisions, [F] to [T]."""
    return np.repeat(advantages, group.loss_mask.shape[1] // len(advantages)).astype(np.float32)
