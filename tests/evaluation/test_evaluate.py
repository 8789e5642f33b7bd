from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rlir_ray.config import WorldConfig
from rlir_ray.data.clips import Clip, ClipAddress
from rlir_ray.data.prompts import PromptSet
from rlir_ray.evaluation import evaluate as evaluate_module
from rlir_ray.evaluation.evaluate import evaluate_policy, evaluate_real, evenly_spaced
from rlir_ray.evaluation.policy_row import evaluate_row
from rlir_ray.evaluation.results import Results, compare, record_ceiling, record_evaluation
from rlir_ray.evaluation.video import contact_strip
from rlir_ray.idm.base import Reading
from rlir_ray.samplers.torch_sampler import TorchSampler
from rlir_ray.spaces.vpt import VPT_CAMERA
from tests.fakes import HEIGHT, WIDTH, tiny_actions, tiny_idm, tiny_prompts, tiny_tokenizer, tiny_world_model
from tests.second_space import SPACE, in_second_space, second_world_model

WORLD = WorldConfig(height=HEIGHT, width=WIDTH, num_context=2, num_frames=3, groups=("forward_back", "jump", "yaw"))
IDMS = {"reward": tiny_idm(0), "judge": tiny_idm(1)}


def tiny_prompt_set(num_prompts: int = 5) -> PromptSet:
    prompts = tuple(tiny_prompts(num_prompts, num_context=2, num_frames=3))
    frames = np.random.default_rng(0).integers(0, 256, (num_prompts, 5, HEIGHT, WIDTH, 3), dtype=np.uint8)
    return PromptSet(prompts=prompts, frames=frames, recorded=tuple(prompt.actions for prompt in prompts))


def evaluate(seed: int = 1, temperature: float = 1.0, prompt_set: PromptSet | None = None, name: str = "base") -> tuple:
    sampler = TorchSampler(tiny_world_model(), temperature=temperature)
    return evaluate_policy(
        sampler,
        prompt_set or tiny_prompt_set(),
        tiny_tokenizer(),
        IDMS,
        WORLD,
        temperature,
        seed,
        name=name,
        num_videos=3,
    )


def test_only_generated_frames_are_judged_against_the_last_commands() -> None:
    prompt_set = tiny_prompt_set()
    evaluation, clips = evaluate(prompt_set=prompt_set)
    judge = evaluation.following["judge"]
    expected = [prompt.actions.classes_of(WORLD.groups)[1:] for prompt in prompt_set.prompts]
    assert np.array_equal(judge.commanded.classes, expected)
    assert judge.recovered.classes.shape == judge.recovered.values.shape == (5, 3, 3)
    assert clips.frames.shape == (3, 5, HEIGHT, WIDTH, 3)
    assert clips.num_context == 2
    assert clips.prompt_ids == ("tiny-0", "tiny-2", "tiny-4")


def test_the_same_seed_gives_the_same_clips_whatever_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluate()
    monkeypatch.setattr(evaluate_module, "CHUNK", 2)
    parts = evaluate()
    # Other batch sizes round differently, by a pixel's last digit.
    assert np.abs(whole[1].frames.astype(int) - parts[1].frames).max() <= 1
    assert parts[0].quality.psnr == pytest.approx(whole[0].quality.psnr, rel=1e-3)
    assert not np.array_equal(whole[1].frames, evaluate(seed=2)[1].frames)


def test_commands_that_were_not_recorded_have_no_real_counterpart() -> None:
    known = tiny_prompt_set()
    other = PromptSet(
        prompts=known.prompts, frames=known.frames, recorded=tuple(tiny_actions(4, 99 + i) for i in range(5))
    )
    quality = evaluate(prompt_set=other)[0].quality
    assert quality.psnr is None and quality.ssim is None
    assert evaluate(prompt_set=known)[0].quality.psnr is not None


def test_the_ceiling_reads_real_and_reconstructed_clips() -> None:
    prompt_set = tiny_prompt_set()
    ceiling, clips = evaluate_real(prompt_set, tiny_tokenizer(), IDMS, WORLD, 1, num_videos=2)
    assert np.array_equal(clips.frames, prompt_set.frames[[0, 4]])
    assert ceiling["real"].quality.psnr is None
    assert ceiling["reconstructed"].quality.psnr is not None
    assert ceiling["real"].quality.mean("brightness") == pytest.approx(prompt_set.frames[:, 2:].mean(), rel=1e-4)


