"""Training of a flow world model on recordings encoded as latents, from scratch or from a checkpoint.

The loss is that of `rlir_ray.models.flow_matching`. Independent of autoencoders, rewards and Ray.
Legend: B windows, W frames of a window, D h w a latent.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from rlir_ray.data.files import Json, give_usual_mode
from rlir_ray.models.flow_matching import NoiseLevels, flow_matching_errors
from rlir_ray.pretrain.action_dropout import hidden_actions
from rlir_ray.pretrain.arguments import Chosen
from rlir_ray.pretrain.encode import Form, read_encoded, window_starts
from rlir_ray.pretrain.loop import train as train_task
from rlir_ray.pretrain.settings import SPLITS, FlowTraining
from rlir_ray.pretrain.state import finished_report
from rlir_ray.pretrain.task import Autocast, Every, Length, Progress, Task, cosine_rate
from rlir_ray.pretrain.training_warnings import loss_metrics, world_model_warning
from rlir_ray.spaces.layouts import NO_ACTION, ActionLayout, OasisLayout, check_space, layout_for, layout_settings

if TYPE_CHECKING:
    from rlir_ray.models.flow_matching import FlowPolicy

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LatentRecordings:
    """Recordings of n frames in all, end to end, as latents and action classes."""

    latents: npt.NDArray[np.floating]
    """[n, D, h, w]."""
    actions: npt.NDArray[np.int64]
    """[n, columns], classes of the action that leads into each frame."""
    episode_starts: npt.NDArray[np.int64]
    """[E], first frame of each recording."""
    layout: ActionLayout
    """How the actions became classes."""

    @property
    def form(self) -> Form:
        return _form(self.layout, self.latents.shape[1:])

    def windows(self, starts: npt.NDArray[np.int64], num_frames: int) -> tuple[Tensor, Tensor]:
        """Return latents float32 [B, W, D, h, w] and actions int64 [B, W, columns] of the windows from `starts` on."""
        rows = starts[:, None] + np.arange(num_frames)
        actions = self.actions[rows]
        # In a rollout, too, the action that leads into the first frame is unknown.
        actions[:, 0] = self.layout.classes(self.layout.space.nothing(1))
        return torch.from_numpy(self.latents[rows].astype(np.float32)), torch.from_numpy(actions)


def load_latents(path: Path | str, form: str = "nfd") -> LatentRecordings:
    """Read a file of latents, as `encode_recordings` writes it; the actions become classes in their space's layout.

    Args:
        path: the file.
        form: form of the model that is trained on them, as `FlowTraining.form`.

    Raises:
        ValueError: the file cannot be used (see `read_encoded`), or the actions are not in the form's space.
    """
    found = read_encoded(path, "latents")
    layout: ActionLayout = OasisLayout() if form == "oasis" else layout_for(found.actions.space)
    check_space(layout.space, found.actions.space, f"the form {form}", "the recordings")
    # The codec decides the type: latents are numbers.
    latents = cast("npt.NDArray[np.floating]", found.codes)
    return LatentRecordings(latents, layout.classes(found.actions), found.episode_starts, layout)


def train_flow(
    train: LatentRecordings, validation: LatentRecordings, out_dir: Path | str, settings: FlowTraining
) -> FlowPolicy:
    """Train a flow model; resume from the last saved state, and do not repeat a finished training.

    Args:
        train, validation: recordings of one action space, encoded by the same autoencoder.
        out_dir: receives the model, `curve.jsonl` and `training.json`, and `state-*` until the training ends.
        settings: see `FlowTraining`.

    Returns:
        The moving average of the weights, on the CPU, in evaluation mode.

    Raises:
        ValueError: the recordings differ in action space or latents, from each other or from `settings.init`; no
            episode holds a window; or the folder holds a state or a training of other settings.
    """
    from rlir_ray.models.flow_forms import open_flow_policy

    out_dir = Path(out_dir)
    report = finished_report(out_dir, settings)
    if report:
        model = cast("FlowPolicy", open_flow_policy(out_dir))
    else:
        task = FlowTask(train, validation, settings)
        report, model = train_task(task, out_dir), task.kept
    if warning := world_model_warning(report["final"]):
        logger.warning(warning)
    return model


class FlowTask(Task):
    """Training task: a flow model and the moving average of its weights, which is saved as the model."""

    name = "flow"
    model: FlowPolicy
    settings: FlowTraining

    def __init__(self, train: LatentRecordings, validation: LatentRecordings, settings: FlowTraining) -> None:
        self.train, self.validation = train, validation
        train.form.check(validation.form, "the training recordings", "the held-out recordings")
        self.starts = window_starts(train.episode_starts, len(train.latents), settings.num_frames)
        model = _initial_model(settings, train)
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.average_decay))
        every = Every(seconds=settings.evaluate_every_s)
        super().__init__(
            settings,
            model,
            length=Length.of(settings),
            curve_every=every,
            save_every=every,
            device=settings.device,
            precision=settings.precision,
            max_grad_norm=settings.max_grad_norm,
        )

    @property
    def kept(self) -> FlowPolicy:
        """The model of averaged weights."""
        return cast("FlowPolicy", self.average.module)  # AveragedModel does not keep the type

    def parts(self) -> dict[str, nn.Module]:
        return {"model": self.model, "average": self.average}

    def build_optimizer(self) -> torch.optim.Optimizer:
        rate, decay = self.settings.learning_rate, self.settings.weight_decay
        return torch.optim.AdamW(self.model.parameters(), rate, (0.9, 0.95), weight_decay=decay, fused=True)

    def learning_rate(self, share: float) -> float:
        return float(self.settings.learning_rate * cosine_rate(share))

    def loss(self, progress: Progress, autocast: Autocast) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        settings, device = self.settings, self.device
        rows = np.random.default_rng([settings.seed, progress.step]).choice(self.starts, settings.batch_size)
        generator = torch.Generator().manual_seed(settings.seed + progress.step)
        latents, actions = self.train.windows(rows, settings.num_frames)
        if settings.action_dropout:
            shape = (len(actions), settings.num_frames - 1)
            hidden = hidden_actions(settings.action_dropout, settings.seed, progress.step, shape)
            actions[:, 1:][hidden] = NO_ACTION
        with autocast():
            return flow_loss(self.model, latents.to(device), actions.to(device), generator, settings), {}

    def after_update(self) -> None:
        self.average.update_parameters(self.model)

    def evaluate(self) -> Json:
        figures: Json = validate(self.kept, self.validation, self.settings)
        return figures

    def save(self, folder: Path, final: Json, steps: int, elapsed_s: float) -> Json:
        kept = self.kept.to("cpu").eval()  # type: ignore[arg-type]  # diffusers' decorator hides `self`
        kept.save_pretrained(folder)
        give_usual_mode(folder)
        return {
            "parameters": sum(weight.numel() for weight in kept.parameters()),
            "train_frames": len(self.train.latents),
            "windows_seen": steps * self.settings.batch_size,
            "final": final,
        }


def run_command(chosen: Chosen, settings: FlowTraining) -> None:
    """Run `pretrain flow`: train on the encoded recordings of a folder."""
    train, validation = (load_latents(chosen["data"] / f"{split}.npz", settings.form) for split in SPLITS)
    train_flow(train, validation, chosen["out"], settings)


def _form(layout: ActionLayout, latent_shape: tuple[int, ...]) -> Form:
    return Form(layout, f"latents of {latent_shape}")


def _initial_model(settings: FlowTraining, train: LatentRecordings) -> FlowPolicy:
    from rlir_ray.models.flow_forms import open_flow_policy

    torch.manual_seed(settings.seed)
    if settings.init:
        model = cast("FlowPolicy", open_flow_policy(Path(settings.init)))
        _form(model.layout, model.latent_shape).check(train.form, f"--init {settings.init}", "the recordings")
        # What a checkpoint states is its last training.
        model.register_to_config(action_dropout=settings.action_dropout)  # type: ignore[no-untyped-call]
        model.train()
        return model
    return _fresh_oasis(settings, train) if settings.form == "oasis" else _fresh_nfd(settings, train)


def _fresh_nfd(settings: FlowTraining, train: LatentRecordings) -> FlowPolicy:
    from rlir_ray.models.flow import FlowWorldModel

    channels, height, width = train.latents.shape[1:]
    fresh: FlowPolicy = FlowWorldModel(
        latent_channels=channels,
        latent_height=height,
        latent_width=width,
        patch_size=settings.patch_size,
        hidden_size=settings.hidden_size,
        num_layers=settings.num_layers,
        num_heads=settings.num_heads,
        action_dropout=settings.action_dropout,
        **layout_settings(train.layout),
    )
    return fresh


def _fresh_oasis(settings: FlowTraining, train: LatentRecordings) -> FlowPolicy:
    from rlir_ray.models.oasis_policy import OasisPolicy

    channels, height, width = train.latents.shape[1:]
    fresh: FlowPolicy = OasisPolicy(
        input_h=height,
        input_w=width,
        patch_size=settings.patch_size,
        in_channels=channels,
        hidden_size=settings.hidden_size,
        depth=settings.num_layers,
        num_heads=settings.num_heads,
        action_dropout=settings.action_dropout,
    )
    return fresh


def flow_loss(
    model: FlowPolicy, latents: Tensor, actions: Tensor, generator: torch.Generator, settings: FlowTraining
) -> Tensor:
    """Compute the mean of `flow_losses`."""
    return flow_losses(model, latents, actions, generator, settings).mean()


def flow_losses(
    model: FlowPolicy, latents: Tensor, actions: Tensor, generator: torch.Generator, settings: FlowTraining
) -> Tensor:
    """Compute `flow_matching_errors` of each window's frames except the first, float32 [B].

    Args:
        model: the flow model.
        latents: float32 [B, W, D, h, w].
        actions: int64 [B, W, columns].
        generator: draws levels and noise, on the CPU.
        settings: gives the distributions of levels and noise.
    """
    levels = NoiseLevels(history_noise=settings.history_noise, mean=settings.level_mean, std=settings.level_std)
    noise = levels.draw(latents.shape, latents.shape[1] - 1, generator)
    return flow_matching_errors(model, model, latents, actions, noise)


@torch.no_grad()
def validate(model: FlowPolicy, recordings: LatentRecordings, settings: FlowTraining) -> dict[str, float]:
    """Compute the held-out loss in float32; each call draws the same levels and noise.

    Returns:
        See `loss_metrics`. For `validation_loss_wrong_actions`, each window has the actions of another window: the
        difference to `validation_loss` shows how much the model uses the actions.
    """
    starts = window_starts(recordings.episode_starts, len(recordings.latents), settings.num_frames)
    chosen = starts[np.linspace(0, len(starts) - 1, min(settings.num_validation, len(starts))).astype(np.int64)]
    latents, actions = recordings.windows(chosen, settings.num_frames)
    found = []
    for told in (actions, actions.roll(len(chosen) // 2, 0)):
        generator = torch.Generator().manual_seed(settings.seed)
        batches = zip(latents.split(32), told.split(32), strict=True)
        device = next(model.parameters()).device
        losses = [flow_losses(model, x.to(device), a.to(device), generator, settings) for x, a in batches]
        found.append(torch.cat(losses).cpu().numpy())
    return loss_metrics(*found)
