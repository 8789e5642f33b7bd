"""A run resumes from its checkpoint in the pools."""

import dataclasses
import json
import os

import pytest

from actors.checkpointing import Checkpoints, RunState, describe_limits
from actors.cluster.files import local_copy
from actors.cluster.placement import node_id
from actors.pipeline import Pipeline
from rlir_ray.algorithm.ledger import Ledger
from rlir_ray.config import CheckpointConfig, TrainConfig
from rlir_ray.run.checkpoint import LEARNER, check, describe_files, partial_folder
from rlir_ray.run.folder import LOCK, RunFolder
from tests.actors.test_driver import assert_same_run, run_pools
from tests.run.test_checkpoint import write
from tests.world import flow_overrides, tiny_flow_prompt_set, tiny_prompt_set


def run_until(config, step, prompt_set=tiny_prompt_set):
    """Stops after a step; returns the result."""

    def stop(metrics):
        if metrics["step"] == step:
            pipeline.stop()

    pipeline = Pipeline(config, callbacks=[stop], prompts=prompt_set)
    return pipeline.train(calibrate=False, evaluate=False)


@pytest.mark.slow
def test_a_stopped_run_resumes_by_the_same_command_with_the_losses_of_an_uninterrupted_run(ray_cluster, make_config):
    config, lines = make_config("train.num_steps=4", "checkpoint.every=0"), []
    first = run_until(config, 2)
    assert (first.interrupted, first.num_steps) == (True, 2)
    assert check(first.folder / "checkpoints" / "step_00000002").policy_version == 2
    with (first.folder / "metrics.jsonl").open("a") as log:
        log.write('{"step": 3, "loss/policy": 9}\n{"step": 4, "los')  # of a step that no checkpoint holds
    # Elsewhere, and more of it, is the same run.
    config = dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, num_actors=2))
    result = Pipeline(config, prompts=tiny_prompt_set, progress=lines.append).train(calibrate=False, evaluate=False)
    assert_same_run(result, config)
    assert any("resumes after step 2" in line for line in lines)
    logged = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert logged == result.metrics and [step["step"] for step in logged] == [1, 2, 3, 4]
    ledger = Ledger.from_json((result.folder / "ledger.json").read_text())
    ledger.check()
    assert ledger.counts()["trained"] == 16
    # The same command again has nothing left to do.
    before, lines[:] = (result.folder / "policy").stat().st_mtime_ns, []
    again = Pipeline(config, prompts=tiny_prompt_set, progress=lines.append).train(calibrate=False, evaluate=False)
    assert (again.num_steps, again.interrupted, again.metrics) == (4, False, result.metrics)
    assert len(lines) == 1 and lines[0].startswith(
        "run tiny is finished: 4 steps are trained; to go on raise train.num"
    )
    assert (result.folder / "policy").stat().st_mtime_ns == before


def test_the_setting_that_ended_a_training_is_named_when_it_starts_and_when_it_ends():
    train = TrainConfig(num_steps=100, max_minutes=6)
    assert describe_limits(train) == "at most 100 steps (train.num_steps), at most 6 minutes (train.max_minutes)"
    assert describe_limits(TrainConfig(num_steps=3)) == "at most 3 steps (train.num_steps)"
    assert RunState(step=17, trained_s=359).limits(train) == ()
    assert RunState(step=17, trained_s=361).limits(train) == ("train.max_minutes=6",)
    assert RunState(step=100, trained_s=9).limits(train) == ("train.num_steps=100",)
    assert RunState(step=100, trained_s=361).limits(train) == ("train.num_steps=100", "train.max_minutes=6")


@pytest.mark.parametrize("has_policy", [False, True])
def test_a_run_without_a_readable_checkpoint_is_rejected_and_loses_nothing(make_config, has_policy):
    config = make_config()
    folder = RunFolder(config).begin()
    folder.log_step({"step": 1})
    folder.close()
    for step in (1, 2):
        write(folder.path, step)
    newest_manifest = folder.path / "checkpoints" / "step_00000002" / "manifest.json"
    for manifest in folder.path.rglob("manifest.json"):
        manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 99'))
    if has_policy:
        (folder.path / "policy").mkdir()
    before = files_of(folder.path)
    said = f"got 2 unreadable ones, the newest because {newest_manifest.parent} must be of format 1, got 99 .*; move"
    with pytest.raises(ValueError, match=said):
        Pipeline(config, prompts=tiny_prompt_set).train(calibrate=False, evaluate=False)
    assert files_of(folder.path) == before


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != LOCK}


