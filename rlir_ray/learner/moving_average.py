"""A moving average of the trained policy, for evaluation and saving. Independent of engines and ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from rlir_ray.learner.state import State, trained_parameters
from rlir_ray.transfer.weights import Weights, to_numpy

# Key of the state, beside the names of the parameters.
NUM_UPDATES = "num_updates"


class MovingAverage:
    """The exponential moving average of a policy's trained parameters, in float32 on their device.

    The parameters must be whole wherever a method reads or replaces them.

    Args:
        policy: the module that trains; the average starts at its weights.
        decay: share of the old average in the new one, in [0, 1). In early updates it is smaller, see `decay_at`.
    """

    def __init__(self, policy: nn.Module, decay: float) -> None:
        self._policy, self._decay = policy, decay
        self._num_updates = 0
        self._values = {name: weight.detach().float().clone() for name, weight in trained_parameters(policy).items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the policy; call this once after each step whose updates were done."""
        self._num_updates += 1
        for name, weight in trained_parameters(self._policy).items():
            self._values[name].lerp_(weight.float(), 1 - decay_at(self._num_updates, self._decay))

    @contextmanager
    def in_policy(self) -> Iterator[None]:
        """Give the policy the average's values, in the policy's types, until the end of the context."""
        own = trained_parameters(self._policy)
        before = {name: weight.data for name, weight in own.items()}
        try:
            for name, weight in own.items():
                weight.data = self._values[name].to(weight.dtype)
            yield
        finally:
            for name, weight in own.items():
                weight.data = before[name]

    def state(self) -> Weights:
        """Return the float32 values by the name of the parameter, and the number of updates."""
        values = {name: to_numpy(value) for name, value in self._values.items()}
        return values | {NUM_UPDATES: np.array(self._num_updates, np.int64)}

    def load_state(self, state: State) -> None:
        """Load the values of another average of the same policy.

        Raises:
            ValueError: names or shapes differ.
        """
        found = {name: tuple(state[name].shape) for name in state if name != NUM_UPDATES}
        if found != {name: tuple(value.shape) for name, value in self._values.items()}:
            raise ValueError(
                f"a checkpoint must hold the moving average of the policy's {len(self._values)} trained weights with "
                f"train.ema_decay, got {len(found)} or other weights; use the train.ema_decay and the models of the "
                "checkpoint"
            )
        for name, value in self._values.items():
            value.copy_(torch.tensor(state[name]))
        self._num_updates = int(state[NUM_UPDATES])


def decay_at(update: int, decay: float) -> float:
    """Return the decay of an update, counted from 1: (1 + update) / (10 + update), at most `decay`.

    The ramp is that of TensorFlow's `ExponentialMovingAverage`: without it, the average of a short run would be mostly
    the policy before training.
    """
    return min(decay, (1 + update) / (10 + update))
