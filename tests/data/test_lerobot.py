"""LeRobot datasets: an action leads into the same frame after writing and reading; what is broken is named."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlir_ray.data import video as video_module
from rlir_ray.data.lerobot import frames as lerobot_frames
from rlir_ray.data.lerobot import shards as lerobot_shards
from rlir_ray.data.lerobot import writer as lerobot_writer
from rlir_ray.data.lerobot.layout import is_lerobot
from rlir_ray.data.lerobot.reader import LerobotDataset, LerobotEpisode
from rlir_ray.data.lerobot.writer import LerobotWriter
from rlir_ray.spaces.fields import Axis, Uniform
from rlir_ray.spaces.space import SPACE_FILE, Actions, ActionSpace
from tests.data.lerobot_sets import (
    CAMERA,
    FPS,
    HEIGHT,
    SPACE,
    WIDTH,
    actions_of,
    add_camera,
    edit_info,
    edit_table,
    encode,
    frames_of,
    write_dataset,
    write_v21,
    writer_of,
)

DATA, VIDEO, EPISODES = (
    Path(f"{folder}/chunk-000/file-000.{suffix}")
    for folder, suffix in (("data", "parquet"), (f"videos/{CAMERA}", "mp4"), ("meta/episodes", "parquet"))
)


def assert_same_frames(found: npt.NDArray[np.uint8], expected: npt.NDArray[np.uint8]) -> None:
    # A grey survives the encoder but for a rounding; frames differ by four greys, episodes by forty.
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= 1


# ---------------------------------------------------------------------------------------------------------------------
# Actions and frames


def test_an_action_leads_into_the_same_frame_after_writing_and_reading(tmp_path: Path) -> None:
    episode = LerobotDataset(write_dataset(tmp_path / "set", [12])).recording("episode_000000")
    assert len(episode) == len(episode.actions) == 12
    assert_same_frames(episode.read(5, 6), frames_of(12)[5:6])
    np.testing.assert_array_equal(episode.actions.values[1:], actions_of(12).values[1:])
    np.testing.assert_array_equal(episode.actions.values[0], [0, 0])  # nothing, whatever was given


def test_lerobot_row_holds_the_action_that_is_taken_in_it_and_the_last_row_repeats(tmp_path: Path) -> None:
    table = pq.read_table(write_dataset(tmp_path / "set", [4]) / DATA, partitioning=None)
    # Given: turns 0 1 2 3, of which 0 leads into frame 0. Row t leads into frame t + 1.
    assert [turn for _, turn in table["action"].to_pylist()] == [1, 2, 3, 3]
    assert table["frame_index"].to_pylist() == [0, 1, 2, 3]
    np.testing.assert_allclose(table["timestamp"].to_numpy(), [0, 0.1, 0.2, 0.3], rtol=1e-6)


def test_episodes_of_one_file_are_told_apart(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "set", [12, 7, 1, 9])
    assert [path.name for path in folder.rglob("*.mp4")] == ["file-000.mp4"]
    dataset = LerobotDataset(folder)
    assert len(dataset) == 4 and dataset.skipped == () and dataset.fps == FPS
    assert dataset.space == SPACE
    for number, (name, length) in enumerate(zip(dataset.names, [12, 7, 1, 9], strict=True)):
        episode = dataset.recording(name)
        assert_same_frames(episode.read(0, length), frames_of(length, number))
        np.testing.assert_array_equal(episode.actions.values[1:], actions_of(length, number).values[1:])
    with pytest.raises(ValueError, match=r"episode_000001: frames must lie within 0\.\.7, got \[5, 8\)"):
        dataset.recording("episode_000001").read(5, 8)
    with pytest.raises(ValueError, match="none named 'episode_000004'"):
        dataset.recording("episode_000004")


def test_a_camera_is_chosen_by_its_name(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "set", [6, 5])
    with LerobotWriter(tmp_path / "wrist", SPACE, fps=FPS, height=HEIGHT, width=WIDTH, camera="wrist") as writer:
        for number, length in enumerate((6, 5)):
            writer.write(255 - frames_of(length, number), actions_of(length, number))
    add_camera(folder, tmp_path / "wrist", "wrist")
    for camera, sign in ((CAMERA, 0), ("wrist", 255)):
        read = LerobotDataset(folder, camera).recording("episode_000001").read(1, 4)
        assert_same_frames(read, np.abs(sign - frames_of(5, 1)[1:4].astype(int)).astype(np.uint8))
    with pytest.raises(ValueError, match=f"got 'none'; choose one of {CAMERA}, wrist"):
        LerobotDataset(folder)
    with pytest.raises(ValueError, match=f"got 'top'; choose one of {CAMERA}, wrist"):
        LerobotDataset(folder, "top")


@pytest.mark.parametrize("dtype", ["video", "image"])
def test_v21_has_a_file_an_episode(tmp_path: Path, dtype: str) -> None:
    dataset = LerobotDataset(write_v21(tmp_path / "set", dtype=dtype))
    assert dataset.names == ["episode_000000", "episode_000001"] and dataset.skipped == ()
    episode = dataset.recording("episode_000001")
    assert_same_frames(episode.read(1, 4), frames_of(5, 1)[1:4])
    # Rows 10 11 12 13 14: the last leads into no frame; frame 0 gets the low end of pan, and 0 lies within no range.
    assert episode.actions.values.tolist() == [[0, 4], [10, 5], [11, 5], [12, 5], [13, 5]]


def test_a_strangers_space_has_clipped_axes_from_minimum_to_maximum(tmp_path: Path) -> None:
    pan, grip = LerobotDataset(write_v21(tmp_path / "set")).space.fields
    quantizer = Uniform(num_bins=21)
    # Episode 0 has 0..5, episode 1 has 10..14; grip is always 5 and gets a range around it.
    assert pan == Axis(name="pan", low=0, high=14, quantizer=quantizer, is_clipped=True)
    assert grip == Axis(name="grip", low=4, high=6, quantizer=quantizer, is_clipped=True)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["b", "a"], ["b", "a"]),
        ({"b": 1, "a": 0}, ["a", "b"]),
        ({"arm": ["a"], "hand": ["b"]}, ["a", "b"]),
        (None, ["action_0", "action_1"]),
        (["a", "a"], ["action_0", "action_1"]),
        (["a"], ["action_0", "action_1"]),
    ],
)
def test_names_of_a_derived_space(tmp_path: Path, names: object, expected: list[str]) -> None:
    folder = write_dataset(tmp_path / "set", [5])
    (folder / SPACE_FILE).unlink()
    features = json.loads((folder / "meta/info.json").read_text())["features"]
    features["action"]["names"] = names
    edit_info(folder, features=features)
    space = LerobotDataset(folder).space
    assert [field.name for field in space.fields] == expected
    assert [(field.low, field.high) for field in space.fields if isinstance(field, Axis)] == [(0, 1), (1, 4)]


def test_an_integer_action_of_one_number_is_an_axis_unless_the_space_says_otherwise(tmp_path: Path) -> None:
    folder = write_v21(tmp_path / "set", [5])
    features = json.loads((folder / "meta/info.json").read_text())["features"]
    features["action"] = {"dtype": "int64", "shape": [1], "names": None}
    edit_info(folder, features=features)
    edit_table(folder / "data/chunk-000/episode_000000.parquet", action=[2, 0, 1, 2, 0])
    stats = {"action": {"min": [0], "max": [2], "count": [5]}}
    (folder / "meta/episodes_stats.jsonl").write_text(json.dumps({"episode_index": 0, "stats": stats}) + "\n")
    dataset = LerobotDataset(folder)
    assert [type(field) for field in dataset.space.fields] == [Axis]
    assert dataset.recording("episode_000000").actions.values[:, 0].tolist() == [0, 2, 0, 1, 2]
    rows = '{"name": "move", "classes": ["none", "left", "right"], "kind": "choice"}'
    (folder / SPACE_FILE).write_text(f'{{"fields": [{rows}]}}')
    dataset = LerobotDataset(folder)
    assert dataset.recording("episode_000000").actions.classes[:, 0].tolist() == [0, 2, 0, 1, 2]


# ---------------------------------------------------------------------------------------------------------------------
# Reading no more than needed


def test_a_range_decodes_from_the_keyframe_before_it_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_dataset(tmp_path / "set", [40, 40, 40])
    decoded = []
    decode = video_module._decoded

    def counted(*arguments):
        for frame in decode(*arguments):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(video_module, "_decoded", counted)
    dataset = LerobotDataset(folder)
    episode = dataset.recording("episode_000002")
    assert decoded == []
    assert len(episode.read(5, 8)) == 3
    # Each episode was encoded alone, so that its frame 0 is a keyframe: at most frames 0..7 and one more.
    assert 3 <= len(decoded) <= 9


def test_images_of_other_row_groups_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    episode = LerobotDataset(write_v21(tmp_path / "set", [9, 5], dtype="image")).recording("episode_000000")
    groups, images = [], []
    iter_batches, decode = pq.ParquetFile.iter_batches, lerobot_frames._image
    monkeypatch.setattr(
        pq.ParquetFile,
        "iter_batches",
        lambda self, *args, **kwargs: groups.extend(kwargs["row_groups"]) or iter_batches(self, *args, **kwargs),
    )
    monkeypatch.setattr(lerobot_frames, "_image", lambda cell: images.append(1) or decode(cell))
    assert_same_frames(episode.read(3, 5), frames_of(9)[3:5])
    assert groups == [1, 2] and len(images) == 2


def test_the_room_loads_neither_torch_nor_ray() -> None:
    code = (
        "import sys, rlir_ray.data.lerobot.reader, rlir_ray.data.lerobot.writer\n"
        "print([name for name in ('torch', 'ray', 'lerobot', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


# ---------------------------------------------------------------------------------------------------------------------
# Broken datasets


def cut(path: Path, share: float = 0.6) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def change_action(folder: Path, row: int, value: float) -> None:
    actions = pq.read_table(folder / DATA, partitioning=None)["action"].to_pylist()
    actions[row][1] = value
    edit_table(folder / DATA, action=pa.array(actions, pa.list_(pa.float32())))


def give_action_other_length(folder: Path) -> None:
    actions = pq.read_table(folder / DATA, partitioning=None)["action"].to_pylist()
    edit_table(folder / DATA, action=[*actions[:5], *([*each, 0.0] for each in actions[5:])])


def swap_rows(folder: Path) -> None:
    table = pq.read_table(folder / DATA, partitioning=None)
    pq.write_table(table.take([0, 1, 2, 3, 4, 6, 5, 7, 8]), folder / DATA)


def drop_row(folder: Path) -> None:
    pq.write_table(pq.read_table(folder / DATA, partitioning=None).slice(0, 8), folder / DATA)


def drop_metadata(folder: Path) -> None:
    pq.write_table(pq.read_table(folder / EPISODES, partitioning=None).slice(0, 1), folder / EPISODES)


# Of a dataset with episodes of 5 and 4 frames: what is done, the episodes that are left, and the reason.
BROKEN: dict[str, tuple[Callable[[Path], object], list[int], str]] = {
    "video_is_cut_off": (lambda folder: cut(folder / VIDEO), [], "no readable video"),
    "video_is_missing": (lambda folder: (folder / VIDEO).unlink(), [], "no readable video (No such file"),
    "video_is_short": (
        lambda folder: encode(folder / VIDEO, frames_of(7)),
        [0],
        "an episode must have as many pictures as rows, got 2 pictures for 4 rows",
    ),
    "table_is_missing": (lambda folder: (folder / DATA).unlink(), [], "no readable table (no such file)"),
    "table_has_no_footer": (lambda folder: cut(folder / DATA), [], "the recording was not closed"),
    "table_is_short": (drop_row, [0], "an episode must have the 4 rows that the metadata say, got 3"),
    "rows_are_out_of_order": (swap_rows, [0], "must be in the order of frame_index"),
    "action_is_nan": (lambda folder: change_action(folder, 6, float("nan")), [0], "turn must be finite"),
    "action_is_outside": (lambda folder: change_action(folder, 6, 91), [0], "turn must be within -10 and 90, got 91"),
    "action_is_longer": (give_action_other_length, [0], "must have the 2 numbers that info.json says, got 3"),
    "metadata_lack_an_episode": (drop_metadata, [0], "must have a row of metadata, got none"),
    "metadata_have_no_footer": (lambda folder: cut(folder / EPISODES), [], "no footer"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_episode_is_left_out_named_and_counted(tmp_path: Path, what: str) -> None:
    break_it, left, reason = BROKEN[what]
    folder = write_dataset(tmp_path / "set", [5, 4])
    # A whole episode in files of its own.
    with writer_of(folder) as writer:
        writer.write(frames_of(6, 2), actions_of(6, 2))
    break_it(folder)
    dataset = LerobotDataset(folder)
    assert dataset.names == [f"episode_{number:06d}" for number in (*left, 2)]
    assert len(dataset) == 3
    for number, line in zip([each for each in (0, 1) if each not in left], dataset.skipped, strict=True):
        assert line.startswith(f"episode_{number:06d}: ") and reason in line and "\n" not in line
        assert "; " in line  # the way out
    assert_same_frames(dataset.recording("episode_000002").read(2, 4), frames_of(6, 2)[2:4])


def test_v21_video_of_another_length_than_its_table_is_left_out(tmp_path: Path) -> None:
    folder = write_v21(tmp_path / "set", [6, 5])
    encode(folder / f"videos/chunk-001/{CAMERA}/episode_000001.mp4", frames_of(8))
    dataset = LerobotDataset(folder)
    assert dataset.names == ["episode_000000"]
    assert "got 8 pictures for 5 rows" in dataset.skipped[0]


def test_pictures_at_other_times_than_the_rows_are_refused(tmp_path: Path) -> None:
    folder = write_v21(tmp_path / "set", [6, 5])
    encode(folder / f"videos/chunk-001/{CAMERA}/episode_000001.mp4", frames_of(5), fps=20)
    # Pictures at 0.05 s each: picture 1 is half a frame from 0.1 s.
    with pytest.raises(
        ValueError, match=r"frame 1 must have its picture at 0\.100 s of the episode, got one at 0\.050"
    ):
        LerobotDataset(folder).recording("episode_000001")


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    folder = write_v21(tmp_path / "set", [6], dtype="image")
    path = folder / "data/chunk-000/episode_000000.parquet"
    cells = pq.read_table(path, partitioning=None)[CAMERA].to_pylist()
    cells[2]["bytes"], cells[3]["bytes"] = b"no image", None
    edit_table(path, **{CAMERA: pa.array(cells, pa.struct({"bytes": pa.binary(), "path": pa.string()}))})
    episode = LerobotDataset(folder).recording("episode_000000")
    for start, reason in ((2, "cannot identify image file"), (3, "an image must lie in the table, got none")):
        with pytest.raises(ValueError, match=rf"episode_000000\.parquet: no readable images \({reason}"):
            episode.read(start, start + 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebase_version": "v2.0"}, "codebase_version must be v3.0 or v2.1, got 'v2.0'; convert"),
        ({"codebase_version": None}, "got None; convert"),
        ({"fps": 0}, "fps must be a number above 0, got 0"),
        ({"features": {}}, "must name a video or image feature, the dataset has none"),
        (
            {"features": {CAMERA: {"dtype": "video"}}},
            "the feature 'action' must be a vector with a shape [D], got None",
        ),
        ({"data_path": "../{chunk_index}"}, "must stay below the dataset"),
        ({"data_path": "data/{number}"}, "must use the fields chunk_index, file_index"),
    ],
)
def test_a_dataset_that_no_episode_can_be_read_of_is_refused_in_a_line(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    folder = write_dataset(tmp_path / "set", [3])
    edit_info(folder, **changes)
    with pytest.raises(ValueError) as caught:
        LerobotDataset(folder)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_dataset_without_statistics_or_episodes_is_refused(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "set", [3])
    (folder / SPACE_FILE).unlink()
    (folder / "meta/stats.json").unlink()
    with pytest.raises(ValueError, match="must hold min and max of the 2 numbers of 'action'"):
        LerobotDataset(folder)
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match="must hold an episode that can be read, got none"):
        LerobotDataset(write_dataset(tmp_path / "set", []))
    assert is_lerobot(folder) and not is_lerobot(tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def test_statistics_are_those_of_all_rows(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "set", [12, 7])
    stats = json.loads((folder / "meta/stats.json").read_text())
    rows = np.array(pq.read_table(folder / DATA, partitioning=None)["action"].to_pylist())
    assert stats["action"]["count"] == [19]
    for key, expected in (("min", rows.min(0)), ("max", rows.max(0)), ("mean", rows.mean(0)), ("std", rows.std(0))):
        np.testing.assert_allclose(stats["action"][key], expected)
    greys = np.concatenate([frames_of(12), frames_of(7, 1)])[:, 0, 0, 0] / 255
    assert np.shape(stats[CAMERA]["mean"]) == (3, 1, 1)
    np.testing.assert_allclose(np.ravel(stats[CAMERA]["mean"]), greys.mean())
    np.testing.assert_allclose(np.ravel(stats[CAMERA]["std"]), greys.std())


def test_further_columns_are_written_and_must_stay_the_same(tmp_path: Path) -> None:
    state = np.arange(12, dtype=np.float32).reshape(4, 3)
    with writer_of(tmp_path / "set", extra={"world": "doom"}) as writer:
        writer.write(frames_of(4), actions_of(4), columns={"observation.state": state, "reward": state[:, :1]})
        with pytest.raises(ValueError, match="columns must be those of the first episode"):
            writer.write(frames_of(4), actions_of(4))
    table = pq.read_table(tmp_path / "set" / DATA, partitioning=None)
    assert table["observation.state"].to_pylist() == state.tolist()
    assert table["reward"].to_pylist() == state[:, 0].tolist()
    info = json.loads((tmp_path / "set/meta/info.json").read_text())
    assert info["features"]["observation.state"]["shape"] == [3] and info["world"] == "doom"
    with writer_of(tmp_path / "set") as writer, pytest.raises(ValueError, match="columns must be those"):
        writer.write(frames_of(4), actions_of(4), columns={"reward": state[:, :1]})


def test_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = write_dataset(tmp_path / "probe", [9])
    num_bytes = (probe / VIDEO).stat().st_size
    # Room for two and a half episodes.
    monkeypatch.setattr(lerobot_writer, "VIDEO_FILES_SIZE_IN_MB", 2.5 * num_bytes / 2**20)
    folder = write_dataset(tmp_path / "set", [9] * 5)
    assert sorted(path.name for path in folder.rglob("*.mp4")) == [f"file-{number:03d}.mp4" for number in range(3)]
    dataset = LerobotDataset(folder)
    for number, name in enumerate(dataset.names):
        assert_same_frames(dataset.recording(name).read(0, 9), frames_of(9, number))


def test_writing_is_continued_after_the_complete_episodes(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "set", [12, 7], task="walk")
    with writer_of(folder, task="run") as writer:
        assert writer.num_episodes == 2
        writer.write(frames_of(9, 2), actions_of(9, 2))
    dataset = LerobotDataset(folder)
    assert len(dataset) == 3
    assert_same_frames(dataset.recording("episode_000002").read(0, 9), frames_of(9, 2))
    tables = [pq.read_table(path, partitioning=None) for path in sorted(folder.glob("data/*/*"))]
    assert pa.concat_tables(tables)["index"].to_pylist() == list(range(28))
    assert tables[1]["task_index"].to_pylist() == [1] * 9
    info = json.loads((folder / "meta/info.json").read_text())
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (3, 28, 2)
    assert json.loads((folder / "meta/stats.json").read_text())["action"]["count"] == [28]


def test_what_a_killed_writer_wrote_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    killed = writer_of(folder)
    killed.write(frames_of(12), actions_of(12))
    killed.write(frames_of(7, 1), actions_of(7, 1))
    (folder / ".staged/episode_000002.mp4.part").write_bytes(b"half")
    del killed  # without close
    with pytest.raises(ValueError, match="episode_000000: an episode must be in a shard, got a recording that was not"):
        LerobotDataset(folder)
    with writer_of(folder) as writer:
        assert writer.num_episodes == 2
        writer.write(frames_of(9, 2), actions_of(9, 2))
    dataset = LerobotDataset(folder)
    assert len(dataset) == 3 and dataset.skipped == ()
    assert_same_frames(dataset.recording("episode_000001").read(0, 7), frames_of(7, 1))
    assert not (folder / ".staged").exists()


@pytest.mark.parametrize("step", ["data", "meta", "unlink"])
def test_a_crash_while_packing_loses_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    folder = tmp_path / "set"
    writer = writer_of(folder)
    for number in range(2):
        writer.write(frames_of(6, number), actions_of(6, number))
    write_table = lerobot_shards.write_table

    def crash(path: Path, *tables: Iterator[pa.Table]) -> None:
        """Fail at the table in this folder, or at the deletion of the first staged file."""
        if step in ("unlink", path.relative_to(folder).parts[0]):
            raise RuntimeError("crash")
        write_table(path, *tables)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="crash"):
        patch.setattr(*((Path, "unlink") if step == "unlink" else (lerobot_shards, "write_table")), crash)
        writer.close()
    with writer_of(folder) as writer:
        assert writer.num_episodes == 2
        writer.write(frames_of(5, 2), actions_of(5, 2))
    dataset = LerobotDataset(folder)
    assert len(dataset) == 3 and dataset.skipped == ()
    tables = [pq.read_table(path, partitioning=None) for path in sorted(folder.glob("data/*/*"))]
    assert pa.concat_tables(tables)["index"].to_pylist() == list(range(17))
    for number, length in enumerate((6, 6, 5)):
        assert_same_frames(dataset.recording(dataset.names[number]).read(0, length), frames_of(length, number))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fps": 20}, "fps=20 here, 10 there"),
        ({"height": 64}, r"of shape \[64, 48, 3\] here, \[32, 48, 3\] there"),
        ({"camera": "wrist"}, r"wrist of shape \[32, 48, 3\] here, None there"),
        ({"fps": 7.5}, "fps of a LeRobot dataset must be an integer above 0"),
        ({"extra": {"fps": 3}}, "extra must have other keys"),
        ({"camera": "action"}, "the name of a feature must have no slash and be none of action"),
    ],
)
def test_a_dataset_is_continued_with_the_same_settings_alone(
    tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    folder = write_dataset(tmp_path / "set", [3])
    with pytest.raises(ValueError, match=message):
        writer_of(folder, **settings)
    assert len(LerobotDataset(folder)) == 1


def test_a_dataset_of_another_space_or_program_is_not_continued(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "set", [3])
    other = ActionSpace((SPACE.fields[1], SPACE.fields[0]))
    with pytest.raises(ValueError, match="must have the same settings, got field 0"):
        LerobotWriter(folder, other, fps=FPS, height=HEIGHT, width=WIDTH)
    (folder / SPACE_FILE).unlink()
    with pytest.raises(ValueError, match=f"must have a {SPACE_FILE}; give another folder"):
        writer_of(folder)


def test_frames_and_actions_must_fit(tmp_path: Path) -> None:
    with writer_of(tmp_path / "set") as writer:
        with pytest.raises(ValueError, match=r"needs uint8 frames \[F, 32, 48, 3\], got uint8 \[3, 16, 48, 3\]"):
            writer.write(frames_of(3)[:, :16], actions_of(3))
        with pytest.raises(ValueError, match="action needs a row for each of the 3 frames, got 4"):
            writer.write(frames_of(3), actions_of(4))
        with pytest.raises(ValueError, match=r"state needs a shape \[F, n\], got \[3\]"):
            writer.write(frames_of(3), actions_of(3), columns={"state": np.zeros(3, np.float32)})
        other = ActionSpace(SPACE.fields[1:])
        with pytest.raises(ValueError, match="actions must be of the dataset's space"):
            writer.write(frames_of(3), Actions(other, np.zeros((3, 1), np.float32)))
        assert writer.num_episodes == 0


# ---------------------------------------------------------------------------------------------------------------------
# The published reader

READ_PUBLISHED = """
import json, sys
import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset

