from __future__ import annotations

import numpy as np
import pytest
import torch

from rlir_ray.idm.base import one_hot_classes, stack_classes
from rlir_ray.idm.vpt_heads import VptHeads, group_probabilities, read_heads, recovered_classes
from rlir_ray.spaces.vpt import BUTTON_INDEX, IDM_BUTTONS, VPT_SPACE

NAMES = VPT_SPACE.names


def _logits(yaw_bin: int = 7, **pressed: float) -> dict[str, torch.Tensor]:
    """Heads of one frame: the probability of each named button, .01 for the others."""
    table = torch.full((20,), 0.01)
    for name, probability in pressed.items():
        table[IDM_BUTTONS.index(name)] = probability
    camera = torch.zeros(1, 1, 2, 11)
    camera[..., 1, yaw_bin] = 5.0
    return {"buttons": torch.stack([1 - table, table], -1).log()[None, None], "camera": camera}


def test_the_probability_of_a_class_is_that_of_all_presses_that_lead_to_it() -> None:
    found = group_probabilities(_logits(forward=0.8, back=0.3), ("forward_back", "jump", "yaw"))
    # forward .8 * .7 = .56, back .3 * .2 = .06, the rest .38; jump unless sneak cancels it: .01 * .99.
    torch.testing.assert_close(found["forward_back"][0, 0], torch.tensor([0.38, 0.56, 0.06]))
    torch.testing.assert_close(found["jump"][0, 0], torch.tensor([0.9901, 0.0099]))
    assert found["yaw"][0, 0].argmax() == 7


def test_sneak_counts_only_where_jump_has_not_cancelled_it() -> None:
    table = group_probabilities(_logits(jump=0.5, sneak=0.6, sprint=0.2), ("sprint_sneak",))["sprint_sneak"][0, 0]
    # Sneak left .6 * .5 = .3: sprint .2 * .7 = .14, sneak .3 * .8 = .24, the rest .62.
    torch.testing.assert_close(table, torch.tensor([0.62, 0.14, 0.24]))


def test_of_several_hotbar_slots_the_first_counts() -> None:
    logits = _logits(**{"hotbar.2": 0.5, "hotbar.5": 0.9})
    table = group_probabilities(logits, ("hotbar",))["hotbar"][0, 0]
    np.testing.assert_allclose(table[2], 0.99 * 0.5, rtol=1e-5)
    np.testing.assert_allclose(table[5], 0.99 * 0.5 * 0.99**2 * 0.9, rtol=1e-5)
    assert recovered_classes(_logits(**{"hotbar.2": 0.6, "hotbar.5": 0.9}), ("hotbar",)).item() == 2


def test_group_probabilities_sum_to_one() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = {
        "buttons": 3 * torch.randn(2, 5, 20, 2, generator=generator),
        "camera": torch.randn(2, 5, 2, 11, generator=generator),
    }
    for field, table in zip(VPT_SPACE.fields, group_probabilities(logits, NAMES).values(), strict=True):
        assert table.shape == (2, 5, field.num_classes)
        torch.testing.assert_close(table.sum(-1), torch.ones(2, 5))


def test_certain_heads_have_certain_probabilities_of_the_class_that_is_read() -> None:
    generator = torch.Generator().manual_seed(0)
    pressed = torch.rand(3, 4, 20, generator=generator) < 0.4
    bins = torch.randint(0, 11, (3, 4, 2), generator=generator)
    logits = {
        "buttons": 50.0 * torch.stack([~pressed, pressed], -1),
        "camera": 50.0 * torch.nn.functional.one_hot(bins, 11),
    }
    classes = recovered_classes(logits, NAMES)
    assert (
        classes.shape == (3, 4, len(NAMES))
        and (pressed[..., BUTTON_INDEX["jump"]] & pressed[..., BUTTON_INDEX["sneak"]]).any()
    )
    for name, table in group_probabilities(logits, NAMES).items():
        torch.testing.assert_close(table, one_hot_classes(classes, VPT_SPACE.fields)[name], atol=1e-6, rtol=0)


def test_both_of_a_pair_read_at_once_are_none() -> None:
    # Each is likelier than not, so the heads say both: nothing, as for a command that holds both.
    assert recovered_classes(_logits(forward=0.6, back=0.55), ("forward_back", "yaw")).tolist() == [[[0, 7]]]
    assert recovered_classes(_logits(forward=0.6, back=0.45), ("forward_back", "yaw")).tolist() == [[[1, 7]]]


def test_a_reading_holds_both_views_of_the_heads() -> None:
    logits = _logits(forward=0.8, jump=0.9)
    reading = read_heads(logits, ("jump", "yaw"))
    assert stack_classes(reading, ("yaw", "jump")).tolist() == [[[7, 1]]]
    expected = group_probabilities(logits, ("jump", "yaw"))
    assert all(torch.equal(table, expected[name]) for name, table in reading.probabilities.items())
    with pytest.raises(ValueError, match="a field must be of the action space, got jmup; name some of forward_back"):
        read_heads(logits, ("jmup",))


def test_buttons_without_a_head_are_read_as_released() -> None:
    assert VptHeads.readable == NAMES[:8] + NAMES[11:]
    reading = read_heads(_logits(), ("swapHands",))
    assert reading.classes["swapHands"].tolist() == [[0]] and reading.probabilities["swapHands"].tolist() == [[[1, 0]]]


def test_the_heads_that_decide_a_field_are_its_buttons_and_axes() -> None:
    used = VptHeads(4, 1.0).used(("forward_back", "yaw"))
    assert np.flatnonzero(used["buttons"]).tolist() == [BUTTON_INDEX["back"], BUTTON_INDEX["forward"]]
    assert used["camera"].tolist() == [False, True]
