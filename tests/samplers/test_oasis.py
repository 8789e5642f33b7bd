"""Oasis in the flow family: the published frames from the cached sampler, and the family's contract."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlir_ray.algorithm import diffusion_steps
from rlir_ray.algorithm.advantages import GroupAdvantages
from rlir_ray.algorithm.diffusion_steps import times_of
from rlir_ray.config import Config, FlowConfig, LoraConfig
from rlir_ray.config.load import load_config
from rlir_ray.families import family_of, make_objective, open_policy
from rlir_ray.learner.batches import StepBatch, trained_decisions
from rlir_ray.learner.step import Learner
from rlir_ray.learner.torch_engine import TorchEngine
from rlir_ray.models.adapters import add_adapter, save_policy
from rlir_ray.models.flow_forms import CODECS, FORMS
from rlir_ray.models.oasis import OasisAutoencoder, sample_published
from rlir_ray.models.oasis_codec import OasisCodec
from rlir_ray.models.oasis_policy import OasisPolicy, open_oasis_policy
from rlir_ray.models.rescoring import FlowRescorer
from rlir_ray.published.convert import convert_oasis
from rlir_ray.run.resolved import resolve
from rlir_ray.samplers.flow import FlowSampler
from rlir_ray.spaces.oasis import oasis_rows
from rlir_ray.spaces.vpt import VPT_SPACE
from rlir_ray.testing import check_family
from rlir_ray.trajectory import FlowRecord
from tests.fakes import tiny_flow_prompts
from tests.models.test_oasis import CONFIG, WEIGHTS

FLOW = FlowConfig(num_steps=5, window=2, history_noise=0.0)


@pytest.fixture(scope="module")
def oasis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "oasis"
    convert_oasis(folder, dit=WEIGHTS["dit"], vae=WEIGHTS["vae"], config=str(CONFIG))
    return folder


@pytest.fixture
def policy(oasis: Path) -> OasisPolicy:
    return open_oasis_policy(oasis / "world_model")


@pytest.fixture
def config(make_config, oasis: Path) -> Config:
    return make_config(
        f"models.policy={oasis / 'world_model'}",
        f"models.tokenizer={oasis / 'autoencoder'}",
        "policy.family=flow",
        "flow.num_steps=5",
        "flow.window=2",
        "flow.history_noise=0",
        "world.height=60",
        "world.width=80",
    )


# The window has five frames: it holds the whole clip, slides while a clip is sampled, or slides before the first frame.
@pytest.mark.parametrize(("num_context", "num_frames"), [(1, 3), (1, 8), (7, 2)])
def test_the_cached_sampler_gives_the_frames_of_the_published_one(
    policy: OasisPolicy, num_context: int, num_frames: int
) -> None:
    prompts = tiny_flow_prompts(2, num_context=num_context, num_frames=num_frames)
    sampler = FlowSampler(policy, FLOW, explore=False)
    pairs = sampler.sample(prompts, [0, 1], [7, 8], 2)
    draws = sampler._draw([7, 8], 2, num_context, num_frames)
    for number, (prompt, (group, _)) in enumerate(zip(prompts, pairs, strict=True)):
        rows = slice(2 * number, 2 * number + 2)
        layout = policy.layout
        classes = np.concatenate([layout.classes(VPT_SPACE.nothing(1)), layout.classes(prompt.actions)])
        context = torch.from_numpy(prompt.context).float().expand(2, -1, -1, -1, -1)
        actions = torch.from_numpy(oasis_rows(classes)).expand(2, -1, -1)
        # The sampler starts from the noise at the first level.
        noise = draws.start[rows] / sampler.levels[0]
        assert float(noise.std()) == pytest.approx(1, abs=0.1)
        with torch.inference_mode():
            wanted = sample_with_the_plain_model(policy, context, actions, noise)
        found = torch.from_numpy(group.record.latents[:, :, 0])
        torch.testing.assert_close(found, wanted[:, num_context:], rtol=1e-4, atol=1e-4)


def sample_with_the_plain_model(policy: OasisPolicy, *arguments: torch.Tensor) -> torch.Tensor:
    """Sample with the plain world model of the same weights."""
    from rlir_ray.models.oasis import OasisWorldModel

    plain = OasisWorldModel(**{name: value for name, value in policy.config.items() if not name.startswith("_")})
    plain.load_state_dict(policy.state_dict())
    return sample_published(plain.eval(), *arguments, num_steps=FLOW.num_steps)


def test_a_new_frame_costs_its_window_only_when_the_window_slides(
    policy: OasisPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_read, read = [], policy.read

    def counted(latents: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        num_read.append(latents.shape[1])
        return read(latents, *arguments, **options)

    monkeypatch.setattr(policy, "read", counted)
    FlowSampler(policy, FLOW, explore=False).sample(tiny_flow_prompts(1, num_frames=6), [0], [0], 2)
    # Before the five steps of each frame, the context or the last frame is read; from frame 5 on the last four are.
    assert num_read == [1, *[1] * 5] * 4 + [4, *[1] * 5] * 2


@pytest.mark.parametrize("num_context", [1, 6])
def test_rescoring_gives_the_samplers_log_probabilities_beyond_the_window(
    policy: OasisPolicy, num_context: int
) -> None:
    config = replace(FLOW, noise_level=0.5)
    sampler = FlowSampler(policy, config, explore=True, keep_means=True)
    prompts = tiny_flow_prompts(2, num_context=num_context, num_frames=7)
    for group, _ in sampler.sample(prompts, [0, 1], [3, 4], 2):
        columns = (getattr(group.record, each.name) for each in fields(group.record))
        record = FlowRecord(*(None if column is None else torch.from_numpy(column) for column in columns))
        with torch.inference_mode():
            scores = FlowRescorer(config, policy.span)(policy, record, 14)
        assert group.behavior_logprobs is not None and record.means is not None and scores.means is not None
        torch.testing.assert_close(scores.logprobs, torch.from_numpy(group.behavior_logprobs), rtol=0, atol=1e-5)
        torch.testing.assert_close(scores.means, record.means.flatten(1, 2).flatten(2), rtol=1e-4, atol=1e-4)
    assert sampler.difference is not None and sampler.difference.maximum < 1e-5
    with pytest.raises(ValueError, match="places must lie below the 5 frames of the model's window, got"):
        FlowRescorer(config)(policy, record, 14)


@pytest.mark.parametrize("objective", ["grpo", "nft", "cfm_ratio"])
def test_the_first_update_beyond_the_window_starts_at_the_samplers_policy(config: Config, objective: str) -> None:
    train = replace(config.train, objective=objective, group_size=2, max_advantage=5.0)
    config = replace(config, train=train, flow=replace(config.flow, shared_noise=objective == "grpo"))
    trained = open_policy(config)
    learner = Learner(
        TorchEngine(trained, train, config.learner), make_objective(config, trained), train, config.learner
    )
    sampler = family_of(config).rollout_sampler(config, open_policy(config))
    ((group, _),) = sampler.sample(tiny_flow_prompts(1, num_frames=7), [0], [3], 2)
    rewards = np.tile(np.array([[1.0], [-1.0]], np.float32), (1, 7))
    advantages = [GroupAdvantages.of_all(rewards)]
    metrics = learner.step(StepBatch([group], advantages, trained_decisions([group], advantages)))
    assert metrics["nft/drift" if objective == "nft" else "ratio/max_abs_log"] < 1e-5
    assert metrics["grad_norm"] > 0


@pytest.mark.parametrize("sde", ["flow_grpo", "dance_grpo", "cps"])
@pytest.mark.parametrize("moves", ["first", "random"])
def test_oasis_keeps_the_contract_of_a_family(config: Config, sde: str, moves: str) -> None:
    flow = replace(config.flow, sde=sde, window_moves=moves, noise_level=0.5)
    check_family(replace(config, flow=flow), tiny_flow_prompts(2, num_frames=3))


@pytest.mark.parametrize(("num_context", "num_frames"), [(1, 9), (7, 3)])
def test_a_world_may_be_longer_than_the_window(config: Config, num_context: int, num_frames: int) -> None:
    config = replace(config, world=replace(config.world, num_context=num_context, num_frames=num_frames))
    assert resolve(config).frame_shape == (4, 6, 8)
    check_family(config, tiny_flow_prompts(2, num_context=num_context, num_frames=num_frames))


def test_the_first_step_explores_with_finite_noise(policy: OasisPolicy) -> None:
    config = replace(FLOW, window_moves="first", shared_noise=True)
    sampler = FlowSampler(policy, config, explore=True, keep_means=True)
    ((group, _),) = sampler.sample(tiny_flow_prompts(1, num_frames=3), [0], [3], 4)
    record = group.record
    assert record.levels[0, 0, 0] == pytest.approx(0.99945, abs=1e-5)
    drawn = record.latents[:, :, 1] - record.means[:, :, 0]
    # The next level, .7456, stands in the denominator; with .99945 the deviation would be 15.
    level, following = record.levels[0, 0, :2]
    wanted = FLOW.noise_level * np.sqrt(level / (1 - following) * (level - following))
    assert float(drawn.std()) == pytest.approx(float(wanted), rel=0.05)


def test_a_learner_may_follow_a_sampler_that_was_first_in_this_process(policy: OasisPolicy) -> None:
    diffusion_steps._tables.cache_clear()
    latents, levels = torch.randn(1, 2, 4, 6, 8), torch.tensor([[0.0, 0.5]])
    actions = torch.from_numpy(policy.layout.classes(VPT_SPACE.nothing(2)))[None]
    with torch.inference_mode():
        policy(latents, levels, actions)
    latents.requires_grad_()
    policy(latents, levels, actions).square().sum().backward()
    assert latents.grad is not None and bool(latents.grad[:, 1].any())


def test_checkpoints_fit_their_world_and_settings(config: Config) -> None:
    run = resolve(config)
    assert run.frame_shape == (4, 6, 8) and run.space == VPT_SPACE
    assert family_of(config).codec(config) is OasisCodec
    for change, message in (
        ({"flow": replace(config.flow, history_noise=0.1)}, "flow.history_noise must be 0 with Oasis"),
        ({"flow": replace(config.flow, shift=2.0)}, "flow.shift must be 1 with Oasis"),
        ({"world": replace(config.world, height=48)}, "set world.height=60 world.width=80"),
    ):
        with pytest.raises(ValueError, match=message):
            resolve(replace(config, **change))


def test_the_recipe_has_the_published_sizes() -> None:
    config = load_config("oasis_500m")
    with torch.device("meta"):
        policy, autoencoder = OasisPolicy(), OasisAutoencoder()
    form, codec = FORMS["OasisWorldModel"], CODECS["OasisAutoencoder"]
    assert form.architecture(policy.config) == config.architecture
    assert codec.latents(config, Path(), autoencoder.config) == form.latents(policy.config) == policy.latent_shape
    form.check(config, policy.config)


def test_the_codec_scales_latents_as_the_world_model_reads_them(oasis: Path) -> None:
    codec = OasisCodec.from_pretrained(oasis / "autoencoder")
    frames = torch.randint(0, 256, (3, 60, 80, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    latents = codec.encode(frames)
    assert latents.shape == (3, 4, 6, 8)
    mean, _ = codec.model.moments(frames.permute(0, 3, 1, 2) / 255)
    torch.testing.assert_close(latents[1, :, 2, 3], 0.07843137255 * mean[1, 2 * 8 + 3])
    decoded = codec.decode(latents)
    plain = (codec.model.decode_latents(mean) + 1) / 2
    wanted = (plain.clamp(0, 1) * 255).to(torch.uint8).permute(0, 2, 3, 1)
    assert decoded.shape == frames.shape and decoded.dtype == torch.uint8
    assert int((decoded.int() - wanted.int()).abs().max()) <= 1
    with pytest.raises(ValueError, match="decodes latents"):
        codec.decode(latents[:, :3])
    assert codec.encode(frames[:0]).shape == (0, 4, 6, 8) and codec.decode(latents[:0]).shape == (0, 60, 80, 3)


def test_nft_trains_at_levels_of_the_models_times(config: Config) -> None:
    flow = replace(config.flow, shared_noise=False)
    nft = replace(config, flow=flow, train=replace(config.train, objective="nft", max_advantage=5.0))
    objective = make_objective(nft, open_policy(nft))
    times = times_of(objective.levels)  # type: ignore[attr-defined]  # the levels of DiffusionNFT
    assert times.tolist() == [999, 799, 599, 399, 199]


def test_an_adapter_trains_attention_and_mlp_alone_and_is_saved(tmp_path: Path, policy: OasisPolicy) -> None:
    add_adapter(policy, LoraConfig(rank=2))
    trained = {name.split(".lora_")[0] for name, weight in policy.named_parameters() if weight.requires_grad}
    assert {name.rsplit(".", 1)[1] for name in trained} == {"to_qkv", "to_out", "fc1", "fc2"}
    save_policy(policy, tmp_path / "adapter")
    again = open_oasis_policy(Path(policy.config["_name_or_path"]))
    add_adapter(again, LoraConfig(), str(tmp_path / "adapter"))
    assert all(torch.equal(value, policy.state_dict()[name]) for name, value in again.state_dict().items())
