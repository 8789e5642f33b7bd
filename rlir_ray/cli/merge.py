"""The command `merge`: its arguments, and the call of the merging, which imports heavy libraries."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from rlir_ray.cli.world_parser import WIDE, Commands


def add_merge(commands: Commands) -> None:
    """Add the command."""
    merge = commands.add_parser(
        "merge",
        help="merge a LoRA adapter into its policy",
        formatter_class=WIDE,
        description="Writes a policy of the same family that computes what the policy with the adapter computes, in\n"
        "float32. The new folder appears whole or not at all.",
        epilog="example:\n"
        "  python -m rlir_ray merge --policy models/mineworld_700m --adapter runs/adapter/policy --out models/merged",
    )
    for option, what in (("--policy", "the policy from which the adapter was trained"), ("--adapter", "the adapter")):
        merge.add_argument(option, type=Path, required=True, metavar="DIR", help=f"folder of {what}")
    merge.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")


def run_merge(arguments: argparse.Namespace, rest: list[str]) -> None:
    """Merge, and print the lines for the user."""
    # The lines of this command tell the user enough: silence the messages of transformers.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from transformers.utils.logging import disable_progress_bar

    from rlir_ray.families.merging import merge_adapter

    disable_progress_bar()

    print("\n".join(merge_adapter(arguments.out, policy=arguments.policy, adapter=arguments.adapter)))
