"""The log-probabilities and the folder of the autoregressive world model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rlir_ray.models.autoregressive import WorldModel
from rlir_ray.models.token_sequence import TokenSequence, TokenShape
from rlir_ray.spaces.layouts import MineworldLayout
from rlir_ray.spaces.mineworld import TOKENS_PER_ACTION, action_tokens
from rlir_ray.spaces.vpt import VPT_SPACE
from tests.fakes import NUM_CODES, TOKENS_PER_FRAME, image_tokens, tiny_actions, tiny_world_model
from tests.second_space import LAYOUT, SPACE, second_actions, second_world_model

SEQUENCE = TokenSequence(layout=MineworldLayout(), shape=TokenShape(NUM_CODES, TOKENS_PER_FRAME))


def random_tokens(num_sequences: int, num_frames: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(NUM_CODES, (num_sequences, num_frames, TOKENS_PER_FRAME), generator=generator)
    actions = torch.from_numpy(action_tokens(tiny_actions(num_frames - 1, seed), NUM_CODES))
    return SEQUENCE.assemble(frames, actions.expand(num_sequences, -1, -1))


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
    tokens = model.sequence.assemble(frames, actions)
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
