"""The `Learner`: the optimiser updates of a step over groups, for any engine and number of ranks.

Independent of Ray and of policy versions.
Legend: B trajectories of a micro-batch, G of a group, T decisions, F generated frames.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rlir_ray.algorithm.batching import MicroBatch, micro_batches
from rlir_ray.algorithm.losses import combine, is_maximum, normalise
from rlir_ray.config import LearnerConfig, TrainConfig
from rlir_ray.learner.batches import StepBatch, layout, stack, trained_trajectories
from rlir_ray.learner.engine import Engine, GradientWatch
from rlir_ray.learner.moving_average import MovingAverage
from rlir_ray.learner.objectives import Columns, DecoupledObjective, Metrics, Objective
from rlir_ray.learner.state import Part, State
from rlir_ray.learner.supervised import RecordedClips
from rlir_ray.models.adapters import save_whole
from rlir_ray.models.clip_losses import ClipLoss
from rlir_ray.transfer.weights import Weights, check_finite, weights_of

# Keys of a learner's state, beside the engine's keys.
NUM_STEPS, OBJECTIVE, AVERAGE = "num_steps", "objective/", "average/"


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
                    self._average.update()

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


def _are_finite(tensors: Sequence[Tensor]) -> bool:
    # Concatenate the tensors, so that the host waits for the device only once.
    return bool(torch.cat([tensor.detach().flatten().float() for tensor in tensors]).isfinite().all())
