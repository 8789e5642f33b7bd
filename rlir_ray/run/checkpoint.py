"""Checkpoints: folders that appear complete or not at all, verified by a manifest when they are read. No Ray here.

`checkpoints/step_00000012/` holds learner.safetensors, a file for each group that was ready but not trained,
driver.json, and manifest.json with the size and the digest of every other file. `checkpoints/latest` names the newest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rlir_ray.data.files import Json, give_usual_mode, replace_folder, write_json, write_text
from rlir_ray.run.folder import CHECKPOINTS, cannot_resume, step_folders
from rlir_ray.trajectory import FlowRecord, TokenRecord, TrajectoryGroup

FORMAT = 1
MANIFEST, LATEST, LEARNER, DRIVER = "manifest.json", "latest", "learner.safetensors", "driver.json"
CHUNK_BYTES = 1 << 22
RECORDS = {kind.__name__: kind for kind in (TokenRecord, FlowRecord)}

Files = dict[str, Json]
"""File name -> ``{"bytes": size, "blake2b": digest}`` for each file of a checkpoint."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A complete checkpoint."""

    path: Path
    step: int
    """Optimiser steps done."""
    policy_version: int


def step_name(step: int) -> str:
    """Return the name of a checkpoint's folder."""
    return f"step_{step:08d}"


def partial_folder(run: Path, step: int) -> Path:
    """Create an empty folder for the files of a checkpoint; `seal` turns the folder into a checkpoint.

    Raises:
        ValueError: the folder cannot be created.
    """
    partial = run / CHECKPOINTS / f".{step_name(step)}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    except OSError as error:
        raise ValueError(f"could not save {partial}: {error.strerror}; free some space or set run.dir") from error
    return partial


def describe_files(paths: Iterable[Path]) -> Files:
    """Compute the size and digest of each file, by name."""
    return {path.name: {"bytes": path.stat().st_size, "blake2b": _digest(path)} for path in paths}


def _digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def seal(partial: Path, files: Files, *, step: int, policy_version: int, keep: int) -> Checkpoint:
    """Turn a folder with all its files into a checkpoint, point `latest` to it, and remove older checkpoints.

    Args:
        partial: the folder, from `partial_folder`.
        files: the files in the folder, from `describe_files`.
        step: the number of optimiser steps done.
        policy_version: the version of the policy.
        keep: number of complete checkpoints to keep, this one included. Checkpoints of later steps are removed, because
            the run went back behind them.

    Raises:
        ValueError: the disk is full, or a file is missing.
    """
    root, final = partial.parent, partial.with_name(step_name(step))
    write_json(partial / MANIFEST, {"format": FORMAT, "step": step, "policy_version": policy_version, "files": files})
    try:
        for path in (*(partial / name for name in files), partial / MANIFEST, partial):
            _sync(path)
        replace_folder(partial, final)
        _sync(root)
    except OSError as error:
        raise ValueError(f"could not save {final}: {error.strerror}; free some space or set run.dir") from error
    write_text(root / LATEST, final.name + "\n")
    _sync(root)
    _remove_others(root.parent, step, keep)
    return Checkpoint(path=final, step=step, policy_version=policy_version)


