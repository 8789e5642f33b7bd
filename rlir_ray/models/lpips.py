"""LPIPS v0.1 with AlexNet or VGG16: the perceptual distance of two pictures (arXiv 1801.03924).

Needs a file with the network's published weights, but not torchvision. Legend: n pictures, C channels.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from rlir_ray.models.checkpoints import read_state_dict

Convolution = tuple[int, tuple[int, int, int, int], int, int]


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network whose activations LPIPS compares."""

    name: str
    convolutions: tuple[Convolution, ...]
    """Number in torchvision's state dict, weight [out, in, side, side], stride and padding."""
    pools: tuple[int, ...]
    """Convolutions after a max-pool with stride 2."""
    pool_side: int
    compared: tuple[int, ...]
    """Convolutions whose activations count, each with a head."""
    heads: str
    """The file of the heads that torchmetrics ships."""
    min_side: int
    """The pools reduce smaller pictures to nothing."""
    max_pictures: int
    """Number of pictures in one pass, which bounds the memory: VGG16 compares 64 channels of the pictures' own size."""

    @property
    def backbone_shapes(self) -> dict[str, tuple[int, ...]]:
        return {
            f"features.{number}.{kind}": shape if kind == "weight" else shape[:1]
            for number, shape, _, _ in self.convolutions
            for kind in ("weight", "bias")
        }

    @property
    def head_shapes(self) -> dict[str, tuple[int, ...]]:
        widths = [shape[0] for number, shape, _, _ in self.convolutions if number in self.compared]
        return {f"lin{index}.model.1.weight": (1, width, 1, 1) for index, width in enumerate(widths)}


ALEXNET = Network(
    name="AlexNet",
    convolutions=(
        (0, (64, 3, 11, 11), 4, 2),
        (3, (192, 64, 5, 5), 1, 2),
        (6, (384, 192, 3, 3), 1, 1),
        (8, (256, 384, 3, 3), 1, 1),
        (10, (256, 256, 3, 3), 1, 1),
    ),
    pools=(3, 6),
    pool_side=3,
    compared=(0, 3, 6, 8, 10),
    heads="alex.pth",
    min_side=31,
    max_pictures=64,
)
VGG16 = Network(
    name="VGG16",
    convolutions=tuple(
        (number, (wide, narrow, 3, 3), 1, 1)
        for number, narrow, wide in (
            (0, 3, 64),
            (2, 64, 64),
            (5, 64, 128),
            (7, 128, 128),
            (10, 128, 256),
            (12, 256, 256),
            (14, 256, 256),
            (17, 256, 512),
            (19, 512, 512),
            (21, 512, 512),
            (24, 512, 512),
            (26, 512, 512),
            (28, 512, 512),
        )
    ),
    pools=(5, 10, 17, 24),
    pool_side=2,
    compared=(2, 7, 14, 21, 28),
    heads="vgg.pth",
    min_side=16,
    max_pictures=8,
)

# LPIPS scales RGB in -1..1 by these.
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
EPSILON = 1e-10  # avoids 0 / 0 at a position without any activation


class LPIPS:
    """The distance between pictures, with the weights of its network.

    Args:
        backbone_path: torchvision's state dict of the network (alexnet-owt-7be5be79.pth, vgg16-397923af.pth), as
            .safetensors or a torch file.
        heads_path: the linear heads of LPIPS v0.1 (alex.pth, vgg.pth); None: the file that torchmetrics ships.
        device: device of the network.
        network: `ALEXNET` or `VGG16`; their distances differ.

    Raises:
        ValueError: a file or a tensor is missing, or a tensor has another shape.

    Example: ``LPIPS("alexnet-owt-7be5be79.pth")(frames, frames)`` returns a zero for each frame.
    """

    def __init__(
        self,
        backbone_path: str | Path,
        heads_path: str | Path | None = None,
        device: str | torch.device = "cpu",
        network: Network = ALEXNET,
    ) -> None:
        self.device, self.network = torch.device(device), network
        self.backbone = self._read(Path(backbone_path), network.backbone_shapes, f"{network.name}'s weights")
        self.heads = self._read(Path(heads_path or shipped_heads(network)), network.head_shapes, "LPIPS's heads")

    @torch.no_grad()
    def __call__(self, one: Tensor, other: Tensor) -> Tensor:
        """Compute the distance of each pair of pictures.

        Args:
            one, other: uint8 [n, H, W, 3] RGB, height and width at least 31 (AlexNet) or 16 (VGG16).

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
        if min(one.shape[1:3]) < self.network.min_side:
            raise ValueError(
                f"{self.network.name} needs a height and width >= {self.network.min_side}, got "
                f"{list(one.shape[1:3])}; enlarge the pictures"
            )
        size = self.network.max_pictures
        chunks = zip(one.split(size), other.split(size), strict=True)
        return torch.cat([self._distances(*chunk).cpu() for chunk in chunks])

    def _distances(self, one: Tensor, other: Tensor) -> Tensor:
        """Sum over the layers the spatial mean of the weighted squared differences, [n]."""
        distances = torch.zeros(len(one), device=self.device)
        layers = zip(self.heads.values(), self._activations(one), self._activations(other), strict=True)
        for head, first, second in layers:
            distances += functional.conv2d((first - second) ** 2, head).mean((1, 2, 3))
        return distances

    def _activations(self, pictures: Tensor) -> Iterator[Tensor]:
        """Yield the compared activations [n, C, height, width], normalised to length 1 over the channels."""
        shift, scale = (torch.tensor(values, device=self.device).view(3, 1, 1) for values in (SHIFT, SCALE))
        x = pictures.to(self.device).movedim(-1, 1).float() / 127.5 - 1
        x = (x - shift) / scale
        for number, _, stride, padding in self.network.convolutions:
            if number in self.network.pools:
                x = functional.max_pool2d(x, self.network.pool_side, 2)
            weight, bias = (self.backbone[f"features.{number}.{kind}"] for kind in ("weight", "bias"))
            x = functional.relu(functional.conv2d(x, weight, bias, stride, padding))
            if number in self.network.compared:
                yield x / (x.norm(dim=1, keepdim=True) + EPSILON)

    def _read(self, path: Path, shapes: Mapping[str, tuple[int, ...]], what: str) -> dict[str, Tensor]:
        """Read the tensors that `shapes` names, in its order, as float32."""
        state = read_state_dict(path)
        wrong = [f"{key} is missing" for key in shapes if key not in state]
        wrong += [
            f"{key} is {list(state[key].shape)}, not {list(shape)}"
            for key, shape in shapes.items()
            if key in state and state[key].shape != shape
        ]
        if wrong:
            raise ValueError(
                f"{what} must have {self.network.name}'s shapes, in {path} {'; '.join(wrong)}; give the published file"
            )
        return {key: state[key].to(self.device, torch.float32) for key in shapes}


def shipped_heads(network: Network = ALEXNET) -> Path:
    """Find torchmetrics' file of the heads without importing torchmetrics, which takes seconds."""
    found = importlib.util.find_spec("torchmetrics")
    folder = Path(found.origin).parent if found and found.origin else Path("torchmetrics")
    return folder / "functional" / "image" / "lpips_models" / network.heads
