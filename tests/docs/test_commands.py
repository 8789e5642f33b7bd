"""Every command of a page is one that its program takes; arguments are only parsed, in this process."""

import re
import shlex

import pytest

from rlir_ray.cli.commands import main
from rlir_ray.cli.parser import build_parser
from rlir_ray.config.load import load_config
from rlir_ray.config.unread_keys import reject_unread
from tests.docs.pages import NAMES, ROOT, blocks

PROGRAM = ["-m", "rlir_ray"]


def whole_lines(block):
    """The commands of a block; a backslash at the end of a line goes on in the next."""
    return block.replace("\\\n", " ").splitlines()


LINES = [(name, line) for name in NAMES for block in blocks(name, "bash") for line in whole_lines(block)]


def words(line):
    return shlex.split(line, comments=True)


def own_arguments(line):
    """The arguments of rlir_ray, where the line calls it."""
    found = words(line)
    place = next((i for i in range(len(found)) if found[i : i + 2] == PROGRAM), None)
    return None if place is None else found[place + 2 :]


OWN = {line: arguments for _, line in LINES if (arguments := own_arguments(line)) and "..." not in arguments}


def test_the_pages_show_every_command_but_those_of_the_help():
    shown = {arguments[0] for arguments in OWN.values()}
    assert shown >= {"train", "scale", "doctor", "eval", "convert", "ledger", "collect", "pretrain"}


@pytest.mark.parametrize("line", OWN)
def test_the_command_line_takes_the_arguments(line, capsys):
    arguments = OWN[line]
    try:
        parsed, rest = build_parser().parse_known_args(arguments)
    except SystemExit:
        pytest.fail(capsys.readouterr().err)
    if arguments[0] in ("pretrain", "assets"):
        # These commands have parsers of their own, built from the settings of a training and its form.
        command = [word for word in arguments[:2] if not word.startswith("--")]
        if "--form" in arguments:
            command += arguments[arguments.index("--form") :][:2]
        with pytest.raises(SystemExit) as end:
            main([*command, "--help"])
        options = capsys.readouterr().out
        assert end.value.code == 0 and all(f"{word} " in options for word in rest if word.startswith("--"))
        return
    overrides = [*getattr(parsed, "overrides", []), *rest]
    assert all("=" in word for word in overrides)
    if arguments[0] in ("train", "doctor"):
        reject_unread(load_config(parsed.recipe, overrides), overrides)


@pytest.mark.parametrize("name", NAMES)
def test_make_targets_and_files_of_commands_exist(name):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    for line in whole_lines("".join(blocks(name, "bash"))):
        found = words(line)
        if found[:1] == ["make"]:
            assert found[1] in targets
        for word in found:
            assert not word.startswith("deploy/") or (ROOT / word).exists(), word
