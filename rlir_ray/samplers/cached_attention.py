"""Attention of one new token a clip over the filled part of the clip's key-value cache.

On a CPU in float32, kernels compiled by numba compute the attention: the key-value cache is larger than the processor's
caches, and with few query rows a clip torch reads it at a quarter of the memory bandwidth. Without numba, on other
devices and in other types, torch computes the attention.
Legend: B clips, V key-value heads, R query heads that share one of them, D head size, L length of the cache.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]

from rlir_ray.extras import has_library


def attend(queries: Tensor, cache: Tensor, filled: int) -> Tensor:
    """Compute scaled dot-product attention of single tokens.

    Args:
        queries: [B, V, R, D].
        cache: [B, 2V, L, D], keys before values, contiguous.
        filled: positions that hold tokens, the new one's included.

    Returns:
        [B, V, R, D].
    """
    num_kv_heads = queries.shape[1]
    if queries.device.type != "cpu" or queries.dtype != torch.float32 or not has_library("numba"):
        keys, values = cache[:, :num_kv_heads, :filled], cache[:, num_kv_heads:, :filled]
        return functional.scaled_dot_product_attention(queries, keys, values)
    score, mix = _kernels()
    # [B, V, R, filled]
    weights = torch.empty(*queries.shape[:3], filled)
    mixed = torch.empty_like(queries, memory_format=torch.contiguous_format)
    _over_clips(score, (queries * queries.shape[-1] ** -0.5).contiguous(), cache, weights)
    _over_clips(mix, weights.softmax(-1), cache, mixed)
    return mixed


def _over_clips(kernel: Callable[..., None], *arrays: Tensor) -> None:
    """Run a kernel on as many threads as torch uses; each thread computes its share of the clips."""
    num_threads = min(torch.get_num_threads(), len(arrays[0]))
    if num_threads == 1:
        kernel(*(array.numpy() for array in arrays))
        return
    parts = zip(*(array.tensor_split(num_threads) for array in arrays), strict=True)
    list(_threads(num_threads).map(lambda part: kernel(*(array.numpy() for array in part)), parts))


@functools.cache
def _threads(num_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_threads, thread_name_prefix="cached_attention")


def _compiled(function: Callable[..., None]) -> Callable[..., None]:
    import numba

    # fastmath allows sums of float32 in any order; otherwise the compiler cannot use the vector units.
    try:
        compiled: Callable[..., None] = numba.njit(function, cache=True, fastmath=True, nogil=True)
    except RuntimeError:
        # numba finds no writable folder for its cache.
        compiled = numba.njit(function, fastmath=True, nogil=True)
    return compiled


@functools.cache
def _kernels() -> tuple[Callable[..., None], Callable[..., None]]:
    """Compile the kernels at the first call, in one or two seconds; later processes load them from numba's cache."""
    import numpy as np

    @_compiled
    def score(queries: Floats, cache: Floats, weights: Floats) -> None:
        num_clips, num_kv_heads, num_rows, head_size = queries.shape
        for clip in range(num_clips):
            for head in range(num_kv_heads):
                for position in range(weights.shape[3]):
                    for row in range(num_rows):
                        total = np.float32(0)
                        for d in range(head_size):
                            total += queries[clip, head, row, d] * cache[clip, head, position, d]
                        weights[clip, head, row, position] = total

    @_compiled
    def mix(weights: Floats, cache: Floats, mixed: Floats) -> None:
        num_clips, num_kv_heads, num_rows, head_size = mixed.shape
        for clip in range(num_clips):
            for head in range(num_kv_heads):
                mixed[clip, head] = np.float32(0)
                for position in range(weights.shape[3]):
                    for row in range(num_rows):
                        weight = weights[clip, head, row, position]
                        for d in range(head_size):
                            mixed[clip, head, row, d] += weight * cache[clip, num_kv_heads + head, position, d]

    return score, mix
