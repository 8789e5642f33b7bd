from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from rlir_ray.samplers.cached_attention import attend


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize(("num_kv_heads", "num_rows", "filled"), [(1, 3, 1), (1, 3, 17), (2, 2, 40)])
def test_attend_equals_torchs_attention(num_threads: int, num_kv_heads: int, num_rows: int, filled: int) -> None:
    before = torch.get_num_threads()
    torch.manual_seed(0)
    queries = torch.randn(5, num_rows, num_kv_heads, 16).transpose(1, 2)
    cache = torch.randn(5, 2 * num_kv_heads, 40, 16)
    keys, values = cache[:, :, :filled].chunk(2, 1)
    expected = functional.scaled_dot_product_attention(queries, keys, values)
    torch.set_num_threads(num_threads)
    try:
        torch.testing.assert_close(attend(queries, cache, filled), expected, atol=2e-6, rtol=2e-6)
    finally:
        torch.set_num_threads(before)


def test_positions_that_are_not_filled_are_never_read() -> None:
    cache = torch.randn(3, 2, 8, 4)
    cache[:, :, 5:] = torch.nan
    assert attend(torch.randn(3, 1, 2, 4), cache, 5).isfinite().all()


def test_bfloat16_keeps_its_type() -> None:
    cache = torch.randn(3, 2, 8, 4).bfloat16()
    assert attend(torch.randn(3, 1, 2, 4).bfloat16(), cache, 5).dtype == torch.bfloat16
