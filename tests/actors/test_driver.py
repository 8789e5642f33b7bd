"""The whole loop over Ray in a tiny world."""

import dataclasses
import json
from functools import partial

import numpy as np
import pytest

from actors.pipeline import Pipeline
from actors.reward.replica import build_reward
from actors.rollout.actor import build_sampler
from benchmarks.stages import CODES
from rlir_ray.algorithm.ledger import Ledger
from rlir_ray.evaluation.alarms import Sign
from rlir_ray.families import make_objective, open_clip_loss, open_policy
from rlir_ray.learner.step import Learner
from rlir_ray.learner.torch_engine import TorchEngine
from rlir_ray.local import train_local
from rlir_ray.run.checkpoint import newest
from rlir_ray.trajectory import EncodedVideo, Prompt, TrajectoryGroup
from rlir_ray.transfer.weights import weights_of
from tests.fakes import with_recorded
from tests.in_process import PER_STEP, run_in_process, stage_config
from tests.own_rewards import TokenReward
from tests.world import flow_overrides, tiny_flow_prompt_set, tiny_prompt_set

FIGURES = (
    "loss/policy",
    "loss/supervised",
    "loss/kl",
    "reward/mean",
    "reward/std",
    "grad_norm",
    "ratio/max_abs_log",
    "decisions",
)
COUNTED = "follow/macro_f1"


def saved_policy(config, folder):
    """What a run saved, opened as its successor would."""
    key = "adapter" if config.lora.rank else "policy"
    return open_policy(dataclasses.replace(config, models=dataclasses.replace(config.models, **{key: str(folder)})))


def run_local(config, prompt_set=tiny_prompt_set):
    """The same run in this process; returns its metrics and the weights that it would save."""
    policy = open_policy(config)
    engine = TorchEngine(policy, config.train, config.learner)
    objective, clip_loss = make_objective(config, policy), open_clip_loss(config, policy)
    learner = Learner(engine, objective, config.train, config.learner, clip_loss)
    sampler = build_sampler(config)
    prompts = prompt_set("train").prompts
    metrics = train_local(config, prompts, sampler, build_reward(config, None), learner)
    return metrics, learner.average_weights() or learner.weights()


def figures(metrics):
    return {key: metrics[key] for key in FIGURES if key in metrics}


def run_pools(config, prompt_set=tiny_prompt_set, **options):
    return Pipeline(config, prompts=prompt_set).train(calibrate=False, **options)


def assert_same_run(result, config, prompt_set=tiny_prompt_set, likeliest=1e-5):
    """
    Args:
        likeliest: bound of what is counted of the likeliest classes. Serve reads the groups together that are there:
            their probabilities differ in the last digits, and of two that are nearly equal the other one may win.
    """
    expected, weights = run_local(config, prompt_set)
    assert len(result.metrics) == len(expected) == config.train.num_steps
    for found, step in zip(result.metrics, expected, strict=True):
        assert figures(found) == pytest.approx(figures(step), rel=1e-4, abs=1e-5)
        assert found.get(COUNTED) == pytest.approx(step.get(COUNTED), abs=likeliest)
    saved = weights_of(saved_policy(config, result.folder / "policy"))
    for name, value in weights.items():
        np.testing.assert_allclose(saved[name], value, atol=1e-4)


@pytest.mark.slow
def test_adapter_of_a_flow_policy_trains_in_the_pools_as_in_the_local_loop(ray_cluster, make_config, checkpoints):
    config = make_config(
        *flow_overrides(checkpoints),
        "lora.rank=2",
        "train.grpo.ratio=guard",
        "train.kl_coefficient=0.1",
        "train.advantage=batch_std",
        "train.best_and_worst=1",
        "train.max_advantage=2",
    )
    result = run_pools(config, tiny_flow_prompt_set, evaluate=False)
    assert_same_run(result, config, tiny_flow_prompt_set)
    assert result.metrics[0]["ratio/max_abs_log"] < 1e-5
    # Two rows of each of four groups, three frames, a window of two steps.
    assert result.metrics[0]["decisions"] == 4 * 2 * 3 * 2


