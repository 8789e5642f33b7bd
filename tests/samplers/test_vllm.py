"""vLLM draws and scores as the learner's model does, over the image ids only, and leaves the torch engine's payload."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from rlir_ray.config import LoraConfig, VllmConfig
from rlir_ray.models.adapters import add_adapter
from rlir_ray.samplers import LogprobDifference
from rlir_ray.samplers.torch_sampler import TorchSampler
from rlir_ray.transfer.weights import weights_of
from tests.fakes import NUM_CODES, image_tokens, tiny_prompts, tiny_vllm_model
from tests.samplers.test_keyframes import KEYFRAME_TOKENS, NUM_KEYFRAME_CODES, model_with, prompts_for
from tests.samplers.test_keyframes import rescored as score_again
from tests.second_space import LAYOUT, second_prompts, second_world_model

TEMPERATURE = 0.8
# Fewer than the clips of a call of two groups of four.
MAX_NUM_SEQS = 6


@pytest.fixture(scope="module")
def engine_sampler(needs_vllm, checkpoints) -> Iterator:
    """One engine for all tests: it takes seconds to start."""
    from vllm.distributed import cleanup_dist_env_and_memory

    from rlir_ray.samplers import vllm

    # vLLM takes its process for its own: what it changes there is put back.
    environment, set_num_threads = dict(os.environ), torch.set_num_threads
    accelerator = torch.accelerator.synchronize, torch.accelerator.empty_cache
    settings = VllmConfig(kv_cache_bytes=1 << 24, max_num_seqs=MAX_NUM_SEQS)
    policy = tiny_vllm_model()
    with pytest.MonkeyPatch.context() as patch:
        # Too few for the prompts of a call's clips in one step.
        patch.setattr(vllm, "MAX_BATCHED_TOKENS", 64)
        sampler = vllm.VllmSampler(policy, checkpoints / "vllm_policy", settings, temperature=TEMPERATURE, num_frames=5)
    yield sampler
    sampler.engine.engine_core.shutdown()
    cleanup_dist_env_and_memory()
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads = set_num_threads
    torch.accelerator.synchronize, torch.accelerator.empty_cache = accelerator


@pytest.fixture
def sampler(engine_sampler):
    """With the weights of seed 0, as version 0."""
    engine_sampler.policy = tiny_vllm_model()
    engine_sampler.load_weights(weights_of(tiny_vllm_model()), 0)
    return engine_sampler


@pytest.fixture
def steps(sampler, monkeypatch):
    """What each of the engine's steps answers."""
    seen, step = [], sampler.engine.step

    def recorded():
        seen.append(step())
        return seen[-1]

    monkeypatch.setattr(sampler.engine, "step", recorded)
    return seen


def rescored(model, group):
    with torch.no_grad():
        return model(
            torch.from_numpy(group.record.tokens).long(), group.behavior_logprobs.shape[1], TEMPERATURE
        ).numpy()


@pytest.mark.parametrize("num_context", [1, 2])
def test_log_probabilities_are_those_of_the_learners_model(sampler, num_context):
    model = tiny_vllm_model()
    pairs = sampler.sample(tiny_prompts(2, num_context=num_context), [3, 4], [5, 6], 3)
    apart = [np.abs(group.behavior_logprobs - rescored(model, group)) for group, _ in pairs]
    assert np.mean(apart) < 1e-5 and np.max(apart) < 1e-4
    # Equal numbers throughout would pass as well.
    assert rescored(model, pairs[0][0]).std() > 0.3
    # Of the first group, number 3, trajectory 3 % 3 was compared.
    assert sampler.difference == LogprobDifference(pytest.approx(apart[0][0].mean()), pytest.approx(apart[0][0].max()))


