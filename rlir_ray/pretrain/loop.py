"""The loop of all trainings of base models: by steps or by the clock, with a curve, and resumable.

`accelerate` does device, precision, the optimiser's step and the saved states. A task draws its own data, so that the
same seed gives the same order on each machine. Knows nothing of what is trained.
"""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import nn

from rlir_ray.data.files import Json, strict_json, write_json
from rlir_ray.pretrain.device import open_accelerator
from rlir_ray.pretrain.state import load_state, remove_states, save_state
from rlir_ray.pretrain.task import Every, Progress, Task
from rlir_ray.run.progress import clock, figure_words, progress_bar

logger = logging.getLogger(__name__)


def train(task: Task, out_dir: Path) -> Json:
    """Train a task to its end, from its last saved state if there is one.

    Args:
        task: what is trained.
        out_dir: receives the model, `curve.jsonl`, `training.json` and, until it is done, a folder `state-*`.

    Returns:
        What training.json holds.

    Raises:
        ValueError: a saved state of other settings, or a loss or gradient that is not finite.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    loop = Loop(task, out_dir)
    loop.run()
    logger.info("scoring on held-out recordings")
    final = loop.write_line(task.evaluate())
    if task.keep_state:
        loop.save()
    report = {
        "settings": asdict(task.settings),
        "steps": loop.step,
        "elapsed_s": round(loop.elapsed_s, 1),
        **task.save(out_dir, final, loop.step, loop.elapsed_s),
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg(),
    }
    # By this file a training is known as finished.
    write_json(out_dir / "training.json", report)
    if not task.keep_state:
        remove_states(out_dir)
    return report


class Loop:
    """A task with its optimiser, counted in steps and seconds of training."""

    def __init__(self, task: Task, out_dir: Path) -> None:
        self.task, self.out_dir = task, out_dir
        self.settings = dict(json.loads(json.dumps(asdict(task.settings))))  # as JSON holds them: tuples are lists
        self.accelerator = open_accelerator(task.device_name, task.precision)
        # The parts are prepared as one module that is never called: losses say by themselves what runs under autocast.
        self.accelerator.prepare(nn.ModuleDict(task.parts()))
        self.optimizer = self.accelerator.prepare(task.build_optimizer())
        self.step, self.elapsed_s = load_state(self.accelerator, out_dir, self.settings)
        self._seen: list[dict[str, float]] = []
        self._line_at = self._saved_at = self.elapsed_s

    @property
    def progress(self) -> float:
        """The share of the training that is done."""
        return self.task.length.progress(self.step, self.elapsed_s)

    def run(self) -> None:
        """Update until the training is over."""
        with progress_bar(self.task.name) as show:
            while self.progress < 1:
                started = time.monotonic()
                self._seen.append(self._update())
                self.step += 1
                # The minutes are those of training: neither evaluation nor saving counts.
                self.elapsed_s += time.monotonic() - started
                show(self.progress, f"loss {self._seen[-1]['loss']:.3f}")
                self._report_and_save()

    def _update(self) -> dict[str, float]:
        task, share = self.task, self.progress
        for group in self.optimizer.param_groups:
            group["lr"] = task.learning_rate(share)
        loss, metrics = task.loss(Progress(self.step, share), self.accelerator.autocast)
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        clip_gradients(task.model, task.max_grad_norm)
        seen = {name: float(value) for name, value in {"loss": loss.detach(), **metrics}.items()}
        check_loss(float(loss.detach()), self.step)
        self.optimizer.step()
        task.after_update()
        return seen

    def _report_and_save(self) -> None:
        saving = self._due(self.task.save_every, self._saved_at)
        if self._due(self.task.curve_every, self._line_at):
            self.write_line(self.task.evaluate(), log=saving)
        if saving:
            self.save()

    def _due(self, every: Every, last_s: float) -> bool:
        return self.step % every.steps == 0 if every.steps else self.elapsed_s - last_s >= every.seconds

    def save(self) -> None:
        """Save a state to resume from."""
        save_state(self.accelerator, self.out_dir, step=self.step, elapsed_s=self.elapsed_s, settings=self.settings)
        self._saved_at = self.elapsed_s

    def write_line(self, figures: Json, *, log: bool = True) -> Json:
        """Append to the curve: step, elapsed_s, mean metrics since the line before, held-out figures.

        Args:
            figures: held-out ones.
            log: report the line even if it holds no held-out figures.

        Returns:
            The line, without numbers that are not finite; empty, and not written, where there is nothing new.
        """
        if not (self._seen or figures):
            return {}
        line = {"step": self.step, "elapsed_s": self.elapsed_s, **_means(self._seen), **figures}
        line = {
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in line.items()
            if not isinstance(value, float) or math.isfinite(value)
        }
        self._seen, self._line_at = [], self.elapsed_s
        with (self.out_dir / "curve.jsonl").open("a", encoding="utf-8") as curve:
            curve.write(strict_json(line) + "\n")
        if log or figures:
            said = figure_words(self.task.words(line))
            # An update that ends after the last minute makes no more than the whole.
            percent = 100 * min(self.progress, 1.0)
            logger.info("%3.0f %%, step %d, %s: %s", percent, self.step, clock(self.elapsed_s), said)
        return line


def _means(seen: list[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for one in seen for name in one)
    return {name: float(np.mean([one[name] for one in seen if name in one])) for name in names}


def cosine_rate(progress: float, least: float = 0.05) -> float:
    """Return the share of the highest learning rate: linear over the first 2 %, then a cosine down to `least`."""
    if progress < 0.02:
        return max(progress, 1e-4) / 0.02
    return least + (1 - least) * 0.5 * (1 + math.cos(math.pi * (progress - 0.02) / 0.98))


def clip_gradients(model: nn.Module, max_norm: float) -> None:
    """Clip the gradients' total norm, before an update.

    Raises:
        ValueError: it is not finite, so that the update would make all weights NaN; the last saved state stays good.
    """
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    # accelerate's clipping would spread a NaN over all gradients before its place can be named.
    norm = nn.utils.get_total_norm(gradients.values())
    if not bool(norm.isfinite()):
        bad = next((name for name, gradient in gradients.items() if not bool(gradient.isfinite().all())), "their norm")
        raise ValueError(
            f"gradients must be finite, got NaN or infinity in {bad}; give the same command to resume from the last "
            "saved state, and with other settings or recordings where it happens again"
        )
    nn.utils.clip_grads_with_norm_(model.parameters(), max_norm, norm)


def check_loss(loss: float, step: int) -> None:
    """Check a loss, before its update.

    Raises:
        ValueError: it is not finite.
    """
    if not math.isfinite(loss):
        raise ValueError(
            f"the loss must be finite, got {loss} at step {step}; give the same command to resume from the last "
            "saved state, and with other settings or recordings where it happens again"
        )
