"""Build the configured reward."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rlir_ray.config import TermConfig, asset_path
from rlir_ray.idm.base import load_inverse_dynamics
from rlir_ray.registry import any_declares, build, load
from rlir_ray.rewards.base import Reward, RewardContext
from rlir_ray.rewards.combined import CombinedReward
from rlir_ray.rewards.term import Term


def open_reward(context: RewardContext) -> Reward:
    """Build the configured reward.

    Raises:
        ValueError: a class cannot be imported, has no `score`, or does not take its arguments; a whole reward stands
            among terms; or a term needs a Python environment of its own without Ray.
    """
    # The reward and all its terms share one codec.
    context = replace(context, open_codec=functools.cache(context.open_codec))
    settings = context.config.reward
    whole = [name for name in settings.local_names if not issubclass(load("rewards", name), Term)]
    if not whole:
        terms = {label: _open_term(context, term) for label, term in settings.labelled_terms.items()}
        return _combined(context, terms, reads_idm=any_declares("rewards", settings.local_names, "reads_idm"))
    if settings.terms:
        raise ValueError(
            f"reward.terms must name subclasses of rlir_ray.rewards.Term, got {whole[0]}; a whole reward stands alone "
            "in reward.name"
        )
    reward: Reward = _build(context, settings.all_terms[0])
    return reward


def _combined(context: RewardContext, terms: Mapping[str, Term], reads_idm: bool) -> CombinedReward:
    config, device = context.config, context.device
    idm = load_inverse_dynamics(asset_path(config.models.reward_idm)).to(device) if reads_idm else None
    return CombinedReward(
        context.open_codec().to(device),
        terms,
        idm,
        names=config.world.groups,
        config=config.reward,
        device=device,
        cells=context.cells,
    )


def _open_term(context: RewardContext, settings: TermConfig) -> Term:
    if not settings.runtime_env:
        term: Term = _build(context, settings)
        return term
    if context.open_external is None:
        raise ValueError(
            f"a term with a runtime_env needs Ray's reward pool, got {settings.name} without; train with the pools, or "
            "leave runtime_env out"
        )
    return context.open_external(settings)


# Any: the member is a term or a whole reward.
def _build(context: RewardContext, settings: TermConfig) -> Any:
    member = load("rewards", settings.name)
    if make := getattr(member, "from_context", None):
        return build("rewards", settings.name, settings.args, make, context)
    return build("rewards", settings.name, settings.args, member)
