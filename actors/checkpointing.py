"""The driver's side of checkpoints: the state that a run resumes from, and the order in which a checkpoint is written.

Learner rank 0 writes the weights, the optimiser's moments and the columns of ready groups. After a resume, the learner
ranks and tasks on the driver's node read these files. The driver itself writes the ledger, floats and the manifest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import ray

from actors.cluster.placement import node_id, on_node
from actors.learner.group import LearnerGroup
from actors.learner.in_flight import ReadyGroup
from actors.rollout.actor import CallReport
from rlir_ray.algorithm.ledger import FILE as LEDGER
from rlir_ray.algorithm.ledger import Ledger
from rlir_ray.algorithm.seeds import prompt_index
from rlir_ray.config import CheckpointConfig, TrainConfig
from rlir_ray.data.files import Json, write_json
from rlir_ray.run.checkpoint import (
    DRIVER,
    Checkpoint,
    describe_files,
    group_file,
    load_group,
    newest,
    partial_folder,
    seal,
)
from rlir_ray.run.folder import read_metrics
from rlir_ray.run.tracing import Span
from rlir_ray.samplers import LogprobDifference
from rlir_ray.trajectory import RewardScores, TrajectoryGroup


@dataclass(kw_only=True, slots=True)
class RunState:
    """The progress of a run."""

    step: int = 0
    """Number of optimiser steps done."""
    trained_s: float = 0.0
    """Seconds of training up to `step`."""
    ledger: Ledger = field(default_factory=Ledger)
    checkpoint: Checkpoint | None = None
    """The checkpoint that the run resumed from; None: the run started from the beginning."""
    metrics: list[dict[str, float]] = field(default_factory=list)
    """The metrics of each step up to `step`."""
    ready: list[Json] = field(default_factory=list)
    """Groups of the checkpoint that were scored but not trained, as JSON."""

    def is_complete(self, train: TrainConfig) -> bool:
        """Return whether a limit of the training is reached."""
        return bool(self.limits(train))

    def limits(self, train: TrainConfig) -> tuple[str, ...]:
        """Return the settings whose limit is reached, each as KEY=VALUE."""
        is_out_of_time = 0 < train.max_minutes * 60 <= self.trained_s and self.step > 0
        reached = {f"train.num_steps={train.num_steps}": self.step >= train.num_steps}
        reached[f"train.max_minutes={train.max_minutes:g}"] = is_out_of_time
        return tuple(limit for limit, is_reached in reached.items() if is_reached)


def describe_limits(train: TrainConfig) -> str:
    """Describe the limits that end the training."""
    steps = f"at most {train.num_steps} steps (train.num_steps)"
    return f"{steps}, at most {train.max_minutes:g} minutes (train.max_minutes)" if train.max_minutes else steps


class Checkpoints:
    """The checkpoints of a run: reads the newest one, writes new ones.

    Args:
        run: the run's folder, on this process's node.
        config: the interval in steps, and the number of checkpoints to keep.
        report: called with a line for each unreadable checkpoint, and before the policy is saved.
    """

    def __init__(self, run: Path, config: CheckpointConfig, report: Callable[[str], None]) -> None:
        self.run, self.config, self.report = run, config, report
        self.latest: Checkpoint | None = None
        self.saved_step = 0
        """The step of the last `save`; 0 before the first save."""

    def read(self) -> RunState:
        """Return the state in the newest complete checkpoint; without a checkpoint return the state of a new run.

        Raises:
            ValueError: the run has checkpoints, but none can be read.
        """
        self.latest = newest(self.run, self.report)
        if self.latest is None:
            return RunState()
        content = json.loads((self.latest.path / DRIVER).read_text(encoding="utf-8"))
        return RunState(
            step=self.latest.step,
            trained_s=content["trained_s"],
            ledger=Ledger.from_json(json.dumps(content["ledger"])),
            checkpoint=self.latest,
            metrics=[metrics for metrics in read_metrics(self.run) if metrics["step"] <= self.latest.step],
            ready=content["ready"],
        )

    def is_due(self, step: int) -> bool:
        """Return whether the configuration asks for a checkpoint after this step."""
        return bool(self.config.every) and step % self.config.every == 0

    def save(self, run: RunState, learner: LearnerGroup, ready: Sequence[ReadyGroup]) -> None:
        """Save the policy, then a checkpoint. In this order a run with its last checkpoint also has its policy.

        Raises:
            ValueError, LearnerLost, TimeoutError: as `write`.
        """
        self.report("saving the policy and a checkpoint")
        learner.save(self.run / "policy")
        self.write(run, learner, ready)
        self.saved_step = run.step

    def write_ledger(self, run: RunState) -> None:
        """Write the state of all groups into the run's folder."""
        write_json(self.run / LEDGER, json.loads(run.ledger.to_json()))

    def write(self, run: RunState, learner: LearnerGroup, ready: Sequence[ReadyGroup]) -> None:
        """Write a checkpoint, unless this step already has one. The other pools keep working meanwhile.

        Raises:
            ValueError: the disk is full.
            LearnerLost: a learner rank failed.
            TimeoutError: the learner ranks did not answer.
        """
        if self.latest is not None and self.latest.step == run.step:
            return
        partial = partial_folder(self.run, run.step)
        files = learner.checkpoint(partial, [group.group_ref for group in ready])
        # Leave out groups whose columns were lost with a node: the resumed run samples them again, like the groups in
        # flight.
        kept = [_to_json(group) for group in ready if group_file(group.group_id) in files]
        ledger = json.loads(run.ledger.to_json())
        write_json(partial / DRIVER, {"trained_s": run.trained_s, "ledger": ledger, "ready": kept})
        files |= describe_files([partial / DRIVER])
        self.latest = seal(partial, files, step=run.step, policy_version=run.step, keep=self.config.keep)
        self.write_ledger(run)


