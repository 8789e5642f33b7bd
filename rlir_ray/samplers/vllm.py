"""The vLLM engine: a request for every frame of a clip, which finds what came before it in the prefix cache.

A request's prompt is the clip so far and the action tokens that lead into the frame, so that these are never sampled;
its answer is the frame. A clip's next request goes in when its last one is answered: no clip waits for another.
The only file that imports vllm. Legend: P prompts, G trajectories, T decisions, C context frames, F generated frames,
N tokens a frame, L tokens in all.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from vllm import EngineArgs, LLMEngine, ModelRegistry, SamplingParams
from vllm.config import VllmConfig as EngineConfig
from vllm.config import WeightTransferConfig
from vllm.distributed.weight_transfer import WeightTransferEngine, WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.inputs import tokens_input
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind
from vllm.triton_utils import dispatcher

from rlir_ray.algorithm.seeds import frame_seed
from rlir_ray.config import VllmConfig
from rlir_ray.models.adapters import is_adapter_weight, merged_weight
from rlir_ray.models.autoregressive import NUM_EXTRA_IDS, WorldModel, sequence_length
from rlir_ray.models.rescoring import TokenRescorer
from rlir_ray.samplers import LogprobDifference
from rlir_ray.samplers.calls import check_call, prefixes, token_groups, token_inputs
from rlir_ray.samplers.comparison import compare
from rlir_ray.trajectory import EncodedVideo, Prompt, TrajectoryGroup
from rlir_ray.transfer.weights import Received, load_weights

# The smallest that all of vLLM's attention kernels take, those for CPUs included: what a request finds in the prefix
# cache are whole blocks.
BLOCK_SIZE = 32
# Of all clips in one step, or of one clip where that is longer.
MAX_BATCHED_TOKENS = 8192
TRANSFER = "rlir_policy"


class ImageTokenLlama(LlamaForCausalLM):
    """A LLaMA that can only say image ids: they come first in the vocabulary, the others are cut off its logits.

    So the softmax, the draw and the log-probabilities of any of vLLM's samplers are over the image vocabulary.
    """

    def __init__(self, *, vllm_config: EngineConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        size = self.config.vocab_size
        self.logits_processor = LogitsProcessor(size, org_vocab_size=size - NUM_EXTRA_IDS)


@dataclass
class NoInitInfo(WeightTransferInitInfo):
    """There is nothing to agree upon within a process."""


@dataclass
class PolicyUpdate(WeightTransferUpdateInfo):
    weights: Iterable[tuple[str, Tensor]]
    """All of them, as in a checkpoint."""


class PolicyTransfer(WeightTransferEngine[NoInitInfo, PolicyUpdate]):
    """vLLM's weight transfer from the policy that the same process holds."""

    init_info_cls = NoInitInfo
    update_info_cls = PolicyUpdate

    def init_transfer_engine(self, init_info: NoInitInfo) -> None:
        pass

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: PolicyUpdate) -> None:
        try:
            loaded = self.model.load_weights(update_info.weights)
            if missing := dict(self.model.named_parameters()).keys() - loaded:
                raise ValueError(f"vLLM must get all of the policy's weights, got none for {min(missing)}")
        except BaseException:
            # Layers that wait for the rest of their weights would mix them with those of the next transfer.
            self.finish_weight_update()
            raise

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        pass


