"""Open what a person names: a policy, and the frames and actions with which its clips begin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from rlir_ray.config import RunConfig, asset_path
from rlir_ray.config.load import load_config
from rlir_ray.data.prompts import PromptSet, prepare_prompts
from rlir_ray.data.recordings import Recorded, open_recordings, resize_frames
from rlir_ray.data.vpt.pairs import open_recording
from rlir_ray.evaluation.policy_config import policy_config
from rlir_ray.families import action_space, family_of, make_stepper, open_codec, open_policy
from rlir_ray.play.simulator import Simulator
from rlir_ray.run.resolved import with_field_names
from rlir_ray.spaces.space import Actions, ActionSpace
from rlir_ray.spaces.words import parse_actions

if TYPE_CHECKING:
    from torch import nn

    from rlir_ray.config import Config
    from rlir_ray.models.clip_codec import ClipCodec

PROMPT = "prompt:"
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
VIDEOS = (".mp4", ".jsonl")


@dataclass(frozen=True, kw_only=True)
class OpenWorld:
    """A policy with its codec, ready to continue clips."""

    config: Config
    policy: nn.Module
    codec: ClipCodec
    space: ActionSpace
    folder: Path
    """The run's folder or, outside of a run, that of the policy."""

    def simulator(self, temperature: float = 1.0, guidance: float = 1.0) -> Simulator:
        """Return a new simulator over the same policy.

        Raises:
            ValueError: the temperature is not positive, or the policy cannot be guided.
        """
        return Simulator(make_stepper(self.config, self.policy, temperature, guidance), self.codec, self.space)


@dataclass(frozen=True, kw_only=True, slots=True)
class Beginning:
    """The frames with which a clip begins, and the recorded actions."""

    frames: npt.NDArray[np.uint8]
    """[C, H, W, 3], of the world's size."""
    between: Actions
    """The C - 1 actions between the frames."""
    recorded: Actions | None = None
    """The recorded actions after the frames; None: a picture has none."""


def policy_path(named: str) -> str:
    """Return the folder of a policy, or its path in the package, for a run's name or folder or a policy's folder.

    Raises:
        ValueError: nothing has this name.
    """
    if named.startswith("asset:"):
        return named
    for place in (Path(RunConfig().dir) / named, Path(named)):
        if (place / "policy").is_dir():
            return str(place / "policy")
    if Path(named).is_dir():
        return named
    raise ValueError(
        f"--policy must be a run's name below {RunConfig().dir}/, a folder of a run or a policy, or asset:PATH, got "
        f"{named!r}; check the name"
    )


def base_of(named: str) -> str:
    """Return the policy from which a run started, as its configuration names it.

    Raises:
        ValueError: the policy is not that of a run.
    """
    run = Path(policy_path(named)).absolute().parent
    if not (run / "config.yaml").is_file():
        raise ValueError(f"a base needs a run's policy, got {named!r}; name the base's folder or asset:PATH")
    return load_config(str(run / "config.yaml")).models.policy


def open_world(
    named: str, *, recipe: str = "", tokenizer: str = "", overrides: tuple[str, ...] = (), device: str = ""
) -> OpenWorld:
    """Open a policy with its codec.

    Args:
        named: see `policy_path`.
        recipe, tokenizer, overrides: see `policy_config`.
        device: torch's name; empty: the GPU if there is one.

    Raises:
        ValueError: nothing has this name, no recipe fits, or the parts do not fit each other.
    """
    import torch
    from transformers.utils.logging import disable_progress_bar

    # transformers shows a progress bar for each model, which would mix with the commands' lines.
    disable_progress_bar()
    place = policy_path(named)
    config = policy_config(place, recipe=recipe, tokenizer=tokenizer, overrides=overrides)
    space = action_space(config)
    config = with_field_names(config, space)
    family_of(config).check_world(config)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    folder = asset_path(place).absolute()
    run = folder.parent if (folder.parent / "config.yaml").is_file() else folder
    policy = open_policy(config, device).requires_grad_(False).eval()
    return OpenWorld(config=config, policy=policy, codec=open_codec(config).to(device), space=space, folder=run)


# ---------------------------------------------------------------------------------------------------------------------
# Contexts and actions


