from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from rlir_ray.data.vpt.pairs import write_recording
from rlir_ray.pretrain.codebook import kmeans
from rlir_ray.pretrain.command import main
from rlir_ray.pretrain.reconstruction import reconstruction_loss
from rlir_ray.pretrain.settings import TokenizerTraining
from rlir_ray.pretrain.tokenizer import evaluate_tokenizer, train_tokenizer
from rlir_ray.run.environment import python_command
from rlir_ray.spaces.vpt import events_from_actions
from tests.fakes import tiny_actions
from tests.pretrain.interruption import interrupted_after_state

TINY = TokenizerTraining(
    num_codes=16,
    code_size=4,
    pixel_unshuffle=4,
    block_channels=(8, 16),
    batch_pairs=4,
    num_steps=60,
    checkpoint_every=20,
)


def moving_squares(seed: int, num_clips: int = 6, num_frames: int = 12) -> list[np.ndarray]:
    """Clips of a bright square that moves over a dark ground."""
    rng = np.random.default_rng(seed)
    clips = []
    for _ in range(num_clips):
        clip = np.full((num_frames, 16, 24, 3), 30, np.uint8)
        y, x, colour = rng.integers(0, 8), rng.integers(0, 12), rng.integers(150, 256, 3)
        for frame in range(num_frames):
            clip[frame, y : y + 8, (x + frame) % 16 : (x + frame) % 16 + 8] = colour
        clips.append(clip)
    return clips


def psnr_of_the_mean_picture(clips: list[np.ndarray]) -> float:
    frames = np.concatenate(clips).astype(np.float64)
    error = ((frames - frames.mean((0, 1, 2))) ** 2).mean((1, 2, 3))
    return float((10 * np.log10(255**2 / error)).mean())


def test_training_beats_the_mean_colour_and_uses_its_codes(tmp_path) -> None:
    clips = moving_squares(0)
    held_out = moving_squares(1)
    train_tokenizer(clips, np.concatenate(held_out), tmp_path, replace(TINY, num_steps=150))
    report = json.loads((tmp_path / "training.json").read_text())
    assert report["steps"] == 150
    assert report["validation"]["psnr"] > psnr_of_the_mean_picture(held_out) + 1
    assert report["validation"]["codes_used"] > 0.3
    curve = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert curve[-1]["loss"] < curve[0]["loss"]


def test_interrupted_training_goes_on_to_the_same_weights(tmp_path) -> None:
    clips, validation = moving_squares(0), np.concatenate(moving_squares(1))
    whole = train_tokenizer(clips, validation, tmp_path / "whole", TINY)
    # After the codebook was started, whose averages must be resumed too.
    with interrupted_after_state(2):
        train_tokenizer(clips, validation, tmp_path / "halves", TINY)
    assert [path.name for path in (tmp_path / "halves").glob("state*")] == ["state-00000040"]
    resumed = train_tokenizer(clips, validation, tmp_path / "halves", TINY)
    for (name, first), second in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(first, second), name
    assert not list((tmp_path / "halves").glob("state*"))


def test_a_state_of_other_settings_is_refused_by_name(tmp_path) -> None:
    clips, validation = moving_squares(0), np.concatenate(moving_squares(1))
    with interrupted_after_state():
        train_tokenizer(clips, validation, tmp_path, TINY)
    with pytest.raises(ValueError, match="must keep its settings, got another learning_rate; repeat them, remove"):
        train_tokenizer(clips, validation, tmp_path, replace(TINY, learning_rate=1e-4))


def test_a_finished_training_is_left_as_it_is(tmp_path, caplog) -> None:
    clips, validation = moving_squares(0), np.concatenate(moving_squares(1))
    settings = replace(TINY, num_steps=2)
    first = train_tokenizer(clips, validation, tmp_path, settings)
    report = (tmp_path / "training.json").read_text()
    with caplog.at_level("INFO"):
        again = train_tokenizer(clips, validation, tmp_path, replace(settings, num_steps=3))
    assert "is trained already; remove it to train again" in caplog.text
    assert (tmp_path / "training.json").read_text() == report
    assert torch.equal(first.codebook, again.codebook)
    with pytest.raises(ValueError, match="was trained with another learning_rate, seed; repeat them"):
        train_tokenizer(clips, validation, tmp_path, replace(settings, learning_rate=1e-4, seed=1))


