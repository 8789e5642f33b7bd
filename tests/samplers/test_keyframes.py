"""Sampling from policies with keyframes, with BOS, and over all ids: the payload, and a ratio of 1."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from rlir_ray.models.autoregressive import WorldModel
from rlir_ray.models.rescoring import TokenRescorer
from rlir_ray.samplers.torch_sampler import TorchSampler
from rlir_ray.spaces.layouts import RlvrLayout
from rlir_ray.trajectory import Prompt, TrajectoryGroup, encoded_clips

NUM_CODES, NUM_TOKENS, NUM_KEYFRAME_CODES, KEYFRAME_TOKENS = 20, 3, 30, 5
FIRST_ACTION_ID = NUM_CODES + NUM_KEYFRAME_CODES


def model_with(num_keyframe_codes: int, tokens_per_keyframe: int, bos: bool = False) -> WorldModel:
    """Return a small model of RT-1's actions, whose distributions are far from uniform."""
    torch.manual_seed(0)
    model = WorldModel.create(
        num_codes=NUM_CODES,
        tokens_per_frame=NUM_TOKENS,
        hidden_size=64,
        intermediate_size=96,
        num_layers=2,
        num_heads=2,
        layout=RlvrLayout(),
        num_keyframe_codes=num_keyframe_codes,
        tokens_per_keyframe=tokens_per_keyframe,
    )
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4 if weight.ndim > 1 else 1)
    if bos:
        model.config.update({"frame_bos_id": NUM_CODES + num_keyframe_codes + 256})
        model = WorldModel(model.llama)
    return model.eval()


def prompts_for(model: WorldModel, num_prompts: int, num_context: int, num_frames: int) -> list[Prompt]:
    random, shape = np.random.default_rng(0), model.sequence.shape
    found = []
    for number in range(num_prompts):
        actions = model.layout.space.nothing(num_context - 1 + num_frames)
        actions.values[:] = random.uniform(0, 1, actions.values.shape)
        keyframe = random.integers(0, shape.num_keyframe_codes or 1, shape.tokens_per_keyframe).astype(np.uint16)
        found.append(
            Prompt(
                prompt_id=f"{number}",
                context=random.integers(0, NUM_CODES, (num_context, NUM_TOKENS)).astype(np.uint16),
                actions=actions,
                keyframe=keyframe if shape.tokens_per_keyframe else None,
            )
        )
    return found


def rescored(model: WorldModel, group: TrajectoryGroup, temperature: float, restrict: bool) -> np.ndarray:
    assert group.behavior_logprobs is not None
    record = replace(group.record, tokens=torch.from_numpy(group.record.tokens))
    with torch.no_grad():
        return TokenRescorer(temperature, restrict)(model, record, group.behavior_logprobs.shape[1]).logprobs.numpy()


@pytest.mark.parametrize("restrict", [True, False])
@pytest.mark.parametrize("num_context", [1, 2])
def test_a_group_shares_its_keyframe_and_its_ratio_is_one(num_context: int, restrict: bool) -> None:
    model = model_with(NUM_KEYFRAME_CODES, KEYFRAME_TOKENS)
    prompts = prompts_for(model, 2, num_context, 2)
    sampler = TorchSampler(model, temperature=0.9, restrict=restrict)
    pairs = sampler.sample(prompts, [3, 4], [5, 6], 3)
    for prompt, (group, video) in zip(prompts, pairs, strict=True):
        tokens = group.record.tokens
        assert tokens.shape == (3, 5 + (num_context + 2) * 3 + (num_context + 1) * 13)
        np.testing.assert_array_equal(tokens[:, :5] - NUM_CODES, np.broadcast_to(prompt.keyframe, (3, 5)))
        np.testing.assert_array_equal(tokens[:, 5:8], np.broadcast_to(prompt.context[0], (3, 3)))
        bins = model.layout.tokens(prompt.actions, FIRST_ACTION_ID)
        np.testing.assert_array_equal(tokens[0, 8:21], bins[0])
        np.testing.assert_array_equal(video.keyframe, prompt.keyframe)
        logprobs = rescored(model, group, 0.9, restrict)
        np.testing.assert_allclose(group.behavior_logprobs, logprobs, atol=1e-5, rtol=0)
        assert logprobs.std() > 0.1
        if restrict:
            assert not np.allclose(logprobs, rescored(model, group, 0.9, restrict=False), atol=1e-3)
    assert sampler.difference is not None and sampler.difference.maximum < 1e-4
    together = encoded_clips([video for _, video in pairs])
    assert together.keyframes is not None and together.codes.shape == (6, num_context + 2, 3)
    np.testing.assert_array_equal(together.keyframes[3:], np.broadcast_to(prompts[1].keyframe, (3, 5)))


def test_ids_that_are_no_image_ids_are_kept_for_rescoring_and_decoded_as_the_last_one() -> None:
    model = model_with(NUM_KEYFRAME_CODES, KEYFRAME_TOKENS)
    group, video = TorchSampler(model, temperature=5.0, restrict=False).sample(
        prompts_for(model, 1, 1, 2), [0], [1], 8
    )[0]
    drawn = torch.from_numpy(group.record.tokens)[:, model.sequence.image_positions(3, 1)].numpy()
    assert drawn.max() >= NUM_CODES
    np.testing.assert_array_equal(video.codes[:, 1:].reshape(8, 6), drawn.clip(max=NUM_CODES - 1))


def test_a_model_with_bos_draws_one_frame_behind_it() -> None:
    model = model_with(0, 0, bos=True)
    assert model.sequence.bos_id == NUM_CODES + 256
    group, video = TorchSampler(model, temperature=1.0).sample(prompts_for(model, 1, 4, 1), [0], [1], 3)[0]
    tokens = group.record.tokens
    assert tokens.shape == (3, 4 * (3 + 13) + 1 + 3)
    assert (tokens[:, -4] == NUM_CODES + 256).all()
    np.testing.assert_array_equal(tokens[:, -3:], video.codes[:, -1])
    np.testing.assert_allclose(group.behavior_logprobs, rescored(model, group, 1.0, True), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"generates one frame a clip, got world\.num_frames=2; set world\.num"):
        TorchSampler(model, temperature=1.0).sample(prompts_for(model, 1, 4, 2), [0], [1], 3)


def test_prompts_without_the_policys_keyframes_are_refused() -> None:
    keyed, plain = model_with(NUM_KEYFRAME_CODES, KEYFRAME_TOKENS), model_with(0, 0)
    (prompt,) = prompts_for(keyed, 1, 1, 1)
    assert prompt.keyframe is not None
    for model, given, message in (
        (keyed, replace(prompt, keyframe=None), r"the policy's 5 tokens \(0: none\), got \[0\]"),
        (keyed, replace(prompt, keyframe=prompt.keyframe[:4]), r"the policy's 5 tokens \(0: none\), got \[4\]"),
        (plain, prompt, r"the policy's 0 tokens \(0: none\), got \[5\]"),
        (keyed, replace(prompt, keyframe=prompt.keyframe * 0 + 30), r"keyframe tokens must be in 0\.\.29"),
    ):
        with pytest.raises(ValueError, match=message):
            TorchSampler(model, temperature=1.0).sample([given], [0], [0], 2)
