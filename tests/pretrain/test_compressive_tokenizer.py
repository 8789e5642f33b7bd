"""Training of a compressive tokenizer: clips, gradients through rounding, resuming, and the encoded recordings."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rlir_ray.data.recordings import Recording
from rlir_ray.models.compressive_codec import CompressiveCodec
from rlir_ray.models.fsq import LEVELS
from rlir_ray.pretrain.compressive_tokenizer import (
    build_compressive_tokenizer,
    cut,
    draw_clips,
    evaluate_compressive_tokenizer,
    train_compressive_tokenizer,
)
from rlir_ray.pretrain.encode import encode_recordings
from rlir_ray.pretrain.idm import reconstruction
from rlir_ray.pretrain.settings import QUANTIZERS, CompressiveTokenizerTraining
from rlir_ray.pretrain.world_model import load_tokens
from rlir_ray.spaces.vpt import VPT_SPACE

SETTINGS = CompressiveTokenizerTraining(
    levels=8,
    patch_width=2,
    keyframe_levels=8,
    latent_channels=4,
    pixel_unshuffle=4,
    block_channels=(8, 16),
    clip_frames=4,
    batch_clips=2,
    num_steps=6,
    checkpoint_every=2,
    device="cpu",
)


def numbered(num_frames: int, height: int = 16, width: int = 32) -> np.ndarray:
    """Frames whose grey is their number."""
    return np.broadcast_to(np.arange(num_frames, dtype=np.uint8)[:, None, None, None], (num_frames, height, width, 3))


def shapes(num_frames: int, seed: int) -> np.ndarray:
    """A square that moves over a plain background."""
    frames = np.full((num_frames, 16, 32, 3), 40 + 10 * seed, np.uint8)
    for number in range(num_frames):
        frames[number, 4:10, 2 * number : 2 * number + 6] = (200, 90, 60)
    return frames


def test_clips_are_a_keyframe_and_two_neighbours_close_behind() -> None:
    clips = [numbered(6), 100 + numbered(4)]
    found = draw_clips(clips, 200, 4, seed=0, step=3)[:, :, 0, 0, 0].astype(int)
    assert found.shape == (200, 3)
    start, first, second = found.T
    assert (second == first + 1).all() and set(first - start) == {0, 1, 2}
    # Three starts of the first recording, one of the second.
    assert set(start) == {0, 1, 2, 100} and 0.15 < (start == 100).mean() < 0.35
    np.testing.assert_array_equal(found, draw_clips(clips, 200, 4, seed=0, step=3)[:, :, 0, 0, 0])
    assert (found != draw_clips(clips, 200, 4, seed=0, step=4)[:, :, 0, 0, 0]).any()
    assert cut(clips, 4)[:, :, 0, 0, 0].tolist() == [[0, 1, 2, 3], [100, 101, 102, 103]]


def test_all_weights_get_gradients_through_both_quantizers() -> None:
    torch.manual_seed(0)
    codec = build_compressive_tokenizer(16, 32, SETTINGS).train()
    assert (codec.height, codec.width, codec.grid, codec.model.grid) == (16, 32, (1, 2), (2, 4))
    pictures = codec.pixels(torch.from_numpy(draw_clips([shapes(6, 0)], 2, 4, 0, 0)))
    codec.model.reconstruct(pictures).square().mean().backward()
    without = [name for name, weight in codec.model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert not without


def test_reconstruction_in_training_is_that_of_the_ids() -> None:
    torch.manual_seed(0)
    codec = build_compressive_tokenizer(16, 32, SETTINGS).eval()
    pictures = codec.pixels(torch.from_numpy(draw_clips([shapes(6, 0)], 2, 4, 0, 0)))
    with torch.no_grad():
        torch.testing.assert_close(codec.model.reconstruct(pictures), codec.model(pictures))


def test_a_finished_training_is_read_back_and_another_is_refused(tmp_path: Path) -> None:
    clips, validation = [shapes(6, 0), shapes(5, 1)], [shapes(5, 2)]
    whole = train_compressive_tokenizer(clips, validation, tmp_path / "whole", SETTINGS)
    short = dataclasses.replace(SETTINGS, num_steps=4)
    stopped = train_compressive_tokenizer(clips, validation, tmp_path / "short", short)
    assert any((a != b).any() for a, b in zip(whole.parameters(), stopped.parameters(), strict=True))
    again = train_compressive_tokenizer(clips, validation, tmp_path / "whole", SETTINGS)
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    figures = evaluate_compressive_tokenizer(whole, cut(validation, 4))
    assert set(figures) >= {"psnr", "psnr_last", "codes_used", "keyframe_codes_used", "sharpness_ratio"}
    assert 0 < figures["codes_used"] <= 1 and figures["psnr"] > 5
    with pytest.raises(ValueError, match="trained with another learning_rate"):
        train_compressive_tokenizer(
            clips, validation, tmp_path / "whole", dataclasses.replace(SETTINGS, learning_rate=1.0)
        )


def test_it_learns_to_tell_frames_apart(tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, num_steps=40, batch_clips=4, learning_rate=5e-3)
    clips = [shapes(6, seed) for seed in range(3)]
    trained = evaluate_compressive_tokenizer(
        train_compressive_tokenizer(clips, clips, tmp_path / "out", settings), cut(clips, 4)
    )
    torch.manual_seed(settings.seed)
    fresh = evaluate_compressive_tokenizer(build_compressive_tokenizer(16, 32, settings).eval(), cut(clips, 4))
    assert trained["psnr"] > fresh["psnr"] + 4


def test_encoded_clips_train_a_world_model_with_their_keyframes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    codec = build_compressive_tokenizer(16, 32, SETTINGS).eval()
    actions = VPT_SPACE.nothing(8)
    actions.values[:, 0] = np.arange(8) % 3
    recording = Recording(name="one", frames=np.concatenate([shapes(4, 0), shapes(4, 1)]), actions=actions)
    encode_recordings(codec, [recording], tmp_path / "tokens.npz", clip_frames=4)
    tokens = load_tokens(tmp_path / "tokens.npz")
    shape = tokens.sequence.shape
    assert shape == (240, 2, 240, 8) and tokens.keyframes is not None
    # Clips start at frames 0, 2 and 4 of the recording, and at rows 0, 4 and 8. A window starts with a clip.
    assert tokens.window_starts(3).tolist() == [0, 4, 8]
    windows = tokens.windows(np.array([4, 8]), 3)
    assert windows.shape == (2, 8 + 3 * 2 + 2 * 11)
    np.testing.assert_array_equal(windows[:, :8] - 240, tokens.keyframes[[1, 2]])
    np.testing.assert_array_equal(windows[:, 8:10], tokens.images[[4, 8]])
    np.testing.assert_array_equal(windows[1, 10:21], tokens.actions[9])
    assert tokens.actions[9].min() >= tokens.sequence.first_action_id == 480


def test_broken_files_of_keyframes_are_refused(tmp_path: Path) -> None:
    codec = build_compressive_tokenizer(16, 32, SETTINGS).eval()
    recording = Recording(name="one", frames=shapes(8, 0), actions=VPT_SPACE.nothing(8))
    encode_recordings(codec, [recording], tmp_path / "whole.npz", clip_frames=4)
    whole = dict(np.load(tmp_path / "whole.npz"))
    for changes, message in (
        ({"keyframes": whole["keyframes"][:2]}, "must hold one keyframe a clip, got 2 of 3 clips"),
        ({"keyframes": whole["keyframes"] * 0 + 240}, r"must hold keyframes below their 240 codes, got 0\.\.240"),
    ):
        np.savez(tmp_path / "broken.npz", **(whole | changes))
        with pytest.raises(ValueError, match=message):
            load_tokens(tmp_path / "broken.npz")


def test_windows_of_inverse_dynamics_models_are_reconstructed_in_clips_of_the_tokenizer(tmp_path: Path) -> None:
    codec = build_compressive_tokenizer(16, 32, SETTINGS).eval()
    codec.save_pretrained(tmp_path)
    windows = np.stack([shapes(6, 0), shapes(6, 1)])
    found = reconstruction(tmp_path, (16, 32), "cpu")(windows)
    parts = [codec.decode_clips(codec.encode_clips(part)) for part in torch.from_numpy(windows).split(4, 1)]
    np.testing.assert_array_equal(found, torch.cat(parts, 1))


def test_a_training_of_the_other_form_is_another_training(tmp_path: Path) -> None:
    held = {"code_size": 16, "learning_rate": SETTINGS.learning_rate}
    (tmp_path / "training.json").write_text(json.dumps({"settings": held}))
    with pytest.raises(ValueError, match="was trained with another form"):
        train_compressive_tokenizer([shapes(6, 0)], [shapes(5, 0)], tmp_path, SETTINGS)


def test_what_cannot_train_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least --clip-frames 4 frames, got at most 3"):
        train_compressive_tokenizer([shapes(3, 0)], [shapes(5, 0)], tmp_path, SETTINGS)
    with pytest.raises(ValueError, match=r"must be multiples of 16 and 16, so that .* got 16x24; resize"):
        build_compressive_tokenizer(16, 24, SETTINGS)
    with pytest.raises(ValueError, match="--clip-frames must be at least 2, got 1"):
        CompressiveTokenizerTraining(clip_frames=1)
    with pytest.raises(ValueError, match="--keyframe-levels must be one of 8, 10, 12, 14, 16, got 9"):
        CompressiveTokenizerTraining(keyframe_levels=9)
    assert tuple(LEVELS) == QUANTIZERS
    assert isinstance(build_compressive_tokenizer(16, 32, SETTINGS), CompressiveCodec)
