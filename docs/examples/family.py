"""A family of one's own: a small model that draws all tokens of a frame at once, from the frame before and its action.

Model, sampler, and the `FAMILY` that names them; all else is that of the family of token models. Legend: B clips,
G trajectories, P prompts, C context frames, F generated frames, N tokens a frame, A tokens an action, V codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from rlir_ray.families import autoregressive
from rlir_ray.idm.base import save_model
from rlir_ray.models.checkpoints import assign_weights, read_state_dict
from rlir_ray.models.compatibility import check_tokenizer, read_settings
from rlir_ray.models.rescoring import TokenRescorer
from rlir_ray.models.token_sequence import TokenSequence
from rlir_ray.samplers.base import PolicySampler
from rlir_ray.samplers.calls import token_groups, token_inputs
from rlir_ray.trajectory import EncodedVideo, Prompt, TrajectoryGroup


class NextFrame(nn.Module):
    def __init__(self, sequence: TokenSequence, width: int = 64) -> None:
        super().__init__()
        self.sequence, self.width = sequence, width
        num_codes, num_places, *_ = sequence.shape
        self.tokens = nn.Embedding(num_codes + sequence.layout.num_ids, width)  # action ids lie behind the codes
        self.places = nn.Embedding(num_places, width)
        self.head = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, num_codes))

    def logprobs(self, before: Tensor, actions: Tensor, temperature: float) -> Tensor:
        """Tokens [..., N] of the frame before and [..., A] of the action to [..., N, V]."""
        told = self.tokens(actions).mean(-2, keepdim=True)
        logits = self.head(self.tokens(before) + self.places.weight + told).float()
        return (logits / temperature).log_softmax(-1)

    def forward(self, tokens: Tensor, num_decisions: int, temperature: float) -> Tensor:
        """Log-probabilities [B, F * N] of the generated tokens of sequences [B, L]: frame, action, frame, ..."""
        size, num_action = self.sequence.shape.tokens_per_frame, self.sequence.layout.num_tokens
        actions, frames = tokens[:, size:].unflatten(1, (-1, num_action + size)).split([num_action, size], -1)
        before = torch.cat([tokens[:, None, :size], frames[:, :-1]], 1)
        decided = self.logprobs(before, actions, temperature).gather(-1, frames[..., None])
        return decided.flatten(1)[:, -num_decisions:]

    def save_pretrained(self, path: str | Path) -> None:
        save_model(self, self.sequence.settings() | {"width": self.width}, path)

    @classmethod
    def from_pretrained(cls, path: Path) -> NextFrame:
        settings = read_settings(path, "config.json", "models.policy")
        model = cls(TokenSequence.of(settings), settings["width"])
        assign_weights(model, read_state_dict(path / "model.safetensors"), "the policy", torch.float32)
        return model


class NextFrameSampler(PolicySampler[NextFrame]):
    def __init__(self, policy: NextFrame, temperature: float) -> None:
        # Its log-probabilities are the learner's own, so that there is nothing to compare.
        super().__init__(policy, TokenRescorer(temperature), compares=False)
        self.temperature = temperature

    @torch.inference_mode()
    def sample(
        self, prompts: Sequence[Prompt], group_ids: Sequence[int], seeds: Sequence[int], group_size: int
    ) -> list[tuple[TrajectoryGroup, EncodedVideo]]:
        device = self.policy.places.weight.device
        inputs = token_inputs(prompts, self.policy.sequence).to(device)
        commanded = inputs.actions[:, -prompts[0].num_frames :]  # [P, F, A]
        calls = zip(inputs.context[:, -1], commanded, seeds, strict=True)
        frames, logprobs = zip(*(self._draw(*call, group_size) for call in calls), strict=True)
        drawn = (torch.cat(frames), torch.cat(logprobs))
        return token_groups(prompts, group_ids, seeds, self.policy_version, inputs, *drawn)

    def _draw(self, last: Tensor, actions: Tensor, seed: int, size: int) -> tuple[Tensor, Tensor]:
        """Draw the frames [G, F, N] that follow the last one [N], and their log-probabilities [G, F * N]."""
        # A group's draws come from its own seed: the same ones whatever it is sampled with.
        generator = torch.Generator(last.device).manual_seed(seed)
        frames, logprobs = [last.expand(size, -1)], []
        for action in actions:
            table = self.policy.logprobs(frames[-1], action.expand(size, -1), self.temperature)  # [G, N, V]
            drawn = torch.multinomial(table.exp().flatten(0, 1), 1, generator=generator).view(size, -1, 1)
            frames.append(drawn[..., 0])
            logprobs.append(table.gather(-1, drawn)[..., 0])
        return torch.stack(frames[1:], 1), torch.cat(logprobs, 1)


FAMILY = replace(
    autoregressive.FAMILY,
    open_policy=NextFrame.from_pretrained,
    check_world=check_tokenizer,
    rollout_sampler=lambda config, policy: NextFrameSampler(policy, config.rollout.temperature),
    evaluation_sampler=lambda config, policy, temperature: NextFrameSampler(policy, temperature),
    sampling_text=lambda config: f"temperature {config.evaluation.temperatures[0]:g}, a whole frame at once",
)
