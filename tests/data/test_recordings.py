"""Recordings: what is written is read back, and what is broken is named."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from rlir_ray.actions import INDEX
from rlir_ray.data.recordings import list_recordings, read_recording, read_recordings, write_recording

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
    assert recording.actions.buttons[:, INDEX["forward"]].tolist() == [False] + [True, False] * 5 + [True]
    np.testing.assert_allclose(recording.actions.camera[1], [0, 3.15], atol=1e-6)


def test_stem_mp4_and_jsonl_name_the_same_recording(tmp_path: Path) -> None:
    path = write(tmp_path, "with.dots")
    for other in (path.with_suffix(".jsonl"), path):
        assert read_recording(other).name == "with.dots"
    assert read_recording(write(tmp_path, "b").with_suffix("")).name == "b"


def test_frames_and_events_must_be_as_many(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="F events, got"):
        write_recording(tmp_path / "a", moving_bars(), walk_events()[:-1])


def test_pairs_are_listed_sorted_and_halves_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
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


BREAKS = {
    bad_line: r"a\.jsonl, line 4: no JSON",
    no_object: r"a\.jsonl, line 1: an event is a JSON object, got '17'",
    short_lines: r"a\.jsonl: 7 events for the 12 frames",
    long_lines: r"a\.jsonl: 15 events for the 12 frames",
    cut_video: r"a\.mp4: no readable video",
    empty_video: r"a\.mp4: no readable video",
    lost_video: r"a\.mp4: no such file",
}


@pytest.mark.parametrize("damage", BREAKS, ids=lambda damage: damage.__name__)
def test_a_broken_recording_is_named_and_left_out(damage, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = [write(tmp_path, "a"), write(tmp_path, "b")]
    damage(paths[0])
    with pytest.raises(ValueError, match=BREAKS[damage]):
        read_recording(paths[0])
    with caplog.at_level(logging.WARNING):
        assert [recording.name for recording in read_recordings(paths)] == ["b"]
    assert "1 of 2 recordings were left out" in caplog.text
    with pytest.raises(ValueError, match=BREAKS[damage]):
        list(read_recordings(paths, strict=True))
