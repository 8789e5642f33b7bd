"""The family of flow world models: frame latents, denoised as Next-Frame Diffusion, Oasis or DIAMOND does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from rlir_ray.algorithm.guidance import NO_GUIDANCE
from rlir_ray.config import Config, asset_path
from rlir_ray.families import Family, compares, guidance_text
from rlir_ray.models.clip_codec import ClipCodec
from rlir_ray.models.clip_losses import ClipLoss, FlowClipLoss
from rlir_ray.models.compatibility import read_settings
from rlir_ray.models.flow_forms import check_flow_world, codec_of, form_of, open_flow_policy, policy_settings
from rlir_ray.models.flow_matcher import FlowMatcher
from rlir_ray.models.flow_matching import NoiseLevels
from rlir_ray.models.rescoring import FlowRescorer, Rescore
from rlir_ray.samplers import Sampler
from rlir_ray.samplers.stepping import Stepper
from rlir_ray.spaces.layouts import ActionLayout, Cells
from rlir_ray.trajectory import FlowRecord, FrameShape

if TYPE_CHECKING:
    from rlir_ray.models.flow import FlowWorldModel


def _codec(config: Config) -> type[ClipCodec]:
    folder = asset_path(config.models.tokenizer)
    return codec_of(read_settings(folder, "config.json", "models.tokenizer"), folder).load()


def _layout(config: Config) -> ActionLayout:
    policy = policy_settings(config)
    return form_of(policy, asset_path(config.models.policy)).layout(policy)


def _flow_sampler(config: Config, policy: FlowWorldModel) -> Sampler:
    from rlir_ray.samplers.flow import FlowSampler

    return FlowSampler(
        policy,
        config.flow,
        explore=config.train.explores,
        keep_means=config.train.grpo.ratio == "guard",
        guidance=config.rollout.guidance,
        compares=compares(config),
        matcher=_matcher(config, policy),
    )


def _flow_evaluation_sampler(
    config: Config, policy: FlowWorldModel, temperature: float, guidance: float = NO_GUIDANCE
) -> Sampler:
    from rlir_ray.samplers.flow import FlowSampler

    return FlowSampler(policy, config.flow, explore=False, noise_scale=temperature, guidance=guidance)


def _flow_stepper(config: Config, policy: FlowWorldModel, temperature: float, guidance: float) -> Stepper:
    from rlir_ray.samplers.flow import FlowSampler, FlowStepper

    sampler = _flow_evaluation_sampler(config, policy, temperature, guidance)
    assert isinstance(sampler, FlowSampler)
    return FlowStepper(sampler, config.world.num_context + config.world.num_frames)


def _flow_sampling(config: Config) -> str:
    steps = f"{config.flow.num_steps} denoising steps a frame, noise scale {config.evaluation.temperatures[0]:g}"
    guidance, rescale = guidance_text(config), config.flow.guidance_rescale
    return steps + guidance + (f" rescaled by {rescale:g}" if guidance and rescale else "")


def _flow_record(config: Config, frame: FrameShape, num_clips: int) -> tuple[FlowRecord[torch.Tensor], int]:
    world, window = config.world, config.flow.window if config.train.explores else 0
    num_pairs = config.train.fpo.num_pairs if config.train.objective == "cfm_ratio" else 0
    num_frames, num_past = world.num_frames, world.num_context + world.num_frames - 1
    columns = len(_layout(config).class_counts)

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(num_clips, *shape, dtype=dtype, device="meta")

    record = FlowRecord(
        latents=empty(num_frames, window + 1, *frame),
        levels=empty(num_frames, window + 1),
        history=empty(num_past, *frame),
        history_levels=empty(num_past),
        actions=empty(num_past + 1, columns, dtype=torch.uint8),
        means=empty(num_frames, window, *frame) if config.train.grpo.ratio == "guard" else None,
        pair_seeds=empty(dtype=torch.int64) if num_pairs else None,
    )
    return record, num_frames * (window or num_pairs or 1)


def _flow_cells(layout: ActionLayout) -> Cells:
    return layout.class_cells


def _flow_rescorer(config: Config, policy: FlowWorldModel) -> Rescore:
    return _matcher(config, policy) or FlowRescorer(config.flow, policy.span, config.rollout.guidance)


def _flow_clip_loss(config: Config, policy: FlowWorldModel) -> ClipLoss:
    # Later frames read the history with the noise of a rollout, or with less.
    levels = NoiseLevels(history_noise=config.flow.history_noise)
    return FlowClipLoss(policy, config.world.num_frames, levels)


def _matcher(config: Config, policy: FlowWorldModel) -> FlowMatcher | None:
    """Return what scores the clean latents of a rollout; None: the objective needs no such scores."""
    fpo = config.train.fpo
    is_read = config.train.objective == "cfm_ratio"
    return FlowMatcher.of(policy, config.flow, fpo.num_pairs, fpo.error) if is_read else None


FAMILY = Family(
    open_policy=open_flow_policy,
    codec=_codec,
    check_world=check_flow_world,
    rollout_sampler=_flow_sampler,
    evaluation_sampler=_flow_evaluation_sampler,
    rescorer=_flow_rescorer,
    sampling_text=_flow_sampling,
    layout=_layout,
    cells=_flow_cells,
    record=_flow_record,
    clip_loss=_flow_clip_loss,
    stepper=_flow_stepper,
)