def test_the_payload_is_that_of_the_torch_engine(sampler):
    prompts = tiny_prompts(2, num_context=2, num_frames=3)
    plain = TorchSampler(tiny_vllm_model(), temperature=TEMPERATURE).sample(prompts, [7, 8], [1, 2], 4)
    found = sampler.sample(prompts, [7, 8], [1, 2], 4)
    decided = sampler.policy.sequence.decision_positions(plain[0][0].record.tokens.shape[1], 36)
    for (group, video), (expected, expected_video) in zip(found, plain, strict=True):
        names = ("prompt_id", "group_id", "seed", "policy_version", "num_decisions", "nbytes")
        assert all(getattr(group, name) == getattr(expected, name) for name in names)
        for name in ("behavior_logprobs", "loss_mask"):
            one, other = getattr(group, name), getattr(expected, name)
            assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert group.record.tokens.dtype == expected.record.tokens.dtype and group.loss_mask.all()
        # Context and commanded actions are where they were put; only the image tokens of the frames were drawn.
        np.testing.assert_array_equal(
            np.delete(group.record.tokens, decided, 1), np.delete(expected.record.tokens, decided, 1)
        )
        assert video.codes.dtype == expected_video.codes.dtype and video.num_context == 2
        np.testing.assert_array_equal(video.codes[:, :2], expected_video.codes[:, :2])
        np.testing.assert_array_equal(image_tokens(torch.from_numpy(group.record.tokens), 12), video.codes)
        assert video.actions is expected_video.actions


def test_image_ids_alone_are_drawn_though_others_are_likelier(sampler):
    weights = weights_of(tiny_vllm_model())
    head = weights["llama.lm_head.weight"]
    # A fifth of the image ids' logits: the 70 others take nearly all of the whole vocabulary's probability.
    head[:NUM_CODES] /= 5
    sampler.load_weights(weights, 1)
    group, video = sampler.sample(tiny_prompts(1), [0], [0], 4)[0]
    assert video.codes.max() < NUM_CODES
    np.testing.assert_allclose(group.behavior_logprobs, rescored(sampler.policy, group), atol=1e-4)


def test_a_call_with_the_same_seeds_gives_the_same_groups(sampler):
    prompts = tiny_prompts(3)
    together = sampler.sample(prompts, [0, 1, 2], [10, 11, 12], 2)
    sampler.sample(prompts, [3, 4, 5], [13, 14, 15], 2)
    for (one, _), (other, _) in zip(together, sampler.sample(prompts, [0, 1, 2], [10, 11, 12], 2), strict=True):
        np.testing.assert_array_equal(one.record.tokens, other.record.tokens)
        np.testing.assert_array_equal(one.behavior_logprobs, other.behavior_logprobs)
    alone, _ = sampler.sample(prompts[1:2], [1], [11], 2)[0]
    np.testing.assert_array_equal(alone.record.tokens, together[1][0].record.tokens)
    np.testing.assert_allclose(alone.behavior_logprobs, together[1][0].behavior_logprobs, atol=1e-4)
    otherwise, _ = sampler.sample(prompts[1:2], [1], [12], 2)[0]
    assert (alone.record.tokens != otherwise.record.tokens).any()
    assert (alone.record.tokens[0] != alone.record.tokens[1]).any()


def test_a_group_shares_its_contexts_cache(sampler, steps):
    # Two frames of 12 tokens and two actions of 11: 46 tokens, of which a block holds 32.
    sampler.sample(tiny_prompts(1, num_context=2), [0], [0], 4)
    cached = {answer.request_id: answer.num_cached_tokens for answers in steps for answer in answers}
    assert {name: cached[name] for name in cached if name.endswith(".0")} == {
        "0.0.0": 0,
        "0.1.0": 32,
        "0.2.0": 32,
        "0.3.0": 32,
    }
    # Later frames find the blocks of their own clip: 92 tokens come before the third, and 64 of them in whole blocks.
    assert {cached[name] for name in cached if name.endswith(".2")} == {64}


def test_no_clip_waits_for_another(sampler, steps):
    sampler.sample(tiny_prompts(2), [0, 1], [0, 1], 4)
    assert len([answer for answers in steps for answer in answers]) == 8 * 3
    # Six places for eight clips of three frames of twelve tokens: 8 * 3 / 6 * 12 = 48 steps if none is ever empty.
    # If all had to have their first frame before one gets its second, each frame would take two rounds: 72.
    assert len(steps) < 60


