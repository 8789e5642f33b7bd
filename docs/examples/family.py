"""A family of one's own: a small model that draws all tokens of a frame at once, from the frame before and its action.

Model, sampler and rescorer, and the `FAMILY` that names them. Legend: B clips, G trajectories, C context frames,
F generated frames, N tokens a frame, V codes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlir_ray.config import Config, asset_path
from rlir_ray.families import Family
from rlir_ray.idm.base import save_model
from rlir_ray.models.checkpoints import assign_weights, read_state_dict
from rlir_ray.models.rescoring import Forward, Scores
from rlir_ray.models.tokenizer import FrameTokenizer
from rlir_ray.samplers import LogprobDifference
from rlir_ray.spaces.layouts import MineworldLayout
from rlir_ray.trajectory import EncodedVideo, FrameShape, Prompt, TokenRecord, TrajectoryGroup, stored_codes
from rlir_ray.transfer.weights import Received, load_weights

LAYOUT = MineworldLayout()  # what a checkpoint without an action space has: VPT's actions as nine classes
NUM_CLASSES = len(LAYOUT.class_counts)


class NextFrame(nn.Module):
    def __init__(self, num_codes: int, tokens_per_frame: int, width: int = 64) -> None:
        super().__init__()
        self.config = {"num_codes": num_codes, "tokens_per_frame": tokens_per_frame, "width": width}
        self.codes, self.places = nn.Embedding(num_codes, width), nn.Embedding(tokens_per_frame, width)
        self.action = nn.Linear(NUM_CLASSES, width)
        self.head = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, num_codes))

    def logits(self, before: Tensor, actions: Tensor) -> Tensor:
        """Tokens [..., N] of the frame before and classes [..., 9] to [..., N, V]."""
        told = self.action(actions.float() / 10)[..., None, :]
        return self.head(self.codes(before) + self.places.weight + told)

    def forward(self, tokens: Tensor, num_decisions: int, temperature: float) -> Tensor:
        """Log-probabilities [B, F * N] of the generated tokens of records [B, C * N + F * (9 + N)]."""
        size = self.config["tokens_per_frame"]
        num_frames = num_decisions // size
        start = tokens.shape[1] - num_frames * (NUM_CLASSES + size)
        given, steps = tokens[:, :start], tokens[:, start:]
        actions, frames = steps.unflatten(1, (num_frames, -1)).split([NUM_CLASSES, size], -1)
        before = torch.cat([given[:, None, -size:], frames[:, :-1]], 1)
        logprobs = (self.logits(before, actions) / temperature).log_softmax(-1)
        return logprobs.gather(-1, frames[..., None])[..., 0].flatten(1)

    def save_pretrained(self, path: str | Path) -> None:
        save_model(self, self.config, path)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> NextFrame:
        model = cls(**json.loads((Path(path) / "config.json").read_text(encoding="utf-8")))
        assign_weights(model, read_state_dict(Path(path) / "model.safetensors"), "the policy", torch.float32)
        return model


class NextFrameSampler:
    difference: LogprobDifference | None = None  # its log-probabilities are the learner's own
    policy_version = 0

    def __init__(self, model: NextFrame, temperature: float) -> None:
        self.model, self.temperature = model, temperature

    def load_weights(self, weights: Received, version: int, published: str = "") -> None:
        load_weights(self.model, weights, published)
        self.policy_version = version

    @torch.inference_mode()
    def sample(
        self, prompts: Sequence[Prompt], group_ids: Sequence[int], seeds: Sequence[int], group_size: int
    ) -> list[tuple[TrajectoryGroup, EncodedVideo]]:
        calls = zip(prompts, group_ids, seeds, strict=True)
        return [self._group(prompt, group_id, seed, group_size) for prompt, group_id, seed in calls]

    def _group(self, prompt: Prompt, group_id: int, seed: int, size: int) -> tuple[TrajectoryGroup, EncodedVideo]:
        # A group's draws come from its own seed: the same ones whatever it is sampled with.
        generator = torch.Generator().manual_seed(seed)
        context = torch.from_numpy(prompt.context.astype(np.int64)).expand(size, -1, -1)  # [G, C, N]
        frames, record = [context], [context.flatten(1)]
        for action in torch.from_numpy(LAYOUT.classes(prompt.actions))[-prompt.num_frames :]:
            logits = self.model.logits(frames[-1][:, -1], action.expand(size, -1)) / self.temperature  # [G, N, V]
            drawn = torch.multinomial(logits.softmax(-1).flatten(0, 1), 1, generator=generator).view(size, 1, -1)
            frames.append(drawn)
            record += [action.expand(size, -1), drawn[:, 0]]
        tokens, num_decisions = torch.cat(record, 1), prompt.num_frames * context.shape[-1]
        group = TrajectoryGroup(
            prompt_id=prompt.prompt_id,
            group_id=group_id,
            seed=seed,
            policy_version=self.policy_version,
            record=TokenRecord(tokens.numpy().astype(np.int32)),
            behavior_logprobs=self.model(tokens, num_decisions, self.temperature).numpy(),
            loss_mask=np.ones((size, num_decisions), np.bool_),
        )
        video = EncodedVideo(
            group_id=group_id,
            codes=stored_codes(torch.cat(frames, 1).numpy()),
            num_context=context.shape[1],
            actions=prompt.actions,
        )
        return group, video


class NextFrameRescorer:
    def __init__(self, temperature: float) -> None:
        self.temperature = temperature

    def __call__(self, forward: Forward, record: TokenRecord[Tensor], num_decisions: int) -> Scores:
        return Scores(forward(record.tokens.long(), num_decisions, self.temperature))


def check_world(config: Config) -> FrameShape:
    """Called before anything starts; returns the shape of an encoded frame."""
    policy, codec = (
        json.loads((asset_path(folder) / "config.json").read_text(encoding="utf-8"))
        for folder in (config.models.policy, config.models.tokenizer)
    )
    if policy["num_codes"] != codec["num_vq_embeddings"]:
        raise ValueError(
            f"models.policy must have the tokenizer's {codec['num_vq_embeddings']} codes, got {policy['num_codes']}; "
            "choose checkpoints that were trained together"
        )
    return (policy["tokens_per_frame"],)


def record(config: Config, frame: FrameShape, num_clips: int) -> tuple[TokenRecord[Tensor], int]:
    """What a rollout stores of some clips, on the meta device, and the decisions of a clip."""
    world, (size,) = config.world, frame
    length = world.num_context * size + world.num_frames * (NUM_CLASSES + size)
    tokens = torch.empty(num_clips, length, dtype=torch.int32, device="meta")
    return TokenRecord(tokens), world.num_frames * size


def _sampler(config: Config, policy: Any, temperature: float = 0.0) -> NextFrameSampler:
    return NextFrameSampler(policy, temperature or config.rollout.temperature)


FAMILY = Family(
    open_policy=NextFrame.from_pretrained,
    codec=lambda config: FrameTokenizer,
    check_world=check_world,
    rollout_sampler=_sampler,
    evaluation_sampler=_sampler,
    rescorer=lambda config, policy: NextFrameRescorer(config.rollout.temperature),
    sampling_text=lambda config: f"temperature {config.evaluation.temperatures[0]:g}, a whole frame at once",
    layout=lambda config: LAYOUT,
    cells=lambda layout: layout.class_cells,
    record=record,
)
