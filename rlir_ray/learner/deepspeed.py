"""The DeepSpeed engine: ZeRO 0-3 over the ranks of a process group. The only file that imports deepspeed."""

from __future__ import annotations

import os
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from rlir_ray.config import LearnerConfig, TrainConfig

# Named before the import, or DeepSpeed warns that it found no accelerator.
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
import deepspeed

# DeepSpeed's default of 5e8 elements is allocated whole by ZeRO 2 and 3: 2 GB that a small model never fills.
MAX_BUCKET_ELEMENTS = 50_000_000


class DeepSpeedEngine:
    """Args:
    model: the policy, on this rank's device, the same on every rank.
    train: weight decay and gradient clipping.
    learner: ZeRO stage, offload, precision.

    RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT are set, or the process group exists (Ray Train makes it).
    """

    def __init__(self, model: torch.nn.Module, train: TrainConfig, learner: LearnerConfig) -> None:
        self.module = model
        self._device = next(model.parameters()).device
        self._zero_stage = learner.zero_stage
        init_distributed("nccl" if learner.use_gpu else "gloo")
        self.rank = torch.distributed.get_rank()
        self._num_ranks = torch.distributed.get_world_size()
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        self._optimizer = torch.optim.AdamW(trained, lr=train.learning_rate, weight_decay=train.weight_decay)
        self._engine, *_ = deepspeed.initialize(
            model=model, optimizer=self._optimizer, config=_settings(model, train, learner)
        )

    @property
    def device(self) -> torch.device:
        return self._device

    def forward(self, *inputs: Any) -> Tensor:
        return self._engine(*inputs)

    def backward(self, loss: Tensor, last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages over ranks; the loss is a rank's part of a sum.
        self._engine.backward(loss * self._num_ranks)

    def optimizer_step(self, learning_rate: float) -> float:
        for options in self._optimizer.param_groups:
            options["lr"] = learning_rate
        # Plain ZeRO 0 clips with torch and keeps no norm; its gradients are averaged and whole on every rank by now.
        own_norm = self._gradient_norm() if self._zero_stage == 0 else None
        self._engine.step()
        grad_norm = self._engine.get_global_grad_norm()
        return float(own_norm if grad_norm is None else grad_norm)  # type: ignore[arg-type]

    def _gradient_norm(self) -> float:
        gradients = [parameter.grad for parameter in self.module.parameters() if parameter.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))

    def reduce(self, values: Tensor, maximum: bool) -> Tensor:
        total = values.detach().to(self._device, copy=True)
        operation = torch.distributed.ReduceOp.MAX if maximum else torch.distributed.ReduceOp.SUM
        torch.distributed.all_reduce(total, op=operation)
        return total

    def gathered(self) -> AbstractContextManager[None]:
        if self._zero_stage < 3:
            return nullcontext()
        trained = [weight for weight in self.module.parameters() if weight.requires_grad]
        whole: AbstractContextManager[None] = deepspeed.zero.GatheredParameters(trained)
        return whole


def _settings(model: torch.nn.Module, train: TrainConfig, learner: LearnerConfig) -> dict[str, Any]:
    """DeepSpeed's own configuration. Accumulation and normalisation are the learner's, so that it counts one batch."""
    num_elements = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    zero: dict[str, Any] = {
        "stage": learner.zero_stage,
        "reduce_bucket_size": min(num_elements, MAX_BUCKET_ELEMENTS),
        "allgather_bucket_size": min(num_elements, MAX_BUCKET_ELEMENTS),
    }
    if learner.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": train.max_grad_norm,
        "zero_optimization": zero,
        # A torch AdamW: DeepSpeed's CPU and fused ones take minutes to compile.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": learner.precision == "bf16"},
    }


def init_distributed(backend: str) -> None:
    """Joins the process group, or takes the one that exists."""
    # DeepSpeed would compile shared-memory collectives for CPUs: two minutes of g++, a lock that a killed process
    # leaves behind for ever, and ranks that spin while they wait. Gloo's own serve as well where ranks are few.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    warnings.filterwarnings("ignore", message=".*is deprecated. Please use `torch.distributed", category=FutureWarning)
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