@pytest.mark.slow
def test_what_was_trained_is_saved_when_a_callback_ends_the_run(ray_cluster, make_config):
    """The step that the learner has begun by then is trained to its end, and counts. Steps take what is there."""

    def object_to_step_4(metrics):
        if metrics["step"] == 4:
            raise LookupError("enough")

    config = make_config("train.max_staleness=1", "train.stale_policy=drop", "train.num_steps=9", "checkpoint.every=0")
    pipeline = Pipeline(config, prompts=tiny_prompt_set, callbacks=[object_to_step_4])
    with pytest.raises(LookupError, match="enough"):
        pipeline.train(calibrate=False, evaluate=False)
    point = newest(pipeline.folder.path, pytest.fail)
    assert point is not None and point.step == pipeline.driver.state.step >= 4
    assert (pipeline.folder.path / "policy").is_dir()
    assert max(step["staleness/max"] for step in pipeline.driver.state.metrics) <= 1
    ledger = Ledger.from_json((pipeline.folder.path / "ledger.json").read_text())
    ledger.check()
    assert ledger.counts()["trained"] == 4 * point.step


@pytest.mark.slow
def test_a_second_interrupt_ends_the_run_at_once_and_saves_nothing(ray_cluster, make_config):
    """A step is in flight then, and the learner that was stopped must not be waited for."""

    def interrupt(metrics):
        if metrics["step"] == 2:
            raise KeyboardInterrupt

    config = make_config("train.max_staleness=1", "train.num_steps=9", "checkpoint.every=0")
    pipeline = Pipeline(config, prompts=tiny_prompt_set, callbacks=[interrupt])
    with pytest.raises(KeyboardInterrupt):
        pipeline.train(calibrate=False, evaluate=False)
    assert pipeline.driver.session.learner is None
    assert newest(pipeline.folder.path, pytest.fail) is None and not (pipeline.folder.path / "policy").exists()
    Ledger.from_json((pipeline.folder.path / "ledger.json").read_text()).check()


def test_a_trace_that_could_not_be_written_is_refused_before_the_run(make_config, tmp_path):
    with pytest.raises(ValueError, match=r"a trace must go into an existing folder, got .*none/trace\.json"):
        Pipeline(make_config(), prompts=tiny_prompt_set, trace=tmp_path / "none" / "trace.json")


@pytest.fixture
def no_payload_here(monkeypatch):
    """Makes reading any payload in the driver's process an error; other processes are as always."""

    def refuse(self, state):
        raise AssertionError(f"the driver read a {type(self).__name__}")

    for payload in (TrajectoryGroup, EncodedVideo, Prompt):
        monkeypatch.setattr(payload, "__setstate__", refuse)


def test_synchronous_pools_train_as_the_local_loop_and_the_driver_reads_no_payload(
    ray_cluster, make_config, no_payload_here
):
    config = make_config("train.num_steps=3")
    steps, stages = [], []
    pipeline = Pipeline(config, callbacks=[steps.append], prompts=tiny_prompt_set, progress=stages.append)
    result = pipeline.train(calibrate=False)
    assert_same_run(result, config)
    assert steps == result.metrics
    assert not result.interrupted
    # Every admitted group ended, in one state.
    ledger = Ledger.from_json((result.folder / "ledger.json").read_text())
    ledger.check()
    assert result.groups["trained"] == 12
    assert result.groups["failed"] == result.groups["stale"] == 0
    names = [each["name"] for each in json.loads((result.folder / "evaluation.json").read_text())["evaluations"]]
    assert names == ["base", "post-trained"]
    judged = [stage for stage in stages if stage.startswith("judging")]
    assert judged == [
        "judging real clips and the base policy",
        "judging the base policy",
        "judging the post-trained policy",
    ]
    assert len((result.folder / "metrics.jsonl").read_text().splitlines()) == 3


def recorded_prompt_set(split):
    plain = tiny_prompt_set(split)
    return dataclasses.replace(plain, prompts=tuple(with_recorded(plain.prompts)))


