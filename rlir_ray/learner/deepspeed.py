"""The DeepSpeed engine: ZeRO 0-3 over the ranks of a process group. The only file that imports deepspeed."""

from __future__ import annotations

import math
import os
import warnings
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed
from torch import Tensor

from rlir_ray.config import LearnerConfig, TrainConfig
from rlir_ray.learner.state import MOMENTS, WEIGHT, State, check_fits, num_updates, trained_parameters, with_count
from rlir_ray.learner.torch_engine import load_plain_state, plain_state
from rlir_ray.transfer.weights import Weights, to_numpy

# Set this before the import; otherwise DeepSpeed warns that it found no accelerator.
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
import deepspeed
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)

# ZeRO 2 and 3 allocate a whole bucket. DeepSpeed's default of 5e8 elements is 2 GB, which a small model never fills.
MAX_BUCKET_ELEMENTS = 50_000_000


class DeepSpeedEngine:
    """The engine of one rank under DeepSpeed.

    RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT must be set, or the process group must exist (Ray Train
    creates it).

    Args:
        model: the policy on this rank's device, with the same weights on every rank.
        train: learning rate, weight decay and gradient clipping.
        learner: ZeRO stage, offload and precision.
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
        # Clear the moments: stage 0 with bfloat16 has created them by a step without gradients, which would count as an
        # update.
        self._optimizer.state.clear()

    @property
    def device(self) -> torch.device:
        return self._device

    def forward(self, *inputs: object) -> Tensor:
        found: Tensor = self._engine(*inputs)
        return found

    def backward(self, loss: Tensor, last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages gradients over ranks, but the loss is this rank's part of a sum.
        self._engine.backward(loss * self._num_ranks)

    def optimizer_step(self, learning_rate: float) -> float:
        for options in self._optimizer.param_groups:
            options["lr"] = learning_rate
        # Compute the norm here for ZeRO 0, which clips with torch and keeps no norm. Every rank holds all averaged
        # gradients.
        own_norm = self._gradient_norm() if self._zero_stage == 0 else None
        if own_norm is not None and not math.isfinite(own_norm):
            self._engine.zero_grad()
            return own_norm
        # From stage 1 on, DeepSpeed itself skips an update whose norm is not finite.
        self._engine.step()
        grad_norm = self._engine.get_global_grad_norm()
        return float(own_norm if grad_norm is None else grad_norm)  # type: ignore[arg-type]  # one of them is a number

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

    def state(self) -> Weights:
        weights = trained_parameters(self.module)
        if self._zero_stage == 0:
            return plain_state(self._masters(weights), self._optimizer) if self.rank == 0 else {}
        if not self._optimizer.state:
            self._make_moments(0)
        state: Weights = {}
        for name, weight in weights.items():
            # Gather one parameter at a time, to bound the memory on the device; every rank takes part.
            for part, whole in (
                (WEIGHT, safe_get_full_fp32_param(weight)),
                *((key, safe_get_full_optimizer_state(weight, key)) for key in MOMENTS),
            ):
                if self.rank == 0:
                    state[f"{part}/{name}"] = to_numpy(whole)
        count = max(int(own["step"]) for own in self._optimizer.state.values())
        return with_count(state, count) if self.rank == 0 else {}

    @torch.no_grad()
    def load_state(self, state: State) -> None:
        weights, zero = trained_parameters(self.module), self._engine.optimizer
        if self._zero_stage == 0:
            masters = self._masters(weights)
            load_plain_state(masters, self._optimizer, state)
            for name, weight in weights.items():
                weight.copy_(masters[name])
            return
        check_fits(state, {name: tuple(getattr(weight, "ds_shape", weight.shape)) for name, weight in weights.items()})
        self._make_moments(num_updates(state))
        for name, weight in weights.items():
            for part in (WEIGHT, *MOMENTS):
                self._set_own(weight, torch.tensor(state[f"{part}/{name}"]), part)
        if self._zero_stage < 3:
            zero.update_lp_params()
            return
        for name, weight in weights.items():
            with deepspeed.zero.GatheredParameters([weight], modifier_rank=0):
                if self.rank == 0:
                    weight.copy_(torch.tensor(state[f"{WEIGHT}/{name}"]))

    def _masters(self, weights: dict[str, torch.nn.Parameter]) -> dict[str, Tensor]:
        """Return stage 0's float32 weights: the module's own weights, or copies of bfloat16 weights."""
        held = [weight for group in self._optimizer.param_groups for weight in group["params"]]
        return dict(zip(weights, held, strict=True))

    def _make_moments(self, count: int) -> None:
        """Create AdamW's moments before the first step, so that DeepSpeed can link weights to them."""
        zero = self._engine.optimizer
        for partition in _own_partitions(zero):
            moments = {key: torch.zeros_like(partition) for key in MOMENTS}
            self._optimizer.state[partition] = {"step": torch.tensor(float(count)), **moments}
        if self._zero_stage < 3:
            zero._lazy_init_hp_params_optimizer_state()

    def _set_own(self, weight: torch.nn.Parameter, whole: Tensor, part: str) -> None:
        """Set this rank's share of a weight or of one of its moments."""
        if self._zero_stage < 3:
            if part == WEIGHT:
                safe_set_full_fp32_param(weight, whole)
            else:
                safe_set_full_optimizer_state(weight, whole, part)
            return
        # Set the shares directly: the last rank's share is padded, and DeepSpeed's setter of whole values would read
        # past the end of the values there.
        size = weight.ds_tensor.numel()  # type: ignore[attr-defined]  # ZeRO 3 adds it
        padded = torch.zeros(size * self._num_ranks)
        padded[: whole.numel()] = whole.flatten()
        own = padded[size * self.rank : size * (self.rank + 1)]
        if part == WEIGHT:
            safe_set_local_fp32_param(weight, own)
        else:
            safe_set_local_optimizer_state(weight, own, part)


