"""The `Learner`: the optimiser updates of a step over groups, for any engine and number of ranks.

Independent of Ray and of policy versions.
Legend: B trajectories of a micro-batch, G of a group, T decisions, F generated frames.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
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
from rlir_ray.learner.moving_average import MovingAverage
from rlir_ray.learner.objectives import Columns, DecoupledObjective, Metrics, Objective
from rlir_ray.learner.state import Part, State, trained_parameters
from rlir_ray.learner.supervised import RecordedClips
from rlir_ray.models.adapters import save_policy
from rlir_ray.models.clip_losses import ClipLoss
from rlir_ray.trajectory import Record, TrajectoryGroup
from rlir_ray.transfer.weights import Weights, check_finite, weights_of

# Keys of a learner's state, beside the engine's keys.
NUM_STEPS, OBJECTIVE, AVERAGE = "num_steps", "objective/", "average/"


@dataclass(frozen=True, slots=True)
class StepBatch:
    """One rank's share of an update: of a step, or of one of its minibatches.

    Example: 2 ranks, 4 groups of 8 clips with 384 decisions each: every rank gets 2 groups, advantages ``2 x [8, 8]``,
    and ``num_decisions = 4 * 8 * 384 = 12288``.
    """

    groups: list[TrajectoryGroup]
    advantages: list[GroupAdvantages]
    """Advantages of each group; all T / F decisions of a frame share the frame's value."""
    num_decisions: int
    """Trained decisions of the whole update, over all ranks: the sum of `trained_decisions`."""

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


def trained_trajectories(groups: Sequence[TrajectoryGroup], advantages: Sequence[GroupAdvantages]) -> int:
    """Count the trajectories with decisions that train."""
    return sum(int(group.loss_mask[each.rows].any(1).sum()) for group, each in zip(groups, advantages, strict=True))


