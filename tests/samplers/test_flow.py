"""The flow sampler: what is drawn, what is kept, and that rescoring finds the same."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from rlir_ray.algorithm.flow_steps import SDE_KINDS, noise_levels, ode_step
from rlir_ray.config import FlowConfig
from rlir_ray.models.flow import FrameCache
from rlir_ray.models.rescoring import FlowRescorer
from rlir_ray.samplers.flow import FlowSampler, window_start
from rlir_ray.spaces.mineworld import action_classes
from rlir_ray.spaces.vpt import VPT_SPACE
from rlir_ray.trajectory import FlowRecord, TrajectoryGroup
from rlir_ray.transfer.weights import weights_of
from tests.fakes import LATENT_SHAPE, tiny_flow_model, tiny_flow_prompts
from tests.second_space import LAYOUT, second_flow_model, second_flow_prompts

CONFIG = FlowConfig(num_steps=4, window=2, noise_level=0.5)


def sampler(config: FlowConfig = CONFIG, **options: object) -> FlowSampler:
    return FlowSampler(tiny_flow_model(), config, explore=True, **options)  # type: ignore[arg-type]


def tensors(group: TrajectoryGroup) -> FlowRecord[torch.Tensor]:
    record = group.record
    assert isinstance(record, FlowRecord)
    names = ("latents", "levels", "history", "history_levels", "actions")
    return FlowRecord(*(torch.from_numpy(np.asarray(getattr(record, name))) for name in names))


@pytest.mark.parametrize("kind", SDE_KINDS)
@pytest.mark.parametrize("moves", ["random", "sliding"])
def test_rescored_log_probabilities_equal_the_sampled_ones(kind: str, moves: str) -> None:
    config = replace(CONFIG, sde=kind, window_moves=moves, window=3)
    prompts = tiny_flow_prompts(3, num_context=2)
    for group, _ in sampler(config).sample(prompts, range(3), range(3), 4):
        with torch.no_grad():
            scores = FlowRescorer(config)(tiny_flow_model(), tensors(group), 9)
        np.testing.assert_allclose(scores.logprobs, group.behavior_logprobs, atol=1e-5, rtol=0)
        assert scores.means.shape == (4, 9, 4 * 6 * 8) and scores.stds.shape == scores.gaps.shape == (4, 9)


def test_kept_means_are_those_of_rescoring() -> None:
    group, _ = sampler(keep_means=True).sample(tiny_flow_prompts(1), [0], [0], 2)[0]
    with torch.no_grad():
        means = FlowRescorer(CONFIG)(tiny_flow_model(), tensors(group), 6).means
    np.testing.assert_allclose(group.record.means.reshape(2, 6, -1), means, atol=1e-5)


@torch.no_grad()
def test_cached_sampling_equals_sampling_without_a_cache() -> None:
    """Every frame denoised with whole passes over all frames before it, from the sampler's own draws."""
    config = replace(CONFIG, history_noise=0.1)
    model, (prompt,) = tiny_flow_model(), tiny_flow_prompts(1, num_context=2)
    cached = FlowSampler(model, config, explore=False)
    group, video = cached.sample([prompt], [0], [7], 2)[0]
    draws, levels = cached._draw([7], 2, 2, 3), noise_levels(4)
    actions = torch.from_numpy(
        np.concatenate([action_classes(part) for part in (VPT_SPACE.nothing(1), prompt.actions)])
    )
    context = torch.from_numpy(prompt.context.astype(np.float32))[None].repeat(2, 1, 1, 1, 1)
    past = 0.9 * context + 0.1 * draws.context
    for frame in range(3):
        x = draws.start[:, frame]
        for level, following in itertools.pairwise(levels):
            clip = torch.cat([past, x[:, None]], 1)
            known = torch.full(clip.shape[:2], 0.1)
            known[:, -1] = level
            velocity = model(clip, known, actions[: clip.shape[1]].expand(2, -1, -1))[:, -1]
            x = ode_step(x, velocity, level.expand(2), following.expand(2))
        np.testing.assert_allclose(group.record.latents[:, frame, 0], x, atol=1e-4)
        past = torch.cat([past, (0.9 * x + 0.1 * draws.history[:, frame])[:, None]], 1)
    np.testing.assert_allclose(video.codes[:, 2:], group.record.latents[:, :, 0], atol=2e-3)  # float16


