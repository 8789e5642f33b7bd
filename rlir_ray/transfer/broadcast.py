"""Broadcast of weights from one process to others, in buckets over a separate process group: NCCL, or gloo between
CPUs.

The default process group is not used. Sender and receivers agree on each version in a TCP store before
they enter a collective, so that a dead, restarted or late member blocks no other member. Every wait has a deadline.
Legend: rank 0 sends, ranks 1 to n receive.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed import DistStoreError, PrefixStore, ProcessGroupGloo, TCPStore

from rlir_ray.transfer.weights import Received, as_tensor

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Backend

FORMED, TOO_LATE = "formed", "not ready in time"
# By default NCCL ends the process, and with it the learner's training, when a member is lost.
NCCL_ON_ERROR, ONLY_ABORT = "TORCH_NCCL_ASYNC_ERROR_HANDLING", "2"


@dataclass(frozen=True, kw_only=True, slots=True)
class Channel:
    """Description of one process group, which all members receive."""

    host: str
    """Address on which the TCP store listens."""
    port: int
    key: str
    """Key of this group in the store; each group has a new key."""
    num_receivers: int
    on_gpus: bool
    """Use NCCL on the current GPU of each member; otherwise gloo."""
    bucket_bytes: int
    ready_s: float = 10.0
    """All receivers must be ready for a version within this time, otherwise none receives it."""
    transfer_s: float = 120.0
    """Longest time of a transfer, including the creation of the group."""


class BroadcastFailed(RuntimeError):
    """A version was not broadcast; a receiver must drop the part that it received."""


def open_store(host: str) -> TCPStore:
    """Open a store that listens on one address of this machine, at a free port."""
    # By default TCPStore would listen on all addresses, which is unsafe.
    listener = socket.create_server((host, 0))
    port = listener.getsockname()[1]
    return TCPStore(host, port, is_master=True, master_listen_fd=listener.detach(), wait_for_workers=False)


class _Member:
    """Base of sender and receiver: holds the group, which is created when all are ready for its first version."""

    def __init__(self, channel: Channel, store: TCPStore, rank: int, host: str) -> None:
        self.channel, self.rank, self._host = channel, rank, host
        self._store = PrefixStore(channel.key, store)
        self._device = torch.device("cuda", torch.cuda.current_device()) if channel.on_gpus else torch.device("cpu")
        # Any: torch's stubs leave out the methods of process groups of one backend.
        self._group: Any = None
        self._failure = ""

    def close(self, failure: str = "closed") -> None:
        """Close the group; from now on this member answers with `failure`."""
        group, self._group, self._failure = self._group, None, failure
        if group is not None:
            with contextlib.suppress(RuntimeError):
                group.abort()

    @contextlib.contextmanager
    def _closed_on_failure(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # Fault tolerance: after any error, the other members do not know this member's position in the protocol.
            cause = next(iter(str(error).splitlines()), "")
            self.close(f"{type(error).__name__}: {cause}")
            raise BroadcastFailed(self._failure) from error

    def _transfer(self, flats: Sequence[Tensor]) -> None:
        """Broadcast the bytes of uint8 tensors [bytes], one after another; a receiver fills its tensors."""
        deadline, total = time.monotonic() + self.channel.transfer_s, sum(map(len, flats))
        if self._group is None:
            self._group = self._make_group()
        bucket = torch.empty(max(1, min(self.channel.bucket_bytes, total)), dtype=torch.uint8, device=self._device)
        with _own_stream(self._device):
            for start in range(0, total, len(bucket)):
                parts = list(_parts(flats, bucket, start))
                if self.rank == 0:
                    for place, part in parts:
                        place.copy_(part)
                filled = bucket[: min(len(bucket), total - start)]
                left_s = max(deadline - time.monotonic(), 0.001)
                # `wait` with a bound blocks until the bucket can be reused, also on a GPU.
                self._group.broadcast([filled]).wait(timedelta(seconds=left_s))
                if self.rank != 0:
                    for place, part in parts:
                        part.copy_(place)

    def _make_group(self) -> Backend:
        size, timeout = self.channel.num_receivers + 1, timedelta(seconds=self.channel.transfer_s)
        if not self.channel.on_gpus:
            gloo = ProcessGroupGloo._Options()  # type: ignore[attr-defined]  # not in torch's stubs
            gloo._timeout, gloo._devices = timeout, [ProcessGroupGloo.create_device(hostname=self._host)]
            return ProcessGroupGloo(self._store, self.rank, size, gloo)
        nccl = torch.distributed.ProcessGroupNCCL.Options()
        nccl._timeout = timeout
        with _environment(NCCL_ON_ERROR, ONLY_ABORT):
            return torch.distributed.ProcessGroupNCCL(self._store, self.rank, size, nccl)


class Sender(_Member):
    """Rank 0 of a group, in the process that opened the store."""

    def __init__(self, channel: Channel, store: TCPStore) -> None:
        super().__init__(channel, store, 0, channel.host)

    def send(self, version: int, weights: Received) -> None:
        """Send a version once all receivers are ready for it.

        Raises:
            BroadcastFailed: a receiver is not ready in time or cannot receive, or a member is lost during the transfer.
        """
        if cause := self._failure or self._not_ready(version):
            self._store.set(f"{version}/verdict", json.dumps(cause))
            raise BroadcastFailed(cause)
        with self._closed_on_failure():
            tensors = {name: as_tensor(value).detach() for name, value in weights.items()}
            layout = [[name, _name(each.dtype), list(each.shape)] for name, each in tensors.items()]
            self._store.set(FORMED, "yes")
            self._store.set(f"{version}/verdict", json.dumps(layout))
            self._transfer([_flat(each) for each in tensors.values()])
            # All receivers have read the key; delete it, so that a long run does not fill the store.
            self._store.delete_key(f"{version}/verdict")

    def _not_ready(self, version: int) -> str:
        """Say which receivers are not ready, and why; empty: all are ready."""
        keys = [f"{version}/{rank}" for rank in range(1, self.channel.num_receivers + 1)]
        with contextlib.suppress(DistStoreError):
            self._store.wait(keys, timedelta(seconds=self.channel.ready_s))
        answers = [json.loads(self._store.get(key)) if self._store.check([key]) else TOO_LATE for key in keys]
        for key in keys:
            self._store.delete_key(key)
        return "; ".join(f"receiver {rank}: {answer}" for rank, answer in enumerate(answers, 1) if answer)


class Receiver(_Member):
    """One of ranks 1 to n of a group.

    Raises:
        OSError: the store cannot be reached.
    """

    def __init__(self, channel: Channel, rank: int) -> None:
        # The connection also shows which of this machine's addresses can reach the others.
        with socket.create_connection((channel.host, channel.port), timeout=channel.ready_s) as connection:
            host = connection.getsockname()[0]
        timeout = timedelta(seconds=channel.ready_s)
        store = TCPStore(channel.host, channel.port, is_master=False, timeout=timeout, wait_for_workers=False)
        super().__init__(channel, store, rank, host)

    def receive(self, version: int) -> dict[str, Tensor]:
        """Receive the tensors of a version by name, on this member's device.

        Raises:
            BroadcastFailed: the sender does not send the version, or a member is lost during the transfer.
        """
        if self._group is None and self._store.check([FORMED]):
            self._failure = self._failure or "started again since the group was made"
        self._store.set(f"{version}/{self.rank}", json.dumps(self._failure))
        layout = self._verdict(version)
        if isinstance(layout, str):
            raise BroadcastFailed(layout)
        with self._closed_on_failure():
            tensors = {
                name: torch.empty(shape, dtype=_DTYPES[dtype], device=self._device) for name, dtype, shape in layout
            }
            self._transfer([_flat(each) for each in tensors.values()])
        return tensors

    def _verdict(self, version: int) -> str | list[tuple[str, str, list[int]]]:
        """Return the layout, [name, type, shape] of each tensor, or the reason why the version is not sent."""
        try:
            # Twice the bound, because the sender may start its wait when this receiver's wait ends.
            self._store.wait([f"{version}/verdict"], timedelta(seconds=2 * self.channel.ready_s))
        except DistStoreError:
            self.close("the sender did not answer in time")
            self._store.set(f"{version}/{self.rank}", json.dumps(self._failure))
            return self._failure
        verdict: str | list[tuple[str, str, list[int]]] = json.loads(self._store.get(f"{version}/verdict"))
        return verdict


_DTYPES = {str(value).removeprefix("torch."): value for value in vars(torch).values() if isinstance(value, torch.dtype)}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _flat(tensor: Tensor) -> Tensor:
    """View a tensor as bytes, uint8 [bytes]; a contiguous tensor shares its memory."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _parts(flats: Sequence[Tensor], bucket: Tensor, start: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield slices of the bucket that starts at byte `start`, each with the matching part of a tensor."""
    begin = 0
    for flat in flats:
        low, high = max(begin, start), min(begin + len(flat), start + len(bucket))
        if low < high:
            yield bucket[low - start : high - start], flat[low - begin : high - begin]
        begin += len(flat)


@contextlib.contextmanager
def _own_stream(device: torch.device) -> Iterator[None]:
    """Run the work inside on its own GPU stream, beside other threads' work; all of it is done at the end."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)
    # Work on the outer stream may still read memory that was allocated there.
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
        stream.synchronize()


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
