"""A Gymnasium environment as a world: settings, opening, action space, and frames.

Legend: H W pixels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rlir_ray.registry import import_target
from rlir_ray.spaces.fields import Choice
from rlir_ray.spaces.space import ActionSpace

if TYPE_CHECKING:
    import gymnasium

    # Any: observations and actions differ with each environment.
    Env = gymnasium.Env[Any, Any]
    Space = gymnasium.Space[Any]

# Frame rate of an environment that states none; for viewers only.
DEFAULT_FPS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class EnvironmentWorld:
    """What is recorded of a Gymnasium environment, and who plays it.

    Example: ``EnvironmentWorld(env_id="CarRacing-v3", size=(64, 64), frame_skip=4)``.
    """

    env_id: str
    """A registered environment, or MODULE:ID, which imports the package that registers it."""
    env_args: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of `gymnasium.make`, such as max_episode_steps; JSON values."""
    wrappers: tuple[str, ...] = ()
    """`package.module:name` of each wrapper, which is called with the environment; the first is the innermost."""
    policy: str = ""
    """`package.module:name` of a `Policy`, or of a class: each episode then has a new object of it, which may keep
    what the policy needs from frame to frame. Empty: `RandomPolicy`."""
    hold: int = 4
    """Mean number of frames for which `RandomPolicy` holds an action."""
    zero_share: float = 0.25
    """Probability that `RandomPolicy` draws 0 for a number whose range contains 0."""
    frame_skip: int = 1
    """Environment steps between two frames, all with the same action."""
    size: tuple[int, int] | None = (64, 64)
    """Height and width of the frames, which are averaged down; None: as the environment renders them."""
    fps: int = 0
    """Frame rate, for viewers only; 0: the environment's."""
    episode_frames: int = 200
    """Frames after which an episode ends, if the environment does not end the episode before."""
    min_episode_frames: int = 10
    """A shorter episode is played again, from another start."""
    num_bins: int = 21
    """Bins of each number of a Box."""

    def __post_init__(self) -> None:
        _require(self.hold >= 1, "hold", "be >= 1", self.hold, "4")
        _require(0 <= self.zero_share <= 1, "zero_share", "be within 0 and 1", self.zero_share, "0.25")
        _require(self.frame_skip >= 1, "frame_skip", "be >= 1", self.frame_skip, "1")
        _require(self.size is None or min(self.size) >= 1, "size", "be HxW with H and W >= 1", self.size, "64x64")
        _require(self.min_episode_frames >= 2, "min_episode_frames", "be >= 2", self.min_episode_frames, "10")
        least = f"be >= min_episode_frames={self.min_episode_frames}"
        _require(self.episode_frames >= self.min_episode_frames, "episode_frames", least, self.episode_frames, "200")
        fixed = {"render_mode", "disable_env_checker"} & set(self.env_args)
        _require(not fixed, "env_args", "not hold render_mode or disable_env_checker", fixed, "the other arguments")
        try:
            json.dumps(dict(self.env_args))
        except TypeError as error:
            raise ValueError(f"env_args must hold JSON values, got {error}; give numbers, texts and lists") from None


def _require(holds: bool, name: str, rule: str, got: object, way_out: str) -> None:
    if not holds:
        raise ValueError(f"{name} must {rule}, got {got}; give {way_out}")


# ---------------------------------------------------------------------------------------------------------------------
# Opening


