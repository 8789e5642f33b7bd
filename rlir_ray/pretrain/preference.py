"""Training of a preference head on pairs of clips that people compared.

The features of all clips are computed once; then the head, a linear layer, trains in seconds.
Legend: P pairs, S dimensions (what was judged), E features of a frame.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rlir_ray.config import asset_path
from rlir_ray.data.digests import checkpoint_digest
from rlir_ray.data.files import Json
from rlir_ray.data.preference_pairs import PreferencePair, ReadPairs, read_pairs, split_pairs
from rlir_ray.idm.base import load_frame_reader
from rlir_ray.pretrain.arguments import Chosen
from rlir_ray.pretrain.loop import open_device, train
from rlir_ray.pretrain.settings import PreferenceTraining
from rlir_ray.pretrain.state import finished_report
from rlir_ray.pretrain.task import Autocast, Every, Length, Progress, Task, cosine_rate
from rlir_ray.rewards.preference import LEFT_OUT, PreferenceHead, pool_frames, tie_accuracy, ties_loss
from rlir_ray.run.progress import figure_words

if TYPE_CHECKING:
    import numpy.typing as npt

logger = logging.getLogger(__name__)

CURVE_STEPS, SAVE_SECONDS = 100, 60.0


def train_preference(path: Path, out_dir: Path, settings: PreferenceTraining) -> Json:
    """Train a head and write config.json, model.safetensors, training.json and curve.jsonl.

    Resume from the last saved state, and leave a finished training as it is.

    Args:
        path: file of the pairs, see `data.preference_pairs`.
        out_dir: receives the head.
        settings: see `PreferenceTraining`.

    Returns:
        The content of training.json: `dimensions`, name -> the figures of `held_out_figures` and the `mean` and `std`
        of the clips' scores, which the reward normalizes with; the numbers of pairs; `shares_clips`, whether held-out
        pairs have clips of training pairs.

    Raises:
        ValueError: the pairs or the inverse dynamics model cannot be read, there are too few pairs, or the folder
            holds a state or a training of other settings.
    """
    report = finished_report(out_dir, settings)
    return train(PreferenceTask(read_features(path, settings), settings), out_dir) if report is None else report


def read_features(path: Path, settings: PreferenceTraining) -> ReadPairs[Tensor]:
    """Read the pairs of a file, and the pooled features float32 [2 E] of their clips, on the CPU."""
    device = open_device(settings.device)
    model = load_frame_reader(asset_path(settings.idm)).to(device)

    @torch.no_grad()
    def features(frames: npt.NDArray[np.uint8]) -> Tensor:
        return pool_frames(model.frame_features(torch.from_numpy(frames)[None].to(device)))[0].cpu()

    logger.info("reading the clips of %s", path)
    return read_pairs(path, features)


class PreferenceTask(Task):
    """Training task: a head on pairs of pooled features."""

    name = "preference head"
    model: PreferenceHead

    def __init__(self, read: ReadPairs[Tensor], settings: PreferenceTraining) -> None:
        dimensions = sorted({pair.dimension for pair in read.pairs})
        self.split = split_pairs(read.pairs, settings.validation_share, settings.seed)
        _check_decided(self.split.train, dimensions)
        if self.split.shares_clips:
            logger.warning(
                "held-out pairs have clips of training pairs, because pairs join all clips: the held-out accuracy may "
                "be too high; add pairs of other clips"
            )
        order = {clip: row for row, clip in enumerate(read.clips)}
        self.pooled = torch.stack(list(read.clips.values()))  # [clips, 2 E]
        self.train_pairs, self.held_out = (
            _tables(pairs, order, dimensions) for pairs in (self.split.train, self.split.validation)
        )
        config = {
            "idm": checkpoint_digest(asset_path(settings.idm)),
            "num_features": self.pooled.shape[1],
            "dimensions": dimensions,
            "clip": list(read.shape),
        }
        model = PreferenceHead(config)
        model.fit_features(self.pooled[self.train_pairs[0].unique()])
        super().__init__(
            settings,
            model.train(),
            length=Length.of(settings),
            curve_every=Every(steps=CURVE_STEPS),
            save_every=Every(seconds=SAVE_SECONDS),
            device=settings.device,
            precision="fp32",
        )

    def build_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.model.parameters(), weight_decay=self.settings.weight_decay)

    def learning_rate(self, share: float) -> float:
        return float(self.settings.learning_rate * cosine_rate(share))

    def loss(self, progress: Progress, autocast: Autocast) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        rng = np.random.default_rng([self.settings.seed, progress.step])
        clips, labels = self.train_pairs
        rows = torch.from_numpy(rng.permutation(len(clips))[: self.settings.batch_pairs])
        return ties_loss(*self._scores(clips[rows]), labels[rows].to(self.device)), {}

    def _scores(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Score pairs of rows of `pooled`, int [P, 2]; return the scores [P, S] of the first and the second clips."""
        scores = self.model(self.pooled[clips].to(self.device))
        return scores[:, 0], scores[:, 1]

    @torch.no_grad()
    def evaluate(self) -> Json:
        clips, labels = self.held_out
        first, second = self._scores(clips)
        return {"held_out": held_out_figures((first - second).cpu(), labels, self.model.dimensions)}

    def words(self, line: Json) -> dict[str, float | None]:
        figures = {
            f"held-out {name} ({dimension})": value
            for dimension, row in line["held_out"].items()
            for name, value in row.items()
        }
        return {**({"loss": line["loss"]} if "loss" in line else {}), **figures}

    def save(self, folder: Path, final: Json, steps: int, elapsed_s: float) -> Json:
        self.model.fit_scores(self.pooled.to(self.device))
        self.model.eval().save_pretrained(folder)
        dimensions = dict(final["held_out"])
        for column, name in enumerate(self.model.dimensions):
            mean, std = float(self.model.score_mean[column]), float(self.model.score_std[column])
            dimensions[name] |= {"mean": round(mean, 6), "std": round(std, 6)}
        return {
            "train_pairs": len(self.split.train),
            "validation_pairs": len(self.split.validation),
            "shares_clips": self.split.shares_clips,
            "dimensions": dimensions,
        }


