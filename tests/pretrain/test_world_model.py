"""Pretraining of the world model: windows, learning, resuming."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rlir_ray.models.autoregressive import WorldModel
from rlir_ray.models.block_attention import block_attention
from rlir_ray.pretrain.command import main
from rlir_ray.pretrain.settings import WorldModelTraining
from rlir_ray.pretrain.training_warnings import loss_metrics, world_model_warning
from rlir_ray.pretrain.world_model import TokenRecordings, load_tokens, train_world_model
from rlir_ray.run.environment import python_command
from rlir_ray.spaces.space import ActionSpace
from rlir_ray.spaces.vpt import VPT_SPACE
from tests.fakes import image_tokens
from tests.pretrain.interruption import Interrupted
from tests.second_space import SPACE

SETTINGS = WorldModelTraining(
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=2,
    num_key_value_heads=1,
    num_frames=3,
    batch_size=8,
    learning_rate=1e-2,
    num_steps=150,
    num_validation=16,
    precision="fp32",
)


def write_recordings(path: Path, seed: int, space: ActionSpace = VPT_SPACE, num_codes: int = 8) -> None:
    """Four tokens a frame, which count up when the first field's last class leads into the frame, and else stay."""
    random = np.random.default_rng(seed)
    moves = random.random(120) < 0.5
    actions = space.nothing(120)
    actions.values[:, 0] = np.where(moves, space.fields[0].num_classes - 1, actions.values[:, 0])
    tokens = (np.cumsum(moves)[:, None] + np.arange(4)) % 8
    np.savez(
        path,
        tokens=tokens.astype(np.uint16),
        num_codes=np.array(num_codes),
        episode_starts=np.array([0, 50]),
        actions=actions.values,
        action_space=np.array(space.to_json()),
    )


def load_both(folder: Path, space: ActionSpace = VPT_SPACE) -> tuple[TokenRecordings, TokenRecordings]:
    write_recordings(folder / "train.npz", 0, space)
    write_recordings(folder / "validation.npz", 1, space)
    return load_tokens(folder / "train.npz"), load_tokens(folder / "validation.npz")


@pytest.fixture
def recordings(tmp_path: Path) -> tuple[TokenRecordings, TokenRecordings]:
    return load_both(tmp_path)


def test_windows_stay_inside_episodes_and_carry_the_actions_between_their_frames(
    recordings: tuple[TokenRecordings, TokenRecordings],
) -> None:
    train, _ = recordings
    starts = train.window_starts(3)
    assert starts.tolist() == [*range(48), *range(50, 118)]
    tokens = train.windows(np.array([50]), 3)
    np.testing.assert_array_equal(image_tokens(tokens, 4)[0], train.images[50:53])
    np.testing.assert_array_equal(tokens[0, 4:15], train.actions[51])


