from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch

from rlir_ray.transfer import weights
from rlir_ray.transfer.weights import Weights, checksum, load_weights, weights_of


def linear(seed: int, width: int = 3) -> torch.nn.Linear:
    torch.manual_seed(seed)
    return torch.nn.Linear(width, 2)


def test_loaded_weights_have_the_published_checksum() -> None:
    published = read_only(weights_of(linear(0)))
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


def read_only(weights: Weights) -> Weights:
    """As the object store hands them over."""
    for array in weights.values():
        array.flags.writeable = False
    return weights


def test_a_module_holds_the_very_arrays_that_were_proven() -> None:
    published, module = read_only(weights_of(linear(1))), linear(0)
    load_weights(module, published, checksum(published))
    for name, value in module.state_dict().items():
        assert value.numpy().__array_interface__["data"][0] == published[name].__array_interface__["data"][0]
    output = module(torch.ones(3)).detach().numpy()
    np.testing.assert_allclose(output, published["weight"].sum(1) + published["bias"], rtol=1e-6)


def test_altered_bytes_are_refused_and_the_old_weights_stay() -> None:
    module, published = linear(0), weights_of(linear(1))
    before = checksum(weights_of(module))
    right = checksum(published)
    published["weight"].view(np.uint8)[1, 5] ^= 1
    with pytest.raises(ValueError, match=f"must have the published checksum {right}, got .*; publish them again"):
        load_weights(module, published, right)
    assert checksum(weights_of(module)) == before


def test_a_bfloat16_reader_proves_what_it_received_and_rounds_it() -> None:
    module, published = linear(0).to(torch.bfloat16), weights_of(linear(1))
    load_weights(module, published, checksum(published))
    assert torch.equal(module.weight, torch.from_numpy(published["weight"]).to(torch.bfloat16))
    with pytest.raises(ValueError, match="published checksum"):
        load_weights(module, published, "0" * 32)


def test_received_tensors_have_the_checksum_of_the_arrays_they_came_from() -> None:
    published = weights_of(linear(1)) | {"count": np.array(3)}
    assert checksum({name: torch.tensor(array) for name, array in published.items()}) == checksum(published)


@pytest.mark.parametrize("num_swapped", [0, 1])
def test_an_interrupted_load_leaves_no_half_new_module(num_swapped: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module, published = linear(0), weights_of(linear(1))
    before = checksum(weights_of(module))
    swap, calls = weights._swap, []

    def interrupted(own: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> None:
        calls.append(values)
        if len(calls) == 1:
            swap({name: own[name] for name in list(own)[:num_swapped]}, values)
            raise KeyboardInterrupt
        swap(own, values)

    monkeypatch.setattr(weights, "_swap", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_weights(module, published, checksum(published))
    assert checksum(weights_of(module)) == before


def test_what_a_module_held_before_can_be_loaded_again() -> None:
    module = linear(0)
    before = checksum(weights_of(module))
    held = load_weights(module, weights_of(linear(1)))
    assert checksum(weights_of(module)) != before
    load_weights(module, held)
    assert checksum(weights_of(module)) == before


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
