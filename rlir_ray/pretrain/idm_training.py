"""Trains inverse dynamics models on recordings: the reward model and the held-out judge of a new world."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlir_ray.data.files import strict_json, write_json
from rlir_ray.data.recordings import Recording
from rlir_ray.idm.base import load_inverse_dynamics
from rlir_ray.idm.correlation_idm import CorrelationInverseDynamics, correlation_config
from rlir_ray.idm.inverse_dynamics import InverseDynamicsModel
from rlir_ray.idm.vpt_config import small_vpt_config
from rlir_ray.pretrain.device import open_device
from rlir_ray.pretrain.finished import finished_report
from rlir_ray.pretrain.idm import InverseDynamicsTraining
from rlir_ray.pretrain.idm_figures import CLIP_FRAMES, Model, cut_clips, evaluate_inverse_dynamics, held_out_figures
from rlir_ray.pretrain.idm_loss import class_weights, head_weights, inverse_dynamics_loss
from rlir_ray.pretrain.loop import clip_gradients
from rlir_ray.pretrain.warnings import judge_warning
from rlir_ray.pretrain.windows import NUM_BINS, LabelledFrames, Reconstruct, draw_windows, label_frames
from rlir_ray.run.progress import ShowProgress, figure_words, progress_bar

logger = logging.getLogger(__name__)


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
    """A fresh small model of the given architecture and sizes; see `InverseDynamicsTraining`.

    Raises:
        ValueError: an unknown architecture, or sizes that do not fit each other.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if architecture == "vpt":
            config = small_vpt_config(height, width)
            channels = convolution_width * config["net"]["img_shape"][2]
            config["net"] |= {
                "hidsize": hidden_size, "n_recurrence_layers": num_layers, "attention_heads": num_heads,
                "impala_width": convolution_width, "img_shape": [height, width, channels],
                "conv3d_params": {**config["net"]["conv3d_params"], "outchan": channels},
            }  # fmt: skip
            return InverseDynamicsModel(config)
        if architecture == "correlation":
            config = correlation_config(height, width)
            sizes = {"channels": convolution_width * config["channels"], "hidden": hidden_size}
            return CorrelationInverseDynamics({**config, **sizes, "num_temporal_blocks": num_layers})
    raise ValueError(f"architecture must be vpt or correlation, got {architecture!r}; choose one")


def _start(settings: InverseDynamicsTraining, height: int, width: int) -> Model:
    """A fresh model, or the one of `settings.init`, in training mode.

    Raises:
        ValueError: `settings.init` is no folder of an inverse dynamics model.
    """
    if settings.init:
        if not (Path(settings.init) / "config.json").is_file():
            raise ValueError(f"--init must be the folder of an inverse dynamics model, got {settings.init}; check it")
        return load_inverse_dynamics(settings.init).train()
    return build_model(
        settings.architecture, height, width, settings.seed, hidden_size=settings.hidden_size,
        num_layers=settings.num_layers, num_heads=settings.num_heads, convolution_width=settings.convolution_width,
    )  # fmt: skip


def learning_rate_at(progress: float, settings: InverseDynamicsTraining) -> float:
    """Linear warm-up, then a cosine to 0. Progress runs from 0 to 1."""
    if progress < settings.warmup:
        return settings.learning_rate * (progress + 1e-3) / (settings.warmup + 1e-3)
    share = min(1.0, (progress - settings.warmup) / (1 - settings.warmup))
    return settings.learning_rate * (1 + math.cos(math.pi * share)) / 2


