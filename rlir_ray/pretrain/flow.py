"""Settings of a flow world model's training, and its command: `python -m rlir_ray pretrain flow`.

Heavy imports come after the arguments are read, so that help is instant.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlir_ray.pretrain.arguments import add_settings, build_parser, check_settings, take_settings


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowTraining:
    """How a flow world model is trained."""

    patch_size: int = 2
    """A token stands for so many latents squared."""
    hidden_size: int = 224
    """Width."""
    num_layers: int = 6
    """Blocks."""
    num_heads: int = 4
    """Attention heads."""
    num_frames: int = 9
    """Frames of a window."""
    batch_size: int = 16
    """Windows in a step."""
    history_noise: float = 0.3
    """Highest noise level of a frame that others are denoised after; each has its own, uniform from 0."""
    level_mean: float = 0.0
    """Of the logit of a denoised frame's noise level."""
    level_std: float = 1.0
    """Of the same (Stable Diffusion 3's logit-normal distribution)."""
    learning_rate: float = 1e-3
    """Highest one; it rises for 2 % of the training and falls to a twentieth along a cosine."""
    weight_decay: float = 0.01
    """AdamW."""
    max_grad_norm: float = 1.0
    """Gradient clipping."""
    average_decay: float = 0.999
    """Of the moving average of the weights, which is what is kept."""
    minutes: float = 0.0
    """Wall-clock length of the training; the schedule then follows the clock instead of num_steps."""
    num_steps: int = 1000
    """Optimiser steps, where minutes is 0."""
    precision: str = "bf16"
    """`bf16` (autocast) or `fp32`."""
    evaluate_every_s: float = 240.0
    """Seconds between two evaluations, each with a checkpoint."""
    num_validation: int = 192
    """Held-out windows, evenly spaced over the recordings."""
    init: str = ""
    """Checkpoint folder to start from."""
    seed: int = 0
    """Of the weights, of the order of the windows and of the noise."""
    device: str = ""
    """Torch device; empty: a GPU where there is one, else the CPU."""

    def __post_init__(self) -> None:
        check_settings(self)


def main(argv: Sequence[str] | None = None) -> None:
    """`python -m rlir_ray pretrain flow`."""
    parser = build_parser(
        "pretrain flow",
        "Trains a flow world model on encoded recordings; goes on where it stopped.",
        "--data work/assets/latents --out runs/flow --minutes 60",
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with train.npz and validation.npz")
    parser.add_argument("--out", type=Path, required=True, help="folder that receives the model")
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    add_settings(parser, FlowTraining)
    chosen = vars(parser.parse_args(argv))
    settings = take_settings(chosen, FlowTraining)
    import torch

    from rlir_ray.pretrain.flow_training import load_latents, train_flow

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(chosen["threads"])
    train, validation = (load_latents(chosen["data"] / f"{split}.npz") for split in ("train", "validation"))
    train_flow(train, validation, chosen["out"], settings)


if __name__ == "__main__":
    main()
