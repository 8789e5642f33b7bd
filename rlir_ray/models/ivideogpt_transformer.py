"""iVideoGPT's transformer with actions (https://arxiv.org/abs/2405.15223, thuml/iVideoGPT).

A LlamaForCausalLM that adds a linear map of each action to the embedding of the token before the frame that the action
leads to. Legend: B clips, L length, F later frames, A numbers of an action, V vocabulary.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from rlir_ray.models.checkpoints import open_library_model


class IvideogptTransformer(LlamaForCausalLM):
    """A LlamaForCausalLM with `action_linear`; the sequences are those of `models.ivideogpt_sequences`.

    Args:
        config: with `action_size`, A.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)  # type: ignore[no-untyped-call]  # transformers does not annotate it
        self.action_linear = nn.Linear(config.action_size, config.hidden_size)

    def logits(self, input_ids: Tensor, actions: Tensor, positions: Tensor) -> Tensor:
        """Compute the logits of the token behind each position.

        Args:
            input_ids: int64 [B, L].
            actions: float [B, F, A], of `IvideogptSequences.read_actions`.
            positions: int64 [F], of `IvideogptSequences.action_positions`.

        Returns:
            float [B, L, V], differentiable.

        Raises:
            ValueError: actions of another shape.
        """
        shape = (len(input_ids), len(positions), self.config.action_size)
        if actions.shape != shape:
            raise ValueError(
                f"actions of iVideoGPT's transformer must be {list(shape)}, got {list(actions.shape)}; give one for "
                "each later frame"
            )
        added = self.action_linear(actions.to(self.dtype))
        embeddings = self.get_input_embeddings()(input_ids).index_add(1, positions.to(input_ids.device), added)
        logits: Tensor = self(inputs_embeds=embeddings, use_cache=False).logits
        return logits

    @classmethod
    def open(cls, folder: Path | str) -> Self:
        """Open a folder that `convert ivideogpt` wrote, in float32 and evaluation mode, on the CPU.

        Raises:
            ValueError: the folder does not exist, its model reads no actions, or the weights do not fit its config or
                are not finite.
        """
        if not (Path(folder) / "config.json").is_file():
            raise ValueError(f"no transformer in {folder} (config.json is missing); give the folder of a transformer")
        if not hasattr(LlamaConfig.from_pretrained(folder, local_files_only=True), "action_size"):
            raise ValueError(
                f"iVideoGPT's transformer must have action_size in its config.json, got none in {folder}; open a model "
                "without actions with transformers' AutoModelForCausalLM"
            )
        load = partial(cls.from_pretrained, dtype=torch.float32, local_files_only=True, use_safetensors=True)
        model: Self = open_library_model(load, folder, "iVideoGPT's transformer")
        # nn.Module's own, because transformers' `eval` is not annotated.
        return nn.Module.eval(model)
