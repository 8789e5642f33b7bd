"""Settings of a tokenizer's training, and its command: `python -m rlir_ray pretrain tokenizer`.

Heavy imports come after the arguments are read, so that help is instant.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlir_ray.pretrain.arguments import add_action_shift, add_settings, build_parser, check_settings, take_settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerTraining:
    """How a tokenizer is trained."""

    num_codes: int = 512
    """Size of the codebook, which is the world model's image vocabulary."""
    code_size: int = 16
    """Dimensions of a code."""
    pixel_unshuffle: int = 4
    """Pixels folded into channels before the first convolution."""
    block_channels: tuple[int, ...] = (48, 96)
    """Channels of each block; every block but the last halves the picture."""
    norm_groups: int = 4
    """Groups of each group norm; few groups are far faster on a CPU."""
    batch_pairs: int = 16
    """Pairs of neighbouring frames in one step."""
    num_steps: int = 4000
    """Optimiser steps, where minutes is 0."""
    minutes: float = 0.0
    """Wall-clock length of the training; the schedule then follows the clock instead of `num_steps`."""
    lr: float = 2e-3
    """Highest learning rate; it rises for 2 % of the training and falls to zero along a cosine."""
    unquantized_share: float = 0.2
    """Share of the training that runs as a plain autoencoder, before the codebook exists."""
    restart_until: float = 0.8
    """Share of the training after which unused codes are left alone."""
    codebook_decay: float = 0.98
    """Decay of the codebook's moving averages, a step."""
    commitment_weight: float = 0.25
    """Weight of the pull of the encoder towards its codes."""
    squared_weight: float = 4.0
    """Weight of the squared error beside the absolute one."""
    gradient_weight: float = 0.25
    """Weight of the error of image gradients at two scales, which keeps edges and texture."""
    change_weight: float = 0.5
    """Weight of the error of the change between neighbouring frames, which actions are read from."""
    checkpoint_every: int = 200
    """Steps between two checkpoints."""
    seed: int = 0
    """Seed of the weights and of the order of the frames."""
    device: str = ""
    """Torch device; empty: a GPU where there is one, else the CPU."""

    def __post_init__(self) -> None:
        check_settings(self)


def main(argv: Sequence[str] | None = None) -> None:
    """`python -m rlir_ray pretrain tokenizer`."""
    parser = build_parser(
        "pretrain tokenizer",
        "Trains a frame tokenizer on DATA/train, scores it on DATA/validation; goes on where it stopped.",
        "--data work/assets/recordings --out runs/tokenizer --tokens runs/tokens --minutes 20",
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and validation/ recordings")
    parser.add_argument("--out", type=Path, required=True, help="folder that receives the tokenizer")
    parser.add_argument("--tokens", type=Path, help="folder that receives train.npz and validation.npz, encoded")
    add_action_shift(parser)
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    add_settings(parser, TokenizerTraining)
    chosen = vars(parser.parse_args(argv))
    settings = take_settings(chosen, TokenizerTraining)
    import numpy as np
    import torch

    from rlir_ray.data.recordings import load_recordings
    from rlir_ray.pretrain.encode import encode_recordings
    from rlir_ray.pretrain.tokenizer_training import train_tokenizer
    from rlir_ray.run.progress import counted, progress_bar

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(chosen["threads"])
    logger.info("reading the recordings of %s", chosen["data"])
    recordings = {
        split: load_recordings(chosen["data"] / split, chosen["action_shift"]) for split in ("train", "validation")
    }
    held_out = np.concatenate([recording.frames for recording in recordings["validation"]])
    tokenizer = train_tokenizer(
        [recording.frames for recording in recordings["train"]], held_out, chosen["out"], settings
    )
    for split, recorded in recordings.items() if chosen["tokens"] else ():
        with progress_bar(f"encoding {split}") as show:
            shown = counted(recorded, len(recorded), show, "recordings")
            count = encode_recordings(tokenizer, shown, chosen["tokens"] / f"{split}.npz")
        logger.info("%d frames encoded into %s", count, chosen["tokens"] / f"{split}.npz")


if __name__ == "__main__":
    main()
