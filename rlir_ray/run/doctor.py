"""Checks of this machine for a recipe, with one finding per check. `actors/cluster/doctor.py` checks Ray.

The tested versions are those in the constraints file that `make install` passes to pip.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rlir_ray.config import Config
from rlir_ray.extras import EXTRAS, SOURCE_LIBRARIES, install_command, is_installed, missing_text
from rlir_ray.run.environment import TESTED_PACKAGES, stand_in

Level = Literal["ok", "warn", "fail"]

CONSTRAINTS = Path(__file__).parents[2] / "constraints"
TESTED_PYTHON = "3.11"
SHARED_MEMORY = Path("/dev/shm")
# Shared memory that a small run takes, weights included, if object_store_budget_bytes is 0.
MIN_STORE_BYTES = 1 << 30
# The import of vLLM takes half a minute on two busy cores.
IMPORT_TIMEOUT_S = 180.0


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    level: Level
    """`ok`, `warn`, or `fail`: the recipe cannot run."""
    check: str
    """Name of the check."""
    text: str
    """The finding; if not ok, followed by a semicolon and the remedy."""

    def line(self) -> str:
        """Format the finding as a line."""
        return f"{self.level:<5} {self.check:<14} {self.text}"


def run_check(check: str, ask: Callable[[], str], level: Level = "fail") -> Finding:
    """Run a check; return its answer as ok, or its error, which contains the remedy."""
    try:
        return Finding("ok", check, ask())
    except ImportError as error:
        return Finding("fail", check, f"{error}; make install")
    except (ValueError, RuntimeError) as error:
        return Finding(level, check, str(error))


def machine_findings(config: Config) -> Iterator[Finding]:
    """Check Python and packages, devices, shared memory, engines, codec and checkpoints."""
    file = _constraints_file()
    yield _python()
    yield from _home()
    yield from version_findings(file)
    yield run_check("devices", _devices)
    yield _shared_memory(config)
    install = f"pip install -c {file} deepspeed"
    yield import_finding("deepspeed", config.learner.engine == "deepspeed", install)
    yield import_finding("vllm", config.rollout.engine == "vllm", "make install-vllm")
    for source, library in SOURCE_LIBRARIES.items():
        yield import_finding(library, config.prompts.source == source, install_command(library))
    yield from _optional_findings(config)
    yield run_check("engine", lambda: _engine(config))
    yield run_check("video codec", _video_codec)
    found = run_check("checkpoints", lambda: _checkpoints(config))
    yield found
    if found.level == "ok":
        yield run_check("learner memory", lambda: _learner_memory(config), "warn")


def _python() -> Finding:
    found = platform.python_version()
    if found.startswith(TESTED_PYTHON + "."):
        return Finding("ok", "python", found)
    old = sys.version_info < (3, 11)
    text = f"{found}, tested {TESTED_PYTHON}; install Python {TESTED_PYTHON}"
    return Finding("fail" if old else "warn", "python", text)


def _home() -> Iterator[Finding]:
    if Path.home() == stand_in():
        yield Finding("warn", "home", f"no home folder that this user can write, {stand_in()} is used; set HOME")


def _constraints_file() -> Path:
    """Choose the constraints file as the Makefile does."""
    return CONSTRAINTS / ("gpu.txt" if shutil.which("nvidia-smi") else "cpu.txt")


def version_findings(file: Path) -> Iterator[Finding]:
    """Compare the installed versions with a constraints file; yield a finding for each difference."""
    if not file.is_file():
        yield Finding("warn", "versions", f"not compared, {file} is missing; run this in a checkout")
        return
    same, differs = [], False
    pins = (
        line.split("==") for line in file.read_text(encoding="utf-8").splitlines() if "==" in line and line[0] != "#"
    )
    for name, tested in pins:
        try:
            # Ignore the build's suffix, as in 2.13.0+cpu.
            found = importlib.metadata.version(name).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            if name in TESTED_PACKAGES and name not in EXTRAS:
                differs = True
                yield Finding("fail", "version", f"{name} is not installed; pip install -c {file} {name}=={tested}")
            continue
        if found == tested:
            same.append(f"{name} {found}")
            continue
        differs = True
        yield Finding("warn", "version", f"{name} {found}, tested {tested}; pip install -c {file} {name}=={tested}")
    rest = "the others as tested" if differs else "as tested"
    yield Finding("ok", "versions", f"{', '.join(each for each in same if _is_named(each))}: {rest} ({file.name})")


def _is_named(package: str) -> bool:
    return package.split()[0] in TESTED_PACKAGES


def _devices() -> str:
    import torch

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return f"{len(names)} GPUs{f' ({names[0]})' if names else ''}, {os.cpu_count()} CPU cores"


def _shared_memory(config: Config) -> Finding:
    if not SHARED_MEMORY.is_dir():
        return Finding("warn", "shared memory", f"no {SHARED_MEMORY}; Ray keeps its objects on disk here")
    usage, asked = shutil.disk_usage(SHARED_MEMORY), config.object_store_budget_bytes
    text = f"{_gb(usage.free)} GB free of {_gb(usage.total)} GB in {SHARED_MEMORY}"
    if usage.free >= max(asked, MIN_STORE_BYTES):
        return Finding("ok", "shared memory", text)
    # This is a warning: with too little shared memory, Ray puts its store on disk, which is slow.
    remedy = "docker run --shm-size, in Kubernetes an emptyDir of medium Memory, or lower object_store_budget_bytes"
    return Finding("warn", "shared memory", f"{text}, Ray's store asks for {max(asked, MIN_STORE_BYTES)}; {remedy}")


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f}"


def import_finding(module: str, needed: bool, remedy: str) -> Finding:
    """Check that a library can be imported, in a separate process, because some imports hang or end the process."""
    level: Level = "fail" if needed else "warn"
    if importlib.util.find_spec(module) is None:
        if not needed:
            return Finding("ok", module, "not installed, and the recipe does not need it")
        return Finding("fail", module, f"not installed; {remedy}")
    quiet = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", f"import {module}; print(getattr({module}, '__version__', 'installed'))"],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=IMPORT_TIMEOUT_S,
            env={**os.environ, **quiet},
        )
    except subprocess.TimeoutExpired:
        return Finding(level, module, f"its import takes more than {IMPORT_TIMEOUT_S:g} s; {remedy}")
    if done.returncode:
        cause = ([line.strip() for line in done.stderr.splitlines() if line.strip()] or ["no message"])[-1]
        return Finding(level, module, f"cannot be imported ({cause}); {remedy}")
    return Finding("ok", module, done.stdout.split()[-1])


def _optional_findings(config: Config) -> Iterator[Finding]:
    """Warn of a missing library that the recipe uses but does not need."""
    from rlir_ray.run.preflight import samples_by_numba

    for library, is_used in (("tensorboard", True), ("numba", samples_by_numba(config))):
        if is_installed(library):
            yield Finding("ok", library, "installed")
        elif is_used:
            yield Finding("warn", library, missing_text(library).removeprefix(f"{library} is "))
        else:
            yield Finding("ok", library, "not installed, and the recipe does not need it")


def _engine(config: Config) -> str:
    from rlir_ray.run.preflight import check_engine

    check_engine(config)
    return f"rollout.engine={config.rollout.engine} can run"


def _video_codec() -> str:
    import av

    try:
        av.codec.Codec("libx264", "w")
    except ValueError:
        raise RuntimeError(f"av {av.__version__} has no libx264; pip install --force-reinstall av") from None
    return f"av {av.__version__} writes libx264"


def _checkpoints(config: Config) -> str:
    from rlir_ray.run.preflight import check_checkpoints
    from rlir_ray.run.resolved import check_reward_idm, resolve

    check_reward_idm(config)
    run = resolve(config)
    check_checkpoints(run.models)
    return f"whole, of one world; an encoded frame is {'x'.join(map(str, run.frame_shape))}"


def _learner_memory(config: Config) -> str:
    import torch

    from rlir_ray.families import family_of, open_policy
    from rlir_ray.run.memory import learner_memory

    policy = open_policy(config, "meta")
    try:
        needed = learner_memory(config, policy, family_of(config).check_world(config))
    except RuntimeError:
        return f"not known before a run: the pass of a {type(policy).__name__} depends on the numbers in its tensors"
    if not config.learner.use_gpu or not torch.cuda.is_available():
        return needed.text()
    have = torch.cuda.get_device_properties(0).total_memory
    if needed.total > have:
        raise ValueError(f"must fit a GPU of {_gb(have)} GB, got {needed.text()}; {needed.remedy(config.learner)}")
    return f"{needed.text()}, of {_gb(have)} GB"
