"""The driver's side of checkpoints: what the loop must know to go on, and the order in which a checkpoint is written.

Weights, moments and the columns of ready groups are written by learner rank 0 and read by the ranks and by tasks on
the driver's node: the driver itself writes the ledger, floats and the manifest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray

from actors.cluster.placement import node_id, on_node
from actors.learner.group import LearnerGroup
from actors.learner.in_flight import ReadyGroup
from actors.rollout.actor import CallReport
from rlir_ray.algorithm.ledger import Ledger
from rlir_ray.algorithm.seeds import prompt_index
from rlir_ray.config import CheckpointConfig, TrainConfig
from rlir_ray.data.files import write_json
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
from rlir_ray.run.tracing import Span
from rlir_ray.samplers import LogprobDifference
from rlir_ray.trajectory import RewardScores


@dataclass(kw_only=True, slots=True)
class RunState:
    """How far the loop has come: of a run that starts, or of one that goes on from a checkpoint."""

    step: int = 0
    """Optimiser steps done."""
    trained_s: float = 0.0
    """Seconds of training up to that step."""
    ledger: Ledger = field(default_factory=Ledger)
    checkpoint: Checkpoint | None = None
    """Where it comes from; None: from the start."""
    ready: list[dict[str, Any]] = field(default_factory=list)
    """Groups of the checkpoint that were ready but not trained, as JSON."""

    def is_complete(self, train: TrainConfig) -> bool:
        """Whether nothing is left to train."""
        return bool(self.limits(train))

    def limits(self, train: TrainConfig) -> tuple[str, ...]:
        """The settings that end the training here, as a user writes them; empty: it is not complete."""
        is_out_of_time = 0 < train.max_minutes * 60 <= self.trained_s and self.step > 0
        reached = {f"train.num_steps={train.num_steps}": self.step >= train.num_steps}
        reached[f"train.max_minutes={train.max_minutes:g}"] = is_out_of_time
        return tuple(limit for limit, is_reached in reached.items() if is_reached)


class Checkpoints:
    """Args:
    run: the run's folder, on this process's node.
    config: how often, and how many are kept.
    report: gets a line for each checkpoint that cannot be read.
    """

    def __init__(self, run: Path, config: CheckpointConfig, report: Callable[[str], None]) -> None:
        self.run, self.config, self.report = run, config, report
        self.latest: Checkpoint | None = None

    def read(self) -> RunState:
        """How far the newest whole checkpoint is; the start where there is none.

        Raises:
            ValueError: there are some, and none can be read.
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
            ready=content["ready"],
        )

    def is_due(self, step: int) -> bool:
        return bool(self.config.every) and step % self.config.every == 0

    def write(self, run: RunState, learner: LearnerGroup, ready: Sequence[ReadyGroup]) -> None:
        """Writes a checkpoint, unless that of this step is there already; other pools go on meanwhile.

        Raises:
            ValueError: the disk is full.
            LearnerLost: a rank failed.
            TimeoutError: the ranks did not answer.
        """
        if self.latest is not None and self.latest.step == run.step:
            return
        partial = partial_folder(self.run, run.step)
        files = learner.checkpoint(partial, [group.group_ref for group in ready])
        # A group whose columns were lost with their node is sampled again, as those in flight are.
        kept = [_to_json(group) for group in ready if group_file(group.group_id) in files]
        ledger = json.loads(run.ledger.to_json())
        write_json(partial / DRIVER, {"trained_s": run.trained_s, "ledger": ledger, "ready": kept})
        files |= describe_files([partial / DRIVER])
        self.latest = seal(partial, files, step=run.step, policy_version=run.step, keep=self.config.keep)


def _to_json(group: ReadyGroup) -> dict[str, Any]:
    return {
        "group_id": group.group_id, "advantages": group.advantages.tolist(), "report": asdict(group.report),
        "scored": asdict(group.scored), "scores": group.scores.to_json(),
    }  # fmt: skip


def check_prompts(run: RunState, seed: int, prompt_ids: Sequence[str]) -> None:
    """Whether the prompts are those that the run has trained on so far, by the last group that it admitted.

    Raises:
        ValueError: they are others, so that the position in them means nothing.
    """
    if not run.ledger.next_group_id:
        return
    last = run.ledger[run.ledger.next_group_id - 1]
    found = prompt_ids[prompt_index(seed, last.group_id, len(prompt_ids))]
    if found != last.prompt_id:
        raise ValueError(
            f"a run goes on with the prompts that it started with, got {found} for group {last.group_id}, which was "
            f"{last.prompt_id}; put the recordings back as they were, or choose another run.name"
        )


def ready_groups(run: RunState, timeout_s: float) -> list[ReadyGroup]:
    """The groups that a checkpoint holds, their columns in the object store again.

    Raises:
        TimeoutError: they are not read in time.
    """
    # Those without scores are of an earlier version: they are sampled again, as all that was in flight.
    held = [each for each in run.ready if "scores" in each]
    if run.checkpoint is None or not held:
        return []
    # Not here: no column may pass through the driver.
    load = ray.remote(num_cpus=0, scheduling_strategy=on_node(node_id()))(load_group)
    folder = run.checkpoint.path
    refs = [load.remote(folder / group_file(each["group_id"])) for each in held]
    # Before older checkpoints may go.
    done, _ = ray.wait(refs, num_returns=len(refs), timeout=timeout_s)
    if len(done) < len(refs):
        raise TimeoutError(
            f"waited {timeout_s:.0f} s for {len(refs)} groups of {folder} ({len(done)} were read); look at the disk, "
            "or raise train.wait_timeout_s"
        )
    return [_from_json(each, ref) for each, ref in zip(held, refs, strict=True)]


def _from_json(content: dict[str, Any], group_ref: ray.ObjectRef) -> ReadyGroup:
    report, difference = content["report"], content["report"]["difference"]
    sizes = {int(group_id): size for group_id, size in report["column_bytes"].items()}
    failures = {int(group_id): cause for group_id, cause in report.get("failures", {}).items()}
    made = {
        "span": Span(**report["span"]),
        "column_bytes": sizes,
        "failures": failures,
        "difference": difference and LogprobDifference(**difference),
    }
    return ReadyGroup(
        group_id=content["group_id"], group_ref=group_ref, advantages=np.array(content["advantages"], np.float32),
        report=CallReport(**{**report, **made}), scored=Span(**content["scored"]),
        scores=RewardScores.from_json(content["scores"]),
    )  # fmt: skip
