"""Start Ray on this machine, or join the cluster of RAY_ADDRESS."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

import ray

from actors.cluster.placement import cluster_nodes
from rlir_ray.run.folder import JOB_VARIABLE

START_ATTEMPTS = 3
CONNECT_TIMEOUT_S = 10.0
# Ray's default of three seconds is too short to finish a step and save the policy.
MIN_GRACE_S = 60
SYSTEM_CONFIG = {
    # Keep larger results in shared memory; columns and videos below Ray's default of 100 KiB would pass through the
    # driver's own memory.
    "max_direct_call_object_size": 2048,
    # Ray's default of 15 s is too short for its agent to start on two busy cores.
    "agent_register_timeout_ms": 120_000,
}


@contextlib.contextmanager
def ray_session() -> Iterator[str]:
    """Use Ray until the context ends: the caller's own, else the cluster of RAY_ADDRESS, else a new one.

    A new Ray starts even if another Ray runs on this machine: only RAY_ADDRESS joins an existing one.

    Yields:
        A description of the Ray in use, for a person.

    Raises:
        ValueError: RAY_ADDRESS is not the address of a Ray that a program can join.
        RuntimeError: Ray did not start, or does not answer.
    """
    if ray.is_initialized():
        yield f"{ray.__version__}, started by this program"
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Without UTF-8 mode, libraries in Ray's processes read their own files in the encoding of the locale.
    os.environ.setdefault("PYTHONUTF8", "1")
    if not sys.stdout.isatty():
        # Ray colors its warnings even in a file.
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    address = os.environ.get("RAY_ADDRESS", "")
    if address in ("", "local"):
        start_ray()
        found = f"{ray.__version__} starts on this machine; to join one that is there set RAY_ADDRESS=HOST:6379"
    else:
        join_ray(address)
        found = f"{ray.__version__} at {address} answers, {len(cluster_nodes())} nodes"
    try:
        yield found
    finally:
        ray.shutdown()


def start_ray(**options: Any) -> None:
    """Start Ray on this machine, without its dashboard.

    Args:
        options: more options of `ray.init`.

    Raises:
        RuntimeError: Ray did not start.
    """
    for attempt in range(START_ATTEMPTS):
        try:
            with _hangups_ignored():
                # Without `local`, Ray would join a Ray of `ray start` on this machine, which ignores these settings.
                ray.init(
                    address="local",
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    _system_config=SYSTEM_CONFIG,
                    **options,
                )
            return
        except Exception as error:
            # Retry: Ray bounds its own start at half a minute, which is too short on a busy machine.
            ray.shutdown()
            if attempt == START_ATTEMPTS - 1 or _is_folder_error(error):
                raise RuntimeError(f"Ray did not start: {_first_line(error)}; {_start_remedy(error)}") from error


@contextlib.contextmanager
def _hangups_ignored() -> Iterator[None]:
    """Ignore SIGHUP in processes that start inside: the driver needs them to save when its terminal closes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _is_folder_error(error: Exception) -> bool:
    """Return whether Ray could not use its temporary folder, so that another attempt would fail too."""
    return isinstance(error, OSError) and not isinstance(error, TimeoutError | ConnectionError)


def _start_remedy(error: Exception) -> str:
    if "AF_UNIX path" in str(error):
        return "set RAY_TMPDIR to a folder with a shorter path, for example RAY_TMPDIR=/tmp"
    if _is_folder_error(error):
        return "set RAY_TMPDIR to a folder that this user can write and that has space"
    return "free the machine's cores, or join a cluster"


def join_ray(address: str) -> None:
    """Join the cluster of RAY_ADDRESS; `ray job submit` also sets this variable.

    Raises:
        ValueError: the address belongs to a dashboard or to a Ray Client server.
        RuntimeError: the cluster does not answer, or rejects this process.
    """
    host = re.sub(r":\d+$", "", address.rpartition("://")[2].partition("/")[0]) or "HOST"
    if "://" in address:
        server = "a Ray Client server's" if address.startswith("ray://") else "a dashboard's, for `ray job submit`"
        raise ValueError(
            f"RAY_ADDRESS must be host:port of a Ray's head, got {address}, which is {server}; set "
            f"RAY_ADDRESS={host}:6379, or unset it to start Ray on this machine"
        )
    try:
        check_answers(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        port = f" (8265 is the dashboard's port: set RAY_ADDRESS={host}:6379)" if address.endswith(":8265") else ""
        raise RuntimeError(
            f"RAY_ADDRESS must name a Ray that answers, got {address} ({_first_line(error)}); check it{port}, set "
            "RAY_AUTH_MODE=token if it asks for a token, or unset it to start Ray on this machine"
        ) from error


def check_answers(address: str) -> None:
    """Check that a server listens at host:port, because Ray itself would retry for a minute.

    Other forms of addresses pass: Ray resolves them.

    Raises:
        OSError: no server listens.
    """
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()


def stop_notice() -> str:
    """Return a warning if `ray job stop` would end this submitted job before it can save; empty: no warning."""
    grace_s = os.environ.get("RAY_JOB_STOP_WAIT_TIME_S", "3")
    if JOB_VARIABLE not in os.environ or (grace_s.isdigit() and int(grace_s) >= MIN_GRACE_S):
        return ""
    return (
        f"`ray job stop` would end this job after {grace_s} s, before its policy is saved; submit it with "
        "--runtime-env deploy/runtime_env.yaml, which sets RAY_JOB_STOP_WAIT_TIME_S"
    )
