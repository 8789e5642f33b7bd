"""Contract tests: our own members and the documented examples pass, broken ones fail with the rule that they break."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from docs.examples.idm import FrameDifference
from docs.examples.objective import Reinforce
from docs.examples.reward import Brightness
from docs.examples.source import Square
from rlir_ray.config.load import load_config
from rlir_ray.idm.base import Reading, load_inverse_dynamics
from rlir_ray.idm.correlation_idm import CorrelationInverseDynamics, correlation_config
from rlir_ray.rewards.base import RewardContext
from rlir_ray.rewards.construction import open_reward
from rlir_ray.spaces.mineworld import token_cells
from rlir_ray.testing import check_family, check_idm, check_objective, check_reward, check_source
from tests.fakes import HEIGHT, WIDTH, tiny_flow_model, tiny_flow_prompts, tiny_idm, tiny_prompts, tiny_tokenizer
from tests.second_space import SPACE
from tests.world import MakeConfig, flow_overrides

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"
SMALL = [f"world.height={HEIGHT}", f"world.width={WIDTH}", "world.num_frames=3"]


def context_of(config) -> RewardContext:
    return RewardContext(config=config, device="cpu", class_shares=None, open_codec=tiny_tokenizer, cells=token_cells)


class Moody(Brightness):
    """Gives other rewards at every call."""

    def score(self, videos):
        self.target += 0.1
        return super().score(videos)


class Halved(Brightness):
    """Forgets half of the frames."""

    def _rewards(self, video):
        return super()._rewards(video)[:, ::2]


class Relative(Brightness):
    """Divides by the number of groups that happen to be scored together."""

    def score(self, videos):
        scores = super().score(videos)
        for each in scores:
            each.frame_rewards[:] /= len(videos)
        return scores


def test_inverse_reward_and_the_example_keep_the_contract(make_config: MakeConfig) -> None:
    check_reward(open_reward(context_of(make_config())))
    config = make_config("reward.name=docs.examples.reward:Brightness", "reward.args.target=0.25", "models.reward_idm=")
    reward = open_reward(context_of(config))
    assert isinstance(reward, Brightness) and reward.target == 0.25
    check_reward(reward)


@pytest.mark.parametrize(
    ("broken", "rule"),
    [
        (Moody, "score must give the same rewards at every call"),
        (Halved, "frame rewards of group 10 must be (3, 3), got (3, 2)"),
        (Relative, "score must give a group the same rewards alone and together with others"),
    ],
)
def test_reward_that_breaks_the_contract_is_told_the_rule(make_config: MakeConfig, broken, rule: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(rule)):
        check_reward(broken.from_context(context_of(make_config())))


class PerMicroBatch(Reinforce):
    def loss(self, forward, columns, num_decisions):
        return super().loss(forward, columns, int(columns.loss_mask.sum()))


class Unmasked(Reinforce):
    def loss(self, forward, columns, num_decisions):
        logprobs = self.rescore(forward, columns.record, columns.loss_mask.shape[1]).logprobs
        return -(columns.advantages * logprobs).sum() / num_decisions, {}


def test_our_objectives_and_the_example_keep_the_contract(checkpoints: Path) -> None:
    check_objective("grpo")
    check_objective("docs.examples.objective:Reinforce", {"scale": 0.5})
    config = load_config("", [*SMALL, *flow_overrides(checkpoints), "train.group_size=2", "train.max_advantage=5"])
    prompts = tiny_flow_prompts(2, num_frames=3)
    check_objective("grpo", config=config, policy=tiny_flow_model(), prompts=prompts)
    nft = load_config(
        "",
        [
            *SMALL,
            *flow_overrides(checkpoints),
            "train.group_size=2",
            "train.max_advantage=5",
            "train.objective=nft",
            "flow.shared_noise=false",
        ],
    )
    check_objective("nft", config=nft, policy=tiny_flow_model(), prompts=prompts)


@pytest.mark.parametrize(
    ("broken", "rule"),
    [("PerMicroBatch", "the loss must be the sum over micro-batches"), ("Unmasked", "decisions outside loss_mask")],
)
def test_objective_that_breaks_the_contract_is_told_the_rule(broken: str, rule: str) -> None:
    with pytest.raises(AssertionError, match=rule):
        check_objective(f"tests.test_plugins:{broken}")


class Forgetful(Square):
    """The same clips for training and evaluation."""

    def _clip(self, request, number):
        return super()._clip(replace(request, split="train", seed=3), number)


class Floating(Square):
    def _picture(self, place):
        return super()._picture(place).astype(np.float32)


def test_example_source_keeps_the_contract_and_so_do_recordings(tmp_path: Path) -> None:
    check_source("docs.examples.source:Square", tmp_path, {"size": 4}, load_config("", SMALL))


def test_embedded_world_keeps_the_contract(tmp_path: Path) -> None:
    check_source("doom", tmp_path)


@pytest.mark.parametrize(
    ("broken", "rule"), [("Forgetful", "training and held-out clips must have no"), ("Floating", "must be uint8")]
)
def test_source_that_breaks_the_contract_is_told_the_rule(tmp_path: Path, broken: str, rule: str) -> None:
    with pytest.raises(AssertionError, match=rule):
        check_source(f"tests.test_plugins:{broken}", tmp_path, config=load_config("", SMALL))


class Neighbourly(FrameDifference):
    """Mixes the clips of a batch."""

    def logits(self, frames):
        return {head: values - values.mean(0) for head, values in super().logits(frames).items()}


def test_inverse_dynamics_models_and_the_example_keep_the_contract(tmp_path: Path) -> None:
    FrameDifference(HEIGHT, WIDTH).save_pretrained(tmp_path)
    opened = load_inverse_dynamics(tmp_path)
    assert isinstance(opened, FrameDifference)
    for idm in (opened, tiny_idm(), CorrelationInverseDynamics(correlation_config(HEIGHT, WIDTH)).eval()):
        check_idm(idm, HEIGHT, WIDTH)


def test_the_example_model_of_another_space_keeps_the_contract(tmp_path: Path) -> None:
    FrameDifference(HEIGHT, WIDTH, SPACE).save_pretrained(tmp_path)
    opened = load_inverse_dynamics(tmp_path)
    assert opened.space == SPACE
    check_idm(opened, HEIGHT, WIDTH)


def test_inverse_dynamics_model_that_breaks_the_contract_is_told_the_rule() -> None:
    torch.manual_seed(0)
    with pytest.raises(AssertionError, match="of a clip must be the same alone and among other clips"):
        check_idm(Neighbourly(HEIGHT, WIDTH).eval(), HEIGHT, WIDTH)


class Unsure(FrameDifference):
    """Gives probabilities that do not sum to 1."""

    def read(self, frames, names):
        found = super().read(frames, names)
        return Reading({name: table / 2 for name, table in found.probabilities.items()}, found.classes)


class Wide(FrameDifference):
    """Reads classes that the fields do not have."""

    def read(self, frames, names):
        found = super().read(frames, names)
        return Reading(found.probabilities, {name: classes + 50 for name, classes in found.classes.items()})


@pytest.mark.parametrize(
    ("broken", "rule"),
    [(Unsure, "probabilities of gear must sum to 1"), (Wide, "classes of gear must be below 3, got 5")],
)
def test_readings_that_break_the_contract_are_told_the_field_and_the_rule(broken, rule: str) -> None:
    with pytest.raises(AssertionError, match=rule):
        check_idm(broken(HEIGHT, WIDTH, SPACE).eval(), HEIGHT, WIDTH)


def test_families_keep_the_contract(make_config: MakeConfig, checkpoints: Path) -> None:
    check_family(make_config(), tiny_prompts(2, num_frames=3))
    check_family(make_config(*flow_overrides(checkpoints)), tiny_flow_prompts(2, num_frames=3))


def test_family_whose_rescorer_is_of_another_temperature_is_told_the_rule(make_config: MakeConfig, monkeypatch) -> None:
    from rlir_ray.families import autoregressive
    from rlir_ray.models.rescoring import TokenRescorer

    warm = replace(autoregressive.FAMILY, rescorer=lambda config, policy: TokenRescorer(2.0))
    monkeypatch.setattr(autoregressive, "FAMILY", warm)
    with pytest.raises(AssertionError, match="the ratio must be 1 at the first update"):
        check_family(make_config(), tiny_prompts(2, num_frames=3))
