"""The token sequence of a clip, as an autoregressive world model reads it.

[keyframe][image 0][action into frame 1][image 1][action into frame 2] ... [image n - 1]. Only models with a compressive
tokenizer have a keyframe: the first frame in full, of which the images are what changed. A model with BOS has it before
the last image, which is the only one that it generates.
The ids are those of the images, then of the keyframe, then of the actions, which include BOS.
Legend: B sequences, L length, T decisions, n frames, C context frames, N tokens an image, M tokens of the keyframe,
A tokens an action (the layout's; MineWorld's has 11).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from rlir_ray.spaces.layouts import ActionLayout, layout_of, layout_settings

KEYFRAME_KEYS = ("num_keyframe_codes", "tokens_per_keyframe")
BOS_KEY = "frame_bos_id"
"""Keys of a config.json, beside `tokens_per_frame` and those of the layout."""
UNSAMPLED_KEY = "sequence"
"""Key of a config.json that names another form of sequences, which no sampler of this version draws."""


class TokenShape(NamedTuple):
    """The tokens of a frame and of a keyframe; without keyframes 0."""

    num_codes: int
    """Image ids."""
    tokens_per_frame: int
    """N."""
    num_keyframe_codes: int = 0
    """Ids of the keyframe, behind the image ids."""
    tokens_per_keyframe: int = 0
    """M."""

    def __str__(self) -> str:
        keyframe = f" after {self.tokens_per_keyframe} of {self.num_keyframe_codes}" if self.tokens_per_keyframe else ""
        return f"{self.tokens_per_frame} tokens of {self.num_codes} codes{keyframe}"


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenSequence:
    """The form of a world model's sequences; part of its config.json.

    Example: 512 codes, 48 tokens an image, MineWorld's layout: 9 frames are a sequence of 520 tokens, of which the last
    8 frames are 384 decisions.
    """

    layout: ActionLayout
    shape: TokenShape
    bos_id: int | None = None
    """The token before the generated image; None: no such token."""

    # Any: the content of a config.json.
    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """Return the form that the config.json of a LlamaForCausalLM states; sizes that it lacks are 0.

        Raises:
            ValueError: the sequences have another form, or the space or layout of actions cannot be read.
        """
        if other := settings.get(UNSAMPLED_KEY):
            raise ValueError(
                f"a policy must have sequences of frames and action tokens, got {UNSAMPLED_KEY}={other!r} in its "
                "config.json; use a policy of another form, or train a world model of your own"
            )
        layout, (codes, tokens) = layout_of(settings), (int(settings.get(key) or 0) for key in KEYFRAME_KEYS)
        num_codes = max(0, int(settings.get("vocab_size") or 0) - layout.num_ids - codes)
        shape = TokenShape(num_codes, int(settings.get("tokens_per_frame") or 0), codes, tokens)
        return cls(layout=layout, shape=shape, bos_id=settings.get(BOS_KEY))

    def settings(self) -> dict[str, Any]:
        """Return the entries of a config.json from which `of` makes this form."""
        _, tokens_per_frame, *keyframe = self.shape
        return {
            "vocab_size": self.first_action_id + self.layout.num_ids,
            "tokens_per_frame": tokens_per_frame,
            **(dict(zip(KEYFRAME_KEYS, keyframe, strict=True)) if any(keyframe) else {}),
            **({} if self.bos_id is None else {BOS_KEY: self.bos_id}),
            **layout_settings(self.layout),
        }

    @property
    def first_action_id(self) -> int:
        return self.shape.num_codes + self.shape.num_keyframe_codes

    @property
    def _tokens_per_block(self) -> int:
        return self.shape.tokens_per_frame + self.layout.num_tokens

    @property
    def _num_others(self) -> int:
        """Tokens outside of images and actions."""
        return self.shape.tokens_per_keyframe + (self.bos_id is not None)

    @property
    def tokens_before_image(self) -> int:
        """Tokens between an image and the next generated one: its action, and BOS."""
        return self.layout.num_tokens + (self.bos_id is not None)

    def hide_action(self, tokens: Tensor) -> Tensor:
        """Return sequences that end before an image, int64 [B, L], with the action that leads into it hidden."""
        start = tokens.shape[1] - self.tokens_before_image
        hidden = torch.from_numpy(self.layout.hidden_tokens(self.first_action_id)).to(tokens.device)
        rest = tokens[:, start + len(hidden) :]
        return torch.cat([tokens[:, :start], hidden.expand(len(tokens), -1), rest], 1)

    def length(self, num_frames: int) -> int:
        """Return L, the length of a sequence of `num_frames` frames, context included."""
        return self._num_others + num_frames * self._tokens_per_block - self.layout.num_tokens

    def count_frames(self, length: int) -> int:
        """Return the number of frames of a sequence, the inverse of `length`.

        Raises:
            ValueError: no number of frames has this length.
        """
        num_frames, rest = divmod(length - self.length(0), self._tokens_per_block)
        if rest or num_frames < 1:
            others = f"{self._num_others} + " if self._num_others else ""
            blocks = f"n * ({self.shape.tokens_per_frame} + {self.layout.num_tokens}) - {self.layout.num_tokens}"
            raise ValueError(
                f"a sequence of n frames must have {others}{blocks} tokens, got {length}; check that prompts and "
                "policy share one tokenizer and one action space"
            )
        return num_frames

    def image_positions(self, num_frames: int, first_frame: int = 0) -> Tensor:
        """Return positions of the image tokens from `first_frame` on, int64 [(num_frames - first_frame) * N]."""
        starts = self.shape.tokens_per_keyframe + torch.arange(num_frames) * self._tokens_per_block
        starts[-1] += self.bos_id is not None
        return (starts[first_frame:, None] + torch.arange(self.shape.tokens_per_frame)).flatten()

    def decision_positions(self, length: int, num_decisions: int) -> Tensor:
        """Return positions of the decided tokens, int64 [T]: the image tokens of the last T / N frames.

        Raises:
            ValueError: the decisions do not fill whole frames, or leave no context frame, or are several frames of a
                model with BOS.
        """
        num_frames = self.count_frames(length)
        num_generated, rest = divmod(num_decisions, self.shape.tokens_per_frame)
        if rest or not 0 < num_generated < num_frames:
            raise ValueError(
                f"decisions must be whole frames after at least one context frame, got {num_decisions} decisions of "
                f"{self.shape.tokens_per_frame} tokens a frame in {num_frames} frames; check world.num_context and "
                "world.num_frames"
            )
        self.check_generated(num_generated)
        return self.image_positions(num_frames, num_frames - num_generated)

    def check_generated(self, num_frames: int) -> None:
        """Check the number of frames to generate.

        Raises:
            ValueError: several, of a model with BOS.
        """
        if self.bos_id is not None and num_frames > 1:
            raise ValueError(
                f"a model with {BOS_KEY} generates one frame a clip, got world.num_frames={num_frames}; set "
                "world.num_frames=1"
            )

    def assemble(self, frames: Tensor, actions: Tensor, keyframes: Tensor | None = None) -> Tensor:
        """Build whole sequences.

        Args:
            frames: int [B, n, N], image tokens.
            actions: int [B, n - 1, A], action tokens; row i leads into frame i + 1.
            keyframes: int [B, M], ids of the keyframes, from 0 on; None: the form has none.

        Returns:
            int64 [B, L].

        Raises:
            ValueError: other numbers of actions, or keyframes missing or not wanted.
        """
        if frames.shape[-2] != actions.shape[-2] + 1:
            raise ValueError(
                f"n frames need n - 1 rows of action tokens, got frames {list(frames.shape)} and actions "
                f"{list(actions.shape)}; drop the action that leads into the first frame"
            )
        return torch.cat([self.prefix(frames[:, :-1], actions, keyframes), frames[:, -1].long()], 1)

    def prefix(self, frames: Tensor, actions: Tensor, keyframes: Tensor | None = None) -> Tensor:
        """Build the tokens before the next image, which a group shares if the frames are the context.

        Args:
            frames: int [B, n, N], image tokens.
            actions: int [B, n, A], action tokens; row i leads into frame i + 1, the last one into the next frame.
            keyframes: see `assemble`.

        Returns:
            int64 [B, L].
        """
        blocks = torch.cat([frames.long(), actions.long()], 2).flatten(1)
        parts = [*self._keyframe_part(keyframes, len(frames)), blocks]
        if self.bos_id is not None:
            parts.append(blocks.new_full((len(frames), 1), self.bos_id))
        return torch.cat(parts, 1)

    def _keyframe_part(self, keyframes: Tensor | None, num_sequences: int) -> list[Tensor]:
        found = None if keyframes is None else tuple(keyframes.shape)
        wanted = (num_sequences, self.shape.tokens_per_keyframe) if self.shape.tokens_per_keyframe else None
        if found != wanted:
            raise ValueError(
                f"keyframes of these sequences must be {wanted and list(wanted)}, got {found and list(found)}; encode "
                "prompts with the policy's tokenizer"
            )
        return [] if keyframes is None else [keyframes.long() + self.shape.num_codes]
