"""Driving: the controls of any space, a drive of two models, and the server without a browser."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from rlir_ray.cli.commands import main
from rlir_ray.data.recordings import open_recordings
from rlir_ray.idm.base import load_inverse_dynamics
from rlir_ray.play import driving, server
from rlir_ray.play.controls import action_of, controls_of
from rlir_ray.play.driving import Drive
from rlir_ray.play.opening import OpenWorld
from rlir_ray.play.server import PlaySettings, act, build_app, is_loopback
from rlir_ray.spaces.fields import Axis, Choice, Uniform
from rlir_ray.spaces.space import ActionSpace
from rlir_ray.spaces.vpt import VPT_SPACE
from rlir_ray.spaces.words import parse_actions
from tests.fakes import HEIGHT, WIDTH
from tests.play.test_simulator import opened, random_frames
from tests.world import MakeConfig

CONTEXTS = random_frames(3, 1)
LOCAL = {"host": "127.0.0.1:80"}
PAD = ActionSpace(
    (
        Choice(name="move", classes=("stay", "up", "down", "left", "right")),
        Choice(name="button", classes=("none", "a", "b")),
        *(
            Axis(name=name, low=low, high=1, quantizer=Uniform(num_bins=5))
            for name, low in (("x", -1), ("y", 0), ("z", -1))
        ),
    )
)


@pytest.fixture
def world(checkpoints: Path, make_config: MakeConfig, tmp_path: Path) -> OpenWorld:
    return opened("tokens", checkpoints, make_config, tmp_path)


@pytest.fixture
def make_drive(world: OpenWorld) -> Callable[[], Drive]:
    idm = load_inverse_dynamics(world.config.models.judge_idm)
    return lambda: Drive({"policy": world, "base": world}, CONTEXTS, idm)


@pytest.fixture
def drive(make_drive: Callable[[], Drive]) -> Iterator[Drive]:
    made = make_drive()
    yield made
    made.close()


# ---------------------------------------------------------------------------------------------------------------------
# Controls


def test_vpt_has_its_own_keys() -> None:
    controls = controls_of(VPT_SPACE, ("forward_back", "use_attack", "jump", "yaw"))
    found = {key.code: (key.field, key.value) for key in controls.keys}
    assert found == {
        "KeyW": ("forward_back", 1),
        "KeyS": ("forward_back", 2),
        "KeyR": ("use_attack", 1),
        "KeyF": ("use_attack", 2),
        "Space": ("jump", 1),
        "ArrowLeft": ("yaw", -5),
        "ArrowRight": ("yaw", 5),
    }
    assert not controls.pointers
    every = controls_of(VPT_SPACE, VPT_SPACE.names).keys
    assert len({key.code for key in every}) == len(every)


def test_other_spaces_have_arrows_numbers_and_the_pointer() -> None:
    controls = controls_of(PAD, PAD.names)
    assert [(key.label, key.words) for key in controls.keys] == [
        ("↑", "move up"),
        ("↓", "move down"),
        ("←", "move left"),
        ("→", "move right"),
        ("1", "button a"),
        ("2", "button b"),
    ]
    assert [(each.direction, each.field, each.rest) for each in controls.pointers] == [
        ("x", "x", 0),
        ("y", "y", 0),
        ("", "z", 0),
    ]
    # More classes than keys: the rest has none, and nothing breaks.
    wide = ActionSpace((Choice(name="card", classes=tuple(map(str, range(60)))),))
    assert len(controls_of(wide, ["card"]).keys) == 4 + 10 + 26


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"fly": 1}, "an action may set move, x, got 'fly'"),
        ({"button": 1}, "an action may set move, x, got 'button'"),
        ({"move": "up"}, "move must be a finite number, got 'up'"),
        ({"move": True}, "move must be a finite number, got 'True'"),
        ({"x": float("nan")}, "x must be a finite number, got 'nan'"),
        ({"move": 9}, "move must be a class from 0 to 4, got 9"),
        ({"move": 1.5}, "move"),
        ({"x": 3.0}, "x must"),
    ],
)
def test_values_of_a_page_are_checked(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        action_of(values, PAD, ("move", "x"))


# ---------------------------------------------------------------------------------------------------------------------
# A drive


def test_both_models_get_the_same_commands_from_the_same_frames(drive: Drive) -> None:
    view = drive.step(parse_actions("forward+jump", drive.space))
    assert view.number == 1 and (view.frames["policy"] == view.frames["base"]).all()
    fields = [each.field for each in view.readings["policy"]]
    assert fields == list(drive.names)
    jump = view.readings["policy"][fields.index("jump")]
    assert jump.commanded == "jump" and jump.agrees == (jump.recovered == "jump") and 0 <= jump.probability <= 1
    agreed = sum(each.agrees for each in view.readings["policy"])
    assert view.followed["policy"] == pytest.approx(agreed / len(fields))
    for _ in range(3):
        drive.step(parse_actions("none", drive.space))
    assert drive.undo().number == 3 and not drive.undo().readings
    for _ in range(4):
        view = drive.undo()
    assert view.number == 0 and view.followed == {"policy": None, "base": None}
    assert (drive.reset(2).frames["policy"] != view.frames["policy"]).any()
    with pytest.raises(ValueError, match="a context must be from 0 to 2, got 3"):
        drive.reset(3)


def test_a_recording_is_read_back_with_its_actions(drive: Drive, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a recording needs a model of this drive and a frame, got 'policy'"):
        drive.recording("policy")
    actions = parse_actions("forward*2, turn_left+jump", drive.space)
    for place in range(3):
        drive.step(actions[place : place + 1])
    with zipfile.ZipFile(io.BytesIO(drive.recording("policy"))) as archive:
        archive.extractall(tmp_path / "drive")
    source = open_recordings(tmp_path / "drive")
    found = source.recording(source.names[0])
    assert len(found) == 4 and found.read(0, 4).shape == (4, HEIGHT, WIDTH, 3)
    assert found.actions.equals(drive.space.nothing(1).followed_by(actions))
    difference = np.abs(found.read(0, 4).astype(int) - drive.simulators["policy"].frames[0])
    assert difference.mean() < 12
    with pytest.raises(ValueError, match="got 'other'"):
        drive.recording("other")


def test_a_drive_is_bounded(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driving, "MAX_FRAMES", 1)
    drive.step(drive.space.nothing(1))
    with pytest.raises(ValueError, match="a drive must be at most 1 frames"):
        drive.step(drive.space.nothing(1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a message must be a JSON object, got ''"),
        ("[1]", "a message must be a JSON object"),
        ("[" * 3000, "a message must be a JSON object"),
        ("x" * 5000, "a message must be at most 4096 characters, got 5000"),
        ('{"do": "stop"}', "do must be step, undo or reset, got 'stop'"),
        ('{"do": "step", "action": [1]}', r"an action must be an object of fields, got '\[1\]'"),
        ('{"do": "reset", "context": "0"}', "a context must be a number, got '0'"),
        ('{"do": "reset", "context": true}', "a context must be a number, got 'True'"),
        ('{"do": "reset", "context": -1}', "a context must be from 0 to 2, got -1"),
    ],
)
def test_messages_are_checked(text: str, message: str, drive: Drive) -> None:
    with pytest.raises(ValueError, match=message):
        act(drive, text)
    assert drive.view().number == 0


# ---------------------------------------------------------------------------------------------------------------------
# The server


def picture(address: str) -> np.ndarray:
    head, _, content = address.partition(",")
    assert head == "data:image/png;base64"
    return np.array(Image.open(io.BytesIO(base64.b64decode(content))))


def test_a_player_drives_and_downloads_a_recording(make_drive: Callable[[], Drive]) -> None:
    with TestClient(build_app(make_drive, PlaySettings(title="<b>"))) as client:
        page = client.get("/", headers=LOCAL)
        assert page.status_code == 200 and "Drive &lt;b&gt;" in page.text and "{{" not in page.text
        assert "default-src 'self'" in page.headers["content-security-policy"]
        with client.websocket_connect("/drive", headers=LOCAL) as socket:
            hello = socket.receive_json()
            assert hello["models"] == ["policy", "base"] and len(hello["contexts"]) == 3 and hello["can_read"]
            before = picture(hello["frames"]["policy"])
            assert before.shape == (HEIGHT, WIDTH, 3)
            socket.send_text(json.dumps({"do": "step", "action": {"forward_back": 1}}))
            view = socket.receive_json()
            assert view["number"] == 1 and (picture(view["frames"]["policy"]) != before).any()
            socket.send_text("nonsense")
            assert "a message must be a JSON object" in socket.receive_json()["error"]
            found = client.get(f"/recording/{hello['player']}/policy", headers=LOCAL)
            assert found.status_code == 200 and zipfile.ZipFile(io.BytesIO(found.content)).namelist()
            for address in (f"/recording/{hello['player']}/..%2F..%2Fetc", "/recording/other/policy"):
                assert client.get(address, headers=LOCAL).status_code in (400, 404)
        # The player has left, with everything of the drive.
        assert client.get(f"/recording/{hello['player']}/policy", headers=LOCAL).status_code == 404


def test_players_are_limited_and_leave_their_place(make_drive: Callable[[], Drive]) -> None:
    with TestClient(build_app(make_drive, PlaySettings(title="x", max_players=1))) as client:
        for _ in range(2):
            with client.websocket_connect("/drive", headers=LOCAL) as first:
                first.receive_json()
                with client.websocket_connect("/drive", headers=LOCAL) as second:
                    assert second.receive_json() == {"error": "1 players drive already; try again later"}
                    with pytest.raises(WebSocketDisconnect):
                        second.receive_json()


def test_only_this_machine_or_the_token_enters(make_drive: Callable[[], Drive]) -> None:
    def can_drive(client: TestClient, address: str, headers: dict[str, str]) -> bool:
        try:
            with client.websocket_connect(address, headers=headers) as socket:
                return "models" in socket.receive_json()
        except WebSocketDisconnect:
            return False

    with TestClient(build_app(make_drive, PlaySettings(title="x"))) as client:
        assert can_drive(client, "/drive", LOCAL)
        assert can_drive(client, "/drive", LOCAL | {"origin": "http://127.0.0.1:80"})
        # A page of another site in the same browser, and a name of that site that leads to this machine.
        assert not can_drive(client, "/drive", LOCAL | {"origin": "http://other.example"})
        assert not can_drive(client, "/drive", {"host": "other.example"})
        assert client.get("/", headers={"host": "other.example"}).status_code == 403
    with TestClient(build_app(make_drive, PlaySettings(title="x", token="secret"))) as client:
        assert can_drive(client, "/drive?token=secret", {"host": "10.0.0.1:80"})
        assert not can_drive(client, "/drive?token=wrong", LOCAL) and not can_drive(client, "/drive", LOCAL)
        assert client.get("/?token=secret", headers={"host": "10.0.0.1:80"}).status_code == 200
        assert client.get("/").status_code == 403
    assert is_loopback("127.0.0.1") and is_loopback("::1") and is_loopback("localhost")
    assert not is_loopback("0.0.0.0") and not is_loopback("example.org")


def test_a_player_who_sends_nothing_makes_room(
    make_drive: Callable[[], Drive], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "IDLE_S", 0.05)
    with TestClient(build_app(make_drive, PlaySettings(title="x", max_players=1))) as client:
        with client.websocket_connect("/drive", headers=LOCAL) as socket:
            socket.receive_json()
            with pytest.raises(WebSocketDisconnect):
                socket.receive_json()
        with client.websocket_connect("/drive", headers=LOCAL) as socket:
            assert "models" in socket.receive_json()


def test_bad_options_end_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(tmp_path / "black.png")
    command = ["play", "--policy", "asset:doom/world_model", "--context", str(tmp_path / "black.png")]
    for more, message in (
        (["--against", "base"], "a base needs a run's policy, got 'asset:doom/world_model'"),
        (["--against", "asset:pusht/world_model"], "models that are driven together must have one action space"),
        (["--max-players", "0"], "--max-players must be >= 1, got 0"),
        (["--temperature", "0"], "temperature must be > 0, got 0"),
    ):
        with pytest.raises(SystemExit):
            main([*command, *more])
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
