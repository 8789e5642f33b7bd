"""Merging of a saved LoRA adapter into its policy: the result is a policy's folder of the same family."""

from __future__ import annotations

from pathlib import Path

from rlir_ray.config import LoraConfig
from rlir_ray.data.files import new_folder
from rlir_ray.families import Family
from rlir_ray.models.adapters import add_adapter, merged_weights, save_policy
from rlir_ray.models.checkpoints import check_finite
from rlir_ray.models.compatibility import is_flow_model, read_settings
from rlir_ray.registry import load


def merge_adapter(out: Path, *, policy: Path, adapter: Path) -> list[str]:
    """Write the policy that computes what `policy` with `adapter` computes, in float32.

    Args:
        out: a new folder; it appears whole or not at all.
        policy: folder of the policy from which the adapter was trained, of either family.
        adapter: folder of a saved adapter, such as `policy` in the folder of a run with lora.rank > 0.

    Returns:
        Lines for the user.

    Raises:
        ValueError: a folder is missing or incomplete, the adapter does not fit the policy, or `out` has content.
    """
    for option, folder in (("--policy", policy), ("--adapter", adapter)):
        if not folder.is_dir():
            raise ValueError(f"{option} must be an existing folder, got {str(folder)!r}; check the path")
    is_flow = is_flow_model(read_settings(policy, "config.json", "--policy"))
    family: Family = load("families", "flow" if is_flow else "autoregressive")
    with new_folder(out) as folder:
        adapted, merged = family.open_policy(policy), family.open_policy(policy)
        add_adapter(adapted, LoraConfig(), str(adapter))
        weights = dict(merged_weights(adapted))
        check_finite(weights, "all weights of a merged policy")
        merged.load_state_dict(weights)
        save_policy(merged, folder)
    return [f"policy with its adapter merged: {out}   (models.policy={out})"]
