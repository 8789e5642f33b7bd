"""Action dropout: which actions a training hides, what its model then knows, and what its checkpoint states."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rlir_ray.models.autoregressive import WorldModel
from rlir_ray.models.flow import open_flow_model
from rlir_ray.pretrain.action_dropout import hidden_actions
from rlir_ray.pretrain.flow import FlowTask, LatentRecordings, flow_losses, load_latents, train_flow, validate
from rlir_ray.pretrain.settings import FlowTraining, WorldModelTraining
from rlir_ray.pretrain.task import Progress
from rlir_ray.pretrain.world_model import train_world_model
from rlir_ray.spaces.layouts import NO_ACTION
from tests.pretrain.test_flow_training import TINY, write_recordings
from tests.pretrain.test_world_model import SETTINGS as TOKENS
from tests.pretrain.test_world_model import load_both

Recordings = tuple[LatentRecordings, LatentRecordings]


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Recordings:
    folder = tmp_path_factory.mktemp("latents")
    for seed, split in enumerate(("train", "validation")):
        write_recordings(folder / f"{split}.npz", seed=seed)
    return load_latents(folder / "train.npz"), load_latents(folder / "validation.npz")


def test_each_action_is_hidden_alone_and_a_resumed_step_hides_the_same() -> None:
    hidden = hidden_actions(0.2, seed=3, step=5, shape=(500, 8))
    assert hidden.float().mean() == pytest.approx(0.2, abs=0.02)
    both = (hidden[:, :-1] & hidden[:, 1:]).float().mean()
    assert both == pytest.approx(0.04, abs=0.01)
    assert torch.equal(hidden, hidden_actions(0.2, 3, 5, (500, 8)))
    assert not torch.equal(hidden, hidden_actions(0.2, 3, 6, (500, 8)))


def test_a_flow_model_learns_frames_without_an_action(latents: Recordings, tmp_path: Path) -> None:
    settings = replace(TINY, action_dropout=0.3)
    model = train_flow(*latents, tmp_path / "one", settings)
    assert open_flow_model(tmp_path / "one").config["action_dropout"] == 0.3
    figures = validate(model, latents[1], settings)
    assert figures["validation_loss"] < 0.8 < figures["validation_loss_wrong_actions"]
    x, actions = latents[1].windows(np.arange(100), 3)
    hidden = actions.clone()
    hidden[:, 1:] = NO_ACTION
    with torch.no_grad():
        loss = flow_losses(model, x, hidden, torch.Generator().manual_seed(0), settings).mean()
    # The model knows that the action is unknown: it loses less than with a wrong action, and more than with the action.
    assert figures["validation_loss"] < float(loss) < figures["validation_loss_wrong_actions"]


def test_a_token_model_learns_frames_without_an_action(tmp_path: Path) -> None:
    train, validation = load_both(tmp_path)
    settings = replace(TOKENS, action_dropout=0.3)
    model = train_world_model(train, validation, tmp_path / "out", settings)
    assert WorldModel.from_pretrained(tmp_path / "out").config.action_dropout == 0.3
    starts, hidden = validation.window_starts(3), torch.ones(116, 2, dtype=torch.bool)
    with torch.no_grad():
        known, unknown = (-model(validation.windows(starts, 3, each), 8).mean() for each in (None, hidden))
    # Counting or staying is a guess between two frames, which costs ln 2 / 4 = 0.17 nats a token or more.
    assert known + 0.1 < unknown < 0.8


def test_only_the_hidden_actions_of_a_window_change(tmp_path: Path) -> None:
    train, _ = load_both(tmp_path)
    hidden = torch.tensor([[False, True], [False, False]])
    plain, found = (train.windows(np.array([0, 7]), 3, each) for each in (None, hidden))
    # Frames of 4 tokens and actions of 11: the second action is at 19 to 29.
    assert found[0, 19:30].tolist() == train.sequence.layout.hidden_tokens(8).tolist()
    assert torch.equal(found[1], plain[1]) and (found != plain).sum() == (found[0, 19:30] != plain[0, 19:30]).sum()


def test_a_token_checkpoint_states_its_last_training(tmp_path: Path) -> None:
    recordings, short = load_both(tmp_path), replace(TOKENS, num_steps=1)
    for name, init, probability in (("one", "", 0.2), ("two", "one", 0.0), ("plain", "", 0.0)):
        settings = replace(short, init=str(tmp_path / init) if init else "", action_dropout=probability)
        train_world_model(*recordings, tmp_path / name, settings)
    stated = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("one", "two", "plain")]
    assert [each.get("action_dropout") for each in stated] == [0.2, 0.0, None]


def test_a_checkpoint_states_its_last_training(latents: Recordings, tmp_path: Path) -> None:
    short = replace(TINY, num_steps=1)
    train_flow(*latents, tmp_path / "plain", short)
    assert open_flow_model(tmp_path / "plain").config["action_dropout"] == 0
    train_flow(*latents, tmp_path / "more", replace(short, init=str(tmp_path / "plain"), action_dropout=0.2))
    assert open_flow_model(tmp_path / "more").config["action_dropout"] == 0.2


def test_dropout_changes_no_other_draw_of_a_flow_training(latents: Recordings, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def read(model: object, x: torch.Tensor, actions: torch.Tensor, draws: torch.Generator, *_: object) -> torch.Tensor:
        seen.append((x, actions, torch.rand(3, generator=draws)))
        return torch.zeros(())

    monkeypatch.setattr("rlir_ray.pretrain.flow.flow_loss", read)
    for probability in (0.0, 0.5):
        task = FlowTask(*latents, replace(TINY, action_dropout=probability))
        task.loss(task_progress(), torch.enable_grad)
    (x, actions, draws), (other_x, hidden, other_draws) = seen
    assert torch.equal(x, other_x) and torch.equal(draws, other_draws)
    gone = (hidden == NO_ACTION).all(-1)
    assert 0.2 < gone[:, 1:].float().mean() < 0.8 and not gone[:, 0].any()
    assert torch.equal(hidden[~gone], actions[~gone])


def task_progress() -> Progress:
    return Progress(step=4, share=0.1)


@pytest.mark.parametrize("settings", [FlowTraining, WorldModelTraining])
def test_a_training_that_hides_all_actions_is_refused(settings: type) -> None:
    with pytest.raises(ValueError, match=r"--action-dropout must be < 1, .* got 1; use 0\.2"):
        settings(action_dropout=1.0)
