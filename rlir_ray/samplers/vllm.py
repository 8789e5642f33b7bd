"""The vLLM engine: one request for every frame of a clip; the prefix cache holds the earlier frames.

The prompt of a request is the clip so far and the action tokens that lead into the frame, so that action tokens are
never sampled. The answer is the frame. When a request is answered, the clip's next request is added at once: no clip
waits for another.
The only file that imports vllm. Legend: P prompts, G trajectories, T decisions, C context frames, F generated frames,
N tokens a frame, A tokens an action, L tokens in all.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
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
from rlir_ray.models.adapters import merged_weights
from rlir_ray.models.autoregressive import WorldModel
from rlir_ray.models.rescoring import TokenRescorer
from rlir_ray.models.token_sequence import TokenSequence
from rlir_ray.samplers.base import PolicySampler
from rlir_ray.samplers.calls import check_call, token_groups, token_inputs
from rlir_ray.trajectory import EncodedVideo, Prompt, TrajectoryGroup

if TYPE_CHECKING:
    from vllm.outputs import CompletionOutput

# The prefix cache finds whole blocks only, so that small blocks are better; all of vLLM's attention kernels, also on
# CPUs, support at least this size.
BLOCK_SIZE = 32
# Tokens of all clips in one engine step; a longer clip raises the bound.
MAX_BATCHED_TOKENS = 8192
TRANSFER = "rlir_policy"


class ImageTokenLlama(LlamaForCausalLM):
    """A LLaMA whose logits cover the image ids only; image ids come first in the vocabulary.

    Therefore the softmax, the draws and the log-probabilities of all vLLM samplers are over the image vocabulary.
    """

    def __init__(self, *, vllm_config: EngineConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        size, num_codes = self.config.vocab_size, TokenSequence.of(self.config.to_dict()).shape.num_codes
        self.logits_processor = LogitsProcessor(size, org_vocab_size=num_codes)


@dataclass
class NoInitInfo(WeightTransferInitInfo):
    """Empty: a transfer within one process needs no setup."""


@dataclass
class PolicyUpdate(WeightTransferUpdateInfo):
    weights: Iterable[tuple[str, Tensor]]
    """All weights, named as in a checkpoint."""


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
            # A layer that still waits for weights would mix this transfer's weights with the next transfer's.
            self.finish_weight_update()
            raise

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        pass


def _attributes(value: object) -> Mapping[str, object]:
    found = value.__dict__
    return found if isinstance(found, Mapping) else {}


def start_engine(folder: Path, settings: VllmConfig, length: int, restrict: bool = True) -> LLMEngine:
    """Start an engine in this process, with random weights.

    Args:
        folder: folder of the policy's checkpoint; only its config.json is read.
        settings: dtype, memory and width.
        length: tokens of the longest clip.
        restrict: draw from the image ids only, not from all ids.
    """
    # Weights are transferred within this process, so that the engine must run in it. No usage statistics are sent.
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_NO_USAGE_STATS="1")
    # Triton's default on a GPU is TF32, which is too coarse: log-probabilities would differ from the learner's.
    os.environ.setdefault("TRITON_F32_DEFAULT", "ieee")
    # vLLM inspects the attributes of all loaded modules when it starts, and numba's library returns a value for any
    # name.
    dispatcher.vars = _attributes
    ModelRegistry.register_model(ImageTokenLlama.__name__, ImageTokenLlama)
    if TRANSFER not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(TRANSFER, PolicyTransfer)
    on_cpu = current_platform.is_cpu()
    return LLMEngine.from_engine_args(
        EngineArgs(
            model=str(folder),
            # Logits are float32 also with bfloat16 weights: bfloat16 would round logits to steps of a sixteenth.
            hf_overrides={
                "architectures": [(ImageTokenLlama if restrict else LlamaForCausalLM).__name__],
                "head_dtype": "float32",
            },
            skip_tokenizer_init=True,
            generation_config="vllm",
            load_format="dummy",
            weight_transfer_config=WeightTransferConfig(backend=TRANSFER),
            dtype=settings.dtype,
            max_model_len=length,
            max_num_seqs=settings.max_num_seqs,
            block_size=BLOCK_SIZE,
            enable_prefix_caching=True,
            # A chunked prompt draws once a chunk, so that a request's draws would depend on the other requests (and
            # vLLM cannot undo a draw on a CPU).
            enable_chunked_prefill=False,
            max_num_batched_tokens=max(MAX_BATCHED_TOKENS, length),
            kv_cache_memory_bytes=settings.kv_cache_bytes if on_cpu else None,
            gpu_memory_utilization=settings.gpu_memory_utilization,
            enforce_eager=on_cpu or settings.enforce_eager,
            logprobs_mode="processed_logprobs",
            # Without async scheduling, each engine step holds the same requests every time, and so the same rounding.
            async_scheduling=False,
            disable_log_stats=True,
            log_level="ERROR",
        )
    )


@dataclass(slots=True)
class _Clip:
    """A clip in flight."""

    name: str
    tokens: list[int]
    """Tokens so far, with the action that leads into the next frame."""
    actions: list[list[int]]
    """[F - 1][A], the action tokens that lead into the frames after the first generated one."""
    seeds: list[int]
    """[F], the seed of each frame."""
    frames: list[Sequence[int]] = field(default_factory=list)
    """[F][N], the frames that are finished."""
    logprobs: list[float] = field(default_factory=list)


class VllmSampler(PolicySampler[WorldModel]):
    """Sampler of autoregressive world models in vLLM, on the device of vLLM's build.

    The draws of a group depend on its own seed only. Its log-probabilities also depend, by rounding, on the other clips
    in the same engine steps. Therefore the same call gives exactly the same groups. Another call with the same group
    may differ in draws that are decided by rounding.

    Args:
        policy: the sampler loads published weights into this model and then transfers them to vLLM. The model also
            checks vLLM's log-probabilities.
        folder: folder of the policy's checkpoint.
        settings: settings of the engine.
        temperature: divides the logits, as in the learner's rescoring.
        num_frames: C + F of the longest clip.
        restrict: draw from the image ids only, not from all ids.
        compares: score one clip a call with the policy too.
    """

    def __init__(
        self,
        policy: WorldModel,
        folder: Path,
        settings: VllmConfig,
        *,
        temperature: float,
        num_frames: int,
        restrict: bool = True,
        compares: bool = True,
    ) -> None:
        super().__init__(policy, TokenRescorer(temperature, restrict), compares)
        self.temperature = temperature
        self.engine = start_engine(folder, settings, policy.sequence.length(num_frames), restrict)
        self._update_engine(0)

    def _update_engine(self, version: int) -> None:
        """Transfer the policy's weights to the engine and reset its prefix cache.

        `load_weights` verifies the checksum on the policy, because the engine stores weights in another layout.
        """
        self.engine.collective_rpc("start_weight_update")
        update = {"weights": merged_weights(self.policy.llama)}
        self.engine.collective_rpc("update_weights", kwargs={"update_info": update})
        self.engine.collective_rpc("finish_weight_update")
        self.engine.set_weight_version(str(version))
        self._reset_cache()

    def _reset_cache(self) -> None:
        if not self.engine.reset_prefix_cache():
            raise RuntimeError("vLLM must forget its prefix cache between calls, got requests that still hold it")

    def sample(
        self, prompts: Sequence[Prompt], group_ids: Sequence[int], seeds: Sequence[int], group_size: int
    ) -> list[tuple[TrajectoryGroup, EncodedVideo]]:
        """Sample one group for each prompt.

        Args:
            prompts: all with the same C and F.
            group_ids, seeds: one for each prompt.
            group_size: G.
        """
        num_context, num_frames = check_call(prompts, group_ids, seeds, (self.policy.tokens_per_frame,))
        inputs = token_inputs(prompts, self.policy.sequence)
        later_actions = inputs.actions[:, num_context:].tolist()
        clips = [
            _Clip(f"{group_id}.{row}", prefix, commanded, [frame_seed(seed, row, n) for n in range(num_frames)])
            for group_id, prefix, commanded, seed in zip(
                group_ids, inputs.prefixes().tolist(), later_actions, seeds, strict=True
            )
            for row in range(group_size)
        ]
        # A cache from an earlier call would change which tokens are computed together, and with them the rounding.
        self._reset_cache()
        self._generate(clips)
        frames = torch.tensor([clip.frames for clip in clips])  # [P * G, F, N]
        logprobs = torch.tensor([clip.logprobs for clip in clips], dtype=torch.float32)  # [P * G, T]
        pairs = token_groups(prompts, group_ids, seeds, self.policy_version, inputs, frames, logprobs)
        self._compare(pairs[0][0])
        return pairs

    def _generate(self, clips: list[_Clip]) -> None:
        """Generate all frames of the clips; each engine step adds a token to every clip in flight, so the loop ends."""
        in_flight: dict[str, _Clip] = {}
        try:
            for clip in clips:
                in_flight[self._request(clip)] = clip
            while in_flight:
                for answer in self.engine.step():
                    clip = in_flight.pop(answer.request_id)
                    self._append_frame(clip, answer.outputs[0])
                    if len(clip.frames) < len(clip.seeds):
                        in_flight[self._request(clip)] = clip
        except BaseException:
            # The next call must start with an engine without requests.
            self.engine.abort_request(list(in_flight))
            raise

    def _request(self, clip: _Clip) -> str:
        """Request the next frame of a clip; return the request's name."""
        frame = len(clip.frames)
        parameters = SamplingParams(
            temperature=self.temperature,
            seed=clip.seeds[frame],
            max_tokens=self.policy.tokens_per_frame,
            ignore_eos=True,
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        name = f"{clip.name}.{frame}"
        self.engine.add_request(name, tokens_input(clip.tokens), parameters)
        return name

    def _append_frame(self, clip: _Clip, found: CompletionOutput) -> None:
        """Append a drawn frame to its clip, and the action that leads into the next frame."""
        drawn = list(found.token_ids)
        if len(drawn) != self.policy.tokens_per_frame:
            raise RuntimeError(
                f"a frame must have {self.policy.tokens_per_frame} tokens, got {len(drawn)} ({found.finish_reason}); "
                "raise vllm.kv_cache_bytes or vllm.gpu_memory_utilization"
            )
        clip.frames.append(drawn)
        clip.logprobs += found.logprobs.logprobs
        # A new list, because the engine may still hold the old one.
        following = clip.actions[len(clip.frames) - 1] if len(clip.frames) < len(clip.seeds) else []
        clip.tokens = [*clip.tokens, *drawn, *following]
