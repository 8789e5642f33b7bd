"""DIAMOND in the flow family: the frames of the published sampler, actions, and the family's contract."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rlir_ray.config import Config, FlowConfig, LoraConfig
from rlir_ray.families import family_of, make_objective, open_policy
from rlir_ray.learner.step import Learner
from rlir_ray.learner.torch_engine import TorchEngine
from rlir_ray.local import train_local
from rlir_ray.models.diamond import DiamondWorldModel, cut_to_bytes, sample_published
from rlir_ray.models.diamond_policy import HALF_BYTE, DiamondPolicy, open_diamond_policy, round_to_bytes
from rlir_ray.models.flow_forms import check_flow_world
from rlir_ray.models.pixel_codec import PixelCodec
from rlir_ray.models.rescoring import FlowRescorer, two_streams
from rlir_ray.play.simulator import Simulator
from rlir_ray.samplers.base import compare
from rlir_ray.samplers.flow import FlowSampler, FlowStepper
from rlir_ray.spaces.diamond import diamond_layout
from rlir_ray.spaces.space import Actions, ActionSpace
from rlir_ray.testing import check_family
from rlir_ray.trajectory import EncodedClips, EncodedVideo, Prompt, RewardScores
from tests.models.test_diamond import PREFIX, SETTINGS, WEIGHTS

FLOW = FlowConfig(num_steps=3, window=2, history_noise=0.0)
HEIGHT, WIDTH, NUM_CONTEXT = 16, 20, 4
SPACE = ActionSpace.from_gymnasium(gymnasium.spaces.Discrete(6))


@pytest.fixture(scope="module")
def diamond(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "diamond"
    model = DiamondWorldModel(height=HEIGHT, width=WIDTH, **SETTINGS["inner_model"])
    model.load_state_dict({name.removeprefix(PREFIX): value for name, value in load_file(WEIGHTS).items()})
    model.save_pretrained(folder / "world_model")
    PixelCodec(HEIGHT, WIDTH).save_pretrained(folder / "pixels")
    return folder


@pytest.fixture
def policy(diamond: Path) -> DiamondPolicy:
    return open_diamond_policy(diamond / "world_model")


@pytest.fixture
def config(make_config, diamond: Path) -> Config:
    return make_config(
        f"models.policy={diamond / 'world_model'}",
        f"models.tokenizer={diamond / 'pixels'}",
        "policy.family=flow",
        "flow.num_steps=3",
        "flow.window=2",
        "flow.history_noise=0",
        f"world.height={HEIGHT}",
        f"world.width={WIDTH}",
        f"world.num_context={NUM_CONTEXT}",
    )


def prompts(num_prompts: int, num_frames: int = 3) -> list[Prompt]:
    random, codec = np.random.default_rng(0), PixelCodec(HEIGHT, WIDTH)
    found = []
    for number in range(num_prompts):
        frames = random.integers(0, 256, (NUM_CONTEXT, HEIGHT, WIDTH, 3), dtype=np.uint8)
        actions = random.integers(0, 6, (NUM_CONTEXT - 1 + num_frames, 1)).astype(np.float32)
        context = codec.encode(torch.from_numpy(frames)).half().numpy()
        found.append(Prompt(prompt_id=f"tiny-{number}", context=context, actions=Actions(SPACE, actions)))
    return found


class Lowered(DiamondWorldModel):
    """The plain world model with predictions half a byte lower."""

    def denoise(self, *arguments: Tensor) -> Tensor:
        return super().denoise(*arguments) - HALF_BYTE


def plain(policy: DiamondPolicy, kind: type[DiamondWorldModel]) -> DiamondWorldModel:
    model = kind(**{name: value for name, value in policy.config.items() if not name.startswith("_")})
    model.load_state_dict(policy.state_dict())
    return model.eval()


def test_the_sampler_gives_the_frames_of_the_published_steps(policy: DiamondPolicy) -> None:
    prompt = prompts(1)[0]
    sampler = FlowSampler(policy, FLOW, explore=False)
    ((group, _),) = sampler.sample([prompt], [0], [7], 2)
    found = torch.from_numpy(group.record.latents[:, :, 0])
    # Start where the published sampler starts: at noise of deviation 1, before the change of variables.
    noise = sampler._draw([7], 2, NUM_CONTEXT, 3).start * 6
    assert float(noise.std()) == pytest.approx(1, abs=0.05)
    lowered, taken = plain(policy, Lowered), torch.from_numpy(prompt.actions.classes[:, 0])
    frames = round_to_bytes(torch.from_numpy(prompt.context)).expand(2, -1, -1, -1, -1)
    for number in range(3):
        # Action k of the prompt leads into frame k + 1, so DIAMOND's action at frame k is that one.
        actions = taken[number : number + NUM_CONTEXT].expand(2, -1)
        steps, _ = sample_published(lowered, frames[:, -NUM_CONTEXT:], actions, noise[:, number], quantises=False)
        torch.testing.assert_close(found[:, number], steps[:, -1], rtol=0, atol=1e-4)
        frames = torch.cat([frames, round_to_bytes(found[:, number, None])], 1)


def test_rounding_a_prediction_half_a_byte_lower_is_the_published_cut() -> None:
    predicted = torch.rand(10_000, generator=torch.Generator().manual_seed(0)) * 2.2 - 1.1
    torch.testing.assert_close(round_to_bytes(predicted - HALF_BYTE), cut_to_bytes(predicted), rtol=0, atol=1e-6)
    pictures = torch.arange(256) / 255 * 2 - 1
    torch.testing.assert_close(round_to_bytes(pictures.half()), pictures, rtol=0, atol=1e-6)


def test_on_average_frames_are_as_bright_as_those_of_the_cutting_sampler(policy: DiamondPolicy) -> None:
    model, generator = plain(policy, DiamondWorldModel), torch.Generator().manual_seed(1)
    history = round_to_bytes(torch.rand(8, 4, 3, HEIGHT, WIDTH, generator=generator) * 2 - 1)
    actions = torch.randint(0, 6, (8, 4), generator=generator)
    noise = torch.randn(8, 3, HEIGHT, WIDTH, generator=generator)
    published, uncut = (
        sample_published(model, history, actions, noise, quantises=quantises)[0][:, -1] for quantises in (True, False)
    )
    lowered = sample_published(plain(policy, Lowered), history, actions, noise, quantises=False)[0][:, -1]
    apart = (round_to_bytes(lowered) - published) * 127.5
    # Without the half byte, frames are brighter by more than half a byte.
    assert abs(float(apart.mean())) < 0.05
    assert float(((cut_to_bytes(uncut) - published) * 127.5).mean()) > 0.5
    assert float((apart.abs() > 1.5).float().mean()) < 0.01


def test_the_action_that_leads_into_a_frame_is_the_one_taken_at_the_frame_before(policy: DiamondPolicy) -> None:
    generator = torch.Generator().manual_seed(2)
    # As recorded: frames 0 to 4, and the action taken at each of the first four.
    frames = round_to_bytes(torch.rand(1, 4, 3, HEIGHT, WIDTH, generator=generator) * 2 - 1)
    taken, noisy = torch.tensor([[5, 1, 4, 2]]), torch.randn(1, 1, 3, HEIGHT, WIDTH, generator=generator)
    level = torch.tensor(0.25)  # σ = 1/3
    with torch.inference_mode():
        model = plain(policy, DiamondWorldModel)
        x = noisy[:, 0] * 4 / 3
        denoised = model.denoise(x, torch.tensor([1 / 3]), frames, taken) - HALF_BYTE
        levels = torch.cat([torch.zeros(1, 4), level.expand(1, 1)], 1)
        for first in (0, 3):
            # Nothing leads into frame 0: whatever stands there is not read.
            actions = torch.cat([torch.tensor([[first]]), taken], 1)[..., None]
            found = policy(torch.cat([frames, noisy], 1), levels, actions)
            torch.testing.assert_close(found[:, 4], 3 * (x - denoised) - denoised, rtol=1e-4, atol=1e-5)
            assert not bool(found[:, :4].any())


def test_the_space_is_that_of_a_recorded_environment_with_as_many_actions(policy: DiamondPolicy) -> None:
    assert policy.layout.space == SPACE and policy.layout.class_counts == (6,)
    named = ActionSpace((replace(SPACE.fields[0], name="joystick"),))
    assert diamond_layout(6, named.to_plain()).space == named
    with pytest.raises(ValueError, match=r"one choice of num_actions=5, got joystick \(choice of 6\)"):
        diamond_layout(5, named.to_plain())
    with pytest.raises(ValueError, match="num_actions must be between 2 and 256, got 1"):
        diamond_layout(1)


@pytest.mark.parametrize("sde", ["flow_grpo", "dance_grpo", "cps"])
@pytest.mark.parametrize("moves", ["first", "random"])
def test_diamond_keeps_the_contract_of_a_family(config: Config, sde: str, moves: str) -> None:
    flow = replace(config.flow, sde=sde, window_moves=moves, noise_level=0.5)
    check_family(replace(config, flow=flow), prompts(2))


def test_rescoring_gives_the_samplers_log_probabilities_for_each_step(policy: DiamondPolicy) -> None:
    for start in range(2):
        config = replace(FLOW, window_moves="sliding", window_interval=1, noise_level=0.5, skip_last=False)
        sampler = FlowSampler(policy, config, explore=True)
        sampler.policy_version = start
        for group, _ in sampler.sample(prompts(2, num_frames=6), [0, 1], [3, 4], 3):
            difference = compare(policy, FlowRescorer(config, policy.span), group)
            assert difference is not None and difference.maximum < 1e-5
            levels = [5 / 6, 0.22063, 0.0019960, 0]
            assert group.record.levels[0, 0].tolist() == pytest.approx(levels[start : start + 3], abs=1e-5)


def test_each_noisy_frame_reads_its_own_past_alone(policy: DiamondPolicy) -> None:
    generator = torch.Generator().manual_seed(3)
    history = torch.randn(1, 6, 3, HEIGHT, WIDTH, generator=generator) / 3
    noisy = torch.randn(1, 3, 2, 3, HEIGHT, WIDTH, generator=generator).requires_grad_()
    levels, actions = torch.tensor([[[0.8, 0.2]] * 3]), torch.randint(0, 6, (1, 7, 1), generator=generator)
    arguments = (torch.zeros(1, 6), actions[:, :6], noisy, levels, actions[:, 4:])
    found = two_streams(policy, history, *arguments, policy.span)
    found[:, 1].sum().backward()
    assert noisy.grad is not None
    assert noisy.grad.abs().amax((0, 2, 3, 4, 5)).ne(0).tolist() == [False, True, False]
    with torch.inference_mode():
        for frame, changes in ((0, [False] * 3), (1, [False, True, False]), (4, [False, True, True])):
            # Frame 0 is read by place 4 alone, frame 1 by 4 and 5, frame 4 by 5 and 6.
            other = history.clone()
            other[:, frame] *= -1
            moved = (two_streams(policy, other, *arguments, policy.span) - found).abs().amax((0, 2, 3, 4, 5)) > 1e-5
            assert moved[1:].tolist() == changes[1:] and bool(moved[0]) == (frame < 4)


def test_frames_without_their_past_are_refused(policy: DiamondPolicy) -> None:
    latents, actions = torch.zeros(1, 5, 3, HEIGHT, WIDTH), torch.zeros(1, 5, 1, dtype=torch.int64)
    levels = torch.tensor([[0, 0, 0, 0, 0.5]])
    assert policy(latents, levels, actions).shape == latents.shape
    with pytest.raises(ValueError, match=r"needs exactly 4 earlier frames, .*, got 3; give 4 or more context"):
        policy(latents[:, 1:], levels[:, 1:], actions[:, 1:])
    with pytest.raises(ValueError, match=r"got 3; .*history_noise=0"):
        policy(latents, torch.tensor([[0, 0, 0, 0.1, 0.5]]), actions)
    hidden = torch.ones(5, 5, dtype=torch.bool)
    hidden[4, 1:3] = False
    with pytest.raises(ValueError, match="got 2; give"):
        policy(latents, levels, actions, visible=hidden)
    _, cache = policy.read(latents, torch.zeros(1, 5), actions)
    with pytest.raises(ValueError, match="got 5; give"):
        policy(latents[:, 4:], levels[:, 4:], actions[:, 4:], cache=cache)


def test_a_cached_history_stands_in_for_the_frames_of_a_pass(policy: DiamondPolicy) -> None:
    generator = torch.Generator().manual_seed(4)
    latents = torch.randn(2, 5, 3, HEIGHT, WIDTH, generator=generator) / 3
    levels = torch.tensor([[0, 0, 0, 0, 0.5]]).expand(2, -1)
    actions = torch.randint(0, 6, (2, 5, 1), generator=generator)
    with torch.inference_mode():
        _, cache = policy.read(latents[:, :4], levels[:, :4], actions[:, :4])
        last = (part[:, 4:].repeat_interleave(3, 0) for part in (latents, levels, actions))
        found = policy(*last, cache=cache.repeat(3))[:, 0]
        torch.testing.assert_close(found, policy(latents, levels, actions)[:, 4].repeat_interleave(3, 0))


def test_checkpoints_fit_their_world_and_settings(config: Config) -> None:
    assert check_flow_world(config) == (3, HEIGHT, WIDTH)
    family = family_of(config)
    assert family.layout(config).space == SPACE and family.codec(config) is PixelCodec
    for change, message in (
        ({"world": replace(config.world, num_context=3)}, "must be at least 4 .*, got 3; set world.num_context=4"),
        ({"flow": replace(config.flow, history_noise=0.1)}, "flow.history_noise must be 0 with DIAMOND"),
        ({"flow": replace(config.flow, shift=2.0)}, "flow.shift must be 1 with DIAMOND"),
        ({"lora": LoraConfig(rank=2)}, "lora.targets must name layers with DIAMOND"),
        ({"world": replace(config.world, height=64)}, "set world.height=16 world.width=20"),
    ):
        with pytest.raises(ValueError, match=message):
            check_flow_world(replace(config, **change))


def test_nft_trains_at_the_levels_of_the_published_steps(config: Config) -> None:
    flow = replace(config.flow, shared_noise=False)
    nft = replace(config, flow=flow, train=replace(config.train, objective="nft", max_advantage=5.0))
    objective = make_objective(nft, open_policy(nft))
    levels = objective.levels.tolist()  # type: ignore[attr-defined]  # the levels of DiffusionNFT
    assert levels == pytest.approx([5 / 6, 0.22063, 0.0019960], abs=1e-5)


class LightReward:
    """Rewards bright frames (sign 1) or dark ones (-1)."""

    def __init__(self, sign: int) -> None:
        self.sign, self.light = sign, [0.0]

    def score(self, videos: Sequence[EncodedVideo]) -> list[RewardScores]:
        codec, found = PixelCodec(HEIGHT, WIDTH), []
        for video in videos:
            pictures = torch.from_numpy(video.codes[:, video.num_context :]).float()  # [G, F, 3, H, W]
            frames = codec.decode(pictures.flatten(0, 1)).unflatten(0, pictures.shape[:2])
            light = (frames.float().mean((2, 3, 4)) / 255).numpy()
            self.light.append(float(light.mean()))
            found.append(RewardScores(group_id=video.group_id, frame_rewards=self.sign * light))
        return found


# With random weights NFT parts the two rewards later than GRPO: at 10 steps not yet.
@pytest.mark.parametrize(("objective", "num_steps"), [("grpo", 6), pytest.param("nft", 30, marks=pytest.mark.slow)])
def test_post_training_follows_the_reward(config: Config, objective: str, num_steps: int) -> None:
    train = replace(
        config.train,
        objective=objective,
        num_steps=num_steps,
        prompts_per_step=2,
        group_size=6,
        learning_rate=3e-3,
        max_advantage=5.0,
    )
    flow = replace(config.flow, window_moves="first", window=1, shared_noise=objective == "grpo")
    config = replace(config, train=train, flow=flow)
    light = {}
    for sign in (1, -1):
        policy, reward = open_policy(config), LightReward(sign)
        before = {name: value.clone() for name, value in policy.state_dict().items()}
        sampler = family_of(config).rollout_sampler(config, copy.deepcopy(policy))
        engine = TorchEngine(policy, config.train, config.learner)
        learner = Learner(engine, make_objective(config, policy), config.train, config.learner)
        first = train_local(config, prompts(1), sampler, reward, learner)[0]
        light[sign] = np.mean(reward.light[-2:])
        if objective == "grpo":
            assert first["ratio/max_abs_log"] < 1e-5
        # All weights train; the frequencies of the noise are a constant.
        kept = {name for name, value in policy.state_dict().items() if torch.equal(value, before[name])}
        assert kept == {"noise_emb.weight"}
    assert light[1] > light[-1] + 0.02, light


def test_the_codec_keeps_each_byte(diamond: Path, tmp_path: Path) -> None:
    codec = PixelCodec.from_pretrained(diamond / "pixels")
    frames = torch.arange(960).reshape(1, HEIGHT, WIDTH, 3).to(torch.uint8)
    latents = codec.encode(frames)
    assert latents.shape == (1, 3, HEIGHT, WIDTH) and latents.dtype == torch.float32
    torch.testing.assert_close(latents[0, 2, 0, 1], torch.tensor(5 / 255 * 2 - 1))
    assert torch.equal(codec.decode(latents.half()), frames)
    assert codec.decode(torch.full_like(latents, 1.5)).unique().tolist() == [255]
    assert codec.encode(frames[:0]).shape == (0, 3, HEIGHT, WIDTH)
    with pytest.raises(ValueError, match="decodes latents"):
        codec.decode(latents[:, :2])
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"must hold a config.json with height and width, got KeyError"):
        PixelCodec.from_pretrained(tmp_path)


def test_a_simulator_reads_the_frames_that_the_sampler_reads(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """The window slides with every frame: the stepper starts anew each time, from exactly n frames."""
    policy, num_frames = open_policy(config).eval(), 3
    sampler = FlowSampler(policy, replace(config.flow, history_noise=0.0), explore=False, compares=False)
    stepper = FlowStepper(sampler, num_frames=99)
    assert (stepper.num_frames, stepper.num_kept) == (NUM_CONTEXT + 1, NUM_CONTEXT)
    frames = np.random.default_rng(0).integers(0, 256, (1, NUM_CONTEXT, HEIGHT, WIDTH, 3), dtype=np.uint8)
    codec = PixelCodec(HEIGHT, WIDTH)
    space = policy.layout.space
    actions = Actions(space, np.array([[0], [1], [2], [3], [4], [5]], np.float32))  # C - 1 between, then three
    codes = codec.encode_clips(torch.from_numpy(frames)).codes
    prompt = Prompt(prompt_id="one", context=codes[0].numpy().astype(np.float16), actions=actions)
    draws = sampler._draw([7], 1, NUM_CONTEXT, num_frames)
    (_, video), *_ = sampler.sample([prompt], [0], [7], 1)
    scale = sampler.noise_scale * policy.start_std(sampler.levels[0])
    starts = iter(draws.start[0] / scale)
    simulator = Simulator(stepper, codec, space)
    simulator.reset(frames, [7], [actions[: NUM_CONTEXT - 1]])
    for place in range(NUM_CONTEXT - 1, len(actions)):
        start = next(starts)
        monkeypatch.setattr(stepper, "_draw", lambda _, start=start: (start, torch.zeros_like(start)))
        simulator.step([actions[place : place + 1]])
    expected = codec.decode_clips(EncodedClips(torch.from_numpy(video.codes.astype(np.float32)))).numpy()
    assert np.abs(simulator.frames[0].astype(int) - expected[0]).max() <= 1
