"""Which command each training names as the next one."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlir_ray.pretrain.command import COMMANDS

IDM = "pretrain idm --data data/car --out runs/reward_idm --architecture vpt"
RUN = "models.reward_idm=runs/reward_idm models.judge_idm=runs/judge_idm"


@pytest.mark.parametrize(
    ("model", "chosen", "following"),
    [
        ("tokenizer", {"tokens": Path("t")}, "pretrain world-model --data t --out runs/world_model"),
        ("tokenizer", {"tokens": None}, IDM),
        ("autoencoder", {"latents": Path("l")}, "pretrain flow --data l --out runs/flow"),
        ("autoencoder", {"latents": None}, IDM),
        (
            "idm",
            {"architecture": "vpt"},
            "pretrain idm --data data/car --out runs/judge_idm --architecture correlation",
        ),
        ("idm", {"architecture": "correlation"}, "audit --data data/car --idm runs/reward_idm --idm out"),
        ("world-model", {}, f"train --recipe FILE.yaml models.policy=out models.tokenizer=runs/tokenizer {RUN}"),
        (
            "flow",
            {},
            f"train --recipe FILE.yaml policy.family=flow models.policy=out models.tokenizer=runs/autoencoder {RUN}",
        ),
    ],
)
def test_every_training_names_the_command_that_follows(model: str, chosen: dict, following: str) -> None:
    assert COMMANDS[model].following({"data": Path("data/car"), "out": Path("out"), **chosen}) == following
