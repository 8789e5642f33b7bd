"""A receiver in a process of its own, as `python -m tests.receiver CHANNEL_JSON RANK NUM_VERSIONS END`.

It prints the checksum of each version, or why it got none. END is `stay`, or `die`: SIGKILL when the last version has
been agreed on and before a byte of it has come.
"""

from __future__ import annotations

import json
import os
import signal
import sys

import torch

from rlir_ray.transfer.broadcast import BroadcastFailed, Channel, Receiver
from rlir_ray.transfer.weights import checksum


def main(channel: str, rank: str, num_versions: str, end: str) -> None:
    torch.set_num_threads(1)
    receiver = Receiver(Channel(**json.loads(channel)), int(rank))
    for version in range(1, int(num_versions) + 1):
        if end == "die" and version == int(num_versions):
            receiver._transfer = lambda flats: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
        try:
            print(checksum(receiver.receive(version)), flush=True)
        except BroadcastFailed as error:
            print(f"not sent: {error}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
