"""The two families of world models: all in which they differ, behind one set of names.

`rollout.engine` says which family a run is of. Heavy libraries load when a model is opened.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlir_ray.algorithm.flow_steps import noise_levels
from rlir_ray.config import Config, asset_path
from rlir_ray.learner.objectives import DiffusionNFT, Objective, PolicyGradient
from rlir_ray.models.adapters import add_adapter, has_adapter, without_adapter
from rlir_ray.models.frame_codec import FrameCodec
from rlir_ray.models.rescoring import FlowRescorer, Forward, TokenRescorer
from rlir_ray.rewards.agreement import CameraBins
from rlir_ray.samplers import Sampler
from rlir_ray.spaces.actions import TOKENS_PER_ACTION, flow_camera_bins, token_camera_bins
from rlir_ray.trajectory import FrameShape


@dataclass(frozen=True, slots=True)
class Family:
    open_policy: Callable[[Path], nn.Module]
    """A checkpoint folder to a policy, in float32 on the CPU."""
    codec: Callable[[], type[FrameCodec]]
    """What frames are encoded with."""
    rollout_sampler: Callable[[Config, Any], Sampler]
    """Explores, and keeps what rescoring needs."""
    evaluation_sampler: Callable[[Config, Any, float], Sampler]
    """At a temperature."""
    objective: Callable[[Config, nn.Module, Forward | None], Objective]
    """Of the policy, with a reference's forward pass."""
    sampling_text: Callable[[Config], str]
    """How an evaluation samples, for a person."""
    camera_bins: CameraBins
    """What a policy is told of the camera's angles."""
    group_bytes: Callable[[Config, FrameShape], int]
    """Of one group in flight: the training columns and the encoded video."""


def family_of(config: Config) -> Family:
    return FAMILIES["flow" if config.rollout.engine == "flow" else "autoregressive"]


def open_policy(config: Config, device: Any = "cpu") -> nn.Module:
    """The configured policy, with its adapter if it trains one or is given one.

    Raises:
        ValueError: weights are missing, unexpected, of another shape, NaN or infinite.
    """
    policy = family_of(config).open_policy(asset_path(config.models.policy))
    if config.lora.rank or config.models.adapter:
        add_adapter(policy, config.lora, config.models.adapter)
    return policy.to(device)


def open_codec(config: Config) -> FrameCodec:
    """The configured tokenizer or autoencoder; a plain one is taken to be of the world's size."""
    folder, world = asset_path(config.models.tokenizer), config.world
    return family_of(config).codec().from_pretrained(folder, height=world.height, width=world.width)


def open_reference(config: Config, policy: nn.Module) -> Forward | None:
    """The forward pass of the frozen reference; None where nothing holds the policy near it."""
    if not config.train.kl_coefficient:
        return None
    if has_adapter(policy) and not config.models.adapter:
        return without_adapter(policy)
    device = next(policy.parameters()).device
    return open_policy(config, device).requires_grad_(False).eval()


def make_objective(config: Config, policy: nn.Module) -> Objective:
    """What the run optimises."""
    return family_of(config).objective(config, policy, open_reference(config, policy))


def _compares(config: Config) -> bool:
    """Whether a rollout's log-probabilities are compared with the learner's model's."""
    return config.rollout.max_logprob_difference > 0


# ---------------------------------------------------------------------------------------------------------------------
# Autoregressive


def _open_world_model(folder: Path) -> nn.Module:
    from rlir_ray.models.autoregressive import WorldModel

    return WorldModel.from_pretrained(folder)


def _tokenizer() -> type[FrameCodec]:
    from rlir_ray.models.tokenizer import FrameTokenizer

    return FrameTokenizer


def _token_sampler(config: Config, policy: Any) -> Sampler:
    if config.rollout.engine == "vllm":
        from rlir_ray.samplers.vllm import VllmSampler

        return VllmSampler(
            policy, asset_path(config.models.policy), config.vllm, temperature=config.rollout.temperature,
            num_frames=config.world.num_context + config.world.num_frames, compares=_compares(config),
        )  # fmt: skip
    from rlir_ray.samplers.torch_sampler import TorchSampler

    return TorchSampler(policy, temperature=config.rollout.temperature, compares=_compares(config))


