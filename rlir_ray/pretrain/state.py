"""What a training's folder tells: whether it is finished, and the saved states to resume from.

A state is a folder, whole or not there. Knows nothing of what is trained.
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate import Accelerator

from rlir_ray.data.files import Json, write_json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

logger = logging.getLogger(__name__)

# How long it took, where, and how it was watched; all else is what the weights are made with.
FREE_SETTINGS = ("minutes", "num_steps", "evaluate_every_s", "threads", "device")
# What `accelerate` saves is beside it: weights, optimiser and random states.
FACTS = "training_state.json"


def finished_report(folder: Path, settings: DataclassInstance, *, extendable: bool = False) -> Json | None:
    """What training.json holds, or None where something is left to train.

    Args:
        folder: of the training.
        settings: a dataclass, as training.json holds it under `settings`.
        extendable: a training that is asked for more `minutes` than it had goes on.

    Raises:
        ValueError: a finished training of other settings.
    """
    path = folder / "training.json"
    if not path.is_file():
        return None
    report: Json = json.loads(path.read_text(encoding="utf-8"))
    held, asked = report["settings"], json.loads(json.dumps(asdict(settings)))
    changed = [name for name in asked if name not in FREE_SETTINGS and held.get(name, asked[name]) != asked[name]]
    if changed:
        raise ValueError(
            f"{folder} was trained with another {', '.join(changed)}; repeat them, remove it or choose another folder"
        )
    if extendable and asked["minutes"] > (held["minutes"] or 0):
        return None
    logger.info("%s is trained already; remove it to train again", folder)
    return report


def save_state(accelerator: Accelerator, folder: Path, *, step: int, elapsed_s: float, settings: Json) -> None:
    """Save all that `accelerator` prepared as the newest state in `folder`, then remove the older ones.

    Args:
        accelerator: holds the modules and the optimiser.
        folder: of the training.
        step: updates so far.
        elapsed_s: training time so far.
        settings: as JSON holds them.
    """
    older, final = _states(folder), folder / f"state-{step:08d}"
    if final in older:
        return
    part = folder / "state.part"
    shutil.rmtree(part, ignore_errors=True)
    # As safetensors, accelerate would drop VPT's empty weights, which it takes for copies of one weight.
    accelerator.save_state(str(part), safe_serialization=False)
    write_json(part / FACTS, {"step": step, "elapsed_s": elapsed_s, "settings": settings})
    part.rename(final)  # a state under its final name is whole
    for path in older:
        shutil.rmtree(path, ignore_errors=True)


def load_state(accelerator: Accelerator, folder: Path, settings: Json) -> tuple[int, float]:
    """Load the newest state of `folder` into what `accelerator` prepared.

    Returns:
        The step and the training time of that state; zeros where there is none.

    Raises:
        ValueError: the state is of other settings, or of an earlier version.
    """
    if (old := folder / "checkpoint.pt").is_file():
        raise ValueError(f"{old} is of an earlier version and cannot be resumed; remove it to train from the start")
    if not (found := _states(folder)):
        return 0, 0.0
    facts = json.loads((found[-1] / FACTS).read_text(encoding="utf-8"))
    held = facts["settings"]
    changed = sorted(name for name in settings if name not in FREE_SETTINGS and held.get(name) != settings[name])
    if changed:
        raise ValueError(
            f"a resumed training must keep its settings, got another {', '.join(changed)}; repeat them, remove "
            f"{found[-1]} or choose another folder"
        )
    accelerator.load_state(str(found[-1]))
    logger.info("resuming at step %d of %s", facts["step"], found[-1])
    return int(facts["step"]), float(facts["elapsed_s"])


def remove_states(folder: Path) -> None:
    """Remove all states, after the training is finished."""
    for path in (*_states(folder), folder / "state.part"):
        shutil.rmtree(path, ignore_errors=True)


def _states(folder: Path) -> list[Path]:
    return sorted(folder.glob("state-*"))
