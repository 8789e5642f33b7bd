"""The command of all trainings: `python -m rlir_ray pretrain MODEL`.

Heavy libraries are imported after the arguments are parsed, so that --help is instant.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rlir_ray.pretrain.arguments import Chosen, add_reading, add_settings, build_parser, repeat_reading, take_settings
from rlir_ray.pretrain.settings import (
    AutoencoderTraining,
    CompressiveTokenizerTraining,
    FlowTraining,
    InverseDynamicsTraining,
    PreferenceTraining,
    TokenizerTraining,
    WorldModelTraining,
)
from rlir_ray.run.environment import python_command
from rlir_ray.run.progress import log_to_stderr

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

logger = logging.getLogger(__name__)

RECORDINGS = "recordings, or a folder with train/ and validation/"
CODES = "folder with train.npz and validation.npz"


@dataclass(frozen=True)
class TrainingCommand:
    """Arguments of one model's training.

    Args:
        settings: a dataclass; `run_command` in the module of the model takes an instance.
        data, out: help texts of the input and of the folder of the result.
        description, example: texts of --help.
        following: returns the command that usually follows, after `python -m rlir_ray`, from the arguments.
        add_options: adds the options that only this model has.
        threads: default number of torch threads; None: `settings` has the number.
        module: module of `rlir_ray.pretrain` with `run_command`; empty: that of the model's name.
        forms: values of --form that have settings of their own -> their command.
        source: name of the input's option.
    """

    settings: type[DataclassInstance]
    data: str
    out: str
    description: str
    example: str
    following: Callable[[Chosen], str]
    add_options: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    threads: int | None = None
    module: str = ""
    forms: Mapping[str, TrainingCommand] = field(default_factory=dict)
    source: str = "data"


def main(model: str, argv: Sequence[str] | None = None) -> None:
    """Run `python -m rlir_ray pretrain MODEL`; MODEL is a key of `COMMANDS`."""
    command = _of_form(COMMANDS[model], argv)
    chosen = vars(_parser(model, command).parse_args(argv))
    following = command.following(chosen)
    settings = take_settings(chosen, command.settings)
    log_to_stderr()
    if command.threads:
        import torch

        torch.set_num_threads(chosen["threads"])
    module = command.module or model.replace("-", "_")
    importlib.import_module(f"rlir_ray.pretrain.{module}").run_command(chosen, settings)
    logger.info("next: %s -m rlir_ray %s", python_command(), following)


def _of_form(command: TrainingCommand, argv: Sequence[str] | None) -> TrainingCommand:
    """Return the command of the form that --form names, or the command itself."""
    form_parser = argparse.ArgumentParser(add_help=False)
    form_parser.add_argument("--form", default="")
    return command.forms.get(form_parser.parse_known_args(argv)[0].form, command)


def _parser(model: str, command: TrainingCommand) -> argparse.ArgumentParser:
    parser = build_parser(f"pretrain {model}", command.description, command.example)
    parser.add_argument(f"--{command.source}", type=Path, required=True, help=command.data)
    parser.add_argument("--out", type=Path, required=True, help=f"folder that receives the {command.out}")
    command.add_options(parser)
    if command.threads:
        parser.add_argument("--threads", type=int, default=command.threads, help="torch threads")
    add_settings(parser, command.settings)
    return parser


def _add_codes(option: str) -> Callable[[argparse.ArgumentParser], None]:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(option, type=Path, help="folder that receives train.npz and validation.npz, encoded")
        add_reading(parser)

    return add


def _add_probe(parser: argparse.ArgumentParser) -> None:
    add_reading(parser)
    parser.add_argument(
        "--no-probe",
        action="store_true",
        help="skip the check, half a minute long, that event k leads into frame k",
    )
    parser.add_argument(
        "--tokenizer", type=Path, help="tokenizer of the world; a share of the clips is encoded and decoded with it"
    )


# A new world: collect, tokenizer or autoencoder, the inverse dynamics models of reward and evaluation, audit, world
# model or flow model, train, eval.


def _after_tokenizer(chosen: Chosen) -> str:
    return f"{_after_autoencoder(chosen)} --tokenizer {chosen['out']}"


def _after_autoencoder(chosen: Chosen) -> str:
    out = chosen["out"].parent / "reward_idm"
    return f"pretrain idm {repeat_reading(chosen)} --out {out} --architecture difference"


def _after_idm(chosen: Chosen) -> str:
    reading, out = repeat_reading(chosen), chosen["out"]
    if "judge" in out.name:
        return f"audit {reading} --idm {out.with_name('reward_idm')} --idm {out}"
    # Another design does not make the same errors.
    other = "difference" if chosen["architecture"] == "keypoints" else "keypoints"
    return f"pretrain idm {reading} --out {out.with_name('judge_idm')} --architecture {other}"


def _after_world_model(codec: str, *options: str) -> Callable[[Chosen], str]:
    def following(chosen: Chosen) -> str:
        models = {"policy": chosen["out"]}
        models |= {key: chosen["out"].with_name(key) for key in ("reward_idm", "judge_idm")}
        models["tokenizer"] = chosen["out"].with_name(codec)
        return " ".join(["train --recipe FILE.yaml", *options, *(f"models.{key}={at}" for key, at in models.items())])

    return following


def _after_preference(chosen: Chosen) -> str:
    terms = f"[{{name: inverse}}, {{name: preference, weight: 0.1, args: {{head: {chosen['out']}}}}}]"
    models = shlex.quote(f"models.reward_idm={chosen['idm']}")
    return f"train --recipe FILE.yaml {models} {shlex.quote(f'reward.terms={terms}')}"


_COMPRESSIVE = TrainingCommand(
    CompressiveTokenizerTraining,
    RECORDINGS,
    "tokenizer",
    "Trains a compressive tokenizer on DATA/train and evaluates it on DATA/validation; resumes a stopped training.",
    "--form compressive --data work/assets/recordings --out runs/tokenizer --tokens runs/tokens --minutes 20",
    _after_tokenizer,
    _add_codes("--tokens"),
    threads=1,
    module="compressive_tokenizer",
)
COMMANDS = {
    "tokenizer": TrainingCommand(
        TokenizerTraining,
        RECORDINGS,
        "tokenizer",
        "Trains a frame tokenizer on DATA/train and evaluates it on DATA/validation; resumes a stopped training.",
        "--data work/assets/recordings --out runs/tokenizer --tokens runs/tokens --minutes 20",
        _after_tokenizer,
        _add_codes("--tokens"),
        threads=1,
        forms={"compressive": _COMPRESSIVE},
    ),
    "autoencoder": TrainingCommand(
        AutoencoderTraining,
        RECORDINGS,
        "autoencoder",
        "Trains a frame autoencoder on DATA/train and evaluates it on DATA/validation; resumes a stopped training.",
        "--data work/assets/recordings --out runs/autoencoder --latents runs/latents --minutes 20",
        _after_autoencoder,
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
        _after_idm,
        _add_probe,
    ),
    "world-model": TrainingCommand(
        WorldModelTraining,
        CODES,
        "model",
        "Trains an autoregressive world model on tokenized recordings; resumes a stopped training.",
        "--data work/assets/tokens --out runs/world_model --minutes 60",
        _after_world_model("tokenizer"),
        threads=2,
    ),
    "flow": TrainingCommand(
        FlowTraining,
        CODES,
        "model",
        "Trains a flow world model on encoded recordings; resumes a stopped training.",
        "--data work/assets/latents --out runs/flow --minutes 60",
        _after_world_model("autoencoder", "policy.family=flow"),
        threads=2,
    ),
    "preference": TrainingCommand(
        PreferenceTraining,
        'file of pairs, one JSON object a line: {"first": "a.mp4", "second": "b.mp4", "label": 1, -1 or 0}',
        "preference head",
        "Trains a preference head, which scores clips, on pairs of clips that people compared; resumes a stopped "
        "training.",
        "--pairs pairs.jsonl --idm runs/reward_idm --out runs/preference",
        _after_preference,
        threads=1,
        source="pairs",
    ),
}
