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
    assert COMMANDS[model].following({"data": Path("data/car"), "out": Path("work/out"), **chosen}) == following
