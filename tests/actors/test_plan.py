import dataclasses
import re
import shutil
import socket

import pytest

from actors.cluster.plan import check_disk, check_ranks, check_store
from actors.cluster.start import SYSTEM_CONFIG, check_answers, join_ray, stop_notice
from rlir_ray.run.folder import JOB_VARIABLE
from rlir_ray.run.resolved import resolve
from rlir_ray.samplers.torch_sampler import TorchSampler
from tests.fakes import tiny_prompts, tiny_world_model, with_recorded


def test_a_missing_checkpoint_is_refused_in_one_line(make_config, tmp_path):
    with pytest.raises(ValueError, match="must be an existing folder") as refusal:
        resolve(make_config(f"models.judge_idm={tmp_path / 'none'}"))
    assert "\n" not in str(refusal.value)


def test_relative_checkpoints_become_absolute(make_config, checkpoints, monkeypatch):
    monkeypatch.chdir(checkpoints)
    assert resolve(make_config("models.policy=policy")).config.models.policy == str(checkpoints / "policy")


def test_the_estimated_bytes_of_a_group_are_its_bytes(make_config):
    config = make_config()
    sampler = TorchSampler(tiny_world_model(), temperature=1.0)
    group, video = sampler.sample(tiny_prompts(1, num_frames=3), [0], [0], config.train.group_size)[0]
    # The commands in the video are not counted: 23 buttons and 2 angles a frame.
    columns = group.nbytes + video.codes.nbytes
    assert resolve(config).group_bytes == columns > SYSTEM_CONFIG["max_direct_call_object_size"]


def test_the_recorded_clip_of_a_group_is_counted(make_config):
    config = make_config("train.supervised_coefficient=0.1")
    sampler, prompts = TorchSampler(tiny_world_model(), temperature=1.0), with_recorded(tiny_prompts(1, num_frames=3))
    group, video = sampler.sample(prompts, [0], [0], config.train.group_size)[0]
    more = resolve(config).group_bytes - resolve(make_config()).group_bytes
    # The columns hold the clip for the learner, the video the frames after the context for a reward.
    assert more == group.recorded.nbytes + video.recorded.nbytes


def test_every_rank_has_a_group(make_config):
    with pytest.raises(ValueError, match=r"at most train.prompts_per_step=4, got 5; set learner.num_workers=4"):
        config = make_config("learner.engine=deepspeed", "learner.num_workers=5")
        check_ranks(config.learner, config.train)
    two = ("learner.engine=deepspeed", "learner.num_workers=2")
    with pytest.raises(ValueError, match=r"num_workers=2 ranks a group .* got 3; set train.num_minibatches=2"):
        config = make_config(*two, "train.num_minibatches=3")
        check_ranks(config.learner, config.train)
    config = make_config(*two, "train.num_minibatches=2")
    check_ranks(config.learner, config.train)


def test_an_address_without_an_answer_is_rejected_in_one_line():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        check_answers(address)
    with pytest.raises(RuntimeError, match=rf"RAY_ADDRESS must name a Ray that answers, got {address} \(") as refusal:
        join_ray(address)
    assert "\n" not in str(refusal.value)


def test_a_submitted_job_that_would_be_killed_before_it_saves_says_so(monkeypatch):
    monkeypatch.delenv(JOB_VARIABLE, raising=False)
    assert stop_notice() == ""
    monkeypatch.setenv(JOB_VARIABLE, "{}")
    assert "would end this job after 3 s" in stop_notice()
    monkeypatch.setenv("RAY_JOB_STOP_WAIT_TIME_S", "600")
    assert stop_notice() == ""


def test_a_budget_below_one_step_or_above_the_store_is_refused(make_config):
    config = make_config()
    run = resolve(config)
    step_bytes = 4 * run.group_bytes

    def with_budget(num_bytes):
        return dataclasses.replace(run, config=dataclasses.replace(config, object_store_budget_bytes=num_bytes))

    with pytest.raises(ValueError, match=f"set object_store_budget_bytes={step_bytes} or lower"):
        check_store(with_budget(step_bytes - 1), 1 << 30)
    with pytest.raises(ValueError, match="got 9000000 bytes free; set object_store_budget_bytes=0"):
        check_store(run, 9_000_000)
    with pytest.raises(ValueError, match="start Ray with --object-store-memory=") as refusal:
        check_store(run, step_bytes)
    # What it proposes is enough for a run without a budget of its own, and a byte less is not.
    enough = int(re.search(r"--object-store-memory=(\d+)", str(refusal.value))[1])
    without = with_budget(0)
    assert check_store(without, enough) >= step_bytes
    with pytest.raises(ValueError, match="start Ray with"):
        check_store(without, enough - 2)
    assert check_store(run, 1 << 30) == config.object_store_budget_bytes


def test_a_disk_without_room_for_the_run_is_refused(make_config, tmp_path, monkeypatch):
    check_disk(resolve(make_config()), tmp_path)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    needed = []
    for options in ([], ["checkpoint.keep=5"], ["lora.rank=2", "checkpoint.keep=5"]):
        with pytest.raises(ValueError, match=r"must have \d+ bytes free, got 1000 at .*; make room") as refusal:
            check_disk(resolve(make_config(*options)), tmp_path)
        needed.append(int(re.search(r"\d+", str(refusal.value))[0]))
    with pytest.raises(ValueError, match=r"must have \d+ bytes free") as refusal:
        check_disk(resolve(make_config("train.ema_decay=0.9")), tmp_path)
    averaged = int(re.search(r"\d+", str(refusal.value))[0])
    # Three more checkpoints of weights and two moments; an adapter's take next to nothing.
    num_weights = sum(weight.numel() for weight in tiny_world_model().parameters())
    assert needed[1] - needed[0] == 3 * 12 * num_weights and needed[2] < needed[0]
    # Three checkpoints with a moving average each.
    assert averaged - needed[0] == 3 * 4 * num_weights


def test_the_store_is_planned_with_the_heldout_clips(make_config):
    few, many = (
        resolve(make_config("object_store_budget_bytes=0", f"prompts.num_heldout={number}")) for number in (6, 106)
    )
    rooms = [check_store(run, 1 << 30) for run in (few, many)]
    # 100 clips of 4 frames of 24 x 32 pixels.
    assert rooms[0] - rooms[1] == 100 * 4 * 24 * 32 * 3
    with pytest.raises(ValueError, match=r"and 106 held-out clips \(976896 bytes\), got 2000000 bytes free"):
        check_store(many, 2_000_000)