def test_training_lowers_the_loss_and_learns_the_actions(
    recordings: tuple[TokenRecordings, TokenRecordings], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = train_world_model(*recordings, tmp_path / "out", SETTINGS)
    final = json.loads((tmp_path / "out" / "training.json").read_text())["final"]
    # Uniform guesses over 8 codes cost ln 8 = 2.08 nats.
    assert final["validation_loss"] < 1.0
    assert final["validation_loss_wrong_actions"] > final["validation_loss"] + 0.1
    assert "warning" not in caplog.text
    again = WorldModel.from_pretrained(tmp_path / "out")
    tokens = recordings[1].windows(np.arange(2), 3)
    with torch.no_grad():
        torch.testing.assert_close(again(tokens, 8), model(tokens, 8), atol=1e-5, rtol=0)


def test_a_model_that_ignores_the_actions_ends_its_training_with_a_warning(
    recordings: tuple[TokenRecordings, TokenRecordings], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Actions that have nothing to do with the frames: those of another recording.
    unrelated = [dataclasses.replace(one, actions=one.actions[::-1].copy()) for one in recordings]
    settings = dataclasses.replace(SETTINGS, num_steps=30)
    train_world_model(*unrelated, tmp_path / "out", settings)
    (line,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert line.startswith("warning: the model ignores the actions: its held-out loss is") and "\n" not in line
    caplog.clear()
    train_world_model(*unrelated, tmp_path / "out", settings)
    assert line in caplog.messages


def test_a_loss_with_wrong_actions_equals_its_own_within_two_paired_errors() -> None:
    # Differences .2, 0, .1, .1: mean .1, standard deviation .0816, error .0408.
    figures = loss_metrics([3.0, 3.1, 3.2, 3.3], [3.2, 3.1, 3.3, 3.4])
    assert figures == pytest.approx(
        {"validation_loss": 3.15, "validation_loss_wrong_actions": 3.25, "wrong_actions_error": 0.0408}, abs=1e-4
    )
    assert world_model_warning(figures) == ""
    assert "ignores the actions" in world_model_warning({**figures, "wrong_actions_error": 0.06})
    # The same rise of each window, but a thousandth of the loss.
    assert "ignores the actions" in world_model_warning(loss_metrics([3.0, 3.0], [3.003, 3.003]))
    assert "hold one window" in world_model_warning(loss_metrics([3.0], [3.0]))
    assert "not finite" in world_model_warning({})


@dataclasses.dataclass(frozen=True, kw_only=True)
class InterruptedRecordings(TokenRecordings):
    """Ends the training when its curve has three lines."""

    curve: Path

    def windows(self, starts: np.ndarray, num_frames: int, hidden: torch.Tensor | None = None) -> torch.Tensor:
        if self.curve.is_file() and len(self.curve.read_text().splitlines()) == 3:
            raise Interrupted
        return super().windows(starts, num_frames, hidden)


def test_resumed_training_ends_where_an_unbroken_one_does(
    recordings: tuple[TokenRecordings, TokenRecordings], tmp_path: Path
) -> None:
    settings = dataclasses.replace(SETTINGS, num_steps=6, evaluate_every_s=0.0)
    whole = train_world_model(*recordings, tmp_path / "whole", settings)
    train, validation = recordings
    out = tmp_path / "broken"
    breaking = InterruptedRecordings(**vars(train), curve=out / "curve.jsonl")
    with pytest.raises(Interrupted):
        train_world_model(breaking, validation, out, settings)
    with pytest.raises(ValueError, match="learning_rate"):
        train_world_model(*recordings, out, dataclasses.replace(settings, learning_rate=1.0))
    resumed = train_world_model(*recordings, out, settings)
    for (name, weight), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        torch.testing.assert_close(weight, other, msg=name)
    assert not list(out.glob("state*"))


def test_a_finished_training_is_left_as_it_is(
    recordings: tuple[TokenRecordings, TokenRecordings], tmp_path: Path
) -> None:
    settings = dataclasses.replace(SETTINGS, num_steps=2)
    first = train_world_model(*recordings, tmp_path / "out", settings)
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    again = train_world_model(*recordings, tmp_path / "out", settings)
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    for weight, other in zip(first.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(weight, other, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="was trained with another learning_rate; repeat them"):
        train_world_model(*recordings, tmp_path / "out", dataclasses.replace(settings, learning_rate=1.0))


def test_command_line_continues_from_a_checkpoint(
    recordings: tuple[TokenRecordings, TokenRecordings], tmp_path: Path
) -> None:
    first = train_world_model(*recordings, tmp_path / "first", dataclasses.replace(SETTINGS, num_steps=2))
    main(
        "world-model",
        [
            "--data",
            str(tmp_path),
            "--out",
            str(tmp_path / "second"),
            "--init",
            str(tmp_path / "first"),
            "--num-frames",
            "3",
            "--num-steps",
            "1",
            "--learning-rate",
            "1e-6",
            "--precision",
            "bf16",
            "--threads",
            "1",
        ],
    )
    second = WorldModel.from_pretrained(tmp_path / "second")
    for weight, other in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(weight, other, atol=1e-5, rtol=0)


def test_a_world_of_another_action_space_is_learned_and_continued(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recordings = load_both(tmp_path, SPACE)
    model = train_world_model(*recordings, tmp_path / "out", SETTINGS)
    final = json.loads((tmp_path / "out" / "training.json").read_text())["final"]
    assert final["validation_loss"] < 1.0
    assert final["validation_loss_wrong_actions"] > final["validation_loss"] + 0.1
    assert model.layout.space == SPACE and model.num_codes == 8 and model.config.vocab_size == 8 + 14
    arguments = ["--data", str(tmp_path), "--out", str(tmp_path / "more"), "--init", str(tmp_path / "out")]
    with caplog.at_level("INFO"):
        main("world-model", [*arguments, "--num-steps", "1", "--num-frames", "3", "--threads", "1"])
    assert WorldModel.from_pretrained(tmp_path / "more").layout.space == SPACE
    assert caplog.messages[-1].startswith(
        f"next: {python_command()} -m rlir_ray train --recipe FILE.yaml models.policy={tmp_path}"
    )


def test_recordings_and_checkpoints_of_another_space_or_tokenizer_are_refused(
    recordings: tuple[TokenRecordings, TokenRecordings], tmp_path: Path
) -> None:
    train, validation = recordings
    write_recordings(tmp_path / "second.npz", 0, SPACE)
    other = load_tokens(tmp_path / "second.npz")
    with pytest.raises(ValueError, match=r"the held-out recordings must have the action space .*field 0: "):
        train_world_model(train, other, tmp_path / "out", SETTINGS)
    write_recordings(tmp_path / "wide.npz", 0, num_codes=9)
    wide = load_tokens(tmp_path / "wide.npz")
    with pytest.raises(ValueError, match=r"must have 4 tokens of 8 codes a frame as the training"):
        train_world_model(train, wide, tmp_path / "out", SETTINGS)
    train_world_model(train, validation, tmp_path / "first", dataclasses.replace(SETTINGS, num_steps=1))
    more = dataclasses.replace(SETTINGS, init=str(tmp_path / "first"))
    with pytest.raises(ValueError, match=r"the recordings must have the action space of --init .*field 0: "):
        train_world_model(other, other, tmp_path / "more", more)
    with pytest.raises(ValueError, match="the recordings must have 4 tokens of 8 codes a frame as --init"):
        train_world_model(wide, wide, tmp_path / "more", more)


def test_tokens_outside_the_vocabulary_are_refused(tmp_path: Path) -> None:
    write_recordings(tmp_path / "train.npz", 0, num_codes=7)
    with pytest.raises(ValueError, match=r"tokens below its 7 codes, got tokens 0\.\.7; encode the recordings again"):
        load_tokens(tmp_path / "train.npz")


def test_block_attention_equals_torch_attention_and_its_gradient() -> None:
    torch.manual_seed(0)
    queries = torch.randn(2, 4, 37, 8, requires_grad=True)
    keys, values = (torch.randn(2, 2, 37, 8, requires_grad=True) for _ in range(2))
    expected = torch.nn.functional.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=True)
    found = block_attention(queries, keys, values, 8**-0.5, block=16).transpose(1, 2)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(expected)
    gradients = [torch.autograd.grad((x * weights).sum(), (queries, keys, values)) for x in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_tokens_above_65535_are_trained_on_unchanged(tmp_path: Path) -> None:
    tokens = np.array([[65_536, 65_537], [1, 69_999]])
    shared = {"num_codes": np.array(70_000), "episode_starts": np.array([0])}
    shared |= {"actions": SPACE.nothing(2).values, "action_space": np.array(SPACE.to_json())}
    np.savez(tmp_path / "wide.npz", tokens=tokens, **shared)
    images = load_tokens(tmp_path / "wide.npz")
    np.testing.assert_array_equal(image_tokens(images.windows(np.array([0]), 2), 2, 4)[0], tokens)
    np.savez(tmp_path / "negative.npz", tokens=tokens - 2, **shared)
    with pytest.raises(ValueError, match=r"got tokens -1\.\.69997"):
        load_tokens(tmp_path / "negative.npz")
