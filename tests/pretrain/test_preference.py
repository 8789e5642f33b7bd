"""The training of a preference head."""

from __future__ import annotations

import json
import logging
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from rlir_ray.config.load import load_config
from rlir_ray.data.preference_pairs import PreferencePair, ReadPairs
from rlir_ray.data.vpt.pairs import write_recording
from rlir_ray.pretrain import preference
from rlir_ray.pretrain.command import COMMANDS, main
from rlir_ray.pretrain.loop import train
from rlir_ray.pretrain.preference import PreferenceTask, held_out_figures, train_preference
from rlir_ray.pretrain.settings import PreferenceTraining
from rlir_ray.rewards.preference import LEFT_OUT, PreferenceHead, pool_frames
from tests.fakes import tiny_idm
from tests.pretrain.interruption import interrupted_after_state


@pytest.fixture(scope="module")
def idm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "idm"
    tiny_idm().save_pretrained(folder)
    return folder


def noisy_clip(level: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    return (level + rng.integers(-15, 16, (3, 24, 32, 3))).astype(np.uint8)


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight groups of three clips; the brighter clip is better, and clips of nearly one brightness tie."""
    folder, rng = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
    lines = []
    for group in range(8):
        levels = [int(rng.integers(20, 100)), int(rng.integers(130, 220))]
        levels = [levels[0], levels[1], levels[1] + 2]
        for number, level in enumerate(levels):
            write_recording(folder / f"{group}-{number}", noisy_clip(level, rng), [{}] * 3)
        for first, second, label in ((0, 1, -1), (2, 0, 1), (1, 2, 0)):
            lines.append({"first": f"{group}-{first}.mp4", "second": f"{group}-{second}.mp4", "label": label})
    path = folder / "pairs.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def test_a_head_learns_what_decides_and_ends_with_its_figures(
    idm: Path, pairs_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    arguments = ["--pairs", str(pairs_file), "--idm", str(idm), "--out", str(tmp_path), "--num-steps", "60"]
    main("preference", [*arguments, "--threads", "1"])
    report = json.loads((tmp_path / "training.json").read_text())
    assert (report["train_pairs"], report["validation_pairs"], report["shares_clips"]) == (21, 3, False)
    figures = report["dimensions"]["overall"]
    assert figures["accuracy_with_ties"] == 1 and figures["accuracy_without_ties"] == 1
    assert any(
        text.startswith("overall: accuracy with ties") and "mean" in text and "std" in text for text in caplog.messages
    )
    # The head that was saved: bright clips score high, and its scores are normalized by those figures.
    head = PreferenceHead.from_pretrained(tmp_path)
    head.check_idm(idm)
    assert head.clip == (3, 24, 32) and float(head.score_std) == pytest.approx(figures["std"], abs=1e-6)
    clips = torch.from_numpy(np.stack([noisy_clip(level, np.random.default_rng(1)) for level in (60, 180)]))
    with torch.no_grad():
        dark, bright = head.normalized(pool_frames(tiny_idm().frame_features(clips)))
    assert bright > dark + 1


def read(*judged: tuple[str, int, str], seed: int = 0) -> ReadPairs[torch.Tensor]:
    """Judgements (`ab`, label, dimension) of clips of four random features."""
    pairs = [
        PreferencePair(first=Path(names[0]), second=Path(names[1]), label=label, dimension=dimension)
        for names, label, dimension in judged
    ]
    clips = {clip for pair in pairs for clip in pair.clips}
    generator = torch.Generator().manual_seed(seed)
    features = {clip: torch.randn(4, generator=generator) for clip in sorted(clips)}
    return ReadPairs(pairs=pairs, clips=features, shape=(3, 24, 32))


JUDGED = [("ab", 1, "motion"), ("ab", -1, "picture"), ("cd", 1, "motion"), ("cd", 1, "picture"), ("ef", 0, "motion")]


def settings(idm: Path, **changes: object) -> PreferenceTraining:
    return replace(PreferenceTraining(idm=str(idm), num_steps=6, validation_share=0.3, device="cpu"), **changes)


def test_dimensions_are_judged_apart(idm: Path, tmp_path: Path) -> None:
    report = train(PreferenceTask(read(*JUDGED), settings(idm, num_steps=100, seed=1)), tmp_path)
    # Held out is the tie, which no decided pair joins.
    assert (report["validation_pairs"], report["train_pairs"]) == (1, 4)
    assert report["dimensions"]["motion"]["accuracy_with_ties"] == 1
    assert report["dimensions"]["motion"]["accuracy_without_ties"] is None
    assert report["dimensions"]["picture"]["accuracy_with_ties"] is None
    head = PreferenceHead.from_pretrained(tmp_path)
    assert head.dimensions == ("motion", "picture")
    found = read(*JUDGED).clips
    motion, picture = (head(found[Path("a")]) - head(found[Path("b")])).tolist()
    assert motion > 1 and picture < -1


def test_figures_of_a_dimension_leave_out_what_was_not_judged() -> None:
    difference = torch.tensor([[1.0, -1.0], [-2.0, 5.0]])
    labels = torch.tensor([[1, LEFT_OUT], [1, -1]])
    assert held_out_figures(difference, labels, ("motion", "picture")) == {
        "motion": {"accuracy_with_ties": 0.5, "accuracy_without_ties": 0.5},
        "picture": {"accuracy_with_ties": 0.0, "accuracy_without_ties": 0.0},
    }


def test_an_interrupted_training_ends_with_the_same_head(
    idm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = settings(idm, batch_pairs=2)
    train(PreferenceTask(read(*JUDGED), chosen), tmp_path / "whole")
    monkeypatch.setattr(preference, "SAVE_SECONDS", 0.0)
    with interrupted_after_state(3):
        train(PreferenceTask(read(*JUDGED), chosen), tmp_path / "parts")
    train(PreferenceTask(read(*JUDGED), chosen), tmp_path / "parts")
    whole, parts = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts


def test_pairs_that_join_all_clips_are_told(idm: Path, caplog: pytest.LogCaptureFixture) -> None:
    PreferenceTask(read(("ab", 1, "x"), ("bc", 1, "x"), ("ca", -1, "x")), settings(idm))
    assert "held-out pairs have clips of training pairs" in caplog.text


def test_settings_and_pairs_that_cannot_train_are_refused(idm: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="each dimension needs a training pair with label 1 or -1, got none for 'x'"):
        PreferenceTask(read(("ab", 0, "x"), ("cd", 0, "x"), ("ef", 0, "x")), settings(idm))
    with pytest.raises(ValueError, match="--idm must be the folder of an inverse dynamics model, got none"):
        PreferenceTraining()
    for share in (0.0, 1.0):
        with pytest.raises(ValueError, match=f"--validation-share must lie between 0 and 1, got {share:g}"):
            PreferenceTraining(idm=str(idm), validation_share=share)
    with pytest.raises(ValueError, match="a checkpoint must be an existing folder, got"):
        train_preference(tmp_path / "none.jsonl", tmp_path, settings(tmp_path / "none"))


def test_an_inverse_dynamics_model_without_features_is_refused(tmp_path: Path) -> None:
    from docs.examples.idm import FrameDifference

    FrameDifference(24, 32).save_pretrained(tmp_path / "own")
    with pytest.raises(ValueError, match=r"features need .* the method frame_features, got FrameDifference in"):
        train_preference(tmp_path / "none.jsonl", tmp_path / "out", settings(tmp_path / "own"))


def test_the_next_command_names_the_head_and_its_inverse_dynamics_model() -> None:
    following = COMMANDS["preference"].following({"idm": "asset:doom/reward_idm", "out": Path("work/my head")})
    *command, models, terms = shlex.split(following)
    assert command == ["train", "--recipe", "FILE.yaml"]
    config = load_config("doom_tiny_ar", [models, terms])
    assert config.models.reward_idm == "asset:doom/reward_idm"
    assert config.reward.names == ("inverse", "preference")
    assert config.reward.terms[1].args == {"head": "work/my head"}
