"""LPIPS v0.1 with AlexNet: the perceptual distance of two pictures (arXiv 1801.03924).

Needs a file with AlexNet's published weights, but not torchvision. Legend: n pictures, C channels.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from rlir_ray.models.checkpoints import read_state_dict

# AlexNet's five convolutions: number in torchvision's state dict, weight [out, in, side, side], stride, padding.
CONVOLUTIONS = (
    (0, (64, 3, 11, 11), 4, 2),
    (3, (192, 64, 5, 5), 1, 2),
    (6, (384, 192, 3, 3), 1, 1),
    (8, (256, 384, 3, 3), 1, 1),
    (10, (256, 256, 3, 3), 1, 1),
)
POOLED = (3, 6)  # convolutions after a max-pool of 3 with stride 2
BACKBONE_SHAPES = {
    f"features.{number}.{kind}": shape if kind == "weight" else shape[:1]
    for number, shape, _, _ in CONVOLUTIONS
    for kind in ("weight", "bias")
}
HEAD_SHAPES = {f"lin{index}.model.1.weight": (1, shape[0], 1, 1) for index, (_, shape, _, _) in enumerate(CONVOLUTIONS)}

# LPIPS scales RGB in -1..1 by these.
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
EPSILON = 1e-10  # avoids 0 / 0 at a position without any activation
MIN_SIDE = 31  # the second pool reduces smaller pictures to nothing
# Pictures that the network processes at once, to bound the memory.
MAX_PICTURES = 64


class LPIPS:
    """The distance between pictures, with the weights of its network.

    Args:
        backbone_path: torchvision's AlexNet state dict (alexnet-owt-7be5be79.pth), as .safetensors or a torch file.
        heads_path: the linear heads of LPIPS v0.1 (alex.pth); None: the file that torchmetrics ships.
        device: device of the network.

    Raises:
        ValueError: a file or a tensor is missing, or a tensor has another shape.

    Example: ``LPIPS("alexnet-owt-7be5be79.pth")(frames, frames)`` returns a zero for each frame.
    """

    def __init__(
        self, backbone_path: str | Path, heads_path: str | Path | None = None, device: str | torch.device = "cpu"
    ) -> None:
        self.device = torch.device(device)
        self.backbone = _read(Path(backbone_path), BACKBONE_SHAPES, "AlexNet's weights", self.device)
        self.heads = _read(Path(heads_path or shipped_heads()), HEAD_SHAPES, "LPIPS's heads", self.device)

    @torch.no_grad()
    def __call__(self, one: Tensor, other: Tensor) -> Tensor:
        """Compute the distance of each pair of pictures.

        Args:
            one, other: uint8 [n, H, W, 3] RGB, height and width at least 31.

        Returns:
            float32 [n], on the CPU; symmetric, and 0 for equal pictures.

        Raises:
            ValueError: the pictures have another type or shape, or differ in size.
        """
        if one.shape != other.shape:
            raise ValueError(f"pictures must have one shape, got {list(one.shape)} and {list(other.shape)}; resize one")
        if one.ndim != 4 or one.shape[-1] != 3 or {one.dtype, other.dtype} != {torch.uint8}:
            raise ValueError(
                f"pictures must be uint8 [n, H, W, 3], got {one.dtype} and {other.dtype} {list(one.shape)}; "
                "flatten clips to frames and round them"
            )
        if min(one.shape[1:3]) < MIN_SIDE:
            raise ValueError(
                f"AlexNet needs a height and width >= {MIN_SIDE}, got {list(one.shape[1:3])}; enlarge the pictures"
            )
        chunks = zip(one.split(MAX_PICTURES), other.split(MAX_PICTURES), strict=True)
        return torch.cat([self._distances(*chunk).cpu() for chunk in chunks])

    def _distances(self, one: Tensor, other: Tensor) -> Tensor:
        """Sum over the layers the spatial mean of the weighted squared differences, [n]."""
        distances = torch.zeros(len(one), device=self.device)
        layers = zip(self.heads.values(), self._activations(one), self._activations(other), strict=True)
        for head, first, second in layers:
            distances += functional.conv2d((first - second) ** 2, head).mean((1, 2, 3))
        return distances

    def _activations(self, pictures: Tensor) -> Iterator[Tensor]:
        """Yield the activations [n, C, height, width] of each convolution, normalised to length 1 over the channels."""
        shift, scale = (torch.tensor(values, device=self.device).view(3, 1, 1) for values in (SHIFT, SCALE))
        x = pictures.to(self.device).movedim(-1, 1).float() / 127.5 - 1
        x = (x - shift) / scale
        for number, _, stride, padding in CONVOLUTIONS:
            if number in POOLED:
                x = functional.max_pool2d(x, 3, 2)
            weight, bias = (self.backbone[f"features.{number}.{kind}"] for kind in ("weight", "bias"))
            x = functional.relu(functional.conv2d(x, weight, bias, stride, padding))
            yield x / (x.norm(dim=1, keepdim=True) + EPSILON)


def shipped_heads() -> Path:
    """Find torchmetrics' file of the heads without importing torchmetrics, which takes seconds."""
    found = importlib.util.find_spec("torchmetrics")
    folder = Path(found.origin).parent if found and found.origin else Path("torchmetrics")
    return folder / "functional" / "image" / "lpips_models" / "alex.pth"


def _read(path: Path, shapes: Mapping[str, tuple[int, ...]], what: str, device: torch.device) -> dict[str, Tensor]:
    """Read the tensors that `shapes` names, in its order, as float32."""
    state = read_state_dict(path)
    wrong = [f"{key} is missing" for key in shapes if key not in state]
    wrong += [
        f"{key} is {list(state[key].shape)}, not {list(shape)}"
        for key, shape in shapes.items()
        if key in state and state[key].shape != shape
    ]
    if wrong:
        raise ValueError(f"{what} must have AlexNet's shapes, in {path} {'; '.join(wrong)}; give the published file")
    return {key: state[key].to(device, torch.float32) for key in shapes}
