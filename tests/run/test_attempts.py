"""Attempts: a call that ends its process again and again is refused, every other call goes on."""

import os

import pytest

from rlir_ray.run.attempts import Attempts


def die(path, call):
    """Leave the state of a process that ended in the middle of a call."""
    process = os.fork()
    if not process:
        with Attempts(path, 3).count(call):
            os._exit(1)
    os.waitpid(process, 0)


def test_a_call_is_refused_once_all_its_attempts_have_ended_the_process(tmp_path):
    path = tmp_path / "attempts"
    for _ in range(3):
        die(path, "group 13")
    with pytest.raises(RuntimeError, match="group 13 ended its process 3 times"), Attempts(path, 3).count("group 13"):
        raise AssertionError("the call must not run")
    with Attempts(path, 3).count("group 13"):
        assert path.exists()


def test_calls_behind_it_keep_all_their_attempts(tmp_path):
    path = tmp_path / "attempts"
    die(path, "group 13")
    with Attempts(path, 1).count("group 14"):
        pass
    assert not path.exists()


@pytest.mark.parametrize("content", ["", "3", "3 group"])
def test_a_count_that_was_cut_off_counts_nothing(tmp_path, content):
    path = tmp_path / "attempts"
    path.write_text(content)
    with Attempts(path, 1).count("group 13"):
        pass
    assert not path.exists()


def test_an_error_ends_the_call_and_not_the_process(tmp_path):
    path = tmp_path / "attempts"
    with pytest.raises(ValueError, match="bad prompt"), Attempts(path, 1).count("group 13"):
        raise ValueError("bad prompt")
    assert not path.exists()
