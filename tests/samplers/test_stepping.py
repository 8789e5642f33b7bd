"""A stepper draws frame by frame what a sampler draws at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from rlir_ray.config import FlowConfig
from rlir_ray.models.autoregressive import WorldModel
from rlir_ray.samplers.flow import FlowSampler, FlowStepper
from rlir_ray.samplers.torch_sampler import TokenStepper, TorchSampler
from rlir_ray.spaces.space import Actions
from rlir_ray.trajectory import EncodedClips, Prompt
from tests.fakes import (
    LATENT_SHAPE,
    TOKENS_PER_FRAME,
    tiny_flow_model,
    tiny_flow_prompts,
    tiny_prompts,
    tiny_world_model,
)
from tests.samplers.test_keyframes import model_with, prompts_for

NUM_FRAMES = 4


def rows_of(prompt: Prompt) -> Actions:
    """C + F actions; the first one does nothing."""
    return prompt.actions.space.nothing(1).followed_by(prompt.actions)


def context_of(prompts: list[Prompt], dtype: type[np.generic]) -> EncodedClips:
    return EncodedClips(torch.from_numpy(np.stack([prompt.context for prompt in prompts]).astype(dtype)))


def numbers_of(seeds: tuple[int, ...], num_frames: int, num_tokens: int) -> list[torch.Tensor]:
    """The numbers from which the sampler draws clips, [frames, tokens] each."""
    return [
        torch.rand(num_frames * num_tokens, 1, generator=torch.Generator().manual_seed(seed)).view(num_frames, -1)
        for seed in seeds
    ]


@pytest.mark.parametrize("num_context", [1, 2])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_tokens_are_those_of_the_sampler_with_the_same_draws(
    num_context: int, guidance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: WorldModel = tiny_world_model()
    prompts = tiny_prompts(2, num_context=num_context, num_frames=NUM_FRAMES)
    sampler = TorchSampler(model, temperature=0.8, guidance=guidance, compares=False)
    expected = [video.codes[0] for _, video in sampler.sample(prompts, [0, 1], [5, 6], 1)]
    stepper = TokenStepper(sampler, num_context + NUM_FRAMES)
    stepper.start(
        context_of(prompts, np.int64), [rows_of(each)[:num_context] for each in prompts], [[0] * num_context] * 2
    )
    # The sampler draws all numbers of a clip from one seed, a stepper those of each frame.
    numbers = numbers_of((5, 6), NUM_FRAMES, TOKENS_PER_FRAME)
    drawn = iter(numbers[clip][frame] for frame in range(NUM_FRAMES) for clip in range(2))
    monkeypatch.setattr(torch, "rand", lambda *_, **__: next(drawn))
    frames = []
    for place in range(num_context, num_context + NUM_FRAMES):
        frames.append(stepper.step([rows_of(each)[place : place + 1] for each in prompts], [0, 0]))
    np.testing.assert_array_equal(torch.stack(frames, 1).numpy(), np.stack(expected)[:, num_context:])


@pytest.mark.parametrize("num_context", [1, 2])
@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_latents_are_those_of_the_sampler_with_the_same_noise(
    num_context: int, guidance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = FlowConfig(num_steps=4, window=2, history_noise=0.1)
    prompts = tiny_flow_prompts(2, num_context=num_context, num_frames=NUM_FRAMES)
    sampler = FlowSampler(tiny_flow_model(), config, explore=False, noise_scale=0.9, guidance=guidance, compares=False)
    draws = sampler._draw([5, 6], 1, num_context, NUM_FRAMES)
    expected = [group.record.latents[0, :, -1] for group, _ in sampler.sample(prompts, [0, 1], [5, 6], 1)]
    stepper = FlowStepper(sampler, num_context + NUM_FRAMES)
    history = torch.cat([draws.context, draws.history], 1)
    # A seed names the clip and the frame, of which the sampler's own noise is taken.
    scale = sampler.noise_scale * sampler.policy.start_std(sampler.levels[0])

    def noise(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        clip, place = divmod(seed, 100)
        start = draws.start[clip, max(0, place - num_context)] / scale
        return start, history[clip, place]

    monkeypatch.setattr(stepper, "_draw", noise)
    seeds = [[100 * clip + place for place in range(num_context)] for clip in range(2)]
    stepper.start(context_of(prompts, np.float32), [rows_of(each)[:num_context] for each in prompts], seeds)
    frames = []
    for place in range(num_context, num_context + NUM_FRAMES):
        actions = [rows_of(each)[place : place + 1] for each in prompts]
        frames.append(stepper.step(actions, [100 * clip + place for clip in range(2)]))
    np.testing.assert_allclose(torch.stack(frames, 1).numpy(), np.stack(expected), atol=1e-5)


@pytest.mark.parametrize("make", ["tokens", "latents"])
def test_draws_depend_on_the_seed_of_the_frame_and_not_on_the_company(make: str) -> None:
    if make == "tokens":
        stepper: TokenStepper | FlowStepper = TokenStepper(TorchSampler(tiny_world_model(), temperature=1.0), 3)
        prompts, dtype = tiny_prompts(3, num_frames=2), np.int64
    else:
        flow = FlowConfig(num_steps=4, window=2)
        stepper = FlowStepper(FlowSampler(tiny_flow_model(), flow, explore=False), 3)
        prompts, dtype = tiny_flow_prompts(3, num_frames=2), np.float32

    def first(chosen: list[int], seeds: list[int]) -> npt.NDArray[np.generic]:
        part = [prompts[number] for number in chosen]
        stepper.start(context_of(part, dtype), [rows_of(each)[:1] for each in part], [[7]] * len(part))
        return stepper.step([rows_of(each)[1:2] for each in part], seeds).numpy()

    together = first([0, 1, 2], [1, 2, 3])
    np.testing.assert_allclose(first([1], [2])[0], together[1], atol=1e-5)
    assert not np.allclose(first([1], [4])[0], together[1])
    assert together.shape == ((3, TOKENS_PER_FRAME) if make == "tokens" else (3, *LATENT_SHAPE))


@pytest.mark.parametrize(("keyframe", "bos"), [((30, 5), False), ((0, 0), True)], ids=["keyframe", "bos"])
def test_policies_with_keyframes_and_with_bos_are_stepped_too(
    keyframe: tuple[int, int], bos: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_with(*keyframe, bos=bos)
    num_frames = 1 if bos else NUM_FRAMES
    prompts = prompts_for(model, 2, 2, num_frames)
    sampler = TorchSampler(model, temperature=1.0, compares=False)
    expected = [video.codes[0, 2:] for _, video in sampler.sample(prompts, [0, 1], [5, 6], 1)]
    stepper = TokenStepper(sampler, 2 + num_frames)
    assert stepper.num_kept == (2 if bos else 3)
    context = context_of(prompts, np.int64)
    if keyframe[1]:
        context = EncodedClips(
            context.codes, torch.from_numpy(np.stack([p.keyframe for p in prompts]).astype(np.int64))
        )
    stepper.start(context, [rows_of(each)[:2] for each in prompts], [[0, 0]] * 2)
    tokens = model.sequence.shape.tokens_per_frame
    numbers = numbers_of((5, 6), num_frames, tokens)
    drawn = iter(numbers[clip][frame] for frame in range(num_frames) for clip in range(2))
    monkeypatch.setattr(torch, "rand", lambda *_, **__: next(drawn))
    frames = [
        stepper.step([rows_of(each)[place : place + 1] for each in prompts], [0, 0])
        for place in range(2, 2 + num_frames)
    ]
    np.testing.assert_array_equal(torch.stack(frames, 1).numpy(), np.stack(expected))
