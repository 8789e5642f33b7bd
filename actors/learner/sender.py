"""The sending end of broadcasts, in learner rank 0: a thread sends versions of the weights while the rank trains."""

from __future__ import annotations

import contextlib
import threading

import ray
import torch
from torch.distributed import TCPStore

from actors.cluster.placement import Handle, own_host
from actors.learner.command_queue import BroadcastCommand
from rlir_ray.transfer.broadcast import BroadcastFailed, Sender, open_store

# A wait for the next broadcast has no bound; each poll is bounded. The queue answers at once unless it has died.
POLL_S, QUEUE_TIMEOUT_S = 60.0, 60.0


def start_sending(queue: Handle, device: torch.device) -> None:
    """Start a thread that sends the versions in the queue, until the queue dies or returns None."""
    store = open_store(host := own_host())
    ray.get(queue.register_sender.remote(host, store.port), timeout=QUEUE_TIMEOUT_S)
    threading.Thread(target=_send_on_command, args=(queue, store, device), name="weights", daemon=True).start()


def _send_on_command(queue: Handle, store: TCPStore, device: torch.device) -> None:
    sender: Sender | None = None
    if device.type == "cuda":
        # CUDA's current device belongs to a thread: set it in this one.
        torch.cuda.set_device(device)
    # End the thread when its queue dies.
    with contextlib.suppress(ray.exceptions.RayActorError):
        while (command := _next_command(queue)) is not None:
            if sender is None or sender.channel != command.channel:
                if sender is not None:
                    sender.close()
                sender = Sender(command.channel, store)
            # Fault tolerance: the receivers report a failed broadcast to the driver.
            with contextlib.suppress(BroadcastFailed, ray.exceptions.RayError):
                # Read the weights from shared memory: the only copy is the one into the bucket.
                sender.send(command.version, ray.get(command.weights_refs[0], timeout=QUEUE_TIMEOUT_S))


def _next_command(queue: Handle) -> BroadcastCommand | None:
    ref = queue.next_broadcast.remote()
    while not ray.wait([ref], timeout=POLL_S)[0]:
        pass
    command: BroadcastCommand | None = ray.get(ref, timeout=POLL_S)
    return command
