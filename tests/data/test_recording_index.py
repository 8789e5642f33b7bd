"""Where recordings are looked for: folders, and published index files. Nothing here opens a video."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from rlir_ray.data.vpt.index import find_recordings, list_recordings

ADDRESS = "https://example.org/data/"


def touch(stem: Path, *endings: str) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    for ending in endings or (".mp4", ".jsonl"):
        stem.with_name(stem.name + ending).touch()


def write_index(path: Path, relpaths: Any, basedir: Any = ADDRESS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"basedir": basedir, "relpaths": relpaths}))
    return path


def test_equal_file_names_in_two_folders_are_two_recordings(tmp_path: Path) -> None:
    for stem in ("8.0/same", "9.0/same", "flat", "with.dots"):
        touch(tmp_path / stem)
    source = find_recordings(tmp_path)
    assert list(source.videos) == ["8.0/same", "9.0/same", "flat", "with.dots"]
    assert source.videos["9.0/same"] == tmp_path / "9.0" / "same.mp4"
    assert (source.skipped, len(source)) == ((), 4)


def test_half_pairs_of_a_folder_are_counted_and_named(tmp_path: Path) -> None:
    touch(tmp_path / "a")
    touch(tmp_path / "b", ".mp4")
    touch(tmp_path / "8.0" / "c", ".jsonl")
    source = find_recordings(tmp_path)
    assert (list(source.videos), len(source)) == (["a"], 3)
    assert [line.split(":")[0] for line in source.skipped] == [
        str(tmp_path / "8.0" / "c.mp4"),
        str(tmp_path / "b.jsonl"),
    ]


def test_both_forms_of_relpaths_name_the_same_recordings(tmp_path: Path) -> None:
    touch(tmp_path / "8.0" / "a")
    touch(tmp_path / "8.0" / "b")
    index = write_index(tmp_path / "index.json", ["8.0/b.mp4", "8.0/a", "8.0/a.mp4"])
    source = find_recordings(index)
    assert list(source.videos.items()) == [
        ("8.0/a", tmp_path / "8.0" / "a.mp4"),
        ("8.0/b", tmp_path / "8.0" / "b.mp4"),
    ]
    assert list_recordings(index) == list(source.videos.values())


def test_recordings_lie_in_basedir_where_it_is_a_folder_else_beside_the_index(tmp_path: Path) -> None:
    touch(tmp_path / "held" / "8.0" / "a")
    for basedir in (str(tmp_path / "held"), "held"):
        index = write_index(tmp_path / "index.json", ["8.0/a"], basedir)
        assert find_recordings(index).videos == {"8.0/a": tmp_path / "held" / "8.0" / "a.mp4"}
    assert find_recordings(write_index(tmp_path / "held" / "index.json", ["8.0/a"])).videos


def test_files_without_their_version_folder_are_found_and_keep_their_name(tmp_path: Path) -> None:
    touch(tmp_path / "a")
    index = write_index(tmp_path / "index.json", ["6.9/a"])
    assert find_recordings(index).videos == {"6.9/a": tmp_path / "a.mp4"}


def test_what_an_index_lists_and_is_not_here_names_the_file_to_download(tmp_path: Path) -> None:
    touch(tmp_path / "8.0" / "a")
    touch(tmp_path / "8.0" / "b", ".mp4")
    touch(tmp_path / "c", ".jsonl")
    source = find_recordings(write_index(tmp_path / "index.json", ["8.0/a", "8.0/b", "8.0/c", "8.0/d.mp4"]))
    assert len(source) == 4
    assert [line.split("; download ")[1] for line in source.skipped] == [
        f"{ADDRESS}8.0/b.jsonl",
        f"{ADDRESS}8.0/c.mp4",
        f"{ADDRESS}8.0/d.mp4",
    ]
    assert source.skipped[2].startswith(f"{tmp_path / '8.0' / 'd.mp4'}: no such file, listed in index.json")


def test_an_index_of_which_nothing_is_here_names_the_first_file_to_download(tmp_path: Path) -> None:
    index = write_index(tmp_path / "index.json", ["8.0/a", "8.0/b"])
    with pytest.raises(
        ValueError, match=r"got 2 incomplete pairs, the first: .*download https://example.org/data/8.0/a.mp4"
    ):
        find_recordings(index)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "an index in JSON, got no JSON"),
        ("[]", "got no text under 'basedir'"),
        ('{"relpaths": ["a"]}', "got no text under 'basedir'"),
        ('{"basedir": 3, "relpaths": ["a"]}', "got no text under 'basedir'"),
        ('{"basedir": ""}', "got no list under 'relpaths'"),
        ('{"basedir": "", "relpaths": []}', "got no list under 'relpaths'"),
        ('{"basedir": "", "relpaths": ["/etc/a"]}', "got '/etc/a'"),
        ('{"basedir": "", "relpaths": ["8.0/../../a"]}', "got '8.0/../../a'"),
        ('{"basedir": "", "relpaths": ["..\\\\a"]}', "must lie below basedir"),
        ('{"basedir": "", "relpaths": [7]}', "got 7"),
        ('{"basedir": "", "relpaths": [""]}', "got ''"),
    ],
)
def test_a_file_that_is_no_index_is_refused_in_one_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(ValueError, match=message) as refusal:
        find_recordings(tmp_path / "index.json")
    assert "\n" not in str(refusal.value) and "index.json" in str(refusal.value)


def test_the_log_names_the_first_of_many_that_are_skipped_and_counts_the_rest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path / "here")
    index = write_index(tmp_path / "index.json", ["here", *(f"absent-{number}" for number in range(9))])
    with caplog.at_level(logging.WARNING):
        list_recordings(index)
    assert len(caplog.messages) == 4
    assert caplog.messages[-1] == "skipped: 6 more recordings"