def _own_partitions(zero: object) -> list[Tensor]:
    """Return this rank's float32 weights; each of DeepSpeed's optimisers has its own name for them."""
    names = ("fp32_partitioned_groups_flat", "fp32_groups_flat_partition", "single_partition_of_fp32_groups")
    return next(list(getattr(zero, name)) for name in names if hasattr(zero, name))


def _settings(model: torch.nn.Module, train: TrainConfig, learner: LearnerConfig) -> dict[str, object]:
    """Return DeepSpeed's configuration for one batch per step: the learner itself accumulates and normalises."""
    num_elements = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    # DeepSpeed takes even sizes only.
    bucket_elements = min(num_elements + num_elements % 2, MAX_BUCKET_ELEMENTS)
    zero: dict[str, object] = {
        "stage": learner.zero_stage,
        "reduce_bucket_size": bucket_elements,
        "allgather_bucket_size": bucket_elements,
    }
    if learner.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": train.max_grad_norm,
        "zero_optimization": zero,
        # Use torch's AdamW: DeepSpeed's CPU and fused versions take minutes to compile.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        # Without the check, stages 1 and 2 would update with a gradient that is not finite.
        "bf16": {"enabled": learner.precision == "bf16", "check_grad_overflow": True},
        # By default DeepSpeed sums gradients in the weights' type: in bfloat16 small gradients vanish in large sums.
        "data_types": {"grad_accum_dtype": "fp32"},
    }


def init_distributed(backend: str) -> None:
    """Join the process group, or use the existing one."""
    # DeepSpeed would compile shared-memory collectives for CPUs. That costs two minutes of g++, a killed process leaves
    # a lock behind that blocks forever, and waiting ranks spin. With few ranks, gloo's collectives are as fast.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    warnings.filterwarnings("ignore", message=".*is deprecated. Please use `torch.distributed", category=FutureWarning)
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
