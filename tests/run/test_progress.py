"""The bar of the trainers."""

import io
import logging
import re
import sys

import pytest

from rlir_ray.run import progress
from rlir_ray.run.progress import clock, counted, figure_words, log_to_stderr, progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_sees_percent_and_loss_and_the_log_above_the_bar(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setattr(logging.root, "handlers", [])
    log_to_stderr()
    with pytest.raises(KeyboardInterrupt), progress_bar("tokenizer") as show:
        show(0.25, "loss 1.5")
        logging.getLogger("room").warning("a point of the curve")
        raise KeyboardInterrupt
    assert sys.stderr is terminal
    for text in ("tokenizer", "25%", "loss 1.5"):
        assert text in terminal.getvalue()
    # The message stands on a line of its own, after its time: the bar was erased, and drawn again below.
    assert re.search(r"\d\d:\d\d:\d\d(\x1b\[[\d;]*m| )*a point of the curve +\n", terminal.getvalue())


def test_a_log_file_sees_no_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", file := io.StringIO())
    with progress_bar("tokenizer") as show:
        show(0.25, "loss 1.5")
    assert file.getvalue() == ""


def test_a_log_file_sees_a_line_now_and_then_and_no_more_than_the_whole(monkeypatch):
    monkeypatch.setattr(sys, "stderr", file := io.StringIO())
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    with progress_bar("tokenizer") as show:
        show(0.25, "loss 1.5")
        show(0.5, "loss 1.4")
        show(1.02, "loss 1.3")
    lines = file.getvalue().splitlines()
    assert lines[0] == "tokenizer  25%  0:00 gone  loss 1.5"
    # Less than a second is left; rich rounds up.
    assert lines[1] == "tokenizer  50%  0:00 gone, 0:01 left  loss 1.4"
    assert lines[2].startswith("tokenizer 100%") and lines[2].endswith("loss 1.3")


def test_a_log_file_has_one_plain_line_for_each_message(monkeypatch):
    monkeypatch.setattr(sys, "stderr", file := io.StringIO())
    monkeypatch.setattr(logging.root, "handlers", [])
    log_to_stderr()
    logging.getLogger("room").warning("[red]%s", "long " * 60)
    assert re.fullmatch(r"\d\d:\d\d:\d\d \[red\](long ){60}\n", file.getvalue())


def test_items_are_counted_as_they_are_done():
    seen = []
    assert list(counted("ab", 2, lambda share, text: seen.append((share, text)), "letters")) == ["a", "b"]
    assert seen == [(0.5, "1 of 2 letters"), (1.0, "2 of 2 letters")]


def test_figures_are_words_and_times_are_minutes():
    assert figure_words({"validation_loss": 2.87654, "perplexity": None}) == "validation loss 2.877, perplexity –"
    assert clock(90.7) == "1:30"
