"""Vector quantization (https://arxiv.org/abs/1711.00937): a vector becomes the nearest one of a learned codebook.

Legend: D numbers of a vector, K codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


def nearest_codes(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Return the ids, int64 [...], of the codes [K, D] with the least Euclidean distance to vectors [..., D]."""
    # The squared distance without |z|², which is the same for all codes.
    scores = vectors @ codebook.T - codebook.square().sum(1) / 2
    return scores.argmax(-1)


@dataclass(frozen=True)
class VectorQuantizer:
    """Quantize vectors to ids, and look the codes of ids up.

    Args:
        embedding: the codebook [K, D]; the model that holds it trains and moves it.
    """

    embedding: nn.Embedding

    @property
    def size(self) -> int:
        """D."""
        return self.embedding.embedding_dim

    @property
    def num_codes(self) -> int:
        return self.embedding.num_embeddings

    def quantize(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Find the nearest codes, in float32 whatever the type of the vectors and the autocast.

        Args:
            vectors: float [..., D].

        Returns:
            Codes, float32 [..., D], and their ids, int64 [...].
        """
        with torch.autocast(vectors.device.type, enabled=False):
            codebook = self.embedding.weight.float()
            ids = nearest_codes(vectors.float(), codebook)
            return codebook[ids], ids

    def codes(self, ids: Tensor) -> Tensor:
        """Look up the codes, float [..., D], of ids int [...].

        Raises:
            ValueError: an id that has no code.
        """
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.num_codes:
            raise ValueError(
                f"ids must be in 0..{self.num_codes - 1}, got {int(ids.min())}..{int(ids.max())}; give them without "
                "the offset of a sequence"
            )
        codes: Tensor = self.embedding(ids.long())
        return codes
