"""The address of a running run, from a file in its folder or by its name in the Ray of RAY_ADDRESS. No Ray here."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from rlir_ray.config import RunConfig
from rlir_ray.run.folder import job_home

# The run's folder holds this file only while the run trains.
ADDRESS_FILE = "ray.json"
AUTH_VARIABLE = "RAY_AUTH_MODE"


def write_address(folder: Path, address: str, actor: str) -> None:
    """Write the run's address, readable by this user alone, because the address gives access to its Ray."""
    content = {"address": address, "auth_mode": os.environ.get(AUTH_VARIABLE, ""), "actor": actor}
    path = folder / ADDRESS_FILE
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump(content, file)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunAddress:
    """The address of a running run, as another process finds it."""

    address: str
    """Address of the run's Ray."""
    auth_mode: str
    """RAY_AUTH_MODE of the run; empty: unknown, so that the caller's own environment applies."""
    actor: str
    """Name of the run's control actor."""
    not_running: str
    """Error message if the run does not answer at the address."""


def _folders(run: str) -> list[Path]:
    """Return the folders of runs that a name or a path may mean."""
    below = RunConfig().dir
    folders = (Path(below) / run, job_home() / below / run, Path(run))
    return [each for each in folders if run and (each / "config.json").is_file()]


def find_folder(run: str) -> Path:
    """Find the folder of a run by its name or its path.

    Raises:
        ValueError: no run has this name or path.
    """
    if not (known := _folders(run)):
        raise ValueError(f"RUN must name a run, got {run!r}; give a name below {RunConfig().dir}/ or a run's folder")
    return known[0]


def find_run(run: str) -> RunAddress:
    """Find a running run: by its folder, or on another node than the driver's by its name.

    Raises:
        ValueError: there is no such run, or the run does not train.
    """
    below, known = RunConfig().dir, _folders(run)
    # A run that has ended must not hide a running run of the same name.
    folder = next((each for each in known if (each / ADDRESS_FILE).is_file()), None)
    if folder is None:
        if run and (address := os.environ.get("RAY_ADDRESS", "")):
            # An http address is the dashboard's, for `ray job submit`: use the Ray of this machine.
            address = "auto" if address.startswith("http") else address
            not_running = f"--run must name a run that trains, got {run!r}, which no run in the Ray at {address} has"
            return RunAddress(address=address, auth_mode="", actor=run, not_running=f"{not_running}; give its run.name")
        if not known:
            raise ValueError(
                f"--run must name a run, got {run!r}; give a name below {below}/ or a run's folder, or set RAY_ADDRESS "
                "to the Ray that it trains in"
            )
        folder = known[0]
    state = "has saved its policy and ended" if (folder / "policy").exists() else "is starting or has ended"
    not_running = (
        f"--run must name a run that trains, got {folder}, which {state}; scale it between its first and last step"
    )
    try:
        content = json.loads((folder / ADDRESS_FILE).read_text(encoding="utf-8"))
        return RunAddress(**content, not_running=not_running)
    except (OSError, TypeError, UnicodeDecodeError, json.JSONDecodeError):
        raise ValueError(not_running) from None
