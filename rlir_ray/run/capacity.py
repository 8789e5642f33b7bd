"""Capacity check: whether the nodes of a cluster can hold the pools, and otherwise the smallest change that fits.

Plain values; independent of Ray. A bundle is the set of resources of one actor: CPU, GPU and custom resources.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from rlir_ray.config import Config, EvaluationConfig, LearnerConfig, RewardConfig, RolloutConfig

PoolConfig = RolloutConfig | RewardConfig | LearnerConfig | EvaluationConfig

# Ray counts in steps of a ten-thousandth: sums of shares that differ by less are equal.
TOLERANCE = 1e-5
# Proposed shares have two decimals.
SHARE = 0.01
# Most shares that are tried for one pool, to bound the search.
MAX_SHARES = 32
UNITS = {"CPU": "CPUs", "GPU": "GPUs"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """The actors of one role."""

    name: str
    """Name of the configuration's section: `rollout`."""
    count_key: str
    """Key of the section for the number of actors; empty: the pool has one actor."""
    count: int
    """Number of actors."""
    bundle: dict[str, float]
    """Resources of one actor."""

    def text(self, resource: str) -> str:
        count = f"{self.name}.{self.count_key}={self.count}" if self.count_key else self.name
        return f"{count} x {self.bundle[resource]:g}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """The resources of one node."""

    total: dict[str, float]
    """All resources of the node."""
    free: dict[str, float]
    """Resources that no job uses now."""

    @classmethod
    def idle(cls, total: Mapping[str, float]) -> Node:
        """Return a node whose resources are all free."""
        return cls(total=dict(total), free=dict(total))


def bundle(part: PoolConfig) -> dict[str, float]:
    """Return the resources of one actor of a pool, without zeros."""
    if isinstance(part, EvaluationConfig):
        amounts = {"GPU": part.num_gpus}
    else:
        num_gpus = part.gpu_share * part.use_gpu if isinstance(part, LearnerConfig) else part.num_gpus
        amounts = {"CPU": part.num_cpus, "GPU": num_gpus, **part.resources}
    return {name: amount for name, amount in amounts.items() if amount}


def pools_of(config: Config) -> list[Pool]:
    """Return all pools that take resources."""
    # The replicas of a shared reward service run elsewhere.
    num_replicas = 0 if config.reward.address else config.reward.num_replicas
    parts: list[tuple[str, str, int, PoolConfig]] = [
        ("rollout", "num_actors", config.rollout.num_actors, config.rollout),
        ("reward", "num_replicas", num_replicas, config.reward),
        ("learner", "num_workers", config.learner.num_workers, config.learner),
        ("evaluation", "", 1, config.evaluation),
    ]
    pools = [Pool(name=name, count_key=key, count=count, bundle=bundle(part)) for name, key, count, part in parts]
    return [pool for pool in pools if pool.bundle and pool.count]


def fits(pools: Sequence[Pool], nodes: Sequence[Node]) -> bool:
    """Return whether the pools fit the free resources in some order, with each actor on the fullest node that fits."""
    return any(_find_room(order, nodes) for order in itertools.permutations(pools))


def _find_room(pools: Sequence[Pool], nodes: Sequence[Node]) -> bool:
    free = [dict(node.free) for node in nodes]
    for pool in pools:
        for _ in range(pool.count):
            holding = [node for node in free if _holds(node, pool.bundle)]
            if not holding:
                return False
            # Prefer nodes without GPUs, so that the CPUs of GPU nodes stay free for actors that need both.
            tightest = min(holding, key=lambda node: (node.get("GPU", 0.0), node.get("CPU", 0.0)))
            for name, amount in pool.bundle.items():
                tightest[name] -= amount
    return True


def _holds(amounts: Mapping[str, float], asked: Mapping[str, float]) -> bool:
    return all(amounts.get(name, 0.0) >= amount - TOLERANCE for name, amount in asked.items())


def check_capacity(pools: list[Pool], nodes: Sequence[Node]) -> None:
    """Check that the nodes can hold the pools.

    Raises:
        ValueError: the pools do not fit; the message gives the demand, the resources, and the smallest change that
            fits.
    """
    if fits(pools, nodes):
        return
    _check_names(pools, nodes)
    idle = [Node.idle(node.total) for node in nodes]
    change = next((text for text, changed in _changes(pools, nodes) if fits(changed, nodes)), "")
    way_out = f"set {change}" if change else "start more nodes, or ask for less"
    if fits(pools, idle):
        way_out = f"wait for the other jobs, or {way_out}"
    raise ValueError(f"{_shortage(pools, nodes)}; {way_out}")


def _check_names(pools: Sequence[Pool], nodes: Sequence[Node]) -> None:
    known = {name for node in nodes for name in node.total}
    for pool in pools:
        for name, amount in pool.bundle.items():
            if name not in known and name not in UNITS:
                # Skip resources that Ray adds to every node: they are no labels of a user.
                labels = sorted(name for name in known - UNITS.keys() if ":" not in name and "memory" not in name)
                there = ", ".join(labels) or "none"
                raise ValueError(
                    f"{pool.name}.resources must name what nodes have, got {name!r} (nodes have {there}); start nodes "
                    f"with --resources='{{\"{name}\": {math.ceil(amount)}}}' or set {pool.name}.resources.{name}=0"
                )


# ---------------------------------------------------------------------------------------------------------------------
# What is short


def _shortage(pools: Sequence[Pool], nodes: Sequence[Node]) -> str:
    for name in _asked_names(pools):
        asked, listed = _asked(pools, name), ", ".join(pool.text(name) for pool in pools if name in pool.bundle)
        total, free = (sum(amounts.get(name, 0.0) for amounts in each) for each in _amounts(nodes))
        unit = UNITS.get(name, name)
        if asked > total + TOLERANCE:
            return f"the plan must fit {total:g} {unit}, got {asked:g} ({listed})"
        if asked > free + TOLERANCE:
            return f"the plan must fit the {free:g} of {total:g} {unit} that are free, got {asked:g} ({listed})"
    listed = ", ".join(_bundle_text(pool) for pool in pools)
    return f"every actor of the plan must fit a node, got {listed} for nodes with {_nodes_text(pools, nodes)}"


def _amounts(nodes: Sequence[Node]) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    return [node.total for node in nodes], [node.free for node in nodes]


def _asked_names(pools: Sequence[Pool]) -> list[str]:
    names = {name for pool in pools for name in pool.bundle}
    # Put the most expensive resource first: on a machine without GPUs the message must name GPUs before cores.
    return sorted(names, key=lambda name: (name not in UNITS, name != "GPU", name))


def _asked(pools: Sequence[Pool], name: str) -> float:
    return sum(pool.count * pool.bundle.get(name, 0.0) for pool in pools)


def _bundle_text(pool: Pool) -> str:
    count = f"{pool.name}.{pool.count_key}={pool.count}" if pool.count_key else pool.name
    return f"{count} x ({_amounts_text(pool.bundle)})"


def _nodes_text(pools: Sequence[Pool], nodes: Sequence[Node]) -> str:
    """List the free amounts of the requested resources, equal nodes together."""
    names = _asked_names(pools)
    found = Counter(
        _amounts_text({name: node.free[name] for name in names if node.free.get(name)}) or "nothing" for node in nodes
    )
    return ", ".join(f"{count} x ({text})" for text, count in found.items()) + " free"


def _amounts_text(amounts: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in amounts.items())


# ---------------------------------------------------------------------------------------------------------------------
# What would fit


def _changes(pools: list[Pool], nodes: Sequence[Node]) -> Iterator[tuple[str, list[Pool]]]:
    """Yield changes with their texts, smaller changes first; not all of them fit."""
    first = ""
    if not any(node.total.get("GPU") for node in nodes):
        first, pools = _without_gpus(pools)
        yield first, pools
    for text, changed in _changes_of_pools(pools, nodes):
        yield f"{first} {text}".strip(), changed


def _changes_of_pools(pools: list[Pool], nodes: Sequence[Node]) -> Iterator[tuple[str, list[Pool]]]:
    for pool in pools:
        if pool.count_key and pool.count > 1:
            yield _fewer(pools, pool, nodes)
    for name, key in (("CPU", "num_cpus"), ("GPU", "num_gpus")):
        for pool in pools:
            # A learner rank needs a whole GPU.
            if name in pool.bundle and (pool.name, name) != ("learner", "GPU"):
                for share in _shares(pools, pool, name, nodes):
                    smaller = replace(pool, bundle={**pool.bundle, name: share})
                    yield f"{pool.name}.{key}={share:g}", _with(pools, smaller)
    yield from _smaller_shares(pools, nodes)


def _with(pools: Sequence[Pool], changed: Pool) -> list[Pool]:
    return [changed if pool.name == changed.name else pool for pool in pools]


def _without_gpus(pools: Sequence[Pool]) -> tuple[str, list[Pool]]:
    asking = [pool.name for pool in pools if "GPU" in pool.bundle]
    keys = ["learner.use_gpu=false" if name == "learner" else f"{name}.num_gpus=0" for name in asking]
    bundles = [{name: amount for name, amount in pool.bundle.items() if name != "GPU"} for pool in pools]
    changed = [replace(pool, bundle=rest) for pool, rest in zip(pools, bundles, strict=True)]
    return " ".join(keys), [pool for pool in changed if pool.bundle]


def _fewer(pools: Sequence[Pool], pool: Pool, nodes: Sequence[Node]) -> tuple[str, list[Pool]]:
    """Reduce a pool to as many actors as fit, at least one."""
    least, most = 1, pool.count - 1
    while least < most:
        middle = (least + most + 1) // 2
        if fits(_with(pools, replace(pool, count=middle)), nodes):
            least = middle
        else:
            most = middle - 1
    return f"{pool.name}.{pool.count_key}={least}", _with(pools, replace(pool, count=least))


def _shares(pools: Sequence[Pool], pool: Pool, name: str, nodes: Sequence[Node]) -> list[float]:
    """Return smaller shares of a resource for a pool's actors, larger shares first.

    The candidates are equal parts of each node's free amount, and equal parts of the amount that other pools leave.
    """
    free = [node.free.get(name, 0.0) for node in nodes]
    parts = {amount / count for amount in set(free) for count in range(1, pool.count + 1)}
    own = pool.count * pool.bundle[name]
    parts.add((sum(free) - (_asked(pools, name) - own)) / pool.count)
    return sorted({_floor(part) for part in parts if SHARE <= part < pool.bundle[name]}, reverse=True)[:MAX_SHARES]


def _smaller_shares(pools: Sequence[Pool], nodes: Sequence[Node]) -> Iterator[tuple[str, list[Pool]]]:
    """Yield changes that lower all CPU shares by the same factor."""
    free, asked = sum(node.free.get("CPU", 0.0) for node in nodes), _asked(pools, "CPU")
    factor = min(1.0, free / asked) if asked else 0.0
    while factor > 0.01:
        changed, keys = [], []
        for pool in pools:
            share = _floor(pool.bundle.get("CPU", 0.0) * factor)
            changed.append(replace(pool, bundle={**pool.bundle, "CPU": share}) if share else pool)
            keys += [f"{pool.name}.num_cpus={share:g}"] if share else []
        yield " ".join(keys), changed
        factor *= 0.8


def _floor(share: float) -> float:
    return round(math.floor(share / SHARE + TOLERANCE) * SHARE, 2)