def checkpoint_weights(llama: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Weights under the names of a checkpoint's folder, an adapter merged into them."""
    for name, weight in llama.state_dict().items():
        if is_adapter_weight(name):
            continue
        owner, _, kind = name.rpartition(".")
        plain = owner.removesuffix(".base_layer")
        yield f"{plain}.{kind}", weight if plain == owner else merged_weight(llama.get_submodule(plain))


def _attributes(value: Any) -> Mapping[str, Any]:
    found = value.__dict__
    return found if isinstance(found, Mapping) else {}


def start_engine(folder: Path, settings: VllmConfig, length: int) -> LLMEngine:
    """An engine in this process, with random weights.

    Args:
        folder: of the policy's checkpoint; its config.json is read.
        settings: dtype, memory and width.
        length: tokens of the longest clip.
    """
    # The weights are handed over within the process; nothing is reported to vLLM's makers.
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_NO_USAGE_STATS="1")
    # On a GPU Triton's products would take float32 for something shorter.
    os.environ.setdefault("TRITON_F32_DEFAULT", "ieee")
    # While it starts vLLM looks through all loaded modules, where numba's library has an answer to any name.
    dispatcher.vars = _attributes
    ModelRegistry.register_model(ImageTokenLlama.__name__, ImageTokenLlama)
    if TRANSFER not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(TRANSFER, PolicyTransfer)
    on_cpu = current_platform.is_cpu()
    return LLMEngine.from_engine_args(
        EngineArgs(
            model=str(folder),
            # In bfloat16 too the logits, which are rounded to steps of a sixteenth otherwise, are float32.
            hf_overrides={"architectures": [ImageTokenLlama.__name__], "head_dtype": "float32"},
            skip_tokenizer_init=True,
            generation_config="vllm",
            load_format="dummy",
            weight_transfer_config=WeightTransferConfig(backend=TRANSFER),
            dtype=settings.dtype,
            max_model_len=length,
            max_num_seqs=settings.max_num_seqs,
            block_size=BLOCK_SIZE,
            enable_prefix_caching=True,
            # A prompt that is read in parts draws once a part: a request's own draws would depend on its company (and
            # vLLM cannot take a draw back on a CPU).
            enable_chunked_prefill=False,
            max_num_batched_tokens=max(MAX_BATCHED_TOKENS, length),
            kv_cache_memory_bytes=settings.kv_cache_bytes if on_cpu else None,
            gpu_memory_utilization=settings.gpu_memory_utilization,
            enforce_eager=on_cpu or settings.enforce_eager,
            logprobs_mode="processed_logprobs",
            # One after another, so that the requests of a step, and with them its rounding, are the same every time.
            async_scheduling=False,
            disable_log_stats=True,
            log_level="ERROR",
        )
    )


@dataclass(slots=True)
class _Clip:
    """A clip under way."""

    name: str
    tokens: list[int]
    """So far, with the action that leads into the next frame."""
    actions: list[list[int]]
    """[F - 1][11], the action tokens that lead into the frames after the first generated one."""
    seeds: list[int]
    """F, of each frame."""
    frames: list[Sequence[int]] = field(default_factory=list)
    """[F][N], as they come."""
    logprobs: list[float] = field(default_factory=list)


