"""A scripted player of PushT, which draws the next command given the positions of agent and block.

Half of the time and more it drives towards the block, otherwise in a random direction. Independent of the game.
`draw_commands` draws from the same script without a game. Positions and commands are in the game's units: the field is
a square of 512, x to the right, y down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import gymnasium

Vector = npt.NDArray[np.float64]

FIELD = 512.0
AGENT_RADIUS = 30.0
"""Radius of the agent's disc in this world."""
MAX_SPEED = 90.0
# The agent covers this share of a held command in one frame of two steps; from rest, in the first frame, 0.6.
GAIN = 0.665
# Nearest position of the agent's centre to a wall: the disc stays in the picture, a little apart from the wall.
MARGIN = 38.0
# A T of 120 units is touched if the agent's centre comes nearer to the block's than this.
BLOCK_REACH = 85.0
# Where the player pushes the block no further outwards: the agent's push has no limit and would force the block through
# the wall.
BLOCK_MARGIN = 80.0
MAX_ATTEMPTS = 30


@dataclass(frozen=True, kw_only=True, slots=True)
class PushtScript:
    """Probabilities and hold times of the scripted player's commands."""

    speeds: tuple[float, ...] = (0.0, 30.0, 60.0, 90.0)
    """Lengths of the commands, drawn with equal probabilities; far enough apart to be told apart in the picture."""
    hold_frames: tuple[int, int] = (2, 5)
    """Minimum and maximum number of frames of a command."""
    block_share: float = 0.65
    """Probability that a command leads towards the block."""
    block_noise: float = 0.4
    """Standard deviation of the angle of such a command, in radians."""


class PushtPlayer:
    """Player that draws the next command; its state is the held command and the command's remaining frames.

    Args:
        script: probabilities and hold times; None: those of the recordings.
    """

    def __init__(self, script: PushtScript | None = None) -> None:
        self.script = script or PushtScript()
        self.left, self.held = 0, np.zeros(2)

    def next(self, agent: Vector, block: Vector, rng: np.random.Generator) -> Vector:
        """Return the command of the next frame, [2].

        Args:
            agent: position of the agent, [2].
            block: position of the block, [2].
            rng: the only source of randomness.
        """
        if not self.left:
            least, most = self.script.hold_frames
            self.left = int(rng.integers(least, most + 1))
            self.held = self._draw(agent, block, rng)
        self.left -= 1
        return self.held

    def _draw(self, agent: Vector, block: Vector, rng: np.random.Generator) -> Vector:
        """Draw a command that can be held: it leads into no wall and pushes the block into none."""
        speed = float(rng.choice(self.script.speeds))
        travel = speed * GAIN * self.left
        for _ in range(MAX_ATTEMPTS):
            if rng.random() < self.script.block_share:
                ahead = block - agent
                angle = np.arctan2(ahead[1], ahead[0]) + rng.normal(0, self.script.block_noise)
            else:
                angle = rng.uniform(-np.pi, np.pi)
            direction = np.array([np.cos(angle), np.sin(angle)])
            if _is_inside(agent + travel * direction) and _spares_block(agent, block, direction, travel):
                return speed * direction
        return np.zeros(2)


def _is_inside(position: Vector) -> bool:
    return bool((position > MARGIN).all() and (position < FIELD - MARGIN).all())


def _spares_block(agent: Vector, block: Vector, direction: Vector, travel: float) -> bool:
    """Return whether a way does not push the block outwards at the edge of the field."""
    ahead = block - agent
    along, beside = float(ahead @ direction), abs(float(ahead[0] * direction[1] - ahead[1] * direction[0]))
    if beside > BLOCK_REACH or not -BLOCK_REACH / 2 < along < travel + BLOCK_REACH:
        return True
    pushed = block + direction * (travel - max(0.0, along - BLOCK_REACH))
    is_outer = (pushed < BLOCK_MARGIN) | (pushed > FIELD - BLOCK_MARGIN)
    return not (is_outer & (direction * (block - FIELD / 2) > 0)).any()


class PushtPolicy:
    """The player as a `Policy` of `rlir_ray.worlds.environment`.

    The observation is agent x, agent y, block x, block y, block angle.
    """

    def __init__(self) -> None:
        self.player = PushtPlayer()

    def __call__(
        self,
        observation: npt.NDArray[np.float64],
        info: Mapping[str, Any],
        space: gymnasium.Space[Any],
        rng: np.random.Generator,
    ) -> npt.NDArray[np.float32]:
        return self.player.next(observation[:2], observation[2:4], rng).astype(np.float32)


def draw_commands(
    num_frames: int, rng: np.random.Generator, script: PushtScript | None = None
) -> npt.NDArray[np.float32]:
    """Draw a sequence of commands without a game: an agent at a random place moves as commanded, the block rests.

    Args:
        num_frames: F; each of the F commands leads into a frame.
        rng: the only source of randomness.
        script: probabilities and hold times; None: those of the recordings.

    Returns:
        float32 [F, 2].
    """
    player = PushtPlayer(script)
    agent, block = rng.uniform(2 * MARGIN, FIELD - 2 * MARGIN, 2), rng.uniform(100, FIELD - 100, 2)
    # The first command has been held for some frames already.
    for _ in range(int(rng.integers(player.script.hold_frames[1]))):
        agent = agent + GAIN * player.next(agent, block, rng)
    commands = []
    for _ in range(num_frames):
        commands.append(player.next(agent, block, rng))
        agent = agent + GAIN * commands[-1]
    return np.stack(commands).astype(np.float32)