@pytest.mark.slow
def test_recorded_clips_train_and_averages_follow_in_the_pools_as_in_the_local_loop(ray_cluster, make_config):
    config = make_config(
        "train.supervised_coefficient=0.3",
        "train.ema_decay=0.5",
        "train.kl_coefficient=0.1",
        "train.reference_every=1",
        "train.reference_decay=0.5",
        "reward.lookback=1",
    )
    result = run_pools(config, recorded_prompt_set, evaluate=False)
    # The saved policy is the average.
    assert_same_run(result, config, recorded_prompt_set)
    assert result.metrics[1]["loss/supervised"] > 0 < result.metrics[1]["loss/kl"]


@pytest.mark.slow
def test_adapter_of_a_token_policy_trains_with_two_rollout_actors_and_two_ranks(ray_cluster, make_config):
    config = make_config(
        "lora.rank=2",
        "rollout.num_actors=2",
        "learner.engine=deepspeed",
        "learner.num_workers=2",
        "train.kl_coefficient=0.1",
        "train.advantage=dr_grpo",
    )
    pipeline = Pipeline(config, prompts=tiny_prompt_set)
    result = pipeline.train(calibrate=False, evaluate=False)
    assert_same_run(result, config)
    assert (result.folder / "policy" / "adapter_config.json").is_file()
    # Without GPUs the store serves all versions.
    assert pipeline.driver.session.sync.broadcasts is None


@pytest.mark.slow
def test_several_updates_a_step_train_in_the_pools_as_in_the_local_loop(ray_cluster, make_config):
    config = make_config(
        "train.advantage=rloo",
        "train.grpo.loss=gspo",
        "train.updates_per_step=2",
        "train.num_minibatches=2",
    )
    result = run_pools(config, evaluate=False)
    assert_same_run(result, config)
    # Steps are versions, however many updates they make; each decision is counted once.
    assert [step["policy_version"] for step in result.metrics] == [1, 2]
    assert [step["decisions"] for step in result.metrics] == [4 * 4 * 36] * 2
    assert result.metrics[0]["ratio/clip_fraction"] > 0 and result.metrics[0]["ratio/max_abs_log"] > 1e-3


def test_overlapped_steps_stay_within_max_staleness_and_a_stop_saves_what_there_is(ray_cluster, tmp_path):
    def stop_after_five(session, metrics):
        if metrics["step"] == 5:
            session.stop.set()

    config = stage_config(tmp_path, "train.max_staleness=1", "train.num_steps=50")
    state = run_in_process(config, tmp_path, partial(TokenReward, CODES), log=stop_after_five)
    assert 0 < state.metrics[0]["reward/mean"] < 1
    lags = [step["staleness/max"] for step in state.metrics]
    # The first step's groups are fresh; those admitted ahead of it lag by one.
    assert lags[0] == 0
    assert max(lags) == 1
    # The next step may have waited at the learner by then, and is trained too.
    assert state.step in (5, 6)
    assert state.ledger.counts()["trained"] == PER_STEP * state.step
    assert (tmp_path / "policy").is_dir()
    point = newest(tmp_path, pytest.fail)
    assert point is not None and point.step == state.step
    # What was sampled ahead for steps that did not come; the pipeline ends these groups with their cause.
    assert state.ledger.in_flight
    state.ledger.fail_in_flight("the run ended")
    state.ledger.check()


def test_an_alarm_that_shall_end_the_run_ends_it_after_its_step_and_saves(ray_cluster, tmp_path):
    lines, brightness = [], Sign(3.0, 0.1, True, "brightness is 9")
    config = stage_config(
        tmp_path, "train.max_staleness=1", "train.num_steps=50", "evaluation.every=2", "evaluation.stop_on=[brightness]"
    )
    state = run_in_process(
        config, tmp_path, partial(TokenReward, CODES), progress=lines.append, signs={4: {"brightness": brightness}}
    )
    assert state.step == 4 and lines[-3:][0].startswith("alarm brightness: brightness is 9; the run ends")
    assert lines[-1] == "trained 4 steps: alarm brightness" and (tmp_path / "policy").is_dir()
    # Steps log the figures of the latest evaluation.
    assert [step.get("heldout/judge/accuracy") for step in state.metrics] == [None, None, 0.2, 0.2]
    point = newest(tmp_path, pytest.fail)
    assert point is not None and point.step == 4


