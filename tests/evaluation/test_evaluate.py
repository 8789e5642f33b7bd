from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rlir_ray.config import WorldConfig
from rlir_ray.data.prompts import PromptSet
from rlir_ray.evaluation import evaluate as evaluate_module
from rlir_ray.evaluation.evaluate import evaluate_policy, evaluate_real, evenly_spaced
from rlir_ray.evaluation.results import Results, compare, record_ceiling, record_evaluation
from rlir_ray.evaluation.video import contact_strip
from rlir_ray.samplers.torch_sampler import TorchSampler
from rlir_ray.spaces.actions import group_classes
from tests.fakes import HEIGHT, WIDTH, tiny_actions, tiny_idm, tiny_prompts, tiny_tokenizer, tiny_world_model

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
    expected = [group_classes(prompt.actions, WORLD.groups)[1:] for prompt in prompt_set.prompts]
    assert np.array_equal(judge.commanded, expected)
    assert judge.recovered.shape == (5, 3, 3)
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


def test_no_clip_is_picked_by_its_result() -> None:
    assert evenly_spaced(9, 3) == [0, 4, 8]
    assert evenly_spaced(2, 6) == [0, 1]
    assert evenly_spaced(9, 0) == []
