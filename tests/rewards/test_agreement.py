from __future__ import annotations

import numpy as np
import pytest
import torch

from rlir_ray.config import RULES
from rlir_ray.idm.base import one_hot_classes
from rlir_ray.idm.vpt_heads import VptHeads
from rlir_ray.rewards.agreement import (
    EXACT,
    AxisMatch,
    agreement,
    class_credit,
    class_weights,
    compare,
    every_rule,
    frame_weights,
)
from rlir_ray.spaces.fields import Axis, Choice, Uniform
from rlir_ray.spaces.layouts import Cells
from rlir_ray.spaces.mineworld import class_cells, token_cells
from rlir_ray.spaces.space import Actions, ActionSpace
from rlir_ray.spaces.vpt import BUTTON_INDEX, BUTTONS, VPT_CAMERA, VPT_SPACE, actions_from_buttons
from tests.second_space import LAYOUT, SPACE

GROUP_NAMES = ("forward_back", "jump", "yaw")
FIELDS = dict(zip(VPT_SPACE.names, VPT_SPACE.fields, strict=True))


def _actions(yaw: tuple[float, ...] = (0.0, 5.85)) -> Actions:
    """Forward held in both frames, jump in the second."""
    buttons = np.zeros((len(yaw), 23), np.bool_)
    buttons[:, 2] = True
    buttons[1:, 3] = True
    return actions_from_buttons(buttons, np.array([[0.0, degrees] for degrees in yaw], np.float32))


def _agreement(tables: dict[str, torch.Tensor], credit: dict[str, torch.Tensor], rule: str, **options) -> torch.Tensor:
    return agreement(tables, credit, rule=rule, fields=FIELDS, **options)


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
    return one_hot_classes(classes, VPT_SPACE.select(GROUP_NAMES))


def test_soft_groups_is_the_mean_probability_of_the_commanded_classes() -> None:
    credit = class_credit(_actions(), GROUP_NAMES)
    reward = _agreement(_probabilities(), credit, rule="groups")
    # (.5 + .9 + .6) / 3 and (.2 + .6 + .3) / 3
    torch.testing.assert_close(reward, torch.tensor([[2 / 3, 1.1 / 3]]))


def test_exact_groups_is_the_share_of_groups_recovered() -> None:
    reward = _agreement(_recovered(), class_credit(_actions(), GROUP_NAMES), rule="groups")
    torch.testing.assert_close(reward, torch.tensor([[1.0, 1 / 3]]))


def test_joint_needs_every_group_and_its_soft_form_is_the_product() -> None:
    credit = class_credit(_actions(), GROUP_NAMES)
    torch.testing.assert_close(_agreement(_recovered(), credit, rule="joint"), torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(_agreement(_probabilities(), credit, rule="joint"), torch.tensor([[0.27, 0.036]]))


def test_fields_compares_each_button_and_axis_by_itself() -> None:
    credit = class_credit(_actions(), GROUP_NAMES)
    # Frame 1: back recovered for forward, so both buttons are wrong; jump is right; yaw is wrong: 1 of 4.
    torch.testing.assert_close(_agreement(_recovered(), credit, rule="fields"), torch.tensor([[1.0, 0.25]]))
    # Frame 0: forward .5, back 1 - .3, jump 1 - .1, yaw .6; frame 1: .2, 1 - .7, .6, .3.
    torch.testing.assert_close(_agreement(_probabilities(), credit, rule="fields"), torch.tensor([[2.7 / 4, 1.4 / 4]]))


def test_a_camera_off_by_one_bin_agrees_within_one() -> None:
    credit = class_credit(_actions(), GROUP_NAMES, AxisMatch(kind="within", tolerance=1))
    assert credit["yaw"].sum(1).tolist() == [3, 3]
    torch.testing.assert_close(_agreement(_recovered(), credit, rule="groups"), torch.tensor([[1.0, 2 / 3]]))


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        # Cut to whole degrees, all below 2 is the null token: of the judge bins 3 to 7, which end at 2.2 degrees.
        (token_cells, {0.0: [3, 4, 5, 6, 7], 1.2: [3, 4, 5, 6, 7], 1.95: [3, 4, 5, 6, 7], 2.1: [7, 8]}),
        # Not cut, the null class ends at 1.054 degrees, as the judge's bin 6 does.
        (class_cells, {0.0: [4, 5, 6], 1.2: [7, 8], 1.95: [7, 8]}),
    ],
)
def test_cell_accepts_what_the_world_model_is_told_alike(cells: Cells, expected: dict[float, list[int]]) -> None:
    for angle, bins in expected.items():
        for sign in (1, -1):
            credit = class_credit(_actions((sign * angle,)), ("yaw",), AxisMatch(kind="cell", cells=cells))
            found = torch.nonzero(credit["yaw"][0]).flatten().tolist()
            assert found == (bins if sign > 0 else sorted(10 - each for each in bins)), (angle, sign)


