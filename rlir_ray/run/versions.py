"""What a run was made with: packages, Python, machine, commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

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
    """Describe processor, cores, memory and GPUs."""
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join([processor(), f"{os.cpu_count()} CPUs", f"{memory / 2**30:.0f} GiB", *gpus])


def processor() -> str:
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
