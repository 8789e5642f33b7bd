"""Pools that grow and shrink in the middle of a run, by hand and from another process."""

import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import ray

from actors.cluster.placement import as_actor
from actors.cluster.waiting import Stopped
from actors.control.commands import ControlActor, scale_run
from actors.control.scaling import check_scale
from actors.learner.command_queue import StepReport
from actors.pipeline import Pipeline
from actors.rollout.pool import RolloutPool
from actors.weights.sync import WeightSync
from rlir_ray.cli.commands import main
from rlir_ray.run.address import ADDRESS_FILE, find_run
from rlir_ray.run.tracing import Span
from tests.actors.test_driver import assert_same_run
from tests.fakes import tiny_prompts
from tests.light_world import LightSampler, light_checksum, light_weights
from tests.world import tiny_prompt_set

SPAN = Span(start_s=0.0, end_s=0.0, host="here", process=1)
TIMEOUT_S = 250


class Rollouts:
    """A pool with its weight sync, sampling one group a call."""

    def __init__(self, config, **options):
        self.pool = RolloutPool.from_config(config, partial(LightSampler, **options))
        self.pool.start()
        self.sync = WeightSync(self.pool, TIMEOUT_S)
        self.prompts = ray.put(tiny_prompts(1, num_frames=3))
        self.version, self.num_groups = -1, 0

    def publish(self):
        self.version += 1
        weights = light_weights(self.version)
        self.sync.publish(
            StepReport(
                version=self.version,
                metrics={},
                weights_refs=[ray.put(weights)],
                checksum=light_checksum(weights),
                span=SPAN,
            )
        )

    def sample(self, number):
        """References of groups; they come from the actors in turn."""
        refs = []
        for _ in range(number):
            refs += [each.group_ref for each in self.pool.sample([self.num_groups], [0], self.prompts)]
            self.num_groups += 1
        return refs


@pytest.fixture
def rollouts(ray_cluster, make_config):
    started = []

    def start(*overrides, **options):
        started.append(Rollouts(make_config(*overrides), **options))
        return started[-1]

    yield start
    for each in started:
        each.pool.stop()


def test_a_new_rollout_actor_holds_the_current_weights_before_it_serves(rollouts):
    each = rollouts()
    each.publish()
    new = each.pool.grow(2)
    assert (each.pool.num_actors(), len(each.pool.actors)) == (3, 1)
    # The new actors also load a version that is published while they start.
    each.publish()
    each.sync.join(new, threading.Event())
    assert len(each.pool.actors) == 3
    versions = ray.get([actor.version.remote() for actor in each.pool.actors], timeout=TIMEOUT_S)
    assert versions == [1, 1, 1]
    groups = each.sample(6)
    each.publish()
    groups += each.sample(6)
    assert [group.policy_version for group in ray.get(groups, timeout=TIMEOUT_S)] == [1] * 6 + [2] * 6


def test_a_version_that_is_published_while_an_actor_loads_the_one_before_is_loaded_too(rollouts):
    each = rollouts(load_s=0.2)
    each.publish()
    new = each.pool.grow(1)
    load, versions = each.pool.load_weights, []

    def load_and_publish(ref, version, published, actors=None):
        refs = load(ref, version, published, actors)
        if actors is not None:
            versions.append(version)
            if len(versions) == 1:
                each.publish()
        return refs

    each.pool.load_weights = load_and_publish
    each.sync.join(new, threading.Event())
    assert versions == [0, 1]
    assert ray.get(new[0].version.remote(), timeout=TIMEOUT_S) == 1


def test_a_join_never_lowers_the_version_that_calls_are_sampled_with(rollouts):
    each = rollouts()
    each.publish()
    new = each.pool.grow(1)
    load, loaded, published_then = each.pool.load_weights, [], []

    def publish_and_load(ref, version, published, actors=None):
        if actors is not None and not loaded:
            loaded.append(version)
            # Between the look at the latest version and its load.
            each.publish()
        refs = load(ref, version, published, actors)
        published_then.append(each.pool._published.version)
        return refs

    each.pool.load_weights = publish_and_load
    each.sync.join(new, threading.Event())
    assert loaded == [0] and set(published_then) == {1}
    assert {group.policy_version for group in ray.get(each.sample(4), timeout=TIMEOUT_S)} == {1}


