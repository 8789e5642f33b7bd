"""Recordings encoded into one file: what it keeps, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from rlir_ray.data.recordings import Recording
from rlir_ray.pretrain.encode import encode_recordings, read_encoded
from rlir_ray.spaces.space import ActionSpace
from rlir_ray.spaces.vpt import VPT_SPACE, events_from_actions
from rlir_ray.trajectory import EncodedClips
from tests.fakes import HEIGHT, NUM_CODES, WIDTH, tiny_actions, tiny_autoencoder, tiny_tokenizer
from tests.pretrain.interruption import Interrupted
from tests.second_space import SPACE, second_actions


def random_frames(num_frames: int, seed: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (num_frames, HEIGHT, WIDTH, 3), dtype=np.uint8)


def walls(seed: int, num_frames: int = 6) -> Recording:
    """A VPT recording whose events also say how far the wall is."""
    actions = tiny_actions(num_frames, seed)
    events = [{**event, "wallDistance": 5.0 + seed} for event in events_from_actions(actions)]
    return Recording(name=f"clip-{seed}", frames=random_frames(num_frames, seed), events=events, actions=actions)


def plain(seed: int, num_frames: int = 6) -> Recording:
    """A recording of another format than VPT's: without events."""
    frames = random_frames(num_frames, seed)
    return Recording(name=f"plain-{seed}", frames=frames, actions=second_actions(num_frames, seed))


def test_tokens_keep_frames_actions_starts_and_the_number_of_codes(tmp_path: Path) -> None:
    tokenizer, recordings = tiny_tokenizer(), [walls(0), walls(1)]
    assert encode_recordings(tokenizer, recordings, tmp_path / "tokens.npz") == 12
    with np.load(tmp_path / "tokens.npz", allow_pickle=False) as arrays:
        assert arrays["tokens"].shape == (12, 12) and arrays["tokens"].dtype == np.uint16
        assert arrays["episode_starts"].tolist() == [0, 6]
        assert arrays["names"].tolist() == ["clip-0", "clip-1"]
        assert arrays["actions"].dtype == np.float32
        np.testing.assert_array_equal(arrays["actions"][6:], recordings[1].actions.values)
        assert ActionSpace.from_json(str(arrays["action_space"])) == VPT_SPACE
        assert arrays["num_codes"].shape == () and arrays["num_codes"] == NUM_CODES
        assert arrays["wall_distance"].tolist() == [5.0] * 6 + [6.0] * 6
    found = read_encoded(tmp_path / "tokens.npz", "tokens")
    assert found.num_codes == NUM_CODES and found.actions.space == VPT_SPACE
    assert torch.equal(
        torch.from_numpy(found.codes[6:].astype(np.int64)), tokenizer.encode(torch.from_numpy(recordings[1].frames))
    )


def test_latents_of_recordings_without_events_keep_their_space(tmp_path: Path) -> None:
    recordings = [plain(0), plain(1)]
    encode_recordings(tiny_autoencoder(), recordings, tmp_path / "latents.npz")
    with np.load(tmp_path / "latents.npz", allow_pickle=False) as arrays:
        assert "wall_distance" not in arrays and "num_codes" not in arrays
    found = read_encoded(tmp_path / "latents.npz", "latents")
    assert found.codes.shape == (12, 4, 6, 8) and found.actions.space == SPACE
    np.testing.assert_array_equal(found.actions.values[:6], recordings[0].actions.values)


def test_recordings_of_several_spaces_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"plain-1 must have the action space of recording clip-0, .*field 0"):
        encode_recordings(tiny_tokenizer(), [walls(0), plain(1)], tmp_path / "tokens.npz")
    assert not list(tmp_path.iterdir())


def test_an_encoding_without_recordings_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one readable recording, got none; make some with"):
        encode_recordings(tiny_tokenizer(), [], tmp_path / "new" / "tokens.npz")
    assert not list(tmp_path.iterdir())


