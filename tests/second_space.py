"""A world beside VPT's, with actions of its own: a choice of three and an axis; models and prompts as in `fakes`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from rlir_ray.spaces.fields import Axis, Choice, Uniform
from rlir_ray.spaces.layouts import FieldsLayout
from rlir_ray.spaces.space import Actions, ActionSpace
from tests.fakes import LATENT_SHAPE, NUM_CODES, TOKENS_PER_FRAME, tiny_flow_prompts, tiny_prompts

if TYPE_CHECKING:
    from rlir_ray.models.autoregressive import WorldModel
    from rlir_ray.models.flow import FlowWorldModel
    from rlir_ray.trajectory import Prompt

SPACE = ActionSpace(
    (
        Choice(name="gear", classes=("reverse", "neutral", "forward"), null_class=1),
        Axis(name="steer", low=-1, high=1, quantizer=Uniform(num_bins=9)),
    )
)
LAYOUT = FieldsLayout(SPACE)


def second_actions(num_actions: int, seed: int = 0) -> Actions:
    """Random gears and angles."""
    random = np.random.default_rng(seed)
    columns = random.integers(0, 3, num_actions), random.uniform(-1, 1, num_actions)
    return Actions(SPACE, np.stack(columns, 1).astype(np.float32))


def in_second_space(prompts: list[Prompt]) -> list[Prompt]:
    return [replace(one, actions=second_actions(len(one.actions), seed)) for seed, one in enumerate(prompts)]


def second_prompts(num_prompts: int, *, num_context: int = 1) -> list[Prompt]:
    return in_second_space(tiny_prompts(num_prompts, num_context=num_context))


def second_flow_prompts(num_prompts: int, *, num_context: int = 1) -> list[Prompt]:
    return in_second_space(tiny_flow_prompts(num_prompts, num_context=num_context))


def second_world_model(num_heads: int = 4) -> WorldModel:
    """Two layers, with distributions far from uniform."""
    import torch

    from rlir_ray.models.autoregressive import WorldModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = WorldModel.create(
            num_codes=NUM_CODES,
            tokens_per_frame=TOKENS_PER_FRAME,
            hidden_size=64,
            intermediate_size=96,
            num_layers=2,
            num_heads=num_heads,
            max_positions=512,
            layout=LAYOUT,
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(4 if parameter.ndim > 1 else 1)
    return model.eval()


def second_flow_model() -> FlowWorldModel:
    """Two layers with open gates."""
    import torch

    from rlir_ray.models.flow import FlowWorldModel

    channels, height, width = LATENT_SHAPE
    sizes = {"latent_channels": channels, "latent_height": height, "latent_width": width}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = FlowWorldModel(
            **sizes, hidden_size=48, num_layers=2, num_heads=2, action_space=SPACE.to_plain(), action_layout="fields"
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()
