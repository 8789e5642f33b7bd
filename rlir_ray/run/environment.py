"""The environment of a run: the home folder, the running copy of this project, packages, machine and commit."""

from __future__ import annotations

import configparser
import importlib.metadata
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path


def python_command() -> str:
    """Return how a shell in this folder starts the running Python: `python`, or a path such as `.venv/bin/python`."""
    running, found = Path(sys.executable), shutil.which("python")
    if found and Path(found) == running:
        return "python"
    here = Path.cwd()
    return shlex.quote(str(running.relative_to(here) if running.is_relative_to(here) else running))


def stand_in() -> Path:
    """Return the folder that replaces a missing home folder."""
    return Path(tempfile.gettempdir()) / f"rlir_ray-{os.getuid()}"


def ensure_home() -> None:
    """Set HOME to a private temporary folder if this user cannot write to a home folder.

    Ray and its libraries keep a token and results in the home folder, and their import fails without one.

    Raises:
        ValueError: the folder cannot be created, or belongs to another user.
    """
    if _has_home():
        return
    folder = stand_in()
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            raise PermissionError(f"{folder} is another user's")
    except OSError as error:
        raise ValueError(
            f"HOME must be a folder that this user can write, got {os.environ.get('HOME', 'none')} ({error}); set HOME"
        ) from error
    os.environ["HOME"] = str(folder)


def _has_home() -> bool:
    try:
        home = Path.home()
    except RuntimeError:
        return False
    # A home folder that is only readable is enough if it holds the cluster's token.
    return os.access(home, os.W_OK | os.X_OK) or os.access(home / ".ray" / "auth_token", os.R_OK)


ROOT = Path(__file__).parents[2]


def version() -> str:
    """Return the version of the checkout that holds this file, or of the installed package."""
    settings = configparser.ConfigParser()
    # Read the checkout first: it may not be installed, or another version may be installed beside it.
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    if settings.get("metadata", "name", fallback="") == "rlir_ray":
        return settings["metadata"]["version"]
    return importlib.metadata.version("rlir_ray")


def check_actors() -> None:
    """Check that `import actors` finds the package of this project.

    Ray's processes search the working folder first, so check that folder too.

    Raises:
        ValueError: the import finds another package.
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


TESTED_PACKAGES = (
    "torch",
    "ray",
    "deepspeed",
    "transformers",
    "diffusers",
    "numpy",
    "omegaconf",
    "safetensors",
    "av",
    "vizdoom",
)


def machine() -> str:
    """Describe the processor, cores, memory and GPUs of this machine."""
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join([processor(), f"{os.cpu_count()} CPUs", f"{memory / 2**30:.0f} GiB", *gpus])


def processor() -> str:
    """Return the model name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def versions() -> dict[str, str]:
    """Return the versions of packages and Python, the machine and the commit."""
    found = {"python": platform.python_version(), "machine": machine()}
    for package in TESTED_PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    try:
        here = Path(__file__).parent
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, encoding="utf-8", timeout=10
        )
        found["commit"] = commit.stdout.strip() or "unknown"
    except (OSError, subprocess.TimeoutExpired):
        found["commit"] = "unknown"
    return found
