"""The quality of the reward's inverse dynamics model against the gain that the judge sees (docs/results.md).

Records Doom, trains inverse dynamics models for fewer and more minutes, and post-trains the recipe's policy with each
of them, with the shipped model, and with the shipped model's reading made noisy. A finished part is kept.
Run: `python -m benchmarks.idm_quality --minutes 5 --idm-minutes 0.5 2 --noise 0.25 0.5`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmarks.variants import Row, parse, run_all, write
from rlir_ray.config import require
from rlir_ray.evaluation.results import RECONSTRUCTED
from rlir_ray.rewards.inverse import InverseTerm
from rlir_ray.rewards.term import GroupClips, Recovered

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from rlir_ray.rewards.base import RewardContext

NOISY = "benchmarks.idm_quality:NoisyInverse"


class NoisyInverse(InverseTerm):
    """The term `inverse` with a reading that is wrong for a share of the frames, as often for each class as it is read.

    The wrong reading is that of another frame of the group. The draws depend on the reading alone, so that a group has
    the same reward in any batch.
    """

    share = 0.0

    @classmethod
    def from_context(cls, context: RewardContext, share: float = 0.0) -> NoisyInverse:
        require(0 <= share <= 1, "args.share of NoisyInverse", "must be in [0, 1]", share, "use 0.25")
        term = super().from_context(context)
        assert isinstance(term, cls)
        term.share = share
        return term

    def score(self, clips: GroupClips) -> npt.NDArray[np.float32]:
        assert clips.recovered is not None
        return super().score(replace(clips, recovered=exchanged(clips.recovered, self.share)))


def exchanged(recovered: Recovered, share: float) -> Recovered:
    """Give a share of the frames the reading of another frame of the group."""
    num_clips, num_frames = recovered.classes.shape[:2]
    generator = torch.Generator().manual_seed(int(recovered.classes.sum()))
    source = torch.arange(num_clips * num_frames)
    chosen = torch.nonzero(torch.rand(len(source), generator=generator) < share)[:, 0]
    source[chosen] = torch.randint(len(source), chosen.shape, generator=generator)

    def drawn(table: torch.Tensor) -> torch.Tensor:
        return table.flatten(0, 1)[source.to(table.device)].view_as(table)

    probabilities = {name: drawn(table) for name, table in recovered.probabilities.items()}
    return Recovered(probabilities=probabilities, classes=drawn(recovered.classes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--idm-minutes", type=float, nargs="*", default=[0.5, 2.0], help="trainings of reward models")
    parser.add_argument("--noise", type=float, nargs="*", default=[0.25, 0.5], help="shares of wrong readings")
    parser.add_argument("--frames", type=int, default=20_000, help="frames to record")
    arguments = parse(parser)
    models = train_models(arguments)
    variants = {f"idm_{name}": [f"models.reward_idm={folder}"] for name, folder in models.items()}
    variants |= {
        f"noise_{share:g}": [f'reward.terms=[{{name: "{NOISY}", args: {{share: {share:g}}}}}]']
        for share in arguments.noise
    }
    rows = run_all({"inverse": [], **variants}, arguments)
    write(rows, "idm_quality", arguments)
    print(table(rows))


def train_models(arguments: argparse.Namespace) -> dict[str, Path]:
    """Record the world and train the missing models, one after the other on one core; return minutes -> folder."""
    folder = (arguments.folder / "idm_quality").absolute()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run(*command: str) -> None:
        subprocess.run([sys.executable, "-m", "rlir_ray", *command], check=True, env=environment)

    recordings, models = (
        folder / "recordings",
        {f"{minutes:g}_min": folder / f"idm_{minutes:g}_min" for minutes in arguments.idm_minutes},
    )
    for split, share in (("train", 1.0), ("validation", 0.1)):
        frames = str(int(share * arguments.frames))
        run("collect", "--out", str(recordings / split), "--split", split, "--frames", frames)
    for minutes, out in zip(arguments.idm_minutes, models.values(), strict=True):
        if not (out / "training.json").is_file():
            train = ["--data", str(recordings), "--out", str(out), "--minutes", f"{minutes:g}", "--threads", "1"]
            run("pretrain", "idm", *train, "--tokenizer", "asset:doom/tokenizer", "--seed", str(arguments.seed))
    return models


def table(rows: dict[str, Row]) -> str:
    """Format what each reward model reads in real clips and claims as gain, and the gain that the judge sees."""
    lines = [
        "| reward model | reads real clips | its gain | judge's gain, accuracy | macro-F1 |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, each in rows.items():
        reader, change, se = each["reader"], each["change"], each["se"]
        claimed = reader["after"] - reader["base"]
        judged = [f"{change[figure]:+.3f} ± {se[figure]:.3f}" for figure in ("accuracy", "macro_f1")]
        lines.append(f"| {name} | {reader[RECONSTRUCTED]:.3f} | {claimed:+.3f} | {' | '.join(judged)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
