"""Finite scalar quantization (https://arxiv.org/abs/2309.15505): each number of a vector is rounded to one of L levels.

Has no weights. Legend: D numbers of a vector, L levels of a number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Widens the range of the tanh, so that the outermost levels are reached for finite inputs.
MARGIN = 1e-3
LEVELS = {
    8: (8, 6, 5),
    10: (8, 5, 5, 5),
    12: (7, 5, 5, 5, 5),
    14: (8, 8, 8, 6, 5),
    16: (8, 8, 8, 5, 5, 5),
}
"""The published lists of levels, by about the binary logarithm of their number of ids."""


@dataclass(frozen=True)
class FiniteScalarQuantizer:
    """Quantize vectors to ids, and look the codes of ids up.

    Args:
        levels: L of each of the D numbers, all at least 2.

    Example: levels 7, 5, 5, 5, 5 give 4375 ids; the first number changes fastest with the id.
    """

    levels: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.levels or min(self.levels) < 2:
            raise ValueError(f"levels must be a list of numbers >= 2, got {self.levels}; for example {LEVELS[12]}")

    @property
    def size(self) -> int:
        """D."""
        return len(self.levels)

    @property
    def num_codes(self) -> int:
        return math.prod(self.levels)

    def quantize(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Round vectors to the nearest codes, in float32 whatever the type of the vectors and the autocast.

        Args:
            vectors: float [..., D], not bounded.

        Returns:
            Codes, float32 [..., D] in [-1, 1], and their ids, int64 [...]. The codes have the gradient of the numbers
            before rounding.

        Raises:
            ValueError: the vectors have another size than D.
        """
        if vectors.shape[-1] != len(self.levels):
            raise ValueError(
                f"a quantizer of the levels {self.levels} needs vectors [..., {len(self.levels)}], got "
                f"{list(vectors.shape)}; move the channels to the end"
            )
        with torch.autocast(vectors.device.type, enabled=False):
            levels, halves = self._levels(vectors.device), self._halves(vectors.device)
            ranges = (levels - 1).float() * (1 + MARGIN) / 2
            # An even number of levels has none in its middle.
            offsets = (1 - levels % 2) * 0.5
            shifts = torch.atanh(offsets / ranges)
            bounded = torch.tanh(vectors.float() + shifts) * ranges - offsets
            digits = bounded.round()
            ids = ((digits.long() + halves) * self._steps(vectors.device)).sum(-1)
            if bounded.requires_grad:
                digits = bounded + (digits - bounded).detach()
            return digits / halves, ids

    def codes(self, ids: Tensor) -> Tensor:
        """Look up the codes of ids.

        Args:
            ids: int [...]; an id beyond the last one is taken modulo `num_codes`.

        Returns:
            float32 [..., D] in [-1, 1].
        """
        halves = self._halves(ids.device)
        digits = ids.long()[..., None] // self._steps(ids.device) % self._levels(ids.device) - halves
        return digits.float() / halves

    # Not buffers: they must exist on the device of the input even if a model is built on the meta device.

    def _levels(self, device: torch.device) -> Tensor:
        return torch.tensor(self.levels, device=device)

    def _halves(self, device: torch.device) -> Tensor:
        return self._levels(device) // 2

    def _steps(self, device: torch.device) -> Tensor:
        """Return by how much an id grows with each number's level, int64 [D]."""
        return torch.tensor([math.prod(self.levels[:index]) for index in range(len(self.levels))], device=device)


def published_quantizer(name: int) -> FiniteScalarQuantizer:
    """Return the quantizer of a published list of levels.

    Args:
        name: key of `LEVELS`.

    Raises:
        ValueError: there is no such list.
    """
    if name not in LEVELS:
        raise ValueError(
            f"levels of a published quantizer must be one of {', '.join(map(str, LEVELS))}, got {name!r}; give the "
            "published config.json"
        )
    return FiniteScalarQuantizer(LEVELS[name])
