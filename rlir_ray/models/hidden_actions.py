"""One pass of a token model with and without the action of each generated frame, for action guidance.

Behind a sequence stands a branch for each generated frame: its action, hidden, and its image again. A branch reads the
sequence before the action, with all earlier actions, and itself; so all branches share one history.
Legend: B sequences, L length, T decisions, F generated frames, N tokens an image, A tokens before an image,
R = A + N - 1 tokens of a branch, S = L - 1 + F * R.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlir_ray.models.token_sequence import TokenSequence


@dataclass(frozen=True, slots=True)
class Branched:
    """Sequences with the branches of their generated frames."""

    tokens: Tensor
    """int64 [B, S]."""
    places: Tensor
    """int64 [S], position of each token in the sequence without branches."""
    visible: Tensor
    """bool [S, S], which tokens (columns) each token (row) attends to."""
    before: Tensor
    """int64 [2T], the token before each decision: first with the action, then in the branch without."""


def add_branches(sequence: TokenSequence, tokens: Tensor, num_decisions: int) -> Branched:
    """Add a branch for each generated frame, without the last token, which predicts nothing.

    Args:
        sequence: the form of the sequences.
        tokens: int64 [B, L], whole sequences.
        num_decisions: T.
    """
    num_before, per_frame = sequence.tokens_before_image, sequence.shape.tokens_per_frame
    decided = sequence.decision_positions(tokens.shape[1], num_decisions).view(-1, per_frame)  # [F, N]
    starts = decided[:, :1] - num_before  # [F, 1]
    places = starts + torch.arange(num_before + per_frame - 1)  # [F, R]
    leads = sequence.hide_action(tokens[:, places[:, :num_before]].flatten(0, 1)).unflatten(0, (len(tokens), -1))
    branches = torch.cat([leads, tokens[:, places[:, num_before:]]], 2)  # [B, F, R]

    num_frames, length = places.shape
    main = torch.arange(tokens.shape[1] - 1)
    first = len(main) + torch.arange(num_frames)[:, None] * length  # [F, 1], where each branch begins
    before = torch.cat([decided.flatten() - 1, (first + num_before - 1 + torch.arange(per_frame)).flatten()])
    owner = torch.cat([torch.zeros_like(main), 1 + torch.arange(num_frames).repeat_interleave(length)])
    ends = torch.cat([main + 1, starts.expand_as(places).flatten()])
    where, owner, ends = (part.to(tokens.device) for part in (torch.cat([main, places.flatten()]), owner, ends))
    # A token reads its own branch up to itself, and the sequence before its branch.
    own = (owner == owner[:, None]) & (where <= where[:, None])
    in_main = (owner == 0) & (where < ends[:, None])
    return Branched(
        tokens=torch.cat([tokens[:, :-1], branches.flatten(1)], 1),
        places=where,
        visible=own | in_main,
        before=before.to(tokens.device),
    )
