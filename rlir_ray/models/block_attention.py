"""Causal attention in blocks of queries, computed with matrix products, for training on CPUs in bfloat16.

Torch's CPU kernel multiplies small tiles and is slow in bfloat16: at 16 x 519 tokens and 3 heads of 64, forward
and backward take 176 ms on one core with torch's kernel and 70 ms with these products.
Legend: B sequences, L length, H query heads, V key-value heads, D head size.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from rlir_ray.models.autoregressive import WorldModel

NAME = "causal_blocks"
# Smaller blocks skip more of the masked half, larger ones multiply larger matrices.
BLOCK = 128


def block_attention(queries: Tensor, keys: Tensor, values: Tensor, scale: float, block: int = BLOCK) -> Tensor:
    """Compute softmax(QK' * scale)V under the causal mask.

    Args:
        queries: [B, H, L, D].
        keys, values: [B, V, L, D]; H is a multiple of V.
        scale: 1 / sqrt(D) in LLaMA.
        block: queries in one block; a block reads only the keys up to its own end.

    Returns:
        [B, L, H, D]. Scores are rounded to the dtype of the inputs.
    """
    num_sequences, num_heads, length, size = queries.shape
    num_kv, shared = keys.shape[1], num_heads // keys.shape[1]
    # The heads that share keys become rows of one matrix, token after token.
    rows = (queries * scale).unflatten(1, (num_kv, shared)).transpose(2, 3).reshape(-1, length * shared, size)
    columns, values = keys.flatten(0, 1).transpose(1, 2), values.flatten(0, 1)
    mixed = []
    for start in range(0, length, block):
        end = min(length, start + block)
        bias = torch.zeros(end - start, end, dtype=rows.dtype, device=rows.device)
        bias[:, start:].fill_(-math.inf).triu_(1)
        scores = torch.baddbmm(
            bias.repeat_interleave(shared, 0), rows[:, start * shared : end * shared], columns[..., :end]
        )
        mixed.append(torch.bmm(scores.softmax(-1), values[:, :end]))
    heads = torch.cat(mixed, 1).view(num_sequences, num_kv, length, shared, size)
    return heads.transpose(1, 2).reshape(num_sequences, length, num_heads, size)


def _attend(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: None, scaling: float, **options: object
) -> tuple[Tensor, None]:
    return block_attention(query, key, value.to(query.dtype), scaling), None


def set_block_attention(model: WorldModel, enabled: bool) -> None:
    """Use attention in blocks, or the default attention of transformers."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, lambda *_, **__: None)  # sequences have no padding: the causal mask is enough
    model.llama.set_attn_implementation(NAME if enabled else "sdpa")
