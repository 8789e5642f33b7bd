"""A run's folder: the resolved config, versions and seed, the step log, and the run's results."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rlir_ray.config import Config
from rlir_ray.config.old_keys import DROPPED, tell_dropped, upgraded
from rlir_ray.data.digests import input_digests
from rlir_ray.data.files import number, strict_json, write_json, write_text
from rlir_ray.extras import has_library
from rlir_ray.run.environment import stand_in, versions

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import FileWriter

# Folder of the checkpoints in a run's folder.
CHECKPOINTS = "checkpoints"
# Name of a checkpoint's folder; a half-written checkpoint has another name.
STEP_FOLDER = re.compile(r"step_(\d{8})")
# File with the digests of the checkpoints and recordings that the run uses.
CONTENT = "content.json"
# Ray sets this variable in the driver of a submitted job.
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def step_folders(run: Path) -> dict[int, Path]:
    """Return the folders of a run's checkpoints by step, readable or not."""
    root = run / CHECKPOINTS
    matches = [(STEP_FOLDER.fullmatch(path.name), path) for path in root.iterdir()] if root.is_dir() else []
    return {int(match[1]): path for match, path in matches if match}


def cannot_resume(run: Path, got: str) -> ValueError:
    """Return the error for a run that cannot be resumed and must not be overwritten."""
    return ValueError(
        f"run.name={run.name} must be new or hold a checkpoint that can be read, got {got}; move {run} away or choose "
        "another run.name"
    )


def runs_folder(run_dir: str) -> Path:
    """Return the absolute path of the folder of all runs.

    A submitted job works in a copy of the checkout that Ray deletes after the job. Therefore a relative path starts at
    `job_home` in a job.

    Raises:
        ValueError: a submitted job's user has no home folder.
    """
    if JOB_VARIABLE in os.environ and not Path(run_dir).is_absolute() and Path.home() == stand_in():
        raise ValueError(
            f"run.dir must be an absolute path in a job whose user has no home folder, got {run_dir!r}; set run.dir to "
            "a folder that is kept"
        )
    return (job_home() if JOB_VARIABLE in os.environ else Path.cwd()) / run_dir


def job_home() -> Path:
    """Return the folder at which relative paths start in submitted jobs."""
    return Path.home() / "rlir_ray"


# Keys that may change when a run resumes: they set where and how long a run trains, not what it computes.
RESUME_OVERRIDABLE = frozenset(
    ["object_store_budget_bytes", "train.num_steps", "train.max_minutes", "train.wait_timeout_s"]
    + ["train.max_failed_fraction", "train.max_skipped_updates"]
    + [f"rollout.{key}" for key in ("num_actors", "num_cpus", "num_gpus", "resources", "num_threads", "timeout_s")]
    + [f"vllm.{key}" for key in ("kv_cache_bytes", "gpu_memory_utilization", "enforce_eager", "max_num_seqs")]
    + [f"reward.{key}" for key in ("address", "audit", "num_replicas", "min_replicas", "max_replicas", "target_queue")]
    + [f"reward.{key}" for key in ("num_cpus", "num_gpus", "resources", "num_threads", "max_frames", "timeout_s")]
    + [f"learner.{key}" for key in ("engine", "num_workers", "zero_stage", "offload_optimizer", "max_restarts")]
    + [f"learner.{key}" for key in ("num_cpus", "use_gpu", "gpu_share", "resources", "num_threads")]
    + [f"learner.{key}" for key in ("decision_budget", "gradient_checkpointing")]
    + [f"weights.{key}" for key in ("transfer", "bucket_bytes")]
)
RESUME_OVERRIDABLE_SECTIONS = ("run.", "checkpoint.", "evaluation.")
PLUGIN_ARGUMENTS = ("args", "objective_args")
LOCK = ".lock"


