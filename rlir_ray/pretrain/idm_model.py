"""The model that a training of an inverse dynamics model starts from, and the fields that it learns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from rlir_ray.idm.base import load_inverse_dynamics
from rlir_ray.idm.model import DEFAULT_SIZES, InverseDynamicsModel, NetworkSizes
from rlir_ray.pretrain.settings import InverseDynamicsTraining
from rlir_ray.registry import load
from rlir_ray.spaces.layouts import check_space
from rlir_ray.spaces.space import ActionSpace


def build_model(
    architecture: str,
    space: ActionSpace,
    height: int,
    width: int,
    seed: int,
    sizes: NetworkSizes = DEFAULT_SIZES,
) -> InverseDynamicsModel:
    """Build a small model with random weights; see `InverseDynamicsModel.small`.

    Raises:
        ValueError: the architecture is unknown or cannot be trained here, or the sizes do not fit each other.
    """
    member = load("idms", architecture)
    if not issubclass(member, InverseDynamicsModel):
        raise ValueError(
            f"--architecture must name a class that this command can train, got {architecture}; derive the class from "
            "rlir_ray.idm.model.InverseDynamicsModel, or train it by a program of your own"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: InverseDynamicsModel = member.small(space, height, width, sizes)
    return model


def initial_model(
    settings: InverseDynamicsTraining, space: ActionSpace, height: int, width: int
) -> InverseDynamicsModel:
    """Return a new model, or the model in the folder `settings.init`.

    Raises:
        ValueError: the folder `settings.init` holds no inverse dynamics model, or one of another kind or space.
    """
    if not settings.init:
        sizes = NetworkSizes(
            hidden_size=settings.hidden_size,
            num_layers=settings.num_layers,
            num_heads=settings.num_heads,
            convolution_width=settings.convolution_width,
        )
        return build_model(settings.architecture, space, height, width, settings.seed, sizes)
    if not (Path(settings.init) / "config.json").is_file():
        raise ValueError(f"--init must be the folder of an inverse dynamics model, got {settings.init}; check it")
    model = load_inverse_dynamics(settings.init)
    if not isinstance(model, InverseDynamicsModel):
        raise ValueError(
            f"--init must hold a model that this command can train, got a {type(model).__name__} in {settings.init}; "
            "derive its class from rlir_ray.idm.model.InverseDynamicsModel"
        )
    check_space(model.space, space, f"the model in {settings.init}", "the recordings")
    return model


def chosen_fields(names: Sequence[str], readable: Sequence[str]) -> tuple[str, ...]:
    """Return the fields that `--groups` names; without names, all fields that a model can read.

    Raises:
        ValueError: the model cannot read a field of a name.
    """
    if unknown := [name for name in names if name not in readable]:
        raise ValueError(
            f"--groups must be of {', '.join(readable)}, got {','.join(unknown)}; name the fields that the world uses"
        )
    return tuple(names) or tuple(readable)