def _to_json(group: ReadyGroup) -> dict[str, object]:
    return {
        "group_id": group.group_id,
        "advantages": group.advantages.tolist(),
        "report": asdict(group.report),
        "scored": asdict(group.scored),
        "scores": group.scores.to_json(),
    }


def check_prompts(run: RunState, seed: int, prompt_ids: Sequence[str]) -> None:
    """Check that the prompts are those that the run started with, by the prompt of the last admitted group.

    Raises:
        ValueError: the prompts differ, so a group id no longer leads to its prompt.
    """
    if not run.ledger.next_group_id:
        return
    last = run.ledger[run.ledger.next_group_id - 1]
    found = prompt_ids[prompt_index(seed, last.group_id, len(prompt_ids))]
    if found != last.prompt_id:
        raise ValueError(
            f"a run resumes with the prompts that it started with, got {found} for group {last.group_id}, which was "
            f"{last.prompt_id}; put the recordings back as they were, or choose another run.name"
        )


def ready_groups(run: RunState, timeout_s: float) -> list[ReadyGroup]:
    """Put the columns of the checkpoint's ready groups into the object store again; return these groups.

    Raises:
        TimeoutError: the groups were not read within `timeout_s`.
    """
    # Checkpoints of earlier versions hold no scores: sample those groups again, like the groups in flight.
    with_scores = [each for each in run.ready if "scores" in each]
    if run.checkpoint is None or not with_scores:
        return []
    # Read the files in a task: no column may pass through the driver.
    load = ray.remote(num_cpus=0, scheduling_strategy=on_node(node_id()))(load_group)
    folder = run.checkpoint.path
    refs = [load.remote(folder / group_file(each["group_id"])) for each in with_scores]
    # Wait until all files are read: a later checkpoint may delete them.
    done, _ = ray.wait(refs, num_returns=len(refs), timeout=timeout_s)
    if len(done) < len(refs):
        raise TimeoutError(
            f"waited {timeout_s:.0f} s for {len(refs)} groups of {folder} ({len(done)} were read); look at the disk, "
            "or raise train.wait_timeout_s"
        )
    return [_from_json(each, ref) for each, ref in zip(with_scores, refs, strict=True)]


def _from_json(content: Json, group_ref: ray.ObjectRef[TrajectoryGroup]) -> ReadyGroup:
    report, difference = content["report"], content["report"]["difference"]
    sizes = {int(group_id): size for group_id, size in report["column_bytes"].items()}
    failures = {int(group_id): cause for group_id, cause in report.get("failures", {}).items()}
    parsed = {
        "span": Span(**report["span"]),
        "column_bytes": sizes,
        "failures": failures,
        "difference": difference and LogprobDifference(**difference),
    }
    return ReadyGroup(
        group_id=content["group_id"],
        group_ref=group_ref,
        advantages=np.array(content["advantages"], np.float32),
        report=CallReport(**{**report, **parsed}),
        scored=Span(**content["scored"]),
        scores=RewardScores.from_json(content["scores"]),
    )
