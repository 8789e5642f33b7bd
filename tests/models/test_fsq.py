"""Finite scalar quantization against outputs of the published code, and by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rlir_ray.models.fsq import LEVELS, FiniteScalarQuantizer, published_quantizer

GOLDEN = Path(__file__).parents[1] / "golden" / "rlvr_frame" / "io.safetensors"


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN)


@pytest.mark.parametrize("name", LEVELS)
def test_ids_and_codes_are_the_published_ones(name: int, golden: dict[str, Tensor]) -> None:
    quantizer = published_quantizer(name)
    codes, ids = quantizer.quantize(golden[f"fsq{name}.z"])
    assert torch.equal(ids, golden[f"fsq{name}.ids"].long()) and torch.equal(codes, golden[f"fsq{name}.codes"])
    assert torch.equal(quantizer.codes(ids), codes)


@pytest.mark.parametrize("name", LEVELS)
def test_each_id_has_a_code_of_its_own_that_leads_back_to_it(name: int) -> None:
    quantizer = published_quantizer(name)
    ids = torch.arange(quantizer.num_codes)
    codes = quantizer.codes(ids)
    assert len(codes.unique(dim=0)) == len(ids) and float(codes.min()) == -1 and float(codes.max()) <= 1
    levels = torch.tensor(quantizer.levels)
    digits = ((codes + 1) * (levels // 2)).round().long()  # 0 to L - 1
    assert bool((digits < levels).all())
    assert torch.equal((digits * torch.tensor([1, *quantizer.levels[:-1]]).cumprod(0)).sum(-1), ids)


def test_large_numbers_reach_the_outermost_levels() -> None:
    # Levels 3 and 4: digits -1..1 and -2..1, so that the ids are (digit 0 + 1) + 3 * (digit 1 + 2).
    quantizer = FiniteScalarQuantizer((3, 4))
    codes, ids = quantizer.quantize(torch.tensor([[-9.0, -9.0], [9.0, 9.0], [0.0, -0.5], [9.0, -9.0]]))
    assert ids.tolist() == [0, 11, 4, 2]
    assert codes.tolist() == [[-1, -1], [1, 0.5], [0, -0.5], [1, -1]]


def test_autocast_changes_no_id(golden: dict[str, Tensor]) -> None:
    z = golden["fsq16.z"]
    with torch.autocast("cpu", torch.bfloat16):
        codes, ids = published_quantizer(16).quantize(z)
    assert torch.equal(ids, golden["fsq16.ids"].long()) and codes.dtype == torch.float32
    # A vector that is already rounded is quantized as its exact float32 value.
    half = z.bfloat16()
    assert torch.equal(published_quantizer(16).quantize(half)[1], published_quantizer(16).quantize(half.float())[1])


def test_a_multiple_of_the_largest_steps_vanishes() -> None:
    quantizer = published_quantizer(12)
    ids = torch.arange(4375)
    assert torch.equal(quantizer.codes(ids + 4375), quantizer.codes(ids))


def test_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"needs vectors \[\.\.\., 5\], got \[2, 3\]"):
        published_quantizer(12).quantize(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="one of 8, 10, 12, 14, 16, got 11"):
        published_quantizer(11)
    with pytest.raises(ValueError, match="numbers >= 2, got"):
        FiniteScalarQuantizer((5, 1))