def test_group_keeps_the_very_values_that_each_step_saw() -> None:
    (prompt,) = tiny_flow_prompts(1)
    group, video = sampler().sample([prompt], [3], [5], 4)[0]
    record = group.record
    assert record.latents.shape == (4, 3, 3, *LATENT_SHAPE) and record.history.shape == (4, 3, *LATENT_SHAPE)
    assert group.behavior_logprobs.shape == (4, 6) and group.loss_mask.all()
    assert video.codes.shape == (4, 4, *LATENT_SHAPE) and video.codes.dtype == np.float16
    np.testing.assert_array_equal(video.codes[:, 0], np.broadcast_to(prompt.context[0], (4, *LATENT_SHAPE)))
    np.testing.assert_array_equal(record.actions[0, 1:], action_classes(prompt.actions))
    np.testing.assert_array_equal(record.actions[0, 0], [10, 10, 0, 0, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(record.history_levels, np.float32(CONFIG.history_noise))
    levels = list(noise_levels(4).numpy())
    start = levels.index(record.levels[0, 0, 0])
    np.testing.assert_array_equal(record.levels[2, 1], levels[start : start + 3])
    # History is the finished frame and a little noise.
    near = record.history[:, 1].astype(np.float32) - 0.95 * video.codes[:, 1].astype(np.float32)
    assert near.std() == pytest.approx(0.05, rel=0.2)


def test_groups_depend_on_their_own_seed_only() -> None:
    prompts = tiny_flow_prompts(2)
    together = sampler().sample(prompts, [0, 1], [11, 12], 3)
    alone, _ = sampler().sample(prompts[1:], [1], [12], 3)[0]
    np.testing.assert_allclose(together[1][0].record.latents, alone.record.latents, atol=1e-5)
    other, _ = sampler().sample(prompts[1:], [1], [13], 3)[0]
    assert np.abs(other.record.latents - alone.record.latents).max() > 0.1


def test_shared_noise_starts_a_group_alike_and_sde_steps_part_it() -> None:
    config = replace(CONFIG, window_moves="sliding")  # from the very first step
    for shared in (True, False):
        group, _ = sampler(replace(config, shared_noise=shared)).sample(tiny_flow_prompts(1), [0], [0], 3)[0]
        starts = group.record.latents[:, 0, 0]
        assert bool(np.ptp(starts, axis=0).max() == 0) is shared
        assert np.ptp(group.record.latents[:, 0, -1], axis=0).max() > 0.1


def test_without_exploring_nothing_but_the_clean_frames_is_kept() -> None:
    ode = FlowSampler(tiny_flow_model(), CONFIG, explore=False)
    group, video = ode.sample(tiny_flow_prompts(1), [0], [0], 3)[0]
    assert group.behavior_logprobs is None and group.loss_mask.shape == (3, 3)
    assert group.record.latents.shape == (3, 3, 1, *LATENT_SHAPE) and (group.record.levels == 0).all()
    np.testing.assert_allclose(group.record.latents[:, :, 0], video.codes[:, 1:], atol=2e-3)


def test_window_slides_from_noisy_to_clean_and_round_again() -> None:
    config = replace(CONFIG, num_steps=6, window=2, window_moves="sliding", window_interval=2)  # the last one stays out
    assert [window_start(config, version, seed=9) for version in range(10)] == [0, 0, 1, 1, 2, 2, 3, 3, 0, 0]
    whole = replace(config, skip_last=False)
    assert max(window_start(whole, version, 0) for version in range(20)) == 4
    assert window_start(replace(config, window_moves="first"), 7, 3) == 0
    drawn = {window_start(replace(config, window_moves="random"), 0, seed) for seed in range(50)}
    assert drawn == {0, 1, 2, 3}


def test_a_window_that_moves_stays_in_the_first_steps() -> None:
    config = replace(CONFIG, num_steps=6, window=2, window_moves="random", window_end=3)
    assert {window_start(config, 0, seed) for seed in range(50)} == {0, 1}
    sliding = replace(config, window_moves="sliding", window_interval=1)
    assert [window_start(sliding, version, 0) for version in range(4)] == [0, 1, 0, 1]


def test_groups_of_one_call_may_have_windows_of_their_own() -> None:
    groups = [group for group, _ in sampler().sample(tiny_flow_prompts(6), range(6), range(6), 2)]
    assert len({float(group.record.levels[0, 0, 0]) for group in groups}) > 1
    for group in groups:
        with torch.no_grad():
            scores = FlowRescorer(CONFIG)(tiny_flow_model(), tensors(group), 6)
        np.testing.assert_allclose(scores.logprobs, group.behavior_logprobs, atol=1e-5)


def test_loaded_weights_sample_and_count() -> None:
    new = tiny_flow_model(seed=1)
    one, other = sampler(), FlowSampler(tiny_flow_model(seed=1), CONFIG, explore=True)
    one.load_weights(weights_of(new), 4)
    expected, _ = other.sample(tiny_flow_prompts(1), [0], [0], 2)[0]
    group, _ = one.sample(tiny_flow_prompts(1), [0], [0], 2)[0]
    np.testing.assert_array_equal(group.record.latents, expected.record.latents)
    assert group.policy_version == 4


def test_prompts_of_another_autoencoder_are_refused() -> None:
    prompt = replace(tiny_flow_prompts(1)[0], context=np.zeros((1, 4, 6, 6), np.float16))
    with pytest.raises(ValueError, match=r"encoded as the policy's \(4, 6, 8\), got \(4, 6, 6\)"):
        sampler().sample([prompt], [0], [0], 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise_level": 0.0}, "flow.noise_level must be a finite number > 0"),
        ({"window": 0}, "flow.window must be a whole number >= 1"),
        ({"num_steps": 1}, "flow.num_steps must be a whole number >= 2"),
        ({"window": 4}, "flow.window must be at most the 3 steps that may explore, got 4; set flow.window=3"),
        ({"window": 5, "skip_last": False}, "at most the 4 steps"),
        ({"sde": "cps", "noise_level": 1.0}, "must be < 1 with flow.sde=cps"),
        ({"sde": "ddim"}, "flow.sde must be one of"),
        ({"history_noise": 1.0}, r"flow.history_noise must be a finite number in \[0, 1\)"),
    ],
)
def test_settings_that_cannot_train_are_refused_when_they_are_read(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", SDE_KINDS)
def test_one_clip_of_a_call_is_compared_with_a_whole_pass(kind: str) -> None:
    config = replace(CONFIG, sde=kind)
    plain = sampler(config)
    group, _ = plain.sample(tiny_flow_prompts(1), [5], [0], 3)[0]
    with torch.no_grad():
        logprobs = FlowRescorer(config)(tiny_flow_model(), tensors(group), 6).logprobs.numpy()
    assert plain.difference is not None and plain.difference.maximum < 1e-4
    assert plain.difference.mean == pytest.approx(np.abs(logprobs - group.behavior_logprobs)[5 % 3].mean(), abs=1e-6)


def test_a_cache_that_forgets_frames_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = sampler(replace(CONFIG, noise_level=0.2))
    monkeypatch.setattr(FrameCache, "append", lambda self, other: self)
    plain.sample(tiny_flow_prompts(1), [0], [0], 2)
    assert plain.difference is not None and plain.difference.mean > 1e-3


def test_nothing_is_compared_without_exploring_steps() -> None:
    plain = FlowSampler(tiny_flow_model(), CONFIG, explore=False)
    plain.sample(tiny_flow_prompts(1), [0], [0], 2)
    assert plain.difference is None


def test_ratio_is_one_in_a_space_of_ones_own() -> None:
    model, prompts = second_flow_model(), second_flow_prompts(2, num_context=2)
    for prompt, (group, _) in zip(
        prompts, FlowSampler(model, CONFIG, explore=True).sample(prompts, [0, 1], [5, 6], 3), strict=True
    ):
        np.testing.assert_array_equal(group.record.actions[0, 1:], LAYOUT.classes(prompt.actions))
        assert group.record.actions.shape == (3, 5, 2) and group.record.actions[0, 0].tolist() == [1, 4]
        with torch.no_grad():
            scores = FlowRescorer(CONFIG)(model, tensors(group), 6)
        np.testing.assert_allclose(scores.logprobs, group.behavior_logprobs, atol=1e-5, rtol=0)


def test_prompts_of_another_space_are_refused_field_by_field() -> None:
    with pytest.raises(ValueError, match=r"got other fields .*field 0: gear, .* here, forward_back, .* there"):
        FlowSampler(second_flow_model(), CONFIG, explore=True).sample(tiny_flow_prompts(1), [0], [0], 2)
