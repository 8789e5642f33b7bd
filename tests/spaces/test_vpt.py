"""VPT's action space against the published quantisers and token ids."""

import json
from pathlib import Path

import numpy as np
import pytest

from rlir_ray.spaces.mineworld import ACTION_CLASS_COUNTS, MINEWORLD_CAMERA, action_classes, action_tokens
from rlir_ray.spaces.space import Actions
from rlir_ray.spaces.vpt import (
    BUTTON_INDEX,
    BUTTONS,
    VPT_CAMERA,
    VPT_SPACE,
    actions_from_buttons,
    actions_from_events,
    buttons_of,
    camera_of,
    cancel_contradictions,
)

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = json.loads((GOLDEN / "mineworld_actions.json").read_text())["cases"]
QUANTIZERS = json.loads((GOLDEN / "camera_quantizers.json").read_text())


def test_tokens_equal_the_published_ones_in_all_64_cases():
    tokens = action_tokens(actions_from_events([case["event"] for case in CASES]))
    np.testing.assert_array_equal(tokens, [case["tokens"] for case in CASES])


def test_factored_actions_equal_the_published_ones():
    actions = actions_from_events([case["event"] for case in CASES])
    buttons, camera = buttons_of(actions.classes), camera_of(actions)
    for frame, case in enumerate(CASES):
        # MineWorld keeps all slots that are held; a choice has one class, the first of them.
        wanted = {name: case["action"][name] for name in BUTTONS}
        held = [name for name in BUTTONS if name.startswith("hotbar") and wanted[name]]
        wanted |= dict.fromkeys(held[1:], 0)
        assert {name: int(buttons[frame, BUTTON_INDEX[name]]) for name in BUTTONS} == wanted
        np.testing.assert_array_equal(np.trunc(camera[frame]), case["action"]["camera"])


@pytest.mark.parametrize(
    ("quantizer", "bins", "centers"),
    [
        (MINEWORLD_CAMERA, "mineworld_bins(maxval=90,binsize=9,mu=11.4887)", "mineworld_centers"),
        (VPT_CAMERA, "vpt_bins(maxval=10,binsize=2,mu=10)", "vpt_centers"),
    ],
)
def test_camera_bins_and_centres_equal_the_published_ones(quantizer, bins, centers):
    np.testing.assert_array_equal(quantizer.bins(QUANTIZERS["degrees"]), QUANTIZERS[bins])
    np.testing.assert_allclose(quantizer.centres(np.arange(quantizer.num_classes)), QUANTIZERS[centers], atol=1e-9)


def test_contradicting_buttons_cancel():
    buttons = np.zeros((3, len(BUTTONS)), bool)
    buttons[0, [BUTTON_INDEX["forward"], BUTTON_INDEX["back"], BUTTON_INDEX["jump"]]] = True
    buttons[1, [BUTTON_INDEX["attack"], BUTTON_INDEX["use"]]] = True
    buttons[2, [BUTTON_INDEX["sprint"], BUTTON_INDEX["sneak"], BUTTON_INDEX["jump"]]] = True
    kept = cancel_contradictions(buttons)
    assert [BUTTONS[index] for index in np.flatnonzero(kept[0])] == ["jump"]
    assert not kept[1].any()
    # Jump and sneak cancel first, so sprint has nothing left that contradicts it.
    assert [BUTTONS[index] for index in np.flatnonzero(kept[2])] == ["sprint"]


def test_classes_name_the_member_that_is_pressed():
    keys = [["w"], ["s"], [], ["w", "s"], ["space"]]
    events = [{"keyboard": {"keys": [f"key.keyboard.{key}" for key in held]}} for held in keys]
    events[2]["mouse"] = {"dx": 67, "buttons": [0]}
    classes = actions_from_events(events).classes_of(("forward_back", "jump", "use_attack", "yaw"))
    np.testing.assert_array_equal(classes, [[1, 0, 0, 5], [2, 0, 0, 5], [0, 0, 2, 10], [0, 0, 0, 5], [0, 1, 0, 5]])


def test_actions_of_the_wrong_shape_are_refused():
    with pytest.raises(ValueError, match="from_events"):
        actions_from_buttons(np.zeros((2, 5), bool), np.zeros((2, 2), np.float32))
    with pytest.raises(ValueError, match=r"need values \[F, 13\], got \[2, 7\]"):
        Actions(VPT_SPACE, np.zeros((2, 7), np.float32))


def test_exclusive_classes_of_a_frame_by_hand():
    pressed = ["key.keyboard.w", "key.keyboard.space", "key.keyboard.3", "key.keyboard.left.control"]
    event = {"keyboard": {"keys": pressed}, "mouse": {"dx": 100, "dy": 0, "buttons": [0]}}
    # 100 pixels are 15 degrees, nearest to the centre of MineWorld's bin 14 (13.67). Hotbar 3, forward, neither left
    # nor right, sprint, attack (the second of use/attack), jump, neither drop nor pick.
    assert action_classes(actions_from_events([event])).tolist() == [[10, 14, 3, 1, 0, 1, 2, 1, 0]]
    assert action_classes(VPT_SPACE.nothing(1)).tolist() == [[10, 10, 0, 0, 0, 0, 0, 0, 0]]
    assert ACTION_CLASS_COUNTS == (21, 21, 10, 3, 3, 3, 3, 2, 3)


def test_every_class_of_a_flow_model_is_within_its_count():
    buttons = np.random.default_rng(0).random((200, 23)) < 0.3
    actions = actions_from_buttons(buttons, np.full((200, 2), 400, np.float32))
    classes = action_classes(actions)
    assert (classes.max(0) < ACTION_CLASS_COUNTS).all() and classes.min() >= 0 and (classes[:, :2] == 20).all()
