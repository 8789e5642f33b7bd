"""Which copy runs, as a user starts it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import rlir_ray
from rlir_ray.run.environment import check_actors, python_command

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy as `pip install` puts it into site-packages; `sitecustomize` looks there last, as Python does."""
    folder = tmp_path_factory.mktemp("installed")
    for name in ("rlir_ray", "actors"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("assets", "__pycache__"))
    information = folder / "rlir_ray-9.8.7.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: rlir_ray\nVersion: 9.8.7\n", encoding="utf-8")
    return folder


def run(site: Path, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        env={**environment, "PYTHONPATH": str(site)},
    )


@pytest.mark.parametrize("name", ["actors/__init__.py", "actors.py"])
@pytest.mark.parametrize(
    "command",
    [
        ["-m", "rlir_ray", "train", "--recipe", "doom_tiny_ar"],
        ["-c", "import rlir_ray; rlir_ray.Pipeline"],
        ["-P", "-m", "rlir_ray", "train", "--recipe", "doom_tiny_ar"],
    ],
)
def test_an_actors_of_the_users_own_is_refused_in_one_line_and_never_imported(
    command: list[str], name: str, site: Path, tmp_path: Path
) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("raise SystemExit('imported')\n", encoding="utf-8")
    done = run(site, tmp_path, *command)
    last = done.stderr.splitlines()[-1]
    assert done.returncode != 0 and "imported" not in done.stdout + done.stderr
    assert f"`actors` must be the package of rlir_ray, {site / 'actors'}, got {tmp_path / name.split('/')[0]}" in last
    assert last.endswith("start in another folder with absolute paths, or rename yours")


def test_the_working_folder_of_a_submitted_job_is_the_copy_that_runs(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As `ray job submit --working-dir .` does on a machine with an installed copy: the submitted folder comes first.
    done = run(site, ROOT, "-c", "import rlir_ray; rlir_ray.Pipeline; print(rlir_ray.__file__)")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(ROOT / "rlir_ray" / "__init__.py")
    # A folder without code in it, such as one of notes, is nobody's package.
    (tmp_path / "actors").mkdir()
    monkeypatch.chdir(tmp_path)
    check_actors()


def test_the_version_is_that_of_the_copy_that_runs(site: Path, tmp_path: Path) -> None:
    installed = run(site, tmp_path, "-m", "rlir_ray", "--version")
    assert (installed.returncode, installed.stdout) == (0, "rlir_ray 9.8.7\n")
    checkout = run(ROOT, tmp_path, "-m", "rlir_ray", "--version")
    assert checkout.stdout == f"rlir_ray {rlir_ray.__version__}\n"
    assert f"version = {rlir_ray.__version__}\n" in (ROOT / "setup.cfg").read_text(encoding="utf-8")


def test_printed_commands_start_the_running_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = tmp_path / "my world" / ".venv" / "bin" / "python"
    monkeypatch.setattr(sys, "executable", str(running))
    running.parent.mkdir(parents=True)
    running.write_text("#!/bin/sh\n")
    running.chmod(0o755)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path)
    assert python_command() == "'my world/.venv/bin/python'"
    monkeypatch.chdir(tmp_path / "my world")
    assert python_command() == ".venv/bin/python"
    monkeypatch.setenv("PATH", str(running.parent))
    assert python_command() == "python"
