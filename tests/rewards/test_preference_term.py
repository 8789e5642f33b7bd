"""The term `preference` as a run builds it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from rlir_ray.config import Config
from rlir_ray.data.digests import checkpoint_digest
from rlir_ray.families import cells_of, open_codec
from rlir_ray.idm.base import load_frame_reader
from rlir_ray.rewards.base import Reward, RewardContext
from rlir_ray.rewards.construction import open_reward
from rlir_ray.rewards.preference import PreferenceHead, pool_frames
from rlir_ray.rewards.preference_term import PreferenceTerm
from rlir_ray.rewards.term import GroupClips
from rlir_ray.run.folder import RunFolder
from rlir_ray.run.resolved import resolve
from rlir_ray.testing import check_reward, check_reward_term, sample_actions, sample_videos
from tests.fakes import HEIGHT, WIDTH
from tests.world import MakeConfig

CLIP = [4, HEIGHT, WIDTH]


def random_clips(num_clips: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num_clips, *CLIP, 3), dtype=torch.uint8, generator=generator)


def saved_head(folder: Path, idm: Path, clip: list[int] = CLIP) -> PreferenceHead:
    """A head of random weights, normalized by random clips."""
    config = {"idm": checkpoint_digest(idm), "num_features": 64, "dimensions": ["motion", "picture"], "clip": clip}
    head = PreferenceHead(config)
    with torch.no_grad():
        head.linear.weight.normal_(generator=torch.Generator().manual_seed(0))
        pooled = pool_frames(load_frame_reader(idm).frame_features(random_clips(8)))
    head.fit_features(pooled)
    head.fit_scores(pooled)
    head.save_pretrained(folder)
    return head


def reward_of(config: Config) -> Reward:
    context = RewardContext(
        config=config,
        device="cpu",
        class_shares=None,
        open_codec=partial(open_codec, config),
        cells=cells_of(config),
    )
    return open_reward(context)


def test_a_run_gives_each_frame_of_a_clip_its_score(make_config: MakeConfig, tmp_path: Path) -> None:
    idm = Path(make_config().models.reward_idm)
    saved_head(tmp_path / "head", idm)
    terms = f"[{{name: inverse}}, {{name: preference, weight: 0.5, args: {{head: {tmp_path}/head}}}}]"
    reward, alone = (
        reward_of(make_config(f"reward.terms={named}"))
        for named in (terms, f"[{{name: preference, args: {{head: {tmp_path}/head}}}}]")
    )
    videos = sample_videos(num_groups=2)
    check_reward(alone, videos)
    both, scored = reward.score(videos)[0], alone.score(videos)[0].frame_rewards
    assert scored.shape == (3, 3) and (scored == scored[:, :1]).all() and np.ptp(scored[:, 0]) > 0.1
    np.testing.assert_allclose(both.frame_rewards, both.terms["inverse"] + 0.5 * scored, atol=1e-5)


def test_scores_are_the_heads_normalized_ones(make_config: MakeConfig, tmp_path: Path) -> None:
    idm = Path(make_config().models.reward_idm)
    head = saved_head(tmp_path, idm)
    clips = GroupClips(frames=random_clips(8), num_context=1, actions=sample_actions(3))
    term = PreferenceTerm(head, load_frame_reader(idm))
    check_reward_term(term)
    scores = term.score(clips)
    # Of the clips that it was normalized by: the mean 0; two dimensions of standard deviation 1.
    assert scores.shape == (8, 3) and float(scores.mean()) == pytest.approx(0, abs=1e-5)
    with torch.no_grad():
        found = head(pool_frames(load_frame_reader(idm).frame_features(clips.frames)))
    expected = ((found - found.mean(0)) / found.std(0, correction=0)).sum(-1)
    torch.testing.assert_close(scores[:, 0], expected, atol=1e-4, rtol=0)


def test_a_relative_path_of_a_head_is_made_absolute(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    terms = "[{name: inverse}, {name: preference, args: {head: work/head}}, {name: recorded, args: {error: mse}}]"
    reward = resolve(make_config(f"reward.terms={terms}")).config.reward
    assert [term.args for term in reward.terms] == [{}, {"head": f"{tmp_path}/work/head"}, {"error": "mse"}]
    alone = make_config("reward.name=preference", "reward.args.head=head")
    assert resolve(alone).config.reward.args == {"head": f"{tmp_path}/head"}
    # A whole reward of one's own, and a term that only another environment can import, stay as they are.
    own = make_config("reward.name=docs.examples.reward:Brightness", "reward.args.target=0.6")
    assert resolve(own).config.reward == own.reward
    other = make_config(
        "reward.terms=[{name: 'elsewhere:Scorer', args: {head: head}, runtime_env: {py_executable: x}}]"
    )
    assert resolve(other).config.reward == other.reward


@pytest.mark.parametrize("beside", ["", "{name: inverse}, "], ids=["alone", "beside inverse"])
def test_a_run_does_not_resume_with_another_head(beside: str, make_config: MakeConfig, tmp_path: Path) -> None:
    head = tmp_path / "head"
    saved_head(head, Path(make_config().models.reward_idm))
    terms = f"reward.terms=[{beside}{{name: preference, args: {{head: {head}}}}}]"
    config = make_config(terms, f"run.dir={tmp_path}", "run.name=run")
    RunFolder(config).begin().log_step({"step": 1})
    RunFolder(config)
    weights = head / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")
    with pytest.raises(ValueError, match=r"exists with another config \(reward.terms.preference.head differs\)"):
        RunFolder(config)


def test_heads_of_other_models_and_other_clips_are_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config()
    saved_head(tmp_path / "judge", Path(config.models.judge_idm))
    saved_head(tmp_path / "long", Path(config.models.reward_idm), clip=[9, HEIGHT, WIDTH])
    for name, message in (
        ("judge", r"must read the inverse dynamics model that it was trained with, .* got .*/reward_idm; name that"),
        ("long", r"of 9 frames of 24x32, got world\.\* of 4 frames of 24x32 with .*/long; train a head"),
        ("none", r"must be a folder that `pretrain preference` wrote, got FileNotFoundError at .*/none; check"),
    ):
        with pytest.raises(ValueError, match=message) as refusal:
            reward_of(make_config(f"reward.terms=[{{name: preference, args: {{head: {tmp_path}/{name}}}}}]"))
        assert "\n" not in str(refusal.value)
    with pytest.raises(ValueError, match=r"reward.name=preference must take the arguments that reward gives it, got"):
        reward_of(make_config("reward.name=preference"))
