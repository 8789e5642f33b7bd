"""The token sequences of iVideoGPT's transformers (https://arxiv.org/abs/2405.15223, thuml/iVideoGPT).

Unlike the sequences of `models.token_sequence`, a token opens each frame but the first, and actions are no tokens: the
transformer adds an action to the embedding of the token that opens a frame (`models.ivideogpt_transformer`).
Legend: B clips, L length, c context frames, F later frames, M tokens of a context frame, N tokens of a later frame, A
numbers of an action.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from rlir_ray.models.ivideogpt_tokenizer import IvideogptTokenizer


NO_LABEL = -100
"""Label of a token without loss, as `transformers` has it."""


class LabelledSequence(NamedTuple):
    """The input of a LlamaForCausalLM; no position is padding."""

    input_ids: Tensor
    """int64 [B, L]."""
    labels: Tensor
    """int64 [B, L], equal to `input_ids` or `NO_LABEL`; `transformers` itself shifts them by one."""
    position_ids: Tensor
    """int64 [B, L]."""


@dataclass(frozen=True, kw_only=True)
class IvideogptSequences:
    """Sequences of context frames and later frames of an `IvideogptTokenizer`.

    [context 0] SCF [context 1] SDF | [frame 0] SDF [frame 1] ... SDF [frame F - 1]. The prompt ends before the bar. SCF
    opens a context frame, SDF a later frame; the first SCF is left out.
    """

    num_context: int = 2
    """c."""
    tokens_per_context: int = 256
    """M."""
    tokens_per_frame: int = 16
    """N."""
    num_context_codes: int = 8192
    """Image ids of context frames."""
    num_codes: int = 8192
    """Image ids of later frames, behind those of context frames; behind them are SCF and SDF."""

    @classmethod
    def of(cls, tokenizer: IvideogptTokenizer) -> IvideogptSequences:
        """Return the sequences of a tokenizer's ids."""
        return cls(
            num_context=tokenizer.num_context,
            tokens_per_context=tokenizer.grid[0] * tokenizer.grid[1],
            tokens_per_frame=tokenizer.patches[0] * tokenizer.patches[1],
            num_context_codes=tokenizer.context_quantizer.num_codes,
            num_codes=tokenizer.quantizer.num_codes,
        )

    @property
    def scf(self) -> int:
        return self.num_context_codes + self.num_codes

    @property
    def sdf(self) -> int:
        return self.scf + 1

    @property
    def vocab_size(self) -> int:
        return self.sdf + 1

    @property
    def prompt_length(self) -> int:
        return self.num_context * (self.tokens_per_context + 1)

    def sequence(self, context: Tensor, frames: Tensor) -> LabelledSequence:
        """Build the sequences of clips; all tokens behind the prompt are labels, SDF too.

        Args:
            context: int [B, c, M], image ids of the context frames.
            frames: int [B, F, N], image ids of the later frames, without the offset.

        Raises:
            ValueError: another shape, or ids that do not exist.
        """
        num_clips = len(context)
        _check_ids("context", context, (num_clips, self.num_context, self.tokens_per_context), self.num_context_codes)
        _check_ids("frames", frames, (num_clips, frames.shape[1], self.tokens_per_frame), self.num_codes)
        opened = _opened(context.long(), self.scf).flatten(1)[:, 1:]
        ids = torch.cat([opened, _opened(frames.long() + self.num_context_codes, self.sdf).flatten(1)], 1)
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        return LabelledSequence(ids, torch.where(positions >= self.prompt_length, ids, NO_LABEL), positions)

    def split(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the image ids in sequences, the inverse of `sequence`, for `IvideogptTokenizer.detokenize`.

        Args:
            ids: int [B, L]. A token of a later frame that is none of its image ids becomes the nearest one, because
                the model may draw any id.

        Returns:
            Context, int64 [B, c, M], and later frames, int64 [B, F, N].

        Raises:
            ValueError: a length without whole later frames.
        """
        num_frames = self._count_frames(ids.shape[1])
        opened = ids[:, : self.prompt_length - 1].long()
        # The first SCF is not there: put any token in its place.
        context = torch.cat([opened[:, :1], opened], 1).unflatten(1, (self.num_context, -1))[..., 1:]
        frames = ids[:, self.prompt_length - 1 :].long().unflatten(1, (num_frames, -1))[..., 1:]
        return context, (frames - self.num_context_codes).clamp(0, self.num_codes - 1)

    def action_positions(self, length: int) -> Tensor:
        """Return the positions of SDF in sequences of L = `length`, int64 [F]; the actions are added there.

        Raises:
            ValueError: a length without whole later frames.
        """
        return self.prompt_length - 1 + torch.arange(self._count_frames(length)) * (self.tokens_per_frame + 1)

    def read_actions(self, actions: Tensor) -> Tensor:
        """Return the actions that the transformer reads, float [B, F, A], of those taken at each frame.

        Args:
            actions: float [B, c + F, A]; row i leads from frame i to frame i + 1. The rows before c - 1 and the last
                one lead to no later frame.
        """
        return actions[:, self.num_context - 1 : -1]

    def _count_frames(self, length: int) -> int:
        num_frames, rest = divmod(length + 1 - self.prompt_length, self.tokens_per_frame + 1)
        if rest or num_frames < 1:
            raise ValueError(
                f"sequences of F later frames must have {self.prompt_length - 1} + F * {self.tokens_per_frame + 1} "
                f"tokens, got {length}; check tokenizer and form"
            )
        return num_frames


def _opened(frames: Tensor, token: int) -> Tensor:
    """Put a token before each frame of ids [B, frames, tokens]."""
    return torch.cat([torch.full_like(frames[..., :1], token), frames], 2)


def _check_ids(name: str, ids: Tensor, shape: tuple[int, ...], most: int) -> None:
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
