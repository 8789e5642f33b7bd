"""The torch device that a training runs on."""

from __future__ import annotations

import torch


def open_device(name: str) -> torch.device:
    """A device by its name; empty: a GPU where there is one, else the CPU.

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
