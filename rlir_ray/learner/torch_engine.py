"""The torch engine: one process, torch's AdamW. It is also the reference that DeepSpeed must match."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from rlir_ray.config import LearnerConfig, TrainConfig
from rlir_ray.learner.state import MOMENTS, WEIGHT, State, check_fits, num_updates, trained_parameters, with_count
from rlir_ray.transfer.weights import Weights, to_numpy


class TorchEngine:
    """The engine of a single process in torch.

    Args:
        model: the policy, on the device where it trains.
        train: learning rate, weight decay and gradient clipping.
        learner: the precision; `bf16` computes under autocast and keeps float32 weights.
    """

    rank = 0

    def __init__(self, model: torch.nn.Module, train: TrainConfig, learner: LearnerConfig) -> None:
        self.module = model
        self._max_grad_norm = train.max_grad_norm
        self._is_bf16 = learner.precision == "bf16"
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        self._optimizer = torch.optim.AdamW(trained, lr=train.learning_rate, weight_decay=train.weight_decay)

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def forward(self, *inputs: object) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._is_bf16):
            found: Tensor = self.module(*inputs)
            return found

    def backward(self, loss: Tensor, last: bool) -> None:
        loss.backward()

    def optimizer_step(self, learning_rate: float) -> float:
        for options in self._optimizer.param_groups:
            options["lr"] = learning_rate
        grad_norm = float(torch.nn.utils.clip_grad_norm_(self.module.parameters(), self._max_grad_norm))
        if math.isfinite(grad_norm):
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return grad_norm

    def reduce(self, values: Tensor, maximum: bool) -> Tensor:
        return values

    def gathered(self) -> AbstractContextManager[None]:
        return nullcontext()

    def state(self) -> Weights:
        return plain_state(trained_parameters(self.module), self._optimizer)

    def load_state(self, state: State) -> None:
        load_plain_state(trained_parameters(self.module), self._optimizer, state)


def plain_state(weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> Weights:
    """Return the state of all float32 weights and of their optimiser, by name."""
    state: Weights = {}
    count = 0
    for name, weight in weights.items():
        # Use zero moments for a weight that has had no gradient yet.
        own = optimizer.state.get(weight) or {key: torch.zeros_like(weight) for key in MOMENTS} | {"step": 0}
        state |= {f"{key}/{name}": to_numpy(own[key]) for key in MOMENTS} | {f"{WEIGHT}/{name}": to_numpy(weight)}
        count = max(count, int(own["step"]))
    return with_count(state, count)


@torch.no_grad()
def load_plain_state(weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, state: State) -> None:
    """Load a state, as `plain_state` returns it, into the weights and the optimiser.

    Raises:
        ValueError: the state belongs to another policy.
    """
    check_fits(state, {name: tuple(weight.shape) for name, weight in weights.items()})
    for name, weight in weights.items():
        weight.copy_(torch.tensor(state[f"{WEIGHT}/{name}"]))
        moments = {key: torch.tensor(state[f"{key}/{name}"]).to(weight) for key in MOMENTS}
        optimizer.state[weight] = {"step": torch.tensor(float(num_updates(state))), **moments}
