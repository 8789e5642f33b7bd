"""The loss and the accuracy of preferences, and the saved head."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlir_ray.data.digests import checkpoint_digest
from rlir_ray.rewards.preference import LEFT_OUT, PreferenceHead, pool_frames, tie_accuracy, ties_loss
from tests.fakes import tiny_idm

GOLDEN = Path(__file__).parents[1] / "golden/objectives"


def tiny_head(idm: str = "0" * 16, dimensions: tuple[str, ...] = ("motion", "picture")) -> PreferenceHead:
    """A head of three features, whose weights are 1 2 3 and 0 0 1."""
    head = PreferenceHead({"idm": idm, "num_features": 3, "dimensions": list(dimensions), "clip": [4, 24, 32]})
    with torch.no_grad():
        head.linear.weight.copy_(torch.tensor([[1.0, 2, 3], [0, 0, 1]])[: len(dimensions)])
    return head


def test_loss_and_gradients_equal_videoaligns() -> None:
    golden = load_file(GOLDEN / "io.safetensors")
    first, second = (golden[f"ties.reward_{name}"].requires_grad_() for name in "ab")
    loss = ties_loss(first, second, golden["ties.label"], k=5)
    loss.backward()
    torch.testing.assert_close(loss.detach(), golden["ties.btt.loss"], atol=1e-6, rtol=0)
    for scores, name in ((first, "a"), (second, "b")):
        torch.testing.assert_close(scores.grad, golden[f"ties.btt.grad_{name}"], atol=1e-6, rtol=0)


def test_accuracies_equal_videoaligns() -> None:
    golden = load_file(GOLDEN / "io.safetensors")
    facts = json.loads((GOLDEN / "config.json").read_text())["ties"]
    found = tie_accuracy(golden["ties.acc_model"], golden["ties.acc_human"])
    assert found == pytest.approx((facts["accuracy_with_ties"], facts["accuracy_without_ties"]), abs=1e-9)


def test_equal_scores_make_a_tie_as_probable_as_k_says() -> None:
    scores = torch.zeros(1, 1)
    # (k - 1) / (k + 1) = 2 / 3; the decided judgements share the rest.
    for label, probability in ((0, 2 / 3), (1, 1 / 6), (-1, 1 / 6)):
        assert float(ties_loss(scores, scores, torch.tensor([[label]]))) == pytest.approx(-math.log(probability))


def test_a_judgement_that_is_left_out_counts_in_the_mean_and_has_no_gradient() -> None:
    first = torch.tensor([[1.0, 4.0]], requires_grad=True)
    loss = ties_loss(first, torch.zeros(1, 2), torch.tensor([[1, LEFT_OUT]]))
    loss.backward()
    # -log σ(1 - ln 5) = log(1 + 5 / e) = 1.0435, over two judgements.
    assert loss.item() == pytest.approx(math.log(1 + 5 / math.e) / 2)
    assert first.grad is not None and first.grad[0, 0] != 0 and first.grad[0, 1] == 0


def test_labels_and_widths_without_a_meaning_are_refused() -> None:
    scores = torch.zeros(1, 1)
    with pytest.raises(ValueError, match=r"labels must be 1, -1, 0 or 22, got \[2\]"):
        ties_loss(scores, scores, torch.tensor([[2]]))
    with pytest.raises(ValueError, match=r"the width of ties must be above 1, got 1\.0"):
        ties_loss(scores, scores, torch.tensor([[0]]), k=1.0)


def test_the_threshold_of_ties_does_not_part_pairs_of_equal_size() -> None:
    labels = torch.tensor([0, 1, -1, 1])
    # Sizes 1 1 2 3: a threshold of 1 calls both first ones ties, one of them rightly: 1 + 2 right of 4, as without.
    with_ties, without = tie_accuracy(torch.tensor([1.0, -1.0, -2.0, 3.0]), labels)
    assert (with_ties, without) == (0.75, pytest.approx(2 / 3))
    # Sizes 1 1.5 2 3: a threshold between the first two calls the tie alone a tie.
    assert tie_accuracy(torch.tensor([1.0, 1.5, -2.0, 3.0]), labels) == (1.0, 1.0)
    # No sign is right for a tie, and none wrong: all four are called ties.
    assert tie_accuracy(torch.tensor([1.0, 1.0]), torch.tensor([0, 0]))[0] == 1.0
    assert all(map(math.isnan, tie_accuracy(torch.zeros(0), torch.zeros(0))))


def test_clips_are_pooled_to_mean_and_standard_deviation() -> None:
    features = torch.tensor([[[1.0, 5.0], [3.0, 5.0]]])
    assert pool_frames(features).tolist() == [[2.0, 5.0, 1.0, 0.0]]


def test_scores_are_normalized_by_dimension_and_summed() -> None:
    head = tiny_head()
    pooled = torch.tensor([[0.0, 0, 0], [1, 0, 2], [2, 0, 1]])
    # Scores 0 7 5 and 0 2 1: means 4 and 1, variances 26/3 and 2/3.
    head.fit_scores(pooled)
    expected = [
        -4 / (26 / 3) ** 0.5 - 1 / (2 / 3) ** 0.5,
        3 / (26 / 3) ** 0.5 + 1 / (2 / 3) ** 0.5,
        1 / (26 / 3) ** 0.5,
    ]
    assert head.normalized(pooled).tolist() == pytest.approx(expected, rel=1e-5)


def test_features_are_standardized_and_constant_ones_keep_their_scale() -> None:
    head = tiny_head()
    head.fit_features(torch.tensor([[1.0, 7.0, 0.0], [5.0, 7.0, 4.0]]))
    assert head.feature_mean.tolist() == [3, 7, 2] and head.feature_std.tolist() == [2, 1, 2]
    # (5 - 3) / 2 + 2 (8 - 7) + 3 (0 - 2) / 2 = 0 and (0 - 2) / 2 = -1.
    assert head(torch.tensor([[5.0, 8.0, 0.0]])).tolist() == [[0, -1]]


def test_equal_scores_of_all_clips_are_refused() -> None:
    with pytest.raises(ValueError, match="must tell clips apart, got the same score for all 2"):
        tiny_head().fit_scores(torch.ones(2, 3))


def test_a_saved_head_scores_as_before(tmp_path: Path) -> None:
    head, pooled = tiny_head(), torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    head.fit_features(pooled)
    head.fit_scores(pooled)
    head.save_pretrained(tmp_path)
    loaded = PreferenceHead.from_pretrained(tmp_path)
    assert torch.equal(loaded.normalized(pooled), head.normalized(pooled))
    assert (loaded.idm, loaded.dimensions, loaded.clip) == (head.idm, ("motion", "picture"), (4, 24, 32))


def test_a_folder_without_a_fitting_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be a folder that `pretrain preference` wrote, got FileNotFoundError"):
        PreferenceHead.from_pretrained(tmp_path / "none")
    tiny_idm().save_pretrained(tmp_path / "idm")
    with pytest.raises(ValueError, match="must be a folder that `pretrain preference` wrote, got ValueError"):
        PreferenceHead.from_pretrained(tmp_path / "idm")
    tiny_head().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({**weights, "score_std": torch.tensor([1.0, math.nan])}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="must be finite, got NaN or infinity in score_std"):
        PreferenceHead.from_pretrained(tmp_path)
    save_file(weights, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_features": 4}))
    with pytest.raises(ValueError, match=r"must fit its config, got 3 of another shape: .*linear\.weight \[2, 3\]"):
        PreferenceHead.from_pretrained(tmp_path)


def test_another_inverse_dynamics_model_is_refused(tmp_path: Path) -> None:
    for seed in range(2):
        tiny_idm(seed).save_pretrained(tmp_path / str(seed))
    head = tiny_head(checkpoint_digest(tmp_path / "0"))
    head.check_idm(tmp_path / "0")
    with pytest.raises(ValueError, match=f"that it was trained with, {head.idm}, got .* in {tmp_path}/1; name that"):
        head.check_idm(tmp_path / "1")
