"""Keys that have an effect only with another setting. An override of such a key without that setting is an error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlir_ray.config import CHOOSING, REGRESSION, Config
from rlir_ray.registry import AXES


@dataclass(frozen=True, kw_only=True, slots=True)
class Condition:
    """The condition under which some keys have an effect."""

    keys: tuple[str, ...]
    """Keys, or prefixes of keys."""
    is_met: Callable[[Config], bool]
    needs: str
    """The setting that the keys need, in words."""


EXPLORING = ("sde", "noise_level", "window", "skip_last")
INVERSE = ("rule", "axis", "match", "balance", "schedule")
OWN_POOL = (
    *("num_replicas", "min_replicas", "max_replicas", "target_queue", "num_cpus", "num_gpus", "resources"),
    *("num_threads", "max_frames"),
)


def _axes(config: Config) -> set[str]:
    """Return the comparisons of axes that a run uses, one for each stage of its schedule."""
    return {config.reward.axis, *(str(stage.get("axis")) for stage in config.reward.schedule)}


CONDITIONS = (
    Condition(keys=("vllm.",), is_met=lambda c: c.rollout.engine == "vllm", needs="rollout.engine=vllm"),
    Condition(keys=("flow.",), is_met=lambda c: c.policy.family == "flow", needs="policy.family=flow"),
    Condition(
        keys=("rollout.engine",),
        is_met=lambda c: c.policy.family == "autoregressive",
        needs="policy.family=autoregressive",
    ),
    Condition(
        keys=tuple(f"reward.{key}" for key in INVERSE),
        is_met=lambda c: c.reward.has_inverse,
        needs="reward.name=inverse, or that term in reward.terms",
    ),
    Condition(
        keys=("train.objective_args",),
        is_met=lambda c: c.train.objective not in AXES["objectives"].members,
        needs="an objective of your own (train.objective=package.module:Class)",
    ),
    Condition(
        keys=("prompts.args",),
        is_met=lambda c: c.prompts.source not in AXES["sources"].members,
        needs="a source of your own (prompts.source=package.module:Class)",
    ),
    Condition(
        keys=tuple(f"flow.{key}" for key in EXPLORING),
        is_met=lambda c: c.train.explores,
        needs="train.objective=grpo, or one of your own",
    ),
    Condition(
        keys=("flow.window_end",),
        is_met=lambda c: c.flow.window_moves != "first",
        needs="flow.window_moves=random or sliding",
    ),
    Condition(
        keys=("flow.window_interval",),
        is_met=lambda c: c.flow.window_moves == "sliding",
        needs="flow.window_moves=sliding",
    ),
    Condition(keys=("train.nft",), is_met=lambda c: c.train.objective == "nft", needs="train.objective=nft"),
    Condition(keys=("train.dpo",), is_met=lambda c: c.train.objective == "flow_dpo", needs="train.objective=flow_dpo"),
    Condition(
        keys=("train.regression",),
        is_met=lambda c: c.train.objective in REGRESSION,
        needs=f"train.objective={' or '.join(REGRESSION)}",
    ),
    Condition(
        keys=("train.regression.temperature", "train.regression.max_weight"),
        is_met=lambda c: c.train.objective == "rwr",
        needs="train.objective=rwr",
    ),
    Condition(
        keys=("train.regression.num_levels",),
        is_met=lambda c: c.policy.family == "flow",
        needs="policy.family=flow",
    ),
    Condition(
        keys=("train.advantage", "train.max_advantage"),
        is_met=lambda c: c.train.objective not in CHOOSING,
        needs=f"another objective than {' and '.join(CHOOSING)}, which read the order of the clips alone",
    ),
    Condition(
        keys=("train.entropy_coefficient",),
        is_met=lambda c: c.train.objective == "grpo",
        needs="train.objective=grpo",
    ),
    Condition(
        keys=("train.fpo",), is_met=lambda c: c.train.objective == "cfm_ratio", needs="train.objective=cfm_ratio"
    ),
    Condition(
        keys=("train.fpo.clip_range", "train.fpo.ratio", "train.fpo.max_difference"),
        is_met=lambda c: c.train.has_clip("none"),
        needs="train.max_staleness above 0 or several updates a step (without, every ratio is 1)",
    ),
    Condition(
        keys=("train.grpo", "train.off_policy"),
        is_met=lambda c: c.train.explores,
        needs="train.objective=grpo",
    ),
    Condition(
        keys=("train.grpo.step_weights",),
        is_met=lambda c: c.policy.family == "flow" and c.flow.window > 1,
        needs="policy.family=flow and flow.window above 1 (else all weights are 1)",
    ),
    Condition(
        keys=("train.grpo.clip_", "train.grpo.dual_clip"),
        is_met=lambda c: c.train.grpo.loss == "clip",
        needs="train.grpo.loss=clip",
    ),
    Condition(keys=("train.grpo.gspo_",), is_met=lambda c: c.train.grpo.loss == "gspo", needs="train.grpo.loss=gspo"),
    Condition(
        keys=("train.grpo.cispo_",), is_met=lambda c: c.train.grpo.loss == "cispo", needs="train.grpo.loss=cispo"
    ),
    Condition(
        keys=tuple(f"train.grpo.{key}" for key in ("loss", "clip_", "dual_clip", "gspo_", "cispo_")),
        is_met=lambda c: c.has_clip,
        needs="train.updates_per_step or train.num_minibatches above 1, or with train.max_staleness above 0 and "
        "train.off_policy.importance=none (else every ratio is 1)",
    ),
    Condition(
        keys=("train.kl_estimator",),
        is_met=lambda c: c.train.kl_coefficient > 0 and c.train.objective == "grpo",
        needs="train.kl_coefficient above 0 and train.objective=grpo",
    ),
    Condition(
        keys=("train.off_policy.importance",),
        # With vLLM the ratio of fresh groups is not exactly 1, because vLLM and the learner round differently.
        is_met=lambda c: (
            c.train.max_staleness > 0 or c.rollout.engine == "vllm" or c.train.off_policy.importance in ("auto", "none")
        ),
        needs="train.max_staleness above 0 (fresh groups have no ratio to correct)",
    ),
    Condition(
        keys=("train.off_policy.max_weight", "train.off_policy.min_ratio", "train.off_policy.max_ratio"),
        is_met=lambda c: c.importance_level != "none",
        needs="importance weights (train.off_policy.importance=token, for tokens)",
    ),
    Condition(
        keys=("reward.axis_tolerance", "reward.axis_tolerance_in"),
        is_met=lambda c: "within" in _axes(c),
        needs="reward.axis=within",
    ),
    Condition(keys=("reward.axis_scale",), is_met=lambda c: "smooth" in _axes(c), needs="reward.axis=smooth"),
    Condition(keys=("reward.discount",), is_met=lambda c: c.reward.credit == "frame", needs="reward.credit=frame"),
    Condition(
        keys=("evaluation.num_interim_prompts",),
        is_met=lambda c: c.evaluation.every > 0,
        needs="evaluation.every above 0",
    ),
    Condition(
        keys=("evaluation.stop_on",),
        is_met=lambda c: c.evaluation.every > 0 or set(c.evaluation.stop_on) <= {"entropy"},
        needs="evaluation.every above 0 (only the alarm entropy works without)",
    ),
    Condition(
        keys=("reward.target_queue",),
        is_met=lambda c: c.reward.bounds[0] < c.reward.bounds[1],
        needs="reward.max_replicas above reward.min_replicas",
    ),
    Condition(
        keys=tuple(f"reward.{key}" for key in OWN_POOL),
        is_met=lambda c: not c.reward.address,
        needs="a reward pool of the run's own (no reward.address)",
    ),
    Condition(keys=("lora.",), is_met=lambda c: not c.models.adapter, needs="a fresh adapter (no models.adapter)"),
    Condition(
        keys=("lora.alpha", "lora.targets"),
        is_met=lambda c: bool(c.lora.rank or c.models.adapter),
        needs="lora.rank above 0",
    ),
    Condition(
        keys=("learner.zero_stage", "learner.offload_optimizer"),
        is_met=lambda c: c.learner.engine == "deepspeed",
        needs="learner.engine=deepspeed",
    ),
    Condition(
        keys=("weights.bucket_bytes",),
        is_met=lambda c: c.broadcasts_weights,
        needs="weights.transfer=broadcast, or auto where both pools have GPUs",
    ),
)


def reject_unread(config: Config, overrides: Sequence[str]) -> None:
    """Check that every key that a user overrides has an effect; keys that only the recipe sets may have none.

    Args:
        config: the configuration with the overrides.
        overrides: the overrides of the user, each ``KEY=VALUE``.

    Raises:
        ValueError: a key has no effect; the message names the setting that the key needs.
    """
    for override in overrides:
        key = override.partition("=")[0]
        for condition in CONDITIONS:
            if key.startswith(condition.keys) and not condition.is_met(config):
                raise ValueError(
                    f"{key} is read only with {condition.needs}, got {override!r} without that; set that too or leave "
                    f"{key} out"
                )
