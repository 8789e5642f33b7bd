"""Interface between the training loop and a kind of base model: data, loss, schedule, evaluation and files."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rlir_ray.data.files import Json

Autocast = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Every:
    """An interval in steps, or in seconds of training where `steps` is 0."""

    steps: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Length:
    """The length of a training in steps, or in minutes where `steps` is 0."""

    minutes: float
    steps: int = 0

    @classmethod
    def of(cls, settings: Any) -> Length:
        """Return the length of settings, a dataclass whose `num_steps` hold where `minutes` is 0."""
        return cls(settings.minutes, 0 if settings.minutes else settings.num_steps)

    def progress(self, step: int, elapsed_s: float) -> float:
        """Return the share of the training that is done."""
        return step / self.steps if self.steps else elapsed_s / 60 / self.minutes


@dataclass(frozen=True)
class Progress:
    """Position of an update in its training."""

    step: int
    """Number of earlier updates; seeds the draws of this update, so that a resumed training draws the same data."""
    share: float
    """Share of the training that is done, in [0, 1)."""


def cosine_rate(progress: float, least: float = 0.05) -> float:
    """Return the learning rate's share of its maximum: linear over the first 2 %, then a cosine down to `least`."""
    if progress < 0.02:
        return max(progress, 1e-4) / 0.02
    return least + (1 - least) * 0.5 * (1 + math.cos(math.pi * (progress - 0.02) / 0.98))


class Task(ABC):
    """A model in training mode with its data, loss, evaluation and files.

    Args:
        settings: a dataclass, which training.json holds. Any: each kind of model has one of its own.
        model: the trained module, on the CPU; the loop moves the module to the device.
        length: length of the training.
        curve_every, save_every: intervals of the lines of the curve and of the saved states.
        device: name of the torch device; empty: a GPU if there is one.
        precision: `bf16` or `fp32`, the precision under `autocast`.
        max_grad_norm: clip the gradients to this norm.
    """

    name: ClassVar[str]
    keep_state: ClassVar[bool] = False
    """Whether a finished training keeps its last state, so that it can be extended."""

    def __init__(
        self,
        settings: Any,
        model: nn.Module,
        *,
        length: Length,
        curve_every: Every,
        save_every: Every,
        device: str = "",
        precision: str = "bf16",
        max_grad_norm: float = 1.0,
    ) -> None:
        self.settings, self.model, self.length = settings, model, length
        self.curve_every, self.save_every = curve_every, save_every
        self.device_name, self.precision, self.max_grad_norm = device, precision, max_grad_norm

    @property
    def device(self) -> torch.device:
        """The device that the model is on."""
        return next(self.model.parameters()).device

    def parts(self) -> dict[str, nn.Module]:
        """Return all modules that an update changes; a saved state holds these and the optimizer."""
        return {"model": self.model}

    @abstractmethod
    def build_optimizer(self) -> torch.optim.Optimizer:
        """Return the optimizer; the loop calls this method when the model is on its device."""

    @abstractmethod
    def learning_rate(self, share: float) -> float:
        """Return the learning rate at a share of the training."""

    @abstractmethod
    def loss(self, progress: Progress, autocast: Autocast) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        """Return the loss of one batch and its metrics; a metric `loss` is logged instead of the loss."""

    def after_update(self) -> None:  # noqa: B027 - most tasks have nothing to do
        """Act after an update of the weights, for example on a moving average."""

    def evaluate(self) -> Json:
        """Return the held-out metrics of a line of the curve."""
        return {}

    def words(self, line: Json) -> dict[str, float | None]:
        """Return the numbers of a line of the curve that are logged."""
        return {name: value for name, value in line.items() if name not in ("step", "elapsed_s")}

    @abstractmethod
    def save(self, folder: Path, final: Json, steps: int, elapsed_s: float) -> Json:
        """Write the trained model.

        Args:
            folder: receives the model.
            final: last line of the curve.
            steps: number of updates.
            elapsed_s: training time.

        Returns:
            Content of training.json, in addition to settings, steps, time and machine.
        """
