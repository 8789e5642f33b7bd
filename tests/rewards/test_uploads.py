"""Clips that come over HTTP: good ones, and everything that a bad one is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from starlette.requests import Request

from rlir_ray.config import RewardConfig, WorldConfig
from rlir_ray.data.vpt.pairs import write_recording
from rlir_ray.rewards.inverse import ClipScores
from rlir_ray.rewards.uploads import Limits, UploadError, clip_report, read_clip, read_form
from rlir_ray.spaces.vpt import VPT_SPACE, actions_from_events, camera_of
from tests.data.videos import HEIGHT, WIDTH, damage_frame, event, moving_bars, turn, write_pair
from tests.fakes import VptReader, inverse_reward
from tests.second_space import SPACE

LIMITS = Limits(height=HEIGHT, width=WIDTH, max_frames=60, max_bytes=1000)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    video = write_pair(tmp_path_factory.mktemp("clips") / "clip", num_frames=12)
    return {"video": video.read_bytes(), "events": video.with_suffix(".jsonl").read_bytes()}


def form(parts: dict[str, bytes], boundary: str = "xyz") -> bytes:
    """As curl -F sends it."""
    body = b""
    for name, content in parts.items():
        head = f'Content-Disposition: form-data; name="{name}"; filename="a.b"\r\nContent-Type: application/x\r\n\r\n'
        body += f"--{boundary}\r\n{head}".encode() + content + b"\r\n"
    return body + f"--{boundary}--\r\n".encode()


def refusal(call: object, *arguments: object) -> tuple[int, str]:
    with pytest.raises(UploadError) as caught:
        call(*arguments)  # type: ignore[operator]
    assert "\n" not in str(caught.value)
    return caught.value.status, str(caught.value)


class Body:
    """A request's body, as chunks that come one by one."""

    def __init__(self, chunks: Sequence[bytes]) -> None:
        self.chunks, self.num_taken = chunks, 0

    async def receive(self) -> dict[str, object]:
        chunk = self.chunks[self.num_taken]
        self.num_taken += 1
        return {"type": "http.request", "body": chunk, "more_body": self.num_taken < len(self.chunks)}


def read(content_type: str, body: Body, **headers: str) -> dict[str, bytes]:
    named = {"content-type": content_type, **headers}
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in named.items()]
    scope = {"type": "http", "method": "POST", "path": "/score", "headers": raw}
    return asyncio.run(read_form(Request(scope, body.receive), LIMITS))


@pytest.mark.parametrize("chunk_size", [1, 7, 2000])
def test_parts_come_out_of_a_form_byte_for_byte(chunk_size: int) -> None:
    parts = {"video": bytes(range(256)) * 2 + b"\r\n--xy", "events": b"", "note": b"\r\n\r\n-xyz"}
    for content_type, boundary in (("boundary=xyz", "xyz"), ('boundary="x y"', "x y")):
        whole = form(parts, boundary)
        chunks = [whole[start : start + chunk_size] for start in range(0, len(whole), chunk_size)]
        assert read(f"multipart/form-data; {content_type}", Body(chunks)) == parts


def test_a_part_that_is_no_file_is_read_too() -> None:
    body = '--xyz\r\nContent-Disposition: form-data; name="events"\r\n\r\n{"key": "ö"}\r\n--xyz--\r\n'.encode()
    assert read("multipart/form-data; boundary=xyz", Body([body])) == {"events": '{"key": "ö"}'.encode()}


@pytest.mark.parametrize(
    ("content_type", "body", "status", "text"),
    [
        ("application/json", b"{}", 415, "must be multipart/form-data, got 'application/json'; try curl"),
        ("application/x-www-form-urlencoded", b"video=1&events=2", 415, "must be multipart/form-data"),
        ("", b"", 415, "must be multipart/form-data"),
        ("multipart/form-data", b"", 415, "must be multipart/form-data"),
        ("multipart/form-data; boundary=xyz", b"", 400, "must end with its boundary, got 0 parts"),
        ("multipart/form-data; boundary=xyz", b"--xyz\r\nhead", 400, "must end with its boundary"),
        ("multipart/form-data; boundary=xyz", b"xyz", 400, "must be a form of at most 8 parts, got another (Invalid"),
        ("multipart/form-data; boundary=xyz", b"--xyz\r\n\r\nx\r\n--xyz--", 400, "must have a name, got none"),
        ("multipart/form-data; boundary=xyz", form({str(i): b"" for i in range(9)}), 400, "of at most 8 parts, got"),
    ],
)
def test_a_broken_form_is_refused(content_type: str, body: bytes, status: int, text: str) -> None:
    found, why = refusal(read, content_type, Body([body]))
    assert found == status and text in why, why


