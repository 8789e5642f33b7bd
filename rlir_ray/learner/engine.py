"""The optimiser's backend as the learner sees it, and the record of its gradients that were not finite."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from rlir_ray.learner.state import State, trained_parameters
from rlir_ray.transfer.weights import Weights


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
