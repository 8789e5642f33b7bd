"""Audit the reward of a recipe on real clips, and write audit.json and audit.html."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rlir_ray.config import Config, TermConfig
from rlir_ray.data.files import write_json, write_text
from rlir_ray.data.prompts import NUM_ALIGNED, PromptSet, encoded_real, prepare_prompts
from rlir_ray.families import open_codec
from rlir_ray.models.clip_codec import ClipCodec
from rlir_ray.rewards.base import Reward
from rlir_ray.rewards.reward_audit import RewardAudit, audit_reward
from rlir_ray.rewards.term import Term
from rlir_ray.run.preflight import check_checkpoints
from rlir_ray.run.resolved import check_reward_idm, resolve
from rlir_ray.run.reward import run_reward

JSON, PAGE, TEMPLATE = "audit.json", "audit.html", "audit.html.jinja"


def audit_recipe(config: Config, num_clips: int, progress: Callable[[str], None]) -> RewardAudit:
    """Audit the configured reward on held-out clips, as a run would build it.

    Args:
        config: the configuration of a run.
        num_clips: number of held-out clips.
        progress: called with a line for each stage.

    Raises:
        ValueError: a checkpoint, the prompts or the reward cannot be used.
    """
    prompts = dataclasses.replace(config.prompts, num_train=NUM_ALIGNED, num_heldout=num_clips)
    run = resolve(dataclasses.replace(config, prompts=prompts))
    check_reward_idm(run.config)
    check_checkpoints(run.models)
    codec = open_codec(run.config).to("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory(prefix="rlir_audit_") as folder:
        progress("making clips")
        train, heldout = (
            prepare_prompts(run.config, split, codec, Path(folder, split)) for split in ("train", "heldout")
        )
    progress(f"scoring {num_clips} clips of each kind")
    reward = reward_on(run.config, train, codec)
    return audit_on(run.config, reward, codec, heldout)


def reward_on(
    config: Config,
    train: PromptSet,
    codec: ClipCodec,
    open_external: Callable[[TermConfig], Term] | None = None,
) -> Reward:
    """Build the configured reward with training prompts, some of them with frames, on the device of the codec."""
    shares = train.class_shares(config.world.groups) if config.reward.balance == "class" else None
    real = functools.partial(encoded_real, train.with_frames(), codec)
    return run_reward(config, shares, real, open_external, device=str(codec.device), codec=codec)


def audit_on(config: Config, reward: Reward, codec: ClipCodec, clips: PromptSet) -> RewardAudit:
    """Audit a reward on the clips of a prompt set that have frames."""
    real = clips.with_frames()
    return audit_reward(reward, codec, real.frames, real.recorded, config.world.num_context, config.reward)


def write_audit(audit: RewardAudit, folder: Path, name: str) -> Path:
    """Write audit.json and audit.html; return the page.

    Args:
        audit: the audit.
        folder: created if it does not exist.
        name: name of the recipe, for the title.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / JSON, audit.to_json())
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    page = environment.get_template(TEMPLATE).render(name=name, audit=audit)
    write_text(folder / PAGE, page)
    return folder / PAGE


def audit_text(audit: RewardAudit) -> list[str]:
    """Format an audit for a terminal: a row for each kind of clip, a column for each term and field."""
    rows = {**audit.terms, **audit.fields}
    kinds = list(dict.fromkeys(kind for row in reversed(rows.values()) for kind in row))
    width = max(len(kind) for kind in kinds) + 2
    lines = [" " * width + "".join(f"{label[:15]:>17}" for label in rows)]
    for kind in kinds:
        cells = [row.get(kind) for row in rows.values()]
        lines.append(
            f"{kind.replace('_', ' '):<{width}}"
            + "".join(f"{'–':>17}" if cell is None else f"{cell.mean:>9.3f} ± {cell.se:<5.3f}" for cell in cells)
        )
    return [*lines, *(f"FAIL  {fault}" for fault in audit.faults)] if audit.faults else [*lines, "ok"]
