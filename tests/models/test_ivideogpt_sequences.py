"""iVideoGPT's token sequences and transformer against outputs of the published code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig

from rlir_ray.models.ivideogpt_sequences import NO_LABEL, IvideogptSequences
from rlir_ray.models.ivideogpt_transformer import IvideogptTransformer

FOLDER = Path(__file__).parents[1] / "golden" / "ivideogpt"
FORM = IvideogptSequences(num_context_codes=96, num_codes=64)
NEAR = 1e-4


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(FOLDER / "io.safetensors")


@pytest.fixture(scope="module")
def model() -> IvideogptTransformer:
    settings = json.loads((FOLDER / "transformer" / "config.json").read_text())
    model = IvideogptTransformer(LlamaConfig.from_dict(settings | {"action_size": 4})).eval()
    state = load_file(FOLDER / "transformer" / "model.safetensors")
    model.load_state_dict({name.removeprefix("llm."): value for name, value in state.items()})
    return model


@torch.inference_mode()
def logits_of(model: IvideogptTransformer, ids: Tensor, actions: Tensor) -> Tensor:
    return model.logits(ids, FORM.read_actions(actions), FORM.action_positions(ids.shape[1]))


def test_a_sequence_is_the_published_one_and_gives_its_image_ids_back(golden: dict[str, Tensor]) -> None:
    wanted = golden["tokenize.ids"].long()
    context, frames = FORM.split(wanted)
    found = FORM.sequence(context, frames)
    assert torch.equal(found.input_ids, wanted) and torch.equal(found.labels, golden["tokenize.labels"].long())
    assert torch.equal(found.position_ids, torch.arange(547).expand(2, -1))
    assert (FORM.scf, FORM.sdf, FORM.vocab_size) == (160, 161, 162)
    assert (IvideogptSequences().scf, IvideogptSequences().vocab_size) == (16384, 16386)
    assert bool((wanted[:, FORM.action_positions(547)] == FORM.sdf).all())


def test_a_small_sequence_by_hand() -> None:
    # 10 ids of context frames, 5 of later frames behind them, SCF 15, SDF 16.
    form = IvideogptSequences(tokens_per_context=3, tokens_per_frame=2, num_context_codes=10, num_codes=5)
    context, frames = torch.tensor([[[1, 2, 3], [4, 5, 6]]]), torch.tensor([[[0, 1], [2, 4]]])
    found = form.sequence(context, frames)
    assert found.input_ids.tolist() == [[1, 2, 3, 15, 4, 5, 6, 16, 10, 11, 16, 12, 14]]
    assert found.labels.tolist() == [[NO_LABEL] * 8 + [10, 11, 16, 12, 14]]
    assert form.prompt_length == 8 and form.action_positions(13).tolist() == [7, 10]
    # Actions at the frames 0 to 3: the one at frame 1, the last context frame, leads to the first later frame.
    assert form.read_actions(torch.arange(4.0).view(1, 4, 1)).tolist() == [[[1], [2]]]
    # A single context frame has no SCF.
    single = IvideogptSequences(
        num_context=1, tokens_per_context=3, tokens_per_frame=2, num_context_codes=10, num_codes=5
    )
    found = single.sequence(context[:, :1], frames)
    assert found.input_ids.tolist() == [[1, 2, 3, 16, 10, 11, 16, 12, 14]]
    assert single.split(found.input_ids)[0].tolist() == [[[1, 2, 3]]]
    assert single.read_actions(torch.arange(3.0).view(1, 3, 1)).tolist() == [[[0], [1]]]


def test_drawn_ids_that_are_none_of_a_later_frame_become_the_nearest(golden: dict[str, Tensor]) -> None:
    ids = golden["tokenize.ids"].long().clone()
    ids[:, FORM.prompt_length : FORM.prompt_length + 2] = torch.tensor([3, FORM.sdf])
    assert FORM.split(ids)[1][:, 0, :2].tolist() == [[0, 63], [0, 63]]


def test_logits_and_loss_are_the_published_ones(model: IvideogptTransformer, golden: dict[str, Tensor]) -> None:
    logits = logits_of(model, golden["tokenize.ids"].long(), golden["actions"])
    wanted = golden["forward.logits_last_frames"]
    assert float((logits[:, -wanted.shape[1] :] - wanted).abs().max()) < NEAR
    labels = golden["tokenize.labels"].long()[:, 1:]
    loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten(), ignore_index=NO_LABEL)
    assert float((loss - golden["forward.loss"]).abs()) < NEAR


def test_greedy_frames_are_the_published_ones(model: IvideogptTransformer, golden: dict[str, Tensor]) -> None:
    ids = golden["greedy.ids"].long()
    best = logits_of(model, ids, golden["actions"])[:, FORM.prompt_length - 1 : -1].argmax(-1)
    drawn = torch.arange(33) != 16  # The SDF between the two frames is forced.
    assert torch.equal(best[:, drawn], ids[:, FORM.prompt_length :][:, drawn])


def test_an_action_changes_its_frame_and_those_after_it(model: IvideogptTransformer, golden: dict[str, Tensor]) -> None:
    ids, actions = golden["tokenize.ids"].long(), golden["actions"]
    before = logits_of(model, ids, actions)
    # Row 1 leads to the first later frame, row 2 to the second; rows 0 and 3 to none.
    for row, first in ((0, 547), (1, 513), (2, 530), (3, 547)):
        changed = actions.clone()
        changed[:, row] += 1
        differs = (logits_of(model, ids, changed) != before).any(-1).any(0)
        assert not bool(differs[:first].any()) and bool(differs[first:].all()), row


def test_the_opened_folder_is_the_same_model(
    tmp_path: Path, model: IvideogptTransformer, golden: dict[str, Tensor]
) -> None:
    model.save_pretrained(tmp_path)
    ids = golden["tokenize.ids"].long()
    opened = logits_of(IvideogptTransformer.open(tmp_path), ids, golden["actions"])
    assert torch.equal(opened, logits_of(model, ids, golden["actions"]))


def test_other_shapes_and_ids_are_refused(
    tmp_path: Path, model: IvideogptTransformer, golden: dict[str, Tensor]
) -> None:
    context, frames = FORM.split(golden["tokenize.ids"])
    with pytest.raises(ValueError, match=r"frames of a sequence must be in 0\.\.63, got .*without an offset"):
        FORM.sequence(context, frames + 96)
    with pytest.raises(ValueError, match=r"context of a sequence must be \[2, 2, 256\], got \[2, 1, 256\]"):
        FORM.sequence(context[:, :1], frames)
    with pytest.raises(ValueError, match=r"must have 513 \+ F \* 17 tokens, got 546"):
        FORM.split(golden["tokenize.ids"][:, :-1])
    with pytest.raises(ValueError, match=r"must be \[2, 2, 4\], got \[2, 4, 4\]; give one for each later frame"):
        model.logits(golden["tokenize.ids"].long(), golden["actions"], FORM.action_positions(547))
    with pytest.raises(ValueError, match=r"no transformer in .* \(config.json is missing\)"):
        IvideogptTransformer.open(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match=r"must have action_size in its config.json, got none"):
        IvideogptTransformer.open(tmp_path)
