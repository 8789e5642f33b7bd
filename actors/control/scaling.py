"""Scaling of the pools of a run while it trains."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

from actors.cluster.diagnostics import one_line
from actors.cluster.placement import Handle, Options, cluster_nodes
from actors.cluster.waiting import Stopped
from actors.reward.pool import RewardPool
from actors.rollout.pool import RolloutPool
from actors.weights.sync import WeightSync
from rlir_ray.config import require

# Sums of fractions of CPUs and GPUs have rounding errors; Ray counts resources in steps of this size.
ROUNDING = 1e-4
STOP_TIMEOUT_S = 60.0


def check_scale(what: str, now: int, wanted: int, options: Options, free: Sequence[Mapping[str, float]]) -> None:
    """Check that the cluster can hold a pool of `wanted` actors.

    Args:
        what: name of the actors in the error, such as "rollout actors".
        now: current number of actors.
        wanted: wanted number of actors.
        options: options of `ray.remote` for one actor.
        free: free resources of each node.

    Raises:
        ValueError: `wanted` is below 1 or more than the cluster can hold.
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
    """The scaling of the pools of a run. Any thread may call `scale`, which returns at once.

    Args:
        rollout: the rollout pool.
        reward: the reward pool.
        sync: the weight sync, which has published a version.
        progress: called with a line when a pool changes.
        nodes_may_join: whether an autoscaler may add nodes, so that the free resources are no bound.
    """

    def __init__(
        self,
        rollout: RolloutPool,
        reward: RewardPool,
        sync: WeightSync,
        progress: Callable[[str], None],
        *,
        nodes_may_join: bool,
    ) -> None:
        self.rollout, self.reward, self.sync, self.progress = rollout, reward, sync, progress
        self.nodes_may_join = nodes_may_join
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []

    def scale(self, pool: str, wanted: int) -> str:
        """Start to grow or shrink a pool; return a line with the old and the new number.

        Args:
            pool: `rollout` or `reward`.
            wanted: wanted number of actors or replicas.

        Raises:
            ValueError: the number is below 1 or more than the cluster can hold, the reward is a shared service, or the
                run is ending.
        """
        with self._lock:
            # While the run ends, a new actor would start in a stopped pool.
            require(
                not self._closing.is_set(), "a run that is scaled", "must train", "one that is ending", "let it end"
            )
            now = self._scale_reward(wanted) if pool == "reward" else self._scale_rollout(wanted)
        text = f"{pool} pool: {now} -> {wanted}"
        self.progress(text)
        return text

    def _scale_reward(self, wanted: int) -> int:
        now = self.reward.num_replicas()
        self._check("reward replicas", now, wanted, self.reward.options)
        # Call this also for an unchanged number: it fixes the number of a pool that follows its queue.
        self.reward.scale(wanted)
        return now

    def _scale_rollout(self, wanted: int) -> int:
        now = self.rollout.num_actors()
        self._check("rollout actors", now, wanted, self.rollout.options)
        if wanted < now:
            self.rollout.shrink(wanted)
        for actor in self.rollout.grow(max(0, wanted - now)):
            thread = threading.Thread(target=self._join, args=(actor,), name="new rollout actor", daemon=True)
            self._threads.append(thread)
            thread.start()
        return now

    def _check(self, what: str, now: int, wanted: int, options: Options) -> None:
        free = [{}] if self.nodes_may_join else [node.free for node in cluster_nodes()]
        check_scale(what, now, wanted, {} if self.nodes_may_join else options, free)

    def _join(self, actor: Handle) -> None:
        """Wait until a new rollout actor holds the latest weights; then give it calls."""
        try:
            self.rollout.wait_ready(self._closing, [actor])
            self.sync.join([actor], self._closing)
        except Stopped:
            return
        except Exception as error:
            # Fault tolerance: the pool shrank again and killed the actor, or the actor died. The other actors serve on.
            if self.rollout.drop(actor):
                self.progress(f"rollout pool: a new actor could not join: {one_line(error)}")
        else:
            self.progress(f"rollout pool: {len(self.rollout.actors)} actors serve")

    def close(self) -> None:
        """Stop waiting for actors that are still starting."""
        with self._lock:
            self._closing.set()
        for thread in self._threads:
            thread.join(STOP_TIMEOUT_S)
