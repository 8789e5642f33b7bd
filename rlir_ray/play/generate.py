"""Generate clips with a world model: from Python, and for the command `generate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rlir_ray.config import asset_path
from rlir_ray.evaluation.video import FRAMES_PER_SECOND, Clips, side_by_side, write_mp4
from rlir_ray.idm.base import InverseDynamics, load_inverse_dynamics
from rlir_ray.play.opening import Beginning, OpenWorld, open_actions, open_context, open_world
from rlir_ray.play.simulator import Simulator
from rlir_ray.rewards.field_scores import read_long
from rlir_ray.spaces.layouts import check_space
from rlir_ray.spaces.space import Actions, ActionSpace

MAX_FRAMES = 100_000
GIF, MP4 = ".gif", ".mp4"


def generate(
    policy: str | OpenWorld,
    context: str | npt.NDArray[np.uint8],
    actions: str | Actions | None = None,
    *,
    num_frames: int | None = None,
    seeds: Sequence[int] = (0,),
    temperature: float = 1.0,
    guidance: float = 1.0,
) -> npt.NDArray[np.uint8]:
    """Generate clips of one context and one sequence of actions.

    Args:
        policy: a run's name or folder, a policy's folder, ``asset:PATH``, or an opened world.
        context: frames uint8 [C, H, W, 3] of the world's size, or a text as `open_context` reads.
        actions: the actions into the generated frames, as an object or a text as `open_actions` reads; None: the
            recorded actions of the context.
        num_frames: F; fewer actions start again from the first one; None: one frame an action.
        seeds: one seed a clip; the same seed gives the same clip.
        temperature: of the draws.
        guidance: scale of the action guidance; 1: none.

    Returns:
        The generated frames, uint8 [len(seeds), F, H, W, 3].

    Raises:
        ValueError: a part cannot be opened, the parts do not fit each other, or a number is out of its range.
    """
    world = policy if isinstance(policy, OpenWorld) else open_world(policy)
    if isinstance(context, str):
        beginning = open_context(context, world)
    else:
        beginning = Beginning(frames=context, between=world.space.nothing(len(context) - 1))
    commanded = commands(actions, beginning, world, num_frames)
    clips = continued(world.simulator(temperature, guidance), beginning, commanded, seeds)
    return clips[:, len(beginning.frames) :]


def commands(
    actions: str | Actions | None, beginning: Beginning, world: OpenWorld, num_frames: int | None = None
) -> Actions:
    """Return the actions into F generated frames; fewer actions start again from the first one.

    Raises:
        ValueError: there are no actions, they are of another space, or F is out of its range.
    """
    found = open_actions(actions, world) if isinstance(actions, str) else actions or beginning.recorded
    if not found:
        raise ValueError("actions are needed where the context is no recording, got none; give for example forward*8")
    check_space(world.space, found.space, "the world model", "the actions")
    number = len(found) if num_frames is None else num_frames
    if not 1 <= number <= MAX_FRAMES:
        raise ValueError(f"the number of frames must be from 1 to {MAX_FRAMES}, got {number}; give another number")
    return Actions(found.space, found.values[np.arange(number) % len(found)])


def continued(
    simulator: Simulator,
    beginning: Beginning,
    actions: Actions,
    seeds: Sequence[int],
    progress: Callable[[int], None] | None = None,
) -> npt.NDArray[np.uint8]:
    """Continue one context under the same actions with each seed; return uint8 [len(seeds), C + F, H, W, 3]."""
    num_clips = len(seeds)
    simulator.reset(beginning.frames[None].repeat(num_clips, 0), seeds, [beginning.between] * num_clips)
    for frame in range(len(actions)):
        simulator.step([actions[frame : frame + 1]] * num_clips)
        if progress is not None:
            progress(frame + 1)
    return simulator.frames


# ---------------------------------------------------------------------------------------------------------------------
# The command


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """Options of the command `generate`."""

    policy: str
    context: str
    out: Path
    actions: str = ""
    num_frames: int | None = None
    num_clips: int = 1
    seed: int = 0
    temperature: float = 1.0
    guidance: float = 1.0
    idm: str = ""
    recipe: str = ""
    tokenizer: str = ""
    overrides: tuple[str, ...] = ()


def write_generated(request: GenerationRequest, progress: Callable[[int, int], None] | None = None) -> list[str]:
    """Generate clips and write a video of each; return the lines for the user.

    Args:
        request: options of the command.
        progress: called with the numbers of generated frames and of all frames.

    Raises:
        ValueError: see `generate`; or the file's ending, or the inverse dynamics model is of another action space.
    """
    if request.out.suffix.lower() not in (GIF, MP4):
        raise ValueError(f"--out must end with {MP4} or {GIF}, got {request.out}; give another name")
    if request.num_clips < 1:
        raise ValueError(f"--num-clips must be >= 1, got {request.num_clips}; leave it out for one clip")
    world = open_world(request.policy, recipe=request.recipe, tokenizer=request.tokenizer, overrides=request.overrides)
    idm = open_reader(request.idm, world)
    beginning = open_context(request.context, world)
    actions = commands(request.actions or None, beginning, world, request.num_frames)
    seeds = range(request.seed, request.seed + request.num_clips)
    number = len(actions)
    frames = continued(
        world.simulator(request.temperature, request.guidance),
        beginning,
        actions,
        seeds,
        (lambda done: progress(done, number)) if progress is not None else None,
    )
    size, num_context = world.config.world, len(beginning.frames)
    clips = drawn_clips(frames, num_context, actions, idm, size.groups, size.num_context + size.num_frames)
    lines = []
    for clip, path in enumerate(_paths(request.out, request.num_clips)):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_clip(path, clips, clip)
        lines.append(f"{path}: {number} frames of {frames.shape[2]}x{frames.shape[3]}{_agreement(clips, clip)}")
    return lines


def open_reader(named: str, world: OpenWorld) -> InverseDynamics | None:
    """Open the inverse dynamics model that reads the frames: a folder, `judge` or `reward` of the recipe; empty: none.

    Raises:
        ValueError: it cannot be opened, or is of another action space.
    """
    models = world.config.models
    named = {"judge": models.judge_idm, "reward": models.reward_idm}.get(named, named)
    if not named:
        return None
    idm = load_inverse_dynamics(asset_path(named)).to(world.codec.device)
    check_space(world.space, idm.space, "the world model", "the inverse dynamics model")
    return idm


def drawn_clips(
    frames: npt.NDArray[np.uint8],
    num_context: int,
    actions: Actions,
    idm: InverseDynamics | None,
    names: Sequence[str],
    window: int,
) -> Clips:
    """Return clips with the commanded fields and what the model reads in windows of so many frames."""
    fields, recovered = actions.space.select(names), None
    if idm is not None:
        recovered = read_long(idm, frames, names, window).pictured(fields)[:, num_context:]
    return Clips(
        name="generated",
        frames=frames,
        space=ActionSpace(fields),
        commanded=np.repeat(actions.values_of(names)[None], len(frames), 0),
        recovered=recovered,
        prompt_ids=("",) * len(frames),
    )


def write_clip(path: Path, clips: Clips, clip: int) -> None:
    """Write one clip with its actions below the frames, as mp4 or GIF; the file appears whole or not at all."""
    from PIL import Image

    pictures = [side_by_side([clips], clip, frame) for frame in range(clips.frames.shape[1])]
    temporary = path.with_name(f".{path.name}.part")
    if path.suffix.lower() == GIF:
        first, *rest = (Image.fromarray(np.asarray(picture)) for picture in pictures)
        first.save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=rest,
            duration=round(1000 / FRAMES_PER_SECOND),
            loop=0,
        )
    else:
        write_mp4(temporary, [np.asarray(picture) for picture in pictures])
    temporary.replace(path)


def _paths(out: Path, number: int) -> list[Path]:
    if number == 1:
        return [out]
    return [out.with_name(f"{out.stem}_{clip:02d}{out.suffix}") for clip in range(number)]


def _agreement(clips: Clips, clip: int) -> str:
    """Describe how many of the commands the model recovers."""
    if clips.recovered is None:
        return ""
    same = [
        field.bins(clips.commanded[clip, :, column]) == field.bins(clips.recovered[clip, :, column])
        for column, field in enumerate(clips.space.fields)
    ]
    return f", {float(np.mean(same)):.0%} of the commands recovered"