def test_a_still_camera_obeys_no_turn_that_a_flow_policy_is_told() -> None:
    turns = tuple(sign * angle for sign in (1, -1) for angle in (1.2, 1.35, 1.5, 1.65, 1.8, 1.95))
    commanded, still = _actions(turns), _actions((0.0,) * 12)
    told = AxisMatch(kind="cell", cells=class_cells)
    assert compare(commanded, still, ("yaw",), match=told).tolist() == [0.0] * 12
    assert compare(commanded, commanded, ("yaw",), match=told).tolist() == [1.0] * 12
    # A token policy is told nothing of them.
    assert compare(commanded, still, ("yaw",), match=AxisMatch(kind="cell", cells=token_cells)).tolist() == [1.0] * 12


def test_every_command_accepts_its_own_bin_under_every_camera_rule() -> None:
    angles = tuple(np.linspace(-95, 95, 77))
    own = VPT_CAMERA.bins(np.float32(angles))
    for kind in ("exact", "within", "cell"):
        match = AxisMatch(kind=kind, cells=token_cells)
        credit = class_credit(_actions(angles), ("yaw",), match)["yaw"].numpy()
        assert (credit[np.arange(len(angles)), own] == 1).all()


def test_an_ignored_camera_leaves_the_buttons() -> None:
    ignore = AxisMatch(kind="ignore")
    assert list(class_credit(_actions(), GROUP_NAMES, ignore)) == ["forward_back", "jump"]
    with pytest.raises(ValueError, match=r"reward\.axis=ignore must leave a field to compare, got .*=pitch,yaw; add"):
        class_credit(_actions(), ("pitch", "yaw"), ignore)


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
    credit = class_credit(_actions(), ("jump",))
    reward = _agreement(_probabilities(), credit, rule="groups", weights=weights)
    torch.testing.assert_close(reward, torch.tensor([[0.9 / 1.8, 0.6 / 0.2]]))
    with pytest.raises(ValueError, match=r"reward\.rule=groups"):
        _agreement(_probabilities(), credit, rule="joint", weights=weights)


def test_perfect_recovery_gives_one_under_every_rule() -> None:
    actions = _actions()
    certain = {name: table[None] for name, table in class_credit(actions, VPT_SPACE.names).items()}
    for rule in RULES:
        credit = class_credit(actions, VPT_SPACE.names)
        assert _agreement(certain, credit, rule=rule).tolist() == [[1.0, 1.0]]
        assert compare(actions, actions, VPT_SPACE.names, rule=rule).tolist() == [1.0, 1.0]


def _pressed(*names: str) -> Actions:
    """One frame, contradictions cancelled."""
    buttons = np.zeros((1, len(BUTTONS)), np.bool_)
    buttons[0, [BUTTON_INDEX[name] for name in names]] = True
    return actions_from_buttons(buttons, np.zeros((1, 2), np.float32))


def test_what_no_judge_can_see_never_counts() -> None:
    assert set(VPT_SPACE.names) - set(VptHeads.readable) == {"swapHands", "pickItem", "ESC"}
    for name in ("ESC", "swapHands", "pickItem"):
        for rule in RULES:
            assert compare(_pressed(name), _pressed(), VptHeads.readable, rule=rule).tolist() == [1.0]


