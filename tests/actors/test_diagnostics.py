"""The message of a wait that was too long says what the awaited process is busy with."""

import re

import pytest
import ray

from actors.cluster.waiting import wait_all
from actors.rollout.pool import RolloutPool
from rlir_ray.run.watchdog import innermost_frame
from tests.fakes import tiny_prompts
from tests.light_world import StuckSampler

STACKS = """Thread 0x01 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 324 in wait

Current thread 0x02 (most recent call first):
  File "/usr/lib/site-packages/torch/nn/functional.py", line 9 in linear
  File "/home/me/rlir_ray/samplers/tokens.py", line 120 in sample
  File "/home/me/actors/rollout.py", line 60 in sample
"""


def test_the_innermost_frame_of_the_project_is_found_in_whichever_thread():
    assert innermost_frame(STACKS) == "samplers/tokens.py:120 in sample"
    assert innermost_frame("") == innermost_frame(STACKS.split("Current")[0]) == ""


@pytest.mark.timeout(120)
def test_a_timeout_names_the_line_that_the_actor_executes(ray_cluster, make_config):
    pool = RolloutPool.from_config(make_config("train.wait_timeout_s=60"), StuckSampler)
    pool.start()
    pool.wait_ready()
    (refs,) = pool.sample([0], [0], ray.put(tiny_prompts(1)))
    with pytest.raises(TimeoutError) as late:
        wait_all([refs.report_ref], 1, "a group", activity=pool.activity)
    pool.stop()
    message = str(late.value)
    assert message.startswith("waited 1 s for a group (0 of 1 answered) (RolloutActor (process ")
    # The test's own file is one of the project where the clone's folder has the project's name.
    assert re.search(r"is at (rollout/actor|tests/light_world)\.py:\d+ in sample\); look into Ray's logs", message)
    assert "\n" not in message