def test_an_actor_that_gets_other_bytes_does_not_serve(rollouts):
    each = rollouts()
    each.publish()
    new = each.pool.grow(1)
    each.sync.latest = StepReport(
        version=0, metrics={}, weights_refs=each.sync.latest.weights_refs, checksum="0" * 32, span=SPAN
    )
    with pytest.raises(ValueError, match=f"must have the published checksum {'0' * 32}"):
        each.sync.join(new, threading.Event())
    assert len(each.pool.actors) == 1
    assert each.pool.drop(new[0]) and each.pool.num_actors() == 1


def test_a_removed_rollout_actor_finishes_its_calls(rollouts):
    each = rollouts("rollout.num_actors=3", sample_s=0.05)
    each.publish()
    groups = each.sample(30)
    gone = each.pool.actors[1:]
    each.pool.shrink(1)
    groups += each.sample(5)
    assert len(each.pool.actors) == each.pool.num_actors() == 1
    found = ray.get(groups, timeout=TIMEOUT_S)
    assert [group.group_id for group in found] == list(range(35))
    for actor in gone:
        with pytest.raises(ray.exceptions.RayActorError):
            ray.get(actor.version.remote(), timeout=TIMEOUT_S)


def test_actors_that_are_no_longer_wanted_before_they_joined_stay_out(rollouts):
    each = rollouts()
    each.publish()
    (new,) = each.pool.grow(1)
    each.pool.shrink(1)
    assert each.pool.num_actors() == 1
    each.pool.join([new])
    assert new not in each.pool.actors
    assert not each.pool.drop(new)


def test_a_join_stops_when_the_run_ends(rollouts):
    each = rollouts()
    each.publish()
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        each.sync.join(each.pool.grow(1), stop)
    assert len(each.pool.actors) == 1


@pytest.mark.parametrize(
    ("wanted", "options", "message"),
    [
        (0, {"num_cpus": 0.5}, r"the number of actors must be >= 1, got 0; scale to 1 or more"),
        (
            9,
            {"num_cpus": 0.5},
            r"must be at most 4, for 0.7 \+ 0.8 CPU are free and each takes 0.5, got 9; scale",
        ),
        (4, {"num_cpus": 0.1, "num_gpus": 1}, r"must be at most 3, for 1 \+ 0 GPU are free and each takes 1, got 4"),
        (3, {"resources": {"rack": 1}}, r"must be at most 2, for 0 \+ 0 rack are free and each takes 1, got 3"),
    ],
)
def test_a_pool_grows_as_far_as_the_cluster_goes_and_no_further(wanted, options, message):
    free = [{"CPU": 0.7, "GPU": 1.0}, {"CPU": 0.8}]
    with pytest.raises(ValueError, match=message) as refused:
        check_scale("actors", 2, wanted, options, free)
    assert "\n" not in str(refused.value)


def test_a_pool_that_shrinks_or_asks_for_nothing_fits_always():
    check_scale("actors", 8, 1, {"num_cpus": 1}, [])
    check_scale("actors", 1, 100, {"num_cpus": 0}, [{}])
    check_scale("actors", 2, 5, {"num_cpus": 0.1}, [{"CPU": 0.3}])


# ---------------------------------------------------------------------------------------------------------------------
# A whole run


def wait_until(condition):
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "the pools did not come to it"
        time.sleep(0.02)