def held_out_figures(difference: Tensor, labels: Tensor, dimensions: Sequence[str]) -> Json:
    """Compute the accuracies of each dimension; None where nothing was judged.

    Args:
        difference: float [P, S], scores of the first clips minus those of the second.
        labels: int64 [P, S], as in `ties_loss`.
        dimensions: S names.

    Returns:
        Name -> `accuracy_with_ties` and `accuracy_without_ties` (see `tie_accuracy`).
    """
    figures: Json = {}
    for column, name in enumerate(dimensions):
        kept = labels[:, column] != LEFT_OUT
        found = tie_accuracy(difference[kept, column], labels[kept, column])
        keys = ("accuracy_with_ties", "accuracy_without_ties")
        figures[name] = {key: None if value != value else value for key, value in zip(keys, found, strict=True)}
    return figures


def _check_decided(pairs: Sequence[PreferencePair], dimensions: Sequence[str]) -> None:
    """Check that training pairs decide each dimension; ties alone would make all scores equal."""
    decided = {pair.dimension for pair in pairs if pair.label}
    if lacking := [name for name in dimensions if name not in decided]:
        raise ValueError(
            f"each dimension needs a training pair with label 1 or -1, got none for {lacking[0]!r}; add pairs, or "
            "choose another --seed"
        )


def _tables(
    pairs: Sequence[PreferencePair], order: Mapping[Path, int], dimensions: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Return the rows of the clips, int64 [P, 2], and the labels, int64 [P, S]; other dimensions are left out."""
    clips = torch.tensor([[order[clip] for clip in pair.clips] for pair in pairs])
    labels = torch.full((len(pairs), len(dimensions)), LEFT_OUT)
    for row, pair in enumerate(pairs):
        labels[row, dimensions.index(pair.dimension)] = pair.label
    return clips, labels


def run_command(chosen: Chosen, settings: PreferenceTraining) -> None:
    """Run `pretrain preference`: read the pairs, train the head and tell its figures."""
    report = train_preference(chosen["pairs"], chosen["out"], settings)
    for name, figures in report["dimensions"].items():
        logger.info("%s: %s", name, figure_words(figures))
