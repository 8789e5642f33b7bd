"""Training of inverse dynamics models on recordings: the reward IDM and the judge of a world."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rlir_ray.data.alignment import check_alignment
from rlir_ray.data.files import Json
from rlir_ray.data.recordings import Recording
from rlir_ray.idm.model import InverseDynamicsModel
from rlir_ray.models.tokenizer_forms import open_tokenizer
from rlir_ray.pretrain.arguments import Chosen, read_chosen
from rlir_ray.pretrain.idm_model import chosen_fields, initial_model
from rlir_ray.pretrain.idm_scores import (
    CLIP_FRAMES,
    cut_clips,
    evaluate_inverse_dynamics,
    held_out_scores,
    inverse_dynamics_loss,
    loss_weights,
)
from rlir_ray.pretrain.idm_windows import Frames, Reconstruct, draw_windows, label_frames, recorded_space
from rlir_ray.pretrain.loop import open_device, train
from rlir_ray.pretrain.settings import InverseDynamicsTraining
from rlir_ray.pretrain.state import finished_report
from rlir_ray.pretrain.task import Autocast, Every, Length, Progress, Task
from rlir_ray.pretrain.training_warnings import idm_warning
from rlir_ray.rewards.field_scores import score_words
from rlir_ray.run.progress import figure_words

logger = logging.getLogger(__name__)

NUM_CURVE_CLIPS = 192


def learning_rate_at(progress: float, settings: InverseDynamicsTraining) -> float:
    """Return the learning rate at a progress in 0..1: a linear warm-up, then a cosine to 0."""
    if progress < settings.warmup:
        return settings.learning_rate * (progress + 1e-3) / (settings.warmup + 1e-3)
    share = min(1.0, (progress - settings.warmup) / (1 - settings.warmup))
    return settings.learning_rate * (1 + math.cos(math.pi * share)) / 2


def train_inverse_dynamics(
    recordings: Sequence[Recording],
    validation: Sequence[Recording],
    path: str | Path,
    settings: InverseDynamicsTraining,
    reconstruct: Reconstruct | None = None,
) -> Json:
    """Train a model and write config.json, model.safetensors, training.json and curve.jsonl into `path`.

    Resume from the last saved state. Do not repeat a finished training; extend the training if `settings.minutes` is
    larger than before.

    Args:
        recordings: training data, in memory.
        validation: held-out data for the evaluation.
        path: folder of the model.
        settings: see `InverseDynamicsTraining`.
        reconstruct: encodes and decodes clips uint8 [B, F, H, W, 3] with the world's tokenizer, for a share of the
            windows: the model then learns to read generated frames, which have the tokenizer's errors.

    Returns:
        The held-out scores, which training.json also holds.

    Raises:
        ValueError: no recording is long enough, the recordings have several action spaces or lack a field of `groups`,
            or the folder holds a state or a training of other settings.
    """
    folder = Path(path)
    report = finished_report(folder, settings, extendable=not settings.num_steps)
    if report is None:
        torch.set_num_threads(settings.threads)
        report = train(InverseDynamicsTask(recordings, validation, settings, reconstruct), folder)
    scores: Json = report["held_out"]
    names = [name for name in scores["shifts"]["+0"] if name != "mean"]
    if warning := idm_warning(scores["gate"], names, score_words(recorded_space(recordings).select(names))):
        logger.warning(warning)
    return scores


class InverseDynamicsTask(Task):
    """Training task: an inverse dynamics model on windows of recordings."""

    name = "inverse dynamics model"
    keep_state = True
    model: InverseDynamicsModel

    def __init__(
        self,
        recordings: Sequence[Recording],
        validation: Sequence[Recording],
        settings: InverseDynamicsTraining,
        reconstruct: Reconstruct | None,
    ) -> None:
        self.validation, self.reconstruct = validation, reconstruct
        space = recorded_space([*recordings, *validation])
        model = initial_model(settings, space, *recordings[0].frames.shape[1:3])
        self.fields = chosen_fields(settings.groups, model.pi_head.readable)
        self.data = label_frames(recordings, model.pi_head)
        self.clips = cut_clips(validation, CLIP_FRAMES, NUM_CURVE_CLIPS)
        self.weights = loss_weights(self.data.labels, model.pi_head, self.fields, settings.idle_heads_weight)
        super().__init__(
            settings,
            model.train(),
            length=Length(settings.minutes, settings.num_steps),
            curve_every=Every(seconds=settings.evaluate_every_s),
            device=settings.device,
            save_every=Every(seconds=settings.checkpoint_every_s),
            max_grad_norm=settings.max_grad_norm,
        )

    def build_optimizer(self) -> torch.optim.Optimizer:
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(trained, weight_decay=self.settings.weight_decay, betas=(0.9, 0.98))

    def learning_rate(self, share: float) -> float:
        return learning_rate_at(share, self.settings)

    def loss(self, progress: Progress, autocast: Autocast) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        settings, device = self.settings, self.device
        rng = np.random.default_rng([settings.seed, progress.step])
        num_frames = int(rng.choice(settings.window_frames))
        frames, labels = draw_windows(
            self.data,
            rng,
            settings.clips_per_step,
            num_frames,
            size=self.model.size,
            augmentation=settings.augmentation,
            reconstructed_share=settings.reconstructed_share,
            reconstruct=self.reconstruct,
        )
        with autocast():
            logits = self.model.logits(frames)
        labels, weights = (
            {kind: table.to(device) for kind, table in tables.items()} for tables in (labels, self.weights)
        )
        return inverse_dynamics_loss(logits, labels, weights), {}

    def evaluate(self) -> Json:
        return {"held_out": evaluate_inverse_dynamics(self.model, *self.clips, self.fields)["+0"]}

    def words(self, line: Json) -> dict[str, float | None]:
        held_out = {f"held-out {name}": value for name, value in line["held_out"]["mean"].items()}
        return {**({"loss": line["loss"]} if "loss" in line else {}), **held_out}

    def save(self, folder: Path, final: Json, steps: int, elapsed_s: float) -> Json:
        self.model.eval().save_pretrained(folder)
        return {"held_out": held_out_scores(self.model, self.validation, self.fields, self.reconstruct)}


def run_command(chosen: Chosen, settings: InverseDynamicsTraining) -> None:
    """Run `pretrain idm`: check the alignment of events and frames, then train on the recordings."""
    recordings, validation = read_chosen(chosen).values()
    reconstruct = None
    if chosen["tokenizer"]:
        height, width = recordings[0].frames.shape[1:3]
        reconstruct = reconstruction(chosen["tokenizer"], (height, width), settings.device)
    if not chosen["no_probe"]:
        logger.info("checking that event k leads into frame k")
        pairs = [(each.frames, each.actions) for each in recordings]
        way_out = "--action-shift={shift}, or --no-probe to skip this check"
        check_alignment(pairs, f"{chosen['data']}, split train,", action_shift=chosen["action_shift"], way_out=way_out)
    logger.info("%d recordings, %d held out", len(recordings), len(validation))
    scores = train_inverse_dynamics(recordings, validation, chosen["out"], settings, reconstruct)
    logger.info("held out: %s", figure_words(scores["shifts"]["+0"]["mean"]))
    logger.info("score by kind of clip (macro-F1; R² of graded axes): %s", figure_words(scores["gate"]))


def reconstruction(tokenizer: str | Path, frame_size: tuple[int, int], device: str = "cpu") -> Reconstruct:
    """Return a function that encodes and decodes clips uint8 [B, F, H, W, 3] with a saved tokenizer.

    Args:
        tokenizer: its folder.
        frame_size: H and W.
        device: of the tokenizer.
    """
    model = open_tokenizer(Path(tokenizer), *frame_size).to(open_device(device))

    def reconstruct(clips: Frames) -> Frames:
        parts = torch.from_numpy(clips).split(model.clip_frames or clips.shape[1], 1)
        return torch.cat([model.decode_clips(model.encode_clips(part)).cpu() for part in parts], 1).numpy()

    return reconstruct
