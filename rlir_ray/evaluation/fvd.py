"""Fréchet video distance in StyleGAN-V's form (arXiv 2112.14683), between the I3D features of two sets of clips.

The numbers are those of github.com/JunyaoHu/common_metrics_on_video_quality (`method='styleganv'`). MineWorld reports
the mean of the distances of the first 10, 11, ... F frames. Legend: B clips, F frames, D features.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

SIDE = 224  # I3D was trained on pictures of this height and width
MIN_FRAMES = 10  # I3D's strides reduce fewer frames to none
# Clips that the network processes at once, to bound the memory.
MAX_CLIPS = 8


class I3D:
    """The network that computes the features of clips.

    Args:
        path: TorchScript file of the network (i3d_torchscript.pt). Loading unpickles no Python objects. But the file is
            a program that TorchScript runs: use a file from a source that you trust.
        device: device of the network.

    Raises:
        ValueError: the file does not exist or is no TorchScript file.
    """

    def __init__(self, path: str | Path, device: str | torch.device = "cpu") -> None:
        if not Path(path).is_file():
            raise ValueError(
                f"I3D must be a TorchScript file, got {path}; download i3d_torchscript.pt and give its path"
            )
        self.device = torch.device(device)
        try:
            self.network = torch.jit.load(str(path), map_location=self.device).eval()
        except RuntimeError:
            raise ValueError(
                f"I3D must be a TorchScript file, got another format: {path}; give i3d_torchscript.pt"
            ) from None
        self.path = path

    @torch.no_grad()
    def __call__(self, clips: Tensor) -> npt.NDArray[np.float64]:
        """Compute the features of clips.

        Args:
            clips: uint8 [B, F, H, W, 3] RGB, at least 10 frames.

        Returns:
            float64 [B, D], the values before the softmax; the published network has 400.

        Raises:
            ValueError: the clips have another type or shape, or are too short.
        """
        if clips.ndim != 5 or clips.shape[-1] != 3 or clips.dtype != torch.uint8:
            raise ValueError(f"clips must be uint8 [B, F, H, W, 3], got {clips.dtype} {list(clips.shape)}; round them")
        if clips.shape[1] < MIN_FRAMES:
            raise ValueError(f"FVD needs clips of at least {MIN_FRAMES} frames, got {clips.shape[1]}; generate more")
        features = torch.cat([self._features(chunk.to(self.device)) for chunk in clips.split(MAX_CLIPS)])
        if features.ndim != 2:
            raise ValueError(
                f"I3D must give features [B, D], got {list(features.shape)} from {self.path}; give i3d_torchscript.pt"
            )
        return features.cpu().double().numpy()

    def _features(self, clips: Tensor) -> Tensor:
        try:
            features: Tensor = self.network(i3d_input(clips), rescale=False, resize=False, return_features=True)
            return features
        except RuntimeError as error:
            if "forward()" not in str(error):
                raise
            raise ValueError(
                f"I3D must take rescale, resize and return_features, got another program in {self.path}; give "
                "i3d_torchscript.pt"
            ) from None


def i3d_input(clips: Tensor) -> Tensor:
    """Convert clips to I3D's input: resize the shorter side to 224, crop the middle of the longer side.

    Args:
        clips: uint8 [B, F, H, W, 3].

    Returns:
        float32 [B, 3, F, 224, 224] in -1..1.
    """
    height, width = clips.shape[2:4]
    # The published code rounds the longer side up; for a square clip it computes the height.
    scale = SIDE / min(height, width)
    size = (SIDE, math.ceil(width * scale)) if height < width else (math.ceil(height * scale), SIDE)
    frames = clips.flatten(0, 1).movedim(-1, 1).float() / 255  # [B·F, 3, H, W]
    frames = functional.interpolate(frames, size, mode="bilinear", align_corners=False)
    top, left = (size[0] - SIDE) // 2, (size[1] - SIDE) // 2
    frames = (frames[..., top : top + SIDE, left : left + SIDE] - 0.5) * 2
    whole: Tensor = frames.unflatten(0, clips.shape[:2])
    return whole.transpose(1, 2).contiguous()


def fvd(i3d: I3D, generated: Tensor, real: Tensor) -> float:
    """Compute the distance of generated from real clips.

    Distances are comparable only for equal numbers of clips and frames.

    Args:
        i3d: the network.
        generated, real: uint8 [B, F, H, W, 3], generated and recorded frames; B may differ.

    Raises:
        ValueError: the clips differ in size, are too short, or are fewer than 2.
    """
    if generated.shape[1:] != real.shape[1:]:
        raise ValueError(
            f"generated and real clips must have one shape [F, H, W, 3], got {list(generated.shape[1:])} and "
            f"{list(real.shape[1:])}; cut both to the generated frames"
        )
    return frechet_distance(i3d(generated), i3d(real))


def prefix_features(i3d: I3D, clips: Tensor) -> list[npt.NDArray[np.float64]]:
    """Compute the features of the first 10, 11, ... F frames of clips uint8 [B, F, H, W, 3], float64 [B, D] each."""
    return [i3d(clips[:, :num_frames]) for num_frames in range(MIN_FRAMES, clips.shape[1] + 1)]


def frechet_distance(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    """Compute the squared Fréchet distance of two Gaussians: |mu1 - mu2|² + Tr(S1 + S2 - 2 (S1 S2)^(1/2)).

    mu and S are the mean and the covariance (divided by n - 1) of the features. With S = Rᵀ R, the trace of the root is
    the sum of the singular values of R1 R2ᵀ, whose squares are the eigenvalues of S1 S2. This sum is exact to rounding
    even if S1 S2 is singular, which holds for fewer clips than features. There the published `scipy.linalg.sqrtm` loses
    digits.

    Args:
        one, other: float64 [B, D] of at least 2 clips; B may differ.

    Raises:
        ValueError: there are fewer than 2 clips, or a feature is not finite.
    """
    if min(len(one), len(other)) < 2:
        raise ValueError(f"FVD needs at least 2 clips on each side, got {len(one)} and {len(other)}; generate more")
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        raise ValueError("FVD needs finite features, got others; check the I3D file")
    means = ((one.mean(0) - other.mean(0)) ** 2).sum()
    first, second = _covariance_root(one), _covariance_root(other)
    root_trace = np.linalg.svd(first @ second.T, compute_uv=False).sum()
    # Rounding can make the distance of equal sets negative.
    return max(0.0, float(means + (first**2).sum() + (second**2).sum() - 2 * root_trace))


def _covariance_root(features: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return R [min(B, D), D], where Rᵀ R is the covariance of features [B, D]."""
    return np.linalg.qr((features - features.mean(0)) / math.sqrt(len(features) - 1)).R
