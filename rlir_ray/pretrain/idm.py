"""Training of inverse dynamics models on recordings: the reward IDM and the judge of a world."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from rlir_ray.data.alignment import check_alignment
from rlir_ray.data.files import Json
from rlir_ray.data.recordings import Recording
from rlir_ray.idm.base import load_inverse_dynamics
from rlir_ray.idm.correlation_idm import CorrelationInverseDynamics, correlation_config
from rlir_ray.idm.vpt import VptInverseDynamics
from rlir_ray.idm.vpt_config import small_vpt_config
from rlir_ray.pretrain.arguments import Chosen
from rlir_ray.pretrain.encode import read_splits
from rlir_ray.pretrain.idm_scores import (
    CLIP_FRAMES,
    Model,
    class_weights,
    cut_clips,
    evaluate_inverse_dynamics,
    head_weights,
    held_out_scores,
    inverse_dynamics_loss,
)
from rlir_ray.pretrain.idm_windows import NUM_BINS, Reconstruct, draw_windows, label_frames
from rlir_ray.pretrain.loop import open_device, train
from rlir_ray.pretrain.settings import InverseDynamicsTraining
from rlir_ray.pretrain.state import finished_report
from rlir_ray.pretrain.task import Autocast, Every, Length, Progress, Task
from rlir_ray.pretrain.training_warnings import idm_warning
from rlir_ray.run.progress import figure_words

logger = logging.getLogger(__name__)

NUM_CURVE_CLIPS = 192


def build_model(
    architecture: str,
    height: int,
    width: int,
    seed: int,
    *,
    hidden_size: int = 256,
    num_layers: int = 2,
    num_heads: int = 4,
    convolution_width: int = 1,
) -> Model:
    """Build a small model with random weights; see `InverseDynamicsTraining` for the sizes.

    Raises:
        ValueError: the architecture is unknown, or the sizes do not fit each other.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if architecture == "vpt":
            config = small_vpt_config(height, width)
            channels = convolution_width * config["net"]["img_shape"][2]
            config["net"] |= {
                "hidsize": hidden_size,
                "n_recurrence_layers": num_layers,
                "attention_heads": num_heads,
                "impala_width": convolution_width,
                "img_shape": [height, width, channels],
                "conv3d_params": {**config["net"]["conv3d_params"], "outchan": channels},
            }
            return VptInverseDynamics(config)
        if architecture == "correlation":
            config = correlation_config(height, width)
            sizes = {"channels": convolution_width * config["channels"], "hidden": hidden_size}
            return CorrelationInverseDynamics({**config, **sizes, "num_temporal_blocks": num_layers})
    raise ValueError(f"architecture must be vpt or correlation, got {architecture!r}; choose one")


