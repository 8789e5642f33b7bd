"""Objectives on clean latents train in the pools as in the local loop."""

import pytest

from tests.actors.test_driver import assert_same_run, run_pools
from tests.world import flow_overrides, tiny_flow_prompt_set

OBJECTIVES = {
    "cfm_ratio": ["train.fpo.num_pairs=2", "train.kl_coefficient=0.1"],
    "flow_dpo": ["learner.decision_budget=3"],
    "rwr": ["train.kl_coefficient=0.1"],
    "best_of_n": [],
}


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_two_steps_of_the_pools_are_those_of_the_local_loop(ray_cluster, make_config, checkpoints, objective):
    options = [*flow_overrides(checkpoints), "flow.shared_noise=false", f"train.objective={objective}"]
    result = run_pools(make_config(*options, *OBJECTIVES[objective]), tiny_flow_prompt_set, evaluate=False)
    assert_same_run(result, make_config(*options, *OBJECTIVES[objective]), tiny_flow_prompt_set)