def _token_evaluation_sampler(config: Config, policy: Any, temperature: float) -> Sampler:
    from rlir_ray.samplers.torch_sampler import TorchSampler

    return TorchSampler(policy, temperature=temperature, top_p=config.evaluation.top_p, compares=False)


def _token_sampling(config: Config) -> str:
    settings = config.evaluation
    return f"temperature {settings.temperatures[0]:g}, top-p {settings.top_p:g}, raster decoding"


def _token_objective(config: Config, policy: nn.Module, reference: Forward | None) -> Objective:
    return PolicyGradient(policy, TokenRescorer(config.rollout.temperature), config.train, reference)


def _token_group_bytes(config: Config, frame: FrameShape) -> int:
    world, (num_tokens,) = config.world, frame
    num_frames = world.num_context + world.num_frames
    length = num_frames * num_tokens + (num_frames - 1) * TOKENS_PER_ACTION
    columns = 4 * length + 5 * world.num_frames * num_tokens  # int32 tokens; float32 and bool decisions
    code_bytes = 4 if config.architecture.num_codes > 1 << 16 else 2  # as `stored_codes`
    return config.train.group_size * (columns + code_bytes * num_frames * num_tokens)


# ---------------------------------------------------------------------------------------------------------------------
# Flow


def _open_flow_model(folder: Path) -> nn.Module:
    from rlir_ray.models.flow import open_flow_model

    return open_flow_model(folder)


def _autoencoder() -> type[FrameCodec]:
    from rlir_ray.models.autoencoder import FrameAutoencoder

    return FrameAutoencoder


def _flow_sampler(config: Config, policy: Any) -> Sampler:
    from rlir_ray.samplers.flow import FlowSampler

    explore, keep_means = config.train.objective != "nft", config.train.ratio == "guard"
    return FlowSampler(policy, config.flow, explore=explore, keep_means=keep_means, compares=_compares(config))


def _flow_evaluation_sampler(config: Config, policy: Any, temperature: float) -> Sampler:
    from rlir_ray.samplers.flow import FlowSampler

    return FlowSampler(policy, config.flow, explore=False, noise_scale=temperature)


def _flow_sampling(config: Config) -> str:
    return f"{config.flow.num_steps} denoising steps a frame, noise scale {config.evaluation.temperatures[0]:g}"


def _flow_objective(config: Config, policy: nn.Module, reference: Forward | None) -> Objective:
    if config.train.objective == "nft":
        levels = noise_levels(config.flow.num_steps, config.flow.shift)[:-1]
        return DiffusionNFT(policy, levels, config.train, reference)
    # A flow log-probability is a mean over a latent's numbers: its ratio is no importance weight.
    train = replace(config.train, importance="none")
    return PolicyGradient(policy, FlowRescorer(config.flow), train, reference)


def _flow_group_bytes(config: Config, frame: FrameShape) -> int:
    world, size = config.world, int(torch.Size(frame).numel())
    num_frames, num_past = world.num_frames, world.num_context + world.num_frames - 1
    window = 0 if config.train.objective == "nft" else config.flow.window
    states = num_frames * (window + 1) * 4 * (size + 1)  # float32 latents and their levels
    means = num_frames * window * 4 * size if config.train.ratio == "guard" else 0
    history = num_past * 4 * (size + 1) + (num_past + 1) * 9  # with its levels; uint8 actions
    decisions = 5 * num_frames * window if window else num_frames  # float32 and bool, or bool alone
    return config.train.group_size * (states + means + history + decisions + 2 * (num_past + 1) * size)


FAMILIES = {
    "autoregressive": Family(
        open_policy=_open_world_model, codec=_tokenizer, rollout_sampler=_token_sampler,
        evaluation_sampler=_token_evaluation_sampler, objective=_token_objective, sampling_text=_token_sampling,
        camera_bins=token_camera_bins, group_bytes=_token_group_bytes,
    ),
    "flow": Family(
        open_policy=_open_flow_model, codec=_autoencoder, rollout_sampler=_flow_sampler,
        evaluation_sampler=_flow_evaluation_sampler, objective=_flow_objective, sampling_text=_flow_sampling,
        camera_bins=flow_camera_bins, group_bytes=_flow_group_bytes,
    ),
}  # fmt: skip
