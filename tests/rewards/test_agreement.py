from __future__ import annotations

import numpy as np
import pytest
import torch

from rlir_ray.config import RULES
from rlir_ray.idm.decoding import one_hot_classes
from rlir_ray.rewards.agreement import accepted_classes, agreement, class_weights, compare, every_rule, frame_weights
from rlir_ray.spaces.actions import BUTTON_INDEX, BUTTONS, GROUPS, VPT_CAMERA, Actions
from rlir_ray.spaces.mineworld import flow_camera_bins, token_camera_bins

GROUP_NAMES = ("forward_back", "jump", "yaw")


def _actions(yaw: tuple[float, ...] = (0.0, 5.85)) -> Actions:
    """Forward held in both frames, jump in the second."""
    buttons = np.zeros((len(yaw), 23), np.bool_)
    buttons[:, 2] = True
    buttons[1:, 3] = True
    return Actions(buttons, np.array([[0.0, degrees] for degrees in yaw], np.float32))


def _probabilities() -> dict[str, torch.Tensor]:
    """One clip of two frames; classes of forward_back are none, forward, back."""
    yaw = torch.zeros(1, 2, 11)
    yaw[0, 0, 5], yaw[0, 0, 6] = 0.6, 0.4  # commanded: bin 5
    yaw[0, 1, 9], yaw[0, 1, 8] = 0.3, 0.7  # commanded: bin 9
    return {
        "forward_back": torch.tensor([[[0.2, 0.5, 0.3], [0.1, 0.2, 0.7]]]),
        "jump": torch.tensor([[[0.9, 0.1], [0.4, 0.6]]]),
        "yaw": yaw,
    }


def _recovered() -> dict[str, torch.Tensor]:
    """The most probable classes, as the tables of an exact comparison."""
    classes = torch.stack([table.argmax(-1) for table in _probabilities().values()], -1)
    return one_hot_classes(classes, GROUP_NAMES)


def test_soft_groups_is_the_mean_probability_of_the_commanded_classes() -> None:
    accepted = accepted_classes(_actions(), GROUP_NAMES)
    reward = agreement(_probabilities(), accepted, rule="groups")
    # (.5 + .9 + .6) / 3 and (.2 + .6 + .3) / 3
    torch.testing.assert_close(reward, torch.tensor([[2 / 3, 1.1 / 3]]))


def test_exact_groups_is_the_share_of_groups_recovered() -> None:
    reward = agreement(_recovered(), accepted_classes(_actions(), GROUP_NAMES), rule="groups")
    torch.testing.assert_close(reward, torch.tensor([[1.0, 1 / 3]]))