def resume_overridable(key: str) -> bool:
    """Return whether a run may resume with another value of a configuration key."""
    # Compare two levels only: the keys of a dictionary follow its own key, as in rollout.resources.rollout_node.
    return key.startswith(RESUME_OVERRIDABLE_SECTIONS) or ".".join(key.split(".")[:2]) in RESUME_OVERRIDABLE


class RunFolder:
    """The folder `runs/<name>`: config.yaml, versions.json, content.json, metrics.jsonl, TensorBoard events, results.

    Args:
        config: the configuration, with paths as the user gave them; an empty `run.name` becomes recipe and time.

    Raises:
        ValueError: a run with this name has trained with another config, or has saved its policy but no checkpoint.
    """

    def __init__(self, config: Config) -> None:
        name = config.run.name or f"{config.recipe or 'run'}-{time.strftime('%Y%m%d-%H%M%S')}"
        self.path = runs_folder(config.run.dir) / name
        settings = {key: value for key, value in config.to_dict().items() if key != "run"}
        self.config, self.settings = config, json.loads(json.dumps(settings))
        # Replace a run without any of these: it ended before its first step.
        if any((self.path / name).exists() for name in ("metrics.jsonl", "policy", CHECKPOINTS)):
            self._reject_other()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"run.dir must be writable, got {self.path}: {error.strerror}; set run.dir") from error
        self.has_begun = False
        self._events: FileWriter | None = None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder for this process; the lock ends with the context or the process.

        Raises:
            ValueError: another process trains in the folder.
        """
        with (self.path / LOCK).open("w", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ValueError(
                    f"run.name={self.path.name} must be of a run that has ended, got one that trains in {self.path}; "
                    "wait for it, stop it, or choose another run.name"
                ) from None
            yield

    def begin(self, step: int = 0) -> RunFolder:
        """Start a run, or resume it after a step and remove the results of later steps.

        Raises:
            ValueError: the run is to start from the beginning, but the folder holds a policy or checkpoints.
        """
        if not step:
            self._reject_loss()
            # Remove half-written checkpoints; a complete one would have been rejected above.
            shutil.rmtree(self.path / CHECKPOINTS, ignore_errors=True)
        self.cut(step)
        write_json(self.path / "config.json", self.settings)
        write_json(self.path / CONTENT, self.content)
        write_json(self.path / "versions.json", versions())
        self._write_yaml(self.settings)
        self.has_begun = True
        return self

    def metrics(self, step: int) -> list[dict[str, float]]:
        """Read the logged metrics of the steps up to this one."""
        return [metrics for metrics in read_metrics(self.path) if metrics["step"] <= step]

    def cut(self, step: int) -> None:
        """Remove the steps after this one from metrics.jsonl and TensorBoard."""
        self.close()
        path, kept = self.path / "metrics.jsonl", self.metrics(step)
        path.unlink(missing_ok=True)
        shutil.rmtree(self.path / "tensorboard", ignore_errors=True)
        if kept:
            write_text(path, "".join(strict_json(metrics) + "\n" for metrics in kept))
        for metrics in kept:
            self._log_events(metrics)

    @property
    def name(self) -> str:
        return self.path.name

    @functools.cached_property
    def content(self) -> dict[str, str]:
        """Return the digests of the checkpoints and recordings that the run uses."""
        return input_digests(self.config)

    def _reject_other(self) -> None:
        """Reject a folder of a run with another configuration."""
        before = _flat(upgraded(json.loads((self.path / "config.json").read_text(encoding="utf-8"))))
        now = _flat(self.settings)
        for key in DROPPED.keys() & before.keys():
            tell_dropped(key, before[key], "the run resumes with it")
        stored = read_content(self.path)
        # Compare files by content, because their paths may change. Earlier versions stored only absolute paths.
        same = {key for key in now if key in before and _path(before[key]) == _path(now[key])} - stored.keys()
        same |= {key for key, content in stored.items() if self.content.get(key) == content}
        if not now["models.reward_idm"]:
            # No reward of this run reads the model. With `make_reward` an earlier version stored its path all the same.
            same.add("models.reward_idm")
        # Ignore keys that only one of the two configurations has: they belong to another version.
        changed = [key for key in now if key in before and key not in same and not resume_overridable(key)]
        # Files of terms have keys of their own, because all terms are one key of the configuration.
        changed += sorted(key for key in stored.keys() & self.content.keys() - now.keys() - same)
        if changed:
            raise ValueError(
                f"run.name={self.path.name} exists with another config ({changed[0]} differs); choose another run.name"
            )
        if not step_folders(self.path):
            self._reject_loss()

    def _reject_loss(self) -> None:
        """Reject a folder whose checkpoints or policy a start from the beginning would overwrite."""
        if folders := step_folders(self.path):
            raise cannot_resume(self.path, f"{folders[max(folders)].name}, from which the run does not resume")
        if (self.path / "policy").exists():
            raise cannot_resume(self.path, "a saved policy without a checkpoint")

    def _write_yaml(self, settings: dict[str, object]) -> None:
        from omegaconf import OmegaConf

        write_text(self.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(settings)))

    def log_step(self, metrics: dict[str, float]) -> None:
        """Append one step to metrics.jsonl and to TensorBoard; `metrics["step"]` numbers it.

        Raises:
            ValueError: the disk is full.
        """
        path = self.path / "metrics.jsonl"
        try:
            with path.open("a", encoding="utf-8") as lines:
                lines.write(strict_json(metrics) + "\n")
        except OSError as error:
            raise ValueError(f"could not save {path}: {error.strerror}; free some space or set run.dir") from error
        self._log_events(metrics)

    def _log_events(self, metrics: dict[str, float]) -> None:
        if not has_library("tensorboard"):
            return
        # Write one event per step: one per metric would take as long as the rest of the driver's work.
        from tensorboard.compat.proto.summary_pb2 import Summary

        if self._events is None:
            from torch.utils.tensorboard.writer import FileWriter

            self._events = FileWriter(str(self.path / "tensorboard"))
        values = [Summary.Value(tag=key, simple_value=value) for key, value in metrics.items()]
        self._events.add_summary(Summary(value=values), int(metrics["step"]))

    def close(self) -> None:
        if self._events is not None:
            self._events.close()
            self._events = None


def read_metrics(run: Path) -> list[dict[str, float]]:
    """Read the steps in a run's metrics.jsonl; skip lines that were cut off when their writer was killed."""
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    return [metrics for metrics in map(_parsed, lines) if metrics]


