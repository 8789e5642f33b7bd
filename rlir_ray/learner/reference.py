"""A reference policy of the KL penalty that follows the trained policy, around any objective."""

from __future__ import annotations

from torch import Tensor, nn

from rlir_ray.learner.objectives import Columns, DecoupledObjective, Gathered, Metrics, Objective, move_towards
from rlir_ray.learner.state import State
from rlir_ray.models.rescoring import Forward
from rlir_ray.transfer.weights import Weights, load_weights, weights_of

# Before the names of the reference's weights in the objective's state.
REFERENCE = "reference/"


class FollowingReference:
    """An objective whose reference moves towards the policy every few steps.

    A reset of the reference allows long runs: the penalty bounds each stretch of training, not the whole (ProRL,
    https://arxiv.org/abs/2505.24864).

    Args:
        objective: the objective, which compares with `reference`.
        policy: the module that trains.
        reference: the frozen reference, of the same class.
        every: number of steps between two moves.
        decay: share of the old reference in the new one, in [0, 1); 0: the reference becomes the policy.
    """

    def __init__(self, objective: Objective, policy: nn.Module, reference: nn.Module, every: int, decay: float) -> None:
        self.objective, self.policy, self.reference = objective, policy, reference
        self.every, self.decay = every, decay

    @property
    def sampling_policy(self) -> nn.Module:
        return self.objective.sampling_policy

    def loss(self, forward: Forward, columns: Columns, num_decisions: int) -> tuple[Tensor, Metrics]:
        return self.objective.loss(forward, columns, num_decisions)

    def proximal_logprobs(self, forward: Forward, columns: Columns) -> Tensor | None:
        if not isinstance(self.objective, DecoupledObjective):
            return None
        return self.objective.proximal_logprobs(forward, columns)

    def end_step(self, step: int, gathered: Gathered) -> None:
        self.objective.end_step(step, gathered)
        if step % self.every == 0:
            with gathered():
                move_towards(self.reference, self.policy, 1 - self.decay)

    def state(self) -> Weights:
        return self.objective.state() | {
            f"{REFERENCE}{name}": value for name, value in weights_of(self.reference).items()
        }

    def load_state(self, state: State) -> None:
        own = {name for name in state if name.startswith(REFERENCE)}
        self.objective.load_state({name: state[name] for name in state if name not in own})
        load_weights(self.reference, {name.removeprefix(REFERENCE): state[name] for name in own})
