"""A module that only the driver can import: what builds a user's own part says so, whichever pool it is for."""

import sys
import types

import pytest

from actors.cluster.diagnostics import import_hint
from actors.cluster.placement import as_actor, stop_actors
from actors.cluster.waiting import wait_all
from actors.learner.group import LearnerGroup
from actors.reward.pool import RewardPool
from actors.rollout.pool import RolloutPool
from actors.rollout.prompt_actor import PromptActor

TIMEOUT_S = 250
HINT = r"No module named 'only_here'; make only_here importable in Ray's workers, not in the driver alone: put it into"


@pytest.fixture
def make():
    """A function of a module that lies on no disk."""
    module = types.ModuleType("only_here")
    exec("def make(*arguments):\n    raise AssertionError", module.__dict__)
    sys.modules["only_here"] = module
    yield module.make
    del sys.modules["only_here"]


def test_the_hint_names_the_module_and_other_causes_get_none():
    assert import_hint("ModuleNotFoundError: No module named 'mine.rewards'").startswith("make mine.rewards importable")
    assert import_hint("ValueError: no tokenizer") == ""


def test_a_reward_that_workers_cannot_import_gets_the_hint(ray_cluster, make_config, make):
    pool = RewardPool.from_config(make_config(), make_reward=make)
    try:
        with pytest.raises(RuntimeError, match=HINT) as refused:
            pool.start()
    finally:
        pool.stop()
    assert "\n" not in str(refused.value) and "models" not in str(refused.value)


def test_a_sampler_that_workers_cannot_import_gets_the_hint(ray_cluster, make_config, make):
    pool = RolloutPool.from_config(make_config(), make)
    pool.start()
    try:
        with pytest.raises(RuntimeError, match=HINT) as refused:
            pool.wait_ready()
    finally:
        pool.stop()
    assert "\n" not in str(refused.value)


def test_a_learner_that_workers_cannot_import_gets_the_hint_and_is_not_started_again(
    ray_cluster, make_config, make, tmp_path
):
    learner = LearnerGroup.from_config(make_config(), tmp_path, make)
    learner.start()
    try:
        with pytest.raises(RuntimeError, match=HINT) as refused:
            learner.wait_ready()
    finally:
        learner.stop()
    # LearnerLost would ask for new ranks.
    assert type(refused.value) is RuntimeError and "\n" not in str(refused.value)


def test_prompts_that_workers_cannot_import_get_the_hint(ray_cluster, make):
    prompts = as_actor(PromptActor).remote(make)
    try:
        with pytest.raises(RuntimeError, match=HINT) as refused:
            wait_all([prompts.prepare.remote("train")], TIMEOUT_S, "the training prompts")
    finally:
        stop_actors([prompts])
    assert "\n" not in str(refused.value)
