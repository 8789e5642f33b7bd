"""Weights as numpy arrays: what the learner publishes and a sampler loads. Knows nothing of how they travel."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from rlir_ray.models.adapters import is_adapter_weight

Weights = dict[str, npt.NDArray[np.generic]]


def _published(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What changes: all parameters and persistent buffers, or those of an adapter alone."""
    state = module.state_dict()
    adapter = {name: value for name, value in state.items() if is_adapter_weight(name)}
    return adapter or state


def weights_of(module: torch.nn.Module) -> Weights:
    """Contiguous copies of a module's parameters and persistent buffers; of one with an adapter, the adapter's alone.

    Floating-point ones leave as float32: bfloat16 converts exactly, so that publisher and reader hold the same bytes
    whatever precision each computes in.
    """
    return {name: to_numpy(value) for name, value in _published(module).items()}


def to_numpy(value: torch.Tensor) -> npt.NDArray[np.generic]:
    """A copy of its own, floating-point values as float32."""
    wide = value.detach().to(torch.float32) if value.is_floating_point() else value.detach()
    return np.array(wide.cpu().numpy(), order="C", copy=True)


def load_weights(module: torch.nn.Module, weights: Mapping[str, npt.NDArray[np.generic]]) -> None:
    """Copies weights into a module, strictly: the same names and shapes, nothing missing, nothing left over.

    The module is untouched when they do not fit. The arrays may be read-only, as the object store hands them over.

    Raises:
        ValueError: a name or a shape differs.
    """
    own = _published(module)
    differing = sorted(set(own) ^ set(weights))
    if differing:
        raise ValueError(
            f"weights must have the module's {len(own)} names, got {len(weights)}, first difference {differing[0]!r}; "
            "publish from a checkpoint of the same architecture"
        )
    for name, target in own.items():
        if tuple(target.shape) != weights[name].shape:
            raise ValueError(
                f"weight {name!r} must be {tuple(target.shape)}, got {weights[name].shape}; "
                "publish from a checkpoint of the same architecture"
            )
    with torch.no_grad():
        for name, target in own.items():
            target.copy_(torch.tensor(weights[name]))


def checksum(weights: Mapping[str, npt.NDArray[np.generic]]) -> str:
    """Hexadecimal blake2b over names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(weights):
        array = np.ascontiguousarray(weights[name])
        digest.update(f"{name}:{array.dtype.str}:{weights[name].shape};".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
