"""The learner rank: the shell of a `Learner` in a Ray Train worker."""

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

from actors.cluster.errors import one_line
from actors.cluster.files import local_copy, send_folder, send_whole
from actors.cluster.placement import node_id
from actors.learner.command_queue import CheckpointOrder, Failure, SaveOrder, StepOrder
from actors.learner.rank import POST_TIMEOUT_S, Delivery, RankMail
from actors.learner.sender import start_sending
from rlir_ray.config import Config
from rlir_ray.families import make_objective, open_policy
from rlir_ray.learner.step import Engine, Learner, StepBatch, trained_decisions
from rlir_ray.learner.torch_engine import TorchEngine
from rlir_ray.run.checkpoint import LEARNER, ArrayFile, Files, describe_files, save_arrays, save_group
from rlir_ray.run.watchdog import show_stack_on_signal
from rlir_ray.transfer.weights import Weights


def build_learner(config: Config) -> Learner:
    """This rank's learner; the process group is the one that Ray Train started."""
    torch.set_num_threads(config.learner.num_threads)
    policy = open_policy(config, get_device() if config.learner.use_gpu else "cpu")
    if config.learner.gradient_checkpointing:
        policy.enable_gradient_checkpointing()
    # Before the engine takes the parameters: an objective may keep a copy of them.
    objective = make_objective(config, policy)
    engine: Engine
    if config.learner.engine == "deepspeed":
        from rlir_ray.learner.deepspeed import DeepSpeedEngine

        engine = DeepSpeedEngine(policy, config.train, config.learner)
    else:
        engine = TorchEngine(policy, config.train, config.learner)
    return Learner(engine, objective, config.train, config.learner)


def run_rank(settings: dict[str, Any]) -> None:
    """The loop of one rank: take an order, carry it out, report. Ray Train calls it in every worker.

    Args:
        settings: `mailbox`, `make_learner`, `checkpoint`: a folder and its node, or None; and `broadcasts`: whether
            rank 0 sends weights.
    """
    mailbox, timeout_s, rank = settings["mailbox"], settings["timeout_s"], train.get_context().get_world_rank()
    show_stack_on_signal()
    try:
        ray.get(mailbox.register.remote(rank, ray.get_runtime_context().get_actor_id()), timeout=timeout_s)
        with closing(RankMail(mailbox, rank, timeout_s)) as mail:
            learner, started = settings["make_learner"](), time.time()
            if settings["checkpoint"] is not None:
                folder, node = settings["checkpoint"]
                with local_copy(folder / LEARNER, node) as file:
                    learner.load_state(ArrayFile(file))
            if settings["broadcasts"] and rank == 0:
                start_sending(mailbox, learner.engine.device)
            mail.report(learner.num_steps, {}, started, learner.weights())
            while (delivery := mail.next_order()) is not None:
                _carry_out(delivery, learner, mail)
                # The groups of an order are held no longer than it takes.
                del delivery
            mail.flush()
    except Exception as error:
        failure = Failure(cause=f"learner rank {rank}: {one_line(error)}", is_final=isinstance(error, ValueError))
        ray.get(mailbox.report.remote(failure), timeout=timeout_s)
        raise


def _carry_out(delivery: Delivery, learner: Learner, mail: RankMail) -> None:
    started, order, groups = time.time(), delivery.order, delivery.groups
    if isinstance(order, StepOrder):
        own = torch.tensor(float(trained_decisions(groups, order.advantages)), dtype=torch.float64)
        num_decisions = int(learner.engine.reduce(own.to(learner.engine.device), maximum=False))
        batch = StepBatch(groups=groups, advantages=order.advantages, num_decisions=num_decisions)
        metrics = learner.step(batch) | {"time/learner_wait_s": delivery.wait_s}
        # Gathered by all ranks.
        mail.report(learner.num_steps, metrics, started, learner.weights(), skipped=learner.skipped)
    elif isinstance(order, CheckpointOrder):
        files = _checkpoint(order, learner)
        mail.report(learner.num_steps, {}, started, {}, files)
    elif isinstance(order, SaveOrder):
        _save(order, learner)
        mail.report(learner.num_steps, {}, started, {})


def _save(order: SaveOrder, learner: Learner) -> None:
    """Into the run's folder, which may be on a disk that this node does not see."""
    if order.node == node_id():
        learner.save(order.folder)
        return
    with tempfile.TemporaryDirectory(prefix="rlir_policy_") as own:
        folder = Path(own) / "policy"
        # Every rank calls, rank 0 writes.
        learner.save(folder)
        if learner.engine.rank == 0:
            send_whole(folder, order.node, Path(order.folder))


def _checkpoint(order: CheckpointOrder, learner: Learner) -> Files:
    """Every rank gathers, rank 0 writes the learner's state and the groups, one at a time."""
    state = learner.state()
    if learner.engine.rank != 0:
        return {}
    if order.node == node_id():
        return _write_checkpoint(Path(order.folder), state, order.group_refs)
    with tempfile.TemporaryDirectory(prefix="rlir_checkpoint_") as own:
        files = _write_checkpoint(Path(own), state, order.group_refs)
        send_folder(Path(own), order.node, Path(order.folder))
        return files


def _write_checkpoint(folder: Path, state: Weights, group_refs: list[ray.ObjectRef]) -> Files:
    save_arrays(folder / LEARNER, state)
    for ref in group_refs:
        # Fault tolerance: a group that was lost with its node is left out, and sampled again after a resume.
        with suppress(ray.exceptions.ObjectLostError, ray.exceptions.RayTaskError):
            save_group(folder, ray.get(ref, timeout=POST_TIMEOUT_S))
    return describe_files(sorted(folder.iterdir()))