def cached_tokens(sampler, prompt_tokens):
    """How much of a prompt the engine still remembers."""
    from vllm import SamplingParams
    from vllm.inputs import tokens_input

    sampler.engine.add_request("probe", tokens_input(prompt_tokens), SamplingParams(max_tokens=1, detokenize=False))
    while sampler.engine.has_unfinished_requests():
        found = sampler.engine.step()
    return found[0].num_cached_tokens


def test_new_weights_are_sampled_from_and_nothing_of_the_old_ones_is_remembered(sampler):
    group, _ = sampler.sample(tiny_prompts(1, num_context=2), [0], [0], 2)[0]
    prompt_tokens = group.record.tokens[0, :46].tolist()
    assert cached_tokens(sampler, prompt_tokens) == 32
    new = tiny_vllm_model(seed=1)
    sampler.load_weights(weights_of(new), 4)
    assert cached_tokens(sampler, prompt_tokens) == 0
    after, _ = sampler.sample(tiny_prompts(1, num_context=2), [0], [0], 2)[0]
    assert sampler.engine.get_weight_version() == "4"
    assert (group.policy_version, after.policy_version) == (0, 4)
    np.testing.assert_allclose(after.behavior_logprobs, rescored(new, after), atol=1e-4)
    assert np.abs(rescored(tiny_vllm_model(), after) - rescored(new, after)).mean() > 0.1


def broken_off(weights, num_weights):
    yield from [next(weights) for _ in range(num_weights)]
    raise OSError("the rest is lost")


@pytest.mark.parametrize("num_weights", [0, 5, 12])
def test_a_failed_load_leaves_the_old_version_serving(sampler, monkeypatch, num_weights):
    from rlir_ray.samplers import vllm

    before, _ = sampler.sample(tiny_prompts(1), [0], [0], 2)[0]
    whole, calls = vllm.merged_weights, []

    def first_breaks(llama):
        calls.append(llama)
        return broken_off(whole(llama), num_weights) if len(calls) == 1 else whole(llama)

    monkeypatch.setattr(vllm, "merged_weights", first_breaks)
    with pytest.raises(OSError, match="the rest is lost"):
        sampler.load_weights(weights_of(tiny_vllm_model(seed=1)), 7)
    after, _ = sampler.sample(tiny_prompts(1), [0], [0], 2)[0]
    assert (sampler.policy_version, after.policy_version, sampler.engine.get_weight_version()) == (0, 0, "0")
    np.testing.assert_array_equal(before.record.tokens, after.record.tokens)
    np.testing.assert_array_equal(before.behavior_logprobs, after.behavior_logprobs)
    # The next load is a load like any other.
    sampler.load_weights(weights_of(tiny_vllm_model(seed=1)), 8)
    group, _ = sampler.sample(tiny_prompts(1), [0], [0], 2)[0]
    np.testing.assert_allclose(group.behavior_logprobs, rescored(tiny_vllm_model(seed=1), group), atol=1e-4)


def test_weights_of_another_architecture_are_refused_before_anything_changes(sampler):
    weights = weights_of(tiny_vllm_model(seed=1))
    name = "llama.lm_head.weight"
    with pytest.raises(ValueError, match="lm_head"):
        sampler.load_weights(weights | {name: weights[name][:-1]}, 3)
    group, _ = sampler.sample(tiny_prompts(1), [0], [0], 2)[0]
    assert group.policy_version == 0
    np.testing.assert_allclose(group.behavior_logprobs, rescored(tiny_vllm_model(), group), atol=1e-4)


def test_an_adapter_is_merged_into_what_is_handed_over(sampler):
    policy = tiny_vllm_model()
    add_adapter(policy, LoraConfig(rank=2))
    sampler.policy = policy
    random = np.random.default_rng(0)
    published = {
        name: random.normal(0, 0.3, value.shape).astype(np.float32) for name, value in weights_of(policy).items()
    }
    assert all(".lora_" in name for name in published)
    sampler.load_weights(published, 1)
    group, _ = sampler.sample(tiny_prompts(1), [0], [0], 4)[0]
    np.testing.assert_allclose(group.behavior_logprobs, rescored(policy, group), atol=1e-4)
    assert np.abs(rescored(tiny_vllm_model(), group) - rescored(policy, group)).mean() > 0.1


