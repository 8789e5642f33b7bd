"""A term of the reward in a Python environment of its own: an actor beside the replica, started with a runtime_env."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import ray
from ray.exceptions import GetTimeoutError, RayError

from actors.cluster.diagnostics import one_line
from actors.cluster.placement import as_actor, node_id, on_node
from rlir_ray.config import TermConfig
from rlir_ray.registry import build, load
from rlir_ray.rewards.term import GroupClips, Recovered, Term

if TYPE_CHECKING:
    from torch import Tensor


class TermActor:
    """The process of one term. Its environment needs Ray, numpy and this package, but no torch.

    Args:
        settings: name and arguments of the term, a class with `score(clips)`.
    """

    def __init__(self, settings: TermConfig) -> None:
        self.term: Term = build("rewards", settings.name, settings.args, load("rewards", settings.name))

    def score(self, clips: GroupClips) -> npt.NDArray[np.float32]:
        """Score a group whose arrays are numpy arrays."""
        return np.asarray(self.term.score(clips), np.float32)

    def is_ready(self) -> bool:
        return True


class ExternalTerm(Term):
    """A term that calls its actor.

    Args:
        settings: the term, with its runtime_env.
        timeout_s: bound of the start of the environment, which may install packages, and of an answer.

    Raises:
        RuntimeError: the environment or the term did not start.
    """

    def __init__(self, settings: TermConfig, timeout_s: float) -> None:
        self.name, self.timeout_s = settings.name, timeout_s
        shell = as_actor(TermActor, runtime_env=dict(settings.runtime_env), scheduling_strategy=on_node(node_id()))
        self.actor = shell.remote(settings)
        try:
            ray.get(self.actor.is_ready.remote(), timeout=timeout_s)
        except GetTimeoutError:
            raise RuntimeError(
                f"waited {timeout_s:.0f} s for the term {self.name} in its runtime_env; prepare the environment before "
                "the run, or raise train.wait_timeout_s"
            ) from None
        except RayError as error:
            raise RuntimeError(
                f"the term {self.name} must start in its runtime_env, got {one_line(error)}; check reward.terms"
            ) from error

    def score(self, clips: GroupClips) -> npt.NDArray[np.float32]:
        """Send the group to the actor and return its rewards, float32 [G, F]."""
        rewards: npt.NDArray[np.float32] = ray.get(self.actor.score.remote(_as_numpy(clips)), timeout=self.timeout_s)
        return rewards


def _as_numpy(clips: GroupClips) -> GroupClips:
    """Return a group with numpy arrays, which a process without torch can read."""

    def array(tensor: Tensor | None) -> npt.NDArray[np.generic] | None:
        return None if tensor is None else tensor.cpu().numpy()

    recovered = clips.recovered
    if recovered is not None:
        tables = {name: array(table) for name, table in recovered.probabilities.items()}
        recovered = Recovered(probabilities=tables, classes=array(recovered.classes))  # type: ignore[arg-type]  # as documented
    return replace(clips, frames=array(clips.frames), recorded=array(clips.recorded), recovered=recovered)  # type: ignore[arg-type]  # as documented
