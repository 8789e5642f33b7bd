"""A scripted player, which draws the next command given the distances of walls. Independent of the game engine.

The player draws each action group independently and holds it for a few frames, so that all combinations occur.
`draw_commands` draws from the same script without a game.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from rlir_ray.spaces.space import Actions
from rlir_ray.spaces.vpt import Event, actions_from_events

if TYPE_CHECKING:
    from collections.abc import Mapping

# Mouse pixels a frame: ±3.15, ±5.85 and ±10.05 degrees, which lie in different bins of both camera quantizers.
YAW_PIXELS = (-67, -39, -21, 0, 21, 39, 67)
MOVE_KEYS = {1: "key.keyboard.w", -1: "key.keyboard.s"}
JUMP_KEY = "key.keyboard.space"
FAR = 2000.0


@dataclass(frozen=True, kw_only=True, slots=True)
class PlayerScript:
    """Probabilities and hold times of the scripted player's commands."""

    forward_share: float = 0.6
    """Share of the walks that go forward; the others go back."""
    forward_frames: tuple[int, int] = (3, 7)
    """Minimum and maximum number of frames of a walk forward."""
    back_frames: tuple[int, int] = (3, 5)
    """Minimum and maximum number of frames of a walk back."""
    rest_frames: tuple[int, int] = (1, 2)
    """Minimum and maximum number of frames between two walks; without a rest, momentum would hide a reversal."""
    straight_share: float = 0.36
    """Probability that a drawn turn is no turn."""
    yaw_frames: tuple[int, int] = (1, 4)
    """Minimum and maximum number of frames of a turn."""
    attack_frames: tuple[int, int] = (2, 5)
    """Minimum and maximum number of frames of an attack."""
    cease_frames: tuple[int, int] = (3, 10)
    """Minimum and maximum number of frames between two attacks."""
    jump_probability: float = 0.4
    """Probability of a jump, in each frame that starts on the ground."""
    air_frames: int = 4
    """Frames from a jump to the earliest next jump; for `draw_commands` only, because a game reports the ground."""
    near_wall: float = 80.0
    """Distance of a wall ahead, in map units, below which a walk forward ends."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Observation:
    """The player's observation before a command; distances in map units."""

    ahead: float = FAR
    left: float = FAR
    right: float = FAR
    on_ground: bool = True
    blocked: bool = False
    """Whether the last command to walk hardly moved the player."""


@dataclass(frozen=True, slots=True)
class Command:
    """Input held during one frame."""

    move: int = 0
    """1: forward, -1: back, 0: none."""
    yaw_pixels: int = 0
    """Mouse motion, positive to the right."""
    jump: bool = False
    attack: bool = False


@dataclass
class ScriptedPlayer:
    """Player that draws the next command; its state is the held command and the remaining frames of each action."""

    rng: np.random.Generator
    script: PlayerScript = field(default_factory=PlayerScript)
    held: Command = field(default_factory=Command)
    move_left: int = 0
    yaw_left: int = 0
    attack_left: int = 0

    def next(self, observation: Observation) -> Command:
        """Draw the command of the next frame."""
        on_ground = observation.on_ground and not self.held.jump
        self.held = Command(
            self._move(observation),
            self._yaw(observation),
            bool(on_ground and self.rng.random() < self.script.jump_probability),
            self._attack(),
        )
        return self.held

    def _hold(self, frames: tuple[int, int]) -> int:
        return int(self.rng.integers(frames[0], frames[1] + 1)) - 1

    def _move(self, observation: Observation) -> int:
        wall = observation.ahead < self.script.near_wall
        self.move_left -= 1
        if self.held.move and (observation.blocked or (self.held.move > 0 and wall)):
            self.move_left = -1
        if self.move_left >= 0:
            return self.held.move
        if self.held.move:
            self.move_left = self._hold(self.script.rest_frames)
            return 0
        move = 1 if self.rng.random() < self.script.forward_share and not wall else -1
        self.move_left = self._hold(self.script.forward_frames if move > 0 else self.script.back_frames)
        return move

    def _yaw(self, observation: Observation) -> int:
        self.yaw_left -= 1
        if self.yaw_left >= 0:
            return self.held.yaw_pixels
        self.yaw_left = self._hold(self.script.yaw_frames)
        if self.rng.random() < self.script.straight_share:
            return 0
        steer = 0.85 if observation.ahead < 3 * self.script.near_wall else 0.6
        open_side = 1 if observation.right > observation.left else -1
        if observation.right == observation.left:
            open_side = 1 if self.rng.random() < 0.5 else -1
        side = open_side if self.rng.random() < steer else -open_side
        return side * int(self.rng.choice([pixels for pixels in YAW_PIXELS if pixels > 0]))

    def _attack(self) -> bool:
        self.attack_left -= 1
        if self.attack_left >= 0:
            return self.held.attack
        self.attack_left = self._hold(self.script.cease_frames if self.held.attack else self.script.attack_frames)
        return not self.held.attack


def command_event(command: Command, previous: Command, fields: Mapping[str, object] | None = None) -> Event:
    """Build a VPT recorder event of one frame.

    Args:
        command: input that leads into the frame.
        previous: input of the previous frame; `newKeys` and `newButtons` are relative to it.
        fields: further fields of the world (position, tick, …).
    """
    keys, buttons = _pressed(command)
    old_keys, old_buttons = _pressed(previous)
    mouse = {
        "x": 640.0,
        "y": 360.0,
        "dx": float(command.yaw_pixels),
        "dy": 0.0,
        "scaledX": 0.0,
        "scaledY": 0.0,
        "dwheel": 0.0,
        "buttons": buttons,
        "newButtons": [button for button in buttons if button not in old_buttons],
    }
    keyboard = {"keys": keys, "newKeys": [key for key in keys if key not in old_keys], "chars": ""}
    event = {"mouse": mouse, "keyboard": keyboard, "isGuiOpen": False, "isGuiInventory": False, "hotbar": 0}
    return event | dict(fields or {})


def _pressed(command: Command) -> tuple[list[str], list[int]]:
    keys = [MOVE_KEYS[command.move]] if command.move else []
    return keys + ([JUMP_KEY] if command.jump else []), [0] if command.attack else []


def draw_commands(num_frames: int, rng: np.random.Generator, script: PlayerScript | None = None) -> Actions:
    """Draw a sequence of commands from the player's script, without a game: no walls, and `air_frames` between jumps.

    Args:
        num_frames: F; each of the F actions leads into a frame.
        rng: the only source of randomness.
        script: probabilities and hold times; None: those of the recordings.

    Returns:
        F actions.
    """
    player = ScriptedPlayer(rng, script or PlayerScript())
    player.attack_left = int(rng.integers(0, 6))
    since_jump, events = player.script.air_frames, []
    for _ in range(num_frames):
        command = player.next(Observation(on_ground=since_jump >= player.script.air_frames))
        since_jump = 1 if command.jump else since_jump + 1
        events.append(command_event(command, Command()))
    return actions_from_events(events)