def test_an_interrupted_encoding_leaves_no_file_under_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopping_savez(file, **arrays) -> None:
        file.write(b"half")
        raise Interrupted

    monkeypatch.setattr(np, "savez", stopping_savez)
    with pytest.raises(Interrupted):
        encode_recordings(tiny_tokenizer(), [plain(0)], tmp_path / "tokens.npz")
    assert not (tmp_path / "tokens.npz").exists()


class WideCodec:
    """Encodes every frame as the same two tokens, which 16 bits do not hold."""

    num_codes, num_keyframe_codes = 80_000, 0

    def encode_clips(self, clips: torch.Tensor) -> EncodedClips:
        return EncodedClips(torch.tensor([65_536, 70_000]).repeat(*clips.shape[:2], 1))


def test_tokens_above_65535_are_encoded_unchanged(tmp_path: Path) -> None:
    encode_recordings(WideCodec(), [plain(0)], tmp_path / "tokens.npz")
    assert read_encoded(tmp_path / "tokens.npz", "tokens").codes[0].tolist() == [65_536, 70_000]


class KeyframeCodec:
    """A keyframe's id is the grey of a clip's first frame; a frame's is its distance to it."""

    num_codes, num_keyframe_codes = 256, 300

    def encode_clips(self, clips: torch.Tensor) -> EncodedClips:
        grey = clips[..., 0, 0, :1].long()  # [B, n, 1]
        return EncodedClips(grey - grey[:, :1], grey[:, 0] + 44)


def test_clips_with_keyframes_start_half_a_clip_apart(tmp_path: Path) -> None:
    long, short, other = plain(0, 11), plain(1, 3), plain(2, 4)
    for recording in (long, short, other):
        recording.frames[:] = 10 * np.arange(len(recording.frames), dtype=np.uint8)[:, None, None, None]
    count = encode_recordings(KeyframeCodec(), [long, short, other], tmp_path / "tokens.npz", clip_frames=4)
    found = read_encoded(tmp_path / "tokens.npz", "tokens")
    # Clips begin at frames 0, 2, 4 and 6 of the first recording, and at frame 0 of the last.
    assert count == 5 * 4 and found.episode_starts.tolist() == [0, 4, 8, 12, 16]
    assert found.codes[:, 0].tolist() == [0, 10, 20, 30] * 5
    assert found.keyframes is not None and found.keyframes[:, 0].tolist() == [44, 64, 84, 104, 44]
    assert (found.num_codes, found.num_keyframe_codes) == (256, 300)
    np.testing.assert_array_equal(found.actions.values[4:8], long.actions.values[2:6])
    np.testing.assert_array_equal(found.actions.values[16:], other.actions.values)
    with pytest.raises(ValueError, match="needs at least one readable recording of 4 frames, got none"):
        encode_recordings(KeyframeCodec(), [short], tmp_path / "none.npz", clip_frames=4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"actions": None, "buttons": np.zeros((2, 23))},
            "of an earlier version; encode the recordings again",
        ),
        ({"num_codes": None}, "encode the recordings again"),
        ({"actions": np.zeros((3, 2), np.float32)}, "one action a frame, got 2 frames and 3 actions"),
        ({"tokens": None, "latents": np.zeros((2, 1))}, "must hold tokens, got .*; encode with a tokenizer"),
    ],
)
def test_files_that_are_not_of_this_version_are_refused(tmp_path: Path, changes: dict, message: str) -> None:
    whole = {
        "tokens": np.zeros((2, 4), np.uint16),
        "actions": SPACE.nothing(2).values,
        "action_space": np.array(SPACE.to_json()),
        "episode_starts": np.array([0]),
        "num_codes": np.array(8),
    }
    np.savez(tmp_path / "whole.npz", **whole)
    assert read_encoded(tmp_path / "whole.npz", "tokens").num_codes == 8
    np.savez(tmp_path / "other.npz", **{name: part for name, part in (whole | changes).items() if part is not None})
    with pytest.raises(ValueError, match=message):
        read_encoded(tmp_path / "other.npz", "tokens")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must exist, got .*; encode the recordings with an autoencoder first"):
        read_encoded(tmp_path / "none.npz", "latents")
