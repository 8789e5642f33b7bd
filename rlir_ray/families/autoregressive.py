"""The family of autoregressive world models: one sequence of frame tokens and action tokens (as MineWorld)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from rlir_ray.algorithm.guidance import NO_GUIDANCE
from rlir_ray.config import Config, asset_path
from rlir_ray.families import Family, compares, guidance_text
from rlir_ray.models.clip_codec import ClipCodec
from rlir_ray.models.clip_losses import ClipLoss, TokenClipLoss
from rlir_ray.models.compatibility import check_token_world, policy_layout, policy_sequence, read_settings
from rlir_ray.models.rescoring import Rescore, TokenRescorer
from rlir_ray.models.tokenizer_forms import tokenizer_form
from rlir_ray.samplers import Sampler
from rlir_ray.samplers.stepping import Stepper
from rlir_ray.spaces.layouts import ActionLayout, Cells
from rlir_ray.trajectory import FrameShape, TokenRecord

if TYPE_CHECKING:
    from rlir_ray.models.autoregressive import WorldModel


def _open_world_model(folder: Path) -> nn.Module:
    from rlir_ray.models.autoregressive import WorldModel

    return WorldModel.from_pretrained(folder)


def _tokenizer(config: Config) -> type[ClipCodec]:
    folder = asset_path(config.models.tokenizer)
    return tokenizer_form(read_settings(folder, "config.json", "models.tokenizer"), folder).load()


def _token_sampler(config: Config, policy: WorldModel) -> Sampler:
    if config.rollout.engine == "vllm":
        from rlir_ray.samplers.vllm import VllmSampler

        return VllmSampler(
            policy,
            asset_path(config.models.policy),
            config.vllm,
            temperature=config.rollout.temperature,
            num_frames=config.world.num_context + config.world.num_frames,
            restrict=config.rollout.restrict,
            compares=compares(config),
        )
    from rlir_ray.samplers.torch_sampler import TorchSampler

    return TorchSampler(
        policy,
        temperature=config.rollout.temperature,
        restrict=config.rollout.restrict,
        guidance=config.rollout.guidance,
        compares=compares(config),
    )


def _token_evaluation_sampler(
    config: Config, policy: WorldModel, temperature: float, guidance: float = NO_GUIDANCE
) -> Sampler:
    from rlir_ray.samplers.torch_sampler import TorchSampler

    return TorchSampler(
        policy,
        temperature=temperature,
        top_p=config.evaluation.top_p,
        restrict=config.rollout.restrict,
        guidance=guidance,
        compares=False,
    )


def _token_stepper(config: Config, policy: WorldModel, temperature: float, guidance: float) -> Stepper:
    from rlir_ray.samplers.torch_sampler import TokenStepper, TorchSampler

    sampler = _token_evaluation_sampler(config, policy, temperature, guidance)
    assert isinstance(sampler, TorchSampler)
    return TokenStepper(sampler, config.world.num_context + config.world.num_frames)


def _token_sampling(config: Config) -> str:
    settings = config.evaluation
    decoding = "raster decoding" + ("" if config.rollout.restrict else ", from all ids") + guidance_text(config)
    return f"temperature {settings.temperatures[0]:g}, top-p {settings.top_p:g}, {decoding}"


def _token_record(config: Config, frame: FrameShape, num_clips: int) -> tuple[TokenRecord[torch.Tensor], int]:
    world, (num_tokens,) = config.world, frame
    length = policy_sequence(config).length(world.num_context + world.num_frames)
    tokens = torch.empty(num_clips, length, dtype=torch.int32, device="meta")
    return TokenRecord(tokens), world.num_frames * num_tokens


def _tokens_per_keyframe(config: Config) -> int:
    return policy_sequence(config).shape.tokens_per_keyframe


def _token_cells(layout: ActionLayout) -> Cells:
    return layout.token_cells


def _token_rescorer(config: Config, policy: WorldModel) -> Rescore:
    return TokenRescorer(config.rollout.temperature, config.rollout.restrict, config.rollout.guidance)


def _token_clip_loss(config: Config, policy: WorldModel) -> ClipLoss:
    return TokenClipLoss(policy, config.world.num_frames, config.rollout.restrict)


FAMILY = Family(
    open_policy=_open_world_model,
    codec=_tokenizer,
    check_world=check_token_world,
    rollout_sampler=_token_sampler,
    evaluation_sampler=_token_evaluation_sampler,
    rescorer=_token_rescorer,
    sampling_text=_token_sampling,
    layout=policy_layout,
    cells=_token_cells,
    record=_token_record,
    clip_loss=_token_clip_loss,
    stepper=_token_stepper,
    tokens_per_keyframe=_tokens_per_keyframe,
)
