"""Which command each training names as the next one."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlir_ray.pretrain.command import COMMANDS

IDM = "pretrain idm --data data/car --out work/reward_idm --architecture difference"
RUN = "models.policy=work/out models.reward_idm=work/reward_idm models.judge_idm=work/judge_idm"


@pytest.mark.parametrize(
    ("model", "chosen", "following"),
    [
        ("tokenizer", {}, f"{IDM} --tokenizer work/out"),
        ("autoencoder", {}, IDM),
        (
            "idm",
            {"architecture": "difference"},
            "pretrain idm --data data/car --out work/judge_idm --architecture keypoints",
        ),
        (
            "idm",
            {"architecture": "keypoints"},
            "pretrain idm --data data/car --out work/judge_idm --architecture difference",
        ),
        (
            "idm",
            {"architecture": "keypoints", "out": Path("work/judge_idm")},
            "audit --data data/car --idm work/reward_idm --idm work/judge_idm",
        ),
        ("world-model", {}, f"train --recipe FILE.yaml {RUN} models.tokenizer=work/tokenizer"),
        ("flow", {}, f"train --recipe FILE.yaml policy.family=flow {RUN} models.tokenizer=work/autoencoder"),
    ],
)
def test_every_training_names_the_command_that_follows(model: str, chosen: dict, following: str) -> None:
    reading = {"data": Path("data/car"), "camera": "", "size": None, "action_shift": 0}
    assert COMMANDS[model].following({**reading, "out": Path("work/out"), **chosen}) == following


@pytest.mark.parametrize("model", ["tokenizer", "autoencoder", "idm"])
def test_the_next_command_reads_the_recordings_alike(model: str) -> None:
    reading = {"data": Path("my data"), "camera": "front", "size": (48, 64), "action_shift": -1}
    following = COMMANDS[model].following({**reading, "out": Path("work/judge_idm"), "architecture": "keypoints"})
    assert "--data 'my data' --camera front --size 48x64 --action-shift -1 " in following
