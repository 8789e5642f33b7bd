"""The term `recorded`: distance of the generated frames to the recorded future (the reward of RLVR-World).

Legend: G trajectories of a group, F generated frames, H W pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from rlir_ray.config import require
from rlir_ray.models.lpips import ALEXNET, LPIPS, VGG16
from rlir_ray.rewards.term import GroupClips, Term

if TYPE_CHECKING:
    from rlir_ray.rewards.base import RewardContext

PixelError = Literal["mae", "mse"]
Over = Literal["mean", "last", "discounted"]
NETWORKS = {"vgg": VGG16, "alex": ALEXNET}


class RecordedTerm(Term):
    """Minus the error of each frame: MAE or MSE of pixels in 0..1, plus LPIPS if its weights are given.

    RLVR-World (https://arxiv.org/abs/2505.13934) rewards minus this error. Its recorded frames are the original ones;
    ours went through the codec, so that the codec's own error does not count.

    Args:
        error: `mae` or `mse`.
        error_weight: factor of the pixel error.
        lpips: file of the network's published weights; empty: no LPIPS.
        lpips_weight: factor of LPIPS.
        network: `vgg` or `alex`, the network of `lpips`.
        over: how the frames weigh in the clip's mean: `mean`: alike; `last`: only the last one; `discounted`: by
            `discount` to the power of the frame's number.
        discount: in (0, 1].
        device: device of the LPIPS network.

    Raises:
        ValueError: an argument is out of its range, or the file holds other weights.
    """

    reads_recorded = True
    paths = ("lpips",)

    def __init__(
        self,
        error: PixelError = "mae",
        error_weight: float = 1.0,
        lpips: str = "",
        lpips_weight: float = 1.0,
        network: str = "vgg",
        over: Over = "mean",
        discount: float = 0.9,
        device: str = "cpu",
    ) -> None:
        for name, value, known in (
            ("error", error, get_args(PixelError)),
            ("over", over, get_args(Over)),
            ("network", network, tuple(NETWORKS)),
        ):
            key = f"args.{name} of the term recorded"
            require(value in known, key, f"must be one of {', '.join(known)}", value, f"use {known[0]}")
        require(0 < discount <= 1, "args.discount of the term recorded", "must be in (0, 1]", discount, "use 0.9")
        self.error, self.error_weight, self.lpips_weight = error, error_weight, lpips_weight
        self.over, self.discount = over, discount
        self.lpips = LPIPS(lpips, device=device, network=NETWORKS[network]) if lpips else None

    # Any: the arguments that the user names.
    @classmethod
    def from_context(cls, context: RewardContext, **args: Any) -> RecordedTerm:
        return cls(device=context.device, **args)

    def score(self, clips: GroupClips) -> Tensor:
        """Return minus the error of each frame, [G, F]."""
        assert clips.recorded is not None
        generated, recorded = clips.generated, clips.recorded.expand_as(clips.generated)
        errors = self.error_weight * pixel_errors(generated.float() / 255, recorded.float() / 255, self.error)
        if self.lpips is not None:
            distances = self.lpips(generated.flatten(0, 1), recorded.flatten(0, 1)).view(errors.shape)
            errors = errors + self.lpips_weight * distances.to(errors.device)
        return -errors * frame_shares(errors.shape[1], self.over, self.discount).to(errors.device)


def pixel_errors(generated: Tensor, recorded: Tensor, error: str) -> Tensor:
    """Average the error of each frame over its pixels, [G, F, ...] to [G, F]."""
    difference = (generated - recorded).flatten(2)
    return difference.square().mean(-1) if error == "mse" else difference.abs().mean(-1)


def frame_shares(num_frames: int, over: str, discount: float) -> Tensor:
    """Return the factors of the frames, float32 [F], with the mean 1: the clip's mean is RLVR-World's reward."""
    if over == "mean":
        return torch.ones(num_frames)
    if over == "last":
        return torch.nn.functional.one_hot(torch.tensor(num_frames - 1), num_frames).float() * num_frames
    shares = discount ** torch.arange(num_frames, dtype=torch.float32)
    return shares * num_frames / shares.sum()