def open_environment(world: EnvironmentWorld) -> Env:
    """Make the environment with its wrappers; the caller closes it.

    Raises:
        ValueError: the environment or a package of it does not exist, its arguments do not fit, a wrapper cannot be
            imported, or the environment does not render RGB arrays.
    """
    import gymnasium

    env_id, way_out = world.env_id, "check the name, or give MODULE:ID to import the package that registers it"
    module, _, name = env_id.rpartition(":")
    try:
        if module:
            import_module(module)
        # Gymnasium's checker warns of what does not matter here, and stops at environments without a picture before
        # the wrappers that draw one.
        env: Env = gymnasium.make(name, render_mode="rgb_array", disable_env_checker=True, **world.env_args)
    except ModuleNotFoundError as error:
        package = (error.name or module).partition(".")[0]
        raise ValueError(
            f"environment {env_id} needs the package {package}, which is not installed; pip install {package}, or "
            "correct the name"
        ) from error
    except gymnasium.error.DependencyNotInstalled as error:
        raise ValueError(f"environment {env_id} needs a package that is not installed: {first_line(error)}") from error
    except gymnasium.error.Error as error:
        raise ValueError(f"environment must be registered, got {env_id}: {first_line(error)}; {way_out}") from error
    except TypeError as error:
        if "argument 'render_mode'" in str(error):
            raise _no_picture(env_id, "no argument render_mode") from error
        raise ValueError(
            f"env_args must fit {env_id}, got {dict(world.env_args)}: {first_line(error)}; correct them"
        ) from error
    for target in world.wrappers:
        env = import_named("wrapper", target)(env)
    env.reset(seed=0)
    render_frame(env, world)
    return env


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, or its type."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def import_named(kind: str, target: str) -> Callable[..., Any]:
    """Import a class or function by `package.module:name`.

    Args:
        kind: what it is for, for the error.
        target: the name.

    Raises:
        ValueError: the name has another form, cannot be imported, or names no class or function.
    """
    if ":" not in target:
        raise ValueError(f"{kind} must have the form package.module:name, got {target!r}; add the module")
    found = import_target(f"{kind}={target}", target)
    if not callable(found):
        raise ValueError(f"{kind}={target} must be callable, got a {type(found).__name__}; name a class or function")
    return found


def _no_picture(env_id: str, got: str) -> ValueError:
    return ValueError(
        f"environment {env_id} must render rgb_array, uint8 [H, W, 3], got {got}; add a wrapper whose render returns "
        "such frames, or choose another environment"
    )


def environment_space(env: Env, num_bins: int, names: Sequence[str] = ()) -> ActionSpace:
    """Map the environment's action space; a Discrete space gets the class names of `get_action_meanings`.

    Args:
        env: the environment.
        num_bins: bins of each number of a Box.
        names: a name for each field; empty: names from the keys and places of the environment's space.

    Raises:
        ValueError: see `ActionSpace.from_gymnasium`, or `names` are not one for each field.
    """
    space = _mapped_space(env, num_bins)
    if not names:
        return space
    if len(names) != len(space) or len(set(names)) != len(names):
        raise ValueError(
            f"the names of an action must be {len(space)} different ones, for {', '.join(space.names)}, got "
            f"{', '.join(names)}; give one name for each"
        )
    return ActionSpace(tuple(replace(field, name=name) for field, name in zip(space.fields, names, strict=True)))


def _mapped_space(env: Env, num_bins: int) -> ActionSpace:
    space = ActionSpace.from_gymnasium(env.action_space, num_bins)
    meanings = getattr(env.unwrapped, "get_action_meanings", None)
    field = space.fields[0]
    if meanings is None or len(space.fields) > 1 or not isinstance(field, Choice):
        return space
    names = tuple(str(name) for name in meanings())
    # A wrapper may have replaced the actions that the names belong to.
    if len(names) != field.num_classes or len(names) != len(set(names)):
        return space
    null_class = names.index("NOOP") if "NOOP" in names else None
    return ActionSpace((replace(field, classes=names, null_class=null_class),))


def frame_rate(env: Env, world: EnvironmentWorld) -> int:
    """Return the frames a second of the recordings."""
    return world.fps or max(1, round((env.metadata.get("render_fps") or DEFAULT_FPS) / world.frame_skip))


# ---------------------------------------------------------------------------------------------------------------------
# Frames


def render_frame(env: Env, world: EnvironmentWorld) -> npt.NDArray[np.uint8]:
    """Return the present frame, uint8 [H, W, 3], in the world's size.

    Raises:
        ValueError: the environment renders no RGB array.
    """
    try:
        frame: Any = env.render()
    except NotImplementedError as error:
        raise _no_picture(world.env_id, "no render") from error
    if not isinstance(frame, np.ndarray):
        raise _no_picture(world.env_id, type(frame).__name__)
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3:
        raise _no_picture(world.env_id, f"{frame.dtype} {list(frame.shape)}")
    # A copy: some environments draw all their frames into one array.
    return frame.copy() if world.size is None else resize_area(frame, *world.size)


def resize_area(frame: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """Resize uint8 [H, W, 3]: each pixel is the mean of the area that it covers; the same size changes nothing."""
    from PIL import Image

    return np.array(Image.fromarray(frame).resize((width, height), Image.Resampling.BOX))
