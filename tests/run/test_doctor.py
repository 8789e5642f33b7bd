"""What `python -m rlir_ray doctor` finds, one line a check."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rlir_ray.config.load import load_config
from rlir_ray.run import doctor
from rlir_ray.run.doctor import Finding, import_finding, machine_findings, run_check, version_findings
from rlir_ray.run.environment import TESTED_PACKAGES


def test_a_finding_is_one_line_that_begins_with_its_level() -> None:
    assert Finding("warn", "numpy", "1.0").line() == "warn  numpy          1.0"


def test_refusals_of_a_check_are_its_finding() -> None:
    def refuse() -> str:
        raise ValueError("x must be 1, got 2; set x=1")

    def cannot_import() -> str:
        raise ImportError("No module named 'av'")

    assert run_check("x", lambda: "fine") == Finding("ok", "x", "fine")
    assert run_check("x", refuse) == Finding("fail", "x", "x must be 1, got 2; set x=1")
    assert run_check("x", cannot_import) == Finding("fail", "x", "No module named 'av'; make install")


def test_versions_are_compared_with_the_constraints_that_install_takes(tmp_path: Path) -> None:
    file = tmp_path / "cpu.txt"
    file.write_text(f"# seen to work\nnumpy=={np.__version__}\nav==0.1\n")
    different, same = version_findings(file)
    found = importlib.metadata.version("av")
    assert different == Finding("warn", "version", f"av {found}, tested 0.1; pip install -c {file} av==0.1")
    assert same == Finding("ok", "versions", f"numpy {np.__version__}: the others as tested (cpu.txt)")


def test_a_build_mark_is_no_other_version_and_a_missing_package_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if name == "ray":
            raise importlib.metadata.PackageNotFoundError
        return "2.13.0+cpu"

    monkeypatch.setattr(doctor.importlib.metadata, "version", version)
    file = tmp_path / "cpu.txt"
    file.write_text("torch==2.13.0\nray==2.60.0\n")
    missing, same = version_findings(file)
    assert missing == Finding("fail", "version", f"ray is not installed; pip install -c {file} ray==2.60.0")
    assert same.level == "ok" and same.text.startswith("torch 2.13.0")


def test_both_constraints_files_pin_what_a_run_writes_down() -> None:
    for name in ("cpu.txt", "gpu.txt"):
        pinned = {line.split("==")[0] for line in (doctor.CONSTRAINTS / name).read_text().splitlines() if "==" in line}
        assert set(TESTED_PACKAGES) <= pinned


@pytest.mark.parametrize("needed", [True, False])
def test_a_library_that_breaks_or_hangs_at_its_import_fails_where_it_is_needed(
    needed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_engine.py").write_text("raise OSError('no such operator')\n")
    (tmp_path / "slow_engine.py").write_text("import time\ntime.sleep(60)\n")
    (tmp_path / "good_engine.py").write_text("__version__ = '1.2'\nprint('hello')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    level = "fail" if needed else "warn"
    broken = import_finding("broken_engine", needed, "make install")
    assert broken == Finding(level, "broken_engine", "cannot be imported (OSError: no such operator); make install")
    monkeypatch.setattr(doctor, "IMPORT_TIMEOUT_S", 0.5)
    assert import_finding("slow_engine", needed, "make install").text.startswith("its import takes more than 0.5 s")
    monkeypatch.setattr(doctor, "IMPORT_TIMEOUT_S", 60.0)
    assert import_finding("good_engine", needed, "make install") == Finding("ok", "good_engine", "1.2")
    absent = import_finding("absent_engine", needed, "make install")
    assert absent.level == ("fail" if needed else "ok")


def test_a_checkpoint_that_is_missing_is_a_finding_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "import_finding", lambda module, *rest: Finding("ok", module, ""))
    found = {finding.check: finding for finding in machine_findings(load_config("mineworld_700m"))}
    assert found["checkpoints"].level == "fail" and "check the models.* paths" in found["checkpoints"].text
    assert found["video codec"].level == found["devices"].level == "ok"


@pytest.mark.slow
@pytest.mark.ray
def test_the_shipped_recipe_runs_here_and_one_that_asks_for_gpus_or_checkpoints_does_not() -> None:
    """As a user types it; the exit code is what scripts see."""
    command = [sys.executable, "-m", "rlir_ray", "doctor", "--recipe"]
    runs = subprocess.Popen([*command, "doom_tiny_ar"], stdout=subprocess.PIPE, text=True)
    lacks = subprocess.run([*command, "mineworld_700m"], capture_output=True, text=True, timeout=250)
    lines = runs.communicate(timeout=250)[0].splitlines()
    assert runs.returncode == 0 and all(line.split()[0] in ("ok", "warn") for line in lines)
    checks = {line[6:20].strip() for line in lines}
    assert {"python", "versions", "devices", "shared memory", "deepspeed", "vllm", "ray", "plan", "disk"} <= checks
    assert lacks.returncode == 1
    failed = [line for line in lacks.stdout.splitlines() if line.startswith("fail")]
    assert [line.split()[1] for line in failed] == ["checkpoints", "plan"]
    assert all(";" in line for line in failed)


def test_the_memory_of_a_policy_whose_pass_depends_on_numbers_is_not_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*arguments: object) -> None:
        raise NotImplementedError("Cannot copy out of meta tensor")

    monkeypatch.setattr("rlir_ray.run.memory.learner_memory", refuse)
    monkeypatch.setattr(doctor, "import_finding", lambda module, *rest: Finding("ok", module, ""))
    found = {finding.check: finding for finding in machine_findings(load_config("doom_tiny_ar"))}
    assert found["learner memory"].level == "ok" and "depends on the numbers" in found["learner memory"].text
