"""The command `generate` and its Python form."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

import rlir_ray
from rlir_ray.cli.commands import main
from rlir_ray.data.vpt.pairs import write_recording
from rlir_ray.play.opening import base_of, open_actions, open_context, open_world, policy_path
from rlir_ray.run.folder import RunFolder
from rlir_ray.spaces.vpt import events_from_actions
from tests.fakes import HEIGHT, WIDTH, tiny_actions
from tests.play.test_simulator import opened, random_frames
from tests.world import MakeConfig


@pytest.fixture
def run(make_config: MakeConfig, checkpoints: Path, tmp_path: Path) -> Path:
    """A run as `train` leaves it: config.yaml beside policy/."""
    folder = RunFolder(make_config()).begin().path
    shutil.copytree(checkpoints / "policy", folder / "policy")
    return folder


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "context.png"
    Image.fromarray(random_frames(1, 1)[0, 0]).save(path)
    return path


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    write_recording(tmp_path / "recorded", random_frames(1, 6)[0], events_from_actions(tiny_actions(6)))
    return tmp_path / "recorded.mp4"


def command(run: Path, context: Path, out: Path, *more: str) -> list[str]:
    return ["generate", "--policy", str(run), "--context", str(context), "--out", str(out), *more]


def test_a_video_of_any_length_with_the_reading_below(
    run: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "videos" / "clip.mp4"
    main(command(run, picture, out, "--actions", "forward*2, turn_left", "--frames", "7", "--idm", "judge"))
    printed = capsys.readouterr().out
    assert f"{out}: 7 frames of {HEIGHT}x{WIDTH}, " in printed and "% of the commands recovered" in printed
    with av.open(str(out)) as video:
        assert sum(1 for _ in video.decode(video=0)) == 8
    assert [path.name for path in out.parent.iterdir()] == ["clip.mp4"]


def test_clips_of_several_seeds_as_gifs(run: Path, picture: Path, tmp_path: Path) -> None:
    main(command(run, picture, tmp_path / "clip.gif", "--actions", "jump*3", "--num-clips", "2"))
    frames = []
    for number in range(2):
        with Image.open(tmp_path / f"clip_{number:02d}.gif") as gif:
            gif.seek(3)
            frames.append(np.array(gif.convert("RGB")))
    assert (frames[0] != frames[1]).any()


def test_the_recorded_actions_of_the_context_are_the_default(run: Path, recording: Path) -> None:
    world = open_world(str(run), device="cpu")
    found = rlir_ray.generate(world, str(recording), seeds=[1, 2])
    assert found.shape == (2, 5, HEIGHT, WIDTH, 3) and found.dtype == np.uint8
    beginning = open_context(str(recording), world)
    assert beginning.recorded is not None and beginning.recorded.equals(open_actions(str(recording), world))
    same = rlir_ray.generate(str(run), beginning.frames, beginning.recorded, seeds=[2])
    np.testing.assert_array_equal(same[0], found[1])
    # Fewer actions start again.
    again = rlir_ray.generate(world, str(recording), "forward, back", num_frames=4)
    long = rlir_ray.generate(world, str(recording), "forward, back, forward, back")
    np.testing.assert_array_equal(again, long)


def test_a_policy_is_named_by_its_run_its_folder_or_the_package(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoints: Path
) -> None:
    (tmp_path / "runs").mkdir()
    shutil.copytree(run, tmp_path / "runs" / "named")
    monkeypatch.chdir(tmp_path)
    assert policy_path("named") == "runs/named/policy"
    assert policy_path(str(run)) == policy_path(str(run / "policy")) == str(run / "policy")
    assert policy_path("asset:doom/world_model") == "asset:doom/world_model"
    assert base_of("named") == str(checkpoints / "policy")
    with pytest.raises(ValueError, match="a base needs a run's policy, got"):
        base_of(str(checkpoints / "policy"))
    with pytest.raises(ValueError, match=r"--policy must be a run's name below runs/, .* got 'other'"):
        policy_path("other")


@pytest.mark.parametrize("family", ["tokens", "latents"])
def test_both_families_generate(
    family: str, checkpoints: Path, make_config: MakeConfig, tmp_path: Path, picture: Path
) -> None:
    world = opened(family, checkpoints, make_config, tmp_path)
    found = rlir_ray.generate(world, str(picture), "forward*9", temperature=0.5)
    assert found.shape == (1, 9, HEIGHT, WIDTH, 3) and found.std() > 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--actions", "fly"], "an action must be one of forward, back"),
        ([], "actions are needed where the context is no recording, got none"),
        (["--actions", "forward", "--frames", "0"], "the number of frames must be from 1 to 100000, got 0"),
        (["--actions", "forward", "--num-clips", "0"], "--num-clips must be >= 1, got 0"),
        (["--actions", "forward", "--temperature", "0"], "temperature must be > 0, got 0"),
        (["--actions", "none.mp4"], "a recording must be an existing file, got none.mp4"),
        (["--actions", "forward", "--idm", "nowhere"], "nowhere"),
        (["--actions", "forward", "--context", "prompt:9"], r"one of the 6 held-out prompts, 0 to 5, got 'prompt:9'"),
        (["--actions", "forward", "--context", "none.png"], "--context must be prompt:N or an existing file, got"),
        (["--actions", "forward", "--out", "clip.avi"], "--out must end with .mp4 or .gif, got clip.avi"),
    ],
)
def test_bad_options_end_in_one_line(
    more: list[str], message: str, run: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(command(run, picture, tmp_path / "clip.mp4", *more))
    error = capsys.readouterr().err
    assert stop.value.code != 0 and error.startswith("error: ") and error.count("\n") == 1
    assert re.search(message, error)
    assert not (tmp_path / "clip.mp4").exists()
