"""The forward pass of a LLaMA for decoding, with a static key-value cache.

All clips of a call have the same layout. Therefore the cache holds no padding, and attention reads only its filled
part.
Legend: B clips, S tokens of one pass, K image ids, E width, H query heads, V key-value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch.nn import functional

from rlir_ray.models.adapters import bias_of, merged_weight
from rlir_ray.models.autoregressive import WorldModel
from rlir_ray.samplers.cached_attention import attend

if TYPE_CHECKING:
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm


@dataclass(frozen=True)
class LayerWeights:
    """Matrices [outputs, inputs] and biases of one layer; norm weights are multiplied into the following matrix."""

    qkv: Tensor
    out: Tensor
    gate_up: Tensor
    down: Tensor
    qkv_bias: Tensor | None
    """[outputs], like the other biases; None: the model has no such bias."""
    out_bias: Tensor | None
    gate_up_bias: Tensor | None
    down_bias: Tensor | None
    activation: Callable[[Tensor], Tensor]
    """Activation of the gate, taken from the model."""


class Decoder:
    """Forward pass of a LLaMA, prepared for decoding.

    Norm weights are folded into the matrices that follow them. The two halves that RoPE rotates are interleaved, so
    that a rotation is one complex product. Keys and queries get the same permutation, so that their products do not
    change.

    Args:
        model: the decoder copies its weights.
        dtype: type of weights and cache; logits are always float32.
        restrict: compute the logits of the image ids only.
    """

    def __init__(self, model: WorldModel, dtype: torch.dtype, restrict: bool = True) -> None:
        config, llama = model.config, model.llama.model
        self.dtype, self.epsilon = dtype, config.rms_norm_eps
        assert config.num_key_value_heads is not None, "LlamaConfig fills it in"
        self.num_heads, self.num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_size = config.head_dim or config.hidden_size // config.num_attention_heads
        self.rotary = llama.rotary_emb
        self.embedding = llama.embed_tokens.weight.detach().to(dtype)
        self.head = self._fold(merged_weight(model.llama.lm_head)[: model.num_ids(restrict)], llama.norm)
        # A ModuleList does not know the class of its modules.
        self.layers = [self._prepare(layer) for layer in cast("Iterable[LlamaDecoderLayer]", llama.layers)]

    def _fold(self, weight: Tensor, norm: LlamaRMSNorm) -> Tensor:
        return (weight.detach() * norm.weight.detach()).to(self.dtype).contiguous()

    def _pair(self, weight: Tensor) -> Tensor:
        """Interleave the first and second half of each head's rows, of a weight or a bias."""
        halves: Tensor = weight.unflatten(0, (-1, 2, self.head_size // 2))
        return halves.transpose(1, 2).flatten(0, 2)

    def _bias(self, *parts: Tensor | None) -> Tensor | None:
        """Concatenate the biases of matrices that are multiplied as one."""
        known = [part for part in parts if part is not None]
        return torch.cat(known).to(self.dtype) if known else None

    def _prepare(self, layer: LlamaDecoderLayer) -> LayerWeights:
        attention, mlp = layer.self_attn, layer.mlp
        queries, keys, values = (merged_weight(getattr(attention, f"{name}_proj")) for name in "qkv")
        gate, up = merged_weight(mlp.gate_proj), merged_weight(mlp.up_proj)
        biases = [bias_of(getattr(attention, f"{name}_proj")) for name in "qkv"]
        turned = [self._pair(bias) if bias is not None else None for bias in biases[:2]]
        return LayerWeights(
            qkv=self._fold(torch.cat([self._pair(queries), self._pair(keys), values]), layer.input_layernorm),
            out=merged_weight(attention.o_proj).to(self.dtype, copy=True),
            gate_up=self._fold(torch.cat([gate, up]), layer.post_attention_layernorm),
            down=merged_weight(mlp.down_proj).to(self.dtype, copy=True),
            qkv_bias=self._bias(*turned, biases[2]),
            out_bias=self._bias(bias_of(attention.o_proj)),
            gate_up_bias=self._bias(bias_of(mlp.gate_proj), bias_of(mlp.up_proj)),
            down_bias=self._bias(bias_of(mlp.down_proj)),
            activation=mlp.act_fn,
        )

    def rotations(self, length: int) -> Tensor:
        """Return the rotation of each position and head, complex64 [length, H + 2V, D / 2]; values are not rotated."""
        device = self.rotary.inv_freq.device
        angles = torch.arange(length, device=device)[:, None].float() * self.rotary.inv_freq.float()
        turns = torch.polar(torch.full_like(angles, self.rotary.attention_scaling), angles)[:, None]
        queries_and_keys = turns.expand(-1, self.num_heads + self.num_kv_heads, -1)
        return torch.cat([queries_and_keys, torch.ones_like(turns).expand(-1, self.num_kv_heads, -1)], 1)

    def new_cache(self, num_clips: int, length: int) -> list[Tensor]:
        """Allocate keys and values of each layer, [B, 2V, length, D], keys first."""
        shape = (num_clips, 2 * self.num_kv_heads, length, self.head_size)
        return [torch.empty(shape, dtype=self.dtype, device=self.embedding.device) for _ in self.layers]

    def _norm(self, x: Tensor) -> Tensor:
        x32 = x.float()
        return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.epsilon)).to(self.dtype)

    def _attend(
        self, x: Tensor, layer: LayerWeights, cache: Tensor, turns: Tensor, start: int, mask: Tensor | None
    ) -> Tensor:
        num_clips, length = x.shape[:2]
        qkv = functional.linear(self._norm(x), layer.qkv, layer.qkv_bias).float()
        qkv = qkv.view(num_clips, length, -1, self.head_size // 2, 2)
        turned = torch.view_as_real(torch.view_as_complex(qkv) * turns).flatten(-2).to(self.dtype)
        cache[:, :, start : start + length] = turned[:, :, self.num_heads :].transpose(1, 2)
        # Query heads that share a key-value head become rows of one query: attention then reads the cache only once.
        queries = turned[:, :, : self.num_heads].unflatten(2, (self.num_kv_heads, -1)).permute(0, 2, 3, 1, 4)
        if mask is None:
            mixed = attend(queries.squeeze(3), cache, start + 1)  # [B, V, H / V, D]
        else:
            keys, values = cache[:, :, : start + length].chunk(2, 1)
            mixed = functional.scaled_dot_product_attention(queries.flatten(2, 3), keys, values, attn_mask=mask)
        heads = mixed.unflatten(2, (-1, length)).flatten(1, 2).transpose(1, 2)  # [B, S, H, D]
        return functional.linear(heads.flatten(2), layer.out, layer.out_bias)

    def __call__(self, tokens: Tensor, cache: list[Tensor], rotations: Tensor, start: int) -> Tensor:
        """Append tokens int64 [B, S] to the cache at `start`; return logits float32 [B, K] after the last token."""
        length = tokens.shape[1]
        turns, mask = rotations[start : start + length], None
        if length > 1:
            ends = torch.arange(start, start + length, device=tokens.device).repeat(self.num_heads // self.num_kv_heads)
            mask = torch.arange(start + length, device=tokens.device) <= ends[:, None]  # [H / V * S, start + S]
        x = functional.embedding(tokens, self.embedding)  # [B, S, E]
        for layer, layer_cache in zip(self.layers, cache, strict=True):
            x = x + self._attend(x, layer, layer_cache, turns, start, mask)
            gate, up = functional.linear(self._norm(x), layer.gate_up, layer.gate_up_bias).chunk(2, -1)
            x = x + functional.linear(layer.activation(gate) * up, layer.down, layer.down_bias)
        return functional.linear(self._norm(x[:, -1]), self.head).float()
