"""Rotary position embeddings (RoFormer, https://arxiv.org/abs/2104.09864) as rotations of neighbouring pairs.

Legend: L positions, P pairs of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotate_pairs(x: Tensor, turns: Tensor) -> Tensor:
    """Rotate the first pairs of each vector, in float32; the rest of the vector stays.

    Args:
        x: [..., L, head size].
        turns: complex64 [L, P], P at most head size / 2.
    """
    num_turned = 2 * turns.shape[-1]
    pairs = torch.view_as_complex(x[..., :num_turned].float().unflatten(-1, (-1, 2)).contiguous())
    turned = torch.view_as_real(pairs * turns).flatten(-2).to(x.dtype)
    return turned if num_turned == x.shape[-1] else torch.cat([turned, x[..., num_turned:]], -1)


def line_rates(num_pairs: int, base: float = 10_000.0) -> Tensor:
    """Return the rotation of each pair from one position to the next, float32 [P], from 1 down to about 1 / base."""
    return base ** -(torch.arange(num_pairs, dtype=torch.float32) / num_pairs)


def grid_turns(grid: tuple[int, int], rates: Tensor) -> Tensor:
    """Return rotations for positions on a grid whose rows and columns run from -1 to 1, as Oasis has them.

    Args:
        grid: rows and columns; L is their product.
        rates: [P / 2], of the pairs for rows, and again of the pairs for columns.

    Returns:
        complex64 [L, P], row after row.
    """
    rows, columns = (torch.linspace(-1, 1, size, device=rates.device)[:, None] * rates for size in grid)
    rows = rows[:, None].expand(-1, grid[1], -1)
    columns = columns[None].expand(grid[0], -1, -1)
    return turns_by(torch.cat([rows, columns], -1).flatten(0, 1))


def turns_by(angles: Tensor) -> Tensor:
    """Return rotations by angles in radians, [L, P] to complex64 [L, P]."""
    return torch.polar(torch.ones_like(angles), angles)