def _parsed(line: str) -> dict[str, float] | None:
    try:
        metrics = json.loads(line)
    except json.JSONDecodeError:
        return None
    is_step = isinstance(metrics, dict) and "step" in metrics
    return {key: number(value) for key, value in metrics.items()} if is_step else None


def read_content(run: Path) -> dict[str, str]:
    """Return configuration key -> digest of the files that it names; empty for a run of an earlier version."""
    path = run / CONTENT
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def judges_by_reward(run: Path) -> bool:
    """Return whether judge and reward of a run use the same inverse dynamics model, also under different paths."""
    stored: dict[str, object] = {**read_content(run)}
    path = run / "config.json"
    if not stored and path.is_file():
        stored = _flat(json.loads(path.read_text(encoding="utf-8")))
    judge = stored.get("models.judge_idm")
    return judge is not None and judge == stored.get("models.reward_idm")


def _path(value: object) -> object:
    """Return the absolute path of a text, for comparison; return other values unchanged."""
    return os.path.abspath(value) if isinstance(value, str) and value else value


def _flat(settings: dict[str, object], prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in settings.items():
        # Compare the arguments of a plug-in as one value: single arguments may be missing on one side.
        if isinstance(value, dict) and key not in PLUGIN_ARGUMENTS:
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found
