"""R5: both pools are resized from another thread while groups are in flight: none is lost and none fails."""

import json
import threading
import time
from collections import Counter
from queue import SimpleQueue

import pytest

from actors.cluster.compat import actor_info
from actors.cluster.diagnostics import actor_ids
from tests.chaos.test_run import PER_STEP, ledger_of, make_pipeline, run

# Two steps after a size was asked for it must be there; what was ready by then trains for three more.
SIZES, STEPS_EACH = (3, 1), 8
NUM_STEPS = len(SIZES) * STEPS_EACH
DEADLINE_S = 60


class Resizer:
    """Brings both pools to the sizes that it is asked for, and says what it saw when they have them."""

    def __init__(self, pipeline):
        self.pipeline, self.actors, self.num_under_way = pipeline, ({}, {}), []
        self.wanted, self.seen = SimpleQueue(), SimpleQueue()
        self.thread = threading.Thread(target=self.resize, daemon=True)

    def resize(self):
        for _ in SIZES:
            size, deadline = self.wanted.get(timeout=DEADLINE_S), time.monotonic() + DEADLINE_S
            groups = list(self.pipeline.driver.collector._in_flight.values())
            self.num_under_way.append(sum(not scores.done() for _, scores in groups))
            self.pipeline.scale_rollout(size)
            self.pipeline.scale_reward(size)
            while (found := self.states()) != all_alive(size) and time.monotonic() < deadline:
                time.sleep(0.05)
            self.seen.put(found)

    def states(self):
        """What Ray knows of all actors that each pool has had, but for those that are dead."""
        session = self.pipeline.driver.session
        pools = actor_ids(session.rollout.actors), session.reward.deployment.actor_ids()
        for known, actors in zip(self.actors, pools, strict=True):
            known |= dict.fromkeys(actors)
        found = [Counter(actor_info(actor).state for actor in known) for known in self.actors]
        return [{name: number for name, number in each.items() if name != "DEAD"} for each in found]


def all_alive(size):
    return [{"ALIVE": size}, {"ALIVE": size}]


def num_processes(trace, pool):
    """As many as worked for a pool."""
    return len({event["pid"] for event in json.loads(trace.read_text())["traceEvents"] if event.get("cat") == pool})


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_pools_that_are_resized_under_load_lose_no_group(ray_cluster, tmp_path):
    def pace(metrics):
        number, step = divmod(int(metrics["step"]), STEPS_EACH)
        if step == 1:
            resizer.wanted.put(SIZES[number])
        elif step == 3:
            # Otherwise the run would be over before.
            assert resizer.seen.get(timeout=2 * DEADLINE_S) == all_alive(SIZES[number])

    pipeline = make_pipeline(
        tmp_path,
        f"train.num_steps={NUM_STEPS}",
        "train.max_staleness=2",
        sample_s=0.1,
        score_s=0.1,
        callbacks=[pace],
        trace=tmp_path / "trace.json",
    )
    resizer = Resizer(pipeline)
    resizer.thread.start()
    result = run(pipeline)
    assert len(resizer.num_under_way) == len(SIZES) and min(resizer.num_under_way) > 0
    ledger_of(result).check()
    assert result.groups["trained"] == NUM_STEPS * PER_STEP and result.groups["failed"] == 0
    # Those that came have worked.
    assert num_processes(pipeline.trace, "rollout") >= max(SIZES) <= num_processes(pipeline.trace, "reward")