def test_results_survive_the_disk_and_are_compared(tmp_path: Path) -> None:
    record_ceiling(tmp_path, *evaluate_real(tiny_prompt_set(), tiny_tokenizer(), IDMS, WORLD, 1, num_videos=2))
    base, clips = evaluate()
    record_evaluation(tmp_path, base, clips)
    record_evaluation(tmp_path, evaluate(temperature=0.5)[0])
    after, clips = evaluate(seed=2, name="post-trained")
    record_evaluation(tmp_path, after, clips)
    record_evaluation(tmp_path, after, clips)
    results = Results.load(tmp_path)
    assert [(each.name, each.temperature) for each in results.evaluations] == [
        ("base", 1.0),
        ("base", 0.5),
        ("post-trained", 1.0),
    ]
    assert [(each.before_temperature, each.after_temperature) for each in results.comparisons] == [
        (1.0, 1.0),
        (0.5, 1.0),
    ]
    assert results.comparisons[0] == compare(base, after)
    assert results.find("post-trained").to_json() == after.to_json()
    assert sorted(path.name for path in (tmp_path / "videos").glob("*.mp4")) == ["00.mp4", "01.mp4"]
    assert contact_strip(tmp_path, tmp_path / "strip.png").stat().st_size > 0


class SecondReader:
    """Reads gear 2 everywhere, and a steer of bin 6 or, as likely, of bin 8."""

    space = SPACE

    def read(self, frames: torch.Tensor, names: Sequence[str]) -> Reading:
        shape = frames.shape[:2]
        steer = torch.zeros(*shape, 9)
        steer[..., [6, 8]] = 0.5
        tables = {"gear": torch.tensor([0.1, 0.2, 0.7]).expand(*shape, 3), "steer": steer}
        return Reading({name: tables[name] for name in names}, {name: tables[name].argmax(-1) for name in names})


def second_prompt_set() -> PromptSet:
    plain = tiny_prompt_set()
    prompts = tuple(in_second_space(list(plain.prompts)))
    return replace(plain, prompts=prompts, recorded=tuple(prompt.actions for prompt in prompts))


def test_another_space_is_evaluated_alike() -> None:
    world, prompt_set = replace(WORLD, groups=SPACE.names), second_prompt_set()
    evaluation, clips = evaluate_policy(
        TorchSampler(second_world_model(), temperature=1.0),
        prompt_set,
        tiny_tokenizer(),
        {"judge": SecondReader()},  # type: ignore[dict-item]
        world,
        1.0,
        1,
        num_videos=2,
    )
    judge = evaluation.following["judge"]
    commanded = np.stack([prompt.actions.values[1:] for prompt in prompt_set.prompts])
    np.testing.assert_array_equal(judge.commanded.values, commanded)
    assert judge.headline == ("accuracy", "macro_f1", "axis_error", "r2")
    assert judge.accuracy == pytest.approx((commanded[..., 0] == 2).mean())
    # The centres of bins 6 and 8 are 4/9 and 8/9.
    assert judge.axis_error == pytest.approx(np.abs(commanded[..., 1] - 6 / 9).mean() / 2, rel=1e-5)
    assert clips.space == SPACE and clips.commanded.shape == (2, 3, 2)
    assert clips.recovered is not None and clips.recovered[0, 0].tolist() == pytest.approx([2, 6 / 9])
    with pytest.raises(ValueError, match=r"models\.reward_idm must have the action space of the commanded actions"):
        evaluate_real(prompt_set, tiny_tokenizer(), IDMS, world, 1)


def test_pictures_show_the_bin_that_a_mu_law_axis_was_read_in() -> None:
    clips = evaluate()[1]
    centres = VPT_CAMERA.centres(np.arange(11)).astype(np.float32)
    assert clips.recovered is not None and np.isin(clips.recovered[..., 2], centres).all()


def test_a_policys_row_in_another_space_has_figures_of_its_fields() -> None:
    prompt_set = second_prompt_set()
    recorded = [
        Clip(address=ClipAddress("a", number), frames=frames, actions=actions)
        for number, (frames, actions) in enumerate(zip(prompt_set.frames, prompt_set.recorded, strict=True))
    ]
    row = evaluate_row(
        recorded,
        TorchSampler(second_world_model(), temperature=1.0),
        tiny_tokenizer(),
        replace(WORLD, groups=SPACE.names),
        seed=0,
        chunk=2,
        idm=SecondReader(),  # type: ignore[arg-type]
    )
    assert row.num_clips == 5 and row.following is None and row.following_in_use is None
    assert row.fields is not None and set(row.fields["steer"]) == {"accuracy", "macro_f1", "mae", "r2", "within"}
    assert row.fields["steer"]["accuracy"] is None
    gear, steer, empty, header, _ = row.lines()
    assert gear.startswith("gear: accuracy 0.") and steer.startswith("steer: mae 0.") and not empty
    assert header.split() == ["FPS", "PSNR", "SSIM", "LPIPS", "FVD"]
    json.dumps(row.to_json(), allow_nan=False)


def test_no_clip_is_picked_by_its_result() -> None:
    assert evenly_spaced(9, 3) == [0, 4, 8]
    assert evenly_spaced(2, 6) == [0, 1]
    assert evenly_spaced(9, 0) == []
