"""A term of one's own: generated frames shall be as bright as asked for."""

from __future__ import annotations

from torch import Tensor

from rlir_ray.rewards import GroupClips, Term


class BrightnessTarget(Term):
    def __init__(self, target: float = 0.5) -> None:
        """`target`, from 0 (black) to 1 (white), comes from the term's args."""
        self.target = target

    def score(self, clips: GroupClips) -> Tensor:
        """Give each generated frame of each clip a number, [G, F]; higher is better."""
        brightness = clips.generated.float().mean((2, 3, 4)) / 255
        return 1 - (brightness - self.target).abs()
