"""The plain engine: one process, torch AdamW. Also the reference that DeepSpeed must match."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from rlir_ray.config import LearnerConfig, TrainConfig


class TorchEngine:
    """Args:
    model: the policy, on the device where it trains.
    train: weight decay and gradient clipping.
    learner: precision; `bf16` computes under autocast and keeps float32 weights.
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

    def forward(self, *inputs: Any) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._is_bf16):
            return self.module(*inputs)

    def backward(self, loss: Tensor, last: bool) -> None:
        loss.backward()

    def optimizer_step(self, learning_rate: float) -> float:
        for options in self._optimizer.param_groups:
            options["lr"] = learning_rate
        grad_norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), self._max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return float(grad_norm)

    def reduce(self, values: Tensor, maximum: bool) -> Tensor:
        return values

    def gathered(self) -> AbstractContextManager[None]:
        return nullcontext()
