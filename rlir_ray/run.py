"""A run's folder: the resolved config, versions and seed, the step log, and what the run leaves behind.

Files are written under a temporary name and renamed, so that nothing half-written is taken for whole.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from rlir_ray.config import Config

# Set by Ray in the driver of a submitted job.
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"

TESTED_PACKAGES = (
    "torch", "ray", "deepspeed", "transformers", "diffusers", "numpy", "omegaconf", "safetensors", "av", "vizdoom",
)  # fmt: skip


def write_json(path: Path, content: Any) -> None:
    """Writes JSON atomically; raises as `write_text`."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file atomically.

    Raises:
        ValueError: the disk is full or not writable.
    """
    temporary = path.with_name(path.name + ".part")
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ValueError(
            f"could not save {path}: {error.strerror}; free some space or choose another folder"
        ) from error


def replace_folder(temporary: Path, final: Path) -> None:
    """Puts a finished folder in the place of an older one of the same name."""
    old = final.with_name(final.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    temporary.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def runs_folder(run_dir: str) -> Path:
    """Where runs are kept, absolute.

    A submitted job works in a copy of the checkout, which Ray removes with the job: there a relative folder is below
    the home folder.
    """
    return (job_home() if JOB_VARIABLE in os.environ else Path.cwd()) / run_dir


def job_home() -> Path:
    """What the relative folders of submitted jobs are below."""
    return Path.home() / "rlir_ray"


def versions() -> dict[str, str]:
    """What the run was made with: packages, Python, machine, commit."""
    found = {"python": platform.python_version(), "machine": f"{platform.machine()}, {os.cpu_count()} CPUs"}
    for package in TESTED_PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    try:
        here = Path(__file__).parent
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10
        )
        found["commit"] = commit.stdout.strip() or "unknown"
    except (OSError, subprocess.TimeoutExpired):
        found["commit"] = "unknown"
    return found


class RunFolder:
    """`runs/<name>`: config.yaml, versions.json, metrics.jsonl, TensorBoard events, and what the run adds.

    Args:
        config: resolved; an empty `run.name` becomes recipe and time.

    Raises:
        ValueError: the name belongs to a run that has trained with another config, or has saved its policy.
    """

    def __init__(self, config: Config) -> None:
        name = config.run.name or f"{config.recipe or 'run'}-{time.strftime('%Y%m%d-%H%M%S')}"
        self.path = runs_folder(config.run.dir) / name
        settings = {key: value for key, value in config.to_dict().items() if key != "run"}
        settings_json = json.loads(json.dumps(settings))
        # What ended before its first step left nothing to lose.
        if any((self.path / name).exists() for name in ("metrics.jsonl", "policy")):
            self._refuse_other(settings_json)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"run.dir must be writable, got {self.path}: {error.strerror}; set run.dir") from error
        self.settings, self.has_begun = settings_json, False
        self._events: Any = None

    def begin(self) -> RunFolder:
        """Takes the folder: what an earlier run without a policy left in it goes. Nobody else may train in it now."""
        (self.path / "metrics.jsonl").unlink(missing_ok=True)
        shutil.rmtree(self.path / "tensorboard", ignore_errors=True)
        write_json(self.path / "config.json", self.settings)
        write_json(self.path / "versions.json", versions())
        self._write_yaml(self.settings)
        self.has_begun = True
        return self

    @property
    def name(self) -> str:
        return self.path.name

    def _refuse_other(self, settings: dict[str, Any]) -> None:
        before = json.loads((self.path / "config.json").read_text())
        changed = [key for key, value in _flat(settings).items() if _flat(before).get(key) != value]
        if changed:
            raise ValueError(
                f"run.name={self.path.name} exists with another config ({changed[0]} differs); choose another run.name"
            )
        if (self.path / "policy").exists():
            raise ValueError(
                f"run.name={self.path.name} must be new, got a run that has saved its policy; choose another run.name "
                f"or remove {self.path}"
            )

    def _write_yaml(self, settings: dict[str, Any]) -> None:
        from omegaconf import OmegaConf

        write_text(self.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(settings)))

    def log_step(self, metrics: dict[str, float]) -> None:
        """Appends one step to metrics.jsonl and to TensorBoard; `metrics["step"]` numbers it.

        Raises:
            ValueError: the disk is full.
        """
        path = self.path / "metrics.jsonl"
        try:
            with path.open("a") as lines:
                lines.write(json.dumps(metrics) + "\n")
        except OSError as error:
            raise ValueError(f"could not save {path}: {error.strerror}; free some space or set run.dir") from error
        if self._events is None:
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(str(self.path / "tensorboard"))
        for key, value in metrics.items():
            self._events.add_scalar(key, value, int(metrics["step"]))

    def close(self) -> None:
        if self._events is not None:
            self._events.close()
            self._events = None


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found
