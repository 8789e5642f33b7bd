"""Action guidance of token models: the formula, the tokens that are drawn, and that rescoring finds the same."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlir_ray.config import Config
from rlir_ray.families import family_of
from rlir_ray.models.autoregressive import WorldModel
from rlir_ray.models.rescoring import TokenRescorer
from rlir_ray.samplers.torch_sampler import TorchSampler
from rlir_ray.trajectory import TrajectoryGroup
from tests.fakes import tiny_prompts, tiny_world_model
from tests.samplers.test_guidance import SCALE, first_update
from tests.samplers.test_keyframes import KEYFRAME_TOKENS, NUM_KEYFRAME_CODES, model_with, prompts_for
from tests.second_space import second_prompts, second_world_model
from tests.world import MakeConfig


def sequences(model: WorldModel, num_context: int, num_frames: int, **options: Any) -> list[TrajectoryGroup]:
    """Groups of a model of any layout."""
    if model.layout.name == "rlvr_world":
        prompts = prompts_for(model, 2, num_context, num_frames)
    else:
        make = tiny_prompts if model.layout.name == "mineworld" else second_prompts
        prompts = make(2, num_context=num_context)
    sampler = TorchSampler(model, temperature=0.8, **options)
    groups = [group for group, _ in sampler.sample(prompts, [3, 4], [5, 6], 3)]
    assert sampler.difference is not None and sampler.difference.maximum < 1e-4
    return groups


FORMS = pytest.mark.parametrize(
    ("make", "num_context", "num_frames"),
    [
        (tiny_world_model, 1, 3),
        (second_world_model, 2, 3),
        (partial(model_with, NUM_KEYFRAME_CODES, KEYFRAME_TOKENS), 1, 2),
        (partial(model_with, 0, 0, bos=True), 2, 1),
    ],
    ids=["mineworld", "fields", "keyframe", "bos"],
)


@FORMS
@torch.no_grad()
def test_only_the_action_into_a_frame_is_hidden_when_its_tokens_are_scored(
    make: Any, num_context: int, num_frames: int
) -> None:
    model = make()
    sequence, per_frame = model.sequence, model.tokens_per_frame
    tokens = torch.from_numpy(sequences(model, num_context, num_frames)[0].record.tokens).long()
    found = model(tokens, num_frames * per_frame, 0.8, True, SCALE)
    plain = model(tokens, num_frames * per_frame, 0.8)
    for frame in range(num_frames):
        positions = sequence.image_positions(num_context + num_frames, num_context + frame)[:per_frame]
        # A whole pass over the sequence up to the frame's end, in which this one action is another.
        start = int(positions[0])
        hidden = torch.cat([sequence.hide_action(tokens[:, :start]), tokens[:, start:]], 1)
        changed = (hidden != tokens).any(0).nonzero().flatten()
        assert start - sequence.tokens_before_image <= changed.min() and changed.max() < start
        action, null = (
            model.llama(each[:, : start + per_frame]).logits[:, positions - 1, : model.num_codes]
            for each in (tokens, hidden)
        )
        logprobs = ((null + SCALE * (action - null)) / 0.8).log_softmax(-1)
        wanted = logprobs.gather(-1, tokens[:, positions, None]).squeeze(-1)
        part = slice(frame * per_frame, (frame + 1) * per_frame)
        torch.testing.assert_close(found[:, part], wanted, atol=1e-4, rtol=0)
    assert (found - plain).abs().max() > 0.1


@FORMS
def test_rescored_log_probabilities_of_guided_tokens_equal_the_sampled_ones(
    make: Any, num_context: int, num_frames: int
) -> None:
    model = make()
    for restrict in (True, False):
        for group in sequences(model, num_context, num_frames, guidance=SCALE, restrict=restrict):
            record = replace(group.record, tokens=torch.from_numpy(group.record.tokens))
            with torch.no_grad():
                scores = TokenRescorer(0.8, restrict, SCALE)(model, record, group.behavior_logprobs.shape[1])
            np.testing.assert_allclose(scores.logprobs, group.behavior_logprobs, atol=1e-4, rtol=0)


def test_the_scale_one_is_the_sampler_without_guidance() -> None:
    one, plain, more = (
        sequences(tiny_world_model(), 1, 3, **options)[0] for options in ({"guidance": 1.0}, {}, {"guidance": SCALE})
    )
    np.testing.assert_array_equal(one.record.tokens, plain.record.tokens)
    np.testing.assert_array_equal(one.behavior_logprobs, plain.behavior_logprobs)
    assert (more.record.tokens != plain.record.tokens).any()


def test_a_hidden_action_is_no_action_of_a_layout() -> None:
    # Mineworld's BOS is 65 and EOS 67; the second space's are 0 and 13; RT-1's BOS, behind 256 bins, is 256.
    for model, wanted in (
        (tiny_world_model(), [65] * 10 + [67]),
        (second_world_model(), [0, 0, 0, 13]),
        (model_with(0, 0), [256] * 13),
    ):
        assert model.layout.hidden_tokens(100).tolist() == [100 + each for each in wanted]
        nothing = model.layout.tokens(model.layout.space.nothing(1), 100)[0]
        assert (nothing[1:-1] != model.layout.hidden_tokens(100)[1:-1]).all()


@pytest.fixture
def token_config(make_config: MakeConfig, checkpoints: Path) -> MakeConfig:
    return partial(make_config, f"models.policy={checkpoints / 'guided_policy'}", f"rollout.guidance={SCALE}")


@pytest.mark.parametrize("options", [(), ("train.kl_coefficient=0.1", "learner.gradient_checkpointing=true")])
def test_the_first_update_of_a_guided_token_run_has_the_ratio_one(
    token_config: MakeConfig, options: tuple[str, ...]
) -> None:
    metrics = first_update(token_config(*options), tiny_prompts(1))
    assert metrics["ratio/max_abs_log"] < 1e-4 and metrics["grad_norm"] > 0
    assert abs(metrics.get("loss/kl", 0.0)) < 1e-6


def test_a_policy_without_action_dropout_is_refused(token_config: MakeConfig, checkpoints: Path) -> None:
    config: Config = token_config()
    check = family_of(config).check_world
    assert check(config) == (12,)
    for key in ("rollout.guidance", "evaluation.guidance"):
        changes = [f"models.policy={checkpoints / 'policy'}", "rollout.guidance=1", f"{key}=3"]
        with pytest.raises(ValueError, match=rf"{key} must be 1 with a policy .* action dropout, got 3 for .*0\.2$"):
            check(token_config(*changes))
