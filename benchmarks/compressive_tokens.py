"""What fewer tokens a frame cost and save: PSNR on held-out clips, and speed of rollouts and of a learner's pass.

The first tokenizer is the one that the ratios compare with. World models have random weights and the Doom model's size,
because speed does not depend on the weights; all compute with one thread, in turns. Run:
`python -m benchmarks.compressive_tokens --clips doom/validation TOKENIZER ...`.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlir_ray.config import asset_path
from rlir_ray.data.files import write_json
from rlir_ray.data.recordings import open_recordings, read_all
from rlir_ray.models.autoregressive import WorldModel
from rlir_ray.models.clip_codec import ClipCodec
from rlir_ray.models.tokenizer_forms import open_tokenizer
from rlir_ray.pretrain.compressive_tokenizer import cut
from rlir_ray.pretrain.reconstruction import reconstruction_metrics
from rlir_ray.run.environment import versions
from rlir_ray.samplers.torch_sampler import TorchSampler
from rlir_ray.testing import sample_actions
from rlir_ray.trajectory import EncodedClips, Prompt, stored_codes

NUM_PROMPTS, GROUP_SIZE, NUM_FRAMES = 8, 8, 8


class Candidate:
    """A tokenizer, its clips encoded, and a world model of random weights over its tokens."""

    def __init__(self, folder: Path, clips: Tensor) -> None:
        codec: ClipCodec = open_tokenizer(folder, *clips.shape[2:4])
        with torch.no_grad():
            parts = [codec.encode_clips(part) for part in clips.split(64)]
            decoded = torch.cat([codec.decode_clips(part) for part in parts])
        self.psnr = {
            "psnr": reconstruction_metrics(decoded.flatten(0, 1), clips.flatten(0, 1))["psnr"],
            "psnr_last": reconstruction_metrics(decoded[:, -1], clips[:, -1])["psnr"],
        }
        report = folder / "training.json"
        self.steps = json.loads(report.read_text())["steps"] if report.is_file() else None
        first = parts[0]
        assert codec.num_codes is not None
        torch.manual_seed(0)
        self.model = WorldModel.create(
            num_codes=codec.num_codes,
            tokens_per_frame=first.codes.shape[2],
            num_keyframe_codes=codec.num_keyframe_codes,
            tokens_per_keyframe=0 if first.keyframes is None else first.keyframes.shape[1],
        ).eval()
        self.prompts = [_prompt(first, number) for number in range(NUM_PROMPTS)]
        self.sampler = TorchSampler(self.model, temperature=1.0, compares=False)
        self.seconds: dict[str, float] = {}

    def time(self) -> None:
        """Sample the groups of all prompts, and pass one group through the learner's model; keep the best times."""
        numbers = range(NUM_PROMPTS)
        started = time.perf_counter()
        groups = self.sampler.sample(self.prompts, numbers, numbers, GROUP_SIZE)
        sampled = time.perf_counter()
        tokens = torch.from_numpy(groups[0][0].record.tokens).long()
        self.model(tokens, groups[0][0].loss_mask.shape[1]).mean().backward()
        for name, seconds in (("rollout", sampled - started), ("learner_pass", time.perf_counter() - sampled)):
            self.seconds[name] = min(seconds, self.seconds.get(name, seconds))


def _prompt(clips: EncodedClips, number: int) -> Prompt:
    keyframes = clips.keyframes
    return Prompt(
        prompt_id=str(number),
        context=stored_codes(clips.codes[number, :1].numpy()),
        actions=sample_actions(NUM_FRAMES, number),
        keyframe=None if keyframes is None else stored_codes(keyframes[number].numpy()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tokenizers", nargs="+", type=Path, help="folders of compressive tokenizers")
    parser.add_argument("--plain", default="asset:doom/tokenizer", help="tokenizer to compare with")
    parser.add_argument("--clips", required=True, help="recordings that no tokenizer was trained on")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/compressive_tokens.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recordings = [each.frames for each in read_all(open_recordings(arguments.clips))]
    clips = torch.from_numpy(np.ascontiguousarray(cut(recordings, 1 + NUM_FRAMES)))
    folders = [asset_path(arguments.plain), *arguments.tokenizers]
    candidates = [Candidate(folder, clips) for folder in folders]
    for _ in range(arguments.repeats):
        for each in candidates:
            each.time()
    plain, rows = candidates[0], []
    for folder, each in zip(folders, candidates, strict=True):
        speed = {f"{name}_speed": plain.seconds[name] / seconds for name, seconds in each.seconds.items()}
        row: dict[str, Any] = {"tokenizer": folder.name, "steps": each.steps, **each.model.sequence.shape._asdict()}
        rows.append(row | {name: round(value, 3) for name, value in (each.psnr | each.seconds | speed).items()})
        print(rows[-1], flush=True)
    setting = {"clips": len(clips), "rollout": [NUM_PROMPTS, GROUP_SIZE, NUM_FRAMES], "load": os.getloadavg()}
    write_json(arguments.out, {"setting": setting, "versions": versions(), "tokenizers": rows})


if __name__ == "__main__":
    main()
