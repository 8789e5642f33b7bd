"""Settings of an inverse dynamics model's training, and its command: `python -m rlir_ray pretrain idm`.

Heavy imports come after the arguments are read, so that help is instant.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlir_ray.pretrain.arguments import add_action_shift, add_settings, build_parser, check_settings, take_settings
from rlir_ray.spaces.actions import GROUPS

logger = logging.getLogger(__name__)

GROUPS_IN_USE = ("forward_back", "jump", "use_attack", "yaw")


@dataclass(frozen=True)
class InverseDynamicsTraining:
    """How an inverse dynamics model is trained."""

    architecture: str = "vpt"
    """`vpt`: the published form, which rewards; `correlation`: the judge's."""
    groups: tuple[str, ...] = GROUPS_IN_USE
    """Action groups that the world uses: forward_back, left_right, sprint_sneak, use_attack, jump, drop, inventory,
    hotbar, pitch, yaw."""
    init: str = ""
    """Checkpoint folder to start from; its architecture and sizes hold."""
    hidden_size: int = 256
    """Width of a frame's features."""
    num_layers: int = 2
    """`vpt`: transformer blocks; `correlation`: convolutions over time."""
    num_heads: int = 4
    """Attention heads of `vpt`."""
    convolution_width: int = 1
    """Channels of the convolutions, in multiples of the small model's."""
    seed: int = 1
    """Of weights, windows and augmentation."""
    minutes: float = 15.0
    """Training time, over all resumptions; 0 with steps set."""
    steps: int = 0
    """Optimiser steps; 0: as many as the minutes hold."""
    clips_per_step: int = 20
    """Windows in one optimiser step."""
    window_frames: tuple[int, ...] = (9, 9, 16)
    """Window lengths, drawn step by step."""
    learning_rate: float = 1.5e-3
    """Peak, after the warm-up; falls to 0 as a cosine."""
    weight_decay: float = 0.02
    """Of AdamW."""
    warmup: float = 0.03
    """Share of the training that warms up."""
    max_gradient_norm: float = 1.0
    """Gradients are clipped to this length."""
    idle_heads_weight: float = 0.05
    """Loss weight of heads outside the groups."""
    augmentation: float = 1.0
    """Strength of light, blur and noise changes; 0: none."""
    reconstructed_share: float = 0.5
    """Windows read through the tokenizer, if any."""
    evaluate_every_s: float = 60.0
    """Seconds between points of the curve."""
    checkpoint_every_s: float = 60.0
    """Seconds between checkpoints."""
    threads: int = 1
    """Of torch."""
    device: str = ""
    """Torch device; empty: a GPU where there is one, else the CPU."""

    def __post_init__(self) -> None:
        check_settings(self)
        if self.architecture not in ("vpt", "correlation"):
            raise ValueError(f"--architecture must be vpt or correlation, got {self.architecture!r}; choose one")
        if not self.groups or (unknown := [name for name in self.groups if name not in GROUPS]):
            got = ",".join(unknown) if self.groups else "none"
            raise ValueError(f"--groups must be of {', '.join(GROUPS)}, got {got}; name those that the world uses")


def main(argv: Sequence[str] | None = None) -> None:
    """`python -m rlir_ray pretrain idm`."""
    parser = build_parser(
        "pretrain idm",
        "Trains an inverse dynamics model on DATA/train and scores it on DATA/validation; goes on where it stopped. "
        "Event k of a recording must lead INTO frame k.",
        "--data work/assets/recordings --out runs/idm --architecture vpt --minutes 30",
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and validation/ recordings")
    parser.add_argument("--out", type=Path, required=True, help="folder that receives the model")
    add_action_shift(parser)
    parser.add_argument(
        "--no-probe",
        action="store_true",
        help="do not measure first, for half a minute, which event leads into a frame",
    )
    parser.add_argument("--tokenizer", type=Path, help="the world's tokenizer: a share of the clips is read through it")
    add_settings(parser, InverseDynamicsTraining)
    chosen = vars(parser.parse_args(argv))
    settings = take_settings(chosen, InverseDynamicsTraining)
    from rlir_ray.data.causality import check_causality
    from rlir_ray.data.recordings import load_recordings
    from rlir_ray.pretrain.idm_training import reconstruction, train_inverse_dynamics
    from rlir_ray.run.progress import figure_words

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    reconstruct = reconstruction(chosen["tokenizer"], settings.device) if chosen["tokenizer"] else None
    logger.info("reading the recordings of %s", chosen["data"])
    train, validation = (
        load_recordings(chosen["data"] / split, chosen["action_shift"]) for split in ("train", "validation")
    )
    if not chosen["no_probe"]:
        logger.info("measuring which event leads into a frame")
        pairs = [(each.frames, each.actions) for each in train]
        way_out = "--action-shift={shift}, or --no-probe if you know better"
        check_causality(pairs, str(chosen["data"] / "train"), action_shift=chosen["action_shift"], way_out=way_out)
    logger.info("%d recordings, %d held out", len(train), len(validation))
    figures = train_inverse_dynamics(train, validation, chosen["out"], settings, reconstruct)
    logger.info("held out: %s", figure_words(figures["shifts"]["+0"]["mean"]))
    logger.info("macro-F1 by kind of clip: %s", figure_words(figures["gate"]))


if __name__ == "__main__":
    main()
