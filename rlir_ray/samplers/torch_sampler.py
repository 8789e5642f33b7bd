"""The torch engine: draws the tokens of whole clips, or of one frame after another, with the decoder.

Legend: B clips, S tokens of one pass, G trajectories, T decisions, C context frames, F generated frames, N tokens a
frame, A tokens an action, K image ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from rlir_ray.algorithm.guidance import NO_GUIDANCE, guided
from rlir_ray.models.autoregressive import WorldModel
from rlir_ray.models.rescoring import TokenRescorer
from rlir_ray.models.token_sequence import TokenSequence
from rlir_ray.samplers.base import PolicySampler
from rlir_ray.samplers.calls import TokenInputs, check_call, image_ids, token_groups, token_inputs
from rlir_ray.samplers.decoder import Decoder
from rlir_ray.spaces.space import Actions
from rlir_ray.trajectory import EncodedClips, EncodedVideo, Prompt, TrajectoryGroup

# cuDNN is left out because it builds an execution plan for each new length of the cache: with cuDNN the first clip in
# bfloat16 took seven times as long on an H100.
ATTENTION_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class TorchSampler(PolicySampler[WorldModel]):
    """Sampler of autoregressive world models in torch, on the device of the model.

    Args:
        policy: the sampler keeps it and loads published weights into it.
        temperature: divides the logits, as in the learner's rescoring.
        top_p: draw from the likeliest tokens that hold this share of the probability. For evaluation only: below 1, the
            learner's rescoring would not give the same log-probabilities.
        dtype: type of the decoder; in bfloat16, behavior log-probabilities differ from the learner's by rounding.
        restrict: draw from the image ids only, not from all ids.
        guidance: scale of the action guidance; 1: none.
        compares: score one clip a call with the model too; ignored if `top_p` is below 1.
    """

    def __init__(
        self,
        policy: WorldModel,
        *,
        temperature: float,
        top_p: float = 1.0,
        dtype: torch.dtype = torch.float32,
        restrict: bool = True,
        guidance: float = NO_GUIDANCE,
        compares: bool = True,
    ) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature must be > 0, got {temperature}; use 1.0")
        super().__init__(policy, TokenRescorer(temperature, restrict, guidance), compares and top_p >= 1)
        self.temperature, self.top_p, self.dtype, self.restrict = temperature, top_p, dtype, restrict
        self.guidance = guidance
        self._update_engine(0)

    @property
    def device(self) -> torch.device:
        device: torch.device = self._decoder.embedding.device
        return device

    def _update_engine(self, version: int) -> None:
        self._decoder = Decoder(self.policy, self.dtype, self.restrict)

    @torch.inference_mode()
    def sample(
        self, prompts: Sequence[Prompt], group_ids: Sequence[int], seeds: Sequence[int], group_size: int
    ) -> list[tuple[TrajectoryGroup, EncodedVideo]]:
        """Sample one group for each prompt.

        Args:
            prompts: all with the same C and F.
            group_ids, seeds: one for each prompt; a group's draws depend on its own seed only.
            group_size: G.
        """
        _, num_frames = check_call(prompts, group_ids, seeds, (self.policy.tokens_per_frame,))
        inputs = token_inputs(prompts, self.policy.sequence).to(self.device)
        num_decisions = num_frames * self.policy.tokens_per_frame
        uniforms = [torch.rand(num_decisions, group_size, generator=torch.Generator().manual_seed(s)) for s in seeds]
        draws = torch.cat(uniforms, 1).to(self.device)  # [T, B]
        with sdpa_kernel(ATTENTION_KERNELS):
            frames, logprobs = self._decode(inputs, draws, group_size)
        pairs = token_groups(prompts, group_ids, seeds, self.policy_version, inputs, frames, logprobs)
        self._compare(pairs[0][0])
        return pairs

    def _decode(self, inputs: TokenInputs, draws: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
        """Return generated frames int64 [B, F, N] and log-probabilities float32 [B, T], prompt after prompt."""
        (_, num_context, tokens_per_frame), actions = inputs.context.shape, inputs.actions
        num_frames = len(draws) // tokens_per_frame
        # The decoder reads the prefix once for a prompt; the prompt's group shares the cache.
        prefix = inputs.prefixes()
        shared = self.decoding(len(prefix), prefix.shape[1])
        logits = shared.read(prefix, before_image=True).repeat_interleave(group_size, 0)
        decoding = self.decoding(len(prefix) * group_size, inputs.sequence.length(num_context + num_frames))
        decoding.continue_from(shared, group_size)
        commanded = actions[:, num_context:].repeat_interleave(group_size, 0)  # of the second frame on
        frames: list[Tensor] = []
        logprobs: list[Tensor] = []
        for frame, drawn in enumerate(draws.unflatten(0, (num_frames, -1))):
            if frame:
                chunk = torch.cat([frames[-1][:, -1:], commanded[:, frame - 1]], 1)
                logits = decoding.read(chunk, before_image=True)
            tokens, scores = decoding.draw_frame(logits, drawn)
            frames.append(tokens)
            logprobs.append(scores)
        return torch.stack(frames, 1), torch.cat(logprobs, 1)

    def decoding(self, num_clips: int, length: int) -> Decoding:
        """Start the decoding of clips of at most `length` tokens."""
        drawing = Drawing(self.temperature, self.top_p, self.guidance)
        return Decoding(self._decoder, self.policy.sequence, drawing, num_clips, length)


@dataclass(frozen=True, slots=True)
class Drawing:
    """How tokens are drawn from logits; see `TorchSampler`."""

    temperature: float
    top_p: float
    guidance: float


class Decoding:
    """The cache of B clips in decoding, and the draws of their frames.

    With guidance the cache has 2B rows: those with all actions, then those without the action into the frame that is
    made.

    Args:
        decoder: the forward pass.
        sequence: the form of the sequences.
        drawing: temperature, top-p and guidance.
        num_clips: B.
        length: most tokens of a clip.
    """

    def __init__(
        self, decoder: Decoder, sequence: TokenSequence, drawing: Drawing, num_clips: int, length: int
    ) -> None:
        self.decoder, self.sequence, self.drawing = decoder, sequence, drawing
        self.is_guided = drawing.guidance != NO_GUIDANCE
        self.rotations = decoder.rotations(length)
        self.cache = decoder.new_cache(num_clips * (1 + self.is_guided), length)
        self.position = 0

    def continue_from(self, shared: Decoding, size: int) -> None:
        """Copy the cache of prompts to the `size` clips of each prompt."""
        self.position = shared.position
        for layer_cache, prompts in zip(self.cache, shared.cache, strict=True):
            layer_cache[:, :, : self.position] = prompts.repeat_interleave(size, 0)

    def read(self, tokens: Tensor, *, before_image: bool) -> Tensor:
        """Append tokens int64 [B, S] to the cache; return the logits after them, float32 [B or 2B, K].

        Args:
            tokens: of the rows with all actions.
            before_image: the tokens end with the action that leads into the next image; an image before it is whole.
        """
        if self.is_guided:
            hidden = tokens
            if before_image:
                if self.position:
                    self._share_frame()
                hidden = self.sequence.hide_action(tokens)
            tokens = torch.cat([tokens, hidden])
        logits = self.decoder(tokens, self.cache, self.rotations, self.position)
        self.position += tokens.shape[1]
        return logits

    def draw_frame(self, logits: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Draw the tokens of a frame; the last one stays out of the cache.

        Args:
            logits: of the first token.
            draws: float32 [N, B], uniform in [0, 1).

        Returns:
            Tokens int64 [B, N] and their log-probabilities float32 [B, N].
        """
        tokens: list[Tensor] = []
        logprobs: list[Tensor] = []
        for draw in draws:
            if tokens:
                logits = self.read(tokens[-1][:, None], before_image=False)
            scaled = self._guided(logits) / self.drawing.temperature
            token, logprob = draw_tokens(keep_likeliest(scaled, self.drawing.top_p), draw)
            tokens.append(token)
            logprobs.append(logprob)
        return torch.stack(tokens, 1), torch.stack(logprobs, 1)

    def _share_frame(self) -> None:
        """Let the rows without the action read the finished image but for its last token, with its action.

        Guidance hides only the action into the frame that is made: all earlier frames have theirs.
        """
        num_tokens = self.sequence.tokens_before_image + self.sequence.shape.tokens_per_frame - 1
        part = slice(max(0, self.position - num_tokens), self.position)
        for layer_cache in self.cache:
            action, null = layer_cache[:, :, part].chunk(2)
            null.copy_(action)

    def _guided(self, logits: Tensor) -> Tensor:
        """Return the logits [B, K] to draw from, given those of all rows of the pass."""
        if not self.is_guided:
            return logits
        action, null = logits.chunk(2)
        return guided(action, null, self.drawing.guidance)


