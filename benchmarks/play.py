"""Frames a second of a drive: one model, two side by side, and two with the reading that the page shows.

Run: `python -m benchmarks.play`; writes benchmarks/results/play.json.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch

from rlir_ray.data.files import write_json
from rlir_ray.play.driving import Drive
from rlir_ray.play.generate import open_reader
from rlir_ray.play.opening import open_world
from rlir_ray.run.environment import versions

MODELS = {"tokens": "asset:doom/world_model", "flow": "asset:doom/flow_model"}
NUM_WARM = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=60, help="frames of each measurement")
    arguments = parser.parse_args()
    # One thread a model: the models compute side by side.
    torch.set_num_threads(1)
    rates = {name: rate(model, arguments.frames) for name, model in MODELS.items()}
    content = {
        "versions": versions(),
        "load_average": os.getloadavg(),
        "cores": len(os.sched_getaffinity(0)),
        "frames": arguments.frames,
        "frames_per_s": rates,
    }
    out = Path(__file__).parent / "results" / "play.json"
    write_json(out, content)
    for name, found in rates.items():
        print(name, ", ".join(f"{kind} {value:.1f} frames/s" for kind, value in found.items()))
    print(out)


def rate(model: str, num_frames: int) -> dict[str, float]:
    """Return the frames a second of one model, of two side by side, and of two with a reading."""
    world = open_world(model)
    size, random = world.config.world, np.random.default_rng(0)
    contexts = random.integers(0, 255, (1, size.num_context, size.height, size.width, 3), dtype=np.uint8)
    idm = open_reader("judge", world)
    kinds = {
        "one model": Drive({"policy": world}, contexts, None),
        "two models": Drive({"policy": world, "base": world}, contexts, None),
        "two models, read": Drive({"policy": world, "base": world}, contexts, idm),
    }
    found = {}
    for kind, drive in kinds.items():
        action = drive.space.nothing(1)
        for _ in range(NUM_WARM):
            drive.step(action)
        started = time.perf_counter()
        for _ in range(num_frames):
            drive.step(action)
        found[kind] = num_frames / (time.perf_counter() - started)
        drive.close()
    return found


if __name__ == "__main__":
    main()
