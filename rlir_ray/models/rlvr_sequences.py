"""The token sequences of RLVR-World's transformers (thuml/RLVR-World): ids, labels and positions of a clip.

Unlike the sequences of `models.autoregressive`, they hold BOS and EOS, or a context frame with ids of its own.
Row i of the actions leads from frame i to frame i + 1.
Legend: B clips, L length, n context frames, F frames, N tokens of a frame, M tokens of the context frame, A = 13 tokens
of an action.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rlir_ray.spaces.rlvr import NUM_BINS, RT1_SPACE

NO_LABEL = -100
"""Label of a token without loss, as `transformers` has it."""
NUM_CODES = 4375
NUM_ACTION_TOKENS = len(RT1_SPACE)


class TokenSequence(NamedTuple):
    """The input of a LlamaForCausalLM; no position is padding."""

    input_ids: Tensor
    """int64 [B, L]."""
    labels: Tensor
    """int64 [B, L], equal to `input_ids` or `NO_LABEL`; `transformers` itself shifts them by one."""
    position_ids: Tensor
    """int64 [B, L]."""


@dataclass(frozen=True, kw_only=True)
class SingleStep:
    """Sequences of the single-step models: the frames of `RlvrTokenizer`, of which the model generates the last.

    [frame 0][action 0] ... [frame n - 1][action n - 1] BOS | [frame n] EOS. The prompt ends before the bar.
    """

    num_context: int = 4
    """n."""
    tokens_per_frame: int = 320
    """N."""
    num_codes: int = NUM_CODES
    """Image ids; behind them are 256 ids of actions, BOS and EOS."""

    @property
    def bos(self) -> int:
        return self.num_codes + NUM_BINS

    @property
    def eos(self) -> int:
        return self.bos + 1

    @property
    def vocab_size(self) -> int:
        return self.eos + 1

    @property
    def prompt_length(self) -> int:
        return self.num_context * (self.tokens_per_frame + NUM_ACTION_TOKENS) + 1

    @property
    def answer_length(self) -> int:
        return self.tokens_per_frame + 1

    def sequence(self, frames: Tensor, bins: Tensor) -> TokenSequence:
        """Build the sequences of clips.

        Args:
            frames: int [B, n + 1, N], image ids.
            bins: int [B, n, A], of `spaces.rlvr.action_bins`.

        Raises:
            ValueError: another shape, or ids or bins that do not exist.
        """
        num_clips = len(frames)
        check_ids("frames", frames, (num_clips, self.num_context + 1, self.tokens_per_frame), self.num_codes)
        check_ids("bins", bins, (num_clips, self.num_context, NUM_ACTION_TOKENS), NUM_BINS)
        blocks = torch.cat([frames[:, :-1].long(), bins.long() + self.num_codes], 2).flatten(1)
        ends = torch.tensor([[self.bos, self.eos]], device=frames.device).expand(num_clips, 2)
        ids = torch.cat([blocks, ends[:, :1], frames[:, -1].long(), ends[:, 1:]], 1)
        is_label = torch.arange(ids.shape[1], device=ids.device) >= self.prompt_length - 1  # BOS too
        return labelled(ids, is_label)

    def decisions(self) -> Tensor:
        """Return which tokens of an answer reinforcement learning trains, bool [answer_length]: all, EOS too.

        The answer has its full length even if EOS is sampled early.
        """
        return torch.ones(self.answer_length, dtype=torch.bool)


@dataclass(frozen=True, kw_only=True)
class MultiStep:
    """Sequences of the multi-step models: a context frame and later frames of `RlvrCompressiveTokenizer`.

    [context] [frame 0][action 0] | [frame 1][action 1] ... [frame F - 1][action F - 1]. The prompt ends before the bar,
    and the last action changes nothing. No BOS and no EOS, though the vocabulary has them.
    """

    num_frames: int = 8
    """F."""
    tokens_per_context: int = 1280
    """M."""
    tokens_per_frame: int = 80
    """N."""
    num_codes: int = NUM_CODES
    """Image ids of later frames, then as many of context frames; behind them are 256 ids of actions, BOS and EOS."""

    @property
    def vocab_size(self) -> int:
        return 2 * self.num_codes + NUM_BINS + 2

    @property
    def prompt_length(self) -> int:
        return self.tokens_per_context + self._block

    @property
    def answer_length(self) -> int:
        return (self.num_frames - 1) * self._block

    @property
    def _block(self) -> int:
        return self.tokens_per_frame + NUM_ACTION_TOKENS

    def sequence(self, context: Tensor, frames: Tensor, bins: Tensor) -> TokenSequence:
        """Build the sequences of clips.

        Args:
            context: int [B, M], image ids of the context frames, without the offset.
            frames: int [B, F, N], image ids.
            bins: int [B, F, A], of `spaces.rlvr.action_bins`; the context frame's own action is left out.

        Raises:
            ValueError: another shape, or ids or bins that do not exist.
        """
        num_clips = len(frames)
        check_ids("context", context, (num_clips, self.tokens_per_context), self.num_codes)
        check_ids("frames", frames, (num_clips, self.num_frames, self.tokens_per_frame), self.num_codes)
        check_ids("bins", bins, (num_clips, self.num_frames, NUM_ACTION_TOKENS), NUM_BINS)
        blocks = torch.cat([frames.long(), bins.long() + 2 * self.num_codes], 2).flatten(1)
        ids = torch.cat([context.long() + self.num_codes, blocks], 1)
        unread = torch.zeros(self.prompt_length, dtype=torch.bool)
        return labelled(ids, torch.cat([unread, self.decisions()]).to(ids.device))

    def decisions(self) -> Tensor:
        """Return which tokens of an answer reinforcement learning trains, bool [answer_length]: those of frames.

        An EOS that is sampled early ends nothing.
        """
        return torch.arange(self.answer_length) % self._block < self.tokens_per_frame


def labelled(ids: Tensor, is_label: Tensor) -> TokenSequence:
    """Return the sequences of ids int64 [B, L], of which `is_label`, bool [L], says which have a loss."""
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    return TokenSequence(ids, torch.where(is_label, ids, NO_LABEL), positions)


def check_ids(name: str, ids: Tensor, shape: tuple[int, ...], most: int) -> None:
    """Check ids before they become part of a sequence.

    Raises:
        ValueError: another shape, or an id that is not in 0 to `most` - 1.
    """
    if ids.shape != shape:
        raise ValueError(f"{name} of a sequence must be {list(shape)}, got {list(ids.shape)}; check tokenizer and form")
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < most:
        raise ValueError(
            f"{name} of a sequence must be in 0..{most - 1}, got {int(ids.min())}..{int(ids.max())}; give them without "
            "an offset"
        )
