"""The audit of a reward: an honest reward passes, rewards that a policy can fool fail with the reason."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from rlir_ray.cli.commands import main
from rlir_ray.config import RewardConfig, TermConfig
from rlir_ray.evaluation import audit as evaluation_audit
from rlir_ray.evaluation.audit import audit_text, write_audit
from rlir_ray.rewards.combined import CombinedReward
from rlir_ray.rewards.corruptions import corrupted_clips
from rlir_ray.rewards.frame_figures import motion
from rlir_ray.rewards.inverse import InverseTerm
from rlir_ray.rewards.reward_audit import MUST_LOSE, Estimate, RewardAudit, audit_reward
from rlir_ray.rewards.smoothness import SmoothnessTerm
from rlir_ray.rewards.term import GroupClips, Term
from rlir_ray.trajectory import EncodedClips, EncodedVideo, RewardScores
from tests.rewards.test_calibration import GROUP_NAMES, StripeReader, _clips


class Pixels:
    """A codec without loss: a code for each pixel of a frame of 4 x 32."""

    def encode_clips(self, clips: torch.Tensor) -> EncodedClips:
        return EncodedClips(clips[..., 0].flatten(2).long())

    def decode_clips(self, clips: EncodedClips) -> torch.Tensor:
        return clips.codes.unflatten(-1, (4, 32))[..., None].expand(-1, -1, -1, -1, 3).to(torch.uint8)


class MoreMotion(Term):
    def score(self, clips: GroupClips) -> torch.Tensor:
        return motion(clips.frames, len(clips.commanded))


class Bright(Term):
    def score(self, clips: GroupClips) -> torch.Tensor:
        return clips.generated.float().mean((2, 3, 4))


def audited(terms: dict[str, Term], idm: StripeReader | None = None, **settings: object) -> RewardAudit:
    configs = tuple(TermConfig(name="context" if len(terms) > 1 else "inverse") for _ in terms)
    config = RewardConfig(terms=configs, **settings)  # type: ignore[arg-type]
    reads_idm = any(term.reads_idm for term in terms.values())
    idm = idm or StripeReader()
    codec = Pixels()
    reward = CombinedReward(codec, terms, idm if reads_idm else None, names=GROUP_NAMES, config=config)
    frames, actions = _clips()
    return audit_reward(reward, codec, frames, actions, 1, config)  # type: ignore[arg-type]


def inverse() -> InverseTerm:
    return InverseTerm(GROUP_NAMES, RewardConfig())


def test_an_honest_reward_passes_and_each_kind_has_its_figures(tmp_path) -> None:
    found = audited({"inverse": inverse()})
    assert found.faults == () and found.num_clips == 40
    kinds = {"codec", "static", "blurred", "darkened", "shuffled", "reversed", "ping_pong", "other_clip", "random"}
    assert found.terms["reward"].keys() == kinds and found.terms["inverse"].keys() == kinds | {"real"}
    # The codec has no loss, and the judge reads every action; of its own clip's actions another clip shows a third.
    assert found.terms["inverse"]["real"].mean == pytest.approx(1, abs=1e-4)
    assert found.fields["jump"]["codec"].mean == 1 and found.fields["jump"]["codec"].se == 0
    other = found.fields["jump"]["other_clip"]
    assert 0.3 < other.mean < 0.7 and 0 < other.se < 0.1
    page = write_audit(found, tmp_path / "audit", "stripes").read_text(encoding="utf-8")
    assert "<b>Passed.</b>" in page and "ping pong" in page and (tmp_path / "audit" / "audit.json").is_file()
    lines = audit_text(found)
    assert lines[-1] == "ok" and lines[1].startswith("real") and len(lines) == 1 + len(kinds | {"real"}) + 1


@pytest.mark.parametrize(
    ("terms", "kind"),
    [
        ({"motion": MoreMotion()}, "random"),
        ({"bright": Bright()}, "static"),
        ({"even": SmoothnessTerm(("yaw",))}, "static"),
    ],
)
def test_rewards_that_are_built_to_be_fooled_fail_with_the_kind_that_earns_too_much(
    terms: dict[str, Term], kind: str
) -> None:
    config = RewardConfig(terms=(TermConfig(name="context"),))
    idm = StripeReader()
    label = next(iter(terms))
    reads_idm = terms[label].reads_idm
    names = ("yaw",) if reads_idm else GROUP_NAMES
    reward = CombinedReward(Pixels(), terms, idm if reads_idm else None, names=names, config=config)
    found = audit_reward(reward, Pixels(), *_clips(), 1, config)  # type: ignore[arg-type]
    rule = rf"reward.terms of context must pay real clips more than {kind} ones, got "
    assert any(fault.startswith(rule) for fault in found.faults), found.faults
    assert all("\n" not in fault for fault in found.faults)


def test_a_term_that_obeys_rescues_one_that_can_be_fooled() -> None:
    both = {"inverse": inverse(), "motion": MoreMotion()}
    assert audited(both, combine="advantages").faults  # noise moves most
    weighted = RewardConfig(
        terms=(TermConfig(name="inverse"), TermConfig(name="context", weight=0.05)), combine="advantages"
    )
    reward = CombinedReward(Pixels(), both, StripeReader(), names=GROUP_NAMES, config=weighted)
    found = audit_reward(reward, Pixels(), *_clips(), 1, weighted)  # type: ignore[arg-type]
    assert found.faults == ()


def test_a_field_that_the_model_cannot_read_is_named() -> None:
    class NoJumps(StripeReader):
        def logits(self, frames: torch.Tensor) -> dict[str, torch.Tensor]:
            found = super().logits(frames)
            found["buttons"][..., 3, 1] = -20
            return found

    found = audited({"inverse": InverseTerm(GROUP_NAMES, RewardConfig())}, NoJumps())
    assert [fault for fault in found.faults if fault.startswith("models.reward_idm must read jump in real clips")]
    assert not [fault for fault in found.faults if "must read forward_back" in fault]


def test_a_whole_reward_is_audited_by_its_rewards_alone() -> None:
    class Whole:
        def score(self, videos: Sequence[EncodedVideo]) -> list[RewardScores]:
            shapes = [(len(each.codes), each.num_frames) for each in videos]
            return [
                RewardScores(group_id=each.group_id, frame_rewards=np.ones(shape, np.float32))
                for each, shape in zip(videos, shapes, strict=True)
            ]

    found = audit_reward(Whole(), Pixels(), *_clips(), 1, RewardConfig(name="my.module:Whole"))  # type: ignore[arg-type]
    assert len(found.faults) == len(MUST_LOSE) and "reward.name=my.module:Whole must pay" in found.faults[0]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--data", "recordings"],
        ["--recipe", "doom_tiny_ar", "--data", "recordings"],
        ["--data", "recordings", "--idm", "idm", "--out", "folder"],
        ["--data", "recordings", "--idm", "idm", "train.num_steps=3"],
        ["--data", "recordings", "--idm", "idm", "--unknown"],
    ],
)
def test_the_command_refuses_the_options_of_both_checks(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["audit", *arguments])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: audit needs --recipe (with --out and overrides), or --data")


@pytest.mark.parametrize(("faults", "code"), [((), 0), (("the reward can be fooled",), 1)])
def test_the_exit_code_says_whether_the_reward_passed(
    faults: tuple[str, ...],
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = RewardAudit(terms={"reward": {"codec": Estimate(1.0, 0.1)}}, fields={}, faults=faults, num_clips=2)
    monkeypatch.setattr(evaluation_audit, "audit_recipe", lambda config, num_clips, progress: found)
    command = ["audit", "--recipe", "doom_tiny_ar", "--out", str(tmp_path / "found")]
    if code:
        with pytest.raises(SystemExit) as end:
            main(command)
        assert end.value.code == code
    else:
        main(command)
    assert json.loads((tmp_path / "found" / "audit.json").read_text())["passed"] is (not faults)
    assert ("FAIL" in capsys.readouterr().out) is bool(faults)


def test_corruptions_keep_the_context_and_what_they_promise() -> None:
    frames = np.arange(2 * 6, dtype=np.uint8).reshape(2, 6, 1, 1, 1) * np.ones((1, 1, 8, 8, 3), np.uint8) * 10
    kinds = corrupted_clips(frames, 2)
    numbers = {kind: clips[0, :, 0, 0, 0].tolist() for kind, clips in kinds.items()}
    assert all(row[:2] == [0, 10] for row in numbers.values())
    assert numbers["static"] == [0, 10, 10, 10, 10, 10] and numbers["reversed"] == [0, 10, 50, 40, 30, 20]
    assert numbers["ping_pong"] == [0, 10, 20, 30, 20, 10] and numbers["darkened"] == [0, 10, 12, 18, 24, 30]
    assert sorted(numbers["shuffled"]) == [0, 10, 20, 30, 40, 50] and numbers["other_clip"] == [0, 10, 80, 90, 100, 110]
    assert numbers["blurred"] == [0, 10, 20, 30, 40, 50] and len(np.unique(kinds["random"][:, 2:])) > 200
