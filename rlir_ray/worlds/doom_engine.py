"""The VizDoom engine of the embedded world: settings, start, input of one frame, and reading of a state.

Independent of recordings.
"""

from __future__ import annotations

import contextlib
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from rlir_ray.extras import require_library
from rlir_ray.spaces.vpt import DEGREES_PER_PIXEL
from rlir_ray.worlds.doom_player import Command, PlayerScript

if TYPE_CHECKING:
    import numpy.typing as npt
    from vizdoom import DoomGame, GameState

# A gun that fires blanks: it flashes in each tic of an attack and in no other tic, and nothing explodes. At frame skip
# 5 no weapon of the game does this.
BLANK_GUN = b"""actor BlankGun : Weapon
{
  +WEAPON.AMMO_OPTIONAL
  States
  {
  Ready:
    CHGG A 1 A_WeaponReady
    loop
  Deselect:
    CHGG A 1 A_Lower
    loop
  Select:
    CHGG A 1 A_Raise
    loop
  Fire:
    CHGG A 1 A_GunFlash
    CHGG B 0 A_ReFire
    goto Ready
  Flash:
    CHGF A 1 bright A_Light1
    goto LightDone
  }
}
"""
HIDDEN = ("hud", "crosshair", "messages", "particles", "decals", "corpses", "effects_sprites", "screen_flashes")
# Pick-ups that tint the picture, and objects that would push the player.
REMOVED = (
    "InvulnerabilitySphere",
    "BlurSphere",
    "Infrared",
    "RadSuit",
    "Berserk",
    "ExplosiveBarrel",
)
GAME_ARGS = (
    "-nomonsters +movebob 0 +sv_infiniteammo 1 +neverswitchonpickup 1 +pickup_fade_scalar 0 +sv_aircontrol 1 "
    "+viz_nosound 1 +cl_showsecretmessage 0 +con_midtime 0"
)

# The engine's physics on the ground, and in the air with sv_aircontrol 1: speed = (speed + thrust) * FRICTION a tic.
FRICTION = 0.90625
MAX_THRUST, MAX_SIDE_THRUST, THRUST_UNIT = 50 / 32, 40 / 32, 1 / 32
# One step of the depth buffer in map units; measured while the player walked away from a wall.
DEPTH_UNIT = 7.0
# Gamma 0.65 brightens the frames, because at 48x64 pixels motion is invisible in many dark rooms.
GAMMA_TABLE = np.round(255 * (np.arange(256) / 255) ** 0.65).astype(np.uint8)


@dataclass(frozen=True, kw_only=True, slots=True)
class DoomWorld:
    """The world's settings; the same settings and seed give the same recordings."""

    height: int = 48
    """Pixels of a frame, area-averaged from 160x120."""
    width: int = 64
    """Pixels of a frame."""
    frame_skip: int = 5
    """Tics (1/35 s) an action is held: one frame."""
    episode_frames: int = 160
    """Frames of a recording, frame 0 included."""
    walk_speed: float = 6.5
    """Map units a tic; the player starts and stops with full thrust, so that the next frame shows a walk."""
    script: PlayerScript = field(default_factory=PlayerScript)
    """Script of the player."""


@contextlib.contextmanager
def open_game(wad: str, seed: int) -> Iterator[DoomGame]:
    """Start an engine on one of the packaged WADs ("freedoom1" or "freedoom2") and close it at the end.

    Raises:
        ValueError: vizdoom is not installed.
    """
    require_library("vizdoom", "recording the Doom world")
    import vizdoom

    game = vizdoom.DoomGame()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "blank_gun.wad").write_bytes(_patch_wad("DECORATE", BLANK_GUN))
        game.set_doom_game_path(str(Path(vizdoom.__file__).parent / f"{wad}.wad"))
        game.set_doom_scenario_path(str(Path(folder, "blank_gun.wad")))
        game.set_doom_config_path(str(Path(folder, "vizdoom.ini")))
        game.set_window_visible(False)
        game.set_screen_resolution(vizdoom.ScreenResolution.RES_160X120)
        game.set_screen_format(vizdoom.ScreenFormat.RGB24)
        game.set_depth_buffer_enabled(True)
        game.set_objects_info_enabled(True)
        for layer in HIDDEN:
            getattr(game, f"set_render_{layer}")(False)
        game.set_render_weapon(True)
        game.set_mode(vizdoom.Mode.PLAYER)
        buttons = "MOVE_FORWARD_BACKWARD_DELTA MOVE_LEFT_RIGHT_DELTA TURN_LEFT_RIGHT_DELTA JUMP ATTACK"
        game.set_available_buttons([getattr(vizdoom.Button, name) for name in buttons.split()])
        variables = "POSITION_X POSITION_Y POSITION_Z ANGLE VELOCITY_X VELOCITY_Y ON_GROUND"
        game.set_available_game_variables([getattr(vizdoom.GameVariable, name) for name in variables.split()])
        game.add_game_args(GAME_ARGS)
        game.set_episode_timeout(0)
        game.set_seed(seed)
        # The engine creates a folder in the working folder when it starts.
        with contextlib.chdir(folder):
            game.init()
        try:
            yield game
        finally:
            game.close()


