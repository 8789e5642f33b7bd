"""Moving averages that define a VQ codebook: k-means initializes the codes, and unused codes are restarted.

Legend: M latent vectors, D size of a code, K codes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# A code is restarted if its count is below this share of the mean count: such a code carries little information.
DEAD_SHARE = 0.1
# Count of a restarted code, as a share of the mean count: high enough to keep the code for some dozen steps.
FRESH_SHARE = 0.3


class CodebookAverages(nn.Module):
    """Exponential moving averages, over steps, of the latents that choose each code.

    Args:
        num_codes: K.
        code_size: D.
    """

    counts: Tensor
    """[K], how often each code is chosen in a step."""
    sums: Tensor
    """[K, D], sum of the latents that choose each code in a step."""
    is_started: Tensor
    """bool, whether the codebook exists; a buffer, so that saved states hold it."""

    def __init__(self, num_codes: int, code_size: int) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(num_codes))
        self.register_buffer("sums", torch.zeros(num_codes, code_size))
        self.register_buffer("is_started", torch.zeros((), dtype=torch.bool))

    @property
    def started(self) -> bool:
        """Whether the codebook exists."""
        return bool(self.is_started)

    @torch.no_grad()
    def start(self, codebook: Tensor, vectors: Tensor, seed: int) -> None:
        """Initialize the codes with the k-means centres of the vectors [M, D]."""
        centres = kmeans(vectors, len(codebook), seed=seed)
        codebook.copy_(centres)
        self.counts.fill_(1.0)
        self.sums.copy_(centres)
        self.is_started.fill_(True)

    @torch.no_grad()
    def update(
        self, codebook: Tensor, vectors: Tensor, chosen: Tensor, decay: float, restart_seed: int | None = None
    ) -> None:
        """Move each code to the average of the latents that chose it (van den Oord et al., arXiv 1711.00937).

        Args:
            codebook: [K, D], changed in place.
            vectors: [M, D].
            chosen: int64 [M], the code of each.
            decay: of the averages.
            restart_seed: seed that draws new vectors for unused codes; None: do not restart codes.
        """
        num_codes = len(codebook)
        counts = torch.bincount(chosen, minlength=num_codes).float()
        sums = torch.zeros_like(self.sums).index_add_(0, chosen, vectors)
        self.counts.mul_(decay).add_(counts, alpha=1 - decay)
        self.sums.mul_(decay).add_(sums, alpha=1 - decay)
        if restart_seed is not None:
            mean_count = len(vectors) / num_codes
            dead = self.counts < DEAD_SHARE * mean_count
            generator = torch.Generator().manual_seed(restart_seed)
            picks = torch.randint(len(vectors), (int(dead.sum()),), generator=generator)
            self.sums[dead], self.counts[dead] = vectors[picks] * FRESH_SHARE * mean_count, FRESH_SHARE * mean_count
        alive = self.counts > 1e-3
        codebook[alive] = self.sums[alive] / self.counts[alive, None]


def kmeans(vectors: Tensor, num_centres: int, *, seed: int, iterations: int = 10) -> Tensor:
    """Run Lloyd's k-means from random vectors; draw again each centre that no vector chooses.

    Args:
        vectors: float [M, D].

    Returns:
        float [num_centres, D].
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> Tensor:
        picks = torch.randint(len(vectors), (count,), generator=generator)
        return vectors[picks] + 1e-3 * torch.randn(count, vectors.shape[1], generator=generator).to(vectors.device)

    centres = draw(num_centres)
    for _ in range(iterations):
        chosen = torch.cdist(vectors, centres).argmin(1)
        counts = torch.bincount(chosen, minlength=num_centres)
        sums = torch.zeros_like(centres).index_add_(0, chosen, vectors)
        centres = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], draw(num_centres))
    return centres