def test_a_part_that_is_cut_off_is_no_part() -> None:
    cut = form({"events": b"{}\n", "video": b"x" * 500})[:-100]
    assert read("multipart/form-data; boundary=xyz", Body([cut])) == {"events": b"{}\n"}


def test_a_body_is_read_to_its_limit_and_no_further() -> None:
    content_type, start = "multipart/form-data; boundary=xyz", form({"video": b""})[: -len(b"\r\n--xyz--\r\n")]
    body = Body([start, *[b"x" * 300] * 1000])
    status, why = refusal(read, content_type, body)
    limit = (1000 - len(start)) // 300 + 1
    assert status == 413
    assert why == f"an upload must have at most 1000 bytes, got {len(start) + 300 * limit}; cut the clip"
    assert body.num_taken == 1 + limit
    # What says at once that it is too big is not read at all.
    body = Body([start])
    with pytest.raises(UploadError, match="got 1001"):
        read(content_type, body, content_length="1001")
    assert not body.num_taken


def test_a_clip_is_read_with_the_actions_that_lead_into_its_frames(clip: dict[str, bytes]) -> None:
    frames, actions = read_clip(clip, LIMITS, VPT_SPACE)
    assert frames.shape == (12, HEIGHT, WIDTH, 3) and frames.dtype == np.uint8
    # The event's dx is its frame's number; the first one leads into nothing that is seen.
    np.testing.assert_allclose(camera_of(actions)[:, 1], np.arange(1, 12) * 0.15, rtol=1e-5)


def lines(number: int, **fields: object) -> bytes:
    return "".join(json.dumps(event(**fields)) + "\n" for _ in range(number)).encode()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changed", "status", "text"),
    [
        ({"video": None}, 400, "must have the parts video and events, got no video"),
        ({"events": None}, 400, "got no events"),
        ({"video": b"GIF89a and so on"}, 400, "must be an mp4, got another format"),
        ({"video": b""}, 400, "must be an mp4"),
        ({"events": b"not json\n" * 12}, 400, "upload.jsonl, line 1: no JSON"),
        ({"events": lines(11) + b'{"mouse": 3}\n'}, 400, "upload.jsonl, line 12: mouse must be an object"),
        ({"events": lines(11) + b'{"mouse": {"dx": 1' + b"0" * 400 + b"}}"}, 400, "mouse.dx must be a finite number"),
        ({"events": lines(9)}, 422, "9 events for the 12 frames of upload.mp4"),
        ({"events": lines(61)}, 413, "events must have at most 60 lines, got 61"),
        ({"events": b"[" * 20_000}, 413, "an event must have at most 16384 bytes, got 20000"),
    ],
)
def test_a_bad_clip_is_told_why(clip: dict[str, bytes], changed: dict[str, bytes | None], status: int, text: str):
    parts = {name: content for name, content in (clip | changed).items() if content is not None}
    found, why = refusal(read_clip, parts, LIMITS, VPT_SPACE)
    assert (found, text in why, "/tmp" in why) == (status, True, False), why


