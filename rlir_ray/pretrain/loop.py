"""The training loop of all base models: by steps or by the clock, resumable, with a curve of held-out metrics.

`accelerate` handles device, precision, optimizer and saved states. A task draws its own data, so that the same seed
gives the same order on every machine. Independent of the trained model.
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
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from rlir_ray.data.files import Json, strict_json, write_json
from rlir_ray.pretrain.state import load_state, remove_states, save_state
from rlir_ray.pretrain.task import Every, Progress, Task
from rlir_ray.run.progress import clock, figure_words, progress_bar

logger = logging.getLogger(__name__)


def train(task: Task, out_dir: Path) -> Json:
    """Run a training to its end; resume from the last saved state if there is one.

    Args:
        task: the model with its data and loss.
        out_dir: receives the model, `curve.jsonl`, `training.json` and, until the training ends, a folder `state-*`.

    Returns:
        The content of training.json.

    Raises:
        ValueError: the saved state has other settings, or a loss or gradient is not finite.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    loop = Loop(task, out_dir)
    loop.run()
    logger.info("evaluating on held-out recordings")
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
    # Written last: a training is finished if this file exists.
    write_json(out_dir / "training.json", report)
    if not task.keep_state:
        remove_states(out_dir)
    return report


class Loop:
    """Training of a task: the optimizer, and the steps and seconds so far."""

    def __init__(self, task: Task, out_dir: Path) -> None:
        self.task, self.out_dir = task, out_dir
        self.settings = dict(json.loads(json.dumps(asdict(task.settings))))  # in JSON's types: a tuple becomes a list
        self.accelerator = open_accelerator(task.device_name, task.precision)
        # The parts are prepared as one module that is never called, because each loss decides what runs under autocast.
        self.accelerator.prepare(nn.ModuleDict(task.parts()))
        self.optimizer = self.accelerator.prepare(task.build_optimizer())
        self.step, self.elapsed_s = load_state(self.accelerator, out_dir, self.settings)
        self._seen: list[dict[str, float]] = []
        self._line_at = self._saved_at = self.elapsed_s

    @property
    def progress(self) -> float:
        """Share of the training that is done."""
        return self.task.length.progress(self.step, self.elapsed_s)

    def run(self) -> None:
        """Update until the training is over."""
        with progress_bar(self.task.name) as show:
            while self.progress < 1:
                started = time.monotonic()
                self._seen.append(self._update())
                self.step += 1
                # Count training time only: an evaluation or a saved state must not shorten the training.
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

    def write_line(self, held_out: Json, *, log: bool = True) -> Json:
        """Append a line to the curve: step, elapsed_s, mean metrics since the last line, held-out metrics.

        Args:
            held_out: held-out metrics.
            log: log the line even if there are no held-out metrics.

        Returns:
            The line, without numbers that are not finite; empty, and not written, if there is nothing new.
        """
        if not (self._seen or held_out):
            return {}
        line = {"step": self.step, "elapsed_s": self.elapsed_s, **_means(self._seen), **held_out}
        line = {
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in line.items()
            if not isinstance(value, float) or math.isfinite(value)
        }
        self._seen, self._line_at = [], self.elapsed_s
        with (self.out_dir / "curve.jsonl").open("a", encoding="utf-8") as curve:
            curve.write(strict_json(line) + "\n")
        if log or held_out:
            said = figure_words(self.task.words(line))
            # The last update may end after the last minute.
            percent = 100 * min(self.progress, 1.0)
            logger.info("%3.0f %%, step %d, %s: %s", percent, self.step, clock(self.elapsed_s), said)
        return line


def _means(seen: list[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for one in seen for name in one)
    return {name: float(np.mean([one[name] for one in seen if name in one])) for name in names}


def clip_gradients(model: nn.Module, max_norm: float) -> None:
    """Clip the gradients' total norm, before an update.

    Raises:
        ValueError: the norm is not finite, so that an update would make all weights NaN; the last state is intact.
    """
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    # accelerate's clipping would spread a NaN over all gradients, so that the error could not name the first one.
    norm = nn.utils.get_total_norm(gradients.values())
    if not bool(norm.isfinite()):
        bad = next((name for name, gradient in gradients.items() if not bool(gradient.isfinite().all())), "their norm")
        raise ValueError(
            f"gradients must be finite, got NaN or infinity in {bad}; give the same command to resume from the last "
            "saved state; change settings or recordings if the error repeats"
        )
    nn.utils.clip_grads_with_norm_(model.parameters(), max_norm, norm)


def check_loss(loss: float, step: int) -> None:
    """Check a loss, before its update.

    Raises:
        ValueError: the loss is not finite.
    """
    if not math.isfinite(loss):
        raise ValueError(
            f"the loss must be finite, got {loss} at step {step}; give the same command to resume from the last "
            "saved state; change settings or recordings if the error repeats"
        )


# ---------------------------------------------------------------------------------------------------------------------
# The device


def open_device(name: str) -> torch.device:
    """Return a device by its name; empty: a GPU if there is one, else the CPU.

    Raises:
        ValueError: torch does not know the device, or this machine does not have the device.
    """
    chosen = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=chosen).cpu()
    # torch built without a device fails by an assertion. NotImplementedError is a RuntimeError.
    except (RuntimeError, AssertionError):
        raise ValueError(
            f"--device must be a torch device of this machine, got {name!r}; use cpu, or cuda if there is a GPU"
        ) from None
    return torch.device(chosen)


def open_accelerator(name: str, precision: str) -> Accelerator:
    """Create the accelerator of one training.

    Args:
        name: name of the device, as in `open_device`.
        precision: `bf16` or `fp32`.

    Raises:
        ValueError: the machine does not have the device, or accelerate chooses another device.
    """
    device = open_device(name)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # accelerate uses the current device
    # One process may run several trainings, but accelerate keeps the first one's device and precision.
    AcceleratorState._reset_state(reset_partial_state=True)
    # At its default level, accelerate logs each file of each saved state.
    logging.getLogger("accelerate").setLevel(logging.WARNING)
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="bf16" if precision == "bf16" else "no")
    if accelerator.device.type != device.type:
        raise ValueError(f"--device must be cpu or {accelerator.device.type} on this machine, got {name!r}")
    return accelerator
