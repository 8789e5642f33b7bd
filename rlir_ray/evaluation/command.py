"""The `eval` command: compute a policy's row of MineWorld's or RLVR-World's table on recordings. Works without Ray."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers.utils.logging import disable_progress_bar

from rlir_ray.config import Config, asset_path
from rlir_ray.config.load import load_config, recipes
from rlir_ray.data.clips import Clip
from rlir_ray.data.files import write_json
from rlir_ray.data.recorded_clips import round_robin_clips
from rlir_ray.data.recordings import nothing_readable, open_recordings
from rlir_ray.data.vpt.index import MAX_LOGGED
from rlir_ray.evaluation.fvd import I3D, MIN_FRAMES
from rlir_ray.evaluation.policy_row import PolicyRow, evaluate_row
from rlir_ray.families import action_space, evaluation_sampler, family_of, open_codec, open_policy
from rlir_ray.idm.base import InverseDynamics, load_inverse_dynamics
from rlir_ray.models.adapters import is_adapter_folder
from rlir_ray.models.flow_forms import stated_architecture
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
    config = resolve_config(request)
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


def _folder(path: str, option: str) -> Path:
    try:
        return asset_path(path)
    except ValueError:
        raise ValueError(f"{option} must be an existing folder, got {path!r}; check the path") from None


def resolve_config(request: EvaluationRequest) -> Config:
    """Load the recipe and set the models of the request, as absolute folders.

    Raises:
        ValueError: the request names no recipe and no recipe fits the policy, or a folder does not exist.
    """
    policy = _folder(request.policy, "--policy")
    config = load_config(request.recipe or find_recipe(policy), list(request.overrides))
    if not request.recipe:
        config = _with_run_folders(config, policy)
    tokenizer = request.tokenizer or (str(policy / "tokenizer") if (policy / "tokenizer").is_dir() else "")
    judge = request.idm or config.models.judge_idm
    if not request.idm and judge and not judge.startswith("asset:") and not Path(judge).is_dir():
        # The recipe's judge does not exist here: leave out action following instead of failing.
        judge = ""
    # An adapter needs the policy from which its run started.
    checkpoint = {"adapter": str(policy)} if is_adapter_folder(policy) else {"policy": str(policy)}
    models = dataclasses.replace(
        config.models,
        **checkpoint,
        tokenizer=str(_folder(tokenizer or config.models.tokenizer, "--tokenizer")),
        judge_idm=str(_folder(judge, "--idm")) if judge else "",
    )
    return dataclasses.replace(config, models=models)


def _with_run_folders(config: Config, policy: Path) -> Config:
    """Resolve a run's relative folders: first in the working folder, then in the parent folders of the policy."""
    found = {entry.name: getattr(config.models, entry.name) for entry in dataclasses.fields(config.models)}
    for name, path in found.items():
        places = [home / path for home in policy.absolute().parents]
        if path and not path.startswith("asset:") and not Path(path).is_dir():
            found[name] = next((str(place) for place in places if place.is_dir()), path)
    return dataclasses.replace(config, models=dataclasses.replace(config.models, **found))


def find_recipe(policy: Path) -> str:
    """Find the configuration of the policy's run, otherwise the shipped recipe of the policy's size.

    Raises:
        ValueError: neither exists.
    """
    if (run := policy.absolute().parent / "config.yaml").is_file():
        return str(run)
    if is_adapter_folder(policy):
        raise ValueError(f"an adapter outside a run's folder needs --recipe, got {policy}; name its policy's recipe")
    try:
        held = stated_architecture(json.loads((policy / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ValueError(f"--policy must be a world model's folder, got {error}; check {policy}") from None
    for name in recipes():
        recipe = load_config(name)
        if recipe.architecture == held or _is_folder(recipe.models.policy, policy):
            return name
    raise ValueError(
        f"a policy outside a run's folder and of no shipped size needs --recipe, got {policy}; name one of "
        f"{', '.join(recipes())} or a YAML file"
    )


def _is_folder(named: str, folder: Path) -> bool:
    return named.startswith("asset:") and asset_path(named).samefile(folder)


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
