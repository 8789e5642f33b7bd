"""The loop of a training: by the clock or by steps, with a curve, and resumable. Knows nothing of what is trained."""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from rlir_ray.data.files import strict_json, write_json
from rlir_ray.pretrain.finished import FREE_SETTINGS
from rlir_ray.run.progress import clock, figure_words, progress_bar

logger = logging.getLogger(__name__)


class LoopSettings(Protocol):
    """What the loop reads of a training's settings, a dataclass."""

    @property
    def minutes(self) -> float: ...

    @property
    def num_steps(self) -> int: ...

    @property
    def evaluate_every_s(self) -> float: ...


class Stateful(Protocol):
    """A module or an optimiser."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any) -> Any: ...


@dataclass
class Loop:
    """Args:
    name: on the progress bar.
    out_dir: receives `curve.jsonl`, and `checkpoint.pt` until the training is done.
    settings: `minutes` (where 0 `num_steps` count), `evaluate_every_s`; all of them must be the same when it goes on.
    parts: everything that an update changes.
    """

    name: str
    out_dir: Path
    settings: LoopSettings
    parts: Mapping[str, Stateful]
    step: int = 0
    elapsed_s: float = 0.0

    @property
    def progress(self) -> float:
        """The share of the training that is done."""
        if self.settings.minutes:
            return self.elapsed_s / 60 / self.settings.minutes
        return self.step / self.settings.num_steps

    def run(
        self, update: Callable[[int, float], dict[str, float]], evaluate: Callable[[], dict[str, float]]
    ) -> dict[str, float]:
        """Trains to the end, from the checkpoint if there is one.

        Args:
            update: one step, called with its number (the draws' seed, so that a resumed training sees what it would
                have seen) and the progress in [0, 1); returns its metrics.
            evaluate: held-out figures.

        Returns:
            The last line of the curve: step, elapsed_s, mean metrics since the line before, held-out figures.
        """
        self.out_dir.mkdir(parents=True, exist_ok=True)
        if self._checkpoint.is_file():
            self._resume()
        started, evaluated_s = time.monotonic() - self.elapsed_s, self.elapsed_s
        seen: list[dict[str, float]] = []
        with progress_bar(self.name) as show:
            while self.progress < 1:
                seen.append(update(self.step, self.progress))
                self.step, self.elapsed_s = self.step + 1, time.monotonic() - started
                show(self.progress, f"loss {seen[-1]['loss']:.3f}")
                if self.elapsed_s - evaluated_s >= self.settings.evaluate_every_s:
                    paused = time.monotonic()
                    self._write_line(seen, evaluate())
                    self._save()
                    seen, evaluated_s = [], self.elapsed_s
                    # The minutes are those of training.
                    started += time.monotonic() - paused
        logger.info("scoring on held-out recordings")
        return self._write_line(seen, evaluate())

    def finish(self, report: Mapping[str, Any]) -> None:
        """Writes training.json, by which a training is known as finished, and drops the checkpoint."""
        about = {
            "settings": asdict(self.settings),  # type: ignore[call-overload]
            "steps": self.step, "elapsed_s": round(self.elapsed_s, 1), **report,
            "torch": torch.__version__, "machine": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(), "load_average": os.getloadavg(),
        }  # fmt: skip
        write_json(self.out_dir / "training.json", about)
        self._checkpoint.unlink(missing_ok=True)

    @property
    def _checkpoint(self) -> Path:
        return self.out_dir / "checkpoint.pt"

    def _write_line(self, seen: list[dict[str, float]], figures: dict[str, float]) -> dict[str, float]:
        means = {name: float(np.mean([one[name] for one in seen])) for name in (seen[0] if seen else ())}
        line = {"step": self.step, "elapsed_s": self.elapsed_s, **means, **figures}
        line = {name: round(value, 4) for name, value in line.items() if math.isfinite(value)}
        with (self.out_dir / "curve.jsonl").open("a", encoding="utf-8") as curve:
            curve.write(strict_json(line) + "\n")
        said = {name: value for name, value in line.items() if name not in ("step", "elapsed_s")}
        # An update that ends after the last minute makes no more than the whole.
        percent = 100 * min(self.progress, 1.0)
        logger.info("%3.0f %%, step %d, %s: %s", percent, self.step, clock(self.elapsed_s), figure_words(said))
        return line

    def _save(self) -> None:
        state = {name: part.state_dict() for name, part in self.parts.items()}
        state |= {"step": self.step, "elapsed_s": self.elapsed_s, "settings": _plain(self.settings)}
        temporary = self._checkpoint.with_suffix(".tmp")
        torch.save(state, temporary)
        temporary.replace(self._checkpoint)  # never half a checkpoint under the final name

    def _resume(self) -> None:
        state = torch.load(self._checkpoint, weights_only=True)
        held, asked = state["settings"], _plain(self.settings)
        changed = sorted(name for name in asked if name not in FREE_SETTINGS and held.get(name) != asked[name])
        if changed:
            raise ValueError(
                f"a resumed training must keep its settings, got another {', '.join(changed)}; remove "
                f"{self._checkpoint}"
            )
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        self.step, self.elapsed_s = int(state["step"]), float(state["elapsed_s"])
        logger.info("goes on from step %d of %s", self.step, self._checkpoint)


def _plain(settings: Any) -> dict[str, Any]:
    """Settings as JSON holds them, tuples as lists."""
    return dict(json.loads(json.dumps(asdict(settings))))


def cosine_rate(progress: float, least: float = 0.05) -> float:
    """Share of the highest learning rate: linear over the first 2 %, then a cosine down to `least`."""
    if progress < 0.02:
        return max(progress, 1e-4) / 0.02
    return least + (1 - least) * 0.5 * (1 + math.cos(math.pi * (progress - 0.02) / 0.98))


def clip_gradients(model: nn.Module, max_norm: float) -> None:
    """Clips the gradients' total norm, before an update.

    Raises:
        ValueError: it is not finite, so that the update would make all weights NaN; the last checkpoint stays good.
    """
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    norm = nn.utils.get_total_norm(gradients.values())
    if not bool(norm.isfinite()):
        bad = next((name for name, gradient in gradients.items() if not bool(gradient.isfinite().all())), "their norm")
        raise ValueError(
            f"gradients must be finite, got NaN or infinity in {bad}; give the same command to go on from the last "
            "checkpoint, and with other settings or recordings where it happens again"
        )
    nn.utils.clip_grads_with_norm_(model.parameters(), max_norm, norm)
