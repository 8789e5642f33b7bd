"""The token sequences of clips: MineWorld's form by hand, and RLVR-World's against those of the published code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rlir_ray.models.token_sequence import TokenSequence, TokenShape
from rlir_ray.published.rlvr import FORMS
from rlir_ray.spaces.layouts import FieldsLayout, MineworldLayout, RlvrLayout
from rlir_ray.spaces.rlvr import action_bins
from tests.second_space import SPACE

FOLDER = Path(__file__).parents[1] / "golden" / "rlvr_actions"
SETTINGS = json.loads((FOLDER / "config.json").read_text())
MINEWORLD = TokenSequence(layout=MineworldLayout(), shape=TokenShape(100, 2))


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(FOLDER / "io.safetensors")


def action_tokens(actions: Tensor, form: TokenSequence) -> Tensor:
    return torch.from_numpy(action_bins(actions.numpy())) + form.first_action_id


def test_nine_frames_of_48_tokens_are_520_tokens() -> None:
    plain = TokenSequence(layout=MineworldLayout(), shape=TokenShape(512, 48))
    assert plain.length(9) == 9 * 48 + 8 * 11 == 520 and plain.count_frames(520) == 9
    other = TokenSequence(layout=FieldsLayout(SPACE), shape=TokenShape(512, 48))
    assert other.length(9) == 9 * 48 + 8 * 4 == 464
    keyed = TokenSequence(layout=MineworldLayout(), shape=TokenShape(512, 12, 512, 48))
    assert keyed.length(9) == 48 + 9 * 12 + 8 * 11 == 244 and keyed.count_frames(244) == 9


def test_actions_stand_before_the_frame_that_they_lead_into() -> None:
    frames = torch.tensor([[[0, 1], [2, 3], [4, 5]]])
    actions = torch.arange(100, 122).view(1, 2, 11)
    tokens = MINEWORLD.assemble(frames, actions)
    assert tokens.tolist() == [[0, 1, *range(100, 111), 2, 3, *range(111, 122), 4, 5]]
    assert torch.equal(tokens[:, : 2 * 13], MINEWORLD.prefix(frames[:, :2], actions))
    assert tokens[0, MINEWORLD.decision_positions(28, 4)].tolist() == [2, 3, 4, 5]
    assert tokens[0, MINEWORLD.decision_positions(28, 2)].tolist() == [4, 5]


def test_a_keyframe_stands_first_with_ids_of_its_own() -> None:
    form = TokenSequence(layout=MineworldLayout(), shape=TokenShape(100, 2, 50, 3))
    frames, actions = torch.tensor([[[0, 1], [2, 3]]]), torch.arange(150, 161).view(1, 1, 11)
    tokens = form.assemble(frames, actions, torch.tensor([[0, 7, 49]]))
    assert tokens.tolist() == [[100, 107, 149, 0, 1, *range(150, 161), 2, 3]]
    assert tokens[0, form.image_positions(2)].tolist() == [0, 1, 2, 3]
    assert tokens[0, form.decision_positions(18, 2)].tolist() == [2, 3]
    for given in (None, torch.zeros(1, 2)):
        with pytest.raises(ValueError, match=r"keyframes of these sequences must be \[1, 3\], got "):
            form.assemble(frames, actions, given)
    with pytest.raises(ValueError, match=r"keyframes of these sequences must be None, got \[1, 3\]"):
        MINEWORLD.assemble(frames, actions, torch.zeros(1, 3))


def test_a_form_is_read_back_from_its_settings() -> None:
    for form in (*FORMS.values(), MINEWORLD, TokenSequence(layout=FieldsLayout(SPACE), shape=TokenShape(5, 2, 3, 4))):
        again = TokenSequence.of(json.loads(json.dumps(form.settings())))
        assert (again.shape, again.bos_id, again.layout.name) == (form.shape, form.bos_id, form.layout.name)
        assert again.layout.space == form.layout.space
    assert set(MINEWORLD.settings()) == {"vocab_size", "tokens_per_frame"}


def test_a_single_step_sequence_is_the_published_one(golden: dict[str, Tensor]) -> None:
    form, settings = FORMS["single-step"], SETTINGS["single"]
    frames = golden["single.frame_ids"].flatten(2)
    actions = action_tokens(golden["single.actions"], form)[:, :4]
    published = golden["single.input_ids"].long()
    assert torch.equal(form.assemble(frames, actions), published[:, :-1])
    assert bool((published[:, -1] == settings["eos_token_id"]).all())
    prefix = form.prefix(frames[:, :4], actions)
    assert torch.equal(prefix, published[:, : settings["prompt_length"]])
    assert (form.bos_id, form.settings()["vocab_size"]) == (settings["bos_token_id"], settings["vocab_size"])
    decided = form.decision_positions(published.shape[1] - 1, 320)
    assert torch.equal(decided, torch.arange(320) + settings["prompt_length"])
    assert torch.equal(published[:, decided], frames[:, 4].long())
    with pytest.raises(ValueError, match=r"generates one frame a clip, got world\.num_frames=2"):
        form.decision_positions(published.shape[1] - 1, 640)


def test_a_multi_step_sequence_is_the_published_one(golden: dict[str, Tensor]) -> None:
    form, settings = FORMS["multi-step"], SETTINGS["multi"]
    frames = golden["multi.dynamics_ids"]
    actions = action_tokens(golden["multi.actions"], form)[:, 1:]
    published = golden["multi.input_ids"].long()
    found = form.assemble(frames, actions[:, :7], golden["multi.context_ids"][:, 0])
    assert torch.equal(found, published[:, :-13])
    assert torch.equal(published[:, -13:], actions[:, 7])
    assert form.settings()["vocab_size"] == settings["vocab_size"]
    prefix = form.prefix(frames[:, :1], actions[:, :1], golden["multi.context_ids"][:, 0])
    assert torch.equal(prefix, published[:, : settings["prompt_length"]])
    # The published mask is over the answers, with the last action.
    decided = form.decision_positions(found.shape[1], 560) - settings["prompt_length"]
    mask = torch.zeros_like(golden["multi.rl_loss_mask"][0], dtype=torch.bool)
    mask[decided] = True
    assert torch.equal(mask.expand(2, -1), golden["multi.rl_loss_mask"].bool())


@pytest.mark.parametrize("num_decisions", [0, 3, 6])
def test_decisions_that_leave_no_whole_context_are_refused(num_decisions: int) -> None:
    with pytest.raises(ValueError, match="at least one context frame"):
        MINEWORLD.decision_positions(MINEWORLD.length(3), num_decisions)


def test_a_length_of_no_whole_frames_is_refused() -> None:
    for form, text in ((MINEWORLD, r"n \* \(2 \+ 11\) - 11"), (FORMS["multi-step"], r"1280 \+ n \* \(80 \+ 13\) - 13")):
        with pytest.raises(ValueError, match=text):
            form.count_frames(50)
    with pytest.raises(ValueError, match="drop the action that leads into the first frame"):
        MINEWORLD.assemble(torch.zeros(1, 2, 2), torch.zeros(1, 2, 11))


def test_rt1s_layout_is_that_of_both_forms() -> None:
    assert all(isinstance(form.layout, RlvrLayout) for form in FORMS.values())
