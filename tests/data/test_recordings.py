"""Recordings: what is written is read back, and what is broken is named."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from rlir_ray.config import DataConfig, WorldConfig
from rlir_ray.data.clips import ClipAddress, read_clip
from rlir_ray.data.recorded_clips import cut_clips
from rlir_ray.data.recordings import open_recordings, read_all
from rlir_ray.data.vpt.index import find_recordings, list_recordings
from rlir_ray.data.vpt.pairs import open_recording, read_events, write_recording
from rlir_ray.spaces.vpt import BUTTON_INDEX, DEGREES_PER_PIXEL, buttons_of, camera_of
from tests.data.videos import damage_frame, decode_all, event, read_recording, turn, write_pair

NUM_FRAMES = 12


def moving_bars(num_frames: int = NUM_FRAMES) -> np.ndarray:
    """uint8 [F, 48, 64, 3]: each frame is another one, so that order and number can be checked."""
    x = np.arange(64)[None, :, None] + 3 * np.arange(num_frames)[:, None, None, None]
    bars = 128 + 100 * np.sin(x / 6 + np.array([0.0, 1.0, 2.0]))
    return np.broadcast_to(bars, (num_frames, 48, 64, 3)).astype(np.uint8)


def walk_events(num_frames: int = NUM_FRAMES) -> list[dict]:
    keys = [[]] + [["key.keyboard.w"], ["key.keyboard.s"]] * num_frames
    return [{"mouse": {"dx": 21.0 * (k % 2), "buttons": []}, "keyboard": {"keys": keys[k]}} for k in range(num_frames)]


def write(folder: Path, name: str) -> Path:
    write_recording(folder / name, moving_bars(), walk_events())
    return folder / f"{name}.mp4"


def test_a_recording_is_read_back_in_order_and_clean(tmp_path: Path) -> None:
    recording = read_recording(write(tmp_path, "a"))
    assert recording.name == "a" and recording.events == walk_events()
    error = (recording.frames.astype(float) - moving_bars()) ** 2
    assert recording.frames.shape == (NUM_FRAMES, 48, 64, 3)
    assert (10 * np.log10(255**2 / error.mean(axis=(1, 2, 3))) > 40).all()
    forward = buttons_of(recording.actions.classes)[:, BUTTON_INDEX["forward"]]
    assert forward.tolist() == [False] + [True, False] * 5 + [True]
    np.testing.assert_allclose(camera_of(recording.actions)[1], [0, 3.15], atol=1e-6)


def test_stem_mp4_and_jsonl_name_the_same_recording(tmp_path: Path) -> None:
    path = write(tmp_path, "with.dots")
    for other in (path.with_suffix(".jsonl"), path):
        assert read_recording(other).name == "with.dots"
    assert read_recording(write(tmp_path, "b").with_suffix("")).name == "b"


def test_frames_and_events_must_be_as_many(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="F events, got"):
        write_recording(tmp_path / "a", moving_bars(), walk_events()[:-1])


def test_pairs_are_listed_sorted_and_halves_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = [write(tmp_path, name) for name in ("b", "a", "c")]
    paths[2].with_suffix(".jsonl").unlink()
    with caplog.at_level(logging.WARNING):
        assert [path.name for path in list_recordings(tmp_path)] == ["a.mp4", "b.mp4"]
    assert "c.jsonl: no such file" in caplog.text


def test_a_folder_without_pairs_is_refused_with_what_was_found(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no folder of recordings"):
        list_recordings(tmp_path / "absent")
    with pytest.raises(ValueError, match="found nothing"):
        list_recordings(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"found 1 other files \(notes.txt"):
        list_recordings(tmp_path)


def bad_line(path: Path) -> None:
    lines = path.with_suffix(".jsonl").read_text().splitlines()
    path.with_suffix(".jsonl").write_text("\n".join([*lines[:3], lines[3][:-2], *lines[4:]]))


def no_object(path: Path) -> None:
    path.with_suffix(".jsonl").write_text("17\n" * NUM_FRAMES)


def short_lines(path: Path) -> None:
    path.with_suffix(".jsonl").write_text("".join(json.dumps(event) + "\n" for event in walk_events(7)))


def long_lines(path: Path) -> None:
    path.with_suffix(".jsonl").write_text("".join(json.dumps(event) + "\n" for event in walk_events(15)))


def cut_video(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:700])


def empty_video(path: Path) -> None:
    path.write_bytes(b"")


def lost_video(path: Path) -> None:
    path.unlink()


def damaged_frame(path: Path) -> None:
    damage_frame(path, NUM_FRAMES // 2)


def bad_field(path: Path) -> None:
    path.with_suffix(".jsonl").write_text('{"mouse": {"dx": "left"}}\n' * NUM_FRAMES)


BREAKS = {
    bad_line: r"a\.jsonl, line 4: no JSON",
    no_object: r"a\.jsonl, line 1: an event is a JSON object, got '17'",
    short_lines: r"a\.jsonl: 7 events for the 12 frames",
    long_lines: r"a\.jsonl: 15 events for the 12 frames",
    cut_video: r"a\.mp4: no readable video",
    empty_video: r"a\.mp4: no readable video",
    lost_video: r"a\.mp4: no such file",
    damaged_frame: r"a\.mp4: no readable video",
    bad_field: r"a\.jsonl, line 1: mouse.dx must be a finite number or null, got 'left'",
}


@pytest.mark.parametrize("damage", BREAKS, ids=lambda damage: damage.__name__)
def test_a_broken_recording_is_named_and_skipped(damage, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = [write(tmp_path, "a"), write(tmp_path, "b")]
    damage(paths[0])
    with pytest.raises(ValueError, match=BREAKS[damage]):
        read_recording(paths[0])
    with caplog.at_level(logging.WARNING):
        assert [recording.name for recording in read_all(open_recordings(tmp_path))] == ["b"]
    assert "1 of 2 recordings were skipped" in caplog.text


def test_a_recording_is_opened_without_decoding_it_and_read_in_part(tmp_path: Path) -> None:
    path = write_pair(tmp_path / "8.0" / "player")
    opened = open_recording(path, name="8.0/player")
    assert (opened.name, len(opened), len(opened.actions)) == ("8.0/player", 60, 60)
    np.testing.assert_array_equal(opened.read(33, 42), decode_all(path)[33:42])
    np.testing.assert_array_equal(opened.read(33, 42), read_recording(path).frames[33:42])


def test_the_recorders_errors_are_put_right_on_the_way_in(tmp_path: Path) -> None:
    # Attack stuck at the start, the wheel turned to slot 3, a GUI whose motion version 6.9 wrote in halves.
    events = [event(dx=1.0, hotbar=min(frame, 2) // 2 * 2) for frame in range(4)]
    events[0]["mouse"] |= {"buttons": [0], "newButtons": [0]}
    events[1]["mouse"] |= {"buttons": [0]}
    events[3]["isGuiOpen"] = True
    path = write_pair(tmp_path / "6.9" / "player", events, num_frames=4)
    for actions in (open_recording(path).actions, read_recording(path).actions):
        buttons = buttons_of(actions.classes)
        assert not buttons[:, BUTTON_INDEX["attack"]].any()
        assert buttons[:, BUTTON_INDEX["hotbar.3"]].tolist() == [False, False, True, False]
        np.testing.assert_allclose(camera_of(actions)[:, 1], [0.15, 0.15, 0.15, 0.3], rtol=1e-6)
    assert read_events(path.with_suffix(".jsonl")) == events


def test_the_version_of_an_indexs_name_counts_where_the_folder_has_none(tmp_path: Path) -> None:
    path = write_pair(tmp_path / "player", [event(dx=1.0, isGuiOpen=True)] * 3, num_frames=3)
    assert camera_of(open_recording(path, name="5.7/player").actions)[0, 1] == pytest.approx(0.075)
    assert camera_of(open_recording(path).actions)[0, 1] == pytest.approx(0.15)


def test_only_line_feeds_end_a_line(tmp_path: Path) -> None:
    # What a player typed is written as it is; json.dumps would escape it.
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"keyboard": {"keys": [], "chars": "\u2028\x85"}}\r\n{"mouse": null}\n', encoding="utf-8", newline=""
    )
    assert [sorted(each) for each in read_events(path)] == [["keyboard"], ["mouse"]]


def test_mineworlds_lines_are_read_from_a_file_and_a_bad_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    good = "{'forward': 1, 'attack': 0, 'camera': array([0., 3.])}\n"
    path.write_text(good * 2)
    assert read_events(path) == [{"forward": 1, "attack": 0, "camera": [0.0, 3.0]}] * 2
    path.write_text(good + "{'forward': open('x'), 'camera': array([0., 3.])}\n")
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: no JSON and no Python literal"):
        read_events(path)


def test_recordings_of_one_file_name_are_loaded_under_two_names(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for folder in ("8.0", "9.0"):
        write(tmp_path / folder, "same")
    (tmp_path / "half.mp4").touch()
    with caplog.at_level(logging.WARNING):
        assert [recording.name for recording in read_all(open_recordings(tmp_path))] == ["8.0/same", "9.0/same"]
    assert "1 of 3 recordings were skipped" in caplog.text


def test_a_folder_of_broken_recordings_names_the_first_reason(tmp_path: Path) -> None:
    bad_line(write(tmp_path, "a"))
    with pytest.raises(ValueError, match=r"got 1 broken ones; .* the first: .*a\.jsonl, line 4: no JSON"):
        list(read_all(open_recordings(tmp_path)))


@pytest.mark.parametrize(
    ("matrix", "clockwise"), [((0, 1, -1, 0), 1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 3), ((1, 0, 0, 1), 0)]
)
def test_frames_are_turned_as_a_player_shows_them(tmp_path: Path, matrix: tuple[int, ...], clockwise: int) -> None:
    path = write(tmp_path, "a")
    before = read_recording(path).frames
    turn(path, matrix)
    np.testing.assert_array_equal(read_recording(path).frames, np.rot90(before, -clockwise, axes=(1, 2)))


def test_a_mirrored_video_is_refused_for_left_would_be_right(tmp_path: Path) -> None:
    path = write(tmp_path, "a")
    turn(path, (-1, 0, 0, 1))
    with pytest.raises(ValueError, match="the file asks for a mirrored display"):
        read_recording(path)


def test_a_byte_order_mark_is_no_part_of_the_first_event_or_of_an_index(tmp_path: Path) -> None:
    path = write(tmp_path / "8.0", "a")
    lines = path.with_suffix(".jsonl")
    lines.write_bytes(b"\xef\xbb\xbf" + lines.read_bytes())
    assert read_recording(path).events == walk_events()
    index = tmp_path / "index.json"
    index.write_text(json.dumps({"basedir": "", "relpaths": ["8.0/a.mp4"]}), encoding="utf-8-sig")
    assert list_recordings(index) == [path]


def test_linked_folders_are_found_once_and_a_link_back_up_ends(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "8.0", "a")
    write(tmp_path / "data" / "9.0", "b")
    (tmp_path / "data" / "8.0").symlink_to(tmp_path / "elsewhere" / "8.0")
    (tmp_path / "data" / "9.0" / "up").symlink_to(tmp_path / "data")
    found = [path.relative_to(tmp_path / "data").as_posix() for path in list_recordings(tmp_path / "data")]
    assert found == ["8.0/a.mp4", "9.0/b.mp4"]


@pytest.mark.parametrize(("shift", "yaw"), [(0, [0, 1, 2, 3, 4, 5]), (-1, [0, 0, 1, 2, 3, 4]), (1, [1, 2, 3, 4, 5])])
def test_actions_are_shifted_on_reading_and_frames_without_one_go(tmp_path: Path, shift: int, yaw: list[int]) -> None:
    events = [event(dx=frame / DEGREES_PER_PIXEL) for frame in range(6)]
    opened = open_recording(write_pair(tmp_path / "a", events, num_frames=6), action_shift=shift)
    np.testing.assert_allclose(camera_of(opened.actions)[:, 1], yaw, atol=1e-5)
    # What an event says of its frame stays there.
    assert len(opened) == len(opened.actions) == len(yaw) and opened.events == events[: len(yaw)]


@pytest.mark.parametrize(("shift", "attack"), [(0, [False, True, True]), (-1, [False, False, True]), (1, [True, True])])
def test_pressed_buttons_keep_what_contradicts_and_are_shifted_with_the_actions(
    tmp_path: Path, shift: int, attack: list[bool]
) -> None:
    # Attack alone in event 1, attack and use in event 2.
    events = [event(), event(buttons=[0]), event(buttons=[0, 1])]
    opened = open_recording(write_pair(tmp_path / "a", events, num_frames=3), action_shift=shift)
    assert opened.pressed[:, BUTTON_INDEX["attack"]].tolist() == attack
    pairs = zip(opened.pressed, buttons_of(opened.actions.classes), strict=True)
    for pressed, held in pairs:
        both = pressed[BUTTON_INDEX["attack"]] and pressed[BUTTON_INDEX["use"]]
        np.testing.assert_array_equal(held, np.zeros_like(pressed) if both else pressed)


def test_a_shift_of_the_configuration_reaches_the_prompts(tmp_path: Path) -> None:
    write_pair(tmp_path / "a", [event(dx=frame / DEGREES_PER_PIXEL) for frame in range(12)], num_frames=12)
    world = WorldConfig(height=48, width=64, num_context=1, num_frames=3)
    clip = read_clip(find_recordings(tmp_path), ClipAddress("a", 4), world, DataConfig(action_shift=-1))
    np.testing.assert_allclose(camera_of(clip.actions)[:, 1], [4, 5, 6], atol=1e-5)
    (cut,) = cut_clips(find_recordings(tmp_path), 1, world, 0.0, 0, DataConfig(action_shift=-1)).clips
    first = cut.address.first_frame
    np.testing.assert_allclose(camera_of(cut.actions)[:, 1], [first, first + 1, first + 2], atol=1e-5)