dataset = LeRobotDataset(repo_id="rlir/test", root=sys.argv[1], video_backend="pyav", return_uint8=True)
rows = [dataset[row] for row in range(len(dataset))]
np.savez(
    sys.argv[2],
    frames=np.stack([row["observation.images.main"].permute(1, 2, 0).numpy() for row in rows]),
    actions=np.stack([row["action"].numpy() for row in rows]),
    episodes=[row["episode_index"].item() for row in rows],
)
tasks = sorted({row["task"] for row in rows})
print(json.dumps({"tasks": tasks, "count": int(dataset.meta.stats["action"]["count"][0])}))
"""
LEROBOT = "lerobot==0.6.1"
NEEDED_BY_LEROBOT = (
    "datasets>=4.8,<5",
    "pandas>=2,<3",
    "pyarrow>=21,<30",
    "av>=15,<16",
    "jsonlines",
    "huggingface-hub>=1.6,<2",
    "draccus>=0.11.6,<0.12",
    "einops",
    "gymnasium",
    "packaging",
    "pillow",
    "safetensors",
    "termcolor",
    "tqdm",
)


def python_for_lerobot() -> str | None:
    """Return a Python of 3.12 or newer: lerobot 0.6 needs it, and older releases decode with a removed torchvision."""
    names = ("python3.12", "python3.13")
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [
        sys.executable,
        *filter(None, map(shutil.which, names)),
        *map(str, sorted(pyenv.glob("3.1[23]*/bin/python"))),
    ]
    for path in found:
        code = "import sys, venv, ensurepip; print(sys.version_info >= (3, 12))"
        if subprocess.run([path, "-c", code], capture_output=True, text=True).stdout.strip() == "True":
            return path
    return None


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_published_reader_gives_the_same_actions_and_frames(tmp_path: Path) -> None:
    """Installs about 5 GB, because the registry has no CPU build of torch for newer Pythons, and removes them."""
    python, venv = python_for_lerobot(), tmp_path / "venv"
    if python is None:
        pytest.skip(f"{LEROBOT} needs Python 3.12 or newer")
    if shutil.disk_usage(tmp_path).free < 10 * 2**30:
        pytest.skip(f"{LEROBOT} and its torch need 10 GiB of disk")
    folder = write_dataset(tmp_path / "set", [12, 7], task="walk")
    with writer_of(folder, task="walk") as writer:
        writer.write(frames_of(9, 2), actions_of(9, 2))
    try:
        subprocess.run([python, "-m", "venv", str(venv)], check=True)
        pip = [str(venv / "bin/python"), "-m", "pip", "install", "-q"]
        for arguments in (["torch==2.13.0"], ["--no-deps", LEROBOT, "torchvision==0.28.0"], NEEDED_BY_LEROBOT):
            done = subprocess.run([*pip, *arguments], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"{LEROBOT} cannot be installed here: {done.stderr.strip()[-300:]}")
        command = [str(venv / "bin/python"), "-c", READ_PUBLISHED, str(folder), str(tmp_path / "read.npz")]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    finally:
        shutil.rmtree(venv, ignore_errors=True)
    assert json.loads(done.stdout.splitlines()[-1]) == {"tasks": ["walk"], "count": 28}
    published = np.load(tmp_path / "read.npz")
    dataset = LerobotDataset(folder)
    for number, name in enumerate(dataset.names):
        episode: LerobotEpisode = dataset.recording(name)
        rows = published["episodes"] == number
        np.testing.assert_array_equal(published["frames"][rows], episode.read(0, len(episode)))
        # The published row t holds the action that leads into frame t + 1.
        np.testing.assert_array_equal(published["actions"][rows][:-1], episode.actions.values[1:])