def test_a_plan_that_does_not_fit_is_refused_before_any_pool_starts(ray_cluster, make_config):
    pipeline = Pipeline(make_config("rollout.num_actors=40"), prompts=tiny_prompt_set)
    with pytest.raises(ValueError, match=r"must fit 4 CPUs, got 20.75"):
        pipeline.train()
    assert pipeline.driver.session.learner is None


@pytest.mark.slow
def test_tokens_sampled_by_vllm_train_in_the_pools_until_they_are_too_far_off(
    needs_vllm, ray_cluster, make_config, checkpoints
):
    def tighten_after_three(metrics):
        if metrics["step"] == 3:
            bound = dataclasses.replace(config.rollout, max_logprob_difference=1e-12)
            pipeline.driver.config = dataclasses.replace(config, rollout=bound)

    config = make_config(
        f"models.policy={checkpoints / 'vllm_policy'}",
        "rollout.engine=vllm",
        "vllm.kv_cache_bytes=16777216",
        "train.num_steps=5",
        "train.max_staleness=1",
        "lora.rank=2",
    )
    pipeline = Pipeline(config, callbacks=[tighten_after_three], prompts=tiny_prompt_set)
    with pytest.raises(
        RuntimeError, match=r"vllm must be within rollout.max_logprob_difference=1e-12 of the learner's .* got"
    ) as stop:
        pipeline.train(calibrate=False, evaluate=False)
    assert "\n" not in str(stop.value)
    steps, folder = pipeline.driver.state.metrics, pipeline.folder.path
    # When step 3 ends, step 4 may be at the learner already: it is trained too. The first step's groups are of the
    # learner's version, later ones lag; what is compared never does.
    assert len(steps) in (3, 4) and steps[0]["ratio/max_abs_log"] < 1e-4 < steps[2]["ratio/max_abs_log"]
    for step in steps:
        assert 0 < step["logprob_difference/mean"] < 1e-5 and step["logprob_difference/max"] < 1e-4
    ledger = Ledger.from_json((folder / "ledger.json").read_text())
    ledger.check()
    assert ledger.counts()["trained"] == 4 * len(steps)
    assert (folder / "policy" / "adapter_model.safetensors").is_file()


class PoisonedLearner(Learner):
    """From its second step on a log-probability of the first group is no number."""

    def step(self, batch):
        if self.num_steps:
            group = batch.groups[0]
            logprobs = np.where(np.arange(group.loss_mask.shape[1]) == 0, np.nan, group.behavior_logprobs)
            groups = [dataclasses.replace(group, behavior_logprobs=logprobs.astype(np.float32)), *batch.groups[1:]]
            batch = dataclasses.replace(batch, groups=groups)
        return super().step(batch)


def build_poisoned_learner(config):
    policy = open_policy(config)
    engine = TorchEngine(policy, config.train, config.learner)
    return PoisonedLearner(engine, make_objective(config, policy), config.train, config.learner)


@pytest.mark.slow
def test_skipped_updates_end_the_run_in_one_line_and_leave_the_checkpoint_of_before(ray_cluster, make_config):
    config = make_config("train.num_steps=6", "train.max_skipped_updates=2", "checkpoint.every=1", "checkpoint.keep=1")
    pipeline = Pipeline(config, prompts=tiny_prompt_set, make_learner=partial(build_poisoned_learner, config))
    with pytest.raises(
        RuntimeError, match=r"2 in a row that were skipped, the last one in step 3: loss .* of group 8 "
    ) as end:
        pipeline.train(calibrate=False, evaluate=False)
    assert "\n" not in str(end.value)
    assert newest(pipeline.folder.path, print).step == 1
    ledger = Ledger.from_json((pipeline.folder.path / "ledger.json").read_text())
    ledger.check()
    assert [ledger[group].state for group in range(12)] == ["trained"] * 4 + ["failed"] * 8
    assert ledger[4].cause.startswith("update skipped: loss or log-probabilities of group 4 ")
    assert [each["updates/skipped"] for each in pipeline.folder.metrics(9)] == [0, 1, 1]
