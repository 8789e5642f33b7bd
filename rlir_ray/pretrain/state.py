"""Saved states and the report in the folder of a training. Independent of the trained model.

A state is a folder; a folder under a final name is complete.
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

# These settings may change when a training is resumed: they set its length, device and reports. All others determine
# the weights.
RESUME_OVERRIDABLE = ("minutes", "num_steps", "evaluate_every_s", "threads", "device")
# `accelerate` saves weights, optimizer and random states beside this file.
STATE_FILE = "training_state.json"


def finished_report(folder: Path, settings: DataclassInstance, *, extendable: bool = False) -> Json | None:
    """Return the content of training.json, or None if the training is not finished.

    Args:
        folder: folder of the training.
        settings: a dataclass; training.json holds its fields under `settings`.
        extendable: a finished training continues if `settings.minutes` is larger than before.

    Raises:
        ValueError: the finished training has other settings.
    """
    path = folder / "training.json"
    if not path.is_file():
        return None
    report: Json = json.loads(path.read_text(encoding="utf-8"))
    held, asked = _with_form(report["settings"]), json.loads(json.dumps(asdict(settings)))
    # A setting that the report lacks is newer than the training, and had its default.
    if changed := _changed(asked | held, asked):
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
        folder: folder of the training.
        step: number of updates so far.
        elapsed_s: training time so far.
        settings: settings in JSON's types.
    """
    older, final = _states(folder), folder / f"state-{step:08d}"
    if final in older:
        return
    part = folder / "state.part"
    shutil.rmtree(part, ignore_errors=True)
    # With safetensors, accelerate would drop VPT's empty weights, because it treats them as copies of one weight.
    accelerator.save_state(str(part), safe_serialization=False)
    write_json(part / STATE_FILE, {"step": step, "elapsed_s": elapsed_s, "settings": settings})
    part.rename(final)  # last, so that a folder under a final name is complete
    for path in older:
        shutil.rmtree(path, ignore_errors=True)


def load_state(accelerator: Accelerator, folder: Path, settings: Json) -> tuple[int, float]:
    """Load the newest state of `folder` into what `accelerator` prepared.

    Returns:
        Step and training time of the state; zeros if there is no state.

    Raises:
        ValueError: the state has other settings, or an earlier version wrote it.
    """
    if (old := folder / "checkpoint.pt").is_file():
        raise ValueError(f"{old} is of an earlier version and cannot be resumed; remove it to train from the start")
    if not (found := _states(folder)):
        return 0, 0.0
    facts = json.loads((found[-1] / STATE_FILE).read_text(encoding="utf-8"))
    if changed := _changed(_with_form(facts["settings"]), settings):
        raise ValueError(
            f"a resumed training must keep its settings, got another {', '.join(changed)}; repeat them, remove "
            f"{found[-1]} or choose another folder"
        )
    accelerator.load_state(str(found[-1]))
    logger.info("resuming at step %d of %s", facts["step"], found[-1])
    return int(facts["step"]), float(facts["elapsed_s"])


def _with_form(held: Json) -> Json:
    """Add the form of a tokenizer that was trained before there were several."""
    return {"form": "vq"} | held if "code_size" in held else held


def _changed(held: Json, asked: Json) -> list[str]:
    """Name the settings that determine the weights and differ."""
    return sorted(name for name in asked if name not in RESUME_OVERRIDABLE and held.get(name) != asked[name])


def remove_states(folder: Path) -> None:
    """Remove all states of a finished training."""
    for path in (*_states(folder), folder / "state.part"):
        shutil.rmtree(path, ignore_errors=True)


def _states(folder: Path) -> list[Path]:
    return sorted(folder.glob("state-*"))
