from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from rlir_ray.algorithm.ledger import Ledger
from rlir_ray.config import (
    Config,
    FlowConfig,
    LearnerConfig,
    PolicyConfig,
    RewardConfig,
    RolloutConfig,
    TrainConfig,
    WorldConfig,
)
from rlir_ray.learner.objectives import PolicyGradient
from rlir_ray.learner.step import Learner
from rlir_ray.learner.torch_engine import TorchEngine
from rlir_ray.local import check_logprobs, group_signal, reward_metrics, train_local
from rlir_ray.models.rescoring import FlowRescorer, TokenRescorer
from rlir_ray.samplers import LogprobDifference
from rlir_ray.samplers.flow import FlowSampler
from rlir_ray.samplers.torch_sampler import TorchSampler
from rlir_ray.trajectory import EncodedVideo, RewardScores
from rlir_ray.transfer.weights import checksum, weights_of
from tests.fakes import NUM_CODES, tiny_flow_model, tiny_flow_prompts, tiny_prompts, tiny_world_model

Ended = tuple[list[dict[str, float]], Ledger, Learner, str]

CONFIG = Config(
    world=WorldConfig(num_frames=3),
    rollout=RolloutConfig(prompts_per_call=3),
    reward=RewardConfig(credit="frame", discount=0.5),
    learner=LearnerConfig(engine="torch", decision_budget=200),
    train=TrainConfig(num_steps=3, group_size=4, prompts_per_step=4, learning_rate=3e-3, warmup_steps=1),
)


