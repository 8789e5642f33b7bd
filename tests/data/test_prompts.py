from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.rollout.prompt_actor import PromptActor
from rlir_ray.config import Config
from rlir_ray.config.load import load_config
from rlir_ray.data import prompts as prompts_module
from rlir_ray.data.clips import clip_starts
from rlir_ray.data.prompts import encoded_real, heldout_bytes, prepare_prompts, reads_recorded
from rlir_ray.data.recorded_clips import cut_clips
from rlir_ray.data.vpt.index import find_recordings
from rlir_ray.data.vpt.pairs import write_recording
from rlir_ray.run.resolved import check_recorded
from rlir_ray.spaces.vpt import camera_of
from rlir_ray.trajectory import EncodedClips

HEIGHT, WIDTH, LENGTH = 16, 24, 40
GROUPS = ("forward_back", "jump", "yaw")


class Corners:
    """A tokenizer of two tokens: the red and the green of the middle pixel."""

    def encode_clips(self, clips: torch.Tensor) -> EncodedClips:
        assert clips.dtype == torch.uint8
        return EncodedClips(clips[:, :, HEIGHT // 2, WIDTH // 2, :2].long())


class Recording:
    """An open recording as far as `clip_starts` reads it."""

    def __init__(self, events: list[dict[str, Any]]) -> None:
        self.events = events

    def __len__(self) -> int:
        return len(self.events)


def _events(num_frames: int, number: int) -> list[dict[str, Any]]:
    """Forward in every third frame; the yaw tells recording and frame apart."""
    return [
        {
            "mouse": {"dx": frame + 100 * number, "dy": 0, "buttons": []},
            "keyboard": {"keys": ["key.keyboard.w"] if frame % 3 == 0 else []},
            "wallDistance": 50.0 if frame == 9 else 300.0,
            "isGuiOpen": frame == 22,
        }
        for frame in range(num_frames)
    ]


def _record(folder: Path, num_recordings: int = 3, height: int = HEIGHT, width: int = WIDTH) -> Path:
    """Frame k of recording n is of one colour: red 40 + 4 k, green 40 + 30 n."""
    for number in range(num_recordings):
        frames = np.zeros((LENGTH, height, width, 3), np.uint8)
        frames[..., 0] = (40 + 4 * np.arange(LENGTH))[:, None, None]
        frames[..., 1] = 40 + 30 * number
        write_recording(folder / f"clip-{number}", frames, _events(LENGTH, number))
    return folder


def _config(folder: Path, *overrides: str) -> Config:
    settings = [
        f"world.height={HEIGHT}",
        f"world.width={WIDTH}",
        "world.num_context=1",
        "world.num_frames=8",
        "prompts.source=recordings",
        f"prompts.path={folder}",
        f"prompts.heldout_path={folder.with_name('heldout')}",
        "prompts.num_train=6",
        "prompts.num_heldout=4",
    ]
    return load_config("", [*settings, *overrides])


def test_clips_of_a_recording_leave_out_walls_and_open_inventories(tmp_path: Path) -> None:
    # Clips of 9 frames start at 0, 9, 18, 27; 9 faces a wall, and the one at 18 holds the GUI of frame 22.
    world = _config(tmp_path).world
    assert clip_starts(Recording(_events(LENGTH, 0)), world, 96) == [0, 27]
    assert clip_starts(Recording(_events(LENGTH, 0)), world, 0) == [0, 9, 27]
    assert clip_starts(Recording([{}] * 8), world, 96) == []


def test_actions_lead_into_the_frames_after_the_context(tmp_path: Path) -> None:
    prompts = prepare_prompts(_config(_record(tmp_path)), "train", Corners(), tmp_path)
    for prompt, frames, recorded in zip(prompts.prompts, prompts.frames, prompts.recorded, strict=True):
        recording, start = prompt.prompt_id.split(":")
        number, first = int(recording[-1]), int(start)
        # Pictures are stored with loss: a grey level or two.
        assert np.abs(frames[:, 0, 0, 0] - (40.0 + 4 * np.arange(first, first + 9))).max() < 3
        assert np.abs(prompt.context.astype(float) - [[40 + 4 * first, 40 + 30 * number]]).max() < 3
        pixels = np.arange(first + 1, first + 9) + 100 * number
        np.testing.assert_allclose(camera_of(prompt.actions)[:, 1], pixels * 0.15, rtol=1e-5)
        assert prompt.actions.equals(recorded)
    assert len({prompt.prompt_id for prompt in prompts.prompts}) == len(prompts) == 6


def test_clips_are_spread_over_the_recordings(tmp_path: Path) -> None:
    _record(tmp_path)
    clips = cut_clips(find_recordings(tmp_path), 6, _config(tmp_path).world, 96, seed=0).clips
    names = [clip.address.recording for clip in clips]
    assert {name: names.count(name) for name in names} == {"clip-0": 2, "clip-1": 2, "clip-2": 2}


def test_the_seed_decides_the_training_prompts_and_never_the_heldout_ones(tmp_path: Path) -> None:
    _record(tmp_path / "heldout")
    folder = _record(tmp_path / "train")

    def names(split: Any, seed: int) -> list[str]:
        prompts = prepare_prompts(_config(folder, f"seed={seed}"), split, Corners(), tmp_path)
        return [prompt.prompt_id for prompt in prompts.prompts]

    assert names("train", 1) == names("train", 1)
    assert names("train", 1) != names("train", 2)
    assert names("heldout", 1) == names("heldout", 2)


def test_frames_of_another_size_are_averaged_to_the_worlds(tmp_path: Path) -> None:
    _record(tmp_path, height=4 * HEIGHT, width=2 * WIDTH)
    prompts = prepare_prompts(_config(tmp_path), "train", Corners(), tmp_path)
    assert prompts.frames.shape == (6, 9, HEIGHT, WIDTH, 3)


def test_sampled_commands_are_those_of_another_clip(tmp_path: Path) -> None:
    config = _config(_record(tmp_path), "prompts.actions=sampled", "world.num_context=3", "world.num_frames=6")
    prompts = prepare_prompts(config, "train", Corners(), tmp_path)
    commanded = np.stack([camera_of(prompt.actions)[:, 1] for prompt in prompts.prompts])
    recorded = np.stack([camera_of(actions)[:, 1] for actions in prompts.recorded])
    # What leads into context frames has happened; the rest is a permutation without a fixed point.
    np.testing.assert_array_equal(commanded[:, :2], recorded[:, :2])
    assert (commanded[:, 2:] != recorded[:, 2:]).any(1).all()
    np.testing.assert_array_equal(np.sort(commanded[:, 2:], axis=0), np.sort(recorded[:, 2:], axis=0))


def test_training_prompts_keep_few_clips_and_heldout_ones_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts_module, "NUM_ALIGNED", 2)
    _record(tmp_path / "heldout")
    config = _config(_record(tmp_path / "train"))
    train, heldout = (prepare_prompts(config, split, Corners(), tmp_path) for split in ("train", "heldout"))  # type: ignore[arg-type]
    assert (len(train), len(train.recorded), train.frames.shape) == (6, 6, (2, 9, HEIGHT, WIDTH, 3))
    assert (len(heldout), len(heldout.frames)) == (4, 4)
    # The kept clips are those of the first prompts.
    for prompt, frames in zip(train.with_frames().prompts, train.frames, strict=True):
        assert np.abs(prompt.context[0].astype(float) - frames[0, HEIGHT // 2, WIDTH // 2, :2]).max() == 0
    assert heldout_bytes(config) == heldout.frames.nbytes


def test_training_prompts_hold_their_recorded_frames_if_a_training_needs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts_module, "NUM_ALIGNED", 2)
    _record(tmp_path / "heldout")
    folder = _record(tmp_path / "train")
    config = _config(folder, "train.supervised_coefficient=0.1")
    plain, train = (prepare_prompts(each, "train", Corners(), tmp_path) for each in (_config(folder), config))
    assert len(train) == 6 and train.frames.shape == plain.frames.shape == (2, 9, HEIGHT, WIDTH, 3)
    for bare, prompt in zip(plain.prompts, train.prompts, strict=True):
        np.testing.assert_array_equal(prompt.context, bare.context)
        number, first = int(prompt.prompt_id.split(":")[0][-1]), int(prompt.prompt_id.split(":")[1])
        red = 40 + 4 * np.arange(first + 1, first + 9)
        expected = np.stack([red, np.full(8, 40 + 30 * number)], 1)
        assert prompt.recorded is not None and prompt.recorded.dtype == prompt.context.dtype
        # Pictures are stored with loss: a grey level or two.
        assert np.abs(prompt.recorded.astype(float) - expected).max() < 3 and bare.recorded is None
    heldout = prepare_prompts(config, "heldout", Corners(), tmp_path)
    assert all(prompt.recorded is None for prompt in heldout.prompts)


def test_clips_that_do_not_stay_whole_hold_their_context_alone(tmp_path: Path) -> None:
    world = _config(_record(tmp_path)).world
    clips = cut_clips(find_recordings(tmp_path), 6, world, 96, seed=0, num_whole=4).clips
    assert [len(clip.frames) for clip in clips] == [9, 9, 9, 9, 1, 1]
    assert all(clip.frames.base is None for clip in clips[4:])


def test_the_prompt_actor_hands_clips_over_once_and_keeps_the_prompts(tmp_path: Path) -> None:
    config = _config(_record(tmp_path))
    actor = PromptActor(lambda split: prepare_prompts(config, split, Corners(), tmp_path))
    actor.prepare("train", 3)
    handed = actor.pop_clips("train")
    assert len(handed) == len(handed.frames) == len(handed.recorded) == 3
    assert actor.sets["train"].frames.nbytes == 0 and actor.sets["train"].frames.base is None
    assert len(actor.prompts(range(6))) == 6 and set(actor.class_shares(GROUPS)) == set(GROUPS)


def test_class_shares_count_the_commanded_frames(tmp_path: Path) -> None:
    prompts = prepare_prompts(_config(_record(tmp_path)), "train", Corners(), tmp_path)
    shares = prompts.class_shares(GROUPS)
    # Frames 1..8 hold forward at 3 and 6, frames 28..35 at 30 and 33.
    np.testing.assert_allclose(shares["forward_back"], [0.75, 0.25, 0])
    np.testing.assert_allclose(shares["jump"], [1, 0])
    np.testing.assert_allclose(shares["yaw"].sum(), 1)


def test_a_broken_recording_is_skipped_and_carried_to_the_user(tmp_path: Path) -> None:
    _record(tmp_path / "train", num_recordings=4)
    _record(tmp_path / "heldout", num_recordings=3)
    (tmp_path / "train" / "clip-0.jsonl").write_text("{}\n")
    (tmp_path / "heldout" / "clip-1.mp4").unlink()
    config = _config(tmp_path / "train")
    actor = PromptActor(lambda split: prepare_prompts(config, split, Corners(), tmp_path))
    assert {prompt_id[:6] for prompt_id in actor.prepare("train")} == {"clip-1", "clip-2", "clip-3"}
    assert actor.skipped()[0] == 4
    actor.prepare("heldout")
    num_recordings, lines = actor.skipped()
    assert (num_recordings, len(lines)) == (7, 2)
    assert "clip-0.jsonl: 1 events for the 40 frames" in lines[0] and "clip-1.mp4: no such file" in lines[1]


def test_a_broken_recording_is_an_error_when_reading_is_strict(tmp_path: Path) -> None:
    _record(tmp_path, num_recordings=4)
    (tmp_path / "clip-0.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"clip-0\.jsonl: 1 events for the 40 frames"):
        prepare_prompts(_config(tmp_path, "data.strict=true", "prompts.num_train=8"), "train", Corners(), tmp_path)


def test_an_index_is_a_source_of_prompts(tmp_path: Path) -> None:
    _record(tmp_path / "8.0")
    index = tmp_path / "index.json"
    index.write_text(json.dumps({"basedir": "https://example.org", "relpaths": ["8.0/clip-0", "8.0/clip-2.mp4"]}))
    prompts = prepare_prompts(_config(index, "prompts.num_train=4"), "train", Corners(), tmp_path)
    assert {prompt.prompt_id.split(":")[0] for prompt in prompts.prompts} == {"8.0/clip-0", "8.0/clip-2"}
    assert (prompts.skipped, prompts.num_recordings) == ((), 2)


def test_an_unknown_way_of_resizing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.resize must be one of area, bilinear, got 'cubic'"):
        _config(tmp_path, "data.resize=cubic")


def test_too_few_clips_say_how_many_there_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"prompts\.num_train=6"):
        prepare_prompts(_config(_record(tmp_path), "prompts.num_train=7"), "train", Corners(), tmp_path)
    (tmp_path / "half.mp4").touch()
    with pytest.raises(ValueError, match=r"1 recordings were skipped, the first: .*half\.jsonl"):
        prepare_prompts(_config(tmp_path, "prompts.num_train=7"), "train", Corners(), tmp_path)
    with pytest.raises(ValueError, match=r"prompts\.heldout_path=DIR"):
        prepare_prompts(_config(tmp_path, "prompts.heldout_path=''"), "heldout", Corners(), tmp_path)


def test_recordings_that_are_too_short_get_a_remedy_that_helps(tmp_path: Path) -> None:
    # Their clips would need a frame more than each of them has.
    config = _config(_record(tmp_path), f"world.num_frames={LENGTH}", "prompts.num_train=1")
    with pytest.raises(ValueError, match=rf"0 in .* \(its longest recording has {LENGTH} frames\), got 1") as refusal:
        prepare_prompts(config, "train", Corners(), tmp_path)
    way_out = str(refusal.value).split("; ")[-1]
    assert way_out == f"lower world.num_frames, or add recordings of {LENGTH + 1} frames or more"
    # One clip is missing, and walls are all that leaves more out.
    with pytest.raises(ValueError, match=r"got 7; set prompts.num_train=6, or lower prompts.min_wall_distance, or add"):
        prepare_prompts(_config(tmp_path, "prompts.num_train=7"), "train", Corners(), tmp_path)
    away = _config(tmp_path, "prompts.num_train=10", "prompts.min_wall_distance=0")
    with pytest.raises(ValueError, match=r"got 10; set prompts.num_train=9, or add recordings of 9 frames or more"):
        prepare_prompts(away, "train", Corners(), tmp_path)


def test_doom_prompts_are_recorded_once_and_heldout_ones_apart(tmp_path: Path) -> None:
    overrides = ["prompts.num_train=4", "prompts.num_heldout=4", "prompts.actions=sampled"]
    config = load_config("", overrides)

    class Grey:
        def encode_clips(self, clips: torch.Tensor) -> EncodedClips:
            return EncodedClips(clips[:, :, ::24, ::32, 0].flatten(2).long())

    first = prepare_prompts(config, "train", Grey(), tmp_path)
    again = prepare_prompts(config, "train", Grey(), tmp_path)
    heldout = prepare_prompts(config, "heldout", Grey(), tmp_path)
    assert first.frames.shape == (4, 9, 48, 64, 3)
    np.testing.assert_array_equal(first.frames, again.frames)
    assert first.prompts[3].actions.equals(again.prompts[3].actions)
    assert not {prompt.prompt_id for prompt in first.prompts} & {prompt.prompt_id for prompt in heldout.prompts}
    pairs = zip(first.prompts, first.recorded, strict=True)
    buttons = [(one.actions.values[:, :-2], real.values[:, :-2]) for one, real in pairs]
    assert any((one != real).any() for one, real in buttons)


def test_real_clips_are_encoded_one_a_group_with_their_recorded_actions(tmp_path: Path) -> None:
    prompts = prepare_prompts(_config(_record(tmp_path)), "train", Corners(), tmp_path)
    videos = encoded_real(prompts.with_frames(), Corners())
    assert len(videos) == len(prompts.frames) > 0
    for video, frames, actions in zip(videos, prompts.frames, prompts.recorded, strict=False):
        assert video.codes.shape[0] == 1 and video.actions.equals(actions)
        np.testing.assert_array_equal(video.codes[0], frames[:, HEIGHT // 2, WIDTH // 2, :2])


def test_a_reward_of_the_recorded_future_is_refused_with_sampled_actions() -> None:
    terms = "reward.terms=[{name: inverse}, {name: recorded}]"
    config = load_config("doom_tiny_ar", [terms])
    assert reads_recorded(config) and not reads_recorded(load_config("doom_tiny_ar"))
    check_recorded(config)
    with pytest.raises(ValueError, match=r"prompts\.actions must be recorded with reward\.terms of inverse, recorded"):
        check_recorded(load_config("doom_tiny_ar", [terms, "prompts.actions=sampled"]))
