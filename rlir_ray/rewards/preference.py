"""A preference head: scores of clips from the frozen features of an inverse dynamics model; its loss and accuracy.

The loss is the Bradley-Terry model with ties of VideoAlign (arXiv 2501.13918), after Rao and Kupper.
Legend: B clips, K frames of a clip, E features of a frame, P pairs, S dimensions (what was judged).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlir_ray.data.digests import checkpoint_digest
from rlir_ray.data.files import Json
from rlir_ray.idm.base import save_model
from rlir_ray.models.checkpoints import check_fit, read_state_dict

# VideoAlign's width of ties: a tie is the most probable judgement if scores differ by less than ln(k - 2 / k) = 1.5.
TIE_WIDTH = 5.0
# Label of a dimension that was not judged.
LEFT_OUT = 22


def ties_loss(first: Tensor, second: Tensor, labels: Tensor, k: float = TIE_WIDTH) -> Tensor:
    """Compute the negative log-likelihood of judgements (VideoAlign, arXiv 2501.13918; KwaiVGI/VideoAlign).

    With the difference d of the scores, better minus worse, a decided pair costs -log σ(d - ln k), and a tie
    -log σ(d - ln k) - log σ(-d - ln k) - ln(k² - 1).

    Args:
        first, second: scores float [P, S].
        labels: int [P, S], 1: the first clip is better, -1: the second, 0: a tie, 22: left out.
        k: width of ties, above 1; at d = 0 a tie has the probability (k - 1) / (k + 1).

    Returns:
        The mean over all P * S judgements; those that are left out count as 0.

    Raises:
        ValueError: k is not above 1, or a label is none of the four.
    """
    if not 1 < k < math.inf:
        raise ValueError(f"the width of ties must be above 1, got {k}; use {TIE_WIDTH}")
    decided, tie, left_out = labels.abs() == 1, labels == 0, labels == LEFT_OUT
    if not bool((decided | tie | left_out).all()):
        raise ValueError(f"labels must be 1, -1, 0 or {LEFT_OUT}, got {sorted(set(labels.flatten().tolist()))}")
    # float32: the logarithms of small probabilities need it.
    difference = (first - second).float()
    better = F.logsigmoid(difference - math.log(k))
    worse = F.logsigmoid(-difference - math.log(k))
    decided_loss = -torch.where(labels == 1, better, worse)
    tie_loss = -better - worse - math.log(k**2 - 1)
    return torch.where(decided, decided_loss, torch.where(tie, tie_loss, torch.zeros_like(better))).mean()


def tie_accuracy(difference: Tensor, labels: Tensor) -> tuple[float, float]:
    """Compute how many judgements differences of scores foretell, as VideoAlign does.

    Args:
        difference: float [P], score of the first clip minus that of the second.
        labels: int [P], 1, -1 or 0 for a tie.

    Returns:
        With ties: the share of right pairs, where differences up to a threshold foretell a tie, at the best threshold.
        Without ties: the share of the decided pairs with the right sign. NaN of no pairs.
    """
    if not len(labels):
        return math.nan, math.nan
    size, right = difference.abs(), difference.sign() == labels
    decided = labels != 0
    # Sorted by size: with n pairs called ties, the right ones are the ties among them and the right others.
    order = size.argsort()
    ties = F.pad((~decided)[order].long().cumsum(0), (1, 0))
    others = F.pad((right & decided)[order].long().cumsum(0), (1, 0))
    found = ties + others[-1] - others
    # Pairs of equal size lie on the same side of every threshold.
    steps = size[order]
    possible = torch.cat([size.new_ones(1) > 0, steps[1:] > steps[:-1], size.new_ones(1) > 0])
    with_ties = float(found[possible].max()) / len(labels)
    return with_ties, float(right[decided].double().mean())


def pool_frames(features: Tensor) -> Tensor:
    """Summarize the features of clips over time, [B, K, E] to float32 [B, 2 E]: mean and standard deviation."""
    features = features.float()
    return torch.cat([features.mean(1), features.std(1, correction=0)], -1)


class PreferenceHead(nn.Module):
    """A linear layer on the pooled features of clips, standardized; one score a dimension.

    Args:
        config: idm (digest of the checkpoint whose features are read), num_features (2 E), dimensions (names), and
            clip (K, H and W of its clips).

    Raises:
        ValueError: the config has other content.
    """

    feature_mean: Tensor
    feature_std: Tensor
    """[2 E] each, over the clips of the training pairs."""
    score_mean: Tensor
    score_std: Tensor
    """[S] each, over all clips of the pairs; `normalized` uses them."""

    def __init__(self, config: Json) -> None:
        super().__init__()
        self.config = {"architecture": "preference", **config}
        if self.config["architecture"] != "preference":
            raise ValueError(f"architecture must be preference, got {config['architecture']!r}")
        self.idm, self.dimensions = str(config["idm"]), tuple(map(str, config["dimensions"]))
        self.clip = tuple(map(int, config["clip"]))
        size, num_scores = int(config["num_features"]), len(self.dimensions)
        # No bias: a difference of scores does not show one. From zero, so that the same pairs give the same head.
        self.linear = nn.Linear(size, num_scores, bias=False)
        nn.init.zeros_(self.linear.weight)
        for name, length in (("feature", size), ("score", num_scores)):
            self.register_buffer(f"{name}_mean", torch.zeros(length))
            self.register_buffer(f"{name}_std", torch.ones(length))

    def forward(self, pooled: Tensor) -> Tensor:
        """Score pooled features, [B, 2 E] to [B, S]; higher is better."""
        scores: Tensor = self.linear((pooled - self.feature_mean) / self.feature_std)
        return scores

    def normalized(self, pooled: Tensor) -> Tensor:
        """Return one score a clip, [B, 2 E] to [B]: the sum of the dimensions, each normalized, as VideoAlign does."""
        scores: Tensor = (self(pooled) - self.score_mean) / self.score_std
        return scores.sum(-1)

    @torch.no_grad()
    def fit_features(self, pooled: Tensor) -> None:
        """Standardize features by those of the training clips, [B, 2 E]; a constant feature keeps its scale."""
        std = pooled.std(0, correction=0)
        self.feature_mean.copy_(pooled.mean(0))
        self.feature_std.copy_(torch.where(std > 1e-6, std, 1))

    @torch.no_grad()
    def fit_scores(self, pooled: Tensor) -> None:
        """Normalize scores by those of clips [B, 2 E].

        Raises:
            ValueError: all clips have the same score.
        """
        scores = self(pooled)
        std = scores.std(0, correction=0)
        if not bool((std > 0).all()):
            raise ValueError(
                f"a preference head must tell clips apart, got the same score for all {len(pooled)}; the features do "
                "not show what was judged: give another inverse dynamics model, or other pairs"
            )
        self.score_mean.copy_(scores.mean(0))
        self.score_std.copy_(std)

    def check_idm(self, folder: Path | str) -> None:
        """Check that a checkpoint is the inverse dynamics model that the head was trained with.

        Raises:
            ValueError: it is another one.
        """
        found = checkpoint_digest(Path(folder))
        if found != self.idm:
            raise ValueError(
                f"a preference head must read the inverse dynamics model that it was trained with, {self.idm}, got "
                f"{found} in {folder}; name that model, or train the head again"
            )

    def save_pretrained(self, path: str | Path) -> None:
        """Write config.json and model.safetensors into the folder `path`."""
        save_model(self, self.config, path)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Self:
        """Open a folder that `save_pretrained` wrote, in evaluation mode on the CPU.

        Raises:
            ValueError: the folder holds no preference head, or the weights do not fit its config or are not finite.
        """
        try:
            head = cls(json.loads((Path(path) / "config.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise ValueError(
                f"a preference head must be a folder that `pretrain preference` wrote, got {type(error).__name__} at "
                f"{path}; check the path"
            ) from None
        state = read_state_dict(Path(path) / "model.safetensors")
        check_fit(head.state_dict(), state, f"the preference head in {path}")
        head.load_state_dict(state)
        return head.eval()