def test_kmeans_finds_separate_clusters() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    vectors = truth.repeat(50, 1) + 0.1 * torch.randn(150, 2, generator=generator)
    centres = kmeans(vectors, 6, seed=0)
    # With twice as many centres as clusters every cluster has one of them near.
    assert torch.cdist(truth, centres).min(1).values.max() < 0.5


def test_loss_is_lowest_without_error_and_sees_a_lost_motion() -> None:
    pixels = torch.zeros(2, 3, 8, 8)
    pixels[1, :, :, 4:] = 1  # the second frame differs from the first
    still = pixels[:1].repeat(2, 1, 1, 1)
    weights = {"squared_weight": 4.0, "gradient_weight": 0.25}
    assert reconstruction_loss(pixels, pixels, **weights, change_weight=0.5) < 2e-3
    gain = reconstruction_loss(still, pixels, **weights, change_weight=0.5) - reconstruction_loss(
        still, pixels, **weights, change_weight=0.0
    )
    assert gain == pytest.approx(0.25)  # half of the pixels lose a change of 1, weight 0.5


def test_evaluation_of_an_exact_and_of_a_constant_code() -> None:
    class Exact:
        num_codes = 4

        def encode(self, frames: torch.Tensor) -> torch.Tensor:
            self.frames = frames
            return torch.tensor([[0, 1]] * len(frames))

        def decode(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.frames

    class Grey(Exact):
        def decode(self, tokens: torch.Tensor) -> torch.Tensor:
            return torch.full_like(self.frames, 128)

    frames = np.concatenate(moving_squares(0))
    figures = evaluate_tokenizer(Exact(), frames)
    assert figures["psnr"] > 80
    assert figures["sharpness_ratio"] == pytest.approx(1)
    assert figures["codes_used"] == 0.5  # codes 0 and 1 of 4
    assert figures["perplexity"] == pytest.approx(2)
    figures = evaluate_tokenizer(Grey(), frames)
    assert figures["sharpness_ratio"] == 0
    assert figures["brightness"] == 128
    assert figures["psnr"] < 20


def test_broken_recordings_alone_are_refused_before_anything_is_written(tmp_path) -> None:
    for split in ("train", "validation"):
        for ending in ("mp4", "jsonl"):
            (tmp_path / "data" / split).mkdir(parents=True, exist_ok=True)
            (tmp_path / "data" / split / f"broken.{ending}").write_text("{}")
    with pytest.raises(ValueError, match="must hold a recording that can be read, got 1 broken ones; make some with"):
        main("tokenizer", ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_training_without_recordings_says_so(tmp_path) -> None:
    with pytest.raises(ValueError, match="at least 2 frames, got none"):
        train_tokenizer([], np.zeros((1, 16, 24, 3), np.uint8), tmp_path, TINY)


def test_zero_minutes_train_by_steps(tmp_path) -> None:
    clips, validation = moving_squares(0), np.concatenate(moving_squares(1))
    train_tokenizer(clips, validation, tmp_path, replace(TINY, minutes=0.0, num_steps=2))
    assert json.loads((tmp_path / "training.json").read_text())["steps"] == 2


FOLLOWING = "pretrain idm --data {0}/data --out {0}/reward_idm --architecture difference --tokenizer {0}/out"


@pytest.mark.parametrize("options", [["--tokens", "{}/tokens"], []])
def test_the_command_says_which_command_follows(tmp_path, caplog, options) -> None:
    for seed, split in enumerate(("train", "validation")):
        (tmp_path / "data" / split).mkdir(parents=True)
        for number, clip in enumerate(moving_squares(seed, num_clips=2)):
            events = events_from_actions(tiny_actions(len(clip), number))
            write_recording(tmp_path / "data" / split / f"clip-{number}", clip, events)
    sizes = ["--num-codes", "8", "--code-size", "4", "--batch-pairs", "2", "--num-steps", "2"]
    folders = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    with caplog.at_level("INFO"):
        main("tokenizer", [*folders, *sizes, *(option.format(tmp_path) for option in options)])
    assert caplog.messages[-1] == f"next: {python_command()} -m rlir_ray {FOLLOWING.format(tmp_path)}"
    assert not options or (tmp_path / "tokens" / "validation.npz").is_file()