def _initial_model(settings: InverseDynamicsTraining, height: int, width: int) -> Model:
    """Return a new model, or the model in the folder `settings.init`, in training mode.

    Raises:
        ValueError: the folder `settings.init` holds no inverse dynamics model.
    """
    if settings.init:
        if not (Path(settings.init) / "config.json").is_file():
            raise ValueError(f"--init must be the folder of an inverse dynamics model, got {settings.init}; check it")
        # `--init` names a model that this command has trained before.
        return cast(Model, load_inverse_dynamics(settings.init)).train()
    return build_model(
        settings.architecture,
        height,
        width,
        settings.seed,
        hidden_size=settings.hidden_size,
        num_layers=settings.num_layers,
        num_heads=settings.num_heads,
        convolution_width=settings.convolution_width,
    )


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
        reconstruct: encodes and decodes frames uint8 [F, H, W, 3] with the world's tokenizer, for a share of the
            windows: the model then learns to read generated frames, which have the tokenizer's errors.

    Returns:
        The held-out scores, which training.json also holds.

    Raises:
        ValueError: no recording is long enough, or the folder holds a state or a training of other settings.
    """
    folder = Path(path)
    report = finished_report(folder, settings, extendable=not settings.num_steps)
    if report is None:
        torch.set_num_threads(settings.threads)
        report = train(InverseDynamicsTask(recordings, validation, settings, reconstruct), folder)
    scores: Json = report["held_out"]
    if warning := idm_warning(scores["gate"], settings.groups):
        logger.warning(warning)
    return scores


class InverseDynamicsTask(Task):
    """Training task: an inverse dynamics model on windows of recordings."""

    name = "inverse dynamics model"
    keep_state = True
    model: Model

    def __init__(
        self,
        recordings: Sequence[Recording],
        validation: Sequence[Recording],
        settings: InverseDynamicsTraining,
        reconstruct: Reconstruct | None,
    ) -> None:
        self.validation, self.reconstruct = validation, reconstruct
        self.data = label_frames(recordings)
        self.clips = cut_clips(validation, CLIP_FRAMES, NUM_CURVE_CLIPS)
        on_buttons, on_camera = head_weights(settings.groups, settings.idle_heads_weight)
        self.button_weights = class_weights(self.data.buttons, 2) * on_buttons[:, None]
        self.camera_weights = class_weights(self.data.camera, NUM_BINS) * on_camera[:, None]
        height, width = self.data.frames.shape[1:3]
        super().__init__(
            settings,
            _initial_model(settings, height, width).train(),
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
        frames, buttons, camera = draw_windows(
            self.data,
            rng,
            settings.clips_per_step,
            num_frames,
            augmentation=settings.augmentation,
            reconstructed_share=settings.reconstructed_share,
            reconstruct=self.reconstruct,
        )
        with autocast():
            logits = self.model.logits(frames)
        weights = self.button_weights.to(device), self.camera_weights.to(device)
        return inverse_dynamics_loss(logits, buttons.to(device), camera.to(device), *weights), {}

    def evaluate(self) -> Json:
        return {"held_out": evaluate_inverse_dynamics(self.model, *self.clips, self.settings.groups)["+0"]}

    def words(self, line: Json) -> dict[str, float | None]:
        held_out = {f"held-out {name}": value for name, value in line["held_out"]["mean"].items()}
        return {**({"loss": line["loss"]} if "loss" in line else {}), **held_out}

    def save(self, folder: Path, final: Json, steps: int, elapsed_s: float) -> Json:
        self.model.eval().save_pretrained(folder)
        return {"held_out": held_out_scores(self.model, self.validation, self.settings.groups, self.reconstruct)}


def run_command(chosen: Chosen, settings: InverseDynamicsTraining) -> None:
    """Run `pretrain idm`: check the alignment of events and frames, then train on the recordings."""
    reconstruct = reconstruction(chosen["tokenizer"], settings.device) if chosen["tokenizer"] else None
    recordings, validation = read_splits(chosen["data"], chosen["action_shift"]).values()
    if not chosen["no_probe"]:
        logger.info("checking that event k leads into frame k")
        pairs = [(each.frames, each.actions) for each in recordings]
        way_out = "--action-shift={shift}, or --no-probe to skip this check"
        check_alignment(pairs, str(chosen["data"] / "train"), action_shift=chosen["action_shift"], way_out=way_out)
    logger.info("%d recordings, %d held out", len(recordings), len(validation))
    scores = train_inverse_dynamics(recordings, validation, chosen["out"], settings, reconstruct)
    logger.info("held out: %s", figure_words(scores["shifts"]["+0"]["mean"]))
    logger.info("macro-F1 by kind of clip: %s", figure_words(scores["gate"]))


def reconstruction(tokenizer: str | Path, device: str = "cpu") -> Reconstruct:
    """Return a function that encodes and decodes frames uint8 [F, H, W, 3] with a saved tokenizer."""
    from rlir_ray.models.tokenizer import FrameTokenizer

    model = FrameTokenizer.from_pretrained(tokenizer).to(open_device(device))
    return lambda frames: model.decode(model.encode(torch.from_numpy(frames))).cpu().numpy()
