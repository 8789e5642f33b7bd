"""A training that ends in the middle, as if its process was killed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from rlir_ray.pretrain import loop


class Interrupted(Exception):
    """Stands for the end of the process."""


@contextmanager
def interrupted_after_state(number: int = 1) -> Iterator[None]:
    """Let a training end after it has saved so many states."""
    saved = 0

    def save_then_stop(*arguments: object, **facts: object) -> None:
        nonlocal saved
        save_state(*arguments, **facts)  # type: ignore[arg-type]
        saved += 1
        if saved == number:
            raise Interrupted

    save_state = loop.save_state
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(loop, "save_state", save_then_stop)
        yield
