"""Settings of an autoencoder's training, and its command: `python -m rlir_ray pretrain autoencoder`.

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
class AutoencoderTraining:
    """How an autoencoder is trained."""

    latent_channels: int = 8
    """Channels of a latent."""
    pixel_unshuffle: int = 4
    """Pixels folded into channels before the first convolution."""
    block_channels: tuple[int, ...] = (48, 96)
    """Channels of each block; every block but the last halves the picture."""
    norm_groups: int = 4
    """Groups of each group norm; few groups are far faster on a CPU."""
    batch_pairs: int = 16
    """Pairs of neighbouring frames in one step."""
    minutes: float = 0.0
    """Wall-clock length of the training; the schedule then follows the clock instead of num_steps."""
    num_steps: int = 4000
    """Optimiser steps, where minutes is 0."""
    learning_rate: float = 2e-3
    """Highest one; it rises for 2 % of the training and falls to a hundredth along a cosine."""
    kl_weight: float = 1e-4
    """Weight of the divergence from a normal distribution, which makes decoding robust to small errors of a latent."""
    squared_weight: float = 4.0
    """Weight of the squared error beside the absolute one."""
    gradient_weight: float = 0.25
    """Weight of the error of image gradients at two scales, which keeps edges and texture."""
    change_weight: float = 0.5
    """Weight of the error of the change between neighbouring frames, which actions are read from."""
    evaluate_every_s: float = 120.0
    """Seconds between two evaluations, each with a checkpoint."""
    seed: int = 0
    """Of the weights and of the order of the frames."""
    device: str = ""
    """Torch device; empty: a GPU where there is one, else the CPU."""

    def __post_init__(self) -> None:
        check_settings(self)


def main(argv: Sequence[str] | None = None) -> None:
    """`python -m rlir_ray pretrain autoencoder`."""
    parser = build_parser(
        "pretrain autoencoder",
        "Trains an autoencoder of frames on DATA/train, scores it on DATA/validation; goes on where it stopped.",
        "--data work/assets/recordings --out runs/autoencoder --minutes 20",
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and validation/ recordings")
    parser.add_argument("--out", type=Path, required=True, help="folder that receives the autoencoder")
    parser.add_argument("--latents", type=Path, help="folder that receives train.npz and validation.npz, encoded")
    add_action_shift(parser)
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    add_settings(parser, AutoencoderTraining)
    chosen = vars(parser.parse_args(argv))
    settings = take_settings(chosen, AutoencoderTraining)
    import numpy as np
    import torch

    from rlir_ray.data.recordings import load_recordings
    from rlir_ray.pretrain.autoencoder_training import train_autoencoder
    from rlir_ray.pretrain.encode import encode_recordings
    from rlir_ray.run.progress import counted, progress_bar

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(chosen["threads"])
    logger.info("reading the recordings of %s", chosen["data"])
    recordings = {
        split: load_recordings(chosen["data"] / split, chosen["action_shift"]) for split in ("train", "validation")
    }
    held_out = np.concatenate([recording.frames for recording in recordings["validation"]])
    clips = [recording.frames for recording in recordings["train"]]
    autoencoder = train_autoencoder(clips, held_out, chosen["out"], settings)
    for split, recorded in recordings.items() if chosen["latents"] else ():
        with progress_bar(f"encoding {split}") as show:
            shown = counted(recorded, len(recorded), show, "recordings")
            count = encode_recordings(autoencoder, shown, chosen["latents"] / f"{split}.npz")
        logger.info("%d frames encoded into %s", count, chosen["latents"] / f"{split}.npz")


if __name__ == "__main__":
    main()
