"""A plain install, without the extras: what needs none of them works, the rest says how to install the missing one."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from rlir_ray.config.load import load_config
from rlir_ray.extras import EXTRAS, has_library
from rlir_ray.run import doctor
from rlir_ray.run.doctor import Finding, machine_findings
from rlir_ray.run.folder import RunFolder
from rlir_ray.run.preflight import check_libraries
from rlir_ray.samplers.cached_attention import attend

ROOT = Path(__file__).parents[1]
# Python and importlib.util.find_spec take a module that is None for one that is not installed.
PLAIN = f"import sys; sys.modules.update(dict.fromkeys({list(EXTRAS)}))\n"


@pytest.fixture(autouse=True)
def plain_install(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for library in EXTRAS:
        monkeypatch.setitem(sys.modules, library, None)
    has_library.cache_clear()
    yield
    has_library.cache_clear()


def run_plain(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PLAIN + code], cwd=folder, capture_output=True, encoding="utf-8", timeout=120
    )


def test_recording_doom_is_refused_in_one_line(tmp_path: Path) -> None:
    code = "from rlir_ray.cli.commands import main; main(['collect', '--out', 'here', '--frames', '160'])"
    done = run_plain(code, tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        'error: recording the Doom world needs vizdoom, which is not installed; pip install "rlir_ray[doom]"\n'
    )


def test_a_run_on_doom_is_refused_before_it_starts_and_a_run_on_recordings_is_not(tmp_path: Path) -> None:
    config = load_config("doom_tiny_ar")
    with pytest.raises(ValueError, match=r'prompts.source=doom needs vizdoom, .*; pip install "rlir_ray\[doom\]"$'):
        check_libraries(config)
    check_libraries(config, own_prompts=True)
    with pytest.raises(ValueError, match=r'prompts.source=pusht needs gym_pusht, .*; pip install "rlir_ray\[pusht\]"$'):
        check_libraries(load_config("doom_tiny_ar", ["prompts.source=pusht"]))
    paths = [f"prompts.{key}={tmp_path / key}" for key in ("path", "heldout_path")]
    check_libraries(load_config("doom_tiny_ar", ["prompts.source=recordings", *paths]))


def test_attention_without_numba_is_torchs_and_says_once_how_to_get_the_faster_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    torch.manual_seed(0)
    queries, cache = torch.randn(5, 2, 3, 16), torch.randn(5, 4, 40, 16)
    keys, values = cache[:, :, :17].chunk(2, 1)
    for _ in range(2):
        assert torch.equal(attend(queries, cache, 17), functional.scaled_dot_product_attention(queries, keys, values))
    assert [record.getMessage() for record in caplog.records] == [
        "numba is not installed: torch computes the sampler's attention on a CPU, which takes longer; "
        'pip install "rlir_ray[numba]"'
    ]


def test_a_run_without_tensorboard_keeps_its_metrics_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = RunFolder(load_config("doom_tiny_ar", ["run.name=x"])).begin()
    for step in (1, 2):
        folder.log_step({"step": step, "reward/mean": 0.5})
    folder.close()
    assert [metrics["step"] for metrics in folder.metrics(9)] == [1, 2]
    assert not (folder.path / "tensorboard").exists()
    assert [record.getMessage() for record in caplog.records] == [
        'tensorboard is not installed: metrics go to metrics.jsonl only; pip install "rlir_ray[tensorboard]"'
    ]


def test_doctor_names_each_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    # vLLM and DeepSpeed take long to import.
    checked = doctor.import_finding
    monkeypatch.setattr(
        doctor,
        "import_finding",
        lambda module, *rest: checked(module, *rest) if module in EXTRAS else Finding("ok", module, ""),
    )
    found = {finding.check: finding for finding in machine_findings(load_config("doom_tiny_ar"))}
    assert found["vizdoom"] == Finding("fail", "vizdoom", 'not installed; pip install "rlir_ray[doom]"')
    for library in ("tensorboard", "numba"):
        assert found[library].level == "warn" and f'pip install "rlir_ray[{library}]"' in found[library].text
    flow = {finding.check: finding for finding in machine_findings(load_config("doom_tiny_flow"))}
    assert flow["numba"] == Finding("ok", "numba", "not installed, and the recipe does not need it")


def test_the_extras_of_the_package_are_those_and_the_quickstart_and_the_image_install_them() -> None:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    for library, (extra, _) in EXTRAS.items():
        assert settings["options.extras_require"][extra].strip().replace("-", "_").startswith(library)
        assert library not in settings["options"]["install_requires"]
    extras = "[" + ",".join(extra for extra, _ in EXTRAS.values()) + "]"
    assert f'-e ".{extras}"' in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^ARG EXTRAS={re.escape(extras)}$", (ROOT / "deploy/Dockerfile").read_text(), re.M)