@pytest.mark.slow
def test_a_run_that_is_scaled_from_another_process_changes_no_loss(
    ray_cluster, make_config, monkeypatch, capsys, tmp_path
):
    """The command joins the Ray that this process started, which it finds in RAY_ADDRESS or in the run's folder."""
    found = {}

    def scale(metrics):
        if metrics["step"] == 3:
            assert pipeline.scale_reward(1) == "reward pool: 2 -> 1"
            assert pipeline.scale_rollout(1) == "rollout pool: 2 -> 1"
        if metrics["step"] != 1:
            return
        folder = pipeline.folder.path
        found["mode"] = stat.S_IMODE((folder / ADDRESS_FILE).stat().st_mode)
        # As on another node, where the run's folder is not.
        command = [sys.executable, "-m", "rlir_ray", "scale", "rollout", "2", "--run", folder.name]
        address = ray.get_runtime_context().gcs_address
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "RAY_ADDRESS": address}
        found["done"] = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, env=environment, cwd=tmp_path
        )
        # Otherwise the run would be over before it serves.
        wait_until(lambda: len(pipeline.driver.session.rollout.actors) == 2)
        # By name, as typed where runs/ is, in a shell that knows nothing of that Ray.
        (tmp_path / "runs").symlink_to(folder.parent)
        environment = {name: value for name, value in environment.items() if not name.startswith("RAY_")}
        command = [*command[:4], "reward", "2", "--run", folder.name]
        found["shell"] = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, env=environment, cwd=tmp_path
        )
        # From here on in this process, which is in that Ray already.
        monkeypatch.chdir(tmp_path)
        for key, arguments in {"many": ("reward", 40), "none": ("rollout", 0)}.items():
            with pytest.raises(ValueError) as refused:
                scale_run(find_run(folder.name), *arguments)
            found[key] = str(refused.value)

    config, stages = make_config("train.num_steps=4"), []
    pipeline = Pipeline(config, callbacks=[scale], progress=stages.append, prompts=tiny_prompt_set)
    result = pipeline.train(calibrate=False, evaluate=False)
    assert (found["done"].stdout, found["done"].returncode) == ("rollout pool: 1 -> 2\n", 0), found["done"].stderr
    assert found["mode"] == 0o600
    assert (found["shell"].stdout, found["shell"].returncode) == ("reward pool: 1 -> 2\n", 0), found["shell"].stderr
    assert (
        found["many"].startswith("the number of reward replicas must be at most ")
        and "got 40; scale to" in found["many"]
    )
    assert found["none"] == "the number of rollout actors must be >= 1, got 0; scale to 1 or more"
    assert result.groups["trained"] == 16 and result.groups["failed"] == 0
    assert "rollout pool: 2 actors serve" in stages
    # It has ended: nobody answers, and its folder says so.
    with pytest.raises(
        ValueError, match=r"^only a run that trains can be scaled or evaluated, got one that is starting"
    ):
        pipeline.scale_reward(2)
    with pytest.raises(SystemExit) as end:
        main(["scale", "reward", "2", "--run", str(result.folder)])
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        f"error: --run must name a run that trains, got {result.folder}, which has saved its policy and ended; scale "
        "it between its first and last step\n"
    )
    assert_same_run(result, config)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("scale reward 2 --run nowhere", "error: --run must name a run, got 'nowhere'; give a name below runs/ or"),
        ("scale reward 0 --run nowhere", "error: the number of reward actors must be >= 1, got 0; scale to 1 or more"),
    ],
)
def test_an_invalid_command_is_rejected_in_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments.split())
    error = capsys.readouterr().err
    assert (end.value.code, error.count("\n")) == (2, 1)
    assert error.startswith(message)


def test_a_run_whose_driver_was_killed_is_not_waited_for(tmp_path, monkeypatch):
    # As another process sees it: it is in no Ray.
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / ADDRESS_FILE).write_text(json.dumps({"address": address, "auth_mode": "", "actor": "x"}))
    with pytest.raises(ValueError, match=rf"must name a run that trains, got {tmp_path}, which is starting or has"):
        scale_run(find_run(str(tmp_path)), "reward", 2)


def test_two_runs_of_one_name_do_not_share_a_ray(ray_cluster, make_config):
    taken = as_actor(ControlActor, name="tiny", namespace="rlir_ray").remote()
    pipeline = Pipeline(make_config(), prompts=tiny_prompt_set)
    with pytest.raises(ValueError, match=r"^run.name must be free in the Ray that it trains in, got tiny, which"):
        pipeline.train(calibrate=False, evaluate=False)
    # Nothing of the folder was touched: it may be that run's.
    assert pipeline.driver.session.learner is None and not pipeline.folder.has_begun
    ray.kill(taken)