def test_contradictions_cancel_on_both_sides_across_groups() -> None:
    # Jump and sneak release each other, and so does the judge that reads both.
    assert compare(_pressed("jump", "sneak"), _pressed(), ("jump", "sprint_sneak")).tolist() == [1.0]
    assert compare(_pressed(), _pressed("jump", "sneak"), ("jump", "sprint_sneak")).tolist() == [1.0]
    assert compare(_pressed("jump"), _pressed("jump", "sneak"), ("jump",)).tolist() == [0.0]


def test_two_actions_are_compared_by_the_named_rule_and_camera() -> None:
    groups = ("forward_back", "jump", "yaw")
    commanded, recovered = _actions((0.0, 5.85)), _actions((0.7, 3.3))
    cell = AxisMatch(kind="cell", cells=token_cells)
    # Yaw bins 5 and 9 commanded, 6 and 8 recovered; the buttons agree: groups 2/3, fields 3/4 (forward, back, jump).
    assert compare(commanded, recovered, groups).tolist() == pytest.approx([2 / 3, 2 / 3])
    assert compare(commanded, recovered, groups, rule="fields").tolist() == pytest.approx([0.75, 0.75])
    assert compare(commanded, recovered, groups, rule="joint", match=AxisMatch(kind="within")).tolist() == [1.0, 1.0]
    assert compare(commanded, recovered, groups, rule="joint", match=cell).tolist() == [1.0, 1.0]
    # One token stands for 4 to 7 degrees, of which the judge reads the first as bin 8, none as bin 7.
    assert compare(commanded, _actions((0.7, 2.0)), groups, rule="joint", match=cell).tolist() == [1.0, 0.0]
    assert compare(commanded, recovered, groups, rule="joint", match=AxisMatch(kind="ignore")).tolist() == [1.0, 1.0]


def test_every_rule_is_logged_with_every_camera_where_one_is_in_use() -> None:
    buttons = {name: table for name, table in _probabilities().items() if name != "yaw"}
    plain = every_rule(buttons, buttons, _actions(), EXACT)
    assert sorted(plain) == ["fields", "groups", "joint", "soft"]
    found = every_rule(_recovered(), _probabilities(), _actions(), EXACT)
    assert len(found) == 4 + 3 * 4
    # Frame 1 reads back for forward and yaw one bin off: of its three groups 1 agree, with a tolerance 2.
    assert found["groups"] == pytest.approx((1 + 1 / 3) / 2) and found["joint"] == 0.5
    assert found["groups/within"] == pytest.approx((1 + 2 / 3) / 2)
    assert found["groups/ignore"] == pytest.approx((1 + 1 / 2) / 2)


# ---------------------------------------------------------------------------------------------------------------------
# Graded axes, and other spaces than VPT's

# Four bins with the centres -7.5, -2.5, 2.5, 7.5.
TURN = Axis(name="turn", low=-10, high=10, unit="degrees", quantizer=Uniform(num_bins=4), is_clipped=True)
SIDE = Choice(name="side", classes=("left", "ahead", "right"), null_class=None)
STEERED = ActionSpace((SIDE, TURN))


def _steered(*rows: tuple[float, float]) -> Actions:
    return Actions(STEERED, np.array(rows, np.float32))


def test_smooth_credit_falls_with_the_error_by_hand() -> None:
    # A scale of 0.25 of the range 20 is 5 degrees. A command of 2.5 is 10, 5, 0, 5 degrees from the centres.
    match = AxisMatch(kind="smooth", scale=0.25)
    credit = match.credit(TURN, np.array([2.5, 40], np.float32))
    np.testing.assert_allclose(credit[0], np.exp([-2, -1, 0, -1]), rtol=1e-6)
    # A command beyond the range counts as its end, 10: 17.5, 12.5, 7.5 and 2.5 degrees.
    np.testing.assert_allclose(credit[1], np.exp([-3.5, -2.5, -1.5, -0.5]), rtol=1e-6)
    assert credit.dtype == np.float32


