"""Publishing of the shipped checkpoints."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlir_ray.pretrain import assets

DOOM = assets.WORLDS["doom"]


@pytest.fixture
def work(tmp_path):
    for name in assets.MODELS:
        folder = tmp_path / "work" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "training.json").write_text(json.dumps({"held_out": name}))
        (folder / "state-00000001").mkdir()
        (folder / "state-00000001" / "pytorch_model.bin").write_text("not shipped")
        save_file({"weight": torch.full((4,), 1 / 3), "ids": torch.arange(3)}, folder / "model.safetensors")
    for folder in ("recordings", "recordings_world"):
        for split in assets.SPLITS:
            (tmp_path / "work" / folder / split).mkdir(parents=True)
            index = {"basedir": "x", "relpaths": ["a.mp4"], "summary": {"num_frames": 3}}
            (tmp_path / "work" / folder / split / "index.json").write_text(json.dumps(index))
    (tmp_path / "work" / "oracle.json").write_text('{"yaw": 1.0}')
    return tmp_path / "work"


def test_models_are_shipped_in_half_precision_with_their_story(work, tmp_path):
    made = assets.publish(work, tmp_path / "out", {"seed": 0}, DOOM)
    weights = load_file(tmp_path / "out" / "tokenizer" / "model.safetensors")
    assert weights["weight"].dtype == torch.float16
    # Others may read what any new file of theirs lets them.
    modes = {path.stat().st_mode for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert len(modes) == 1
    assert weights["ids"].tolist() == [0, 1, 2]
    assert json.loads((tmp_path / "out" / "made.json").read_text()) == made
    assert made["models"]["judge_idm"] == {"held_out": "judge_idm"}
    assert made["recordings"]["recordings_world/train"] == {"summary": {"num_frames": 3}}
    assert not list((tmp_path / "out").rglob("state*"))


def test_an_unfinished_model_is_not_published_and_the_old_assets_stay(work, tmp_path):
    assets.publish(work, tmp_path / "out", {}, DOOM)
    (work / "world_model" / "training.json").unlink()
    with pytest.raises(ValueError, match="world_model must be trained before it is published"):
        assets.publish(work, tmp_path / "out", {"seed": 1}, DOOM)
    assert json.loads((tmp_path / "out" / "made.json").read_text())["plan"] == {}


def test_a_plan_that_gives_no_recording_is_refused():
    with pytest.raises(ValueError, match="validation_frames must be >= 1, got 0"):
        assets.AssetsPlan(validation_frames=0)
    with pytest.raises(ValueError, match="world_frames must be >= 10 because a tenth is held out, got 9"):
        assets.AssetsPlan(world_frames=9)


def test_the_plan_is_read_from_the_command_line_with_its_types(monkeypatch, capsys):
    made = []
    monkeypatch.setattr(assets, "make_assets", lambda work, out, plan, world: made.append((str(out), plan)))
    assets.main(["--out", "there", "--tokenizer-minutes", "0.5", "--train-frames", "400"])
    assert made == [("there", assets.AssetsPlan(tokenizer_minutes=0.5, train_frames=400))]
    # Another world has another plan; what the user gives counts.
    assets.main(["--out", "there", "--world", "pusht", "--tokenizer-minutes", "0.5"])
    assert made[1] == ("there", replace(assets.WORLDS["pusht"].plan, tokenizer_minutes=0.5))
    with pytest.raises(SystemExit):
        assets.main(["--help"])
    assert "Minutes of the tokenizer's training" in capsys.readouterr().out


def test_assets_that_are_too_large_are_refused(work, tmp_path):
    with pytest.raises(ValueError, match="must stay under 100 bytes"):
        assets.publish(work, tmp_path / "out", {}, replace(DOOM, max_bytes=100))
    assert not (tmp_path / "out").exists()


def test_a_stage_without_minutes_is_refused_before_anything_is_recorded() -> None:
    with pytest.raises(ValueError, match="--reward-idm-minutes must be a finite number above 0, got 0; set"):
        assets.AssetsPlan(reward_idm_minutes=0)


def test_a_world_is_recorded_twice_in_two_splits_and_its_oracle_is_computed_once(tmp_path):
    recorded, plan = [], assets.AssetsPlan(train_frames=30, validation_frames=20, world_frames=100)
    world = replace(
        DOOM,
        collect=lambda folder, num_frames, split, plan: recorded.append(
            (str(folder.relative_to(tmp_path)), num_frames)
        ),
        oracle=lambda recordings, plan: {"yaw": float(recordings == tmp_path / "recordings")},
    )
    world.record(tmp_path, plan)
    assert recorded == [
        ("recordings/train", 30),
        ("recordings/validation", 20),
        ("recordings_world/train", 100),
        ("recordings_world/validation", 10),
    ]
    world = replace(world, oracle=lambda recordings, plan: pytest.fail("computed again"))
    world.record(tmp_path, plan)
    assert json.loads((tmp_path / "oracle.json").read_text()) == {"yaw": 1.0}
