"""What a kind of base model adds to the loop of a training. Knows nothing of the loop."""

from __future__ import annotations

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
    """An update's number, which seeds its draws so that a resumed training repeats them, and the share done, [0, 1)."""

    step: int
    share: float


class Task(ABC):
    """A model in training mode with its data, loss, evaluation and files.

    Args:
        settings: a dataclass, which training.json holds. Any: each kind of model has one of its own.
        model: the trained module, on the CPU; the loop moves it to its device.
        length: of the training.
        curve_every, save_every: between two lines of the curve, and between two saved states.
        device: name of the torch device; empty: a GPU where there is one.
        precision: `bf16` or `fp32`, of what runs under `autocast`.
        max_grad_norm: the gradients are clipped to this norm.
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
        """Return everything that an update changes, which a saved state holds beside the optimiser."""
        return {"model": self.model}

    @abstractmethod
    def build_optimizer(self) -> torch.optim.Optimizer:
        """Return the optimiser; the model is on its device."""

    @abstractmethod
    def learning_rate(self, share: float) -> float:
        """Return the learning rate at a share of the training."""

    @abstractmethod
    def loss(self, progress: Progress, autocast: Autocast) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        """Return the loss of one batch and the metrics beside it; a metric `loss` is shown instead of the loss."""

    def after_update(self) -> None:  # noqa: B027 - most tasks have nothing to do
        """Follow an update of the weights."""

    def evaluate(self) -> Json:
        """Return the held-out figures of the curve."""
        return {}

    def words(self, line: Json) -> dict[str, float | None]:
        """Return the numbers of a line of the curve that are logged."""
        return {name: value for name, value in line.items() if name not in ("step", "elapsed_s")}

    @abstractmethod
    def save(self, folder: Path, final: Json, steps: int, elapsed_s: float) -> Json:
        """Write the trained model.

        Args:
            folder: receives it.
            final: the last line of the curve.
            steps: updates.
            elapsed_s: training time.

        Returns:
            What training.json holds beside settings, steps, time and machine.
        """
