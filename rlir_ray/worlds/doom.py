"""The embedded world: Freedoom maps in the VizDoom engine, played by a scripted player, recorded in the VPT format.

The `vizdoom` package contains the engine and the maps. Event k of a recording holds the input during the tics that lead
INTO frame k. Independent of models.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from rlir_ray.data.files import write_json
from rlir_ray.data.vpt.pairs import read_events, write_recording
from rlir_ray.spaces.vpt import Event, actions_from_events
from rlir_ray.worlds.doom_engine import (
    DoomWorld,
    Pose,
    advance,
    load_map,
    open_game,
    read_distances,
    read_frame,
    read_pose,
)
from rlir_ray.worlds.doom_player import (
    Command,
    Observation,
    PlayerScript,
    ScriptedPlayer,
    command_event,
    draw_commands,
)
from rlir_ray.worlds.settings import keep_settings

if TYPE_CHECKING:
    import numpy.typing as npt
    from vizdoom import DoomGame

__all__ = ["CollectSummary", "DoomWorld", "PlayerScript", "ScriptedPlayer", "collect", "draw_commands"]

Split = Literal["train", "validation", "prompts"]
SPLITS: tuple[Split, ...] = ("train", "validation", "prompts")
Job = tuple[int, str, str]
"""An episode to record: its number, the recording's name, the map."""
GROUPS_IN_USE = ("forward_back", "jump", "use_attack", "yaw")

ALL_MAPS = tuple(
    [f"freedoom2:MAP{number:02d}" for number in range(1, 33)]
    + [f"freedoom1:E{episode}M{number}" for episode in range(1, 5) for number in range(1, 10)]
)
VALIDATION_MAPS = ALL_MAPS[4::5]
TRAIN_MAPS = tuple(name for name in ALL_MAPS if name not in VALIDATION_MAPS)
# Maps of the shipped world model and its prompts: few, open and different, because a model of two million parameters
# learns no more maps in an hour. Tokenizer and inverse dynamics models are trained on TRAIN_MAPS.
WORLD_MAPS = (
    "freedoom1:E3M1",
    "freedoom1:E3M2",
    "freedoom1:E4M8",
    "freedoom2:MAP17",
    "freedoom2:MAP29",
    "freedoom2:MAP32",
)

TICS_PER_SECOND = 35
# Maximum number of spots to try for an episode. The second half of the attempts accepts dark or narrow spots, so that
# every map gives an episode.
MAX_ATTEMPTS = 120
# Minimum mean brightness of the frames at a spot: at 48x64 pixels, motion in dark places is invisible.
MIN_BRIGHTNESS = 40
# Maximum share of an episode's frames in which a walk hardly moves the player; above, the player is stuck in a hole.
MAX_BLOCKED_SHARE = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class CollectSummary:
    """Summary of a folder of recordings."""

    num_recordings: int
    num_frames: int
    class_shares: dict[str, dict[int, float]]
    """Action group -> class -> share of the frames, frame 0 excluded."""
    maps: tuple[str, ...]


# ---------------------------------------------------------------------------------------------------------------------
# Episodes


def _place_player(game: DoomGame, rng: np.random.Generator, world: DoomWorld) -> bool:
    """Move the player to a random spot of the map; return whether the spot is bright and open."""
    # The map's objects stand in rooms, so that their positions are valid spots for the player.
    spots = [(thing.position_x, thing.position_y) for thing in game.get_state().objects]
    x, y = spots[int(rng.integers(len(spots)))]
    game.send_game_command(f"warp {x:.1f} {y:.1f}")
    game.advance_action(10)
    if game.is_episode_finished():
        return False
    state = game.get_state()
    arrived = np.abs(read_pose(state).position[:2] - [x, y]).max() < 64
    ahead, brightness = [], []
    for turn in (float(rng.uniform(0, 360)), 90.0, 90.0, 90.0):
        game.make_action([0.0, 0.0, turn, 0.0, 0.0], 1)
        state = game.get_state()
        ahead.append(read_distances(state)[0])
        brightness.append(read_frame(state, world).mean())
    open_sides = sum(distance > 160 for distance in ahead)
    return bool(arrived and open_sides >= 2 and np.mean(brightness) > MIN_BRIGHTNESS)