class DarkReward:
    """Rewards frames for codes from the lower half; groups of chosen numbers get equal rewards."""

    def __init__(self, equal: Sequence[int] = ()) -> None:
        self.equal = set(equal)
        self.num_videos: list[int] = []

    def score(self, videos: Sequence[EncodedVideo]) -> list[RewardScores]:
        self.num_videos.append(len(videos))
        return [RewardScores(group_id=video.group_id, frame_rewards=self._rewards(video)) for video in videos]

    def _rewards(self, video: EncodedVideo) -> np.ndarray:
        dark = (video.codes[:, video.num_context :] < NUM_CODES // 2).mean(axis=2, dtype=np.float32)  # [G, F]
        return np.zeros_like(dark) if video.group_id in self.equal else dark


def train(config: Config, reward: DarkReward) -> tuple[list[dict[str, float]], Ledger, TorchSampler, Learner]:
    model = tiny_world_model()
    sampler = TorchSampler(tiny_world_model(), temperature=1.0)
    engine = TorchEngine(model, config.train, config.learner)
    objective = PolicyGradient(model, TokenRescorer(1.0), config.train)
    learner = Learner(engine, objective, config.train, config.learner)
    ledger = Ledger()
    return train_local(config, tiny_prompts(6), sampler, reward, learner, ledger=ledger), ledger, sampler, learner


def test_the_reward_rises() -> None:
    config = replace(CONFIG, train=replace(CONFIG.train, num_steps=8))
    history, *_ = train(config, DarkReward())
    assert np.mean([m["reward/mean"] for m in history[-2:]]) > history[0]["reward/mean"] + 0.1


def test_at_every_step_the_ratio_is_one_since_the_sampler_has_the_learners_weights() -> None:
    history, _, sampler, learner = train(CONFIG, DarkReward())
    for metrics in history:
        assert metrics["ratio/max_abs_log"] < 1e-4 and "ratio/clip_fraction" not in metrics
    assert sampler.policy_version == 3
    assert checksum(weights_of(sampler.policy)) == checksum(learner.weights())


def test_groups_without_signal_are_replaced_and_every_group_ends_in_one_state() -> None:
    reward = DarkReward(equal=[1, 2, 4])
    history, ledger, *_ = train(CONFIG, reward)
    # step 1: calls of 3 (0 left ready), 3 (3 and 5 ready), 1 (6): four groups; then 3 + 1 twice
    assert reward.num_videos == [3, 3, 1, 3, 1, 3, 1]
    ledger.check()
    assert ledger.counts() == {"in_flight": 0, "trained": 12, "stale": 0, "no_signal": 3, "failed": 0}
    assert [ledger[group].state for group in (1, 2, 4)] == ["no_signal"] * 3
    assert history[0]["decisions"] == 4 * 4 * 36


def test_the_same_seed_gives_the_same_training_and_another_seed_another() -> None:
    first, second = train(CONFIG, DarkReward())[0], train(CONFIG, DarkReward())[0]
    other = train(replace(CONFIG, seed=1), DarkReward())[0]
    keys = [key for key in first[0] if not key.startswith("time/")]
    assert [[m[key] for key in keys] for m in first] == [[m[key] for key in keys] for m in second]
    assert first[0]["reward/mean"] != other[0]["reward/mean"]


def test_groups_sampled_together_change_nothing_but_rounding() -> None:
    alone = train(replace(CONFIG, rollout=RolloutConfig(prompts_per_call=1)), DarkReward(equal=[1]))[0]
    together = train(replace(CONFIG, rollout=RolloutConfig(prompts_per_call=4)), DarkReward(equal=[1]))[0]
    for one, other in zip(alone, together, strict=True):
        assert one["reward/mean"] == pytest.approx(other["reward/mean"], rel=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)


def test_a_reward_that_never_varies_ends_with_a_remedy() -> None:
    with pytest.raises(ValueError, match=r"got 66 groups and still lacks 4; raise rollout\.temperature"):
        train(CONFIG, DarkReward(equal=range(1000)))


def test_an_engine_that_scores_otherwise_than_the_learners_model_ends_the_run() -> None:
    near, far = LogprobDifference(mean=0.01, maximum=3.0), LogprobDifference(mean=0.11, maximum=0.2)
    check_logprobs(CONFIG, [None, near, near])
    # The mean of .01 and .11 is above the default's .05.
    remedies = {"torch": "set rollout.engine=vllm", "vllm": "set rollout.engine=torch", "flow": "cache"}
    for engine, remedy in remedies.items():
        family, engine_key = ("flow", "torch") if engine == "flow" else ("autoregressive", engine)
        config = replace(CONFIG, policy=PolicyConfig(family=family), rollout=RolloutConfig(engine=engine_key))
        text = rf"engine {engine} must be within rollout.max_logprob_difference=0.05 .* got 0.06; .*{remedy}"
        with pytest.raises(RuntimeError, match=text) as error:
            check_logprobs(config, [near, far])
        assert "\n" not in str(error.value)
    with pytest.raises(RuntimeError, match=r"got nan; .* not finite"):
        check_logprobs(CONFIG, [LogprobDifference(mean=float("nan"), maximum=float("nan"))])
    check_logprobs(replace(CONFIG, rollout=RolloutConfig(max_logprob_difference=0)), [far])


def test_groups_that_never_occur_lift_no_figure_of_the_rewards() -> None:
    still, jumps = np.array([[4, 0], [0, 0]]), np.array([[2, 0], [2, 0]])  # jump: half commanded, never read
    rewards = np.zeros((2, 2), np.float32)
    scores = RewardScores(group_id=0, frame_rewards=rewards, confusion={"drop": still, "jump": jumps})
    found = reward_metrics([scores], RewardConfig())
    # Of jump alone: 2 of 4 frames; recall 1 and 0; F1 4/6 and 0.
    assert found["follow/accuracy"] == found["rule/balanced"] == 0.5
    assert found["follow/macro_f1"] == pytest.approx(1 / 3)
    nothing = RewardScores(group_id=0, frame_rewards=rewards, confusion={"drop": still})
    assert not {"follow/accuracy", "follow/macro_f1", "rule/balanced"} & set(reward_metrics([nothing], RewardConfig()))


def test_lookback_reaches_the_advantages_and_the_metrics() -> None:
    # Frame 1 earns half of frame 0's reward: returns 1, 1/2 and 0, 0.
    config = replace(
        CONFIG, reward=replace(CONFIG.reward, lookback=1), train=replace(CONFIG.train, advantage="dr_grpo")
    )
    scores = RewardScores(group_id=0, frame_rewards=np.array([[1, 0], [0, 0]], np.float32))
    advantages = group_signal(config, scores)
    assert advantages is not None
    np.testing.assert_allclose(advantages, [[0.5, 0.25], [-0.5, -0.25]])
    assert reward_metrics([scores], config.reward)["credit/frame_std"] == pytest.approx((0.5 + 0.25) / 2)


def test_a_field_is_in_use_if_another_class_than_its_idle_one_was_commanded() -> None:
    # Neutral, class 1, was always commanded and read; of side, without an idle class, right alone.
    gear, side = np.diag([0, 4, 0]), np.diag([0, 4])
    rewards, idle = np.zeros((2, 2), np.float32), {"gear": 1, "side": None}
    still = RewardScores(group_id=0, frame_rewards=rewards, confusion={"gear": gear, "side": side}, null_classes=idle)
    assert "follow/accuracy" not in reward_metrics([still], RewardConfig())
    # One frame of reverse gear, and one of left.
    for name, more in (("gear", np.array([[0, 4, 0], [0, 0, 0], [0, 0, 0]])), ("side", np.array([[0, 4], [0, 0]]))):
        moved = replace(still, confusion=still.confusion | {name: still.confusion[name] + more})
        assert reward_metrics([moved], RewardConfig())["follow/accuracy"] == 0.5


def test_graded_axes_have_an_error_in_place_of_classes() -> None:
    rewards = np.zeros((2, 2), np.float32)
    groups = [
        RewardScores(group_id=index, frame_rewards=rewards, axis_errors={"dx": 0.1 * index, "dy": 0.3})
        for index in (0, 1)
    ]
    found = reward_metrics(groups, RewardConfig())
    assert found["follow/axis_error"] == pytest.approx((0 + 0.3 + 0.1 + 0.3) / 4)
    assert not {"follow/accuracy", "follow/macro_f1", "rule/balanced"} & set(found)


class MeanLatent:
    """Rewards frames of latents by their mean; bounded, as an inverse reward is, whatever the latents are."""

    def score(self, videos: Sequence[EncodedVideo]) -> list[RewardScores]:
        means = [video.codes[:, video.num_context :].astype(np.float32).mean((2, 3, 4)) for video in videos]
        return [
            RewardScores(group_id=video.group_id, frame_rewards=np.tanh(np.nan_to_num(mean)))
            for video, mean in zip(videos, means, strict=True)
        ]


def ended_run(is_flow: bool, learning_rate: float = 1e-3, *, weight_decay: float = 0.0, poison: bool = False) -> Ended:
    """Up to six steps of a family, and the line that ended them."""
    train = replace(CONFIG.train, num_steps=6, learning_rate=learning_rate, weight_decay=weight_decay, warmup_steps=0)
    flow = FlowConfig(num_steps=4, window=2, noise_level=0.5)
    config, make = replace(CONFIG, train=train), tiny_flow_model if is_flow else tiny_world_model
    policy, sampled = make(), make()
    for model in (policy, sampled):
        # Its last weight is read for every decision.
        list(model.parameters())[-1].data.view(-1)[0] *= np.nan if poison else 1
    sampler = FlowSampler(sampled, flow, explore=True) if is_flow else TorchSampler(sampled, temperature=1.0)
    objective = PolicyGradient(policy, FlowRescorer(flow) if is_flow else TokenRescorer(1.0), train)
    learner = Learner(TorchEngine(policy, train, config.learner), objective, train, config.learner)
    prompts, reward = (tiny_flow_prompts if is_flow else tiny_prompts)(6), MeanLatent() if is_flow else DarkReward()
    logged: list[dict[str, float]] = []
    ledger = Ledger()
    with pytest.raises((RuntimeError, ValueError)) as end:
        train_local(config, prompts, sampler, reward, learner, [lambda step, each: logged.append(each)], ledger)
    return logged, ledger, learner, str(end.value)


FAMILIES = pytest.mark.parametrize("is_flow", [False, True], ids=["tokens", "flow"])


@FAMILIES
def test_a_policy_that_blows_up_ends_the_run_in_one_line_and_trains_no_group_after_it(is_flow: bool) -> None:
    logged, ledger, learner, line = ended_run(is_flow, learning_rate=1e8)
    assert "\n" not in line and "finite" in line
    assert all(math.isfinite(value) for metrics in logged for value in metrics.values())
    num_done = sum(metrics["updates/skipped"] == 0 for metrics in logged)
    assert 1 <= num_done < len(logged) + ledger.counts()["failed"] and ledger.counts()["trained"] == 4 * num_done
    assert all(np.isfinite(value).all() for value in learner.weights().values())


@FAMILIES
def test_an_update_that_makes_weights_infinite_ends_the_run_and_they_are_not_published(is_flow: bool) -> None:
    # The first gradient is finite; 33e37 times a weight above 1.04 is above the largest float32.
    logged, ledger, _, line = ended_run(is_flow, learning_rate=1e37, weight_decay=33)
    assert line.startswith("weights to be published must be finite, got NaN or infinity in ") and "\n" not in line
    assert not logged and ledger.counts()["trained"] == 0


@FAMILIES
def test_groups_sampled_by_a_policy_with_nan_fail_and_end_the_run_in_one_line(is_flow: bool) -> None:
    logged, ledger, _, line = ended_run(is_flow, poison=True)
    assert "\n" not in line and "behavior log-probabilities must be finite, got NaN or infinity" in line
    assert not logged and ledger.counts()["trained"] == 0 and ledger.counts()["failed"] >= 11


def test_groups_of_a_skipped_update_have_failed_and_training_goes_on() -> None:
    model = tiny_world_model()
    engine = TorchEngine(model, CONFIG.train, CONFIG.learner)
    model.llama.model.norm.weight.register_hook(lambda gradient: gradient * (np.nan if learner.num_steps == 1 else 1))
    learner = Learner(engine, PolicyGradient(model, TokenRescorer(1.0), CONFIG.train), CONFIG.train, CONFIG.learner)
    ledger, sampler = Ledger(), TorchSampler(tiny_world_model(), temperature=1.0)
    history = train_local(CONFIG, tiny_prompts(6), sampler, DarkReward(), learner, ledger=ledger)
    assert [metrics["updates/skipped"] for metrics in history] == [0, 1, 0]
    assert ledger.counts()["trained"] == 8 and ledger.counts()["failed"] == 4
    assert ledger[4].cause == "update skipped: gradient of llama.model.norm.weight is not finite"
