"""RLVR-World's token sequences against those of the published code, at the published sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rlir_ray.models.rlvr_sequences import NO_LABEL, MultiStep, SingleStep, TokenSequence
from rlir_ray.spaces.rlvr import action_bins

FOLDER = Path(__file__).parents[1] / "golden" / "rlvr_actions"
SETTINGS = json.loads((FOLDER / "config.json").read_text())


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(FOLDER / "io.safetensors")


def bins_of(actions: Tensor) -> Tensor:
    return torch.from_numpy(action_bins(actions.numpy()))


def check(found: TokenSequence, golden: dict[str, Tensor], form: str) -> None:
    for name, value in found._asdict().items():
        assert value.dtype == torch.int64 and torch.equal(value, golden[f"{form}.{name}"].long()), name
    assert bool((golden[f"{form}.attention_mask"] == 1).all())


def test_a_single_step_sequence_is_the_published_one(golden: dict[str, Tensor]) -> None:
    form, settings = SingleStep(), SETTINGS["single"]
    found = form.sequence(golden["single.frame_ids"].flatten(2), bins_of(golden["single.actions"])[:, :4])
    check(found, golden, "single")
    assert (form.bos, form.eos, form.vocab_size) == (4631, 4632, 4633)
    assert (form.prompt_length, form.answer_length) == (settings["prompt_length"], settings["response_length"])
    assert bool((found.input_ids[:, form.prompt_length - 1] == form.bos).all())
    assert found.labels[0].ne(NO_LABEL).sum() == 322
    assert torch.equal(form.decisions().expand(2, -1), golden["single.rl_response_mask"].bool())


def test_a_multi_step_sequence_is_the_published_one(golden: dict[str, Tensor]) -> None:
    form, settings = MultiStep(), SETTINGS["multi"]
    bins = bins_of(golden["multi.actions"])[:, 1:]
    found = form.sequence(golden["multi.context_ids"][:, 0], golden["multi.dynamics_ids"], bins)
    check(found, golden, "multi")
    assert torch.equal(bins + 8750, golden["multi.action_ids"].long())
    assert torch.equal(found.input_ids[:, :1280], golden["multi.context_ids_offset"][:, 0].long())
    assert form.vocab_size == settings["vocab_size"]
    assert (form.prompt_length, form.answer_length) == (settings["prompt_length"], settings["response_length"])
    assert found.labels[0].ne(NO_LABEL).sum() == 560
    # Row 1 of the answers holds an EOS that was sampled early.
    assert bool((golden["multi.rl_response"][1] == settings["eos_token_id"]).any())
    assert torch.equal(form.decisions().expand(2, -1), golden["multi.rl_loss_mask"].bool())


def test_small_sequences_by_hand() -> None:
    # 10 image ids, actions from 10 on, BOS 266, EOS 267.
    single = SingleStep(num_context=1, tokens_per_frame=2, num_codes=10)
    found = single.sequence(torch.tensor([[[1, 2], [3, 4]]]), torch.arange(13)[None, None])
    assert found.input_ids.tolist() == [[1, 2, *range(10, 23), 266, 3, 4, 267]]
    assert found.labels.tolist() == [[NO_LABEL] * 15 + [266, 3, 4, 267]]
    # 10 image ids, 10 of the context, actions from 20 on.
    multi = MultiStep(num_frames=2, tokens_per_context=3, tokens_per_frame=1, num_codes=10)
    found = multi.sequence(torch.tensor([[7, 8, 9]]), torch.tensor([[[5], [6]]]), torch.arange(26).view(1, 2, 13))
    assert found.input_ids.tolist() == [[17, 18, 19, 5, *range(20, 33), 6, *range(33, 46)]]
    assert found.labels.tolist() == [[NO_LABEL] * 17 + [6] + [NO_LABEL] * 13]


def test_other_shapes_and_ids_are_refused(golden: dict[str, Tensor]) -> None:
    frames, bins = golden["single.frame_ids"].flatten(2), bins_of(golden["single.actions"])
    with pytest.raises(ValueError, match=r"bins of a sequence must be \[2, 4, 13\], got \[2, 5, 13\]"):
        SingleStep().sequence(frames, bins)
    with pytest.raises(ValueError, match=r"frames of a sequence must be in 0\.\.4374, got 4375\.\."):
        SingleStep().sequence(frames + 4375, bins[:, :4])
    with pytest.raises(ValueError, match=r"context of a sequence must be in 0\.\.4374, got .*without an offset"):
        MultiStep().sequence(
            golden["multi.context_ids_offset"][:, 0],
            golden["multi.dynamics_ids"],
            bins_of(golden["multi.actions"])[:, 1:],
        )
