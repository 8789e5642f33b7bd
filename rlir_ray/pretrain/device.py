"""The device and the precision that a training runs in, through `accelerate`."""

from __future__ import annotations

import logging

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState


def open_device(name: str) -> torch.device:
    """Return a device by its name; empty: a GPU where there is one, else the CPU.

    Raises:
        ValueError: torch knows no such device, or it is not there.
    """
    chosen = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=chosen).cpu()
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ValueError(
            f"--device must be a torch device of this machine, got {name!r}; give cpu, or cuda where there is a GPU"
        ) from None
    return torch.device(chosen)


def open_accelerator(name: str, precision: str) -> Accelerator:
    """Open the accelerator of one training.

    Args:
        name: of the device, as `open_device` takes it.
        precision: `bf16` or `fp32`.

    Raises:
        ValueError: the device is not there, or is another one than accelerate chooses on this machine.
    """
    device = open_device(name)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # accelerate takes the current one
    # One process may run several trainings, but accelerate keeps the first one's device and precision.
    AcceleratorState._reset_state(reset_partial_state=True)
    # It reports each file of each saved state.
    logging.getLogger("accelerate").setLevel(logging.WARNING)
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="bf16" if precision == "bf16" else "no")
    if accelerator.device.type != device.type:
        raise ValueError(f"--device must be cpu or {accelerator.device.type} on this machine, got {name!r}")
    return accelerator
