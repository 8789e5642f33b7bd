"""Frames by their number: what is read is what a full decode gives, and what is cut off is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rlir_ray.data import video as video_module
from rlir_ray.data.video import index_video
from rlir_ray.data.vpt.pairs import write_recording
from tests.data.videos import B_FRAMES, GOP, NUM_FRAMES, damage_frame, decode_all, moving_bars, write_video

ENCODINGS = {
    "b_frames": (B_FRAMES, ""),
    "index_in_front": (B_FRAMES, "faststart"),
    "fragments": (B_FRAMES, "frag_keyframe+empty_moov"),
    "b_pyramid": (B_FRAMES | {"bf": "8", "x264-params": "b-pyramid=normal:ref=8"}, ""),
    "open_gop": (B_FRAMES | {"x264-params": "open-gop=1:b-adapt=0"}, ""),
    "one_gop": (B_FRAMES | {"g": "250"}, ""),
    "keyframes_only": ({"g": "1"}, ""),
    "intra_refresh": ({"g": "20", "x264-params": "intra-refresh=1"}, ""),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_frames_read_by_number_equal_those_of_a_full_decode(tmp_path: Path, encoding: str) -> None:
    path = write_video(tmp_path / "a.mp4", *ENCODINGS[encoding])
    whole, video = decode_all(path), index_video(path)
    assert len(video) == len(whole) == NUM_FRAMES
    for start in (*range(0, NUM_FRAMES, 7), GOP - 1, GOP, GOP + 1, NUM_FRAMES - 1):
        for stop in {start + 1, min(start + 9, NUM_FRAMES), NUM_FRAMES}:
            np.testing.assert_array_equal(video.read(start, stop), whole[start:stop], err_msg=f"[{start}, {stop})")


def test_a_recording_of_ones_own_is_read_like_any_other(tmp_path: Path) -> None:
    write_recording(tmp_path / "a", moving_bars(), [{}] * NUM_FRAMES)
    whole = decode_all(tmp_path / "a.mp4")
    np.testing.assert_array_equal(index_video(tmp_path / "a.mp4").read(30, 45), whole[30:45])


def test_only_frames_from_the_keyframe_before_to_the_last_one_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = index_video(write_video(tmp_path / "a.mp4"))
    assert video.keyframes.tolist() == [0, 20, 40]
    decoded = []
    decode = video_module._decoded

    def counted(*arguments):
        for frame in decode(*arguments):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(video_module, "_decoded", counted)
    video.read(25, 28)
    # From the keyframe 20 on, and at most the three B frames and their reference after frame 27.
    assert decoded[0] == video.timestamps[20]
    assert 8 <= len(decoded) <= 12


@pytest.mark.parametrize("movflags", ["", "faststart"])
def test_a_file_that_is_cut_off_anywhere_is_refused(tmp_path: Path, movflags: str) -> None:
    content = write_video(tmp_path / "whole.mp4", movflags=movflags).read_bytes()
    cut = tmp_path / "cut.mp4"
    for size in (*range(0, len(content), len(content) // 100), len(content) - 9, len(content) - 1):
        cut.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"cut\.mp4: (no readable video \(.*\)|a video without frames); record"):
            index_video(cut)


def test_missing_frames_are_found_where_the_files_end_looks_whole(tmp_path: Path) -> None:
    content = write_video(tmp_path / "a.mp4", movflags="faststart").read_bytes()
    start = content.index(b"mdat") - 4
    half = content[: (start + len(content)) // 2]
    (tmp_path / "a.mp4").write_bytes(half[:start] + (len(half) - start).to_bytes(4, "big") + half[start + 4 :])
    with pytest.raises(ValueError, match=r"a\.mp4: no readable video \(\d+ of 60 frames are there\)"):
        index_video(tmp_path / "a.mp4")


@pytest.mark.parametrize("offset", [0, 60])
def test_damage_that_only_decoding_finds_names_the_file_when_it_is_read(tmp_path: Path, offset: int) -> None:
    path = write_video(tmp_path / "a.mp4", movflags="faststart")
    # Before the damage: of the same frames the encoder does not always make the same file.
    whole = decode_all(path)
    damage_frame(path, packet_number=20, offset=offset)
    video = index_video(path)
    with pytest.raises(ValueError, match=r"a\.mp4: no readable video \(.*\); record") as refusal:
        video.read(20, 40)
    np.testing.assert_array_equal(video.read(40, 50), whole[40:50])
    assert "\n" not in str(refusal.value)


def test_a_file_without_a_video_and_frames_that_are_not_there_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video " * 100)
    with pytest.raises(ValueError, match=r"text\.mp4: no readable video"):
        index_video(tmp_path / "text.mp4")
    video = index_video(write_video(tmp_path / "a.mp4", num_frames=5))
    for start, stop in ((0, 6), (-1, 2), (3, 3)):
        with pytest.raises(ValueError, match=r"frames must lie within 0\.\.5"):
            video.read(start, stop)
