"""How a test ends a process: that of an actor whose handle or id it holds, never one of a name."""

from __future__ import annotations

import os
import signal
from typing import Any

from actors.cluster.compat import actor_id, actor_info


def process_id(actor: Any) -> int:
    """Of the process that an actor lives in now."""
    return actor_info(actor if isinstance(actor, str) else actor_id(actor)).process_id


def kill_process(actor: Any) -> None:
    """SIGKILL, as the kernel sends it when memory runs out."""
    os.kill(process_id(actor), signal.SIGKILL)