def open_context(text: str, world: OpenWorld, progress: Callable[[int, int], None] | None = None) -> Beginning:
    """Open the frames with which a clip begins.

    Args:
        text: ``prompt:N`` for the N-th held-out prompt of the policy's recipe, a picture, a recording's mp4 or jsonl,
            or a folder of recordings, of which the first counts.
        world: gives the size and the number of frames.
        progress: see `prepare_prompts`.

    Raises:
        ValueError: there is no such prompt or file, the file cannot be read, or it is too short.
    """
    if text.startswith(PROMPT):
        return _prompt(text, world, progress)
    path = Path(text)
    if not path.exists():
        raise ValueError(f"--context must be prompt:N or an existing file, got {text!r}; check the path")
    if path.suffix.lower() in PICTURES:
        return _picture(path, world)
    return _first_of(_recording(path, world), world)


def open_actions(text: str, world: OpenWorld) -> Actions:
    """Open actions: a recording's mp4 or jsonl, a folder of recordings, or words (`parse_actions`).

    The first action of a recording leads into its first frame and is left out.

    Raises:
        ValueError: the recording cannot be read, is of another space, or a word is unknown.
    """
    if Path(text).suffix.lower() in VIDEOS or Path(text).is_dir():
        actions = _recording(Path(text), world).actions
        if differences := world.space.differences(actions.space):
            raise ValueError(f"--actions must be of the policy's action space, got {differences[0]} in {text}")
        return actions[1:]
    return parse_actions(text, world.space)


def _recording(path: Path, world: OpenWorld) -> Recorded:
    data = world.config.data
    if path.is_dir():
        source = open_recordings(path, data.camera)
        return source.recording(source.names[0], data.action_shift)
    if not path.is_file():
        raise ValueError(f"a recording must be an existing file, got {path}; check the path")
    if path.suffix.lower() not in VIDEOS:
        raise ValueError(f"a recording must be a .mp4 or .jsonl file, got {path}; give another file")
    return open_recording(path, action_shift=data.action_shift)


def _first_of(recorded: Recorded, world: OpenWorld) -> Beginning:
    size = world.config.world
    if len(recorded) < size.num_context:
        raise ValueError(
            f"a context must have {size.num_context} frames, got {len(recorded)} in {recorded.name}; give a longer one"
        )
    frames = recorded.read(0, size.num_context)
    frames = resize_frames(frames, size.height, size.width, world.config.data.resize)
    actions, num_context = recorded.actions, size.num_context
    is_same = not world.space.differences(actions.space)
    return Beginning(
        frames=frames,
        between=actions[1:num_context] if is_same else world.space.nothing(num_context - 1),
        recorded=actions[num_context:] if is_same and len(actions) > num_context else None,
    )


def _picture(path: Path, world: OpenWorld) -> Beginning:
    from PIL import Image, UnidentifiedImageError

    size = world.config.world
    try:
        with Image.open(path) as picture:
            pixels = np.array(picture.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"--context must be a readable picture, got {type(error).__name__} for {path}") from None
    frame = resize_frames(pixels[None], size.height, size.width, world.config.data.resize)
    return Beginning(frames=frame.repeat(size.num_context, 0), between=world.space.nothing(size.num_context - 1))


def prompt_frames(world: OpenWorld) -> npt.NDArray[np.uint8]:
    """Return the context frames of all held-out prompts of the policy's recipe, uint8 [P, C, H, W, 3]."""
    return _heldout(world, None).frames[:, : world.config.world.num_context]


def _prompt(text: str, world: OpenWorld, progress: Callable[[int, int], None] | None) -> Beginning:
    config, number = world.config, text.removeprefix(PROMPT)
    most = config.prompts.num_heldout
    if not number.isdecimal() or int(number) >= most:
        raise ValueError(
            f"--context prompt:N must name one of the {most} held-out prompts, 0 to {most - 1}, got {text!r}"
        )
    found = _heldout(world, progress)[slice(int(number), int(number) + 1)]
    num_context = config.world.num_context
    return Beginning(
        frames=found.frames[0, :num_context],
        between=found.recorded[0][: num_context - 1],
        recorded=found.prompts[0].actions[num_context - 1 :],
    )


def _heldout(world: OpenWorld, progress: Callable[[int, int], None] | None) -> PromptSet:
    """Return the held-out prompts of the policy's recipe."""
    # A run has recorded its prompts already; for other policies they are recorded once for all.
    shared = Path(RunConfig().dir) / ".prompts" / (Path(world.config.recipe).stem or "recipe")
    folder = world.folder if (world.folder / "config.yaml").is_file() else shared
    folder.mkdir(parents=True, exist_ok=True)
    return prepare_prompts(world.config, "heldout", world.codec, folder, progress)
