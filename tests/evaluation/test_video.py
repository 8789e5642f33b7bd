from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from rlir_ray.evaluation.keys import GREEN, INK, RED, draw_keys, draw_target, key_label
from rlir_ray.evaluation.video import FOLDER, HOLD_FRAMES, Clips, load_clips, save_clips, side_by_side, write_videos
from rlir_ray.spaces.fields import ActionField, Axis, Choice, Uniform
from rlir_ray.spaces.space import ActionSpace
from rlir_ray.spaces.vpt import VPT_SPACE
from tests.evaluation.followings import GEAR, LIFT, STEER


def clips(name: str, recovered: int) -> Clips:
    """One gray clip of one given and two generated frames; forward is commanded."""
    return Clips(
        name=name,
        frames=np.full((1, 3, 48, 64, 3), 128, np.uint8),
        space=ActionSpace(VPT_SPACE.select(["forward_back"])),
        commanded=np.ones((1, 2, 1), np.float32),
        recovered=np.full((1, 2, 1), recovered, np.float32),
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
    fields = dict(zip(VPT_SPACE.names, VPT_SPACE.fields, strict=True))
    assert key_label(fields["forward_back"], 2) == ("S", False)
    assert key_label(fields["forward_back"], 0) == ("W/S", True)
    assert key_label(fields["use_attack"], 2) == ("FIRE", False)
    assert key_label(fields["hotbar"], 3) == ("3", False)
    assert key_label(fields["hotbar"], 0) == ("1-9", True)
    assert key_label(fields["yaw"], 0) == ("yaw", True)
    # Other spaces: names of classes, and numbers with their unit; the idle class is no key.
    assert key_label(GEAR, 1) == ("back/on", True) and key_label(GEAR, 2) == ("on", False)
    assert key_label(STEER, -3.25) == ("-3.25 degrees", False)
    assert key_label(Choice(name="side", classes=("left", "right"), null_class=None), 1) == ("right", False)


def key_colors(field: ActionField, commanded: float, recovered: float | None) -> set[tuple[int, ...]]:
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (80, 30), (255, 255, 255))
    read = None if recovered is None else np.array([recovered], np.float32)
    draw_keys(ImageDraw.Draw(picture), (0, 0, 80, 30), (field,), np.array([commanded], np.float32), read)
    return {color for _, color in picture.getcolors(9999) or []} & {GREEN, RED, INK}


def test_a_key_of_a_graded_axis_is_green_up_to_one_bin_off() -> None:
    # Bins of 2 from -4: -3 lies in bin 0, -1 in bin 1, 1 in bin 2.
    assert key_colors(STEER, -3, -3) == key_colors(STEER, -3, -1) == {GREEN}
    assert key_colors(STEER, -3, 1) == {RED}
    assert key_colors(STEER, -3, None) == {INK}
    # A class must be the commanded one, and so must the bin of a mu-law.
    yaw = VPT_SPACE.select(["yaw"])[0]
    assert key_colors(yaw, 10, 10) == {GREEN} and key_colors(yaw, 10, 5.8) == {RED}
    assert key_colors(GEAR, 2, 0) == {RED}


def target_places(space: ActionSpace, commanded: list[float], recovered: list[float] | None) -> dict[str, bool]:
    """Which colours a target has at the commanded and at the recovered place of a 200 x 100 frame."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (200, 100), (255, 255, 255))
    read = None if recovered is None else np.array(recovered, np.float32)
    draw_target(ImageDraw.Draw(picture), picture.size, space, np.array(commanded, np.float32), read)
    pixels = np.asarray(picture)
    # The target of half the range to the right lies at .6 * .5 of the way to the edge: 100 + 30; of the full range
    # upwards at 50 - 30.
    return {
        "right": tuple(pixels[50, 130]) == GREEN,
        "up": tuple(pixels[20, 100]) == GREEN,
        "ring": tuple(pixels[50, 130 + 7]) == RED,
        "drawn": bool((pixels != 255).any()),
    }


def test_two_directed_axes_are_a_target_on_the_frame() -> None:
    climb = Axis(name="climb", low=-1, high=1, quantizer=Uniform(num_bins=5), direction="down")
    space = ActionSpace((GEAR, climb, STEER))
    assert target_places(space, [1, 0, 2], None) == {"right": True, "up": False, "ring": False, "drawn": True}
    assert target_places(space, [1, -1, 0], None)["up"]
    assert target_places(space, [1, 0, -4], [1, 0, 2])["ring"]
    # A position in pixels counts from the middle of its range: 384 of 512 is half of the way to the right.
    x, y = (
        Axis(name=name, low=0, high=512, quantizer=Uniform(num_bins=21), direction=direction)
        for name, direction in (("x", "right"), ("y", "down"))
    )
    assert target_places(ActionSpace((x, y)), [384, 256], None)["right"]
    assert target_places(ActionSpace((x, y)), [256, 0], None)["up"]
    # One direction, no direction, or VPT's classes are no target.
    for other in (ActionSpace((GEAR, STEER)), ActionSpace((GEAR, LIFT)), VPT_SPACE):
        assert not target_places(other, [1.0] * len(other), None)["drawn"]


def test_clips_survive_the_disk_and_those_of_earlier_versions_are_read(tmp_path: Path) -> None:
    saved = clips("base", 2)
    save_clips(tmp_path, saved)
    (read,) = load_clips(tmp_path)
    assert read.space == saved.space and read.prompt_ids == ("p",) and np.array_equal(read.frames, saved.frames)
    assert np.array_equal(read.commanded, saved.commanded)
    assert read.recovered is not None and (read.recovered == 2).all()
    save_clips(tmp_path, replace(saved, recovered=None))
    assert load_clips(tmp_path)[0].recovered is None
    # An earlier version: classes of groups of VPT, -1 where no judge read the clip.
    old = {
        "frames": saved.frames,
        "groups": np.array(["forward_back", "yaw"]),
        "prompt_ids": np.array(["p"]),
        "commanded": np.array([[[2, 10], [0, 5]]]),
    }
    for recovered, wanted in ((old["commanded"], [[[2, 10], [0, 0]]]), (np.full((1, 2, 2), -1), None)):
        np.savez_compressed(tmp_path / FOLDER / "base.npz", **old, recovered=recovered)
        (read,) = load_clips(tmp_path)
        assert read.space.names == ("forward_back", "yaw") and read.commanded.tolist() == [[[2, 10], [0, 0]]]
        assert (None if read.recovered is None else read.recovered.tolist()) == wanted


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
