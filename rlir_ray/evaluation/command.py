"""The `eval` command: compute a policy's row of MineWorld's or RLVR-World's table on recordings. Works without Ray."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers.utils.logging import disable_progress_bar

from rlir_ray.config import Config
from rlir_ray.data.clips import Clip
from rlir_ray.data.files import write_json
from rlir_ray.data.recorded_clips import round_robin_clips
from rlir_ray.data.recordings import nothing_readable, open_recordings
from rlir_ray.data.vpt.index import MAX_LOGGED
from rlir_ray.evaluation.fvd import I3D, MIN_FRAMES
from rlir_ray.evaluation.policy_config import policy_config
from rlir_ray.evaluation.policy_row import PolicyRow, evaluate_row
from rlir_ray.families import action_space, evaluation_sampler, family_of, open_codec, open_policy
from rlir_ray.idm.base import InverseDynamics, load_inverse_dynamics
from rlir_ray.models.lpips import ALEXNET, LPIPS, VGG16
from rlir_ray.rewards.calibration import check_alignment
from rlir_ray.run.environment import versions
from rlir_ray.run.progress import progress_bar
from rlir_ray.run.resolved import with_field_names

if TYPE_CHECKING:
    from rlir_ray.data.recordings import Recordings

# A fixed seed, so that all evaluations use the same draws.
SEED = 20_250_928
# Number of real clips for the check that the recorded actions fit their frames.
NUM_ALIGNED = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """Options of the command; an empty path means the recipe's path."""

    policy: str
    data: str
    idm: str = ""
    tokenizer: str = ""
    recipe: str = ""
    num_clips: int = 0
    lpips: str = ""
    fvd: str = ""
    rlvr: bool = False
    """RLVR-World's columns in place of MineWorld's; `lpips` is then a file of VGG16."""
    out: str = ""
    overrides: tuple[str, ...] = ()


def evaluate(request: EvaluationRequest, chunk: int = 0) -> PolicyRow:
    """Generate and evaluate the clips, print the row, and write the row as JSON if `request.out` is set.

    Args:
        request: options of the command.
        chunk: number of clips that are sampled at once; 0: eight times `rollout.prompts_per_call`.

    Raises:
        ValueError: a checkpoint or the recordings are unusable, or belong to another world.
    """
    config = policy_config(
        request.policy,
        recipe=request.recipe,
        tokenizer=request.tokenizer,
        judge=request.idm,
        overrides=request.overrides,
    )
    config = with_field_names(config, action_space(config))
    num_clips = request.num_clips or config.prompts.num_heldout
    check_request(request, config, num_clips)
    family_of(config).check_world(config)
    # transformers shows a progress bar for each model, which would mix with this command's output.
    disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = VGG16 if request.rlvr else ALEXNET
    lpips = LPIPS(request.lpips, device=device, network=network) if request.lpips else None
    i3d = I3D(request.fvd, device=device) if request.fvd else None
    source, world = open_recordings(request.data, config.data.camera), config.world
    skipped: list[str] = []
    idm = load_inverse_dynamics(config.models.judge_idm).to(device) if config.models.judge_idm else None
    if idm is not None:
        for line in alignment_lines(idm, round_robin_clips(source, NUM_ALIGNED, world, config.data), config):
            print(line)
    policy, tokenizer = open_policy(config, device).eval(), open_codec(config)
    settings = config.evaluation
    sampler = evaluation_sampler(config, policy, *settings.samplings[0])
    with progress_bar("evaluating") as show, _reason_if_all_broken(source, skipped):
        row = evaluate_row(
            round_robin_clips(source, num_clips, world, config.data, skipped),
            sampler,
            tokenizer.to(device),
            world,
            seed=SEED,
            chunk=chunk or config.rollout.prompts_per_call * 8,
            idm=idm,
            judge_context=settings.judge_context,
            lpips=lpips,
            i3d=i3d,
            rlvr=request.rlvr,
            progress=lambda done: show(done / num_clips, f"{done} clips"),
        )
    print("\n".join(summary_lines(row, config, num_clips, source, skipped)))
    if request.out:
        write_row(Path(request.out), row, config, skipped)
    return row


def check_request(request: EvaluationRequest, config: Config, num_clips: int) -> None:
    """Reject impossible options before models are loaded.

    Raises:
        ValueError: the figures need more clips or frames, or an option has no effect.
    """
    if request.rlvr and request.fvd:
        raise ValueError("--rlvr must stand without --fvd, which RLVR-World's table lacks, got both; leave one out")
    if num_clips < 1 + bool(request.fvd):
        raise ValueError(f"--num-clips must be >= 1, and >= 2 with --fvd, got {num_clips}; raise --num-clips")
    if request.fvd and config.world.num_frames < MIN_FRAMES:
        raise ValueError(
            f"--fvd needs world.num_frames >= {MIN_FRAMES}, got {config.world.num_frames}; set "
            f"world.num_frames={MIN_FRAMES} or leave --fvd out"
        )


@contextmanager
def _reason_if_all_broken(source: Recordings, skipped: list[str]) -> Iterator[None]:
    """If all recordings are broken, replace a ValueError by one that gives the reason of the first recording."""
    try:
        yield
    except ValueError:
        if len(skipped) == len(source):
            raise ValueError(nothing_readable(source.path, skipped)) from None
        raise


def alignment_lines(idm: InverseDynamics, clips: Iterator[Clip], config: Config) -> list[str]:
    """Warn if the recorded actions fit better when shifted by a frame: then every figure would be wrong."""
    real = list(clips)
    if not real or config.world.num_context + config.world.num_frames < 4:
        return []
    frames, actions = np.stack([clip.frames for clip in real]), [clip.actions for clip in real]
    try:
        check_alignment(idm, frames, actions, config.world.groups)
    except ValueError as error:
        return [f"warning  {error}"]
    return []


def summary_lines(row: PolicyRow, config: Config, num_clips: int, source: Recordings, skipped: list[str]) -> list[str]:
    """Format the clips, the recordings and the row for a terminal."""
    world = config.world
    lines = [
        f"{row.num_clips} clips of {world.num_context} context + {world.num_frames} generated frames, "
        f"{world.height}x{world.width}, {family_of(config).sampling_text(config)}",
    ]
    if row.num_clips < num_clips:
        lines.append(f"the recordings hold {row.num_clips} of the {num_clips} requested clips")
    if skipped:
        lines.append(f"left out {len(skipped)} of {len(source)} recordings (--out lists all), the first:")
        lines += [f"  {line}" for line in skipped[:MAX_LOGGED]]
    return [*lines, "", *row.lines()]


def write_row(out: Path, row: PolicyRow, config: Config, skipped: list[str]) -> None:
    """Write the row as JSON, with the configuration and the recordings that were left out."""
    out.parent.mkdir(parents=True, exist_ok=True)
    content = {"row": row.to_json(), "left_out": skipped, "seed": SEED, "config": config.to_dict()}
    write_json(out, {**content, "versions": versions()})
    print(f"\nwritten to {out}")
