import dataclasses
import shutil

import pytest

from actors.plan import (
    SYSTEM_CONFIG,
    _check_cpus,
    _check_store,
    absolute_paths,
    check_disk,
)
from rlir_ray.families import family_of
from rlir_ray.samplers.torch_sampler import TorchSampler
from tests.fakes import TOKENS_PER_FRAME, tiny_prompts, tiny_world_model


def test_a_missing_checkpoint_is_refused_in_one_line(make_config, tmp_path):
    with pytest.raises(ValueError, match="must be an existing folder") as refusal:
        absolute_paths(make_config(f"models.judge_idm={tmp_path / 'none'}"))
    assert "\n" not in str(refusal.value)


def test_relative_checkpoints_become_absolute(make_config, checkpoints, monkeypatch):
    monkeypatch.chdir(checkpoints)
    assert absolute_paths(make_config("models.policy=policy")).models.policy == str(checkpoints / "policy")


def test_the_estimate_of_a_group_is_what_it_holds(make_config):
    config = make_config()
    sampler = TorchSampler(tiny_world_model(), temperature=1.0)
    group, video = sampler.sample(tiny_prompts(1, num_frames=3), [0], [0], config.train.group_size)[0]
    # The commands in the video are not counted: 23 buttons and 2 angles a frame.
    columns = group.nbytes + video.codes.nbytes
    assert (
        family_of(config).group_bytes(config, (TOKENS_PER_FRAME,))
        == columns
        > SYSTEM_CONFIG["max_direct_call_object_size"]
    )


def test_too_few_cpus_name_the_smallest_change(make_config):
    # 3 * 0.5 + 0.25 + 0.5 = 2.25 CPUs; one rollout actor less needs 1.75.
    config = make_config("rollout.num_actors=3")
    with pytest.raises(ValueError, match=r"must fit 2 CPUs, got 2.25 .*; set rollout.num_actors=2"):
        _check_cpus(config, 2.0)
    _check_cpus(config, 2.25)


def test_cpus_that_no_count_can_save_lead_to_smaller_shares(make_config):
    with pytest.raises(ValueError, match=r"got 1.25 .*; set rollout.num_cpus=0.2 reward.num_cpus=0.1"):
        _check_cpus(make_config(), 0.5)


def test_a_budget_below_one_step_or_above_the_store_is_refused(make_config):
    config = make_config()
    step_bytes = 4 * family_of(config).group_bytes(config, (TOKENS_PER_FRAME,))
    with pytest.raises(ValueError, match=f"set object_store_budget_bytes={step_bytes} or lower"):
        _check_store(
            dataclasses.replace(config, object_store_budget_bytes=step_bytes - 1), (TOKENS_PER_FRAME,), 1 << 30
        )
    with pytest.raises(ValueError, match="got 9000000 bytes; set object_store_budget_bytes="):
        _check_store(config, (TOKENS_PER_FRAME,), 9_000_000)
    with pytest.raises(ValueError, match="start Ray with --object-store-memory="):
        _check_store(config, (TOKENS_PER_FRAME,), step_bytes)


def test_a_disk_without_room_for_the_run_is_refused(make_config, tmp_path, monkeypatch):
    check_disk(make_config(), tmp_path)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    with pytest.raises(ValueError, match=r"must have \d+ bytes free, got 1000 at .*; make room"):
        check_disk(make_config(), tmp_path)
