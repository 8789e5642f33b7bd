"""Grow and shrink the pools of a run while it trains."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

from actors.cluster.errors import one_line
from actors.cluster.lifecycle import Handle
from actors.cluster.placement import Options, cluster_nodes, ray_options
from actors.cluster.waiting import Stopped
from actors.reward.pool import RewardPool
from actors.rollout.pool import RolloutPool
from actors.weights.sync import WeightSync
from rlir_ray.config import require

# Fractions of CPUs and GPUs are added up with rounding errors.
ROUNDING = 1e-4
STOP_TIMEOUT_S = 60.0


def check_scale(what: str, now: int, wanted: int, options: Options, free: Sequence[Mapping[str, float]]) -> None:
    """Check that the cluster can hold a pool of `wanted` actors.

    Args:
        what: for the error, "rollout actors".
        now: actors that the pool has.
        options: of `ray.remote`, for one actor.
        free: free resources of each node.

    Raises:
        ValueError: fewer than one, or more than the cluster can hold.
    """
    require(wanted >= 1, f"the number of {what}", "must be >= 1", wanted, "scale to 1 or more")
    each = {"CPU": options.get("num_cpus", 0), "GPU": options.get("num_gpus", 0), **(options.get("resources") or {})}
    each = {name: amount for name, amount in each.items() if amount}
    room = [[(int((node.get(name, 0.0) + ROUNDING) // amount), name) for name, amount in each.items()] for node in free]
    fewest = [min(of_node, default=(wanted, "")) for of_node in room]
    more = sum(number for number, _ in fewest)
    if wanted <= now + more:
        return
    short = min(each, key=lambda name: sum(node.get(name, 0.0) for node in free) / each[name])
    left = " + ".join(f"{node.get(short, 0.0):g}" for node in free)
    require(
        False,
        f"the number of {what}",
        f"must be at most {now + more}, for {left} {short} are free and each takes {each[short]:g}",
        wanted,
        f"scale to {now + more} or add nodes",
    )


class Scaling:
    """Scale the pools of a run that trains. Calls may come from any thread; they return at once.

    Args:
        rollout, reward, sync: of the run; the weights of the first version are published.
        progress: called with a line when a pool has changed.
    """

    def __init__(
        self, rollout: RolloutPool, reward: RewardPool, sync: WeightSync, progress: Callable[[str], None]
    ) -> None:
        self.rollout, self.reward, self.sync, self.progress = rollout, reward, sync, progress
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []

    def scale(self, pool: str, wanted: int) -> str:
        """Start to grow or to shrink a pool, `rollout` or `reward`; return what it will be.

        Raises:
            ValueError: fewer than one, more than the cluster can hold, a reward service that others share, or a run
                that is ending.
        """
        with self._lock:
            # A stopped pool must not start again.
            require(
                not self._closing.is_set(), "a run that is scaled", "must train", "one that is ending", "let it end"
            )
            now = self._scale_reward(wanted) if pool == "reward" else self._scale_rollout(wanted)
        text = f"{pool} pool: {now} -> {wanted}"
        self.progress(text)
        return text

    def _scale_reward(self, wanted: int) -> int:
        now = self.reward.num_replicas()
        if not self.reward.config.reward.address:
            self._check("reward replicas", now, wanted, ray_options(self.reward.config.reward))
        # Also for an unchanged number: from here on the pool no longer follows its queue.
        self.reward.scale(wanted)
        return now

    def _scale_rollout(self, wanted: int) -> int:
        now = self.rollout.num_actors()
        self._check("rollout actors", now, wanted, self.rollout.options)
        if wanted < now:
            self.rollout.shrink(wanted)
        for actor in self.rollout.grow(max(0, wanted - now)):
            thread = threading.Thread(target=self._bring_up, args=(actor,), name="new rollout actor", daemon=True)
            self._threads.append(thread)
            thread.start()
        return now

    def _check(self, what: str, now: int, wanted: int, options: Options) -> None:
        # An autoscaler may add nodes to a run that waits for nodes.
        grows = self.rollout.config.run.wait_for_nodes_s > 0
        free = [{}] if grows else [node.free for node in cluster_nodes()]
        check_scale(what, now, wanted, {} if grows else options, free)

    def _bring_up(self, actor: Handle) -> None:
        """Wait until a new rollout actor holds its policy and the latest weights; let it serve."""
        try:
            self.rollout.wait_ready(self._closing, [actor])
            self.sync.join([actor], self._closing)
        except Stopped:
            return
        except Exception as error:
            # The actor was killed because the pool shrank again, or was lost: the others keep serving.
            if self.rollout.drop(actor):
                self.progress(f"rollout pool: a new actor could not join: {one_line(error)}")
        else:
            self.progress(f"rollout pool: {len(self.rollout.actors)} actors serve")

    def close(self) -> None:
        """Give up actors that still start."""
        with self._lock:
            self._closing.set()
        for thread in self._threads:
            thread.join(STOP_TIMEOUT_S)
