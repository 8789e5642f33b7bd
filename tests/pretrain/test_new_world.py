"""The recipe and the commands of a world of one's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlir_ray.cli.commands import main
from rlir_ray.cli.parser import build_parser
from rlir_ray.config.load import load_config
from rlir_ray.config.unread_keys import reject_unread
from rlir_ray.data.recordings import open_recordings, split_paths
from rlir_ray.pretrain.command import COMMANDS, _parser
from rlir_ray.pretrain.new_world import NewWorld, _commands, _read_facts, write_world
from rlir_ray.spaces.space import read_space
from tests.rewards.test_idm_audit import SPACE, record


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return record(tmp_path / "data")


@pytest.mark.parametrize("family", ["autoregressive", "flow"])
@pytest.mark.parametrize("quick", [False, True])
def test_the_recipe_loads_and_every_command_is_one_that_the_program_takes(
    data: Path, tmp_path: Path, family: str, quick: bool
) -> None:
    folder = tmp_path / "world"
    commands = write_world(NewWorld(folder=folder, data=str(data), family=family, quick=quick))
    config = load_config(str(folder / "recipe.yaml"))
    reject_unread(config, [])
    assert (config.world.height, config.world.width, config.world.groups) == (32, 32, ("dx",))
    assert config.policy.family == family and config.reward.axis == "smooth"
    assert config.train.advantage == ("grpo" if family == "flow" else "batch_std")
    # Eleven episodes of two clips for training, one for evaluation.
    assert (config.prompts.path, config.prompts.heldout_path) == (f"{data}#train", f"{data}#validation")
    assert (config.prompts.num_train, config.prompts.num_heldout) == (16 if quick else 22, 2)
    assert read_space(folder / "action_space.json") == SPACE
    script = (folder / "commands.sh").read_text()
    for each in commands:
        assert each.line in script and each.minutes > 0
        parsed, rest = build_parser().parse_known_args(list(each.arguments))
        if each.arguments[0] == "pretrain":
            # The folders that one command writes are those that the next one reads.
            _parser(parsed.model, COMMANDS[parsed.model]).parse_args(rest)
    assert [each.arguments[0] for each in commands] == ["pretrain"] * 3 + ["audit", "pretrain", "train", "eval"]


def test_a_folder_with_a_recipe_is_not_written_over(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "world"
    write_world(NewWorld(folder=folder, data=str(data)))
    with pytest.raises(ValueError, match="needs a new folder"):
        write_world(NewWorld(folder=folder, data=str(data)))


def test_a_size_of_no_whole_cells_is_refused_with_one_that_fits(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="use --size 24x32"):
        write_world(NewWorld(folder=tmp_path / "world", data=str(data), size=(30, 32)))
    assert not (tmp_path / "world").exists()


def test_every_command_that_reads_the_recordings_reads_them_alike(data: Path, tmp_path: Path) -> None:
    camera = "observation.images.main"
    new = NewWorld(folder=tmp_path / "world", data=str(data), size=(24, 40), camera=camera)
    readers = [each.arguments for each in _commands(new, _read_facts(new)) if str(data) in each.arguments]
    assert [each[0] for each in readers] == ["pretrain"] * 3 + ["audit"]
    for each in readers:
        assert each[each.index("--size") + 1] == "24x40" and each[each.index("--camera") + 1] == camera


def test_the_command_prints_the_commands(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["new", str(tmp_path / "world"), "--data", str(data), "--size", "24x24"])
    shown = capsys.readouterr().out
    assert "24x24 pixels; actions: dx" in shown and "pretrain tokenizer" in shown and "min" in shown


def test_the_end_of_a_path_names_a_part_of_the_recordings(data: Path, tmp_path: Path) -> None:
    whole, train, held_out = (open_recordings(f"{data}{end}") for end in ("", "#train", "#validation"))
    assert [*train.names, *held_out.names] == list(whole.names) and len(held_out.names) == 1
    assert split_paths(data) == {"train": f"{data}#train", "validation": f"{data}#validation"}
    assert held_out.recording(held_out.names[0]).actions.space == SPACE
    with pytest.raises(ValueError, match="#train or #validation"):
        open_recordings(f"{data}#test")
    for split in ("train", "validation"):
        record(tmp_path / "two" / split, num_episodes=2)
    assert split_paths(tmp_path / "two")["train"] == str(tmp_path / "two" / "train")
