"""When a training is finished: training.json, which is written last, is there. Knows nothing of what is trained."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

# How long it took, where, and how it was watched; all else is what the weights are made with.
FREE_SETTINGS = ("minutes", "num_steps", "evaluate_every_s", "threads", "device")


def finished_report(folder: Path, settings: Any, *, extendable: bool = False) -> dict[str, Any] | None:
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
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
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
