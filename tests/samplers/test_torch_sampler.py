"""The torch engine draws what it says, scores as the learner does, and depends on seeds only."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rlir_ray.config import LoraConfig
from rlir_ray.models.adapters import add_adapter
from rlir_ray.models.autoregressive import WorldModel
from rlir_ray.samplers.decoder import Decoder
from rlir_ray.samplers.torch_sampler import TorchSampler, draw_tokens, keep_likeliest
from rlir_ray.spaces.layouts import MineworldLayout
from rlir_ray.transfer.weights import checksum, weights_of
from tests.fakes import NUM_CODES, TOKENS_PER_FRAME, image_tokens, tiny_prompts, tiny_world_model
from tests.second_space import LAYOUT, second_prompts, second_world_model


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 2), (4, 4), (4, 1)])
@pytest.mark.parametrize("num_context", [1, 2])
def test_ratio_is_one_at_the_weights_that_sampled(num_heads: int, num_kv_heads: int, num_context: int) -> None:
    model = tiny_world_model(num_heads=num_heads, num_key_value_heads=num_kv_heads)
    sampler = TorchSampler(model, temperature=0.8)
    for group, _ in sampler.sample(tiny_prompts(2, num_context=num_context), [3, 4], [5, 6], 3):
        with torch.no_grad():
            logprobs = model(torch.from_numpy(group.record.tokens).long(), group.behavior_logprobs.shape[1], 0.8)
        np.testing.assert_allclose(group.behavior_logprobs, logprobs.numpy(), atol=1e-5, rtol=0)
        # A model that ignores its input would pass the comparison above with equal numbers throughout.
        assert logprobs.std() > 0.3


@pytest.mark.parametrize("num_context", [1, 2])
def test_ratio_is_one_in_a_space_of_ones_own(num_context: int) -> None:
    model, prompts = second_world_model(), second_prompts(2, num_context=num_context)
    sampler = TorchSampler(model, temperature=0.8)
    for prompt, (group, video) in zip(prompts, sampler.sample(prompts, [3, 4], [5, 6], 3), strict=True):
        tokens = torch.from_numpy(group.record.tokens).long()
        assert tokens.shape == (3, (num_context + 3) * 12 + (num_context + 2) * 4)
        np.testing.assert_array_equal(image_tokens(tokens, 12, 4), video.codes)
        np.testing.assert_array_equal(tokens[0, 12:16], LAYOUT.tokens(prompt.actions, NUM_CODES)[0])
        with torch.no_grad():
            logprobs = model(tokens, group.behavior_logprobs.shape[1], 0.8)
        np.testing.assert_allclose(group.behavior_logprobs, logprobs.numpy(), atol=1e-5, rtol=0)
        assert logprobs.std() > 0.3
    assert sampler.difference is not None and sampler.difference.maximum < 1e-4


def test_prompts_of_another_space_are_refused_field_by_field() -> None:
    sampler = TorchSampler(second_world_model(), temperature=1.0)
    with pytest.raises(ValueError, match=r"got other fields .*field 0: gear, .* here, forward_back, .* there"):
        sampler.sample(tiny_prompts(1), [0], [0], 2)


def test_groups_carry_context_actions_and_identity() -> None:
    model, prompts = tiny_world_model(), tiny_prompts(2, num_context=2, num_frames=3)
    sampler = TorchSampler(model, temperature=1.0)
    sampler.policy_version = 9
    group, video = sampler.sample(prompts, [7, 8], [1, 2], 4)[1]
    assert (group.group_id, group.seed, group.policy_version, group.prompt_id) == (8, 2, 9, "tiny-1")
    assert group.record.tokens.shape == (4, 5 * 12 + 4 * 11) and group.behavior_logprobs.shape == (4, 36)
    assert group.loss_mask.all() and video.num_context == 2 and video.num_frames == 3
    np.testing.assert_array_equal(video.codes[:, :2], np.broadcast_to(prompts[1].context, (4, 2, 12)))
    np.testing.assert_array_equal(image_tokens(torch.from_numpy(group.record.tokens), 12), video.codes)
    assert video.codes.max() < NUM_CODES


def test_a_group_depends_on_its_seed_and_not_on_its_company() -> None:
    sampler, prompts = TorchSampler(tiny_world_model(), temperature=1.0), tiny_prompts(3)
    together = sampler.sample(prompts, [0, 1, 2], [10, 11, 12], 2)
    alone, _ = sampler.sample(prompts[1:2], [1], [11], 2)[0]
    other, _ = sampler.sample(prompts[1:2], [1], [12], 2)[0]
    np.testing.assert_array_equal(alone.record.tokens, together[1][0].record.tokens)
    assert (alone.record.tokens != other.record.tokens).any()


def test_trajectories_of_a_group_differ() -> None:
    group, _ = TorchSampler(tiny_world_model(), temperature=1.0).sample(tiny_prompts(1), [0], [0], 4)[0]
    assert len(np.unique(group.record.tokens, axis=0)) == 4


def test_draws_follow_the_probabilities() -> None:
    logits = torch.tensor([0.5, 0.25, 0.25, 0.0]).log().expand(1000, 4)
    tokens, logprobs = draw_tokens(logits, torch.arange(1000) / 1000)
    # Even draws invert the cumulative distribution: 500, 250 and 250 of them, and none of probability 0.
    assert torch.bincount(tokens, minlength=4).tolist() == [500, 250, 250, 0]
    torch.testing.assert_close(logprobs, logits.gather(1, tokens[:, None])[:, 0])


def test_new_weights_are_sampled_from() -> None:
    old, new = tiny_world_model(seed=0), tiny_world_model(seed=1)
    sampler = TorchSampler(old, temperature=1.0)
    sampler.load_weights(weights_of(new), 4)
    group, _ = sampler.sample(tiny_prompts(1), [0], [0], 2)[0]
    expected, _ = TorchSampler(new, temperature=1.0).sample(tiny_prompts(1), [0], [0], 2)[0]
    np.testing.assert_array_equal(group.record.tokens, expected.record.tokens)
    assert group.policy_version == 4


def test_bfloat16_decoding_stays_near_the_float32_scores() -> None:
    model = tiny_world_model()
    group, _ = TorchSampler(model, temperature=1.0, dtype=torch.bfloat16).sample(tiny_prompts(1), [0], [0], 4)[0]
    with torch.no_grad():
        logprobs = model(torch.from_numpy(group.record.tokens).long(), 36).numpy()
    assert 0 < np.abs(group.behavior_logprobs - logprobs).mean() < 0.2


def test_bad_calls_are_refused() -> None:
    sampler, prompts = TorchSampler(tiny_world_model(), temperature=1.0), tiny_prompts(1)
    with pytest.raises(ValueError, match="seeds"):
        sampler.sample(prompts, [0], [], 2)
    with pytest.raises(ValueError, match="agree"):
        sampler.sample([*prompts, *tiny_prompts(1, num_frames=2)], [0, 1], [0, 1], 2)
    with pytest.raises(ValueError, match="codes"):
        prompts[0].context[0, 0] = NUM_CODES
        sampler.sample(prompts, [0], [0], 2)
    with pytest.raises(ValueError, match="temperature"):
        TorchSampler(tiny_world_model(), temperature=0)
    assert TOKENS_PER_FRAME == 12


def test_top_p_keeps_the_fewest_likeliest_tokens() -> None:
    logits = torch.tensor([[0.1, 0.5, 0.15, 0.25], [0.97, 0.01, 0.01, 0.01]]).log()
    kept = keep_likeliest(logits, 0.7)
    # .5 alone is too little, .5 + .25 is enough; of the second row the first token alone.
    assert torch.isfinite(kept).tolist() == [[False, True, False, True], [True, False, False, False]]
    torch.testing.assert_close(kept.softmax(-1)[0], torch.tensor([0.0, 2 / 3, 0.0, 1 / 3]))
    assert keep_likeliest(logits, 1.0) is logits


def test_clips_sampled_with_top_p_hold_likely_tokens_only() -> None:
    model = tiny_world_model()
    sampler = TorchSampler(model, temperature=1.0, top_p=0.5)
    group, _ = sampler.sample(tiny_prompts(1), [0], [0], 8)[0]
    with torch.inference_mode():
        logprobs = model(torch.from_numpy(group.record.tokens).long(), group.behavior_logprobs.shape[1])
    # Half of the probability is left out, so what is drawn has at least its share of the rest.
    assert (torch.from_numpy(group.behavior_logprobs) >= logprobs + 1e-4).float().mean() > 0.95


@pytest.mark.parametrize("fails", ["proof", "layout"])
def test_a_load_that_fails_leaves_the_old_version_sampling(fails: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, prompts = TorchSampler(tiny_world_model(), temperature=1.0), tiny_prompts(1)
    before, _ = sampler.sample(prompts, [0], [0], 2)[0]
    new = weights_of(tiny_world_model(seed=1))
    with monkeypatch.context() as broken:
        if fails == "layout":
            broken.setattr(Decoder, "_prepare", lambda self, layer: 1 / 0)
        with pytest.raises(ZeroDivisionError if fails == "layout" else ValueError):
            sampler.load_weights(new, 1, checksum(new) if fails == "layout" else "0" * 32)
    after, _ = sampler.sample(prompts, [0], [0], 2)[0]
    assert (sampler.policy_version, after.policy_version) == (0, 0)
    assert checksum(weights_of(sampler.policy)) == checksum(weights_of(tiny_world_model()))
    np.testing.assert_array_equal(before.behavior_logprobs, after.behavior_logprobs)
    sampler.load_weights(new, 2, checksum(new))
    assert sampler.sample(prompts, [0], [0], 2)[0][0].policy_version == 2


def llama_with(**fields: object) -> WorldModel:
    """A tiny random model, biases included, of a configuration with the given fields."""
    settings: dict[str, object] = dict(
        vocab_size=NUM_CODES + MineworldLayout.num_ids,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tokens_per_frame=TOKENS_PER_FRAME,
        max_position_embeddings=512,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        llama = LlamaForCausalLM(LlamaConfig(**(settings | fields)))
        with torch.no_grad():
            for parameter in llama.parameters():
                parameter.normal_(0, 0.3)
    return WorldModel(llama).eval()


@pytest.mark.parametrize(
    "fields",
    [
        {"attention_bias": True},
        {"mlp_bias": True},
        {"hidden_act": "gelu"},
        {"hidden_act": "relu", "attention_bias": True, "mlp_bias": True},
        {"head_dim": 20},
        {"tie_word_embeddings": True},
        {"rms_norm_eps": 0.1},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0}},
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 100.0,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 100.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ],
    ids=lambda fields: ",".join(fields),
)
def test_the_decoder_computes_every_field_that_it_accepts(fields: dict[str, object]) -> None:
    model = llama_with(**fields)
    group, _ = TorchSampler(model, temperature=1.0).sample(tiny_prompts(1), [0], [0], 2)[0]
    with torch.no_grad():
        logprobs = model(torch.from_numpy(group.record.tokens).long(), 36).numpy()
        plain = llama_with()(torch.from_numpy(group.record.tokens).long(), 36).numpy()
    np.testing.assert_allclose(group.behavior_logprobs, logprobs, atol=2e-5, rtol=0)
    assert np.abs(plain - logprobs).mean() > 0.01  # the field matters


def test_biases_under_an_adapter_are_computed() -> None:
    model = llama_with(attention_bias=True, mlp_bias=True)
    add_adapter(model, LoraConfig(rank=2))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    group, _ = TorchSampler(model, temperature=1.0).sample(tiny_prompts(1), [0], [0], 2)[0]
    with torch.no_grad():
        logprobs = model(torch.from_numpy(group.record.tokens).long(), 36).numpy()
    np.testing.assert_allclose(group.behavior_logprobs, logprobs, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 2.0}}, "rope_type='dynamic'"),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}},
            "rope_parameters.partial_rotary_factor=0.5",
        ),
        ({"attention_dropout": 0.1}, "attention_dropout=0.1"),
        ({"sliding_window": 64}, "sliding_window=64"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder=True"),
    ],
)
def test_a_field_that_the_sampler_does_not_compute_is_refused_by_name(fields: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match="must set only fields") as error:
        llama_with(**fields)
    assert named in str(error.value) and "\n" not in str(error.value)


def test_one_clip_of_a_call_is_compared_with_the_model() -> None:
    model = tiny_world_model()
    sampler = TorchSampler(model, temperature=0.8)
    group, _ = sampler.sample(tiny_prompts(1), [4], [0], 3)[0]
    with torch.no_grad():
        logprobs = model(torch.from_numpy(group.record.tokens).long(), 36, 0.8).numpy()
    apart = np.abs(logprobs - group.behavior_logprobs)[4 % 3]
    assert sampler.difference is not None and sampler.difference.maximum < 1e-5
    assert sampler.difference.mean == pytest.approx(apart.mean(), abs=1e-6)
    sampler._decoder.layers[0].down.mul_(1.5)  # a decoder that computes another model
    sampler.sample(tiny_prompts(1), [4], [0], 3)
    assert sampler.difference.mean > 0.05


def test_nothing_is_compared_with_top_p_or_where_no_bound_asks_for_it() -> None:
    for options in ({"top_p": 0.5}, {"compares": False}):
        sampler = TorchSampler(tiny_world_model(), temperature=1.0, **options)  # type: ignore[arg-type]
        sampler.sample(tiny_prompts(1), [0], [0], 2)
        assert sampler.difference is None


def test_codes_above_65535_reach_the_video_unchanged() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = WorldModel.create(
            num_codes=70_000,
            tokens_per_frame=TOKENS_PER_FRAME,
            hidden_size=8,
            intermediate_size=8,
            num_layers=1,
            num_heads=1,
            max_positions=64,
        ).eval()
    context = np.full((1, TOKENS_PER_FRAME), 69_999, np.uint32)
    prompts = [replace(tiny_prompts(1, num_frames=1)[0], context=context)]
    group, video = TorchSampler(model, temperature=1.0).sample(prompts, [0], [0], 8)[0]
    assert (video.codes[:, 0] == 69_999).all() and video.codes.max() < 70_000
    np.testing.assert_array_equal(image_tokens(torch.from_numpy(group.record.tokens), TOKENS_PER_FRAME), video.codes)


def test_negative_context_tokens_are_refused() -> None:
    prompts = tiny_prompts(1)
    prompts = [replace(prompts[0], context=np.full_like(prompts[0].context, -1, np.int64))]
    with pytest.raises(ValueError, match=r"got -1\.\.-1"):
        TorchSampler(tiny_world_model(), temperature=1.0).sample(prompts, [0], [0], 2)
