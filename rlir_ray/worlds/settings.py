"""The settings that a folder of recordings was made with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from rlir_ray.data.files import write_json

SETTINGS_FILE = "settings.json"


def keep_settings(folder: Path, settings: Mapping[str, object]) -> None:
    """Write the settings of a folder's recordings, or compare them with those that the folder holds.

    Raises:
        ValueError: the folder holds other settings, whose recordings would count as recordings of these settings.
    """
    settings = json.loads(json.dumps(settings))  # tuples become lists, as in the file
    path = folder / SETTINGS_FILE
    if path.exists() and (held := json.loads(path.read_text(encoding="utf-8"))) != settings:
        key = next(key for key in settings if held.get(key) != settings[key])
        raise ValueError(
            f"{folder} holds recordings made with {key} {held.get(key)!r}, not {settings[key]!r}; use another folder"
        )
    write_json(path, settings)