def load_map(game: DoomGame, map_name: str, seed: int) -> None:
    """Start a map, arm and protect the player, and remove objects that would change the picture or push the player."""
    game.set_seed(seed)
    game.set_doom_map(map_name)
    game.new_episode()
    for command in ("god", "notarget", "give BlankGun", *(f"remove {name}" for name in REMOVED)):
        game.send_game_command(command)
    game.advance_action(2)
    game.send_game_command("use BlankGun")
    game.advance_action(20)


def _patch_wad(lump: str, body: bytes) -> bytes:
    """Build a PWAD with one lump (12-byte header, lumps, directory of 16-byte entries)."""
    header = b"PWAD" + struct.pack("<ii", 1, 12 + len(body))
    return header + body + struct.pack("<ii8s", 12, len(body), lump.encode())


@dataclass(frozen=True, slots=True)
class Pose:
    """Pose of the player; map units, map units a tic, radians (counter-clockwise)."""

    position: npt.NDArray[np.float64]
    angle: float
    velocity: npt.NDArray[np.float64]
    on_ground: bool


def read_pose(state: GameState) -> Pose:
    """Read the player's pose from the game variables that `open_game` selects."""
    variables = state.game_variables
    assert variables is not None
    x, y, z, angle, velocity_x, velocity_y, on_ground = variables
    return Pose(np.array([x, y, z]), np.radians(angle), np.array([velocity_x, velocity_y]), bool(on_ground))


def plan_tics(command: Command, angle: float, velocity: npt.NDArray[np.float64], world: DoomWorld) -> list[list[float]]:
    """Plan the engine input of each tic of a frame, to reach the commanded velocity as fast as the engine can.

    Momentum would hide the command. Therefore the plan approaches the walking speed with full thrust, and brakes the
    sideways velocity that remains after a turn.

    Args:
        command: input held during the frame.
        angle: before the frame, radians, counter-clockwise.
        velocity: [2], map units a tic, before the frame.
        world: frame skip and walking speed.

    Returns:
        One row a tic: forward, side, turn (degrees, right is positive), jump, attack.
    """
    turn = command.yaw_pixels * DEGREES_PER_PIXEL / world.frame_skip
    wanted = command.move * world.walk_speed / FRICTION
    rows = []
    for _ in range(world.frame_skip):
        angle -= np.radians(turn)
        forward = np.array([np.cos(angle), np.sin(angle)])
        side = np.array([forward[1], -forward[0]])
        thrust = np.clip(wanted - velocity @ forward, -MAX_THRUST, MAX_THRUST)
        side_thrust = np.clip(-velocity @ side, -MAX_SIDE_THRUST, MAX_SIDE_THRUST)
        velocity = (velocity + thrust * forward + side_thrust * side) * FRICTION
        inputs = [round(thrust / THRUST_UNIT), round(side_thrust / THRUST_UNIT), turn, command.jump, command.attack]
        rows.append([float(value) for value in inputs])
    return rows


def advance(game: DoomGame, command: Command, pose: Pose, world: DoomWorld) -> None:
    """Play one frame; the engine renders the last tic only."""
    rows = plan_tics(command, pose.angle, pose.velocity, world)
    for tic, row in enumerate(rows):
        game.set_action(row)
        game.advance_action(1, tic == len(rows) - 1)


def read_distances(state: GameState) -> tuple[float, float, float]:
    """Measure the distance in map units to obstacles ahead, left and right, from the depth buffer (120x160)."""
    # Rows around the horizon: a ledge that stops the player appears just below the horizon, the floor further down.
    depth = state.depth_buffer
    assert depth is not None
    nearest = depth[54:72].min(0) * DEPTH_UNIT
    return float(nearest[62:98].min()), float(nearest[:40].mean()), float(nearest[120:].mean())


def read_frame(state: GameState, world: DoomWorld) -> npt.NDArray[np.uint8]:
    """Return the picture at the world's size, brightened, uint8 [H, W, 3]."""
    picture = Image.fromarray(state.screen_buffer).resize((world.width, world.height), Image.Resampling.BOX)
    frame: npt.NDArray[np.uint8] = GAMMA_TABLE[np.asarray(picture)]
    return frame
