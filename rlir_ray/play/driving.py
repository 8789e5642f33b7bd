"""A drive: a person commands one or two world models, which start from the same frames and get the same actions.

Independent of the network. Legend: C context frames, H W pixels.
"""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from rlir_ray.data.lerobot.writer import LerobotWriter
from rlir_ray.data.vpt.pairs import write_recording
from rlir_ray.idm.base import InverseDynamics
from rlir_ray.play.opening import OpenWorld
from rlir_ray.play.simulator import Simulator
from rlir_ray.spaces.space import Actions
from rlir_ray.spaces.vpt import VPT_SPACE, events_from_actions

# Frames of a drive, which stay in memory until a reset.
MAX_FRAMES = 4000
FRAMES_PER_SECOND = 7


@dataclass(frozen=True, kw_only=True, slots=True)
class FieldReading:
    """What the inverse dynamics model says of one field of the last action."""

    field: str
    commanded: str
    """The commanded value in words."""
    recovered: str
    """The most probable value in words."""
    probability: float
    """Probability of the commanded class."""
    agrees: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """What a person sees after a step."""

    number: int
    """Frames after the context."""
    frames: Mapping[str, npt.NDArray[np.uint8]]
    """Model -> its last frame, [H, W, 3]."""
    readings: Mapping[str, tuple[FieldReading, ...]]
    """Model -> one reading a field; empty: no inverse dynamics model, or no frame after the context."""
    followed: Mapping[str, float | None]
    """Model -> share of the commands since the reset that were recovered; None: none yet."""


class Drive:
    """One person's drive.

    Args:
        worlds: name -> model; all have one action space and frames of one size.
        contexts: uint8 [P, C, H, W, 3], frames to start from.
        idm: reads the models' frames; None: nobody reads them.
        temperature: of the draws.
        seed: of the draws; the same for all models.

    Raises:
        ValueError: the models' spaces or frames differ.
    """

    def __init__(
        self,
        worlds: Mapping[str, OpenWorld],
        contexts: npt.NDArray[np.uint8],
        idm: InverseDynamics | None,
        *,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> None:
        first = next(iter(worlds.values()))
        for name, world in worlds.items():
            size, other = first.config.world, world.config.world
            if (differences := first.space.differences(world.space)) or (size.height, size.width) != (
                other.height,
                other.width,
            ):
                found = differences[0] if differences else f"{other.height}x{other.width} pixels"
                raise ValueError(
                    "models that are driven together must have one action space and one size of frames, got "
                    f"{found} in {name}; drive them apart"
                )
        self.world, self.space, self.names = first, first.space, tuple(first.config.world.groups)
        self.fields = self.space.select(self.names)
        self.contexts, self.idm, self.seed = contexts, idm, seed
        self.simulators: dict[str, Simulator] = {name: world.simulator(temperature) for name, world in worlds.items()}
        # A model a core: torch leaves Python's lock while it computes.
        self._threads = ThreadPoolExecutor(len(self.simulators))
        self._agreed: dict[str, list[int]] = {}
        self._readings: dict[str, tuple[FieldReading, ...]] = {}
        self.reset(0)

    def reset(self, context: int) -> View:
        """Start again from a context.

        Raises:
            ValueError: there is no such context.
        """
        if not 0 <= context < len(self.contexts):
            raise ValueError(f"a context must be from 0 to {len(self.contexts) - 1}, got {context}; choose another")
        for simulator in self.simulators.values():
            simulator.reset(self.contexts[context][None], [self.seed])
        self._agreed, self._readings = {name: [] for name in self.simulators}, {}
        return self.view()

    def step(self, action: Actions) -> View:
        """Generate the next frame of each model.

        Raises:
            ValueError: the drive is too long.
        """
        if next(iter(self.simulators.values())).num_generated >= MAX_FRAMES:
            raise ValueError(f"a drive must be at most {MAX_FRAMES} frames, got one more; save it and reset")
        list(self._threads.map(lambda simulator: simulator.step([action]), self.simulators.values()))
        self._read(action)
        return self.view()

    def undo(self) -> View:
        """Drop the last frame; at the context, do nothing."""
        for name, simulator in self.simulators.items():
            if simulator.num_generated:
                simulator.undo()
                del self._agreed[name][simulator.num_generated :]
        self._readings = {}
        return self.view()

    def view(self) -> View:
        """Return what a person sees now."""
        number = next(iter(self.simulators.values())).num_generated
        return View(
            number=number,
            frames={name: simulator.last_frames(1)[0, 0] for name, simulator in self.simulators.items()},
            readings=dict(self._readings),
            followed={
                name: sum(agreed) / (len(agreed) * len(self.fields)) if agreed else None
                for name, agreed in self._agreed.items()
            },
        )

    def _read(self, action: Actions) -> None:
        """Read the last action in the frames of all models together."""
        if self.idm is None:
            return
        size = self.world.config.world
        window = size.num_context + size.num_frames
        clips = np.concatenate([simulator.last_frames(window) for simulator in self.simulators.values()])
        with torch.inference_mode():
            reading = self.idm.read(torch.from_numpy(clips), self.names)
        commanded = action.classes_of(self.names)[0]
        for row, name in enumerate(self.simulators):
            found = []
            for column, field in enumerate(self.fields):
                table = reading.probabilities[field.name][row, -1]
                recovered, wanted = int(table.argmax()), int(commanded[column])
                found.append(
                    FieldReading(
                        field=field.name,
                        commanded=field.words(float(field.centres(wanted))),
                        recovered=field.words(float(field.centres(recovered))),
                        probability=float(table[wanted]),
                        agrees=recovered == wanted,
                    )
                )
            self._readings[name] = tuple(found)
            self._agreed[name].append(sum(each.agrees for each in found))

    def recording(self, name: str) -> bytes:
        """Return the drive of one model so far as a zip of recordings that `data/` reads: frames and actions.

        VPT's space gives NAME.mp4 and NAME.jsonl, every other space a LeRobot dataset.

        Raises:
            ValueError: there is no such model, or no frame after the context.
        """
        if (simulator := self.simulators.get(name)) is None or not simulator.num_generated:
            raise ValueError(f"a recording needs a model of this drive and a frame, got {name[:40]!r}; drive first")
        frames, (actions,) = simulator.frames[0], simulator.actions
        with tempfile.TemporaryDirectory(prefix="rlir_drive_") as folder:
            place = Path(folder)
            if self.space == VPT_SPACE:
                write_recording(place / "drive", frames, events_from_actions(actions), fps=FRAMES_PER_SECOND)
            else:
                height, width = frames.shape[1:3]
                with LerobotWriter(place, self.space, fps=FRAMES_PER_SECOND, height=height, width=width) as writer:
                    writer.write(frames, actions)
            packed = io.BytesIO()
            with zipfile.ZipFile(packed, "w") as archive:
                for path in sorted(place.rglob("*")):
                    if path.is_file():
                        archive.write(path, path.relative_to(place))
            return packed.getvalue()

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)
