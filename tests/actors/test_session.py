"""How a run comes to its Ray, and what is said where it does not; each in a process of its own, as a user's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from actors.cluster import start

ROOT = Path(__file__).parents[2]
SESSION = """
import ray
from actors.cluster.start import ray_session
with ray_session() as found:
    print(found)
    print("nodes", len(ray.nodes()))
"""
# An unknown user, whatever this one is: the two ways in which Python looks for a home folder find none.
NOBODY = """
import os, pwd
os.environ.pop("HOME", None)
def unknown(*arguments):
    raise KeyError(arguments)
pwd.getpwuid = pwd.getpwnam = unknown
"""


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A socket's path holds 107 bytes: pytest's own folders are too long."""
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def run(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        timeout=200,
        env={**kept, "PYTHONPATH": str(ROOT), **environment},
    )


@pytest.mark.slow
def test_a_ray_that_ray_start_has_left_here_is_not_joined(short_folder: Path) -> None:
    (short_folder / "ray").mkdir()
    # What `ray start --head` writes, and `kill -9` leaves.
    (short_folder / "ray" / "ray_current_cluster").write_text("127.0.0.1:6399", encoding="utf-8")
    done = run(SESSION, RAY_TMPDIR=str(short_folder))
    assert done.returncode == 0, done.stderr
    assert "starts on this machine" in done.stdout and "nodes 1" in done.stdout


@pytest.mark.parametrize("address", [None, "", "local"])
def test_a_run_without_an_address_or_with_local_starts_a_ray_of_its_own(
    monkeypatch: pytest.MonkeyPatch, address: str | None
) -> None:
    """Ray itself would join the one that `ray start` has left."""
    asked = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: asked.append(options["address"]))
    monkeypatch.setattr(ray, "shutdown", lambda: asked.append("shutdown"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    with start.ray_session() as found:
        assert "starts on this machine" in found
    assert asked == ["local", "shutdown"]


@pytest.mark.slow
def test_a_user_without_a_home_folder_starts_ray_with_a_temporary_one(short_folder: Path) -> None:
    code = NOBODY + SESSION + "import ray.train\nprint('home', os.environ['HOME'])"
    done = run(code, RAY_TMPDIR=str(short_folder), TMPDIR=str(short_folder))
    assert done.returncode == 0, done.stderr
    assert f"home {short_folder}/rlir_ray-{os.getuid()}" in done.stdout
    assert (short_folder / f"rlir_ray-{os.getuid()}").stat().st_mode & 0o777 == 0o700


REFUSED = {
    "http://10.0.0.1:8265": "RAY_ADDRESS must be host:port of a Ray's head, got http://10.0.0.1:8265, which is a "
    "dashboard's, for `ray job submit`; set RAY_ADDRESS=10.0.0.1:6379",
    "http://[::1]:8265": "set RAY_ADDRESS=[::1]:6379",
    "https://ray.example.org/": "set RAY_ADDRESS=ray.example.org:6379",
    "ray://10.0.0.1:10001": "which is a Ray Client server's; set RAY_ADDRESS=10.0.0.1:6379",
    "127.0.0.1:1": "RAY_ADDRESS must name a Ray that answers, got 127.0.0.1:1 ([Errno 111] Connection refused)",
    "localhost:1": "RAY_ADDRESS must name a Ray that answers, got localhost:1 (",
}
ADDRESSES = """
import json, os, sys
from actors.cluster.doctor import ray_findings
from actors.cluster.start import ray_session
from rlir_ray.config import Config
said = []
for os.environ["RAY_ADDRESS"] in json.loads(sys.argv[1]):
    (finding,) = ray_findings(Config())
    try:
        with ray_session():
            pass
    except (ValueError, RuntimeError) as error:
        said.append([finding.level, finding.text, str(error)])
print(json.dumps(said))
"""


def test_an_address_that_no_run_can_join_is_one_line_with_the_one_that_fits() -> None:
    """Train and doctor say the same."""
    done = run(ADDRESSES, json.dumps(list(REFUSED)))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == len(REFUSED)
    for (level, doctor, train), said in zip(found, REFUSED.values(), strict=True):
        assert level == "fail" and doctor == train
        assert said in train and "\n" not in train


def test_the_port_of_a_dashboard_is_told_from_that_of_a_head(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(address: str) -> None:
        raise ConnectionError("nobody")

    monkeypatch.setattr(start, "check_answers", refuse)
    with pytest.raises(RuntimeError, match="8265 is the dashboard's port: set RAY_ADDRESS=localhost:6379"):
        start.join_ray("localhost:8265")


def test_a_temporary_folder_too_long_for_a_socket_is_one_line_that_says_so(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 20)
    folder.mkdir()
    done = run(SESSION, RAY_TMPDIR=str(folder))
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and "AF_UNIX path length cannot exceed 107 bytes" in last
    assert last.endswith("set RAY_TMPDIR to a folder with a shorter path, for example RAY_TMPDIR=/tmp")
