"""Files of judged pairs, and how they are split."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rlir_ray.data.preference_pairs import PreferencePair, read_pairs, split_pairs
from rlir_ray.data.vpt.pairs import write_recording


def write_clip(path: Path, brightness: int, shape: tuple[int, int, int] = (3, 24, 32)) -> None:
    frames = np.full((*shape, 3), brightness, np.uint8)
    write_recording(path.with_suffix(""), frames, [{}] * len(frames))


def write_lines(folder: Path, *lines: object) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def mean(frames: np.ndarray) -> int:
    return round(float(frames.mean()))


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    for name, brightness in (("a", 50), ("b", 100), ("c", 150)):
        write_clip(tmp_path / f"clips/{name}.mp4", brightness)
    return tmp_path


def line(first: str, second: str, label: object = 1, **more: object) -> dict[str, object]:
    return {"first": f"clips/{first}.mp4", "second": f"clips/{second}.mp4", "label": label, **more}


def test_each_clip_is_read_once_and_paths_are_relative_to_the_file(clips: Path) -> None:
    seen: list[tuple[int, ...]] = []

    def read(frames: np.ndarray) -> int:
        seen.append(frames.shape)
        return mean(frames)

    path = write_lines(clips, line("b", "a"), "", line("a", "c", -1), line("b", "c", 0, dimension="motion"))
    found = read_pairs(path, read)
    assert [(pair.label, pair.dimension) for pair in found.pairs] == [(1, "overall"), (-1, "overall"), (0, "motion")]
    assert [found.clips[clip] for clip in found.pairs[1].clips] == [50, 150]
    assert seen == [(3, 24, 32, 3)] * 3 and found.shape == (3, 24, 32)


def test_broken_lines_are_skipped_with_number_and_reason(clips: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_clip(clips / "clips/long.mp4", 9, (4, 24, 32))
    write_clip(clips / "clips/large.mp4", 9, (3, 24, 64))
    (clips / "clips/cut.mp4").write_bytes((clips / "clips/a.mp4").read_bytes()[:-9])
    broken = {
        '{"first"': "a line must be",
        '["a.mp4"]': "a line must be",
        "7": "a line must be",
        json.dumps(line("a", "b", 2)): "got 2 as 'label'",
        json.dumps(line("a", "b", True)): "got True as 'label'",
        json.dumps(line("a", "b", "1")): "got '1' as 'label'",
        json.dumps({"first": "clips/a.mp4", "label": 1}): "got None as 'second'",
        json.dumps(line("a", "b", dimenson="motion")): "got 'dimenson'",
        json.dumps(line("a", "a")): "the clips of a pair must differ",
        json.dumps(line("a", "none")): "no clip at",
        json.dumps(line("none", "a")): "no clip at",
        json.dumps(line("a", "long")): "all clips must have the 3 frames of the first, got 4 in",
        json.dumps(line("a", "large")): "all clips must have the size of the first, 24x32, got 24x64 in",
        json.dumps(line("a", "cut")): "no readable video",
    }
    for bad, reason in broken.items():
        caplog.clear()
        found = read_pairs(write_lines(clips, line("a", "b"), bad, line("b", "c")), mean)
        assert len(found.pairs) == 2 and len(found.clips) == 3, bad
        first, total = (record.getMessage() for record in caplog.records)
        assert first.startswith(f"skipped: {clips}/pairs.jsonl, line 2: ") and reason in first
        assert "\n" not in first and total == "1 of 3 lines were skipped"


def test_a_file_without_a_readable_pair_is_refused(clips: Path) -> None:
    with pytest.raises(ValueError, match="must be a text file with one JSON object a line, got FileNotFoundError"):
        read_pairs(clips / "none.jsonl", mean)
    with pytest.raises(ValueError, match="must hold a pair that can be read, got 0 broken lines; a line must be"):
        read_pairs(write_lines(clips), mean)
    with pytest.raises(ValueError, match=r"got 2 broken lines, the first: .*line 1: no clip at"):
        read_pairs(write_lines(clips, line("none", "a"), "x"), mean)


def pairs(*names: str) -> list[PreferencePair]:
    """`ab` is a pair of the clips a and b."""
    return [PreferencePair(first=Path(name[0]), second=Path(name[1]), label=1, dimension="overall") for name in names]


def held_out(*names: str, share: float = 0.4, seed: int = 0) -> tuple[set[str], bool]:
    split = split_pairs(pairs(*names), share, seed)
    assert len(split.train) + len(split.validation) == len(names)
    return {f"{pair.first}{pair.second}" for pair in split.validation}, split.shares_clips


def test_no_clip_is_in_both_parts_if_the_pairs_fall_apart() -> None:
    found = [held_out("ab", "bc", "ca", "de", "ed", share=0.5, seed=seed) for seed in range(5)]
    # The set of three pairs is more than half of five.
    assert found == [({"de", "ed"}, False)] * 5
    chosen = {frozenset(held_out("ab", "cd", "ef", "gh", share=0.3, seed=seed)[0]) for seed in range(20)}
    assert chosen == {frozenset({name}) for name in ("ab", "cd", "ef", "gh")}


def test_pairs_that_join_all_clips_are_split_by_their_two_clips() -> None:
    for seed in range(10):
        found, shares_clips = held_out("ab", "ba", "bc", "ac", seed=seed)
        assert (shares_clips and found in ({"bc"}, {"ac"}, {"bc", "ac"})) or found == {"ab", "ba"}


def test_a_share_below_the_smallest_set_holds_out_that_set() -> None:
    assert held_out("ab", "bc", "de", share=0.01) == ({"de"}, False)


def test_judgements_of_the_same_two_clips_alone_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be of three clips or more, .* got 2 clips"):
        split_pairs(pairs("ab", "ba"), 0.5, 0)
