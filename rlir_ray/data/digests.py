"""Digests of checkpoints and recordings, which identify the inputs of a run independently of their paths."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

from rlir_ray.config import Config, TermConfig, asset_path
from rlir_ray.data.recordings import open_recordings
from rlir_ray.registry import any_declares, load

PROMPT_PATHS = ("path", "heldout_path")
SETTINGS = ("config.json", "tokenizer.json", "adapter_config.json")


def checkpoint_digest(place: Path) -> str:
    """Compute a hexadecimal sha256, shortened, over the settings and weights of a checkpoint, a folder or one file."""
    digest = hashlib.sha256()
    names = [*SETTINGS, *sorted(path.name for path in place.glob("*.safetensors"))]
    for path in [place] if place.is_file() else [place / name for name in names]:
        if path.is_file():
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def recordings_digest(path: str, camera: str) -> str:
    """Compute the digest of recordings over names and sizes only, because reading hours of video would take too long.

    Raises:
        ValueError: see `open_recordings`.
    """
    digest = hashlib.sha256()
    for line in open_recordings(path, camera).contents():
        digest.update(f"{line}\n".encode())
    return digest.hexdigest()[:16]


def used_models(config: Config) -> dict[str, Path]:
    """Return key of `models` -> folder for each checkpoint that a run opens.

    The reward IDM is excluded if the reward has no true `reads_idm`.

    Raises:
        ValueError: a folder does not exist, or the reward cannot be imported or has no `score`.
    """
    models = {entry.name: getattr(config.models, entry.name) for entry in dataclasses.fields(config.models)}
    unread = set() if any_declares("rewards", config.reward.local_names, "reads_idm") else {"reward_idm"}
    return {name: asset_path(path) for name, path in models.items() if path and name not in unread}


def term_paths(term: TermConfig) -> dict[str, Path]:
    """Return argument -> path for each given argument of a term that is a path."""
    names = getattr(load("rewards", term.name), "paths", ())
    return {name: Path(str(term.args[name])) for name in names if term.args.get(name)}


def input_digests(config: Config) -> dict[str, str]:
    """Return key -> digest for each checkpoint and source of recordings that a configuration names.

    The key is that of the configuration, or `reward.terms.LABEL.ARGUMENT`.

    Raises:
        ValueError: a checkpoint or source does not exist.
    """
    found = {f"models.{name}": checkpoint_digest(folder) for name, folder in used_models(config).items()}
    for label, term in config.reward.labelled_terms.items():
        if not term.runtime_env:
            found |= {
                f"reward.terms.{label}.{name}": checkpoint_digest(path) for name, path in term_paths(term).items()
            }
    if config.prompts.source == "recordings":
        found |= {
            f"prompts.{key}": recordings_digest(getattr(config.prompts, key), config.data.camera)
            for key in PROMPT_PATHS
        }
    return found