def test_a_video_that_is_cut_off_damaged_or_of_another_size_or_length_is_told_so(
    clip: dict[str, bytes], tmp_path: Path
) -> None:
    whole = clip["video"]
    status, why = refusal(read_clip, clip | {"video": whole[: len(whole) // 2]}, LIMITS, VPT_SPACE)
    assert status == 400 and why.startswith("upload.mp4: no readable video")
    (tmp_path / "damaged.mp4").write_bytes(whole)
    damage_frame(tmp_path / "damaged.mp4", packet_number=5)
    status, why = refusal(read_clip, clip | {"video": (tmp_path / "damaged.mp4").read_bytes()}, LIMITS, VPT_SPACE)
    assert status == 400 and "no readable video" in why
    small = Limits(height=24, width=32)
    assert refusal(read_clip, clip, small, VPT_SPACE) == (
        422,
        "frames must be 24x32 (height x width), got 48x64; resize them: ffmpeg -i NAME.mp4 -vf scale=32:24 SMALL.mp4",
    )
    short = Limits(height=HEIGHT, width=WIDTH, max_frames=11)
    assert refusal(read_clip, clip | {"events": lines(11)}, short, VPT_SPACE)[0] == 413
    write_recording(tmp_path / "one", moving_bars(1), [event()])
    parts = {"video": (tmp_path / "one.mp4").read_bytes(), "events": lines(1)}
    assert refusal(read_clip, parts, LIMITS, VPT_SPACE) == (422, "a clip must have 2 to 60 frames, got 1; cut the clip")


def test_a_video_that_is_shown_on_its_side_is_of_another_size(clip: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(clip["video"])
    turn(path, (0, 1, -1, 0))
    status, why = refusal(read_clip, clip | {"video": path.read_bytes()}, LIMITS, VPT_SPACE)
    assert status == 422 and f"got {LIMITS.width}x{LIMITS.height}" in why


def test_frames_that_grow_within_the_video_are_refused_when_they_come(clip: dict[str, bytes], tmp_path: Path) -> None:
    """The size that a file states is not the size of its frames: each is looked at before it becomes pixels."""
    big = np.zeros((12, 4 * HEIGHT, 4 * WIDTH, 3), np.uint8)
    write_recording(tmp_path / "big", big, [event()] * 12)
    # The dimensions that the header states, 192 x 256, become 48 x 64; those of the frames stay.
    content = (tmp_path / "big.mp4").read_bytes()
    stated = (4 * WIDTH << 16).to_bytes(4, "big") + (4 * HEIGHT << 16).to_bytes(4, "big")
    sample = (4 * WIDTH).to_bytes(2, "big") + (4 * HEIGHT).to_bytes(2, "big")
    assert stated in content and sample in content
    forged = content.replace(stated, (WIDTH << 16).to_bytes(4, "big") + (HEIGHT << 16).to_bytes(4, "big"))
    forged = forged.replace(sample, WIDTH.to_bytes(2, "big") + HEIGHT.to_bytes(2, "big"))
    status, why = refusal(read_clip, clip | {"video": forged}, LIMITS, VPT_SPACE)
    assert status in (400, 422) and ("192x256" in why)


class ForwardReader(VptReader):
    """Reads forward in every second frame; its other heads say nothing."""

    def logits(self, frames: torch.Tensor) -> dict[str, torch.Tensor]:
        shape = frames.shape[:2]
        buttons = torch.zeros(*shape, 20, 2)
        buttons[..., 0] = 30
        buttons[:, 1::2, 2, 1] = 60
        camera = torch.zeros(*shape, 2, 11)
        camera[..., 5] = 30
        return {"buttons": buttons, "camera": camera}


def test_a_report_says_of_each_frame_what_was_commanded_recovered_and_agrees() -> None:
    world = WorldConfig(height=4, width=4, groups=("forward_back", "yaw"))
    reward = inverse_reward(None, ForwardReader(), world.groups, RewardConfig(match="exact"))  # type: ignore[arg-type]
    events = [{}, {"keyboard": {"keys": ["key.keyboard.w"]}}, {"keyboard": {"keys": ["key.keyboard.s"]}}]
    scores = reward.score_clip(np.zeros((3, 4, 4, 3), np.uint8), actions_from_events(events)[1:])
    yaw = {"commanded": 0.0, "recovered": 0.0, "agreement": 1.0}
    assert clip_report(scores) == {
        "frames": 3,
        "agreement": 0.75,
        "per_frame": [
            {
                "frame": 1,
                "agreement": 1.0,
                "groups": {
                    "forward_back": {"commanded": "forward", "recovered": "forward", "agreement": 1.0},
                    "yaw": yaw,
                },
            },
            {
                "frame": 2,
                "agreement": 0.5,
                "groups": {"forward_back": {"commanded": "back", "recovered": "none", "agreement": 0.0}, "yaw": yaw},
            },
        ],
    }


def test_a_balanced_reward_reads_no_single_clips() -> None:
    world = WorldConfig(height=4, width=4, groups=("jump",))
    shares = {"jump": np.array([0.9, 0.1])}
    config = RewardConfig(balance="class")
    reward = inverse_reward(None, ForwardReader(), world.groups, config, class_shares=shares)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"need reward.balance=none, got 'class'; set reward.balance=none"):
        reward.score_clip(np.zeros((2, 4, 4, 3), np.uint8), actions_from_events([{}]))


# ---------------------------------------------------------------------------------------------------------------------
# Another space than VPT's

ROWS = [{"gear": 1, "steer": 0}, {"gear": "forward", "steer": 0.5}, {"gear": 0, "steer": -1.0}]


def upload_of(clip: dict[str, bytes], rows: Sequence[object]) -> dict[str, bytes]:
    """The clip's 12 frames with these rows at the start and a default row in the others."""
    lines = [json.dumps(row) for row in [*rows, *[ROWS[0]] * (12 - len(rows))]]
    return {**clip, "events": "\n".join(lines).encode()}


def test_rows_of_fields_are_read_with_numbers_or_names_of_classes(clip: dict[str, bytes]) -> None:
    frames, actions = read_clip(upload_of(clip, ROWS), LIMITS, SPACE)
    assert frames.shape == (12, HEIGHT, WIDTH, 3) and actions.space == SPACE
    # The first line leads into nothing that is seen.
    assert actions.values[:3].tolist() == [[2, 0.5], [0, -1], [1, 0]] and len(actions) == 11


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ([1, 0], "events, line 2, must have the fields gear, steer, got [1, 0]; give a value of each"),
        ({"gear": 1}, 'events, line 2, must have the fields gear, steer, got {"gear": 1}'),
        ({"gear": 1, "steer": 0, "jump": 1}, "must have the fields gear, steer, got "),
        ({"gear": "fast", "steer": 0}, "gear in line 2 must be a number, got 'fast'; correct the line"),
        ({"gear": 3, "steer": 0}, "actions of gear must be a class from 0 to 2, got 3 in frame 1"),
        ({"gear": 1.5, "steer": 0}, "actions of gear must be a class from 0 to 2, got 1.5 in frame 1"),
        ({"gear": True, "steer": 0}, "gear in line 2 must be a number, got 'True'"),
        ({"gear": [1], "steer": 0}, "gear in line 2 must be a number, got '[1.0]'"),
        ({"gear": 1, "steer": None}, "steer in line 2 must be a number, got 'None'"),
        ({"gear": 1, "steer": 10**400}, "actions of steer must be finite, got inf in frame 1"),
        ({"gear": 1, "steer": 1e39}, "actions of steer must be finite, got inf in frame 1"),
        ({"gear": 1, "steer": "0"}, "steer in line 2 must be a number, got '0'"),
        ({"gear": 1, "steer": 1.25}, "actions of steer must be within -1 and 1, got 1.25 in frame 1"),
        ({"gear": 1, "steer": float("nan")}, "actions of steer must be finite, got nan in frame 1"),
    ],
)
def test_a_bad_row_is_told_why(clip: dict[str, bytes], row: object, text: str) -> None:
    status, why = refusal(read_clip, upload_of(clip, [ROWS[0], row]), LIMITS, SPACE)
    assert status == 400 and text in why, why


@pytest.mark.parametrize(
    ("events", "status", "text"),
    [
        (b"{}\n{\n" * 6, 400, "events, line 1, must have the fields gear, steer, got {}"),
        (b"not json\n" * 12, 400, "events, line 1, must be JSON, got Expecting value; write one object a line"),
        (b"\xff\xfe\n" * 12, 400, "events, line 1, must be JSON"),
        (b"[" * 9000 + b"]" * 7000, 400, "events, line 1, must"),
        (b"9" * 9000, 400, "events, line 1, must have the fields gear, steer, got 999"),
        (b"", 400, "events, line 1, must be JSON"),
        (json.dumps(ROWS[0]).encode() + b"\n", 422, "events must have a line a frame, got 1 for 12 frames"),
    ],
)
def test_bad_lines_are_told_why_in_one_line(clip: dict[str, bytes], events: bytes, status: int, text: str) -> None:
    found, why = refusal(read_clip, {**clip, "events": events}, LIMITS, SPACE)
    assert found == status and text in why and "/tmp" not in why, why


def test_a_report_has_the_words_of_the_space() -> None:
    scores = ClipScores(
        agreement=np.array([0.5], np.float32),
        space=SPACE,
        commanded={"gear": np.array([2], np.float32), "steer": np.array([0.126], np.float32)},
        recovered={"gear": np.array([1], np.float32), "steer": np.array([-0.7], np.float32)},
        by_field={"gear": np.array([0], np.float32), "steer": np.array([1], np.float32)},
    )
    assert clip_report(scores)["per_frame"] == [
        {
            "frame": 1,
            "agreement": 0.5,
            "groups": {
                "gear": {"commanded": "forward", "recovered": "neutral", "agreement": 0.0},
                "steer": {"commanded": 0.13, "recovered": -0.7, "agreement": 1.0},
            },
        }
    ]
