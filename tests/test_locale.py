"""Whatever the locale and the console: texts are UTF-8, and no console ends a command."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlir_ray.config.load import load_config

ROOT = Path(__file__).parents[1]
OPENS = {"open", "fdopen", "read_text", "write_text", "NamedTemporaryFile", "TemporaryFile", "FileHandler"}
RUNS = {"run", "Popen", "check_output"}
# Of these `open` is another function; os.open gives a descriptor.
OTHERS = {"os", "av", "Image", "tarfile", "zipfile"}
# Python's own UTF-8 mode would hide what this is about.
PLAIN = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def without_encoding(tree: ast.AST) -> Iterator[int]:
    """The lines of calls that take a text in the encoding of the locale."""
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call):
            continue
        names = {keyword.arg: keyword.value for keyword in call.keywords}
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        owner = call.func.value if isinstance(call.func, ast.Attribute) else None
        if name == "open" and isinstance(owner, ast.Name) and owner.id in OTHERS:
            continue
        if name in RUNS and isinstance(owner, ast.Name) and owner.id == "subprocess":
            is_text = "text" in names or "universal_newlines" in names
        # Where it has no owner, `write_text` is our own function.
        elif name in OPENS and (owner or name not in ("read_text", "write_text")):
            modes = [each for argument in [*call.args, *names.values()] for each in ast.walk(argument)]
            texts = [each.value for each in modes if isinstance(each, ast.Constant)]
            is_text = not any(isinstance(text, str) and text.strip("rwxab+") == "" and "b" in text for text in texts)
        else:
            continue
        if is_text and "encoding" not in names:
            yield call.lineno


@pytest.mark.parametrize(
    ("code", "is_found"),
    [
        ("path.read_text()", True),
        ("path.read_text(encoding='utf-8')", False),
        ("path.open('a')", True),
        ("path.open()", True),
        ("open(path, 'rb')", False),
        ("path.open(mode='wb')", False),
        ("path.open('r+b' if offset else 'wb')", False),
        ("os.fdopen(descriptor, 'w')", True),
        ("os.open(path, os.O_RDONLY)", False),
        ("subprocess.run(command, text=True)", True),
        ("subprocess.run(command, encoding='utf-8')", False),
    ],
)
def test_the_search_finds_texts_in_the_encoding_of_the_locale(code: str, is_found: bool) -> None:
    assert list(without_encoding(ast.parse(code))) == [1] * is_found


def test_every_text_names_its_encoding() -> None:
    files = [file for folder in ("rlir_ray", "actors") for file in (ROOT / folder).rglob("*.py")]
    assert len(files) > 50
    found = {file: list(without_encoding(ast.parse(file.read_bytes()))) for file in files}
    assert not {file: lines for file, lines in found.items() if lines}


def run(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "rlir_ray", *arguments],
        cwd=folder,
        capture_output=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


def test_a_recipe_that_is_no_utf_8_is_named_in_one_line(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_bytes("# für Köln\nseed: 3\n".encode("latin-1"))
    with pytest.raises(
        ValueError, match=r"text file in UTF-8, got '.*mine.yaml' \(byte 3: .*save it as UTF-8"
    ) as refusal:
        load_config(str(recipe))
    assert "\n" not in str(refusal.value)


def test_a_recipe_with_umlauts_is_read_and_named_on_a_console_without_them(tmp_path: Path) -> None:
    recipe = tmp_path / "m.yaml"
    recipe.write_text("# für Köln\nmodels: {policy: Köln}\n", encoding="utf-8")
    done = run("train", "--recipe", "m.yaml", folder=tmp_path, **PLAIN)
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: ") and b"K\\xf6ln" in done.stderr and done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("locale", [PLAIN, {"LC_ALL": "C"}])
def test_help_and_keys_are_shown_in_a_plain_locale(locale: dict[str, str], tmp_path: Path) -> None:
    for arguments in (["--help"], ["train", "--keys"], ["pretrain", "idm", "--help"]):
        done = run(*arguments, folder=tmp_path, **locale)
        assert done.returncode == 0 and done.stdout and not done.stderr


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_pipe_that_goes_away_ends_nothing(stream: str) -> None:
    """Nobody reads: without care the first line written ends the program."""
    code = (
        "import os, sys, time\nfrom rlir_ray.cli.console import protect_standard_streams\n"
        "protect_standard_streams()\n"
        f"for line in range(3):\n    print('x' * 100000, file=sys.{stream})\n"
        f"os.write({1 if stream == 'stdout' else 2}, b'x' * 100000)\n"
        "sys.exit(7)"
    )
    read, write = os.pipe()
    os.close(read)
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, **{stream: write})
    os.close(write)
    assert process.wait(60) == 7


@pytest.mark.parametrize("descriptor", [1, 2])
def test_a_stream_that_was_closed_before_the_start_ends_nothing(descriptor: int, tmp_path: Path) -> None:
    command = f"{sys.executable} -m rlir_ray train --keys {descriptor}>&-"
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, timeout=60)
    assert done.returncode == 0 and (descriptor == 1 or b"train.group_size" in done.stdout)
