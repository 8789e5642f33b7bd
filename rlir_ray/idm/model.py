"""Base of the inverse dynamics models that `pretrain idm` trains: a network with exchangeable heads.

Legend: B clips, F frames, H W pixels, E features of a frame.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from rlir_ray.data.files import Json
from rlir_ray.idm.base import Reading, save_model
from rlir_ray.idm.heads import FieldHeads, Heads, Logits
from rlir_ray.idm.vpt_heads import VptHeads
from rlir_ray.models.checkpoints import assign_weights, read_state_dict
from rlir_ray.spaces.space import ActionSpace
from rlir_ray.spaces.vpt import VPT_SPACE

# A new model sees at most the pixels of VPT's published model; larger frames cost time and memory, not accuracy.
MAX_PIXELS = 128 * 128


@dataclass(frozen=True, kw_only=True)
class NetworkSizes:
    """Sizes of a new network; see `InverseDynamicsTraining`."""

    hidden_size: int = 256
    num_layers: int = 2
    num_heads: int = 4
    convolution_width: int = 1


DEFAULT_SIZES = NetworkSizes()


def build_heads(space: ActionSpace, hidden: int, temperature: float) -> Heads:
    """Return new heads: VPT's published ones for its space, otherwise one softmax a field."""
    return VptHeads(hidden, temperature) if space == VPT_SPACE else FieldHeads(space, hidden, temperature)


def working_size(height: int, width: int, multiple: int = 1) -> tuple[int, int]:
    """Return the size to which a new model resizes frames of this size: multiples, `MAX_PIXELS` together at most."""
    scale = min(1.0, (MAX_PIXELS / (height * width)) ** 0.5)
    height, width = (max(1, int(length * scale) // multiple) * multiple for length in (height, width))
    return height, width


class InverseDynamicsModel(nn.Module, ABC):
    """An inverse dynamics model with heads, which `pretrain idm` can train.

    A subclass builds its network in `__init__`, which sets `pi_head` and `size`. Its config.json names the class
    (`architecture`) and holds the action space (`rlir_ray.idm.base.with_space`).
    """

    pi_head: Heads
    size: tuple[int, int]
    """Height and width to which `frame_features` resizes frames."""

    def __init__(self, config: Json) -> None:
        super().__init__()
        self.config = config

    @property
    def space(self) -> ActionSpace:
        """The space of the actions that the model recovers."""
        return self.pi_head.space

    @property
    def device(self) -> torch.device:
        """The device that the model is on."""
        return next(self.pi_head.parameters()).device

    @classmethod
    @abstractmethod
    def small(cls, space: ActionSpace, height: int, width: int, sizes: NetworkSizes = DEFAULT_SIZES) -> Self:
        """Build a model with random weights for frames of one size.

        Args:
            space: of the actions.
            height, width: size of the recorded frames; see `working_size`.
            sizes: of the network.

        Raises:
            ValueError: the sizes do not fit each other.
        """

    @abstractmethod
    def frame_features(self, frames: Tensor, max_frames: int | None = None) -> Tensor:
        """Compute what the heads read of each frame, for clips of any length.

        Args:
            frames: uint8 [B, F, H, W, 3] RGB on any device; frames of another size than `size` are resized.
            max_frames: frames that pass through the convolutions at once, which bounds the memory; None: by device.

        Returns:
            float [B, F, E] on the model's device; E is the width of the network.
        """

    def logits(self, frames: Tensor, max_frames: int | None = None) -> Logits:
        """Compute the heads' log-probabilities for clips; arguments as in `frame_features`.

        Returns:
            As `pi_head`; index k belongs to the action leading INTO frame k.
        """
        found: Logits = self.pi_head(self.frame_features(frames, max_frames))
        return found

    @torch.no_grad()
    def read(self, frames: Tensor, names: Sequence[str]) -> Reading:
        """Read some fields of `space` in frames; see `rlir_ray.idm.base.InverseDynamics`."""
        return self.pi_head.read(self.logits(frames), names)

    def save_pretrained(self, path: str | Path) -> None:
        """Write config.json and model.safetensors into the folder `path`."""
        save_model(self, self.config, path)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Self:
        """Open a folder that `save_pretrained` wrote, or any folder with config.json and model.safetensors.

        Raises:
            ValueError: the config describes another network, or the weights do not fit or are not finite; the error
                names the keys.
        """
        config = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
        return cls.from_state(config, read_state_dict(Path(path) / "model.safetensors"))

    @classmethod
    def from_state(cls, config: Json, state: Mapping[str, Tensor]) -> Self:
        """Build a model from the given weights, converted to float32, in evaluation mode.

        Raises:
            ValueError: see `from_pretrained`.
        """
        model = cls(config)
        assign_weights(model, state, "the inverse dynamics model", torch.float32)
        return model.eval()
