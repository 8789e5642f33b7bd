"""The commands that make a world: recordings, base models, and checks of them. Heavy imports come in the functions."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

Command = Callable[[argparse.Namespace, list[str]], None]


def _actions(arguments: argparse.Namespace, rest: list[str]) -> None:
    from rlir_ray.data.lerobot.layout import is_lerobot
    from rlir_ray.data.lerobot.reader import LerobotDataset
    from rlir_ray.data.vpt.pairs import open_recording
    from rlir_ray.spaces.conventions import describe

    path = Path(arguments.file)
    if is_lerobot(path):
        dataset = LerobotDataset(path, arguments.camera)
        name = arguments.episode or dataset.names[0]
        actions = dataset.recording(name, arguments.action_shift).actions
        print(name)
    else:
        actions = open_recording(path, action_shift=arguments.action_shift).actions
    print("\n".join(describe(actions, arguments.to)))


def _collect(arguments: argparse.Namespace, rest: list[str]) -> None:
    from rlir_ray.run.progress import progress_bar

    out = Path(arguments.out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out must be a folder, got the file {out}; give another path")
    with progress_bar("recording") as show:

        def progress(done: int, total: int) -> None:
            show(done / total, f"{done} frames")

        line = _collect_environment(arguments, progress) if arguments.env else _collect_doom(arguments, progress)
    print(line)
    if not arguments.no_probe:
        _probe(out)
    if arguments.env:
        print(_after_collect(out))


def _after_collect(out: Path) -> str:
    from rlir_ray.data.recordings import MIN_SPLIT, open_recordings
    from rlir_ray.run.environment import python_command

    if len(open_recordings(out).names) < MIN_SPLIT:
        return f"a new world needs {MIN_SPLIT} episodes or more, because a part is held out; raise --frames"
    return f"next: {python_command()} -m rlir_ray new work/{out.name} --data {out}"


def _collect_doom(arguments: argparse.Namespace, progress: Callable[[int, int], None]) -> str:
    from rlir_ray.worlds.doom import collect

    summary = collect(
        Path(arguments.out),
        num_frames=arguments.frames,
        split=arguments.split,
        seed=arguments.seed,
        num_workers=arguments.workers,
        progress=progress,
    )
    return (
        f"{summary.num_frames} frames in {summary.num_recordings} recordings of {len(summary.maps)} maps: "
        f"{arguments.out}"
    )


def _collect_environment(arguments: argparse.Namespace, progress: Callable[[int, int], None]) -> str:
    from rlir_ray.worlds.environment import collect_environment
    from rlir_ray.worlds.environment_world import EnvironmentWorld

    world = EnvironmentWorld(
        env_id=arguments.env,
        env_args=_env_args(arguments.env_arg),
        wrappers=tuple(arguments.wrapper),
        policy=arguments.policy,
        hold=arguments.hold,
        size=arguments.size,
        frame_skip=arguments.frame_skip,
        episode_frames=arguments.episode_frames,
        num_bins=arguments.num_bins,
    )
    summary = collect_environment(
        Path(arguments.out),
        world,
        num_frames=arguments.frames,
        split=arguments.split,
        seed=arguments.seed,
        names=arguments.action_names,
        num_workers=arguments.workers,
        progress=progress,
    )
    names = ", ".join(summary.space.names)
    return f"{summary.num_frames} frames in {summary.num_episodes} episodes, actions {names}: {arguments.out}"


def _env_args(pairs: list[str]) -> dict[str, object]:
    """Read KEY=VALUE pairs; a value is JSON, or a text."""
    found: dict[str, object] = {}
    for pair in pairs:
        key, mark, value = pair.partition("=")
        if not mark:
            raise ValueError(f"--env-arg must be KEY=VALUE, got {pair!r}; for example max_episode_steps=1000")
        try:
            found[key] = json.loads(value)
        except json.JSONDecodeError:
            found[key] = value
    return found


def _probe(folder: Path) -> None:
    """Measure which action of the recordings leads into which frame, and print the result."""
    from itertools import islice

    from rlir_ray.data.alignment import MAX_RECORDINGS, check_alignment
    from rlir_ray.data.recordings import open_recordings, read_all

    read = islice(read_all(open_recordings(folder)), MAX_RECORDINGS)
    found = check_alignment(
        [(each.frames, each.actions) for each in read], str(folder), way_out="data.action_shift={shift}"
    )
    if found is not None:
        others = ", ".join(f"{score:.2f} of action k{shift:+d}" for shift, score in found.scores.items() if shift)
        scores = f"two neighbouring frames tell {found.scores[0]:.2f} of the changes of action k, {others}"
        if found.best_shift:
            print(f"the probe cannot tell which action leads into a frame: {scores}")
        else:
            print(f"action k leads into frame k: {scores}")


def _new(arguments: argparse.Namespace, rest: list[str]) -> None:
    from rlir_ray.pretrain.new_world import NewWorld, run_commands, write_world

    world = NewWorld(
        folder=arguments.folder,
        data=arguments.data,
        family=arguments.family,
        camera=arguments.camera,
        size=arguments.size,
        quick=arguments.quick,
    )
    commands = write_world(world)
    if arguments.quick:
        run_commands(commands)


def _audit(arguments: argparse.Namespace, rest: list[str]) -> None:
    overrides = [*arguments.overrides, *rest]
    of_recipe = [name for name, given in (("--out", arguments.out), ("overrides", overrides)) if given]
    of_models = [f"--{name}" for name in ("data", "idm", "groups") if getattr(arguments, name)]
    if arguments.recipe and not of_models:
        _audit_recipe(arguments, overrides)
    elif arguments.data and arguments.idm and not (arguments.recipe or of_recipe):
        _audit_models(arguments)
    else:
        found = [*(["--recipe"] if arguments.recipe else []), *of_recipe, *of_models]
        raise ValueError(
            "audit needs --recipe (with --out and overrides), or --data and --idm (with --groups), got "
            f"{', '.join(found) or 'none of them'}; give the options of one check"
        )


def _audit_recipe(arguments: argparse.Namespace, overrides: list[str]) -> None:
    from rlir_ray.config.load import load_config
    from rlir_ray.config.unread_keys import reject_unread
    from rlir_ray.evaluation.audit import audit_recipe, audit_text, write_audit

    config = load_config(arguments.recipe, overrides)
    reject_unread(config, overrides)
    audit = audit_recipe(config, arguments.num_clips, lambda line: print(line, file=sys.stderr))
    print("\n".join(audit_text(audit)))
    if arguments.out is not None:
        print(write_audit(audit, arguments.out, config.recipe))
    if audit.faults:
        sys.exit(1)


def _audit_models(arguments: argparse.Namespace) -> None:
    from rlir_ray.config import DataConfig
    from rlir_ray.rewards.idm_audit import AuditRequest, audit, audit_lines
    from rlir_ray.run.environment import python_command

    audits = audit(
        AuditRequest(
            idms=tuple(arguments.idm),
            data=arguments.data,
            groups=tuple(name for name in arguments.groups.split(",") if name),
            num_clips=arguments.num_clips,
            num_frames=arguments.num_frames,
            size=arguments.size,
            reading=DataConfig(camera=arguments.camera, action_shift=arguments.action_shift),
        )
    )
    print("\n".join(audit_lines(audits)))
    if any(each.fault for each in audits.values()):
        sys.exit(1)
    print(
        f"next: {python_command()} -m rlir_ray pretrain world-model --data TOKENS --out DIR (or: pretrain flow --data "
        "LATENTS ...)"
    )


def _pretrain(arguments: argparse.Namespace, rest: list[str]) -> None:
    from rlir_ray.pretrain.command import main

    if arguments.model is None:
        arguments.parser.print_help()
        return
    main(arguments.model, [*rest, *(["--help"] if arguments.help else [])])


def _assets(arguments: argparse.Namespace, rest: list[str]) -> None:
    from rlir_ray.pretrain.assets import main

    main(rest)


WORLD_HANDLERS: dict[str, Command] = {
    "collect": _collect,
    "actions": _actions,
    "new": _new,
    "pretrain": _pretrain,
    "audit": _audit,
    "assets": _assets,
}