def _sync(path: Path) -> None:
    """Flush a file to the disk: a later rename must not reach the disk before the file's content."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove_others(run: Path, step: int, keep: int) -> None:
    known = step_folders(run)
    # Do not count unreadable checkpoints, but keep them until enough newer ones are complete: the disk may be offline.
    complete = [number for number in sorted(known) if number <= step and _looks_complete(known[number])]
    oldest = complete[-keep] if len(complete) >= keep else 0
    for number, folder in known.items():
        if not oldest <= number <= step:
            shutil.rmtree(folder, ignore_errors=True)


def _looks_complete(folder: Path) -> bool:
    try:
        check(folder, digests=False)
    except ValueError:
        return False
    return True


def newest(run: Path, report: Callable[[str], None]) -> Checkpoint | None:
    """Find the newest complete checkpoint of a run; None: the run has no checkpoint.

    Args:
        run: the run's folder.
        report: receives a line for each skipped checkpoint.

    Raises:
        ValueError: the run has checkpoints, but none can be read.
    """
    errors: list[ValueError] = []
    for _, folder in sorted(step_folders(run).items(), reverse=True):
        if errors:
            report(f"skipped a checkpoint: {errors[-1]}; the checkpoint before is used")
        try:
            return check(folder)
        except ValueError as error:
            errors.append(error)
    if errors:
        raise cannot_resume(run, f"{len(errors)} unreadable ones, the newest because {errors[0]}")
    return None


def check(folder: Path, *, digests: bool = True) -> Checkpoint:
    """Check by its manifest that a checkpoint is complete.

    Args:
        folder: the checkpoint's folder.
        digests: whether to read every byte; false: check only the manifest and the sizes.

    Raises:
        ValueError: the checkpoint is not complete; the message is the first error, in one line.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        found, files = manifest["format"], manifest["files"]
        if found != FORMAT:
            raise ValueError(f"{folder} must be of format {FORMAT}, got {found} (resume with its own version)")
        for name, expected in files.items():
            _check_file(folder / name, expected, digests)
        return Checkpoint(path=folder, step=int(manifest["step"]), policy_version=int(manifest["policy_version"]))
    except (OSError, KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{folder} must hold a readable {MANIFEST} and its files, got {type(error).__name__}: {error}"
        ) from None


def _check_file(path: Path, expected: Json, digest: bool) -> None:
    size = path.stat().st_size if path.is_file() else -1
    if size != expected["bytes"]:
        got = "none" if size < 0 else f"{size} bytes"
        raise ValueError(f"{path} must be {expected['bytes']} bytes, got {got}")
    if digest and _digest(path) != expected["blake2b"]:
        raise ValueError(f"{path} must have the digest of its manifest, got another")


# ---------------------------------------------------------------------------------------------------------------------
# Contents of a checkpoint


class ArrayFile(Mapping[str, npt.NDArray[np.generic]]):
    """The arrays of a safetensors file, each read on demand."""

    def __init__(self, path: Path) -> None:
        from safetensors import safe_open

        self._file = safe_open(str(path), framework="np")
        self._names = list(self._file.keys())

    def __getitem__(self, name: str) -> npt.NDArray[np.generic]:
        if name not in self._names:
            raise KeyError(name)
        array: npt.NDArray[np.generic] = self._file.get_tensor(name)
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def save_arrays(path: Path, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
    """Write a safetensors file.

    Raises:
        ValueError: the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        save_file(dict(arrays), path)
        give_usual_mode(path.parent)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"could not save {path}: {error}; free some space or set run.dir") from error


def group_file(group_id: int) -> str:
    """Return the name of a group's file."""
    return f"group_{group_id:08d}.npz"


def save_group(folder: Path, group: TrajectoryGroup) -> None:
    """Write a group's columns.

    Raises:
        ValueError: the disk is full.
    """
    plain = {name: getattr(group, name) for name in ("prompt_id", "group_id", "seed", "policy_version")}
    columns: dict[str, npt.NDArray[np.generic] | None] = {
        "loss_mask": group.loss_mask,
        "behavior_logprobs": group.behavior_logprobs,
        "recorded": group.recorded,
    }
    columns |= {f"record.{entry.name}": getattr(group.record, entry.name) for entry in dataclasses.fields(group.record)}
    arrays = {name: value for name, value in columns.items() if value is not None}
    path = folder / group_file(group.group_id)
    try:
        np.savez(path, about=np.array(json.dumps({**plain, "record": type(group.record).__name__})), **arrays)  # type: ignore[arg-type]  # no column is named allow_pickle
    except OSError as error:
        raise ValueError(f"could not save {path}: {error.strerror}; free some space or set run.dir") from error


def load_group(path: Path) -> TrajectoryGroup:
    """Read a group that `save_group` has written."""
    with np.load(path, allow_pickle=False) as arrays:
        about = json.loads(str(arrays["about"]))
        record = {name.removeprefix("record."): arrays[name] for name in arrays if name.startswith("record.")}
        kind = RECORDS[about.pop("record")]
        return TrajectoryGroup(
            **about,
            record=kind(**record),
            loss_mask=arrays["loss_mask"],
            behavior_logprobs=arrays.get("behavior_logprobs"),
            recorded=arrays.get("recorded"),
        )
