"""Measure the differences between the clocks of the nodes, so that spans of all nodes lie on one time axis."""

from __future__ import annotations

import platform
import time

import ray

from actors.cluster.placement import node_id, on_node
from actors.cluster.waiting import wait_all

# The shortest of several round trips gives the best estimate; five keep the start of a run fast.
ROUND_TRIPS = 5


def _now() -> tuple[str, float]:
    return platform.node(), time.time()


def clock_offsets(timeout_s: float) -> dict[str, float]:
    """Return the seconds by which each other node's clock is ahead of this node's, by host.

    The estimate is NTP's: it assumes that the other clock was read in the middle of the round trip. The error is at
    most half of the round trip.
    """
    offsets: dict[str, float] = {}
    for node in (each["NodeID"] for each in ray.nodes() if each["Alive"] and each["NodeID"] != node_id()):
        ask = ray.remote(num_cpus=0, scheduling_strategy=on_node(node))(_now)
        trips = []
        for _ in range(ROUND_TRIPS):
            sent = time.time()
            host, there = wait_all([ask.remote()], timeout_s, f"the clock of node {node[:8]}")[0]
            received = time.time()
            trips.append((received - sent, host, there - (sent + received) / 2))
        _, host, ahead = min(trips)
        if host != platform.node():
            offsets[host] = ahead
    return offsets
