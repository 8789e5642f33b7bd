"""Weights as numpy arrays, which the learner publishes and a sampler loads. Independent of their transport."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
import xxhash

from rlir_ray.models import checkpoints
from rlir_ray.models.adapters import is_adapter_weight

# Parts are large enough to hide a thread's start; more threads do not help, because memory bandwidth is the limit.
PART_BYTES, MAX_THREADS = 8 << 20, 8

Weights = dict[str, npt.NDArray[np.generic]]
Received = Mapping[str, npt.NDArray[np.generic] | torch.Tensor]
"""Read-only arrays from the object store, or tensors on any device."""


def _published(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors to publish: all parameters and persistent buffers, or an adapter's alone."""
    state = module.state_dict(keep_vars=True)
    adapter = {name: value for name, value in state.items() if is_adapter_weight(name)}
    return adapter or state


def weights_of(module: torch.nn.Module) -> Weights:
    """Return contiguous copies of a module's parameters and persistent buffers, or of its adapter's weights alone.

    Floating-point weights become float32. The conversion from bfloat16 is exact, so that publisher and reader hold the
    same bytes for any precision of their computation.
    """
    return {name: to_numpy(value) for name, value in _published(module).items()}


def to_numpy(value: torch.Tensor) -> npt.NDArray[np.generic]:
    """Copy a tensor to numpy, floating-point values as float32."""
    wide = value.detach().to(torch.float32) if value.is_floating_point() else value.detach()
    return np.array(wide.cpu().numpy(), order="C", copy=True)


def load_weights(module: torch.nn.Module, weights: Received, published: str = "") -> dict[str, torch.Tensor]:
    """Point a module at other weights with the same names and shapes; load all of them, or none.

    Weights that already have the module's device and type are not copied: the parameters then share the memory of the
    given arrays, which must not be modified. Other weights are copied first.

    Args:
        published: the published checksum. It is verified on the weights that the module will hold, or, for weights that
            the module holds in another type (bfloat16), on the received bytes. Empty: do not verify.

    Returns:
        The previous weights, so that the caller can restore them.

    Raises:
        ValueError: a name, a shape or the checksum differs, or a value is not finite.
    """
    own = _published(module)
    _check_fit(own, weights)
    check_finite(weights, "weights that are loaded")
    staged = {name: as_tensor(weights[name]).to(target.device, target.dtype) for name, target in own.items()}
    if published:
        # Weights of another type are rounded by the module, and their checksum would differ.
        same = {name for name, value in staged.items() if value.dtype == as_tensor(weights[name]).dtype}
        check_checksum({name: staged[name] if name in same else weights[name] for name in staged}, published)
    before = {name: target.data for name, target in own.items()}
    try:
        _swap(own, staged)
    except BaseException:
        _swap(own, before)
        raise
    return before


def _check_fit(own: Mapping[str, torch.Tensor], weights: Received) -> None:
    differing = sorted(set(own) ^ set(weights))
    if differing:
        raise ValueError(
            f"weights must have the module's {len(own)} names, got {len(weights)}, first difference {differing[0]!r}; "
            "publish from a checkpoint of the same architecture"
        )
    for name, target in own.items():
        if tuple(target.shape) != tuple(weights[name].shape):
            raise ValueError(
                f"weight {name!r} must be {tuple(target.shape)}, got {tuple(weights[name].shape)}; "
                "publish from a checkpoint of the same architecture"
            )


def _swap(own: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> None:
    for name, target in own.items():
        target.data = values[name]


def as_tensor(value: npt.NDArray[np.generic] | torch.Tensor) -> torch.Tensor:
    """Return a tensor that shares the memory of an array."""
    if isinstance(value, torch.Tensor):
        return value
    with warnings.catch_warnings():
        # The warning is wrong here: nothing writes into the weights of a sampler.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.asarray(value, order="C"))


def check_finite(weights: Received, what: str) -> None:
    """Check that all values of all weights are finite.

    Raises:
        ValueError: a value is NaN or infinite; the error names the first such tensor.
    """
    for name in weights:
        checkpoints.check_finite({name: as_tensor(weights[name])}, what)


def check_checksum(weights: Received, published: str) -> None:
    """Check the checksum of weights.

    Raises:
        ValueError: the checksum is not the published one.
    """
    if (found := checksum(weights)) != published:
        raise ValueError(f"weights must have the published checksum {published}, got {found}; publish them again")


def checksum(weights: Received) -> str:
    """Compute a hexadecimal xxh3 (128 bits) over names, types, shapes and bytes, in the order of the names.

    The checksum detects transfer errors at the speed of the memory; it does not protect against forged weights.
    Threads compute checksums of parts in parallel; the result is the checksum over these.
    """
    digest, parts = xxhash.xxh3_128(), []
    for name in sorted(weights):
        value = weights[name]
        array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
        digest.update(f"{name}:{array.dtype.str}:{array.shape};".encode())
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        parts += [data[start : start + PART_BYTES] for start in range(0, len(data), PART_BYTES)]
    for part in _map_in_threads(_part_checksum, parts):
        digest.update(part)
    return digest.hexdigest()


def _part_checksum(data: npt.NDArray[np.uint8]) -> bytes:
    # `update` releases the GIL; the one-call form does not.
    digest = xxhash.xxh3_128()
    digest.update(data.data)
    return digest.digest()


def _map_in_threads(
    call: Callable[[npt.NDArray[np.uint8]], bytes], parts: Sequence[npt.NDArray[np.uint8]]
) -> Iterable[bytes]:
    if sum(part.nbytes for part in parts) <= PART_BYTES:
        return map(call, parts)
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as threads:
        return list(threads.map(call, parts))
