"""A source of one's own: a bright square on black, which forward moves up and a turn moves sideways."""

from __future__ import annotations

import numpy as np

from rlir_ray.config import Config
from rlir_ray.data.clips import Clip, ClipAddress, ClipRequest, CutClips
from rlir_ray.spaces.space import Actions
from rlir_ray.spaces.vpt import VPT_SPACE

# Class 1 of `forward_back` is forward; `yaw` is in degrees, positive to the right.
COLUMNS = VPT_SPACE.columns(["forward_back", "yaw"])


class Square:
    def __init__(self, config: Config, size: int = 8) -> None:
        """`size`, in pixels, comes from prompts.args."""
        self.world, self.size = config.world, size

    def clips(self, request: ClipRequest) -> CutClips:
        clips = [self._clip(request, number) for number in range(request.num_clips)]
        return CutClips(clips=clips, skipped=(), num_recordings=request.num_clips)

    def commands(self, num_frames: int, generator: np.random.Generator) -> Actions:
        """Read with prompts.actions=sampled."""
        values = VPT_SPACE.nothing(num_frames).values
        drawn = generator.random(num_frames) < 0.5, generator.choice([-4, 0, 4], num_frames)
        values[:, COLUMNS] = np.stack(drawn, 1)
        return Actions(VPT_SPACE, values)

    def _clip(self, request: ClipRequest, number: int) -> Clip:
        # Held-out clips have draws of their own, whatever the two seeds are.
        generator = np.random.default_rng([request.split == "heldout", request.seed, number])
        length = self.world.num_context + self.world.num_frames
        actions = self.commands(length - 1, generator)
        kept = length if request.num_whole is None or number < request.num_whole else self.world.num_context
        place = generator.integers(0, [self.world.height, self.world.width])
        frames = [self._picture(place)]
        for frame in range(kept - 1):
            # Action k leads into frame k + 1.
            forward, yaw = actions.values[frame, COLUMNS]
            place = place + np.array([-2 * int(forward), round(float(yaw) / 2)])
            frames.append(self._picture(place))
        return Clip(address=ClipAddress(request.split, number), frames=np.stack(frames), actions=actions)

    def _picture(self, place: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3]; the square comes in again at the other side."""
        rows, columns = ((start + np.arange(self.size)) for start in place)
        picture = np.zeros((self.world.height, self.world.width, 3), np.uint8)
        picture[np.ix_(rows % self.world.height, columns % self.world.width)] = 255
        return picture
