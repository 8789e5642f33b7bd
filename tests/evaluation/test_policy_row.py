"""The figures of a policy's row that need no models."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlir_ray.config import WorldConfig
from rlir_ray.evaluation.fvd import frechet_distance
from rlir_ray.evaluation.policy_row import _Totals
from rlir_ray.evaluation.quality import clip_quality


def test_fvd_is_the_mean_over_the_prefixes_of_the_clips_of_all_chunks() -> None:
    random, totals = np.random.default_rng(0), _Totals()
    # Two chunks of two clips; two prefixes, of 10 and of 11 frames.
    chunks = [[random.normal(size=(2, 2, 3)) for _ in range(2)] for _ in range(2)]
    totals.features = [(list(generated), list(real)) for generated, real in chunks]
    frames = torch.randint(256, (4, 12, 16, 16, 3), dtype=torch.uint8)
    totals.qualities, totals.ssim = [clip_quality(frames, 11, frames)], [torch.ones(4)]
    totals.num_clips, totals.sampling_s = 4, 1.0
    sides = [np.concatenate(side, axis=1) for side in zip(*chunks, strict=True)]  # [prefixes, 4, 3] each
    wanted = [frechet_distance(generated, real) for generated, real in zip(*sides, strict=True)]
    row = totals.row(WorldConfig(num_frames=11))
    assert row.fvd == pytest.approx(np.mean(wanted)) and row.fvd_whole == pytest.approx(wanted[1])
    assert wanted[0] != pytest.approx(wanted[1])
