"""Guidance that cannot act, or that a run does not support, is refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlir_ray.config.load import load_config
from rlir_ray.families import family_of, open_policy
from rlir_ray.run.memory import learner_memory
from tests.world import MakeConfig, flow_overrides

OWN = "policy.family=docs.examples.family:FAMILY"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rollout.guidance=0.5"], r"rollout.guidance must be a finite number >= 1, got "),
        (["evaluation.guidance=[1,0]"], r"evaluation.guidance must be .*>= 1, got "),
        (["rollout.guidance=2", "rollout.engine=vllm"], "rollout.guidance must be 1 with rollout.engine=vllm, got 2.0"),
        (
            [
                "policy.family=flow",
                "train.objective=nft",
                "flow.shared_noise=false",
                "train.max_advantage=5",
                "rollout.guidance=2",
            ],
            "rollout.guidance must be 1 with train.objective=nft, which trains the velocity with the action alone",
        ),
        (["policy.family=flow", "flow.guidance_rescale=0.7"], "flow.guidance_rescale must be 0 without guidance, got"),
        ([OWN, "rollout.guidance=2"], "rollout.guidance must be 1 with policy.family=docs.examples.family:FAMILY"),
        ([OWN, "evaluation.guidance=[1,2]"], "evaluation.guidance must be 1 with policy.family=docs.examples.family"),
    ],
)
def test_guidance_that_cannot_act_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}") as refused:
        load_config("", overrides)
    assert "\n" not in str(refused.value)


def test_evaluations_alone_may_be_guided() -> None:
    config = load_config("", ["policy.family=flow", "evaluation.guidance=[2.5,1]", "flow.guidance_rescale=0.7"])
    assert config.guidance_scales == {"rollout.guidance": 1.0, "evaluation.guidance": 2.5}
    assert family_of(config).sampling_text(config).endswith("noise scale 1, action guidance 2.5 rescaled by 0.7")
    tokens = load_config("", ["evaluation.guidance=3"])
    assert family_of(tokens).sampling_text(tokens).endswith("raster decoding, action guidance 3")
    assert "guidance" not in family_of(tokens).sampling_text(load_config())


@pytest.mark.parametrize("is_flow", [True, False], ids=["flow", "tokens"])
def test_the_learners_memory_counts_both_passes(is_flow: bool, make_config: MakeConfig, checkpoints: Path) -> None:
    policy = checkpoints / ("guided_flow_policy" if is_flow else "guided_policy")
    own, found = [*(flow_overrides(checkpoints) if is_flow else ()), f"models.policy={policy}"], []
    for scale in (1, 3):
        config = make_config(*own, f"rollout.guidance={scale}")
        frame = family_of(config).check_world(config)
        found.append(learner_memory(config, open_policy(config, "meta"), frame).activations)
    assert 1.3 < found[1] / found[0] < 2.5
