"""How a test ends a process: one whose actor it holds, never one of a name."""

from __future__ import annotations

import os
import signal
from typing import Any

from ray._private import state


def process_id(actor: Any) -> int:
    """Of the process that an actor lives in now."""
    return int(state.actors(actor._actor_id.hex())["Pid"])


def kill_process(actor: Any) -> None:
    """SIGKILL, as the kernel sends it when memory runs out."""
    os.kill(process_id(actor), signal.SIGKILL)
