"""The running copy of this project: its version, and a check that both packages belong to the same copy."""

from __future__ import annotations

import configparser
import importlib.metadata
import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[2]


def version() -> str:
    """Return the version of the checkout that holds this file, otherwise of the installed package."""
    settings = configparser.ConfigParser()
    # A checkout may run without being installed, or beside an installed copy of another version.
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    if settings.get("metadata", "name", fallback="") == "rlir_ray":
        return settings["metadata"]["version"]
    return importlib.metadata.version("rlir_ray")


def check_actors() -> None:
    """Check that `import actors` finds our package, here and in Ray's processes, which search the working folder first.

    Raises:
        ValueError: it finds another one.
    """
    here = Path.cwd()
    found = [path for path in (here / "actors" / "__init__.py", here / "actors.py") if path.is_file()]
    if (spec := importlib.util.find_spec("actors")) is not None and spec.origin:
        found.append(Path(spec.origin))
    ours = ROOT / "actors" / "__init__.py"
    if others := [path for path in found if path.resolve() != ours.resolve()]:
        other = others[0] if others[0].name == "actors.py" else others[0].parent
        raise ValueError(
            f"`actors` must be the package of rlir_ray, {ours.parent}, got {other}; start in another folder with "
            "absolute paths, or rename yours"
        )
