"""The checks of `python -m rlir_ray doctor` that need Ray: whether Ray answers, and whether the recipe's run fits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from actors.cluster.placement import cluster_nodes
from actors.cluster.plan import check_disk, check_ranks, check_store, free_store
from actors.cluster.start import ray_session
from rlir_ray.config import Config
from rlir_ray.run.capacity import Node, check_capacity, pools_of
from rlir_ray.run.doctor import Finding, run_check
from rlir_ray.run.folder import runs_folder
from rlir_ray.run.resolved import resolve


def ray_findings(config: Config) -> Iterator[Finding]:
    """Check that Ray starts or answers, as for `train`; then check that the plan fits the cluster."""
    with contextlib.ExitStack() as session:
        answer = run_check("ray", lambda: session.enter_context(ray_session()))
        yield answer
        if answer.level != "fail":
            yield from _plan_findings(config, cluster_nodes(), free_store(config.rollout))


def _plan_findings(config: Config, nodes: list[Node], store_bytes: int) -> Iterator[Finding]:
    def plan() -> str:
        pools = pools_of(config)
        check_ranks(config.learner, config.train)
        check_capacity(pools, nodes)
        return ", ".join(f"{pool.count} x {pool.name}" for pool in pools) + " fit the nodes"

    yield run_check("plan", plan)
    try:
        run = resolve(config)
    except ValueError:
        # The checks below need the sizes of the checkpoints, whose errors the finding "checkpoints" reports.
        return

    def store() -> str:
        budget = check_store(run, store_bytes)
        return f"{store_bytes / 1e9:.1f} GB free hold the weights and up to {budget / 1e9:.1f} GB of groups"

    def disk() -> str:
        folder = runs_folder(config.run.dir)
        return check_disk(run, next(path for path in (folder, *folder.parents) if path.is_dir()))

    yield run_check("object store", store)
    yield run_check("disk", disk)
