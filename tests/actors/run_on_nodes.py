"""A driver on the cluster of RAY_ADDRESS: trains the tiny world and tells where everything was, as one line of JSON.

Usage: python -m tests.actors.run_on_nodes CHECKPOINTS RUN_DIR KEY=VALUE ...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import ray
import yaml
from ray.experimental import get_object_locations

from actors.cluster.placement import cluster_nodes, node_id
from actors.pipeline import Pipeline
from actors.reward.pool import RewardPool
from rlir_ray.run.capacity import check_capacity, pools_of
from rlir_ray.trajectory import EncodedVideo, Prompt, TrajectoryGroup
from tests.world import tiny_config, tiny_prompt_set

RUNTIME_ENV = Path(__file__).parents[2] / "deploy" / "runtime_env.yaml"


def refuse(self: Any, state: Any) -> None:
    raise AssertionError(f"the driver read a {type(self).__name__}")


def main(checkpoints: str, run_dir: str, *overrides: str) -> None:
    for payload in (TrajectoryGroup, EncodedVideo, Prompt):
        payload.__setstate__ = refuse  # type: ignore[attr-defined]
    videos: list[ray.ObjectRef] = []
    score = RewardPool.score

    def remember(self: RewardPool, video_ref: ray.ObjectRef) -> Any:
        videos.append(video_ref)
        return score(self, video_ref)

    RewardPool.score = remember  # type: ignore[method-assign]
    # What a submitted job gets: without it so small a world's results would lie in the driver's memory.
    ray.init(log_to_driver=False, runtime_env={"env_vars": yaml.safe_load(RUNTIME_ENV.read_text())["env_vars"]})
    actors: dict[str, list[str]] = {}
    objects: list[dict[str, Any]] = []

    def look(metrics: dict[str, float]) -> None:
        for actor in ray._private.state.actors().values():
            if actor["State"] == "ALIVE":
                places = actors.setdefault(actor["ActorClassName"].split(".")[-1], [])
                places += {actor["Address"]["NodeID"]} - set(places)
        objects[:] = [
            {"nodes": each["node_ids"], "bytes": each["object_size"]} for each in get_object_locations(videos).values()
        ]

    config = tiny_config(Path(checkpoints), Path(run_dir), *overrides)
    pipeline = Pipeline(
        config, callbacks=[look], prompts=tiny_prompt_set, progress=lambda text: print(text, flush=True)
    )
    result = pipeline.train(calibrate=False)
    try:
        # As many CPUs as there are, in pieces that no node has.
        check_capacity(pools_of(tiny_config(Path(checkpoints), Path(run_dir), "learner.num_cpus=2")), cluster_nodes())
        refusal = ""
    except ValueError as error:
        refusal = str(error)
    told = {
        "driver": node_id(),
        "actors": actors,
        "videos": objects,
        "groups": result.groups,
        "refusal": refusal,
        "losses": [step["loss/policy"] for step in result.metrics],
    }
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