def play_episode(
    game: DoomGame, map_name: str, rng: np.random.Generator, world: DoomWorld
) -> tuple[npt.NDArray[np.uint8], list[Event]]:
    """Play one episode; try another spot if the player leaves the map or is stuck.

    Returns:
        Frames uint8 [F, H, W, 3] and F events.

    Raises:
        ValueError: no spot of the map lasts an episode.
    """
    load_map(game, map_name, int(rng.integers(2**31)))
    for attempt in range(MAX_ATTEMPTS):
        is_usable = _place_player(game, rng, world) or (attempt >= MAX_ATTEMPTS // 2 and not game.is_episode_finished())
        if is_usable and (played := _play(game, rng, world)) is not None:
            return played
        if game.is_episode_finished():
            load_map(game, map_name, int(rng.integers(2**31)))
    raise ValueError(
        f"no spot of {map_name} lasts {world.episode_frames} frames in {MAX_ATTEMPTS} attempts; choose other maps"
    )


def _play(
    game: DoomGame, rng: np.random.Generator, world: DoomWorld
) -> tuple[npt.NDArray[np.uint8], list[Event]] | None:
    """Play from here; return frames and events, or None if the player leaves the map, teleports or is stuck."""
    player = ScriptedPlayer(rng, world.script)
    command, blocked, num_blocked, state = Command(), False, 0, game.get_state()
    pose, distances = read_pose(state), read_distances(state)
    frames, events = [read_frame(state, world)], [_event(command, command, pose, distances[0], 0, world)]
    frame_walk = world.walk_speed * world.frame_skip
    while len(frames) < world.episode_frames:
        previous, before = command, pose
        ahead, left, right = distances
        observation = Observation(ahead=ahead, left=left, right=right, on_ground=pose.on_ground, blocked=blocked)
        command = player.next(observation)
        advance(game, command, pose, world)
        if game.is_episode_finished():
            return None
        state = game.get_state()
        pose, distances = read_pose(state), read_distances(state)
        travelled = float(np.linalg.norm(pose.position[:2] - before.position[:2]))
        # A teleporter moved the player; no action explains this change of the picture.
        if travelled > 4 * frame_walk:
            return None
        blocked = command.move != 0 and travelled < 0.3 * frame_walk
        num_blocked += blocked
        frames.append(read_frame(state, world))
        events.append(_event(command, previous, pose, distances[0], len(frames) - 1, world))
    if num_blocked > MAX_BLOCKED_SHARE * len(frames):
        return None
    return np.stack(frames), events


def _event(
    command: Command, previous: Command, pose: Pose, wall_distance: float, index: int, world: DoomWorld
) -> Event:
    """Build an event; position and wallDistance in map units (z is up), yaw in degrees clockwise."""
    x, y, z = (round(float(value), 3) for value in pose.position)
    tick = index * world.frame_skip
    fields = {
        "yaw": round(float(-np.degrees(pose.angle) % 360), 4),
        "pitch": 0.0,
        "xpos": x,
        "ypos": y,
        "zpos": z,
        "onGround": pose.on_ground,
        "wallDistance": wall_distance,
        "tick": tick,
        "milli": round(tick * 1000 / TICS_PER_SECOND),
    }
    return command_event(command, previous, fields)


# ---------------------------------------------------------------------------------------------------------------------
# Collecting


def collect(
    out_dir: Path,
    *,
    num_frames: int,
    split: Split,
    seed: int,
    world: DoomWorld | None = None,
    maps: Sequence[str] | None = None,
    num_workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> CollectSummary:
    """Play and record episodes until `num_frames` frames exist; resume if an earlier call was stopped.

    Args:
        out_dir: receives NAME.mp4 + NAME.jsonl pairs and index.json.
        num_frames: number of frames, rounded up to whole episodes.
        split: each split draws other episodes; validation has its own maps.
        seed: the same seed gives the same recordings for any `num_workers`.
        world: the world's settings.
        maps: maps to play instead of the split's maps, as "freedoom2:MAP01" or "freedoom1:E1M1".
        num_workers: number of processes.
        progress: called with the numbers of finished frames and of all frames.

    Raises:
        ValueError: `num_frames` is below 1, a map or the split is unknown, or the folder holds recordings of other
            settings.
    """
    world = world or DoomWorld()
    maps = tuple(maps or (VALIDATION_MAPS if split == "validation" else TRAIN_MAPS))
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if unknown := sorted(set(maps) - set(ALL_MAPS)):
        raise ValueError(f"unknown map {unknown[0]!r}; maps are named freedoom2:MAP01..32 or freedoom1:E1M1..E4M9")
    if num_frames < 1:
        raise ValueError(
            f"frames to record must be >= 1, got {num_frames}; ask for {world.episode_frames}, one episode, or more"
        )
    out_dir.mkdir(parents=True, exist_ok=True)
    keep_settings(out_dir, {"split": split, "seed": seed, "maps": list(maps), "world": dataclasses.asdict(world)})
    num_episodes = -(-num_frames // world.episode_frames)
    names = {index: f"{split}-{maps[index % len(maps)].replace(':', '-')}-{index:05d}" for index in range(num_episodes)}
    todo: dict[str, list[Job]] = {}
    done = 0
    for index, name in names.items():
        if (out_dir / f"{name}.jsonl").exists() and (out_dir / f"{name}.mp4").exists():
            done += 1
            continue
        wad, map_name = maps[index % len(maps)].split(":")
        todo.setdefault(wad, []).append((index, name, map_name))
    # One engine plays a chunk; with many small chunks all workers end at about the same time.
    chunks = [(wad, part) for wad, jobs in todo.items() for part in _chunks(jobs, max(num_workers, len(jobs) // 32))]
    stem = (out_dir, split, seed, world)
    if num_workers <= 1:
        for wad, jobs in chunks:
            for _ in _record(wad, jobs, *stem):
                done += 1
                if progress:
                    progress(done * world.episode_frames, num_episodes * world.episode_frames)
    else:
        with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
            for count in pool.map(_record_all, *zip(*[(wad, jobs, *stem) for wad, jobs in chunks], strict=True)):
                done += count
                if progress:
                    progress(done * world.episode_frames, num_episodes * world.episode_frames)
    return _write_index(out_dir, list(names.values()), maps, world)


def _chunks(jobs: list[Job], num_chunks: int) -> list[list[Job]]:
    return [part for part in (jobs[start::num_chunks] for start in range(num_chunks)) if part]


def _record_all(wad: str, jobs: list[Job], out_dir: Path, split: Split, seed: int, world: DoomWorld) -> int:
    return sum(1 for _ in _record(wad, jobs, out_dir, split, seed, world))


def _record(wad: str, jobs: list[Job], out_dir: Path, split: Split, seed: int, world: DoomWorld) -> Iterator[str]:
    with open_game(wad, seed) as game:
        for index, name, map_name in jobs:
            rng = np.random.default_rng([seed, SPLITS.index(split), index])
            frames, events = play_episode(game, map_name, rng, world)
            write_recording(out_dir / name, frames, events)
            yield name


def _write_index(out_dir: Path, names: list[str], maps: tuple[str, ...], world: DoomWorld) -> CollectSummary:
    """Write an index as VPT publishes it (basedir and relpaths); return a summary of the recordings."""
    columns = []
    for name in names:
        classes = actions_from_events(read_events(out_dir / f"{name}.jsonl")).classes_of(GROUPS_IN_USE)
        columns.append(classes[1:])
    classes = np.concatenate(columns)
    shares = {
        group: {int(value): float(np.mean(column == value)) for value in np.unique(column)}
        for group, column in zip(GROUPS_IN_USE, classes.T, strict=True)
    }
    summary = CollectSummary(
        num_recordings=len(names),
        num_frames=len(classes) + len(names),
        class_shares=shares,
        maps=maps[: len(names)],
    )
    index = {
        "basedir": str(out_dir.resolve()),
        "relpaths": [f"{name}.mp4" for name in names],
        "summary": dataclasses.asdict(summary),
        "world": dataclasses.asdict(world),
    }
    write_json(out_dir / "index.json", index)
    return summary
