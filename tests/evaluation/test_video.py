from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from rlir_ray.evaluation.video import GREEN, HOLD_FRAMES, RED, Clips, key_label, save_clips, side_by_side, write_videos
from rlir_ray.spaces.actions import VPT_CAMERA


def clips(name: str, recovered: int) -> Clips:
    """One gray clip of one given and two generated frames; forward is commanded."""
    return Clips(
        name=name,
        frames=np.full((1, 3, 48, 64, 3), 128, np.uint8),
        commanded=np.ones((1, 2, 1), np.int64),
        recovered=np.full((1, 2, 1), recovered, np.int64),
        groups=("forward_back",),
        prompt_ids=("p",),
    )


def colors(name: str, recovered: int, frame: int) -> set[tuple[int, ...]]:
    pixels = np.asarray(side_by_side([clips(name, recovered)], 0, frame)).reshape(-1, 3)
    return {tuple(int(value) for value in pixel) for pixel in np.unique(pixels, axis=0)}


def test_a_key_is_green_where_the_judge_recovered_it_and_red_where_not() -> None:
    assert GREEN in colors("base", 1, 1) and RED not in colors("base", 1, 1)
    assert RED in colors("base", 2, 1) and GREEN not in colors("base", 2, 1)


def test_given_frames_have_no_keys() -> None:
    assert not {GREEN, RED} & colors("base", 1, 0)


def test_what_keys_say() -> None:
    assert key_label("forward_back", 2) == ("S", False)
    assert key_label("forward_back", 0) == ("W/S", True)
    assert key_label("use_attack", 2) == ("FIRE", False)
    assert key_label("hotbar", 3) == ("3", False)
    assert key_label("yaw", VPT_CAMERA.null_bin) == ("turn", True)


def test_videos_play_all_frames_of_all_panels(tmp_path: Path) -> None:
    for name in ("post-trained", "real", "base"):
        save_clips(tmp_path, clips(name, 1))
    (path,) = write_videos(tmp_path)
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
    assert len(frames) == 3 + HOLD_FRAMES
    # Three panels of 256 pixels and two gaps of 8; the enlarged frame keeps its gray within the codec's rounding.
    assert frames[0].shape[1] == 3 * 256 + 2 * 8
    assert frames[0][100, 100].tolist() == pytest.approx([128] * 3, abs=4)
