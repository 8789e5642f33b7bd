"""The sequence layout, the log-probabilities and the folder of the autoregressive world model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rlir_ray.models.autoregressive import (
    WorldModel,
    assemble,
    count_frames,
    decision_positions,
    sequence_length,
)
from rlir_ray.spaces.mineworld import TOKENS_PER_ACTION, action_tokens
from rlir_ray.spaces.vpt import VPT_SPACE
from tests.fakes import NUM_CODES, TOKENS_PER_FRAME, image_tokens, tiny_actions, tiny_world_model
from tests.second_space import LAYOUT, SPACE, second_actions, second_world_model


def random_tokens(num_sequences: int, num_frames: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(NUM_CODES, (num_sequences, num_frames, TOKENS_PER_FRAME), generator=generator)
    actions = torch.from_numpy(action_tokens(tiny_actions(num_frames - 1, seed), NUM_CODES))
    return assemble(frames, actions.expand(num_sequences, -1, -1))


def test_nine_frames_of_48_tokens_are_520_tokens() -> None:
    assert sequence_length(9, 48, 11) == 9 * 48 + 8 * 11 == 520
    assert count_frames(520, 48, 11) == 9
    assert sequence_length(9, 48, 4) == 9 * 48 + 8 * 4 == 464


def test_actions_stand_before_the_frame_that_they_lead_into() -> None:
    frames = torch.tensor([[0, 1], [2, 3], [4, 5]])
    actions = torch.arange(100, 122).view(2, 11)
    assert assemble(frames, actions).tolist() == [0, 1, *range(100, 111), 2, 3, *range(111, 122), 4, 5]


def test_decisions_are_image_tokens_of_generated_frames_only() -> None:
    frames, actions = torch.arange(6).view(3, 2), torch.full((2, 11), 99)
    tokens = assemble(frames, actions)
    assert tokens[decision_positions(len(tokens), 4, 2, 11)].tolist() == [2, 3, 4, 5]
    assert tokens[decision_positions(len(tokens), 2, 2, 11)].tolist() == [4, 5]


def test_frames_and_actions_of_a_sequence_assemble_to_it_again() -> None:
    tokens = random_tokens(2, 4)
    again = image_tokens(tokens, TOKENS_PER_FRAME)
    assert again.shape == (2, 4, TOKENS_PER_FRAME)
    assert torch.equal(assemble(again, action_rows(tokens, 4)), tokens)


def action_rows(tokens: torch.Tensor, num_frames: int) -> torch.Tensor:
    blocks = tokens[:, TOKENS_PER_FRAME:].unflatten(1, (num_frames - 1, TOKENS_PER_FRAME + TOKENS_PER_ACTION))
    return blocks[..., :TOKENS_PER_ACTION]


@pytest.mark.parametrize("num_decisions", [0, 5, 3 * TOKENS_PER_FRAME])
def test_decisions_that_leave_no_whole_context_are_refused(num_decisions: int) -> None:
    with pytest.raises(ValueError, match="at least one context frame"):
        decision_positions(sequence_length(3, TOKENS_PER_FRAME, 11), num_decisions, TOKENS_PER_FRAME, 11)


def test_a_length_of_no_whole_frames_is_refused() -> None:
    with pytest.raises(ValueError, match="share one tokenizer"):
        count_frames(50, 12, 11)


def test_logprobs_equal_the_plain_llama_softmax_over_image_ids() -> None:
    model, tokens = tiny_world_model(), random_tokens(2, 3)
    with torch.no_grad():
        logits = model.llama(input_ids=tokens).logits[..., :NUM_CODES] / 0.7
        # The frame after the context, then the last one: 12 image tokens each, 11 action tokens before each.
        positions = [*range(23, 35), *range(46, 58)]
        table = logits.log_softmax(-1)
        expected = torch.stack([table[:, p - 1].gather(1, tokens[:, p, None])[:, 0] for p in positions], 1)
        torch.testing.assert_close(model(tokens, 24, 0.7), expected, atol=1e-5, rtol=0)


def test_probabilities_of_all_image_tokens_sum_to_one() -> None:
    model, tokens = tiny_world_model(), random_tokens(1, 2).repeat(NUM_CODES, 1)
    tokens[:, -1] = torch.arange(NUM_CODES)
    with torch.no_grad():
        total = model(tokens, TOKENS_PER_FRAME, 1.3)[:, -1].exp().sum()
    assert float(total) == pytest.approx(1, abs=1e-5)


def test_a_decision_depends_on_the_action_before_it_and_not_on_the_one_after() -> None:
    model, tokens = tiny_world_model(), random_tokens(1, 3)
    changed = tokens.clone()
    second_action = slice(2 * TOKENS_PER_FRAME + TOKENS_PER_ACTION, 2 * (TOKENS_PER_FRAME + TOKENS_PER_ACTION))
    changed[:, second_action] = NUM_CODES
    with torch.no_grad():
        difference = (model(tokens, 24) - model(changed, 24)).abs()[0]
    assert float(difference[:12].max()) < 1e-6 < float(difference[12:].max())


def test_saved_folder_opens_with_plain_transformers_and_scores_alike(tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    model, tokens = tiny_world_model(), random_tokens(1, 2)
    model.save_pretrained(tmp_path)
    again = WorldModel.from_pretrained(tmp_path)
    assert (again.tokens_per_frame, again.num_codes) == (TOKENS_PER_FRAME, NUM_CODES)
    assert isinstance(LlamaForCausalLM.from_pretrained(tmp_path, local_files_only=True), LlamaForCausalLM)
    with torch.no_grad():
        assert torch.equal(again(tokens, TOKENS_PER_FRAME), model(tokens, TOKENS_PER_FRAME))


def test_a_folder_without_tokens_per_frame_is_refused_until_told(tmp_path: Path) -> None:
    model = tiny_world_model()
    del model.config.tokens_per_frame
    model.llama.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="tokens_per_frame"):
        WorldModel.from_pretrained(tmp_path)
    assert WorldModel.from_pretrained(tmp_path, tokens_per_frame=7).tokens_per_frame == 7


def test_a_model_of_another_space_keeps_it_in_its_folder(tmp_path: Path) -> None:
    model = second_world_model()
    model.save_pretrained(tmp_path)
    again = WorldModel.from_pretrained(tmp_path)
    assert again.layout.space == SPACE and again.layout.name == "fields"
    assert (again.num_codes, again.config.vocab_size) == (NUM_CODES, NUM_CODES + 14)
    frames = torch.randint(NUM_CODES, (1, 3, TOKENS_PER_FRAME), generator=torch.Generator().manual_seed(0))
    actions = torch.from_numpy(LAYOUT.tokens(second_actions(2), NUM_CODES))[None]
    tokens = assemble(frames, actions)
    assert tokens.shape == (1, 3 * TOKENS_PER_FRAME + 2 * 4)
    assert torch.equal(image_tokens(tokens, TOKENS_PER_FRAME, 4), frames)
    with torch.no_grad():
        assert torch.equal(again(tokens, 24), model(tokens, 24))
    with pytest.raises(ValueError, match="share one tokenizer and one action space"):
        again(random_tokens(1, 3), 24)


def test_a_model_of_mineworlds_layout_states_no_space() -> None:
    model = tiny_world_model()
    assert model.layout.space == VPT_SPACE and not hasattr(model.config, "action_space")


def test_gradients_reach_every_weight_that_decides() -> None:
    model = tiny_world_model()
    model(random_tokens(2, 3), 24).sum().backward()
    missing = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert missing == []
