"""Training of the frame autoencoder."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from rlir_ray.models.autoencoder import FrameAutoencoder, build_autoencoder
from rlir_ray.pretrain.autoencoder import evaluate_autoencoder, train_autoencoder
from rlir_ray.pretrain.settings import AutoencoderTraining
from tests.fakes import tiny_autoencoder

TINY = AutoencoderTraining(
    latent_channels=4, block_channels=(8, 16), pixel_unshuffle=2, batch_pairs=4, num_steps=150, evaluate_every_s=1e9
)


def clips(count: int = 3, seed: int = 0) -> list[np.ndarray]:
    """Squares that wander over a grey ground, 16 x 24 pixels."""
    random, made = np.random.default_rng(seed), []
    for _ in range(count):
        frames = np.full((12, 16, 24, 3), 60, np.uint8)
        y, x, colour = random.integers(0, 10), random.integers(0, 16), random.integers(100, 250, 3)
        for frame in frames:
            x = (x + 1) % 18
            frame[y : y + 6, x : x + 6] = colour
        made.append(frames)
    return made


def test_training_learns_the_pictures_and_the_scale_of_its_latents(tmp_path) -> None:
    made, held_out = clips(), np.concatenate(clips(1, seed=5))
    torch.manual_seed(0)
    fresh = build_autoencoder(height=16, width=24, latent_channels=4, block_channels=(8, 16), pixel_unshuffle=2)
    trained = train_autoencoder(made, held_out, tmp_path, TINY)
    before, after = (evaluate_autoencoder(model.eval(), held_out)["psnr"] for model in (fresh, trained))
    assert after > before + 5
    latents = trained.encode(torch.from_numpy(np.concatenate(made)))
    assert latents.shape == (36, 4, 4, 6)
    # float16 on disk
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), atol=0.02, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=0.02, rtol=0)
    report = json.loads((tmp_path / "training.json").read_text())
    assert report["steps"] == 150 and report["validation"]["psnr"] == pytest.approx(after, abs=0.1)
    assert not list(tmp_path.glob("state*"))
    # Finished: it is opened, not trained again; with other settings it is refused.
    again = train_autoencoder(made, held_out, tmp_path, replace(TINY, num_steps=300))
    torch.testing.assert_close(again.encode(torch.from_numpy(held_out)), trained.encode(torch.from_numpy(held_out)))
    with pytest.raises(ValueError, match="another kl_weight"):
        train_autoencoder(made, held_out, tmp_path, replace(TINY, kl_weight=1.0))


def test_plain_folder_of_diffusers_is_scaled_by_its_factors(tmp_path) -> None:
    model = tiny_autoencoder()
    frames = torch.randint(0, 256, (2, 24, 32, 3), dtype=torch.uint8)
    plain = model.encode(frames)
    model.model.register_to_config(shift_factor=0.5, scaling_factor=2.0)
    torch.testing.assert_close(model.encode(frames), (plain - 0.5) * 2)
    decoded = model.decode((plain - 0.5) * 2)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(FrameAutoencoder.from_pretrained(tmp_path).encode(frames), (plain - 0.5) * 2)
    model.model.register_to_config(shift_factor=0.0, scaling_factor=1.0)
    assert torch.equal(decoded, model.decode(plain))


def test_latents_that_are_not_finite_or_of_another_shape_are_refused() -> None:
    model = tiny_autoencoder()
    with pytest.raises(ValueError, match="latents must be finite"):
        model.decode(torch.full((1, *model.latent_shape), torch.nan))
    with pytest.raises(ValueError, match=r"decodes latents \[N, \(4, 6, 8\)\]"):
        model.decode(torch.zeros(1, 4, 8, 6))
    assert model.decode(torch.zeros(0, *model.latent_shape)).shape == (0, 24, 32, 3)
    assert model.encode(torch.zeros(0, 24, 32, 3, dtype=torch.uint8)).shape == (0, *model.latent_shape)


def test_no_recordings_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="at least 2 frames, got none"):
        train_autoencoder([], np.zeros((1, 16, 24, 3), np.uint8), tmp_path, TINY)