def step_batches(
    groups: Sequence[TrajectoryGroup], advantages: Sequence[GroupAdvantages], sizes: Sequence[int], engine: Engine
) -> list[StepBatch]:
    """Cut a rank's groups into its shares of a step's minibatches. Every rank calls: counts are summed over ranks.

    Args:
        groups: the rank's groups, in the order of the minibatches.
        advantages: of each group.
        sizes: groups of each minibatch on this rank.
        engine: the rank's engine.
    """
    shares = [slice(end - size, end) for size, end in zip(sizes, itertools.accumulate(sizes), strict=True)]
    own = [float(trained_decisions(groups[share], advantages[share])) for share in shares]
    counts = engine.reduce(torch.tensor(own, dtype=torch.float64).to(engine.device), maximum=False)
    return [
        StepBatch(list(groups[share]), list(advantages[share]), int(count))
        for share, count in zip(shares, counts, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class _Minibatch:
    """A rank's share of an update with its micro-batches, which are the same in every pass over the step's groups."""

    batch: StepBatch
    micros: list[MicroBatch]
    """As many on every rank."""
    num_trajectories: int
    """`trained_trajectories` over all ranks."""
    proximal: list[Tensor | None]
    """Log-probabilities of each micro-batch at the start of the step, see `Columns`."""


@dataclass(frozen=True, slots=True)
class _Update:
    """What one update has measured on this rank."""

    policy: list[Metrics]
    """Of each policy pass."""
    recorded: list[Metrics]
    """Of each pass over recorded clips."""
    grad_norm: float
    num_decisions: int


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
        train: the learning rate and its warmup, and the decay of the moving average.
        learner: the decision budget.
        clip_loss: the pretraining loss of the policy's family; None where train.supervised_coefficient is 0.
    """

    def __init__(
        self,
        engine: Engine,
        objective: Objective,
        train: TrainConfig,
        learner: LearnerConfig,
        clip_loss: ClipLoss | None = None,
    ) -> None:
        if (train.supervised_coefficient > 0) != (clip_loss is not None):
            raise ValueError(
                f"a loss of recorded clips goes with train.supervised_coefficient > 0, got "
                f"{train.supervised_coefficient} and {'no' if clip_loss is None else 'a'} loss; give both or neither "
                "(rlir_ray.families.open_clip_loss)"
            )
        self.engine, self.objective, self._clip_loss = engine, objective, clip_loss
        self.train, self.learner = train, learner
        self.num_steps = 0
        self.skipped = ""
        """Why an update of the last step was skipped, equal on every rank; empty: all updates were done."""
        self._watch = GradientWatch(engine.module, engine.device)
        self._average: MovingAverage | None = None
        """Of the policy, on rank 0 with train.ema_decay above 0; None: policies are judged and saved as trained."""
        if train.ema_decay:
            with engine.gathered():
                self._average = MovingAverage(engine.module, train.ema_decay) if engine.rank == 0 else None

    def step(self, *minibatches: StepBatch) -> dict[str, float]:
        """Do `train.updates_per_step` passes over the minibatches, with one update for each.

        All ranks skip an update if a loss, a metric or a gradient is not finite on any rank, and with it the later
        updates of the step.

        Args:
            minibatches: this rank's shares, as many on every rank.

        Returns:
            The finite metrics of the whole step, equal on every rank: means over its updates; `updates/skipped` is 1
            or 0.
        """
        planned = [self._plan(batch) for batch in minibatches]
        if len(planned) * self.train.updates_per_step > 1:
            # Before the first update: the proximal policy is the policy at the start of the step.
            planned = [replace(each, proximal=self._proximal(each)) for each in planned]
        rate = learning_rate_at(self.num_steps, self.train.learning_rate, self.train.warmup_steps)
        updates: list[_Update] = []
        for number, each in enumerate(planned * self.train.updates_per_step):
            updates.append(self._update(each, number // len(planned), rate))
            if self.skipped:
                break
        self.num_steps += 1
        if not self.skipped:
            self.objective.end_step(self.num_steps, self.engine.gathered)
            self._update_average()
        metrics = normalise(
            self._totals([part for each in updates for part in each.policy]),
            sum(each.num_decisions for each in updates),
        )
        if recorded := [part for each in updates for part in each.recorded]:
            metrics |= {name: float(total) / len(updates) for name, total in self._totals(recorded).items()}
        metrics |= {"decisions": float(sum(batch.num_decisions for batch in minibatches))}
        metrics |= {"grad_norm": float(np.mean([each.grad_norm for each in updates])), "learning_rate": rate}
        metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
        return metrics | {"updates/skipped": float(bool(self.skipped))}

    def _totals(self, parts: Sequence[Metrics]) -> Metrics:
        """Combine the metrics of micro-batches, and reduce them over ranks."""
        return {name: self.engine.reduce(value, is_maximum(name)) for name, value in combine(parts).items()}

    def _plan(self, batch: StepBatch) -> _Minibatch:
        """Cut a share into micro-batches, as many on every rank."""
        shapes = [
            (len(advantages.rows), group.loss_mask.shape[1], layout(group.record))
            for group, advantages in zip(batch.groups, batch.advantages, strict=True)
        ]
        cut = functools.partial(
            micro_batches, shapes, self.learner.decision_budget, rows_together=self.train.rows_together
        )
        most = self._most(cut())
        num_own = torch.tensor(float(trained_trajectories(batch.groups, batch.advantages)))
        num_trajectories = int(self.engine.reduce(num_own, maximum=False))
        return _Minibatch(batch, cut(num_batches=most), num_trajectories, [None] * most)

    def _proximal(self, minibatch: _Minibatch) -> list[Tensor | None]:
        if not isinstance(self.objective, DecoupledObjective):
            return minibatch.proximal
        columns = (self._columns(minibatch, place, 0) for place in range(len(minibatch.micros)))
        return [self.objective.proximal_logprobs(self.engine.forward, each) for each in columns]

    def _columns(self, minibatch: _Minibatch, place: int, number: int) -> Columns:
        """Stack the columns of a micro-batch for a pass over the step's groups; each pass draws anew."""
        micro, draw = minibatch.micros[place], self._draw(number)
        columns = stack(minibatch.batch, micro, draw, self.engine.device, minibatch.num_trajectories)
        return replace(columns, proximal_logprobs=minibatch.proximal[place])

    def _draw(self, number: int) -> int:
        """Return the number of a pass over the step's groups within the whole training, for the seeds of draws."""
        return self.num_steps * self.train.updates_per_step + number

    def _update(self, minibatch: _Minibatch, number: int, rate: float) -> _Update:
        """Do one update in a pass over the step's groups."""
        own, recorded = self._policy_passes(minibatch, number), self._recorded_passes(minibatch.batch, number)
        passes, parts, bad_group = [*own, *recorded], [], math.inf
        for place, each in enumerate(passes, start=1):
            loss, metrics = each.run()
            if not _are_finite([loss, *metrics.values()]):
                bad_group = min(bad_group, each.group_id)
                # Gradients become NaN on this rank, and so does their sum over ranks: all ranks skip the update.
                loss = loss * math.nan
            self.engine.backward(loss, last=place == len(passes))
            parts.append(metrics)
        grad_norm = self.engine.optimizer_step(rate)
        self.skipped = "" if math.isfinite(grad_norm) else self._cause(bad_group)
        return _Update(parts[: len(own)], parts[len(own) :], grad_norm, minibatch.batch.num_decisions)

    def _policy_passes(self, minibatch: _Minibatch, number: int) -> list[Pass]:
        """Return the objective's passes over the trajectories, equally many on every rank."""

        def run(place: int) -> tuple[Tensor, Metrics]:
            columns = self._columns(minibatch, place, number)
            return self.objective.loss(self.engine.forward, columns, minibatch.batch.num_decisions)

        return _passes(minibatch.batch, minibatch.micros, run)

    def _recorded_passes(self, batch: StepBatch, number: int) -> list[Pass]:
        """Return the supervised passes over the recorded clips, equally many on every rank; none without that loss."""
        if self._clip_loss is None:
            return []
        num_clips = self.engine.reduce(torch.tensor(float(len(batch.groups))), maximum=False)
        clips = RecordedClips(
            groups=batch.groups,
            clip_loss=self._clip_loss,
            coefficient=self.train.supervised_coefficient,
            num_clips=int(num_clips),
            step=self._draw(number),
        )
        budget, device = self.learner.decision_budget, self.engine.device
        micros = clips.batches(budget, self._most(clips.batches(budget)))
        return _passes(batch, micros, lambda place: clips.loss(self.engine.forward, micros[place], device))

    def _most(self, batches: Sequence[MicroBatch]) -> int:
        """Return the largest number of micro-batches over all ranks."""
        return int(self.engine.reduce(torch.tensor(float(len(batches))), maximum=True))

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

    def _update_average(self) -> None:
        if self.train.ema_decay:
            with self.engine.gathered():
                if self._average is not None:
                    self._average.update(self.num_steps)

    def weights(self) -> Weights:
        """Gather the weights for the samplers; every rank calls, rank 0 gets the weights, other ranks an empty dict.

        Raises:
            ValueError: a weight is not finite.
        """
        with self.engine.gathered():
            weights = weights_of(self.objective.sampling_policy) if self.engine.rank == 0 else {}
        check_finite(weights, "weights to be published")
        return weights

    def average_weights(self) -> Weights:
        """Gather the weights to be judged: those of the moving average, in the form of `weights`.

        Every rank calls, rank 0 gets the weights, other ranks an empty dict; so does rank 0 without an average.

        Raises:
            ValueError: a weight is not finite.
        """
        if not self.train.ema_decay:
            return {}
        with self.engine.gathered():
            if self._average is None:
                return {}
            with self._average.in_policy():
                weights = weights_of(self.engine.module)
        check_finite(weights, "weights to be judged")
        return weights

    def state(self) -> Weights:
        """Gather the state for a checkpoint; every rank calls, rank 0 gets the state, other ranks an empty dict.

        Raises:
            ValueError: a value is not finite.
        """
        state = self.engine.state()
        if self.engine.rank != 0:
            return {}
        memory = {OBJECTIVE + name: value for name, value in self.objective.state().items()}
        average = self._average.state() if self._average is not None else {}
        state |= {AVERAGE + name: value for name, value in average.items()}
        check_finite(state, "the values of a checkpoint")
        return state | memory | {NUM_STEPS: np.array(self.num_steps, np.int64)}

    def load_state(self, state: State) -> None:
        """Resume from the state of another learner; every rank calls with the same state.

        Raises:
            ValueError: the state belongs to another policy or objective, or a value is not finite.
        """
        check_finite(state, "the values of a checkpoint")
        memory = {name: state[name] for name in state if name.startswith(OBJECTIVE)}
        average = {name for name in state if name.startswith(AVERAGE)}
        if average and not self.train.ema_decay:
            raise ValueError(
                "train.ema_decay must be that of the checkpoint, which holds a moving average, got 0; set it as then"
            )
        own = {name for name in state if name not in average | memory.keys() and name != NUM_STEPS}
        self.engine.load_state(Part(state, own))
        self.objective.load_state({name.removeprefix(OBJECTIVE): value for name, value in memory.items()})
        if self._average is not None:
            self._average.load_state({name.removeprefix(AVERAGE): state[name] for name in average})
        self.num_steps = int(state[NUM_STEPS])

    def save(self, folder: str | Path) -> None:
        """Save the sampling policy, or the moving average; every rank calls, rank 0 writes with `save_pretrained`.

        The folder appears complete or not at all.

        Raises:
            ValueError: the folder cannot be written, or a weight is not finite.
        """
        with self.engine.gathered():
            if self.engine.rank == 0:
                average = self._average
                policy = self.objective.sampling_policy if average is None else self.engine.module
                with nullcontext() if average is None else average.in_policy():
                    check_finite(policy.state_dict(), "a policy to be saved")
                    save_whole(policy, Path(folder))


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward and backward pass."""

    group_id: int
    """Id of the first group in the pass."""
    run: Callable[[], tuple[Tensor, Metrics]]
    """Computes the loss and the metrics, to be summed over passes and ranks."""


def _passes(batch: StepBatch, micros: Sequence[MicroBatch], run: Callable[[int], tuple[Tensor, Metrics]]) -> list[Pass]:
    """Return a pass for each micro-batch; `run` gets its place."""
    ids = [batch.groups[each.rows[0].group].group_id for each in micros]
    return [Pass(group_id, functools.partial(run, place)) for place, group_id in enumerate(ids)]


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


def stack(batch: StepBatch, micro: MicroBatch, step: int, device: torch.device, num_trajectories: int) -> Columns:
    """Stack the columns of a micro-batch, one row a trajectory; B rows.

    Args:
        batch: the rank's share.
        micro: the rows.
        step: number of the step, for the seeds.
        device: the learner's.
        num_trajectories: `trained_trajectories` of the whole step.
    """
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
        term_advantages=_term_advantages(rows, tensor),
        seeds=[trajectory_seed(group.seed, row, step) for group, row in zip(groups, places, strict=True)],
        num_trajectories=num_trajectories,
    )


def _term_advantages(
    rows: Sequence[tuple[TrajectoryGroup, GroupAdvantages, int]],
    tensor: Callable[[Sequence[npt.NDArray[np.generic]]], Tensor],
) -> Tensor | None:
    """Stack the advantages of each term, [K, B, T]; None: the groups have one loss."""
    if rows[0][1].terms is None:
        return None
    by_row = [[_per_decision(term[number], group) for term in each.terms] for group, each, number in rows]  # type: ignore[union-attr]  # none is None
    return tensor([np.stack(terms) for terms in by_row]).movedim(1, 0)


def layout(record: Record) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of a trajectory's columns; only trajectories with equal shapes can be stacked."""
    columns = [getattr(record, entry.name) for entry in dataclasses.fields(record)]
    return tuple(column.shape[1:] for column in columns if column is not None)


def _per_decision(advantages: npt.NDArray[np.float32], group: TrajectoryGroup) -> npt.NDArray[np.float32]:
    """Repeat each frame's advantage for all its decisions, [F] to [T]."""
    return np.repeat(advantages, group.loss_mask.shape[1] // len(advantages)).astype(np.float32)
