"""Checkpoints on disk: complete or skipped."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rlir_ray.run import checkpoint
from rlir_ray.run.checkpoint import (
    LEARNER,
    ArrayFile,
    check,
    describe_files,
    group_file,
    load_group,
    newest,
    partial_folder,
    save_arrays,
    save_group,
    seal,
)
from rlir_ray.trajectory import FlowRecord, TokenRecord, TrajectoryGroup

STATE = {"weight/a": np.arange(6, dtype=np.float32).reshape(2, 3), "num_steps": np.array(4, np.int64)}


def write(run: Path, step: int, keep: int = 2) -> Path:
    partial = partial_folder(run, step)
    save_arrays(partial / LEARNER, STATE)
    return seal(partial, describe_files([partial / LEARNER]), step=step, policy_version=step, keep=keep).path


def folders(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_a_checkpoint_is_read_as_it_was_written_and_the_last_ones_stay(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        write(tmp_path, step)
    assert folders(tmp_path) == ["latest", "step_00000020", "step_00000030"]
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step_00000030\n"
    found = newest(tmp_path, pytest.fail)
    assert found is not None and (found.step, found.policy_version) == (30, 30)
    arrays = ArrayFile(found.path / LEARNER)
    assert set(arrays) == set(STATE) and "weight/b" not in arrays
    for name, value in STATE.items():
        np.testing.assert_array_equal(arrays[name], value)
        assert arrays[name].shape == value.shape and arrays[name].dtype == value.dtype


def truncate(folder: Path) -> None:
    file = folder / LEARNER
    file.write_bytes(file.read_bytes()[:-1])


def flip(folder: Path) -> None:
    content = bytearray((folder / LEARNER).read_bytes())
    content[-1] ^= 1
    (folder / LEARNER).write_bytes(content)


def garble(folder: Path) -> None:
    (folder / "manifest.json").write_bytes(b"\xff")


def other_format(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (truncate, "must be 168 bytes, got 167 bytes"),
        (flip, "must have the digest of its manifest"),
        (lambda folder: (folder / LEARNER).unlink(), "must be 168 bytes, got none"),
        (lambda folder: (folder / "manifest.json").unlink(), "readable manifest.json and its files, got FileNotFoundE"),
        (garble, "got UnicodeDecodeError"),
        (lambda folder: (folder / "manifest.json").write_text('{"format": 1,'), "got JSONDecodeError"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "got TypeError"),
        (lambda folder: (folder / "manifest.json").write_text('{"format": 1, "files": []}'), "got AttributeError"),
        (other_format, "must be of format 1, got 99"),
    ],
)
def test_a_corrupt_checkpoint_is_named_in_a_line_and_the_one_before_is_used(
    tmp_path: Path, spoil: Callable[[Path], object], said: str
) -> None:
    write(tmp_path, 10)
    spoil(write(tmp_path, 20))
    lines: list[str] = []
    found = newest(tmp_path, lines.append)
    assert found is not None and found.step == 10
    assert len(lines) == 1 and said in lines[0] and "step_00000020" in lines[0] and "\n" not in lines[0]
    assert lines[0].startswith("skipped a checkpoint: ") and lines[0].endswith("; the checkpoint before is used")


@pytest.mark.parametrize(("spoil", "said"), [(truncate, "must be 168 bytes, got 167"), (other_format, "got 99")])
def test_a_run_none_of_whose_checkpoints_can_be_read_is_refused(
    tmp_path: Path, spoil: Callable[[Path], object], said: str
) -> None:
    run = tmp_path / "first"
    for step in (10, 20):
        spoil(write(run, step))
    lines: list[str] = []
    with pytest.raises(
        ValueError, match="must be new or hold a checkpoint that can be read, got 2 unreadable ones"
    ) as refusal:
        newest(run, lines.append)
    message = str(refusal.value)
    assert message.startswith("run.name=first ") and "step_00000020" in message and said in message
    assert message.endswith(f"; move {run} away or choose another run.name") and "\n" not in message
    assert len(lines) == 1 and "step_00000020" in lines[0]
    assert folders(run) == ["latest", "step_00000010", "step_00000020"]


def test_a_disk_that_fails_is_named_and_costs_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = write(tmp_path, 10)

    def fail(path: Path) -> str:
        raise OSError(errno.EIO, "Input/output error", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("rlir_ray.run.checkpoint._digest", fail)
        with pytest.raises(ValueError, match=r"got OSError: .*Input/output error: .*learner\.safetensors"):
            newest(tmp_path, pytest.fail)
    found = newest(tmp_path, pytest.fail)
    assert found is not None and found.path == written


def test_what_was_not_sealed_is_no_checkpoint(tmp_path: Path) -> None:
    assert newest(tmp_path, pytest.fail) is None
    save_arrays(partial_folder(tmp_path, 10) / LEARNER, STATE)
    assert newest(tmp_path, pytest.fail) is None
    # The next attempt starts from nothing.
    (partial_folder(tmp_path, 10).parent / ".step_00000010.partial" / "x").write_text("")
    assert check(write(tmp_path, 10)).step == 10


def test_a_run_that_went_back_leaves_nothing_of_the_later_steps(tmp_path: Path) -> None:
    write(tmp_path, 10)
    truncate(write(tmp_path, 20))
    write(tmp_path, 15)
    assert folders(tmp_path) == ["latest", "step_00000010", "step_00000015"]
    # A checkpoint of the same step replaces the corrupt one.
    truncate(write(tmp_path, 20))
    assert check(write(tmp_path, 20)).step == 20


@pytest.mark.parametrize("spoil", [truncate, other_format, lambda folder: (folder / "manifest.json").unlink()])
def test_a_corrupt_checkpoint_does_not_count_and_goes_when_enough_newer_ones_are_complete(
    tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    write(tmp_path, 10)
    spoil(write(tmp_path, 20))
    write(tmp_path, 30)
    assert folders(tmp_path) == ["latest", "step_00000010", "step_00000020", "step_00000030"]
    write(tmp_path, 40)
    assert folders(tmp_path) == ["latest", "step_00000030", "step_00000040"]


def test_what_is_kept_is_chosen_without_reading_gigabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, digest = [], checkpoint._digest
    monkeypatch.setattr(checkpoint, "_digest", lambda path: read.append(path.parent.name) or digest(path))
    for step in (10, 20, 30):
        write(tmp_path, step)
    # Each once, when it is written.
    assert read == [f".step_000000{step}.partial" for step in (10, 20, 30)]


def test_groups_come_back_as_they_were(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    about = {"prompt_id": "map/é", "seed": 2**32 - 1, "policy_version": 3, "loss_mask": np.ones((2, 6), bool)}
    tokens = TrajectoryGroup(
        **about,
        group_id=7,
        record=TokenRecord(random.integers(0, 9, (2, 8), dtype=np.int32)),
        behavior_logprobs=random.normal(size=(2, 6)).astype(np.float32),
        recorded=random.integers(0, 9, (3, 2), dtype=np.uint16),
    )
    floats = [random.normal(size=(2, 3)).astype(np.float32) for _ in range(4)]
    flow = TrajectoryGroup(
        **about, group_id=8, record=FlowRecord(*floats, actions=np.ones((2, 3), np.uint8)), behavior_logprobs=None
    )
    for group in (tokens, flow):
        save_group(tmp_path, group)
        found = load_group(tmp_path / group_file(group.group_id))
        assert (found.prompt_id, found.group_id, found.seed) == (group.prompt_id, group.group_id, group.seed)
        assert found.policy_version == 3 and type(found.record) is type(group.record)
        for column in ("loss_mask", "behavior_logprobs", "recorded"):
            np.testing.assert_array_equal(getattr(found, column), getattr(group, column))
        for column in group.record.__slots__:
            np.testing.assert_array_equal(getattr(found.record, column), getattr(group.record, column))
