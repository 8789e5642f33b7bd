"""Contract tests of sources of clips and of inverse dynamics models.

Legend: C context frames, F generated frames, K = C + F.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from rlir_ray.config import Config
from rlir_ray.data.clips import Clip, ClipRequest, PromptSplit
from rlir_ray.data.prompts import open_source
from rlir_ray.idm.base import InverseDynamics
from rlir_ray.testing.samples import TOLERANCE, check


def check_source(
    name: str, folder: Path, args: Mapping[str, object] | None = None, config: Config | None = None
) -> None:
    """Check a source: the number and size of its clips, equal clips for equal seeds, and no clip in both splits.

    Args:
        name: name of the source, as for prompts.source.
        folder: folder for files that the source writes.
        args: arguments of the source, as for prompts.args.
        config: configuration of a run, whose source is replaced; None: the defaults.
    """
    config = config or Config()
    prompts = replace(config.prompts, source=name, args=dict(args or {}))
    config = replace(config, prompts=prompts)
    train, again, heldout = (_clips(config, split, folder) for split in ("train", "train", "heldout"))
    for one, other in zip(train, again, strict=True):
        same = one.address == other.address and np.array_equal(one.frames, other.frames)
        check(same, "the same seed must give the same clips", f"other clips at {one.address.prompt_id}")
    for split, clips in (("training", train), ("held-out", heldout)):
        addresses = [clip.address for clip in clips]
        check(len(set(addresses)) == len(addresses), f"each {split} clip must have its own address", addresses)
    shared = {clip.address for clip in train} & {clip.address for clip in heldout}
    check(not shared, "training and held-out clips must have no address in common", sorted(shared))
    if draw := getattr(open_source(config), "commands", None):
        drawn = draw(config.world.num_frames, np.random.default_rng(0))
        check(len(drawn) == config.world.num_frames, "commands must give num_frames actions", len(drawn))


def _clips(config: Config, split: PromptSplit, folder: Path) -> list[Clip]:
    world, num_whole = config.world, 2
    request = ClipRequest(
        split=split, num_clips=4, num_whole=num_whole, seed=3 if split == "train" else 4, folder=folder
    )
    clips = open_source(config).clips(request).clips
    check(len(clips) == request.num_clips, f"clips must give {request.num_clips} clips", len(clips))
    length = world.num_context + world.num_frames
    for number, clip in enumerate(clips):
        at_least = length if number < num_whole else world.num_context
        shape = clip.frames.shape
        size_fits = shape[1:] == (world.height, world.width, 3) and at_least <= shape[0] <= length
        wanted = (at_least, world.height, world.width, 3)
        check(size_fits, f"frames of clip {number} must be {wanted}", shape)
        check(clip.frames.dtype == np.uint8, "frames must be uint8", clip.frames.dtype)
        check(len(clip.actions) == length - 1, f"a clip must have {length - 1} actions", len(clip.actions))
    return clips


@torch.no_grad()
def check_idm(idm: InverseDynamics, height: int, width: int) -> None:
    """Check an inverse dynamics model: probabilities of all its fields, equal for a clip alone and among other clips.

    Args:
        idm: the model, in evaluation mode.
        height: height of its frames in pixels.
        width: width of its frames in pixels.
    """
    random = np.random.default_rng(0)
    frames = torch.from_numpy(random.integers(0, 256, (2, 5, height, width, 3), dtype=np.uint8))
    names = idm.space.names
    reading, again, alone = idm.read(frames, names), idm.read(frames, names), idm.read(frames[:1], names)
    for field in idm.space.fields:
        check(field.name in reading.probabilities, f"read must give {field.name}", sorted(reading.probabilities))
        table, classes = reading.probabilities[field.name], reading.classes[field.name]
        shape = (2, 5, field.num_classes)
        rule = f"probabilities of {field.name} must be {shape} for two clips of five frames"
        check(tuple(table.shape) == shape, rule, tuple(table.shape))
        check(bool(table.isfinite().all()), f"probabilities of {field.name} must be finite", "NaN or infinity")
        gap = float((table.sum(-1) - 1).abs().max())
        check(gap <= TOLERANCE, f"probabilities of {field.name} must sum to 1", f"a difference of {gap:.3g}")
        check(tuple(classes.shape) == shape[:2], f"classes of {field.name} must be {shape[:2]}", tuple(classes.shape))
        legal = bool(((classes >= 0) & (classes < field.num_classes)).all())
        check(legal, f"classes of {field.name} must be below {field.num_classes}", int(classes.max()))
        for rule, other in (
            ("must be the same at every call", again.probabilities[field.name][:1]),
            ("of a clip must be the same alone and among other clips", alone.probabilities[field.name]),
        ):
            gap = float((other - table[:1]).abs().max())
            check(gap <= TOLERANCE, f"probabilities of {field.name} {rule}", f"a difference of {gap:.3g}")
