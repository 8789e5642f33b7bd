"""Clips: cut lazily, found again by their address, and skipped as a whole if their recording is broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlir_ray.config import DataConfig, WorldConfig
from rlir_ray.data import recorded_clips
from rlir_ray.data.clips import Clip, ClipAddress, CutClips, read_clip
from rlir_ray.data.recorded_clips import cut_clips
from rlir_ray.data.recordings import resize_frames
from rlir_ray.data.video import VideoFile
from rlir_ray.data.vpt.index import VptRecordings, find_recordings
from rlir_ray.spaces.vpt import camera_of
from tests.data.videos import HEIGHT, NUM_FRAMES, WIDTH, damage_frame, decode_all, event, write_pair

# Clips of 10 frames: a recording of 60 holds six.
WORLD = WorldConfig(height=HEIGHT, width=WIDTH, num_context=2, num_frames=8)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> VptRecordings:
    """Three recordings, two of them of one file name; frames 10..29 of one lie behind a GUI."""
    folder = tmp_path_factory.mktemp("recordings")
    gui = [event(dx=float(frame), isGuiOpen=frame in (19, 20)) for frame in range(NUM_FRAMES)]
    write_pair(folder / "8.0" / "same")
    write_pair(folder / "9.0" / "same", gui)
    write_pair(folder / "flat")
    return find_recordings(folder)


def broken_source(folder: Path) -> VptRecordings:
    """Of three recordings one is whole, one is damaged amid its frames, one has a bad line."""
    for name in "abc":
        write_pair(folder / name)
    damage_frame(folder / "b.mp4")
    (folder / "c.jsonl").write_text("{}\n{\n" + "{}\n" * (NUM_FRAMES - 2))
    return find_recordings(folder)


def ids(cut: CutClips) -> list[str]:
    return [clip.address.prompt_id for clip in cut.clips]


def assert_equal(one: Clip, other: Clip) -> None:
    assert one.address == other.address
    np.testing.assert_array_equal(one.frames, other.frames)
    assert one.actions.equals(other.actions)


def test_a_clip_is_found_by_its_address(source: VptRecordings) -> None:
    clip = read_clip(source, ClipAddress("9.0/same", 30), WORLD)
    assert clip.address.prompt_id == "9.0/same:30"
    np.testing.assert_array_equal(clip.frames, decode_all(source.videos["9.0/same"])[30:40])
    # The action at k leads into frame k; the first frame's own belongs to the past.
    np.testing.assert_allclose(camera_of(clip.actions)[:, 1], np.arange(31, 40) * 0.15, rtol=1e-6)


def test_an_address_that_the_source_does_not_hold_is_refused(source: VptRecordings) -> None:
    with pytest.raises(ValueError, match=r"got none named '7\.0/same'"):
        read_clip(source, ClipAddress("7.0/same", 0), WORLD)
    with pytest.raises(ValueError, match=r"flat\.mp4: frames must lie within 0\.\.60, got \[51, 61\)"):
        read_clip(source, ClipAddress("flat", 51), WORLD)


def test_addresses_are_those_of_all_clips_without_a_gui(source: VptRecordings) -> None:
    cut = cut_clips(source, 100, WORLD, 0, seed=0)
    addresses = sorted(clip.address for clip in cut.clips)
    starts = {name: [each.first_frame for each in addresses if each.recording == name] for name in source.videos}
    assert starts == {
        "8.0/same": [0, 10, 20, 30, 40, 50],
        "9.0/same": [0, 30, 40, 50],
        "flat": [0, 10, 20, 30, 40, 50],
    }
    assert cut.skipped == ()


def test_only_the_clips_that_are_returned_are_decoded(source: VptRecordings, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[tuple[int, int]] = []
    read = VideoFile.read

    def counted(self: VideoFile, start: int, stop: int) -> Any:
        decoded.append((start, stop))
        return read(self, start, stop)

    monkeypatch.setattr(VideoFile, "read", counted)
    cut = cut_clips(source, 5, WORLD, 0, seed=0)
    assert decoded == [(clip.address.first_frame, clip.address.first_frame + 10) for clip in cut.clips]
    assert len(decoded) == 5


def test_clips_that_are_cut_are_those_at_their_addresses(
    source: VptRecordings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two clips of each recording at first, then more of each.
    monkeypatch.setattr(recorded_clips, "MIN_CLIPS_OF_RECORDING", 2)
    for num_clips, per_recording in ((6, {2}), (100, {4, 6})):
        cut = cut_clips(source, num_clips, WORLD, 0, seed=1)
        names = [clip.address.recording for clip in cut.clips]
        assert {names.count(name) for name in source.videos} == per_recording
        assert len(set(ids(cut))) == len(cut.clips) == min(num_clips, 16)
        for clip in cut.clips:
            assert_equal(read_clip(source, clip.address, WORLD), clip)


def test_broken_recordings_are_skipped_counted_and_named(tmp_path: Path) -> None:
    broken_source(tmp_path)
    (tmp_path / "d.mp4").touch()
    cut = cut_clips(find_recordings(tmp_path), 18, WORLD, 0, seed=0)
    assert {clip.address.recording for clip in cut.clips} == {"a"}
    assert cut.num_recordings == 4
    for reason in (r"d.jsonl: no such file", r"b.mp4: no readable video", r"c.jsonl, line 2: no JSON"):
        assert sum(reason in line for line in cut.skipped) == 1
    assert len(cut.skipped) == 3 and not any("\n" in line for line in cut.skipped)


def test_no_clip_is_kept_of_a_recording_whose_damage_is_found_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorded_clips, "MIN_CLIPS_OF_RECORDING", 1)
    write_pair(tmp_path / "short", num_frames=10)
    write_pair(tmp_path / "long", num_frames=30)
    damage_frame(tmp_path / "long.mp4", packet_number=20)
    source = find_recordings(tmp_path)
    # Two clips of each are wanted: a seed that takes the whole ones of the long recording first.
    intact = ["long:0", "long:10", "short:0"]
    seed = next(seed for seed in range(99) if sorted(ids(cut_clips(source, 3, WORLD, 0, seed))) == intact)
    # A fourth can only be the damaged one.
    cut = cut_clips(source, 4, WORLD, 0, seed)
    assert ids(cut) == ["short:0"]
    assert len(cut.skipped) == 1 and "long.mp4: no readable video" in cut.skipped[0]


def test_strict_reading_raises_at_the_first_broken_recording(tmp_path: Path) -> None:
    strict = DataConfig(strict=True)
    source = broken_source(tmp_path)
    with pytest.raises(ValueError, match=r"b\.mp4: no readable video|c\.jsonl, line 2: no JSON"):
        cut_clips(source, 18, WORLD, 0, seed=0, data=strict)
    (tmp_path / "d.mp4").touch()
    source = find_recordings(tmp_path)
    with pytest.raises(ValueError, match=r"d\.jsonl: no such file"):
        cut_clips(source, 1, WORLD, 0, seed=0, data=strict)


def test_a_source_of_broken_recordings_names_the_first_reason(tmp_path: Path) -> None:
    write_pair(tmp_path / "a")
    (tmp_path / "a.jsonl").write_text(json.dumps(event()) + "\n")
    with pytest.raises(ValueError, match=r"got 1 broken ones; .* the first: .*a\.jsonl: 1 events for the 60 frames"):
        cut_clips(find_recordings(tmp_path), 1, WORLD, 0, seed=0)


def test_resizing_is_an_average_or_takes_neighbours_alone() -> None:
    row = np.array([0, 100, 51, 250], np.uint8)
    frames = np.broadcast_to(row[None, None, :, None], (1, 4, 4, 3))
    # Area: (0 + 100 + 51 + 250) / 4 = 100.25. Bilinear at the centre 1.5: (100 + 51) / 2 = 75.5, to the even 76.
    for resize, value in (("area", 100), ("bilinear", 76)):
        resized = resize_frames(np.ascontiguousarray(frames), 1, 1, resize)
        assert resized.dtype == np.uint8 and resized.shape == (1, 1, 1, 3)
        assert (resized == value).all()


def test_clips_are_resized_as_configured(source: VptRecordings) -> None:
    small = WorldConfig(height=HEIGHT // 4, width=WIDTH // 4, num_context=2, num_frames=8)
    frames = decode_all(source.videos["flat"])[:10]
    # A quarter's centre lies between the second and the third pixel.
    pixels = frames.astype(float)
    middle = (pixels[:, 1::4] + pixels[:, 2::4]) / 2
    bilinear = np.round((middle[:, :, 1::4] + middle[:, :, 2::4]) / 2)
    address = ClipAddress("flat", 0)
    np.testing.assert_array_equal(read_clip(source, address, small, DataConfig(resize="bilinear")).frames, bilinear)
    area = torch.nn.functional.avg_pool2d(torch.from_numpy(pixels).permute(0, 3, 1, 2), 4).permute(0, 2, 3, 1)
    np.testing.assert_allclose(read_clip(source, address, small).frames, area, atol=0.51)
    for config in (DataConfig(resize="bilinear"), DataConfig()):
        (clip,) = cut_clips(source, 1, small, 0, seed=0, data=config).clips
        assert_equal(clip, read_clip(source, clip.address, small, config))