def test_smooth_agreement_of_a_distribution_is_the_expected_credit() -> None:
    credit = class_credit(_steered((2, 2.5)), ("turn",), AxisMatch(kind="smooth", scale=0.25))
    soft = {"turn": torch.tensor([[[0.0, 0.5, 0.25, 0.25]]])}
    # .5 e^-1 + .25 + .25 e^-1
    expected = 0.75 * np.exp(-1) + 0.25
    for rule in RULES:
        found = agreement(soft, credit, rule=rule, fields={"turn": TURN})
        torch.testing.assert_close(found, torch.tensor([[expected]], dtype=torch.float32))


def test_a_tolerance_in_the_unit_of_the_axis_measures_from_the_command() -> None:
    for values, tolerance, expected in (
        # 4.9 lies in bin 2: the centre 7.5 is 2.6 away, the bin's own 2.4.
        (4.9, 2.5, [0, 0, 1, 0]),
        (4.9, 2.6001, [0, 0, 1, 1]),
        (4.9, 7.4001, [0, 1, 1, 1]),
        # Zero is at the border of two bins, 2.5 from both centres.
        (0, 2.5, [0, 1, 1, 0]),
    ):
        match = AxisMatch(kind="within", tolerance=tolerance, in_bins=False)
        assert match.credit(TURN, np.array([values], np.float32)).tolist() == [expected], (values, tolerance)
    in_bins = AxisMatch(kind="within", tolerance=1)
    assert in_bins.credit(TURN, np.array([4.9], np.float32)).tolist() == [[0, 1, 1, 1]]


def test_a_choice_without_an_idle_class_counts_each_alternative() -> None:
    commanded, recovered = _steered((0, 0), (1, 0)), _steered((2, 0), (1, 0))
    # Frame 0: left is not taken and right is, ahead is left alone as commanded; with the axis 2 of 4 agree.
    assert compare(commanded, recovered, ("side", "turn"), rule="fields").tolist() == [0.5, 1.0]
    assert compare(commanded, recovered, ("side",), rule="fields").tolist() == pytest.approx([1 / 3, 1])
    soft = {"side": torch.tensor([[[0.2, 0.3, 0.5], [0.2, 0.3, 0.5]]])}
    found = agreement(soft, class_credit(commanded, ("side",)), rule="fields", fields={"side": SIDE})
    # Frame 0: .2, 1 - .3, 1 - .5; frame 1: 1 - .2, .3, 1 - .5.
    torch.testing.assert_close(found, torch.tensor([[1.4 / 3, 1.6 / 3]]))


def test_credit_in_another_space_and_its_layouts_cells() -> None:
    # Gears reverse, neutral, forward; nine bins of 2/9 from -1 on.
    actions = Actions(SPACE, np.array([[2, 0.5], [1, -1]], np.float32))
    for match in (EXACT, AxisMatch(kind="cell", cells=LAYOUT.token_cells), AxisMatch(kind="cell")):
        credit = class_credit(actions, SPACE.names, match)
        assert credit["gear"].tolist() == [[0, 0, 1], [0, 1, 0]]
        assert credit["steer"].tolist() == [np.eye(9)[6].tolist(), np.eye(9)[0].tolist()]
    # Rule fields: neutral does nothing, so reverse and forward are the alternatives, besides the axis.
    idle = SPACE.nothing(2)
    assert compare(actions, idle, SPACE.names, rule="fields").tolist() == pytest.approx([1 / 3, 2 / 3])


def test_every_rule_of_axes_alone_is_logged_without_ignoring_them() -> None:
    tables = one_hot_classes(torch.tensor([[[2]]]), (TURN,))
    found = every_rule(tables, tables, _steered((0, 2.5)), AxisMatch(kind="smooth"))
    assert set(found) == {
        *("groups", "joint", "fields", "soft"),
        *(f"{rule}/{kind}" for rule in RULES for kind in ("exact", "within", "cell")),
    }
    assert found["groups"] == found["soft"] == 1
