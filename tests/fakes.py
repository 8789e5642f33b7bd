"""Tiny seeded models and prompts that tests share.

Frames of 24 x 32 pixels; 12 tokens of 32 codes a frame, or latents of 4 x 6 x 8.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from rlir_ray.spaces.space import Actions
from rlir_ray.spaces.vpt import BUTTONS, VPT_SPACE, actions_from_buttons
from rlir_ray.trajectory import Prompt

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from rlir_ray.config import RewardConfig
    from rlir_ray.idm.base import InverseDynamics, Reading
    from rlir_ray.idm.vpt import VptInverseDynamics
    from rlir_ray.models.autoencoder import FrameAutoencoder
    from rlir_ray.models.autoregressive import WorldModel
    from rlir_ray.models.flow import FlowWorldModel
    from rlir_ray.models.tokenizer import FrameTokenizer
    from rlir_ray.rewards.combined import CombinedReward, Decoder

NUM_CODES, TOKENS_PER_FRAME = 32, 12
HEIGHT, WIDTH = 24, 32
LATENT_SHAPE = (4, 6, 8)


def tiny_world_model(
    seed: int = 0, *, num_heads: int = 4, num_key_value_heads: int = 2, num_layers: int = 2
) -> WorldModel:
    """About 0.1 M parameters. The head is scaled up, so that its distributions are far from uniform."""
    import torch

    from rlir_ray.models.autoregressive import WorldModel

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = WorldModel.create(
            num_codes=NUM_CODES,
            tokens_per_frame=TOKENS_PER_FRAME,
            hidden_size=64,
            intermediate_size=96,
            num_layers=num_layers,
            num_heads=num_heads,
            num_key_value_heads=num_key_value_heads,
            max_positions=512,
        )
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name:
                    parameter.uniform_(0.5, 1.5)
                else:
                    parameter.mul_(4)
    return model.eval()


def tiny_vllm_model(seed: int = 0) -> WorldModel:
    """The same with heads of 32 numbers, the smallest that vLLM's attention for CPUs takes."""
    return tiny_world_model(seed, num_heads=2, num_key_value_heads=1)


def tiny_actions(num_actions: int, seed: int = 0) -> Actions:
    """Random buttons and camera angles."""
    random = np.random.default_rng(seed)
    buttons = random.random((num_actions, len(BUTTONS))) < 0.2
    return actions_from_buttons(buttons, random.normal(0, 5, (num_actions, 2)).astype(np.float32))


def tiny_prompts(num_prompts: int, *, num_context: int = 1, num_frames: int = 3, seed: int = 0) -> list[Prompt]:
    """Random contexts with random commanded actions."""
    random = np.random.default_rng(seed)
    return [
        Prompt(
            prompt_id=f"tiny-{index}",
            context=random.integers(0, NUM_CODES, (num_context, TOKENS_PER_FRAME), dtype=np.uint16),
            actions=tiny_actions(num_context - 1 + num_frames, seed * 1000 + index),
        )
        for index in range(num_prompts)
    ]


def with_recorded(prompts: Sequence[Prompt], seed: int = 0) -> list[Prompt]:
    """The same prompts with recorded frames: those of other prompts' contexts, in another order."""
    random = np.random.default_rng(seed)
    contexts = np.concatenate([prompt.context for prompt in prompts])
    return [
        replace(prompt, recorded=contexts[random.integers(len(contexts), size=prompt.num_frames)]) for prompt in prompts
    ]


def tiny_tokenizer(seed: int = 0) -> FrameTokenizer:
    """Frames of 24 x 32 pixels to a grid of 3 x 4 tokens."""
    import torch

    from rlir_ray.models.tokenizer import build_tokenizer

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = build_tokenizer(
            height=HEIGHT, width=WIDTH, num_codes=NUM_CODES, code_size=4, block_channels=(8, 16, 16), pixel_unshuffle=2
        )
        with torch.no_grad():
            tokenizer.codebook.normal_()
    return tokenizer.eval()


def tiny_idm(seed: int = 0) -> VptInverseDynamics:
    """A VPT-form network of about 0.1 M parameters for frames of 24 x 32 pixels."""
    from rlir_ray.idm.vpt import VptInverseDynamics
    from rlir_ray.idm.vpt_config import small_vpt_config

    config = small_vpt_config(HEIGHT, WIDTH)
    config["net"] |= {"hidsize": 32, "img_shape": [HEIGHT, WIDTH, 8], "impala_chans": [8, 8, 8]}
    config["net"]["conv3d_params"] |= {"outchan": 8}
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return VptInverseDynamics(config).eval()


def inverse_reward(
    codec: Decoder, idm: InverseDynamics, names: tuple[str, ...], config: RewardConfig, **options: Any
) -> CombinedReward:
    """The reward of the term `inverse` alone."""
    from rlir_ray.rewards.combined import CombinedReward
    from rlir_ray.rewards.inverse import InverseTerm

    terms = {"inverse": InverseTerm(names, config, **options)}
    return CombinedReward(codec, terms, idm, names=names, config=config)


class VptReader:
    """An inverse dynamics model of VPT's space, for tests that say what its heads give."""

    space = VPT_SPACE

    def logits(self, frames: torch.Tensor) -> dict[str, torch.Tensor]:
        """Give buttons [B, F, 20, 2] and camera [B, F, 2, 11]."""
        raise NotImplementedError

    def read(self, frames: torch.Tensor, names: Sequence[str]) -> Reading:
        from rlir_ray.idm.vpt_heads import read_heads

        return read_heads(self.logits(frames), names)


def tiny_flow_model(seed: int = 0) -> FlowWorldModel:
    """About 0.1 M parameters for latents of 4 x 6 x 8, with open gates: a fresh model says zero to everything."""
    import torch

    from rlir_ray.models.flow import FlowWorldModel

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = FlowWorldModel(
            latent_channels=4, latent_height=6, latent_width=8, hidden_size=48, num_layers=2, num_heads=2
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def tiny_flow_prompts(num_prompts: int, *, num_context: int = 1, num_frames: int = 3, seed: int = 0) -> list[Prompt]:
    """Random contexts with random commanded actions."""
    random = np.random.default_rng(seed)
    return [
        Prompt(
            prompt_id=f"tiny-{index}",
            context=random.normal(size=(num_context, *LATENT_SHAPE)).astype(np.float16),
            actions=tiny_actions(num_context - 1 + num_frames, seed * 1000 + index),
        )
        for index in range(num_prompts)
    ]


def tiny_autoencoder(seed: int = 0) -> FrameAutoencoder:
    """Frames of 24 x 32 pixels to latents of 4 x 6 x 8."""
    import torch

    from rlir_ray.models.autoencoder import build_autoencoder

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_autoencoder(
            height=HEIGHT, width=WIDTH, latent_channels=4, block_channels=(8, 16), pixel_unshuffle=2
        ).eval()


def image_tokens(tokens: torch.Tensor, tokens_per_frame: int, tokens_per_action: int = 11) -> torch.Tensor:
    """Return the image tokens of sequences without a keyframe, [..., L] to [..., n, N]."""
    frames = tokens.unfold(-1, tokens_per_frame, tokens_per_frame + tokens_per_action)
    assert (tokens.shape[-1] + tokens_per_action) % (tokens_per_frame + tokens_per_action) == 0
    return frames
