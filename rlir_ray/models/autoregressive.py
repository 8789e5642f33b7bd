"""World models over discrete frame tokens: a LLaMA decoder over the sequences of `models.token_sequence`.

MineWorld's form, and that of RLVR-World's transformers. Legend: B sequences, L length, T decisions, N tokens a frame,
K image ids, V all ids, E width.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rlir_ray.algorithm.guidance import NO_GUIDANCE, guided
from rlir_ray.data.files import give_usual_mode
from rlir_ray.models.checkpoints import open_library_model
from rlir_ray.models.hidden_actions import add_branches
from rlir_ray.models.llama_config import check_llama_config
from rlir_ray.models.token_sequence import TokenSequence, TokenShape
from rlir_ray.spaces.layouts import ActionLayout, MineworldLayout

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaForCausalLM

MAX_POSITIONS = 8192


class WorldModel(nn.Module):
    """A `transformers` LLaMA that computes the log-probabilities of the decided image tokens.

    `LlamaForCausalLM.from_pretrained` opens the saved folder; its config.json also holds the form of the sequences
    (`TokenSequence`). A configuration with fields that the samplers do not compute raises a ValueError.

    Example: 512 codes, 48 tokens a frame, MineWorld's layout: vocabulary 582; 9 frames are a sequence of 520 tokens
    with 384 decisions.
    """

    def __init__(self, llama: LlamaForCausalLM) -> None:
        super().__init__()
        check_llama_config(llama.config)
        self.llama = llama
        self.sequence = TokenSequence.of(llama.config.to_dict())

    @property
    def tokens_per_frame(self) -> int:
        return self.sequence.shape.tokens_per_frame

    @property
    def layout(self) -> ActionLayout:
        return self.sequence.layout

    @property
    def num_codes(self) -> int:
        return self.sequence.shape.num_codes

    @property
    def config(self) -> LlamaConfig:
        return self.llama.config

    def num_ids(self, restrict: bool) -> int:
        """Return the number of ids that a decision chooses from: K if restricted to image ids, otherwise V."""
        return self.num_codes if restrict else int(self.config.vocab_size)

    def forward(
        self,
        tokens: Tensor,
        num_decisions: int,
        temperature: float = 1.0,
        restrict: bool = True,
        guidance: float = NO_GUIDANCE,
    ) -> Tensor:
        """Return log-probabilities of the decided tokens, after the temperature.

        Args:
            tokens: int64 [B, L], whole sequences.
            num_decisions: T, the image tokens of the last T / N frames.
            temperature: divides the logits.
            restrict: compute the probabilities over the image ids only, not over all ids.
            guidance: scale of the action guidance; 1: none. Otherwise the pass is about twice as long.

        Returns:
            float32 [B, T], differentiable.
        """
        positions = self.sequence.decision_positions(tokens.shape[1], num_decisions).to(tokens.device)
        if guidance == NO_GUIDANCE:
            return self.logprobs(tokens, positions, temperature, restrict)
        branched = add_branches(self.sequence, tokens, num_decisions)
        hidden = self.llama.model(
            input_ids=branched.tokens,
            position_ids=branched.places[None],
            attention_mask=branched.visible[None, None],
            use_cache=False,
        ).last_hidden_state
        action, null = self._logits(hidden[:, branched.before], restrict).chunk(2, 1)  # [B, T, K or V] each
        return _decided(guided(action, null, guidance) / temperature, tokens[:, positions])

    def logprobs(self, tokens: Tensor, positions: Tensor, temperature: float = 1.0, restrict: bool = True) -> Tensor:
        """Compute the same as `forward` for the image tokens at the given positions (all > 0), int64 [T]."""
        hidden = self.llama.model(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state  # [B, L - 1, E]
        # The state before a position predicts its token. Only the states of decisions pass through the head, to save
        # memory.
        return _decided(self._logits(hidden[:, positions - 1], restrict) / temperature, tokens[:, positions])

    def _logits(self, hidden: Tensor, restrict: bool) -> Tensor:
        """Map states [B, T, E] to logits, float32 [B, T, K or V]."""
        logits: Tensor = self.llama.lm_head(hidden)[..., : self.num_ids(restrict)]
        # float32, because sampler and learner must agree on log-probabilities at any precision of the weights.
        return logits.float()

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
        num_keyframe_codes: int = 0,
        tokens_per_keyframe: int = 0,
    ) -> WorldModel:
        """Return a fresh model with random weights (torch's global generator), untied head, MineWorld's constants.

        Args:
            num_codes: K.
            tokens_per_frame: N.
            hidden_size, intermediate_size, num_layers, num_heads, num_key_value_heads: sizes of the LLaMA.
            max_positions: tokens of the longest sequence.
            layout: how the model gets actions; None: MineWorld's layout.
            num_keyframe_codes, tokens_per_keyframe: of the first frame in full, with a compressive tokenizer.
        """
        from transformers import LlamaConfig, LlamaForCausalLM

        if num_heads % num_key_value_heads or hidden_size % num_heads:
            raise ValueError(
                f"num_heads must divide hidden_size and be a multiple of num_key_value_heads, got {num_heads}, "
                f"{hidden_size} and {num_key_value_heads}; for example 4 heads, width 256, 2 key-value heads"
            )
        sequence = TokenSequence(
            layout=layout or MineworldLayout(),
            shape=TokenShape(num_codes, tokens_per_frame, num_keyframe_codes, tokens_per_keyframe),
        )
        config = LlamaConfig(
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
            **sequence.settings(),
        )
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
        sequence = TokenSequence.of(config.to_dict())
        if tokens_per_frame is None or not sequence.shape.num_codes:
            raise ValueError(
                "a world model's config.json must give tokens_per_frame and a vocab_size above the "
                f"{sequence.shape.num_keyframe_codes + sequence.layout.num_ids} ids of keyframes and actions, got "
                f"{tokens_per_frame} and {config.vocab_size} in {folder}; add tokens_per_frame there"
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


def _decided(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the log-probabilities [B, T] of tokens int64 [B, T], from logits [B, T, K]."""
    decided: Tensor = logits.gather(-1, tokens[..., None]).squeeze(-1)
    return decided - logits.logsumexp(-1)
