"""Training of a flow world model, and the loop that it shares with the autoencoder's."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from rlir_ray.models.flow import open_flow_model
from rlir_ray.pretrain.flow import LatentRecordings, flow_loss, load_latents, train_flow, validate
from rlir_ray.pretrain.settings import FlowTraining
from rlir_ray.pretrain.task import cosine_rate
from rlir_ray.spaces.actions import BUTTON_INDEX, BUTTONS, Actions
from tests.pretrain.interruption import interrupted_after_state

TINY = FlowTraining(
    patch_size=1,
    hidden_size=32,
    num_layers=2,
    num_heads=2,
    num_frames=3,
    batch_size=16,
    num_steps=120,
    learning_rate=5e-3,
    average_decay=0.9,
    precision="fp32",
    num_validation=32,
    evaluate_every_s=1e9,
)


def write_recordings(path, num_frames: int = 300, seed: int = 0) -> None:
    """A latent of 2 x 1 x 2 whose first channel is 1 after `forward` and -1 without it."""
    random = np.random.default_rng(seed)
    buttons = np.zeros((num_frames, len(BUTTONS)), np.bool_)
    buttons[:, BUTTON_INDEX["forward"]] = random.random(num_frames) < 0.5
    latents = random.normal(0, 0.1, (num_frames, 2, 1, 2)).astype(np.float16)
    latents[:, 0] += np.where(buttons[:, BUTTON_INDEX["forward"]], 1, -1)[:, None, None]
    np.savez(
        path,
        latents=latents,
        episode_starts=np.array([0, num_frames // 2]),
        buttons=buttons,
        camera=np.zeros((num_frames, 2), np.float32),
    )


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> tuple[LatentRecordings, LatentRecordings]:
    folder = tmp_path_factory.mktemp("latents")
    for seed, split in enumerate(("train", "validation")):
        write_recordings(folder / f"{split}.npz", seed=seed)
    return load_latents(folder / "train.npz"), load_latents(folder / "validation.npz")


def test_training_learns_what_the_action_does(recordings, tmp_path, caplog) -> None:
    model = train_flow(*recordings, tmp_path, TINY)
    figures = validate(model, recordings[1], TINY)
    # Without the action a frame is -1 or 1 by chance; wrong ones are worse than none.
    assert figures["validation_loss"] < 0.7 < figures["validation_loss_wrong_actions"]
    assert "warning" not in caplog.text
    report = json.loads((tmp_path / "training.json").read_text())
    assert report["steps"] == 120 and report["windows_seen"] == 120 * 16
    assert report["final"]["validation_loss"] == pytest.approx(figures["validation_loss"], abs=1e-3)
    latents, actions = recordings[1].windows(np.arange(2), 3)
    with torch.no_grad():
        columns = (latents, torch.full((2, 3), 0.5), actions)
        torch.testing.assert_close(open_flow_model(tmp_path)(*columns), model(*columns))


def test_a_model_that_ignores_the_actions_ends_its_training_with_a_warning(recordings, tmp_path, caplog) -> None:
    unrelated = [replace(one, actions=one.actions[::-1].copy()) for one in recordings]
    train_flow(*unrelated, tmp_path, replace(TINY, num_steps=30))
    (line,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert line.startswith("warning: the model ignores the actions: its held-out loss is") and "\n" not in line


def test_levels_are_independent_by_frame_and_history_is_slightly_noised(recordings) -> None:
    seen = {}

    class Spy(torch.nn.Module):
        def forward(self, latents, levels, actions, places, visible):
            seen["levels"], seen["visible"], seen["places"] = levels, visible, places
            return torch.zeros_like(latents)

    latents, actions = recordings[0].windows(np.arange(64), 3)
    flow_loss(Spy(), latents, actions, torch.Generator().manual_seed(0), TINY)
    history, denoised = seen["levels"][:, :2], seen["levels"][:, 2:]
    assert history.max() < TINY.history_noise and denoised.max() > 0.8
    assert abs(np.corrcoef(denoised[:, 0], denoised[:, 1])[0, 1]) < 0.3
    # Frames 0 and 1 as history, frames 1 and 2 denoised; row by row what each of them sees.
    assert seen["places"].tolist() == [0, 1, 1, 2]
    assert seen["visible"].tolist() == [
        [True, False, False, False],
        [True, True, False, False],
        [True, False, True, False],
        [True, True, False, True],
    ]


def test_first_action_of_a_window_is_unknown(recordings) -> None:
    _, actions = recordings[0].windows(np.array([3, 10]), 3)
    assert (actions[:, 0] == actions[0, 0]).all()
    pressed = Actions.from_events([{"keyboard": {"keys": ["key.keyboard.w"]}}])
    assert len(pressed) == 1 and actions[:, 1:, 3].unique().tolist() == [0, 1]


def test_interrupted_training_goes_on_to_the_same_weights(recordings, tmp_path) -> None:
    settings = replace(TINY, num_steps=8, evaluate_every_s=0.0)
    whole = train_flow(*recordings, tmp_path / "whole", settings)
    # Some states are saved after the moving average has left the first weights.
    with interrupted_after_state(4):
        train_flow(*recordings, tmp_path / "parts", settings)
    parts = train_flow(*recordings, tmp_path / "parts", settings)
    for (name, one), other in zip(whole.named_parameters(), parts.parameters(), strict=True):
        assert torch.equal(one, other), name
    assert not list((tmp_path / "parts").glob("state*"))


def test_the_log_says_figures_and_no_more_than_the_whole(recordings, tmp_path, caplog) -> None:
    with caplog.at_level("INFO"):
        train_flow(*recordings, tmp_path, replace(TINY, minutes=1e-4))
    last = [message for message in caplog.messages if "%" in message][-1]
    # Its only step took longer than the training was to last.
    assert last.startswith("100 %, step ") and "validation loss" in last
    assert not any("{" in message for message in caplog.messages)


def test_training_goes_on_from_a_checkpoint_of_its_own_size_only(recordings, tmp_path) -> None:
    train_flow(*recordings, tmp_path / "base", replace(TINY, num_steps=2))
    more = replace(TINY, num_steps=1, init=str(tmp_path / "base"))
    assert train_flow(*recordings, tmp_path / "more", more).config["hidden_size"] == 32
    other = LatentRecordings(np.zeros((9, 3, 1, 2), np.float16), np.zeros((9, 9), np.int64), np.array([0]))
    with pytest.raises(ValueError, match=r"latents of \(2, 1, 2\)"):
        train_flow(other, other, tmp_path / "other", more)


def test_learning_rate_rises_and_falls_along_a_cosine() -> None:
    assert (
        cosine_rate(0.01) == pytest.approx(0.5) and cosine_rate(0.02) == 1 and cosine_rate(1.0) == pytest.approx(0.05)
    )
    assert cosine_rate(0.51, least=0.1) == pytest.approx(0.55)


def test_file_without_latents_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="must exist"):
        load_latents(tmp_path / "none.npz")
    np.savez(tmp_path / "tokens.npz", tokens=np.zeros(3))
    with pytest.raises(ValueError, match="must hold latents"):
        load_latents(tmp_path / "tokens.npz")
