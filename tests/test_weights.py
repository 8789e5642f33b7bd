from __future__ import annotations

import numpy as np
import pytest
import torch

from rlir_ray.weights import checksum, load_weights, weights_of


def linear(seed: int, width: int = 3) -> torch.nn.Linear:
    torch.manual_seed(seed)
    return torch.nn.Linear(width, 2)


def test_loaded_weights_have_the_published_checksum() -> None:
    published = weights_of(linear(0))
    for array in published.values():
        array.flags.writeable = False  # as the object store hands them over
    reader = linear(1)
    assert checksum(weights_of(reader)) != checksum(published)
    load_weights(reader, published)
    assert checksum(weights_of(reader)) == checksum(published)


def test_published_weights_do_not_follow_the_optimiser() -> None:
    module = linear(0)
    published = weights_of(module)
    before = checksum(published)
    with torch.no_grad():
        module.weight.add_(1)
    assert checksum(published) == before != checksum(weights_of(module))


def test_bfloat16_weights_reach_a_float32_reader_unchanged() -> None:
    publisher, reader = linear(0).to(torch.bfloat16), linear(1)
    load_weights(reader, weights_of(publisher))
    assert torch.equal(reader.weight, publisher.weight.float())
    assert checksum(weights_of(reader)) == checksum(weights_of(publisher))


def test_checksum_reads_names_and_shapes_as_well_as_bytes() -> None:
    array = np.arange(6, dtype=np.float32)
    variants = [array, array.reshape(2, 3), array.view(np.int32), array[::-1]]
    different = [{"b": array}, *({"a": variant} for variant in variants)]
    assert len({checksum(weights) for weights in different}) == 5


def test_weights_that_do_not_fit_are_refused_and_change_nothing() -> None:
    module = linear(0)
    before = checksum(weights_of(module))
    good = weights_of(linear(1))
    with pytest.raises(ValueError, match="'bias'"):
        load_weights(module, {"weight": good["weight"]})
    with pytest.raises(ValueError, match=r"'weight' must be \(2, 3\), got \(2, 4\)"):
        load_weights(module, good | {"weight": np.zeros((2, 4), np.float32)})
    assert checksum(weights_of(module)) == before
