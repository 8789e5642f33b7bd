"""Copy files from one node to the run's folder on another node, so that a run needs no shared disk.

Files travel in parts through the object store. Each file appears complete or not at all.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import ray

from actors.cluster.placement import Handle, node_id, on_node
from actors.cluster.waiting import wait_all
from rlir_ray.data.files import replace_folder

# The size of a part bounds the memory of sender and receiver. The timeout of a part allows for a slow disk.
PART_BYTES = 64 << 20
PART_TIMEOUT_S = 300.0


def send_folder(source: Path, node: str, target: Path) -> None:
    """Copy a folder's files into a folder on another node; keep other files in that folder.

    Raises:
        ValueError: a file cannot be written on that node.
        TimeoutError: the node does not answer.
    """
    write = ray.remote(num_cpus=0, scheduling_strategy=on_node(node), max_retries=0)(write_part)
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        path, size = target / file.relative_to(source), file.stat().st_size
        with file.open("rb") as content:
            for offset in range(0, max(size, 1), PART_BYTES):
                is_last = offset + PART_BYTES >= size
                part = write.remote(path, offset, content.read(PART_BYTES), is_last)
                wait_all([part], PART_TIMEOUT_S, f"node {node} to write {path}")


def send_whole(source: Path, node: str, target: Path) -> None:
    """Replace a folder on another node by `source`, completely or not at all.

    Raises:
        ValueError, TimeoutError: as `send_folder`.
    """
    partial = target.with_name(f".{target.name}.partial")
    # Ray's types of tasks know no keyword arguments.
    tasks: Iterator[Handle] = (
        ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=on_node(node))(change)
        for change in (shutil.rmtree, replace_folder)
    )
    remove, replace = tasks
    wait_all([remove.remote(partial, ignore_errors=True)], PART_TIMEOUT_S, f"node {node} to make room for {target}")
    send_folder(source, node, partial)
    wait_all([replace.remote(partial, target)], PART_TIMEOUT_S, f"node {node} to finish {target}")


@contextlib.contextmanager
def local_copy(path: Path, node: str) -> Iterator[Path]:
    """Copy a file of another node to this node until the context ends; use a file of this node directly.

    Yields:
        The path of the file on this node.

    Raises:
        TimeoutError: the node does not answer.
    """
    if node == node_id():
        yield path
        return
    read = ray.remote(num_cpus=0, scheduling_strategy=on_node(node))(read_part)
    with tempfile.TemporaryDirectory(prefix="rlir_files_") as own:
        file, offset = Path(own) / path.name, 0
        with file.open("wb") as copy:
            while part := wait_all([read.remote(path, offset)], PART_TIMEOUT_S, f"node {node} to read {path}")[0]:
                copy.write(part)
                offset += len(part)
        yield file


def read_part(path: Path, offset: int) -> bytes:
    """Read the part of a file that starts at `offset`; empty at the end of the file."""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(PART_BYTES)


def write_part(path: Path, offset: int, content: bytes, is_last: bool) -> None:
    """Write a part of a file at `offset`; the file gets its final name with its last part.

    Raises:
        ValueError: the file cannot be written.
    """
    temporary = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("r+b" if offset else "wb") as file:
            file.seek(offset)
            file.write(content)
        if is_last:
            os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise ValueError(f"could not save {path}: {error.strerror}; free some space or set run.dir") from error
