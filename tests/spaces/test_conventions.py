"""A recording's actions in the conventions of published projects."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import rlir_ray
from rlir_ray.cli.commands import main
from rlir_ray.cli.parser import build_parser
from rlir_ray.data.vpt.pairs import write_recording
from rlir_ray.spaces.conventions import CONVENTIONS, describe
from rlir_ray.spaces.mineworld import MINEWORLD_CAMERA
from rlir_ray.spaces.oasis import OASIS_FIELDS, oasis_classes, oasis_rows
from rlir_ray.spaces.space import Actions
from rlir_ray.spaces.vpt import BUTTONS, VPT_SPACE, actions_from_buttons, actions_from_events, events_from_actions
from tests.second_space import SPACE

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "oasis_actions.json").read_text(encoding="utf-8"))
# Frame 1: forward, 0.6 degrees (four mouse pixels) to the right. Frame 2: the third slot, 12 degrees down.
EVENTS = [
    {},
    {"mouse": {"dx": 4, "dy": 0, "buttons": []}, "keyboard": {"keys": ["key.keyboard.w"]}},
    {"mouse": {"dx": 0, "dy": 80, "buttons": []}, "keyboard": {"keys": ["key.keyboard.3"]}},
]


def test_oasis_fields_and_rows_are_those_of_its_sample_files() -> None:
    assert list(OASIS_FIELDS) == GOLDEN["keys_in_order"] and len(GOLDEN["cases"]) > 3
    for case in GOLDEN["cases"]:
        action = case["action"]
        buttons = np.array([[bool(action.get(name, 0)) for name in BUTTONS]])
        # The sample files hold bins: angles in the middle of each bin's angles come back to the bin.
        bins = np.asarray(action["camera"], np.float64)
        angles = np.sign(bins - 40) * (np.power(3.7, np.abs(bins - 40) / 40) - 1) * 20 / 2.7
        (row,) = oasis_rows(oasis_classes(actions_from_buttons(buttons, angles[None].astype(np.float32))))
        np.testing.assert_allclose(row, case["one_hot"], atol=1e-6)


def test_each_convention_says_what_leads_into_a_frame_and_gives_one_line_a_frame() -> None:
    actions = actions_from_events(EVENTS)
    vpt, mineworld, oasis, space = (describe(actions, name) for name in ("vpt", "mineworld", "oasis", "space"))
    assert all("leads into frame k" in lines[0] or "lead into it" in lines[0] for lines in (vpt, mineworld, space))
    assert "its line k is this line k + 1" in oasis[0]
    assert [len(lines) for lines in (vpt, mineworld, oasis, space)] == [4, 4, 4, 4]
    assert vpt[2] == "1  pitch +0.00 (bin 5)  yaw +0.60 (bin 6)  forward"
    # MineWorld cuts angles to whole degrees: a yaw of 0.6 is still.
    tokens = mineworld[2].split()[1:]
    assert len(tokens) == 11 and int(tokens[2]) - int(mineworld[1].split()[3]) == 0
    assert oasis[1:] == ["0  -", "1  forward +1  cameraY +0.05", "2  hotbar.3 +1  cameraX +0.725"]
    assert space[1:] == [
        "0  -",
        "1  forward_back forward  yaw +0.60 degrees (bin 6)",
        "2  hotbar hotbar.3  pitch +12.00 degrees (bin 10)",
    ]
    assert MINEWORLD_CAMERA.null_class == 10


def test_vpt_is_an_action_space() -> None:
    space = rlir_ray.ActionSpace.from_json(VPT_SPACE.to_json())
    assert space == VPT_SPACE and len(space.fields) == 13
    # Four pairs of buttons, three single ones, nine slots, three buttons that no model reads, two axes.
    assert [field.num_classes for field in space.fields] == [3] * 4 + [2] * 3 + [10] + [2] * 3 + [11, 11]
    assert actions_from_events(EVENTS).classes[:, 11:].tolist() == [[5, 5], [5, 6], [10, 5]]


def test_actions_of_another_space_have_lines_of_their_fields_only() -> None:
    actions = Actions(SPACE, np.array([[1, 0], [2, 0.5]], np.float32))
    # Bin 6 of nine holds 1/3 to 5/9; neutral gear and a steer of zero do nothing.
    assert describe(actions, "space")[1:] == ["0  -", "1  gear forward  steer +0.50 (bin 6)"]
    with pytest.raises(ValueError, match=r"--to oasis needs .* VPT's action space, got .* gear, steer; use --to space"):
        describe(actions, "oasis")


def test_command_prints_a_recordings_actions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    actions = actions_from_events(EVENTS)
    write_recording(tmp_path / "clip", np.zeros((3, 16, 16, 3), np.uint8), events_from_actions(actions))
    main(["actions", str(tmp_path / "clip.jsonl"), "--to", "space"])
    assert capsys.readouterr().out.splitlines() == describe(actions, "space")
    main(["actions", str(tmp_path / "clip"), "--to", "vpt", "--action-shift", "-1"])
    assert capsys.readouterr().out.splitlines()[3].endswith("yaw +0.60 (bin 6)  forward")
    with pytest.raises(SystemExit) as end:
        main(["actions", str(tmp_path / "none.mp4"), "--to", "vpt"])
    assert end.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1 and "none" in message


def test_command_offers_every_convention() -> None:
    parse = build_parser().parse_args
    for name in CONVENTIONS:
        assert parse(["actions", "clip", "--to", name]).to == name
    with pytest.raises(SystemExit):
        parse(["actions", "clip", "--to", "minecraft"])