def test_a_call_that_fails_leaves_no_request_behind(sampler, monkeypatch):
    def lost(clip, found):
        raise MemoryError("no room")

    with monkeypatch.context() as broken:
        broken.setattr(sampler, "_append_frame", lost)
        with pytest.raises(MemoryError):
            sampler.sample(tiny_prompts(1), [0], [0], 4)
    group, _ = sampler.sample(tiny_prompts(1), [0], [0], 4)[0]
    np.testing.assert_allclose(group.behavior_logprobs, rescored(tiny_vllm_model(), group), atol=1e-4)


def test_nothing_is_compared_where_no_bound_asks_for_it(sampler, monkeypatch):
    monkeypatch.setattr(sampler, "compares", False)
    monkeypatch.setattr(sampler, "difference", None)
    sampler.sample(tiny_prompts(1), [0], [0], 2)
    assert sampler.difference is None


def test_ratio_is_one_in_a_space_of_ones_own(engine_sampler, tmp_path):
    from rlir_ray.samplers.vllm import VllmSampler

    model, prompts = second_world_model(num_heads=2), second_prompts(2)
    model.save_pretrained(tmp_path)
    settings = VllmConfig(kv_cache_bytes=1 << 24, max_num_seqs=MAX_NUM_SEQS)
    sampler = VllmSampler(model, tmp_path, settings, temperature=TEMPERATURE, num_frames=4)
    for prompt, (group, video) in zip(prompts, sampler.sample(prompts, [3, 4], [5, 6], 3), strict=True):
        np.testing.assert_allclose(group.behavior_logprobs, rescored(model, group), atol=1e-4)
        np.testing.assert_array_equal(image_tokens(torch.from_numpy(group.record.tokens), 12, 4), video.codes)
        first = LAYOUT.tokens(prompt.actions, NUM_CODES)[0]
        np.testing.assert_array_equal(group.record.tokens[:, 12:16], np.broadcast_to(first, (3, 4)))
    sampler.engine.engine_core.shutdown()


@pytest.mark.parametrize(("with_keyframe", "restrict"), [(True, False), (False, True)], ids=["keyframe", "bos"])
def test_ratio_is_one_in_rlvr_worlds_sequences(engine_sampler, tmp_path, with_keyframe, restrict):
    from rlir_ray.samplers.vllm import VllmSampler

    model = model_with(NUM_KEYFRAME_CODES, KEYFRAME_TOKENS) if with_keyframe else model_with(0, 0, bos=True)
    model.save_pretrained(tmp_path)
    prompts = prompts_for(model, 2, num_context=1, num_frames=2 if with_keyframe else 1)
    settings = VllmConfig(kv_cache_bytes=1 << 24, max_num_seqs=MAX_NUM_SEQS)
    sampler = VllmSampler(
        model, tmp_path, settings, temperature=TEMPERATURE, num_frames=3 if with_keyframe else 2, restrict=restrict
    )
    sequence, drawn = model.sequence, []
    for group, video in sampler.sample(prompts, [3, 4], [5, 6], 8):
        logprobs = score_again(model, group, TEMPERATURE, restrict)
        np.testing.assert_allclose(group.behavior_logprobs, logprobs, atol=1e-4)
        positions = sequence.image_positions(sequence.count_frames(group.record.tokens.shape[1]), 1)
        drawn.append(group.record.tokens[:, positions].reshape(8, -1, sequence.shape.tokens_per_frame))
        np.testing.assert_array_equal(video.codes[:, 1:], drawn[-1].clip(max=sequence.shape.num_codes - 1))
    assert (np.max(drawn) < sequence.shape.num_codes) == restrict
    sampler.engine.engine_core.shutdown()


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-3), ("bfloat16", 0.05)])
def test_log_probabilities_on_a_gpu_are_those_of_the_learners_model(checkpoints, dtype, bound):
    from rlir_ray.samplers.vllm import VllmSampler

    settings = VllmConfig(dtype=dtype, gpu_memory_utilization=0.3)
    policy = tiny_vllm_model().cuda()
    sampler = VllmSampler(policy, checkpoints / "vllm_policy", settings, temperature=TEMPERATURE, num_frames=5)
    sampler.sample(tiny_prompts(2), [0, 1], [0, 1], 4)
    assert sampler.difference.mean < bound
