"""Training of a flow world model, and the loop that it shares with the autoencoder's."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from rlir_ray.models.flow import open_flow_model
from rlir_ray.models.flow_forms import open_flow_policy
from rlir_ray.pretrain.flow import LatentRecordings, flow_loss, load_latents, train_flow, validate
from rlir_ray.pretrain.settings import FlowTraining
from rlir_ray.pretrain.task import cosine_rate
from rlir_ray.spaces.space import ActionSpace
from rlir_ray.spaces.vpt import VPT_SPACE
from tests.pretrain.interruption import interrupted_after_state
from tests.second_space import LAYOUT, SPACE

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


def write_recordings(path, num_frames: int = 300, seed: int = 0, space: ActionSpace = VPT_SPACE) -> None:
    """A latent of 2 x 1 x 2 whose first channel is 1 after the last class of the first field and -1 without it."""
    random = np.random.default_rng(seed)
    moves, actions = random.random(num_frames) < 0.5, space.nothing(num_frames)
    actions.values[:, 0] = np.where(moves, space.fields[0].num_classes - 1, actions.values[:, 0])
    latents = random.normal(0, 0.1, (num_frames, 2, 1, 2)).astype(np.float16)
    latents[:, 0] += np.where(moves, 1, -1)[:, None, None]
    np.savez(
        path,
        latents=latents,
        episode_starts=np.array([0, num_frames // 2]),
        actions=actions.values,
        action_space=np.array(space.to_json()),
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
        span = None

        def forward(self, latents, levels, actions, places, visible):
            seen["levels"], seen["visible"], seen["places"] = levels, visible, places
            return torch.zeros_like(latents)

        def exact_levels(self, levels):
            return levels

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


def test_frames_that_a_model_cannot_read_from_the_start_have_windows_of_their_own(recordings) -> None:
    passes = []

    class Spy(torch.nn.Module):
        span = 2

        def forward(self, latents, levels, actions, places, visible):
            passes.append((latents, actions, places.tolist()))
            return torch.zeros_like(latents)

        def exact_levels(self, levels):
            return levels

    latents, actions = recordings[0].windows(np.arange(8), 4)
    flow_loss(Spy(), latents, actions, torch.Generator().manual_seed(0), replace(TINY, history_noise=0.0))
    (first, told, places), (rest, more, again) = passes
    assert places == again == [0, 1]
    assert torch.equal(first[:, 0], latents[:, 0]) and torch.equal(told, actions[:, :2])
    # Frames 2 and 3 of each clip, after frames 1 and 2.
    assert torch.equal(rest[:, 0], latents[:, 1:3].flatten(0, 1))
    assert torch.equal(more, actions.unfold(1, 2, 1)[:, 1:].flatten(0, 1).transpose(1, 2))


def test_first_action_of_a_window_is_unknown(recordings) -> None:
    _, actions = recordings[0].windows(np.array([3, 10]), 3)
    assert actions[:, 0].tolist() == [[10, 10, 0, 0, 0, 0, 0, 0, 0]] * 2
    assert actions[:, 1:, 3].unique().tolist() == [0, 2]  # back or not


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
    other = replace(recordings[0], latents=np.zeros((300, 3, 1, 2), np.float16))
    with pytest.raises(ValueError, match=r"must have latents of \(2, 1, 2\) a frame as --init"):
        train_flow(other, other, tmp_path / "other", more)
    with pytest.raises(ValueError, match=r"held-out recordings must have latents of \(2, 1, 2\) a frame"):
        train_flow(recordings[0], other, tmp_path / "other", TINY)


def test_a_world_of_another_action_space_is_learned(recordings, tmp_path) -> None:
    for seed, split in enumerate(("train", "validation")):
        write_recordings(tmp_path / f"{split}.npz", seed=seed, space=SPACE)
    second = [load_latents(tmp_path / f"{split}.npz") for split in ("train", "validation")]
    assert second[0].windows(np.array([0]), 2)[1][0, 0].tolist() == LAYOUT.classes(SPACE.nothing(1))[0].tolist()
    model = train_flow(*second, tmp_path / "out", TINY)
    figures = validate(model, second[1], TINY)
    assert figures["validation_loss"] < 0.7 < figures["validation_loss_wrong_actions"]
    again = open_flow_model(tmp_path / "out")
    assert again.layout.space == SPACE and again.layout.name == "fields"
    with pytest.raises(ValueError, match=r"the held-out recordings must have the action space .*field 0: gear"):
        train_flow(second[0], recordings[1], tmp_path / "mixed", TINY)
    with pytest.raises(ValueError, match=r"the recordings must have the action space of --init .*field 0: gear"):
        train_flow(*recordings, tmp_path / "other", replace(TINY, init=str(tmp_path / "out")))


def test_a_model_of_oasis_form_learns_what_the_action_does_at_levels_of_its_times(recordings, tmp_path) -> None:
    settings = replace(TINY, form="oasis", history_noise=0.0, hidden_size=32, num_heads=2)
    for seed, split in enumerate(("train", "validation")):
        write_recordings(tmp_path / f"{split}.npz", seed=seed)
    oasis = [load_latents(tmp_path / f"{split}.npz", "oasis") for split in ("train", "validation")]
    model = train_flow(*oasis, tmp_path / "out", settings)
    figures = validate(model, oasis[1], settings)
    assert figures["validation_loss"] < 0.7 < figures["validation_loss_wrong_actions"]
    again = open_flow_policy(tmp_path / "out")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())
    levels = model.exact_levels(torch.rand(100))
    assert torch.equal(model.exact_levels(levels), levels)
    with pytest.raises(ValueError, match="must have the action layout of"):
        train_flow(*recordings, tmp_path / "other", replace(settings, init=str(tmp_path / "out")))


def test_forms_that_are_unknown_or_do_not_fit_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="form must be one of nfd, oasis, got 'dit'"):
        replace(TINY, form="dit")
    with pytest.raises(ValueError, match="history_noise must be 0 with form oasis"):
        replace(TINY, form="oasis")
    write_recordings(tmp_path / "train.npz", space=SPACE)
    with pytest.raises(ValueError, match=r"must have the action space of the form oasis, got other fields \(field 0"):
        load_latents(tmp_path / "train.npz", "oasis")


def test_learning_rate_rises_and_falls_along_a_cosine() -> None:
    assert (
        cosine_rate(0.01) == pytest.approx(0.5) and cosine_rate(0.02) == 1 and cosine_rate(1.0) == pytest.approx(0.05)
    )
    assert cosine_rate(0.51, least=0.1) == pytest.approx(0.55)