def test_joint_needs_every_group_and_its_soft_form_is_the_product() -> None:
    accepted = accepted_classes(_actions(), GROUP_NAMES)
    torch.testing.assert_close(agreement(_recovered(), accepted, rule="joint"), torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(agreement(_probabilities(), accepted, rule="joint"), torch.tensor([[0.27, 0.036]]))


def test_fields_compares_each_button_and_axis_by_itself() -> None:
    accepted = accepted_classes(_actions(), GROUP_NAMES)
    # Frame 1: back recovered for forward, so both buttons are wrong; jump is right; yaw is wrong: 1 of 4.
    torch.testing.assert_close(agreement(_recovered(), accepted, rule="fields"), torch.tensor([[1.0, 0.25]]))
    # Frame 0: forward .5, back 1 - .3, jump 1 - .1, yaw .6; frame 1: .2, 1 - .7, .6, .3.
    torch.testing.assert_close(agreement(_probabilities(), accepted, rule="fields"), torch.tensor([[2.7 / 4, 1.4 / 4]]))


def test_a_camera_off_by_one_bin_agrees_within_one() -> None:
    accepted = accepted_classes(_actions(), GROUP_NAMES, camera="within", tolerance=1)
    assert accepted["yaw"].sum(1).tolist() == [3, 3]
    torch.testing.assert_close(agreement(_recovered(), accepted, rule="groups"), torch.tensor([[1.0, 2 / 3]]))


@pytest.mark.parametrize(
    ("camera_bins", "expected"),
    [
        # Cut to whole degrees, all below 2 is the null token: of the judge bins 3 to 7, which end at 2.2 degrees.
        (token_camera_bins, {0.0: [3, 4, 5, 6, 7], 1.2: [3, 4, 5, 6, 7], 1.95: [3, 4, 5, 6, 7], 2.1: [7, 8]}),
        # Not cut, the null class ends at 1.054 degrees, as the judge's bin 6 does.
        (flow_camera_bins, {0.0: [4, 5, 6], 1.2: [7, 8], 1.95: [7, 8]}),
    ],
)
def test_cell_accepts_what_the_world_model_is_told_alike(camera_bins, expected) -> None:
    for angle, bins in expected.items():
        for sign in (1, -1):
            accepted = accepted_classes(_actions((sign * angle,)), ("yaw",), camera="cell", camera_bins=camera_bins)
            found = torch.nonzero(accepted["yaw"][0]).flatten().tolist()
            assert found == (bins if sign > 0 else sorted(10 - each for each in bins)), (angle, sign)


def test_a_still_camera_obeys_no_turn_that_a_flow_policy_is_told() -> None:
    turns = tuple(sign * angle for sign in (1, -1) for angle in (1.2, 1.35, 1.5, 1.65, 1.8, 1.95))
    commanded, still = _actions(turns), _actions((0.0,) * 12)
    told = {"camera_bins": flow_camera_bins}
    assert compare(commanded, still, ("yaw",), camera="cell", **told).tolist() == [0.0] * 12
    assert compare(commanded, commanded, ("yaw",), camera="cell", **told).tolist() == [1.0] * 12
    # A token policy is told nothing of them.
    assert compare(commanded, still, ("yaw",), camera="cell").tolist() == [1.0] * 12


def test_every_command_accepts_its_own_bin_under_every_camera_rule() -> None:
    angles = tuple(np.linspace(-95, 95, 77))
    own = VPT_CAMERA.bins(np.float32(angles))
    for camera in ("exact", "within", "cell"):
        accepted = accepted_classes(_actions(angles), ("yaw",), camera=camera)["yaw"].numpy()
        assert accepted[np.arange(len(angles)), own].all()


def test_an_ignored_camera_leaves_the_buttons() -> None:
    assert list(accepted_classes(_actions(), GROUP_NAMES, camera="ignore")) == ["forward_back", "jump"]
    with pytest.raises(ValueError, match="leaves no action group"):
        accepted_classes(_actions(), ("pitch", "yaw"), camera="ignore")


@pytest.mark.parametrize("share", [[0.9, 0.1], [0.5, 0.3, 0.2], [0.998, 0.001, 0.001], [0.7, 0.3, 0.0]])
def test_class_weights_keep_the_mean_reward_and_favour_rare_classes(share: list[float]) -> None:
    weights = class_weights(share)
    np.testing.assert_allclose((weights * share).sum(), 1, rtol=1e-6)
    assert (np.diff(weights[np.argsort(share)]) <= 0).all()
    assert weights.max() / weights.min() <= 5 / 0.2


def test_class_weights_of_an_unseen_table_are_refused() -> None:
    with pytest.raises(ValueError, match="class shares"):
        class_weights([0.0, 0.0])


def test_weights_scale_a_groups_agreement_frame_by_frame() -> None:
    # Shares .9 and .1: 1 / (2 * .9) and 1 / (2 * .1), whose mean under the shares is 1 already.
    weights = frame_weights(_actions(), ("jump",), {"jump": class_weights([0.9, 0.1])})
    accepted = accepted_classes(_actions(), ("jump",))
    reward = agreement(_probabilities(), accepted, rule="groups", weights=weights)
    torch.testing.assert_close(reward, torch.tensor([[0.9 / 1.8, 0.6 / 0.2]]))
    with pytest.raises(ValueError, match=r"reward\.rule=groups"):
        agreement(_probabilities(), accepted, rule="joint", weights=weights)


def test_perfect_recovery_gives_one_under_every_rule() -> None:
    actions = _actions()
    certain = {name: table.float()[None] for name, table in accepted_classes(actions, tuple(GROUPS)).items()}
    for rule in RULES:
        accepted = accepted_classes(actions, tuple(GROUPS))
        assert agreement(certain, accepted, rule=rule).tolist() == [[1.0, 1.0]]
        assert compare(actions, actions, tuple(GROUPS), rule=rule).tolist() == [1.0, 1.0]


def _pressed(*names: str) -> Actions:
    """One frame, contradictions cancelled."""
    buttons = np.zeros((1, len(BUTTONS)), np.bool_)
    buttons[0, [BUTTON_INDEX[name] for name in names]] = True
    return Actions.from_buttons(buttons, np.zeros((1, 2), np.float32))


def test_what_no_judge_can_see_never_counts() -> None:
    for name in ("ESC", "swapHands", "pickItem"):
        for rule in RULES:
            assert compare(_pressed(name), _pressed(), tuple(GROUPS), rule=rule).tolist() == [1.0]


def test_contradictions_cancel_on_both_sides_across_groups() -> None:
    # Jump and sneak release each other, and so does the judge that reads both.
    assert compare(_pressed("jump", "sneak"), _pressed(), ("jump", "sprint_sneak")).tolist() == [1.0]
    assert compare(_pressed(), _pressed("jump", "sneak"), ("jump", "sprint_sneak")).tolist() == [1.0]
    assert compare(_pressed("jump"), _pressed("jump", "sneak"), ("jump",)).tolist() == [0.0]


def test_two_actions_are_compared_by_the_named_rule_and_camera() -> None:
    groups = ("forward_back", "jump", "yaw")
    commanded, recovered = _actions((0.0, 5.85)), _actions((0.7, 3.3))
    # Yaw bins 5 and 9 commanded, 6 and 8 recovered; the buttons agree: groups 2/3, fields 3/4 (forward, back, jump).
    assert compare(commanded, recovered, groups).tolist() == pytest.approx([2 / 3, 2 / 3])
    assert compare(commanded, recovered, groups, rule="fields").tolist() == pytest.approx([0.75, 0.75])
    assert compare(commanded, recovered, groups, rule="joint", camera="within").tolist() == [1.0, 1.0]
    assert compare(commanded, recovered, groups, rule="joint", camera="cell").tolist() == [1.0, 1.0]
    # One token stands for 4 to 7 degrees, of which the judge reads the first as bin 8, none as bin 7.
    assert compare(commanded, _actions((0.7, 2.0)), groups, rule="joint", camera="cell").tolist() == [1.0, 0.0]
    assert compare(commanded, recovered, groups, rule="joint", camera="ignore").tolist() == [1.0, 1.0]


def test_every_rule_is_logged_with_every_camera_where_one_is_in_use() -> None:
    buttons = {name: table for name, table in _probabilities().items() if name != "yaw"}
    plain = every_rule(buttons, buttons, _actions(), camera="exact", tolerance=1)
    assert sorted(plain) == ["fields", "groups", "joint", "soft"]
    found = every_rule(_recovered(), _probabilities(), _actions(), camera="exact", tolerance=1)
    assert len(found) == 4 + 3 * 3
    # Frame 1 reads back for forward and yaw one bin off: of its three groups 1 agree, with a tolerance 2.
    assert found["groups"] == pytest.approx((1 + 1 / 3) / 2) and found["joint"] == 0.5
    assert found["groups/within"] == pytest.approx((1 + 2 / 3) / 2)
    assert found["groups/ignore"] == pytest.approx((1 + 1 / 2) / 2)
