"""The command of all trainings: `python -m rlir_ray pretrain MODEL`.

Heavy libraries are imported after the arguments are parsed, so that --help is instant.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rlir_ray.pretrain.arguments import add_action_shift, add_settings, build_parser, take_settings
from rlir_ray.pretrain.settings import (
    AutoencoderTraining,
    FlowTraining,
    InverseDynamicsTraining,
    TokenizerTraining,
    WorldModelTraining,
)
from rlir_ray.run.progress import log_to_stderr

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

RECORDINGS = "folder with train/ and validation/ recordings"
CODES = "folder with train.npz and validation.npz"


@dataclass(frozen=True)
class TrainingCommand:
    """Arguments of one model's training.

    Args:
        settings: a dataclass; `run_command` in the module of the model takes an instance.
        data, out: help texts of the two folders.
        description, example: texts of --help.
        add_options: adds the options that only this model has.
        threads: default number of torch threads; None: `settings` has the number.
    """

    settings: type[DataclassInstance]
    data: str
    out: str
    description: str
    example: str
    add_options: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    threads: int | None = None


def main(model: str, argv: Sequence[str] | None = None) -> None:
    """Run `python -m rlir_ray pretrain MODEL`; MODEL is a key of `COMMANDS`."""
    command = COMMANDS[model]
    chosen = vars(_parser(model, command).parse_args(argv))
    settings = take_settings(chosen, command.settings)
    log_to_stderr()
    if command.threads:
        import torch

        torch.set_num_threads(chosen["threads"])
    importlib.import_module(f"rlir_ray.pretrain.{model.replace('-', '_')}").run_command(chosen, settings)


def _parser(model: str, command: TrainingCommand) -> argparse.ArgumentParser:
    parser = build_parser(f"pretrain {model}", command.description, command.example)
    parser.add_argument("--data", type=Path, required=True, help=command.data)
    parser.add_argument("--out", type=Path, required=True, help=f"folder that receives the {command.out}")
    command.add_options(parser)
    if command.threads:
        parser.add_argument("--threads", type=int, default=command.threads, help="torch threads")
    add_settings(parser, command.settings)
    return parser


def _add_codes(option: str) -> Callable[[argparse.ArgumentParser], None]:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(option, type=Path, help="folder that receives train.npz and validation.npz, encoded")
        add_action_shift(parser)

    return add


def _add_probe(parser: argparse.ArgumentParser) -> None:
    add_action_shift(parser)
    parser.add_argument(
        "--no-probe",
        action="store_true",
        help="skip the check, half a minute long, that event k leads into frame k",
    )
    parser.add_argument(
        "--tokenizer", type=Path, help="tokenizer of the world; a share of the clips is encoded and decoded with it"
    )


COMMANDS = {
    "tokenizer": TrainingCommand(
        TokenizerTraining,
        RECORDINGS,
        "tokenizer",
        "Trains a frame tokenizer on DATA/train and evaluates it on DATA/validation; resumes a stopped training.",
        "--data work/assets/recordings --out runs/tokenizer --tokens runs/tokens --minutes 20",
        _add_codes("--tokens"),
        threads=1,
    ),
    "autoencoder": TrainingCommand(
        AutoencoderTraining,
        RECORDINGS,
        "autoencoder",
        "Trains a frame autoencoder on DATA/train and evaluates it on DATA/validation; resumes a stopped training.",
        "--data work/assets/recordings --out runs/autoencoder --minutes 20",
        _add_codes("--latents"),
        threads=1,
    ),
    "idm": TrainingCommand(
        InverseDynamicsTraining,
        RECORDINGS,
        "model",
        "Trains an inverse dynamics model on DATA/train and evaluates it on DATA/validation; resumes a stopped "
        "training. Event k of a recording must lead INTO frame k.",
        "--data work/assets/recordings --out runs/idm --architecture vpt --minutes 30",
        _add_probe,
    ),
    "world-model": TrainingCommand(
        WorldModelTraining,
        CODES,
        "model",
        "Trains an autoregressive world model on tokenized recordings; resumes a stopped training.",
        "--data work/assets/tokens --out runs/world_model --minutes 60",
        threads=2,
    ),
    "flow": TrainingCommand(
        FlowTraining,
        CODES,
        "model",
        "Trains a flow world model on encoded recordings; resumes a stopped training.",
        "--data work/assets/latents --out runs/flow --minutes 60",
        threads=2,
    ),
}
