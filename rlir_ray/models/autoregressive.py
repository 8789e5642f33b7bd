"""World models over discrete frame tokens: a LLaMA decoder with action tokens between the frames (MineWorld's form).

Sequence: [image 0][action tokens leading into frame 1][image 1][action][image 2]...; image ids come before action ids.
Legend: B sequences, L length, T decisions, C context, F generated frames, N tokens a frame, A tokens an action (the
layout's; MineWorld's has 11), K image ids, E width.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rlir_ray.data.files import give_usual_mode
from rlir_ray.models.checkpoints import open_library_model
from rlir_ray.models.llama_config import check_llama_config
from rlir_ray.spaces.layouts import ActionLayout, MineworldLayout, layout_of, layout_settings

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaForCausalLM

MAX_POSITIONS = 8192


def sequence_length(num_frames: int, tokens_per_frame: int, tokens_per_action: int) -> int:
    """Return L, the length of a sequence of `num_frames` frames, context included."""
    return num_frames * (tokens_per_frame + tokens_per_action) - tokens_per_action


def count_frames(length: int, tokens_per_frame: int, tokens_per_action: int) -> int:
    """Return the number of frames of a sequence, the inverse of `sequence_length`."""
    num_frames, rest = divmod(length + tokens_per_action, tokens_per_frame + tokens_per_action)
    if rest or num_frames < 1:
        raise ValueError(
            f"a sequence of n frames must have n * ({tokens_per_frame} + {tokens_per_action}) - {tokens_per_action} "
            f"tokens, got {length}; check that prompts and policy share one tokenizer and one action space"
        )
    return num_frames


def image_positions(num_frames: int, tokens_per_frame: int, tokens_per_action: int, first_frame: int = 0) -> Tensor:
    """Return positions of the image tokens from `first_frame` on, int64 [(num_frames - first_frame) * N]."""
    starts = torch.arange(first_frame, num_frames) * (tokens_per_frame + tokens_per_action)
    return (starts[:, None] + torch.arange(tokens_per_frame)).flatten()


def decision_positions(length: int, num_decisions: int, tokens_per_frame: int, tokens_per_action: int) -> Tensor:
    """Return positions of the decided tokens, int64 [T]: the image tokens of the last T / N frames.

    Raises:
        ValueError: the decisions do not fill whole frames, or leave no context frame.
    """
    num_frames = count_frames(length, tokens_per_frame, tokens_per_action)
    num_generated, rest = divmod(num_decisions, tokens_per_frame)
    if rest or not 0 < num_generated < num_frames:
        raise ValueError(
            f"decisions must be whole frames after at least one context frame, got {num_decisions} decisions of "
            f"{tokens_per_frame} tokens a frame in {num_frames} frames; check world.num_context and world.num_frames"
        )
    return image_positions(num_frames, tokens_per_frame, tokens_per_action, num_frames - num_generated)


def assemble(frames: Tensor, actions: Tensor) -> Tensor:
    """Interleave frames and actions.

    Args:
        frames: int [..., n, N], image tokens.
        actions: int [..., n - 1, A], action tokens; row i leads into frame i + 1.

    Returns:
        int64 [..., L].
    """
    if frames.shape[-2] != actions.shape[-2] + 1:
        raise ValueError(
            f"n frames need n - 1 rows of action tokens, got frames {list(frames.shape)} and actions "
            f"{list(actions.shape)}; drop the action that leads into the first frame"
        )
    blocks = torch.cat([actions.long(), frames[..., 1:, :].long()], -1).flatten(-2)
    return torch.cat([frames[..., 0, :].long(), blocks], -1)


class WorldModel(nn.Module):
    """A `transformers` LLaMA that computes the log-probabilities of the decided image tokens.

    `LlamaForCausalLM.from_pretrained` opens the saved folder; its config.json also holds `tokens_per_frame`, and the
    action space unless the layout of actions is MineWorld's. A configuration with fields that the samplers do not
    compute raises a ValueError.

    Example: 512 codes, 48 tokens a frame, MineWorld's layout: vocabulary 582; 9 frames are a sequence of 520 tokens
    with 384 decisions.
    """

    def __init__(self, llama: LlamaForCausalLM) -> None:
        super().__init__()
        check_llama_config(llama.config)
        self.llama = llama
        self.tokens_per_frame = int(llama.config.tokens_per_frame)
        self.layout = layout_of(llama.config.to_dict())
        self.num_codes = int(llama.config.vocab_size) - self.layout.num_ids

    @property
    def config(self) -> LlamaConfig:
        return self.llama.config

    def forward(self, tokens: Tensor, num_decisions: int, temperature: float = 1.0) -> Tensor:
        """Return log-probabilities of the decided tokens, over the image ids only and after the temperature.

        Args:
            tokens: int64 [B, L], whole sequences.
            num_decisions: T, the image tokens of the last T / N frames.
            temperature: divides the logits.

        Returns:
            float32 [B, T], differentiable.
        """
        sizes = (self.tokens_per_frame, self.layout.num_tokens)
        positions = decision_positions(tokens.shape[1], num_decisions, *sizes).to(tokens.device)
        return self.logprobs(tokens, positions, temperature)

    def logprobs(self, tokens: Tensor, positions: Tensor, temperature: float = 1.0) -> Tensor:
        """Compute the same as `forward` for the image tokens at the given positions (all > 0), int64 [T]."""
        hidden = self.llama.model(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state  # [B, L - 1, E]
        # The state before a position predicts its token. Only the states of decisions pass through the head, to save
        # memory.
        logits: Tensor = self.llama.lm_head(hidden[:, positions - 1])[..., : self.num_codes]  # [B, T, K]
        # float32, because sampler and learner must agree on log-probabilities at any precision of the weights.
        logits = logits.float() / temperature
        decided: Tensor = logits.gather(-1, tokens[:, positions, None]).squeeze(-1)
        return decided - logits.logsumexp(-1)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the activations inside layers in the backward pass, to save memory."""
        self.llama.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        # transformers checkpoints in training mode only. The model has no dropout, so that nothing else changes.
        self.llama.train()

    @classmethod
    def create(
        cls,
        *,
        num_codes: int,
        tokens_per_frame: int,
        hidden_size: int = 192,
        intermediate_size: int = 512,
        num_layers: int = 5,
        num_heads: int = 3,
        num_key_value_heads: int = 1,
        max_positions: int = MAX_POSITIONS,
        layout: ActionLayout | None = None,
    ) -> WorldModel:
        """Return a fresh model with random weights (torch's global generator), untied head, MineWorld's constants.

        Args:
            num_codes: K.
            tokens_per_frame: N.
            hidden_size, intermediate_size, num_layers, num_heads, num_key_value_heads: sizes of the LLaMA.
            max_positions: tokens of the longest sequence.
            layout: how the model gets actions; None: MineWorld's layout.
        """
        from transformers import LlamaConfig, LlamaForCausalLM

        if num_heads % num_key_value_heads or hidden_size % num_heads:
            raise ValueError(
                f"num_heads must divide hidden_size and be a multiple of num_key_value_heads, got {num_heads}, "
                f"{hidden_size} and {num_key_value_heads}; for example 4 heads, width 256, 2 key-value heads"
            )
        layout = layout or MineworldLayout()
        config = LlamaConfig(
            vocab_size=num_codes + layout.num_ids,
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            num_key_value_heads=num_key_value_heads,
            head_dim=hidden_size // num_heads,
            max_position_embeddings=max_positions,
            rms_norm_eps=1e-5,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
            **layout_settings(layout),
        )
        config.tokens_per_frame = tokens_per_frame
        return cls(LlamaForCausalLM(config))

    @classmethod
    def from_pretrained(cls, folder: Path | str, *, tokens_per_frame: int | None = None) -> WorldModel:
        """Open a LlamaForCausalLM folder, in float32 and evaluation mode, on the CPU.

        Args:
            folder: holds config.json and safetensors.
            tokens_per_frame: needed if the folder's config.json has no `tokens_per_frame`.

        Raises:
            ValueError: the folder does not exist, the config has unknown fields or a broken action space, or the
                weights do not fit or are not finite.
        """
        from transformers import LlamaConfig, LlamaForCausalLM

        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise ValueError(f"no world model in {folder} (config.json is missing); give a LlamaForCausalLM folder")
        kind = LlamaConfig.get_config_dict(folder, local_files_only=True)[0].get("model_type", "llama")
        if kind != "llama":
            raise ValueError(f"a world model must be a LlamaForCausalLM, got model_type={kind} in {folder}; convert it")
        config = LlamaConfig.from_pretrained(folder, local_files_only=True)
        tokens_per_frame = tokens_per_frame or getattr(config, "tokens_per_frame", None)
        num_ids = layout_of(config.to_dict()).num_ids
        if tokens_per_frame is None or config.vocab_size <= num_ids:
            raise ValueError(
                f"a world model's config.json must give tokens_per_frame and a vocab_size above the {num_ids} ids of "
                f"actions, got {tokens_per_frame} and {config.vocab_size} in {folder}; add tokens_per_frame there"
            )
        config.tokens_per_frame = tokens_per_frame
        check_llama_config(config)
        load = partial(
            LlamaForCausalLM.from_pretrained,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
        )
        return cls(open_library_model(load, folder, "the policy")).eval()

    def save_pretrained(self, folder: Path | str, dtype: torch.dtype = torch.float32) -> None:
        """Write the folder; bfloat16 halves the file and rounds the weights."""
        state = {name: value.detach().to(dtype) for name, value in self.llama.state_dict().items()}
        self.llama.save_pretrained(folder, state_dict=state)
        give_usual_mode(folder)
