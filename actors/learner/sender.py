"""The sending end of broadcasts, in learner rank 0: versions of the weights go out beside its steps."""

from __future__ import annotations

import contextlib
import threading

import ray
import torch
from torch.distributed import TCPStore

from actors.cluster.lifecycle import Handle
from actors.cluster.placement import own_host
from actors.learner.command_queue import BroadcastCommand
from rlir_ray.transfer.broadcast import NotSent, Sender, open_store

LOOK_S, POST_TIMEOUT_S = 60.0, 60.0


def start_sending(queue: Handle, device: torch.device) -> None:
    """Send the versions that the queue asks for, in a thread of its own, until the queue ends or answers None."""
    store = open_store(host := own_host())
    ray.get(queue.register_sender.remote(host, store.port), timeout=POST_TIMEOUT_S)
    threading.Thread(target=_send_on_command, args=(queue, store, device), name="weights", daemon=True).start()


def _send_on_command(queue: Handle, store: TCPStore, device: torch.device) -> None:
    sender: Sender | None = None
    if device.type == "cuda":
        # Each thread has a current one.
        torch.cuda.set_device(device)
    # The thread ends with its queue.
    with contextlib.suppress(ray.exceptions.RayActorError):
        while (command := _next_command(queue)) is not None:
            if sender is None or sender.channel != command.channel:
                if sender is not None:
                    sender.close()
                sender = Sender(command.channel, store)
            # Fault tolerance: the receivers tell the driver.
            with contextlib.suppress(NotSent, ray.exceptions.RayError):
                # Read where the put left it: nothing is copied but into the bucket.
                sender.send(command.version, ray.get(command.weights_refs[0], timeout=POST_TIMEOUT_S))


def _next_command(queue: Handle) -> BroadcastCommand | None:
    ref = queue.next_broadcast.remote()
    while not ray.wait([ref], timeout=LOOK_S)[0]:
        pass
    command: BroadcastCommand | None = ray.get(ref, timeout=LOOK_S)
    return command