def test_a_run_with_no_or_half_written_checkpoints_starts_from_the_beginning(tmp_path):
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(), pytest.fail)
    assert checkpoints.read().step == 0
    (partial_folder(tmp_path, 10) / "manifest.json").write_text("{")
    run = checkpoints.read()
    assert (run.step, run.checkpoint, checkpoints.latest) == (0, None, None)


def test_a_checkpoint_of_a_step_is_written_once_and_read_again(tmp_path):
    class OneFile:
        num_calls = 0

        def checkpoint(self, folder, group_refs):
            self.num_calls += 1
            (folder / LEARNER).write_bytes(b"weights")
            return describe_files([folder / LEARNER])

    checkpoints, learner = Checkpoints(tmp_path, CheckpointConfig(), pytest.fail), OneFile()
    for _ in range(2):
        assert checkpoints.write(RunState(step=3, trained_s=1.5), learner, []) is None
    run = checkpoints.read()
    assert (learner.num_calls, run.step, run.trained_s) == (1, 3, 1.5)


def test_a_file_of_another_node_is_read_through_that_node(ray_cluster, tmp_path, monkeypatch):
    (tmp_path / "learner.safetensors").write_bytes(os.urandom(3000))
    monkeypatch.setattr("actors.cluster.files.node_id", lambda: "another node")
    with local_copy(tmp_path / "learner.safetensors", node_id()) as copy:
        assert copy != tmp_path / "learner.safetensors"
        assert copy.read_bytes() == (tmp_path / "learner.safetensors").read_bytes()
    assert not copy.exists()


@pytest.mark.slow
def test_a_flow_run_goes_on_with_more_actors_and_ranks_and_is_judged(ray_cluster, make_config, checkpoints):
    sde = ["flow.sde=cps", "flow.window_moves=sliding", "train.kl_coefficient=0.1"]
    # One more step: the roundings of other ranks come back larger through what is sampled after it.
    options = [*flow_overrides(checkpoints), "train.max_advantage=2", "train.num_steps=3", *sde]
    run_until(make_config(*options), 2, tiny_flow_prompt_set)
    pools = ["rollout.num_actors=2", "learner.engine=deepspeed", "learner.num_workers=2", "learner.zero_stage=2"]
    config = make_config(*options, *pools)
    result = run_pools(config, tiny_flow_prompt_set)
    assert_same_run(result, config, tiny_flow_prompt_set, likeliest=0.02)
    assert result.metrics[0]["ratio/max_abs_log"] < 1e-5
    # Four groups of four rows, three frames, a window of two steps.
    assert result.metrics[0]["decisions"] == 4 * 4 * 3 * 2
    names = [each["name"] for each in json.loads((result.folder / "evaluation.json").read_text())["evaluations"]]
    assert names == ["base", "post-trained"] and result.groups["trained"] == 12


@pytest.mark.slow
def test_a_flow_run_without_log_probabilities_goes_on_with_other_ranks(ray_cluster, make_config, checkpoints):
    nft = ["train.objective=nft", "train.max_advantage=5", "flow.shared_noise=false", "train.kl_coefficient=0.01"]
    options = [*flow_overrides(checkpoints), "train.num_steps=3", *nft]
    run_until(make_config(*options), 2, tiny_flow_prompt_set)
    config = make_config(*options, "learner.engine=deepspeed", "learner.num_workers=2", "learner.zero_stage=3")
    result = run_pools(config, tiny_flow_prompt_set, evaluate=False)
    assert_same_run(result, config, tiny_flow_prompt_set)
    assert result.metrics[0]["decisions"] == 4 * 4 * 3