@dataclass
class _Run:
    """What a checkpoint holds. Every step draws from its own seed, so there is no random state to keep."""

    model: Model
    optimizer: torch.optim.Optimizer
    step: int = 0
    elapsed_s: float = 0.0

    def progress(self, settings: InverseDynamicsTraining) -> float:
        return self.step / settings.steps if settings.steps else self.elapsed_s / (60 * settings.minutes)

    def save(self, path: Path, identity: str) -> None:
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        part = path.with_suffix(".part")
        torch.save({**state, "step": self.step, "elapsed_s": self.elapsed_s, "settings": identity}, part)
        part.replace(path)

    def load(self, path: Path, identity: str) -> None:
        state = torch.load(path, weights_only=True, map_location="cpu")
        if state["settings"] != identity:
            raise ValueError(
                f"a run goes on with the settings it began with, {path} was made with {state['settings']}; "
                "give another folder or the same settings"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.elapsed_s = state["step"], state["elapsed_s"]


def train_inverse_dynamics(
    recordings: Sequence[Recording],
    validation: Sequence[Recording],
    path: str | Path,
    settings: InverseDynamicsTraining,
    reconstruct: Reconstruct | None = None,
) -> dict[str, Any]:
    """Trains a model and writes config.json, model.safetensors, training.json and curve.jsonl into `path`.

    The same call goes on from checkpoint.pt where an earlier one stopped. A finished training is left as it is, unless
    more minutes are asked for than it had: then it goes on.

    Args:
        recordings: trained on, held in memory.
        validation: scored, never trained on.
        path: folder of the result.
        settings: see `InverseDynamicsTraining`.
        reconstruct: uint8 [F, H, W, 3] to the same through the world's tokenizer; a share of the windows is read so.

    Returns:
        The held-out figures that training.json holds.

    Raises:
        ValueError: no recordings, none long enough, or a checkpoint or a finished training of other settings.
    """
    folder = Path(path)
    if finished := finished_report(folder, settings, extendable=not settings.steps):
        _warn(finished["held_out"], settings)
        return finished["held_out"]
    torch.set_num_threads(settings.threads)
    device = open_device(settings.device)
    data = label_frames(recordings)
    frames, actions = cut_clips(validation, CLIP_FRAMES, 192)
    folder.mkdir(parents=True, exist_ok=True)
    height, width = data.frames.shape[1:3]
    model = _start(settings, height, width).to(device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    run = _Run(model, torch.optim.AdamW(trained, weight_decay=settings.weight_decay, betas=(0.9, 0.98)))
    identity = json.dumps({**asdict(settings), "minutes": 0, "threads": 0, "device": ""}, sort_keys=True)
    if (folder / "checkpoint.pt").exists():
        run.load(folder / "checkpoint.pt", identity)
        logger.info("going on from step %d of %s", run.step, folder)
    last_evaluation = last_checkpoint = time.perf_counter()
    with progress_bar("inverse dynamics model") as show:
        for loss in _steps(run, data, settings, reconstruct, show):
            now = time.perf_counter()
            if now - last_evaluation > settings.evaluate_every_s:
                scores = evaluate_inverse_dynamics(model, frames, actions, settings.groups)["+0"]
                _note(folder / "curve.jsonl", run, settings, loss, scores)
                last_evaluation = time.perf_counter()
            if now - last_checkpoint > settings.checkpoint_every_s:
                run.save(folder / "checkpoint.pt", identity)
                last_checkpoint = time.perf_counter()
    run.save(folder / "checkpoint.pt", identity)
    model.eval().save_pretrained(folder)
    logger.info("scoring on held-out clips, real and spoilt")
    figures = held_out_figures(model, validation, settings.groups, reconstruct)
    report = {"settings": asdict(settings), "steps": run.step, "train_s": round(run.elapsed_s, 1), "held_out": figures}
    write_json(folder / "training.json", report)
    _warn(figures, settings)
    return figures


def _warn(figures: dict[str, Any], settings: InverseDynamicsTraining) -> None:
    if warning := judge_warning(figures["gate"], settings.groups):
        logger.warning(warning)


def _steps(
    run: _Run,
    data: LabelledFrames,
    settings: InverseDynamicsTraining,
    reconstruct: Reconstruct | None,
    show: ShowProgress,
) -> Iterator[float]:
    """Optimiser steps until the training is over; yields the mean loss since the last yield, every tenth step."""
    on_buttons, on_camera = head_weights(settings.groups, settings.idle_heads_weight)
    device = next(run.model.parameters()).device
    button_weights = (class_weights(data.buttons, 2) * on_buttons[:, None]).to(device)
    camera_weights = (class_weights(data.camera, NUM_BINS) * on_camera[:, None]).to(device)
    losses = []
    run.model.train()
    while True:
        progress = run.progress(settings)
        if progress >= 1:
            return
        started = time.perf_counter()
        for parameters in run.optimizer.param_groups:
            parameters["lr"] = learning_rate_at(progress, settings)
        rng = np.random.default_rng([settings.seed, run.step])
        num_frames = int(rng.choice(settings.window_frames))
        frames, buttons, camera = draw_windows(
            data, rng, settings.clips_per_step, num_frames, augmentation=settings.augmentation,
            reconstructed_share=settings.reconstructed_share, reconstruct=reconstruct,
        )  # fmt: skip
        with torch.autocast(device.type, torch.bfloat16):
            logits = run.model.logits(frames)
        loss = inverse_dynamics_loss(logits, buttons.to(device), camera.to(device), button_weights, camera_weights)
        run.optimizer.zero_grad()
        loss.backward()
        clip_gradients(run.model, settings.max_gradient_norm)
        run.optimizer.step()
        losses.append(float(loss.detach()))
        run.step += 1
        run.elapsed_s += time.perf_counter() - started
        show(run.progress(settings), f"loss {losses[-1]:.3f}")
        if run.step % 10 == 0:
            yield float(np.mean(losses))
            losses.clear()


def _note(
    path: Path, run: _Run, settings: InverseDynamicsTraining, loss: float, scores: dict[str, dict[str, float | None]]
) -> None:
    """Appends a point to the curve and says it."""
    point = {"step": run.step, "elapsed_s": round(run.elapsed_s, 1), "loss": round(loss, 4), "held_out": scores}
    with path.open("a", encoding="utf-8") as file:
        file.write(strict_json(point) + "\n")
    mean = scores["mean"]
    end = f"{settings.steps} steps" if settings.steps else f"{60 * settings.minutes:.0f} s"
    logger.info(
        "step %d, %.0f s of %s: loss %.3f, held-out %s", run.step, run.elapsed_s, end, loss, figure_words(mean),
    )  # fmt: skip


def reconstruction(tokenizer: str | Path, device: str = "cpu") -> Reconstruct:
    """Frames as a saved tokenizer gives them back: uint8 [F, H, W, 3] to the same."""
    from rlir_ray.models.tokenizer import FrameTokenizer

    model = FrameTokenizer.from_pretrained(tokenizer).to(open_device(device))
    return lambda frames: model.decode(model.encode(torch.from_numpy(frames))).cpu().numpy()