class TokenStepper:
    """Stepper of autoregressive world models.

    Args:
        sampler: has the decoder, and says how tokens are drawn.
        num_frames: most frames of a clip, context included.
    """

    def __init__(self, sampler: TorchSampler, num_frames: int) -> None:
        self.sampler, self.sequence = sampler, sampler.policy.sequence
        # A model with BOS draws the last frame of a sequence alone.
        is_single = self.sequence.bos_id is not None
        self.num_frames, self.num_kept = num_frames, num_frames - 1 if is_single else (num_frames + 1) // 2
        self.uncertainty: npt.NDArray[np.float64] | None = None

    @torch.inference_mode()
    def start(self, context: EncodedClips, actions: Sequence[Actions], seeds: Sequence[Sequence[int]]) -> None:
        device, sequence = self.sampler.device, self.sequence
        keyframes = None if context.keyframes is None else context.keyframes.to(device)
        between = self._tokens([each[1:] for each in actions])
        tokens = sequence.assemble(context.codes.to(device), between, keyframes)
        if sequence.bos_id is not None:
            # In a sequence of the context alone BOS would come before the last context frame.
            tokens = torch.cat([tokens[:, : -sequence.shape.tokens_per_frame - 1], context.codes[:, -1].to(device)], 1)
        self._decoding = self.sampler.decoding(len(tokens), sequence.length(self.num_frames))
        # The last token is read with the next action, as after a drawn frame.
        self._decoding.read(tokens[:, :-1], before_image=False)
        self._last = tokens[:, -1:]

    @torch.inference_mode()
    def step(self, actions: Sequence[Actions], seeds: Sequence[int]) -> Tensor:
        sequence = self.sequence
        chunk = [self._last, self._tokens(actions).flatten(1)]
        if sequence.bos_id is not None:
            chunk.append(torch.full_like(self._last, sequence.bos_id))
        num_tokens = sequence.shape.tokens_per_frame
        draws = [torch.rand(num_tokens, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        with sdpa_kernel(ATTENTION_KERNELS):
            logits = self._decoding.read(torch.cat(chunk, 1), before_image=True)
            tokens, logprobs = self._decoding.draw_frame(logits, torch.stack(draws, 1).to(self.sampler.device))
        self.uncertainty = -logprobs.mean(1).double().cpu().numpy()
        self._last = tokens[:, -1:]
        return image_ids(tokens, sequence)

    def _tokens(self, actions: Sequence[Actions]) -> Tensor:
        """Return the tokens of as many actions of each clip, int64 [B, actions, A]."""
        rows = [self.sequence.layout.tokens(each, self.sequence.first_action_id) for each in actions]
        return torch.from_numpy(np.stack(rows)).to(self.sampler.device)


def keep_likeliest(logits: Tensor, top_p: float) -> Tensor:
    """Keep the fewest likeliest tokens that hold `top_p` of the probability; set the others to -inf; float [B, K]."""
    if top_p >= 1:
        return logits
    ordered, order = logits.sort(-1, descending=True)
    probabilities = ordered.softmax(-1)
    # A token is kept while the likelier tokens hold less than top_p. So the likeliest token is always kept.
    dropped = probabilities.cumsum(-1) - probabilities >= top_p
    return logits.masked_fill(torch.zeros_like(dropped).scatter(-1, order, dropped), float("-inf"))


def draw_tokens(logits: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Draw tokens by inverting the cumulative distribution.

    Args:
        logits: float32 [B, K].
        draws: float32 [B], uniform in [0, 1).

    Returns:
        Tokens int64 [B] and their log-probabilities float32 [B].
    """
    logprobs = logits.log_softmax(-1)
    cumulative = logprobs.exp().cumsum(-1)
    # Rounding can leave the last sum beside 1; the product of a draw and this sum can round up to the sum itself.
    reached = torch.searchsorted(cumulative, draws[:, None] * cumulative[:, -1:], right=True)
    tokens = reached.clamp_(max=logits.shape[-1] - 1)
    return tokens.squeeze(1), logprobs.gather(1, tokens).squeeze(1)
