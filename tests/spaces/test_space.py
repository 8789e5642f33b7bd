"""Action spaces of any world: fields, quantisers, JSON, differences, and Gymnasium's spaces."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces

from rlir_ray.spaces.fields import Axis, Choice, MuLaw, Uniform
from rlir_ray.spaces.gymnasium import from_row, to_row
from rlir_ray.spaces.space import Actions, ActionSpace

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "camera_quantizers.json").read_text(encoding="utf-8"))
YAW = Axis(name="yaw", low=-10, high=10, unit="degrees", quantizer=MuLaw(num_bins=11, mu=10), is_clipped=True)
JUMP = Choice(name="jump", classes=("released", "pressed"))
SPEED = Axis(name="speed", low=0, high=3, unit="m/s", quantizer=Uniform(num_bins=3))
SPACE = ActionSpace((JUMP, YAW, SPEED))


def test_uniform_bins_have_equal_widths_and_centres_in_their_middles() -> None:
    # Bins [0, 1), [1, 2), [2, 3]: the end of the range belongs to the last bin.
    assert SPEED.bins([0, 0.99, 1, 2.5, 3]).tolist() == [0, 0, 1, 2, 2]
    assert SPEED.centres([0, 1, 2]).tolist() == [0.5, 1.5, 2.5]
    assert SPEED.null_class == 0 and Axis(name="x", low=1, high=2, quantizer=Uniform(num_bins=2)).null_class is None


@pytest.mark.parametrize(
    ("project", "half", "num_bins", "mu", "bins"),
    [
        ("vpt", 10, 11, 10, "vpt_bins(maxval=10,binsize=2,mu=10)"),
        ("mineworld", 90, 21, 11.4887, "mineworld_bins(maxval=90,binsize=9,mu=11.4887)"),
    ],
)
def test_mu_law_is_the_published_camera_quantiser(project: str, half: int, num_bins: int, mu: float, bins: str) -> None:
    axis = Axis(name="yaw", low=-half, high=half, quantizer=MuLaw(num_bins=num_bins, mu=mu), is_clipped=True)
    assert axis.bins(GOLDEN["degrees"]).tolist() == GOLDEN[bins]
    np.testing.assert_allclose(axis.centres(np.arange(num_bins)), GOLDEN[f"{project}_centers"], atol=1e-9)
    assert axis.null_class == num_bins // 2


def test_mu_law_is_oasis_quantiser() -> None:
    axis = Axis(name="x", low=-20, high=20, quantizer=MuLaw(num_bins=81, mu=2.7), is_clipped=True)
    # WORLDS.md: mouse pixels of .15 degrees.
    pixels = np.array([1, 2, 3, 4, 5, 10, 20, 40, 80])
    assert axis.bins(pixels * 0.15).tolist() == [41, 41, 42, 42, 43, 46, 50, 58, 69]


def test_json_gives_the_space_back() -> None:
    text = SPACE.to_json()
    assert ActionSpace.from_json(text) == SPACE and len(text.splitlines()) == 5
    assert [(field.name, field.kind, field.num_classes) for field in SPACE.fields] == [
        ("jump", "choice", 2),
        ("yaw", "axis", 11),
        ("speed", "axis", 3),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda fields: fields[0].update(kind="button"), "fields.0: .*'button'"),
        (lambda fields: fields[1].update(low=11), "low of yaw must be below its high=10, got 11"),
        (lambda fields: fields[1]["quantizer"].update(num_bins=10), "num_bins must be odd for mu_law, got 10; give 11"),
        (lambda fields: fields[0].update(name="yaw"), "must be unique, got yaw twice"),
        (lambda fields: fields[0].update(null_class=2), "null_class of jump must be below its 2 classes, got 2"),
        (lambda fields: fields.clear(), "at least 1 item"),
        (lambda fields: fields[2].update(colour="red"), "fields.2.*colour"),
    ],
)
def test_json_that_is_no_space_is_refused_in_one_line_that_names_the_entry(change, message: str) -> None:
    content = json.loads(SPACE.to_json())
    change(content["fields"])
    with pytest.raises(ValueError, match=message) as refusal:
        ActionSpace.from_json(json.dumps(content))
    assert "\n" not in str(refusal.value)
    with pytest.raises(ValueError, match=r"action_space.json must hold an action space, got an error at the file"):
        ActionSpace.from_json("{")


def test_difference_of_two_spaces_is_told_field_by_field() -> None:
    other = ActionSpace((JUMP, Axis(name="yaw", low=-20, high=10, quantizer=Uniform(num_bins=5))))
    assert SPACE.differences(SPACE) == []
    assert SPACE.differences(other) == [
        "field 1: yaw, an axis from -10 to 10 degrees in 11 mu_law bins here, yaw, an axis from -20 to 10 in 5 "
        "uniform bins there",
        "field 2: speed, an axis from 0 to 3 m/s in 3 uniform bins here, none there",
    ]


def test_classes_of_a_clip() -> None:
    actions = Actions(SPACE, np.array([[0, 0, 0.5], [1, 99, 3]], np.float32))
    assert len(actions) == 2 and actions.classes.tolist() == [[0, 5, 0], [1, 10, 2]]
    assert actions[1:].classes.tolist() == [[1, 10, 2]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([np.nan, 0, 0], "actions of jump must be finite, got nan in frame 1"),
        ([2, 0, 0], "actions of jump must be a class from 0 to 1, got 2 in frame 1"),
        ([0.5, 0, 0], "actions of jump must be a class from 0 to 1, got 0.5"),
        ([0, 0, 3.5], "actions of speed must be within 0 and 3, got 3.5 in frame 1"),
        ([0, 0], r"need values \[F, 3\], got \[2, 2\]"),
    ],
)
def test_actions_outside_their_space_are_refused_in_one_line(row: list[float], message: str) -> None:
    first = [0.0] * len(row)
    with pytest.raises(ValueError, match=message) as refusal:
        Actions(SPACE, np.array([first, row], np.float32))
    assert "\n" not in str(refusal.value)


def test_actions_that_do_nothing_are_as_near_to_it_as_each_field_allows() -> None:
    space = ActionSpace(
        (
            JUMP,
            Choice(name="gear", classes=("back", "idle", "on"), null_class=1),
            Choice(name="side", classes=("left", "right"), null_class=None),
            YAW,
            Axis(name="gas", low=2, high=3, quantizer=Uniform(num_bins=2)),
            Axis(name="fall", low=-3, high=-1, quantizer=Uniform(num_bins=2)),
        )
    )
    assert space.nothing(2).values.tolist() == [[0, 1, 0, 0, 2, -1]] * 2


def test_fields_are_selected_by_name_in_the_order_of_the_names() -> None:
    assert SPACE.columns(["speed", "jump"]) == [2, 0] and SPACE.select(["speed", "jump"]) == (SPEED, JUMP)
    assert len(SPACE) == 3 and SPACE.names == ("jump", "yaw", "speed") and SPACE.axes == (YAW, SPEED)
    actions = Actions(SPACE, np.array([[1, -99, 2.5]], np.float32))
    assert actions.values_of(["speed", "yaw"]).tolist() == [[2.5, -99]]
    assert actions.classes_of(["speed", "yaw"]).tolist() == [[2, 0]]
    with pytest.raises(ValueError, match="must be of the action space, got run; name some of jump, yaw, speed") as no:
        SPACE.columns(["jump", "run"])
    assert "\n" not in str(no.value)


def test_shifted_actions_leave_nothing_where_no_action_is_known() -> None:
    space = ActionSpace((Choice(name="gear", classes=("back", "idle"), null_class=1), SPEED))
    actions = Actions(space, np.array([[0, 1], [1, 2], [0, 3]], np.float32))
    assert actions.shifted(1).values.tolist() == [[1, 2], [0, 3], [1, 0]]
    assert actions.shifted(-1).values.tolist() == [[1, 0], [0, 1], [1, 2]]
    assert actions.shifted(0).equals(actions) and actions.shifted(4).equals(space.nothing(3))


def test_actions_follow_each_other_in_one_space_only() -> None:
    one, two = (Actions(SPACE, np.full((count, 3), value, np.float32)) for count, value in ((1, 0), (2, 1)))
    assert one.followed_by(two).values[:, 0].tolist() == [0, 1, 1]
    other = ActionSpace((JUMP, YAW, Axis(name="speed", low=0, high=4, unit="m/s", quantizer=Uniform(num_bins=3))))
    with pytest.raises(ValueError, match=r"must be of one space, got field 2: speed, .* to 3 m/s .* to 4 m/s"):
        one.followed_by(Actions(other, two.values))


def test_equal_actions_have_one_space_and_equal_values() -> None:
    actions = Actions(SPACE, np.array([[1, 2, 3]], np.float32))
    assert actions.equals(Actions(ActionSpace(SPACE.fields), actions.values.copy()))
    assert not actions.equals(Actions(SPACE, np.array([[1, 2, 2.5]], np.float32)))
    assert not actions.equals(Actions(ActionSpace((JUMP, YAW, Axis(**{**vars(SPEED), "high": 9}))), actions.values))


def test_a_mirrored_picture_shows_the_opposite_class_and_bin() -> None:
    bins = np.arange(5)
    move = Choice(name="move", classes=("left", "wait", "ahead", "back", "right"), null_class=1, is_mirrored=True)
    # The acting classes 0, 2, 3, 4 come in reverse order; the class that does nothing stays.
    assert move.mirrored(bins).tolist() == [4, 1, 3, 2, 0]
    assert Choice(name="side", classes=("left", "right"), null_class=None, is_mirrored=True).mirrored(
        bins[:2]
    ).tolist() == [1, 0]
    assert JUMP.mirrored(bins[:2]).tolist() == [0, 1] and not JUMP.is_mirrored
    turn, climb = (
        Axis(name="x", low=-1, high=1, quantizer=Uniform(num_bins=5), direction=direction)
        for direction in ("right", "down")
    )
    assert turn.mirrored(bins).tolist() == [4, 3, 2, 1, 0] and turn.is_mirrored
    assert climb.mirrored(bins).tolist() == bins.tolist() and not climb.is_mirrored


def test_only_bins_of_equal_width_measure_the_size_of_an_error() -> None:
    assert SPEED.is_graded and not YAW.is_graded and not JUMP.is_graded


def test_values_in_words() -> None:
    assert JUMP.words(1) == "pressed" and YAW.words(-4) == "-4 degrees" and SPEED.words(0.125) == "+0.125 m/s"


GYMNASIUM = {
    "atari": (spaces.Discrete(18), [("action", 18)]),
    "start": (spaces.Discrete(3, start=-1), [("action", 3)]),
    "grid": (spaces.MultiDiscrete([[2, 3], [4, 5]]), [(f"action/{i}", n) for i, n in enumerate((2, 3, 4, 5))]),
    "keys": (spaces.MultiBinary(2), [("action/0", 2), ("action/1", 2)]),
    "pusht": (spaces.Box(0, 512, (2,), np.float32), [("action/0", 21), ("action/1", 21)]),
    "dial": (spaces.Box(-2, 3, (1,), np.int64), [("action/0", 6)]),
    "byte": (spaces.Box(0, 255, (1,), np.uint8), [("action/0", 21)]),
    "car": (
        spaces.Box(np.array([-1, 0, 0], np.float32), np.array([1, 1, 1], np.float32)),
        [("action/0", 21), ("action/1", 21), ("action/2", 21)],
    ),
    "nested": (
        spaces.Dict(
            [
                ("move", spaces.Tuple((spaces.Discrete(2), spaces.Box(-1, 1, (1,))))),
                ("fire", spaces.MultiBinary([1, 2])),
            ]
        ),
        [("move/0", 2), ("move/1/0", 21), ("fire/0", 2), ("fire/1", 2)],
    ),
}


@pytest.mark.parametrize("name", GYMNASIUM)
def test_gymnasium_spaces_map_in_their_own_order_and_actions_come_back(name: str) -> None:
    space, expected = GYMNASIUM[name]
    found = ActionSpace.from_gymnasium(space)
    assert [(field.name, field.num_classes) for field in found.fields] == expected
    space.seed(3)
    rows = []
    for _ in range(20):
        rows.append(to_row(space, space.sample()))
        assert space.contains(from_row(space, rows[-1]))
        assert np.array_equal(to_row(space, from_row(space, rows[-1])), rows[-1])
    Actions(found, np.stack(rows))


def test_an_integer_of_a_box_has_a_bin_of_its_own_and_any_number_is_rounded_to_an_integer_inside() -> None:
    space, _ = GYMNASIUM["dial"]
    (field,) = ActionSpace.from_gymnasium(space).fields
    assert field.centres(np.arange(6)).tolist() == [-2, -1, 0, 1, 2, 3]
    numbers = [from_row(space, np.array([value], np.float32)) for value in (-2.5, -1.4, 0.6, 3.5)]
    assert [(number.tolist(), number.dtype) for number in numbers] == [([n], np.int64) for n in (-2, -1, 1, 3)]


def test_numbers_of_a_policy_may_have_another_type_than_the_box() -> None:
    assert to_row(spaces.Box(0, 1, (2,), np.float32), [0, 0.5]).tolist() == [0, 0.5]
    # 0.1 as float32 is above 0.1.
    narrow = spaces.Box(0, 0.1, (1,), np.float64)
    assert narrow.contains(from_row(narrow, to_row(narrow, np.array([0.1]))))


@pytest.mark.parametrize(
    ("space", "action"),
    [
        (spaces.Discrete(18), 18),
        (spaces.Discrete(3), "left"),
        (spaces.Box(-1, 1, (2,)), [0, 1.5]),
        (spaces.Box(-1, 1, (2,)), [0.0]),
        (spaces.Box(0, 9, (1,), np.int64), [0.5]),
        (spaces.Dict(move=spaces.Discrete(2)), {"go": 1}),
        (spaces.Tuple((spaces.Discrete(2), spaces.Discrete(2))), (1,)),
    ],
)
def test_an_action_outside_its_gymnasium_space_is_refused_in_one_line(space, action) -> None:
    with pytest.raises(ValueError, match=r"an action must be in .*, got .*; correct the policy") as refusal:
        to_row(space, action)
    assert "\n" not in str(refusal.value)


def test_axes_take_the_bounds_of_their_box() -> None:
    steer, gas, _ = ActionSpace.from_gymnasium(GYMNASIUM["car"][0], num_bins=5).fields
    assert isinstance(steer, Axis) and isinstance(gas, Axis)
    assert (steer.low, steer.high, gas.low, steer.num_classes, steer.null_class) == (-1, 1, 0, 5, 2)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Box(-np.inf, 1, (2,)), r"a Box must be bounded, got action/0 from -inf to 1; wrap"),
        (spaces.Dict(say=spaces.Text(4)), "must have a fixed number of values, got Text at say; wrap"),
        (spaces.Sequence(spaces.Discrete(2)), "got Sequence at action"),
    ],
)
def test_spaces_that_cannot_be_mapped_are_refused_with_the_way_out(space, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ActionSpace.from_gymnasium(space)
