"""Settings of a world model's training, and its command: `python -m rlir_ray pretrain world-model`.

Heavy imports come after the arguments are read, so that help is instant.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlir_ray.pretrain.arguments import add_settings, build_parser, check_settings, take_settings

SPLITS = ("train", "validation")


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldModelTraining:
    """How a world model is trained."""

    num_codes: int = 512
    """Image ids, the tokenizer's codebook; with init the checkpoint's count holds."""
    hidden_size: int = 192
    """Width."""
    intermediate_size: int = 512
    """Width of the SwiGLU."""
    num_layers: int = 5
    """Decoder layers."""
    num_heads: int = 3
    """Query heads."""
    num_key_value_heads: int = 1
    """Key-value heads."""
    num_frames: int = 9
    """Frames of a window, context included."""
    batch_size: int = 16
    """Windows in a step."""
    learning_rate: float = 2e-3
    """Highest one; it rises for 2 % of the training and falls to a twentieth along a cosine."""
    weight_decay: float = 0.1
    """Of matrices, AdamW."""
    max_grad_norm: float = 1.0
    """Gradient clipping."""
    context_weight: float = 0.1
    """Loss weight of the first frame's tokens, which a rollout is always given."""
    minutes: float = 0.0
    """Wall-clock length of the training; the schedule then follows the clock instead of num_steps."""
    num_steps: int = 1000
    """Optimiser steps, where minutes is 0."""
    precision: str = "bf16"
    """`bf16` (autocast) or `fp32`."""
    evaluate_every_s: float = 150.0
    """Seconds between two evaluations, each with a checkpoint."""
    num_validation: int = 48
    """Held-out windows, evenly spaced over the recordings."""
    init: str = ""
    """Checkpoint folder to start from."""
    seed: int = 0
    """Of the weights and of the order of the windows."""
    device: str = ""
    """Torch device; empty: a GPU where there is one, else the CPU."""

    def __post_init__(self) -> None:
        check_settings(self)


def main(argv: Sequence[str] | None = None) -> None:
    """`python -m rlir_ray pretrain world-model`."""
    parser = build_parser(
        "pretrain world-model",
        "Trains an autoregressive world model on tokenised recordings; goes on where it stopped.",
        "--data work/assets/tokens --out runs/world_model --minutes 60",
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with train.npz and validation.npz")
    parser.add_argument("--out", type=Path, required=True, help="folder that receives the model")
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    add_settings(parser, WorldModelTraining)
    chosen = vars(parser.parse_args(argv))
    settings = take_settings(chosen, WorldModelTraining)
    import torch

    from rlir_ray.pretrain.world_model_training import load_tokens, train_world_model

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(chosen["threads"])
    train, validation = (load_tokens(chosen["data"] / f"{split}.npz", settings.num_codes) for split in SPLITS)
    train_world_model(train, validation, chosen["out"], settings)


if __name__ == "__main__":
    main()
