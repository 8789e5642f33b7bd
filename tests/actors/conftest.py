"""One Ray for all tests of this room."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import ray

from actors.plan import start_ray


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    start_ray(num_cpus=4, object_store_memory=300 << 20)
    yield
    ray.shutdown()
