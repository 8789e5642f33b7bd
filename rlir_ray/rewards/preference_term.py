"""The term `preference`: the score that a preference head gives a clip.

Legend: G trajectories of a group, C context frames, F generated frames, H W pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlir_ray.config import asset_path
from rlir_ray.idm.base import FrameReader, load_frame_reader
from rlir_ray.rewards.preference import PreferenceHead, pool_frames
from rlir_ray.rewards.term import GroupClips, Term

if TYPE_CHECKING:
    from rlir_ray.rewards.base import RewardContext


class PreferenceTerm(Term):
    """The normalized score of each clip (VideoAlign, arXiv 2501.13918), the same for all of its frames.

    Args:
        head: a trained head.
        reader: the inverse dynamics model that the head was trained with, on the head's device.
    """

    # The run then has models.reward_idm, and checks it before the start.
    reads_idm = True
    paths = ("head",)

    def __init__(self, head: PreferenceHead, reader: FrameReader) -> None:
        self.head, self.reader = head, reader

    @classmethod
    def from_context(cls, context: RewardContext, head: str) -> PreferenceTerm:
        """Open a head and models.reward_idm.

        Args:
            context: of the run.
            head: folder that `pretrain preference` wrote.

        Raises:
            ValueError: there is no such head, or the head was trained with another inverse dynamics model, or on clips
                of another size or length than the run's.
        """
        opened = PreferenceHead.from_pretrained(head)
        world, idm = context.config.world, asset_path(context.config.models.reward_idm)
        opened.check_idm(idm)
        clip = world.num_context + world.num_frames, world.height, world.width
        if opened.clip != clip:
            trained, asked = ("{} frames of {}x{}".format(*each) for each in (opened.clip, clip))
            raise ValueError(
                f"a preference head must read clips as those of its pairs, of {trained}, got world.* of {asked} with "
                f"{head}; train a head on pairs of such clips"
            )
        return cls(opened.to(context.device), load_frame_reader(idm).to(context.device))

    @torch.no_grad()
    def score(self, clips: GroupClips) -> Tensor:
        """Return the score of each clip for each of its generated frames, [G, F]."""
        scores = self.head.normalized(pool_frames(self.reader.frame_features(clips.frames)))  # [G]
        return scores[:, None].expand(-1, len(clips.commanded))
