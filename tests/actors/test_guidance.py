"""A guided run over Ray in a tiny world, with its evaluations."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.evaluation.actor import EvaluationActor
from rlir_ray.evaluation.results import BASE, POST_TRAINED, Results, judged_samplings
from tests.actors.test_driver import assert_same_run, run_pools
from tests.world import MakeConfig, flow_overrides, tiny_flow_prompt_set, tiny_prompt_set


@pytest.mark.slow
@pytest.mark.parametrize("is_flow", [True, False], ids=["flow", "tokens"])
def test_a_guided_run_trains_in_the_pools_as_in_the_local_loop(
    ray_cluster: None, make_config: MakeConfig, checkpoints: Path, is_flow: bool
) -> None:
    own = [*flow_overrides(checkpoints), "flow.guidance_rescale=0.7"] if is_flow else []
    policy = checkpoints / ("guided_flow_policy" if is_flow else "guided_policy")
    config = make_config(
        *own,
        f"models.policy={policy}",
        "rollout.guidance=2.5",
        "evaluation.guidance=[2.5,1]",
    )
    prompt_set = tiny_flow_prompt_set if is_flow else tiny_prompt_set
    result = run_pools(config, prompt_set)
    assert_same_run(result, config, prompt_set)
    assert result.metrics[0]["ratio/max_abs_log"] < 1e-4
    results = Results.load(result.folder)
    assert [(each.name, each.guidance) for each in results.evaluations] == [
        *((BASE, scale) for scale in (2.5, 1.0)),
        *((POST_TRAINED, scale) for scale in (2.5, 1.0)),
    ]
    assert [(each.before_guidance, each.after_guidance) for each in results.comparisons] == [
        (2.5, 2.5),
        (1.0, 2.5),
        (1.0, 1.0),
    ]


def test_an_evaluation_samples_and_records_at_its_scale(
    make_config: MakeConfig, checkpoints: Path, tmp_path: Path
) -> None:
    config = make_config(f"models.policy={checkpoints / 'guided_policy'}", "evaluation.guidance=[2.5,1]")
    actor, prompts = EvaluationActor(config, tmp_path, num_threads=1), tiny_prompt_set("heldout")
    for temperature, guidance in config.evaluation.samplings:
        actor.evaluate(prompts, None, 0, BASE, temperature, False, guidance=guidance)
    guided, plain = Results.load(tmp_path).evaluations
    assert (guided.guidance, plain.guidance) == (2.5, 1.0)
    assert guided.quality.mean("brightness") != plain.quality.mean("brightness")
    assert judged_samplings(tmp_path, BASE, 0) == set(config.evaluation.samplings)
