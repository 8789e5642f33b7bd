"""The bar of the trainers."""

import io
import logging
import sys

import pytest

from rlir_ray.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_sees_percent_and_loss_and_the_log_above_the_bar(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    logging.root.addHandler(handler := logging.StreamHandler())
    try:
        with pytest.raises(KeyboardInterrupt), progress_bar("tokenizer") as show:
            show(0.25, "loss 1.5")
            logging.getLogger("room").warning("a point of the curve")
            assert handler.stream is not terminal
            raise KeyboardInterrupt
    finally:
        logging.root.removeHandler(handler)
    assert handler.stream is terminal and sys.stderr is terminal
    for text in ("tokenizer", "25%", "loss 1.5", "a point of the curve\n"):
        assert text in terminal.getvalue()


def test_a_log_file_sees_no_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", file := io.StringIO())
    with progress_bar("tokenizer") as show:
        show(0.25, "loss 1.5")
    assert file.getvalue() == ""
