"""The needs of a run, resolved once before its start: plug-ins, paths, the shape of a frame, and sizes in bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rlir_ray.config import Config, RewardConfig, TermConfig, require
from rlir_ray.data.digests import term_paths, used_models
from rlir_ray.data.prompts import heldout_bytes, reads_recorded
from rlir_ray.data.recordings import open_recordings, split_path
from rlir_ray.families import action_space, family_of, group_bytes
from rlir_ray.idm.base import space_of
from rlir_ray.models.compatibility import read_settings
from rlir_ray.registry import any_declares, load
from rlir_ray.spaces.layouts import check_space
from rlir_ray.spaces.space import ActionSpace
from rlir_ray.trajectory import FrameShape


@dataclass(frozen=True, kw_only=True, slots=True)
class ResolvedRun:
    """A configuration whose plug-ins and checkpoints exist and fit each other, with the sizes that follow from them."""

    config: Config
    """The configuration, with absolute paths and the names of all compared fields."""
    models: dict[str, Path]
    """Folder of each checkpoint that the run opens, by its key of `models`."""
    frame_shape: FrameShape
    """Shape of an encoded frame."""
    group_bytes: int
    """Most bytes of a group in flight: its training columns and its encoded video."""
    weight_bytes: int
    """Most bytes of one version of the policy's weights, in float32."""
    heldout_bytes: int
    """Bytes of the held-out clips."""
    space: ActionSpace
    """The action space of the policy."""


def resolve(config: Config) -> ResolvedRun:
    """Resolve a configuration. Read the settings of all checkpoints, but no weights; `run/preflight.py` checks those.

    Raises:
        ValueError: a plug-in cannot be imported or lacks a method, a folder is missing, recordings cannot be used, or
            policy and codec differ in family, vocabulary, frame size, or number of tokens or latents.
    """
    check_plugins(config)
    check_recorded(config)
    config = absolute_paths(config)
    family = family_of(config)
    frame_shape = family.check_world(config)
    models = used_models(config)
    space = action_space(config)
    config = with_field_names(config, space)
    check_idm_spaces(models, space)
    # Double the size of the files, which may hold half precision.
    weight_bytes = 2 * sum(path.stat().st_size for path in models["policy"].glob("*.safetensors"))
    return ResolvedRun(
        config=config,
        models=models,
        frame_shape=frame_shape,
        group_bytes=group_bytes(config, frame_shape),
        weight_bytes=weight_bytes,
        heldout_bytes=heldout_bytes(config),
        space=space,
    )


def with_field_names(config: Config, space: ActionSpace) -> Config:
    """Return a configuration that names the compared fields; an empty world.groups means all fields of the space.

    Raises:
        ValueError: world.groups names a field that the space does not have.
    """
    names = config.world.groups or space.names
    unknown = [name for name in names if name not in space.names]
    require(
        not unknown,
        "world.groups",
        "must name fields of the policy's action space",
        ",".join(unknown),
        f"choose some of {', '.join(space.names)}, or set world.groups=[] for all",
    )
    return dataclasses.replace(config, world=dataclasses.replace(config.world, groups=names))


def check_idm_spaces(models: Mapping[str, Path], space: ActionSpace) -> None:
    """Check that the inverse dynamics models read the policy's action space.

    Args:
        models: key of `models` -> folder.
        space: of the policy.

    Raises:
        ValueError: a model reads other fields; the message describes each difference.
    """
    for name in ("reward_idm", "judge_idm"):
        if name in models:
            held = space_of(read_settings(models[name], "config.json", f"models.{name}"))
            check_space(space, held, "the policy", f"models.{name}")


def check_plugins(config: Config) -> None:
    """Check that the configured plug-ins can be imported and have the methods that their axes need.

    Raises:
        ValueError: a plug-in cannot be imported or lacks a method.
    """
    for axis, name in (
        ("families", config.policy.family),
        *(("rewards", name) for name in config.reward.local_names),
        ("objectives", config.train.objective),
        ("sources", config.prompts.source),
    ):
        load(axis, name)


def check_reward_idm(config: Config) -> None:
    """Check that the configured reward has the inverse dynamics model that it reads.

    Raises:
        ValueError: the reward reads one, and models.reward_idm names none.
    """
    reward = config.reward
    require(
        bool(config.models.reward_idm) or not any_declares("rewards", reward.local_names, "reads_idm"),
        "models.reward_idm",
        f"must name a folder with {reward.described}",
        "",
        "set models.reward_idm=PATH, or use a reward of your own (reward.name=package.module:Class, make_reward)",
    )


def check_recorded(config: Config) -> None:
    """Check that a reward that compares with the recorded future has prompts with recorded actions.

    Raises:
        ValueError: the prompts have other actions than their recordings.
    """
    require(
        config.prompts.actions == "recorded" or not reads_recorded(config),
        "prompts.actions",
        f"must be recorded with {config.reward.described}, which compares with the recorded future",
        config.prompts.actions,
        "set prompts.actions=recorded or leave that term out",
    )


def absolute_paths(config: Config) -> Config:
    """Make the paths of checkpoints and data absolute, because Ray Train's workers have another working directory.

    Keep `asset:` paths: every node resolves them in its own package.

    Raises:
        ValueError: a folder is missing, or a folder of recordings has no usable recording.
    """
    models = {
        name: str(folder.absolute())
        for name, folder in used_models(config).items()
        if not getattr(config.models, name).startswith("asset:")
    }
    prompts = config.prompts
    for path in (prompts.path, prompts.heldout_path) if prompts.source == "recordings" else ():
        source = open_recordings(path, config.data.camera)
        if config.data.strict and source.skipped:
            raise ValueError(source.skipped[0])
    return dataclasses.replace(
        config,
        models=dataclasses.replace(config.models, **models),
        prompts=dataclasses.replace(
            prompts, path=_absolute(prompts.path), heldout_path=_absolute(prompts.heldout_path)
        ),
        reward=_with_absolute_terms(config.reward),
    )


def _with_absolute_terms(reward: RewardConfig) -> RewardConfig:
    """Make the paths in the terms' arguments absolute, except of terms that only another environment can import."""
    terms = tuple(
        term if term.runtime_env else dataclasses.replace(term, args=_absolute_args(term)) for term in reward.terms
    )
    return dataclasses.replace(reward, terms=terms, args={} if terms else _absolute_args(reward.all_terms[0]))


def _absolute_args(term: TermConfig) -> dict[str, object]:
    return {**term.args, **{name: str(path.absolute()) for name, path in term_paths(term).items()}}


def _absolute(path: str) -> str:
    """Return an absolute path of recordings, with its split."""
    if not path:
        return ""
    place, split = split_path(path)
    return f"{place.absolute()}#{split}" if split else str(place.absolute())
