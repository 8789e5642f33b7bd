"""The watch over a policy in training: evaluations on a few prompts, alarms, and the rule that ends the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rlir_ray.config import EvaluationConfig
from rlir_ray.evaluation.alarms import Sign, entropy_sign


class Watch:
    """Alarms of a run: a line for each, a metric for each sign.

    Args:
        config: the alarms that end the run.
        progress: called with a line for each alarm.
    """

    def __init__(self, config: EvaluationConfig, progress: Callable[[str], None]) -> None:
        self.config, self.progress = config, progress
        self.metrics: dict[str, float] = {}
        """Figures and signs of the latest evaluation, which every later step logs."""
        self.stopped_by = ""
        """The alarm that ends the run; empty: none."""
        self._raised: set[str] = set()

    def after_evaluation(self, figures: Mapping[str, float], signs: Mapping[str, Sign]) -> None:
        """Keep the figures of an evaluation as metrics, and raise its alarms."""
        self.metrics = {f"heldout/{name}": value for name, value in figures.items()}
        self.metrics |= {f"sign/{name}": sign.value for name, sign in signs.items()}
        for name, sign in signs.items():
            self._check(name, sign)

    def after_step(self, history: Sequence[Mapping[str, float]]) -> None:
        """Raise the alarm of the entropy."""
        if sign := entropy_sign(history):
            self._check("entropy", sign)

    def _check(self, name: str, sign: Sign) -> None:
        if not sign.is_alarm:
            self._raised.discard(name)
            return
        if name not in self._raised:
            self._raised.add(name)
            ends = name in self.config.stop_on
            self.progress(f"alarm {name}: {sign.text}" + ("; the run ends (evaluation.stop_on)" if ends else ""))
        if name in self.config.stop_on:
            self.stopped_by = name
