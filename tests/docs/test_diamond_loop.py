"""A tiny model of DIAMOND's form goes through the whole loop on recordings of an Atari game."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlir_ray.models.diamond import DiamondWorldModel
from rlir_ray.models.pixel_codec import PixelCodec
from rlir_ray.spaces.space import read_space
from tests.docs.test_own_world import check_run, run

RECIPE = """\
world: {height: 64, width: 64, num_context: 4, num_frames: 4, groups: []}
policy: {family: flow}
models: {policy: diamond/world_model, tokenizer: diamond/pixels, reward_idm: idm, judge_idm: idm}
prompts:
  {source: recordings, path: "breakout#train", heldout_path: "breakout#validation", num_train: 8, num_heldout: 4}
flow: {num_steps: 3, window: 2, window_moves: first, history_noise: 0.0, sde: flow_grpo, noise_level: 0.7}
# The inverse dynamics model was trained for seconds.
reward: {match: soft, audit: warn}
train: {num_steps: 2, group_size: 4, prompts_per_step: 4}
learner: {decision_budget: 32}
"""


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_model_of_diamonds_form_is_post_trained_on_an_atari_game(tmp_path: Path) -> None:
    pytest.importorskip("ale_py")
    collect = ["collect", "--env", "ale_py:ALE/Breakout-v5", "--size", "64x64", "--frames", "960", "--no-probe"]
    run([*collect, "--episode-frames", "60", "--out", "breakout"], tmp_path)
    idm = ["pretrain", "idm", "--architecture", "correlation", "--data", "breakout", "--out", "idm"]
    run([*idm, "--minutes", "0.1"], tmp_path)
    space = read_space(tmp_path / "breakout" / "action_space.json")
    sizes = {"cond_channels": 32, "depths": (1, 1), "channels": (16, 16), "attn_depths": (0, 0)}
    model = DiamondWorldModel(num_actions=space.fields[0].num_classes, action_space=space.to_plain(), **sizes)
    model.save_pretrained(tmp_path / "diamond" / "world_model")
    PixelCodec(64, 64).save_pretrained(tmp_path / "diamond" / "pixels")
    (tmp_path / "breakout.yaml").write_text(RECIPE)
    run(["train", "--recipe", "breakout.yaml", "run.name=breakout"], tmp_path)
    check_run(tmp_path / "runs" / "breakout", ("accuracy", "macro_f1"))
