"""The learner rank: a Ray Train worker around a `Learner`."""

from __future__ import annotations

import tempfile
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import ray
import torch
from ray import train
from ray.train.torch import get_device

from actors.cluster.diagnostics import one_line
from actors.cluster.files import local_copy, send_folder, send_whole
from actors.cluster.placement import node_id
from actors.learner.command_queue import CheckpointCommand, Failure, SaveCommand, StepCommand
from actors.learner.rank_queue import QUEUE_TIMEOUT_S, FetchedCommand, RankQueue
from actors.learner.sender import start_sending
from rlir_ray.config import Config
from rlir_ray.families import make_objective, open_clip_loss, open_policy
from rlir_ray.learner.batches import step_batches
from rlir_ray.learner.engine import Engine
from rlir_ray.learner.step import Learner
from rlir_ray.learner.torch_engine import TorchEngine
from rlir_ray.run.checkpoint import LEARNER, ArrayFile, Files, describe_files, save_arrays, save_group
from rlir_ray.run.watchdog import show_stack_on_signal
from rlir_ray.trajectory import TrajectoryGroup
from rlir_ray.transfer.weights import Weights


def build_learner(config: Config) -> Learner:
    """Build this rank's learner; the engine uses the process group that Ray Train has started."""
    torch.set_num_threads(config.learner.num_threads)
    policy = open_policy(config, get_device() if config.learner.use_gpu else "cpu")
    if config.learner.gradient_checkpointing:
        policy.enable_gradient_checkpointing()  # type: ignore[operator]  # a method of every family's policy
    # Build the objective before the engine takes the parameters: an objective may copy them.
    objective, clip_loss = make_objective(config, policy), open_clip_loss(config, policy)
    engine: Engine
    if config.learner.engine == "deepspeed":
        from rlir_ray.learner.deepspeed import DeepSpeedEngine

        engine = DeepSpeedEngine(policy, config.train, config.learner)
    else:
        engine = TorchEngine(policy, config.train, config.learner)
    return Learner(engine, objective, config.train, config.learner, clip_loss)


def run_rank(settings: dict[str, Any]) -> None:
    """Run the loop of one rank: fetch a command, execute it, report. Ray Train calls this function in every worker.

    Args:
        settings: `queue`, the command queue; `make_learner`, which builds the learner; `timeout_s`, the bound of waits;
            `checkpoint`, a folder and its node, or None; `broadcasts`, whether rank 0 broadcasts weights.
    """
    queue, timeout_s, rank = (
        settings["queue"],
        settings["timeout_s"],
        train.get_context().get_world_rank(),
    )
    show_stack_on_signal()
    try:
        ray.get(queue.register.remote(rank, ray.get_runtime_context().get_actor_id()), timeout=timeout_s)
        with closing(RankQueue(queue, rank, timeout_s)) as own:
            learner, started = settings["make_learner"](), time.time()
            if settings["checkpoint"] is not None:
                folder, node = settings["checkpoint"]
                with local_copy(folder / LEARNER, node) as file:
                    learner.load_state(ArrayFile(file))
            if settings["broadcasts"] and rank == 0:
                start_sending(queue, learner.engine.device)
            own.report(learner.num_steps, {}, started, learner.weights(), average=learner.average_weights())
            while (fetched := own.next_command()) is not None:
                _execute(fetched, learner, own)
                # Free the groups of a command before waiting for the next one.
                del fetched
            own.flush()
    except Exception as error:
        failure = Failure(cause=f"learner rank {rank}: {one_line(error)}", is_final=isinstance(error, ValueError))
        ray.get(queue.report.remote(failure), timeout=timeout_s)
        raise


def _execute(fetched: FetchedCommand, learner: Learner, queue: RankQueue) -> None:
    started, command, groups = time.time(), fetched.command, fetched.groups
    if isinstance(command, StepCommand):
        batches = step_batches(groups, command.advantages, command.minibatch_sizes, learner.engine)
        metrics = learner.step(*batches) | {"time/learner_wait_s": fetched.wait_s}
        # Every rank calls `weights` and `average_weights`, which gather them; only rank 0 reports.
        weights, average = learner.weights(), learner.average_weights()
        queue.report(learner.num_steps, metrics, started, weights, skipped=learner.skipped, average=average)
    elif isinstance(command, CheckpointCommand):
        files = _checkpoint(command, learner)
        queue.report(learner.num_steps, {}, started, {}, files)
    elif isinstance(command, SaveCommand):
        _save(command, learner)
        queue.report(learner.num_steps, {}, started, {})


def _save(command: SaveCommand, learner: Learner) -> None:
    """Save the policy into the run's folder, which may be on another node."""
    if command.node == node_id():
        learner.save(command.folder)
        return
    with tempfile.TemporaryDirectory(prefix="rlir_policy_") as own:
        folder = Path(own) / "policy"
        # Every rank calls `save`, which gathers the weights; rank 0 writes them.
        learner.save(folder)
        if learner.engine.rank == 0:
            send_whole(folder, command.node, Path(command.folder))


def _checkpoint(command: CheckpointCommand, learner: Learner) -> Files:
    """Gather the learner's state on every rank; on rank 0 write the state and the groups, one group at a time."""
    state = learner.state()
    if learner.engine.rank != 0:
        return {}
    if command.node == node_id():
        return _write_checkpoint(Path(command.folder), state, command.group_refs)
    with tempfile.TemporaryDirectory(prefix="rlir_checkpoint_") as own:
        files = _write_checkpoint(Path(own), state, command.group_refs)
        send_folder(Path(own), command.node, Path(command.folder))
        return files


def _write_checkpoint(folder: Path, state: Weights, group_refs: list[ray.ObjectRef[TrajectoryGroup]]) -> Files:
    save_arrays(folder / LEARNER, state)
    for ref in group_refs:
        # Fault tolerance: leave out a group that was lost with its node; a resumed run samples the group again.
        with suppress(ray.exceptions.ObjectLostError, ray.exceptions.RayTaskError):
            save_group(folder, ray.get(ref, timeout=QUEUE_TIMEOUT_S))
    return describe_files(sorted(folder.iterdir()))
