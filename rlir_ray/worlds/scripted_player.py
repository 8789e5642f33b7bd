"""A scripted player: draws the next command, given the distances of walls. Independent of the game engine.

Each group of actions is drawn apart from the others and held for a few frames, so that every group is seen in every
state. `draw_commands` draws from the same script without a game.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from rlir_ray.spaces.actions import Actions, Event

if TYPE_CHECKING:
    from collections.abc import Mapping

# Mouse pixels a frame, in degrees ±3.15, ±5.85, ±10.05: each in a bin of its own in both camera quantisers.
YAW_PIXELS = (-67, -39, -21, 0, 21, 39, 67)
MOVE_KEYS = {1: "key.keyboard.w", -1: "key.keyboard.s"}
JUMP_KEY = "key.keyboard.space"
FAR = 2000.0


@dataclass(frozen=True, kw_only=True, slots=True)
class PlayerScript:
    """Probabilities and hold times of the scripted player's commands."""

    forward_share: float = 0.6
    """Of the walks, those that go forward; the rest goes back."""
    forward_frames: tuple[int, int] = (3, 7)
    """Fewest and most frames a walk forward is held."""
    back_frames: tuple[int, int] = (3, 5)
    """The same for a walk back."""
    rest_frames: tuple[int, int] = (1, 2)
    """The same for standing between two walks: momentum would hide a reversal without a rest."""
    straight_share: float = 0.36
    """Of the turns drawn, those that keep straight."""
    yaw_frames: tuple[int, int] = (1, 4)
    """Fewest and most frames a turn is held."""
    attack_frames: tuple[int, int] = (2, 5)
    """The same for attack."""
    cease_frames: tuple[int, int] = (3, 10)
    """The same for not attacking."""
    jump_probability: float = 0.4
    """Of a jump, in each frame that begins on the ground."""
    air_frames: int = 4
    """Frames from one jump to the earliest next one; only `draw_commands` needs it, a game sees the ground."""
    near_wall: float = 80.0
    """Map units ahead below which a walk forward ends."""


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """The player's observation before a command; distances in map units."""

    ahead: float = FAR
    left: float = FAR
    right: float = FAR
    on_ground: bool = True
    blocked: bool = False
    """The last walk hardly moved the player."""


@dataclass(frozen=True, slots=True)
class Command:
    """The input held during one frame: move 1 forward, -1 back, 0 none; yaw in mouse pixels, positive to the right."""

    move: int = 0
    yaw_pixels: int = 0
    jump: bool = False
    attack: bool = False


@dataclass
class ScriptedPlayer:
    """Draws the next command; the state is what is held and for how many frames more."""

    rng: np.random.Generator
    script: PlayerScript = field(default_factory=PlayerScript)
    held: Command = field(default_factory=Command)
    move_left: int = 0
    yaw_left: int = 0
    attack_left: int = 0

    def next(self, view: View) -> Command:
        """Draw the command of the next frame."""
        on_ground = view.on_ground and not self.held.jump
        self.held = Command(
            self._move(view),
            self._yaw(view),
            bool(on_ground and self.rng.random() < self.script.jump_probability),
            self._attack(),
        )
        return self.held

    def _hold(self, frames: tuple[int, int]) -> int:
        return int(self.rng.integers(frames[0], frames[1] + 1)) - 1

    def _move(self, view: View) -> int:
        wall = view.ahead < self.script.near_wall
        self.move_left -= 1
        if self.held.move and (view.blocked or (self.held.move > 0 and wall)):
            self.move_left = -1
        if self.move_left >= 0:
            return self.held.move
        if self.held.move:
            self.move_left = self._hold(self.script.rest_frames)
            return 0
        move = 1 if self.rng.random() < self.script.forward_share and not wall else -1
        self.move_left = self._hold(self.script.forward_frames if move > 0 else self.script.back_frames)
        return move

    def _yaw(self, view: View) -> int:
        self.yaw_left -= 1
        if self.yaw_left >= 0:
            return self.held.yaw_pixels
        self.yaw_left = self._hold(self.script.yaw_frames)
        if self.rng.random() < self.script.straight_share:
            return 0
        steer = 0.85 if view.ahead < 3 * self.script.near_wall else 0.6
        open_side = 1 if view.right > view.left else -1
        if view.right == view.left:
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
        command: what is held while the frame comes about.
        previous: what was held in the frame before; gives `newKeys` and `newButtons`.
        fields: what the world adds (position, tick, …).
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
    """Draw a sequence of commands from the player's script, without a game (open ground, jumps spaced by frames).

    Args:
        num_frames: F; each of the F actions leads into a frame.
        rng: the only source of chance.
        script: shares and hold times; the default is the recorder's.

    Returns:
        F actions.
    """
    player = ScriptedPlayer(rng, script or PlayerScript())
    player.attack_left = int(rng.integers(0, 6))
    since_jump, events = player.script.air_frames, []
    for _ in range(num_frames):
        command = player.next(View(on_ground=since_jump >= player.script.air_frames))
        since_jump = 1 if command.jump else since_jump + 1
        events.append(command_event(command, Command()))
    return Actions.from_events(events)
