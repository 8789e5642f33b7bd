"""LPIPS with random weights of AlexNet and VGG16, and the published heads."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rlir_ray.models.lpips import ALEXNET, LPIPS, VGG16, Network, shipped_heads


def random_backbone(network: Network = ALEXNET) -> dict[str, Tensor]:
    """Tensors as torchvision names them, one of the classifier's among them; activations keep their size by layer."""
    random = torch.Generator().manual_seed(0)
    state = {
        name: torch.randn(shape, generator=random) * math.sqrt(2 / math.prod(shape[1:]))
        for name, shape in network.backbone_shapes.items()
    }
    return {**state, "classifier.1.weight": torch.zeros(2, 2)}


def pictures(num: int, seed: int, height: int = 40, width: int = 52) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num, height, width, 3), generator=random, dtype=torch.uint8)


@pytest.fixture
def backbone_path(tmp_path: Path) -> Path:
    torch.save(random_backbone(), tmp_path / "alexnet.pth")
    return tmp_path / "alexnet.pth"


def alexnet_features() -> list[nn.Module]:
    return [
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
    ]


def vgg16_features() -> list[nn.Module]:
    modules: list[nn.Module] = []
    width = 3
    for block in ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)):
        for wide in block:
            modules += [nn.Conv2d(width, wide, 3, padding=1), nn.ReLU()]
            width = wide
        modules.append(nn.MaxPool2d(2, 2))
    return modules


@torch.no_grad()
def independent(one: Tensor, other: Tensor, network: Network, features: nn.Sequential, compared: list[int]) -> Tensor:
    """The paper's formula on torchvision's list of modules; `compared` are numbers of modules; to [n]."""
    state = random_backbone(network)
    features.load_state_dict({name.removeprefix("features."): state[name] for name in network.backbone_shapes})
    heads = torch.load(shipped_heads(network), map_location="cpu", weights_only=True)

    def unit_activations(pixels: Tensor) -> list[Tensor]:
        shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
        x = ((pixels / 255 * 2 - 1 - shift) / scale).permute(0, 3, 1, 2)
        found = []
        for number, module in enumerate(features):
            x = module(x)
            if number in compared:
                found.append(nn.functional.normalize(x, dim=1))
        return found

    total = torch.zeros(len(one))
    for layer, (first, second) in enumerate(zip(unit_activations(one), unit_activations(other), strict=True)):
        weights = heads[f"lin{layer}.model.1.weight"].flatten()
        total += torch.einsum("nchw,c->nhw", (first - second) ** 2, weights).mean((1, 2))
    return total


@pytest.mark.parametrize(
    ("network", "features", "compared"),
    [(ALEXNET, alexnet_features, [1, 4, 7, 9, 11]), (VGG16, vgg16_features, [3, 8, 15, 22, 29])],
    ids=["alexnet", "vgg16"],
)
def test_the_distance_is_the_papers_formula(
    tmp_path: Path, network: Network, features: Callable[[], list[nn.Module]], compared: list[int]
) -> None:
    save_file(random_backbone(network), tmp_path / "backbone.safetensors")
    one, other = pictures(3, 1), pictures(3, 2)
    distance = LPIPS(tmp_path / "backbone.safetensors", network=network)
    found = distance(one, other)
    assert found.dtype == torch.float32 and found.shape == (3,)
    assert (found > 0.01).all()
    expected = independent(one, other, network, nn.Sequential(*features()), compared)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    # The smallest pictures leave a place in every layer.
    side = network.min_side
    assert distance(pictures(1, 1, side, side), pictures(1, 2, side, side)).isfinite().all()


def test_equal_pictures_are_at_no_distance_and_the_order_does_not_matter(backbone_path: Path) -> None:
    distance = LPIPS(backbone_path)
    one, other = pictures(2, 1), pictures(2, 2)
    assert distance(one, one).tolist() == [0, 0]
    assert distance(torch.zeros_like(one), torch.zeros_like(one)).tolist() == [0, 0]
    assert torch.equal(distance(one, other), distance(other, one))


def test_chunks_change_nothing(backbone_path: Path) -> None:
    one, other = pictures(5, 1), pictures(5, 2)
    parts = LPIPS(backbone_path, network=dataclasses.replace(ALEXNET, max_pictures=2))(one, other)
    torch.testing.assert_close(parts, LPIPS(backbone_path)(one, other), rtol=1e-5, atol=1e-7)


def test_weights_are_read_from_safetensors_too(backbone_path: Path, tmp_path: Path) -> None:
    save_file(random_backbone(), tmp_path / "alexnet.safetensors")
    heads = torch.load(shipped_heads(), map_location="cpu", weights_only=True)
    save_file(heads, tmp_path / "heads.safetensors")
    one, other = pictures(1, 1), pictures(1, 2)
    found = LPIPS(tmp_path / "alexnet.safetensors", tmp_path / "heads.safetensors")(one, other)
    assert torch.equal(found, LPIPS(backbone_path)(one, other))


def test_a_missing_file_is_named(tmp_path: Path, backbone_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be an existing file, got .*absent\.pth"):
        LPIPS(tmp_path / "absent.pth")
    with pytest.raises(ValueError, match=r"must be an existing file, got .*absent\.pth"):
        LPIPS(backbone_path, tmp_path / "absent.pth")


def test_tensors_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    state = random_backbone()
    del state["features.3.bias"]
    state["features.0.weight"] = torch.zeros(64, 3, 7, 7)
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(ValueError) as error:
        LPIPS(tmp_path / "other.pth")
    assert "features.3.bias is missing; features.0.weight is [64, 3, 7, 7], not [64, 3, 11, 11]" in str(error.value)


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (pictures(2, 1), pictures(3, 1), "have one shape"),
        (pictures(2, 1).float(), pictures(2, 1), r"uint8 \[n, H, W, 3\], got torch.float32"),
        (pictures(2, 1)[0], pictures(2, 1)[0], r"uint8 \[n, H, W, 3\]"),
        (pictures(1, 1, 30, 31), pictures(1, 1, 30, 31), r">= 31, got \[30, 31\]"),
    ],
)
def test_pictures_of_another_kind_are_refused(backbone_path: Path, one: Tensor, other: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LPIPS(backbone_path)(one, other)


def test_weights_of_the_other_network_are_refused(backbone_path: Path) -> None:
    with pytest.raises(ValueError, match=r"VGG16's weights must have VGG16's shapes, .*features\.2\.weight is missing"):
        LPIPS(backbone_path, network=VGG16)
