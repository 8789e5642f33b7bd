"""Vector quantization, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rlir_ray.models.vq import VectorQuantizer


def small_quantizer() -> VectorQuantizer:
    return VectorQuantizer(nn.Embedding.from_pretrained(torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 1.0]])))


def test_a_vector_becomes_the_code_of_the_least_distance() -> None:
    quantizer = small_quantizer()
    # The second code has the largest product with [1.5, 0], but is further away than the first: 2.5 and 1.5.
    codes, ids = quantizer.quantize(torch.tensor([[[1.5, 0.0], [2.5, 0.0]], [[0.4, 0.6], [-9.0, -9.0]]]))
    assert ids.tolist() == [[0, 1], [2, 0]]
    assert codes.tolist() == [[[0, 0], [4, 0]], [[0, 1], [0, 0]]] and torch.equal(quantizer.codes(ids), codes)
    assert (quantizer.size, quantizer.num_codes) == (2, 3)


def test_the_distance_is_computed_in_float32_under_autocast() -> None:
    quantizer = VectorQuantizer(nn.Embedding.from_pretrained(torch.tensor([[1.0], [1.001]])))
    # In bf16, 1.001 is 1.
    with torch.autocast("cpu", torch.bfloat16):
        assert quantizer.quantize(torch.tensor([[1.001], [1.0]]))[1].tolist() == [1, 0]


@pytest.mark.parametrize("wrong", [-1, 3])
def test_ids_without_a_code_are_refused(wrong: int) -> None:
    with pytest.raises(ValueError, match=rf"ids must be in 0\.\.2, got {min(0, wrong)}\.\.{max(0, wrong)}"):
        small_quantizer().codes(torch.tensor([0, wrong]))