class VllmSampler:
    """Samples groups with vLLM, on the device that its build is for.

    A group's draws depend on its own seed only; its log-probabilities depend, by rounding, on the clips that happen to
    be in the same steps, so that the same call gives the same groups to the last digit, and another call with the same
    group gives it up to draws that rounding decides.

    Args:
        policy: the sampler keeps it, loads published weights into it and hands them on; it is also what vLLM's
            log-probabilities are compared with.
        folder: of its checkpoint.
        settings: of the engine.
        temperature: divides the logits, as in the learner's rescoring.
        num_frames: C + F of the longest clip.
        compares: one clip a call is scored by the policy too.
    """

    def __init__(
        self,
        policy: WorldModel,
        folder: Path,
        settings: VllmConfig,
        *,
        temperature: float,
        num_frames: int,
        compares: bool = True,
    ) -> None:
        self.policy, self.temperature, self.compares = policy, temperature, compares
        self.policy_version = 0
        self.difference: LogprobDifference | None = None
        self.engine = start_engine(folder, settings, sequence_length(num_frames, policy.tokens_per_frame))
        self._hand_over(0)

    def load_weights(self, weights: Received, version: int, published: str = "") -> None:
        """Takes the weights of a version; where that fails, those of the version before stay.

        Their checksum is proven of the policy, which hands them on: the engine keeps them in a layout of its own.

        Raises:
            ValueError: a name or a shape is not the policy's, or the checksum differs.
        """
        before = load_weights(self.policy, weights, published)
        try:
            self._hand_over(version)
        except BaseException:
            load_weights(self.policy, before)
            self._hand_over(self.policy_version)
            raise
        self.policy_version = version

    def _hand_over(self, version: int) -> None:
        """The policy's weights to the engine, which forgets what it computed with others."""
        self.engine.collective_rpc("start_weight_update")
        update = {"weights": checkpoint_weights(self.policy.llama)}
        self.engine.collective_rpc("update_weights", kwargs={"update_info": update})
        self.engine.collective_rpc("finish_weight_update")
        self.engine.set_weight_version(str(version))
        self._forget()

    def _forget(self) -> None:
        if not self.engine.reset_prefix_cache():
            raise RuntimeError("vLLM must forget its prefix cache between calls, got requests that still hold it")

    def sample(
        self, prompts: Sequence[Prompt], group_ids: Sequence[int], seeds: Sequence[int], group_size: int
    ) -> list[tuple[TrajectoryGroup, EncodedVideo]]:
        """One group for each prompt.

        Args:
            prompts: all with the same C and F.
            group_ids, seeds: one for each prompt.
            group_size: G.
        """
        num_context, num_frames = check_call(prompts, group_ids, seeds, (self.policy.tokens_per_frame,))
        context, actions = token_inputs(prompts, self.policy.num_codes)
        clips = [
            _Clip(f"{group_id}.{row}", prefix, commanded, [frame_seed(seed, row, n) for n in range(num_frames)])
            for group_id, prefix, commanded, seed in zip(
                group_ids, prefixes(context, actions).tolist(), actions[:, num_context:].tolist(), seeds, strict=True
            )
            for row in range(group_size)
        ]
        # What an earlier call left in the cache would change what is computed together, and with it the rounding.
        self._forget()
        self._generate(clips)
        frames = torch.tensor([clip.frames for clip in clips])  # [P * G, F, N]
        logprobs = torch.tensor([clip.logprobs for clip in clips], dtype=torch.float32)  # [P * G, T]
        pairs = token_groups(prompts, group_ids, seeds, self.policy_version, context, actions, frames, logprobs)
        if self.compares:
            self.difference = compare(self.policy, TokenRescorer(self.temperature), pairs[0][0])
        return pairs

    def _generate(self, clips: list[_Clip]) -> None:
        """Fills the clips; unblocked by the engine's steps, each of which adds a token to every clip under way."""
        under_way: dict[str, _Clip] = {}
        try:
            for clip in clips:
                under_way[self._request(clip)] = clip
            while under_way:
                for answer in self.engine.step():
                    clip = under_way.pop(answer.request_id)
                    self._take(clip, answer.outputs[0])
                    if len(clip.frames) < len(clip.seeds):
                        under_way[self._request(clip)] = clip
        except BaseException:
            # The next call starts with an engine that holds nothing.
            self.engine.abort_request(list(under_way))
            raise

    def _request(self, clip: _Clip) -> str:
        """Asks for the next frame of a clip; returns the request's name."""
        frame = len(clip.frames)
        parameters = SamplingParams(
            temperature=self.temperature, seed=clip.seeds[frame], max_tokens=self.policy.tokens_per_frame,
            ignore_eos=True, logprobs=0, flat_logprobs=True, detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )  # fmt: skip
        name = f"{clip.name}.{frame}"
        self.engine.add_request(name, tokens_input(clip.tokens), parameters)
        return name

    def _take(self, clip: _Clip, found: Any) -> None:
        """A frame that was drawn, and the action into the next one."""
        drawn = list(found.token_ids)
        if len(drawn) != self.policy.tokens_per_frame:
            raise RuntimeError(
                f"a frame must have {self.policy.tokens_per_frame} tokens, got {len(drawn)} ({found.finish_reason}); "
                "raise vllm.kv_cache_bytes or vllm.gpu_memory_utilization"
            )
        clip.frames.append(drawn)
        clip.logprobs += found.logprobs.logprobs
        # A new list: the engine may still hold the one that it was given.
        following = clip.actions[len(clip.frames) - 1] if len(clip.frames) < len(clip.seeds) else []
        clip.tokens = [*clip.tokens, *drawn, *following]
