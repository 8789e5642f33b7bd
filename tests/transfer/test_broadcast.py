"""Weights over gloo between threads, each of which is a member of its own, and between processes."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from rlir_ray.transfer.broadcast import TOO_LATE, BroadcastFailed, Channel, Receiver, Sender, open_store
from rlir_ray.transfer.weights import Received, checksum

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 60
LOOPBACK = "127.0.0.1"

MakeChannel = Callable[..., tuple[Channel, Sender]]


@pytest.fixture
def make_channel() -> Iterator[MakeChannel]:
    senders = []
    store = open_store(LOOPBACK)

    def make(
        num_receivers: int,
        *,
        bucket_bytes: int = 64,
        ready_s: float = 20,
        transfer_s: float = 20,
        on_gpus: bool = False,
    ) -> tuple[Channel, Sender]:
        channel = Channel(
            host=LOOPBACK,
            port=store.port,
            key=f"group {len(senders)}",
            num_receivers=num_receivers,
            on_gpus=on_gpus,
            bucket_bytes=bucket_bytes,
            ready_s=ready_s,
            transfer_s=transfer_s,
        )
        senders.append(Sender(channel, store))
        return channel, senders[-1]

    yield make
    for sender in senders:
        sender.close()


def mixed_weights(seed: int) -> Received:
    """All types that a policy may have, some larger than a bucket of 64 bytes, and some smaller."""
    random = np.random.default_rng(seed)
    return {
        "matrix": random.normal(size=(7, 9)).astype(np.float32),
        "half": torch.from_numpy(random.normal(size=(5, 3))).to(torch.bfloat16),
        "turned": random.normal(size=(4, 6)).astype(np.float64).T,
        "count": np.array(seed, np.int64),
        "flags": random.random(3) < 0.5,
        "none": np.zeros((0, 4), np.float32),
        "codes": random.integers(0, 255, 130).astype(np.uint8),
    }


def assert_same(found: dict[str, torch.Tensor], expected: Received) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        wanted = value if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value))
        assert found[name].dtype == wanted.dtype and found[name].shape == wanted.shape
        assert torch.equal(found[name], wanted), name


def receiving(receiver: Receiver, version: int) -> Future[dict[str, torch.Tensor]]:
    return ThreadPoolExecutor(1).submit(receiver.receive, version)


@pytest.mark.parametrize("bucket_bytes", [1, 64, 1 << 20])
def test_every_receiver_gets_the_very_bytes_of_each_version(make_channel: MakeChannel, bucket_bytes: int) -> None:
    channel, sender = make_channel(2, bucket_bytes=bucket_bytes)
    receivers = [Receiver(channel, 1), Receiver(channel, 2)]
    for version in (3, 4):
        weights = mixed_weights(seed=version)
        waiting = [receiving(each, version) for each in receivers]
        sender.send(version, weights)
        for each in waiting:
            assert_same(each.result(TIMEOUT_S), weights)


def test_a_receiver_that_cannot_makes_nobody_wait_and_another_group_goes_on(make_channel: MakeChannel) -> None:
    channel, sender = make_channel(2)
    receivers = [Receiver(channel, 1), Receiver(channel, 2)]
    receivers[1].close("OutOfMemoryError: no room")
    waiting = [receiving(each, 1) for each in receivers]
    with pytest.raises(BroadcastFailed, match=r"^receiver 2: OutOfMemoryError: no room$"):
        sender.send(1, mixed_weights(1))
    for each in waiting:
        with pytest.raises(BroadcastFailed, match=r"^receiver 2: OutOfMemoryError: no room$"):
            each.result(TIMEOUT_S)
    channel, sender = make_channel(2)
    waiting = [receiving(Receiver(channel, rank), 2) for rank in (1, 2)]
    sender.send(2, mixed_weights(2))
    assert_same(waiting[1].result(TIMEOUT_S), mixed_weights(2))


def test_a_receiver_that_is_not_there_is_not_waited_for_longer_than_said(make_channel: MakeChannel) -> None:
    channel, sender = make_channel(2, ready_s=0.5)
    waiting = receiving(Receiver(channel, 1), 1)
    with pytest.raises(BroadcastFailed, match=f"^receiver 2: {TOO_LATE}$"):
        sender.send(1, mixed_weights(1))
    with pytest.raises(BroadcastFailed, match=f"^receiver 2: {TOO_LATE}$"):
        waiting.result(TIMEOUT_S)


def test_a_receiver_waits_for_a_sender_no_longer_than_said_and_then_takes_no_part(make_channel: MakeChannel) -> None:
    channel, sender = make_channel(1, ready_s=0.2)
    with pytest.raises(BroadcastFailed, match="the sender did not answer in time"):
        Receiver(channel, 1).receive(1)
    with pytest.raises(BroadcastFailed, match="receiver 1: the sender did not answer in time"):
        sender.send(1, mixed_weights(1))


def test_a_receiver_that_was_started_again_does_not_break_into_the_group(make_channel: MakeChannel) -> None:
    channel, sender = make_channel(1)
    receiver = Receiver(channel, 1)
    waiting = receiving(receiver, 1)
    sender.send(1, mixed_weights(1))
    waiting.result(TIMEOUT_S)
    again = receiving(Receiver(channel, 1), 2)
    with pytest.raises(BroadcastFailed, match="started again"):
        sender.send(2, mixed_weights(2))
    with pytest.raises(BroadcastFailed, match="started again"):
        again.result(TIMEOUT_S)


# ---------------------------------------------------------------------------------------------------------------------
# Processes


def start(channel: Channel, rank: int, num_versions: int, end: str, **environment: str) -> subprocess.Popen[str]:
    text = json.dumps(dataclasses.asdict(channel))
    command = [sys.executable, "-m", "tests.receiver", text, str(rank), str(num_versions), end]
    return subprocess.Popen(
        command, cwd=ROOT, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def float_weights(seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {"a": random.normal(size=(300, 70)).astype(np.float32), "b": np.array(seed, np.int64)}


def test_processes_hold_the_checksum_of_what_was_sent(make_channel: MakeChannel) -> None:
    channel, sender = make_channel(2, bucket_bytes=10_000, ready_s=TIMEOUT_S)
    processes = [start(channel, rank, 2, "stay") for rank in (1, 2)]
    for version in (1, 2):
        sender.send(version, float_weights(version))
    expected = "".join(f"{checksum(float_weights(version))}\n" for version in (1, 2))
    for process in processes:
        assert process.communicate(timeout=TIMEOUT_S)[0] == expected


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL needs a GPU for the sender and another one")
def test_nccl_carries_versions_from_gpu_to_gpu(make_channel: MakeChannel) -> None:
    channel, sender = make_channel(1, bucket_bytes=10_000, ready_s=TIMEOUT_S, transfer_s=TIMEOUT_S, on_gpus=True)
    process = start(channel, 1, 2, "stay", CUDA_VISIBLE_DEVICES="1")
    for version in (1, 2):
        sender.send(version, float_weights(version))
    expected = "".join(f"{checksum(float_weights(version))}\n" for version in (1, 2))
    assert process.communicate(timeout=TIMEOUT_S)[0] == expected


@pytest.mark.parametrize("dies_at", [1, 2])
def test_a_receiver_that_dies_after_all_were_ready_leaves_nobody_waiting(
    make_channel: MakeChannel, dies_at: int
) -> None:
    channel, sender = make_channel(2, bucket_bytes=10_000, ready_s=TIMEOUT_S, transfer_s=5)
    stays, dies = start(channel, 1, 3, "stay"), start(channel, 2, dies_at, "die")
    for version in range(1, dies_at):
        sender.send(version, float_weights(version))
    with pytest.raises(BroadcastFailed) as failure:
        sender.send(dies_at, float_weights(dies_at))
    assert dies.wait(TIMEOUT_S) == -9
    # The same group serves nobody any more, and says so at once.
    for version in range(dies_at + 1, 4):
        with pytest.raises(BroadcastFailed) as later:
            sender.send(version, float_weights(version))
        assert str(later.value) == str(failure.value)
    lines = stays.communicate(timeout=TIMEOUT_S)[0].splitlines()
    assert lines[: dies_at - 1] == [checksum(float_weights(version)) for version in range(1, dies_at)]
    assert [line[:9] for line in lines[dies_at - 1 :]] == ["not sent:"] * (4 - dies_at)
