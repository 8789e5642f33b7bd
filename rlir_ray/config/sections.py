"""The configuration: one tree of frozen dataclasses, each with a line for every field.

Defaults run the embedded Doom world on two CPU cores. Every part checks itself when it is built.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlir_ray.registry import check_name
from rlir_ray.spaces.actions import GROUPS

# How agreement is counted, and how camera bins are compared: see `rlir_ray.rewards.agreement`.
RULES = ("groups", "joint", "fields")
CAMERA_MATCHES = ("exact", "within", "cell", "ignore")
# Ray counts resources in ten-thousandths.
LEAST_RESOURCE = 1e-4
MAX_ACTION_SHIFT = 8


def require(rule: bool, key: str, text: str, value: object, remedy: str) -> None:
    if not rule:
        raise ValueError(f"{key} {text}, got {value!r}; {remedy}")


# How often a group is sampled or scored in vain, for the end of its actor, before it fails.
MAX_ATTEMPTS = 4


def _at_least(least: float, **values: float) -> None:
    for key, value in values.items():
        name = key.replace("__", ".")
        require(value >= least, name, f"must be >= {least}", value, f"set {name}={least} or more")


def _one_of(choices: tuple[str, ...], **values: str) -> None:
    for key, value in values.items():
        name = key.replace("__", ".")
        require(value in choices, name, f"must be one of {', '.join(choices)}", value, f"try {name}={choices[0]}")


def _check_name(key: str, name: str) -> None:
    """A run's folder lies in `run.dir` and nowhere else."""
    is_one_folder = name not in (".", "..") and "/" not in name and name.isprintable()
    require(
        is_one_folder, key, "must be the name of one folder, without slashes", name, f"use letters and digits: {key}=a1"
    )


def _check_resources(key: str, resources: dict[str, float]) -> None:
    """Custom resources of a pool; CPUs and GPUs have keys of their own."""
    for name, amount in resources.items():
        own = name.lower() in ("cpu", "gpu", "memory", "object_store_memory")
        require(
            bool(name) and not own, key, "must name custom resources of nodes", name,
            "use num_cpus and num_gpus (learner.use_gpu) for CPUs and GPUs",
        )  # fmt: skip
        require(
            amount == 0 or amount >= LEAST_RESOURCE, f"{key}.{name}", f"must be 0 or >= {LEAST_RESOURCE}", amount,
            f"set {key}.{name}=0.01, which leaves room for 100 actors on a node that has 1",
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    name: str = ""
    """Folder of the run below `run.dir`; empty: recipe and time."""
    dir: str = "runs"
    """Where runs are kept, on the driver's node; a relative one of a submitted job is below ~/rlir_ray there."""
    wait_for_nodes_s: float = 0.0
    """On a cluster that grows: seconds to wait for nodes that the pools lack, before the run is refused."""

    def __post_init__(self) -> None:
        _check_name("run.name", self.name)
        _at_least(0, run__wait_for_nodes_s=self.wait_for_nodes_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldConfig:
    """What the checkpoints, the prompts and the judge must agree on."""

    height: int = 48
    """Pixels."""
    width: int = 64
    """Pixels."""
    num_context: int = 1
    """Frames that are given."""
    num_frames: int = 8
    """Frames that are generated."""
    groups: tuple[str, ...] = ("forward_back", "use_attack", "jump", "yaw")
    """Exclusive action groups in use: those that rewards and metrics compare."""

    def __post_init__(self) -> None:
        _at_least(1, world__height=self.height, world__width=self.width)
        _at_least(1, world__num_context=self.num_context, world__num_frames=self.num_frames)
        for name in self.groups:
            _one_of(tuple(GROUPS), world__groups=name)
        require(
            len(self.groups) > 0, "world.groups", "must name a group", self.groups, f"choose from {', '.join(GROUPS)}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelsConfig:
    """Checkpoint folders; `asset:NAME` is a folder shipped with the package."""

    policy: str = "asset:doom/world_model"
    """The base world model: a `transformers` LlamaForCausalLM folder, or a `diffusers` FlowWorldModel one."""
    adapter: str = ""
    """LoRA adapter on it, as a run with lora.rank > 0 saves it, which is trained on; empty: none, or a fresh one."""
    tokenizer: str = "asset:doom/tokenizer"
    """Frame tokenizer: a `diffusers` VQModel folder; with policy.family=flow an AutoencoderKL one."""
    reward_idm: str = "asset:doom/reward_idm"
    """The inverse dynamics model that rewards; not read with a reward of your own."""
    judge_idm: str = "asset:doom/judge_idm"
    """The inverse dynamics model that evaluates, best another one than reward_idm; empty: picture quality alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyConfig:
    """What kind of world model the policy is."""

    family: str = "autoregressive"
    """`autoregressive`: tokens; `flow`: flow matching (diffusion); an installed package's; or package.module:Name."""

    def __post_init__(self) -> None:
        check_name("families", self.family)


@dataclass(frozen=True, kw_only=True, slots=True)
class ArchitectureConfig:
    """The size of the policy, for a check of its checkpoint and for fresh weights; 0: whatever the checkpoint has."""

    num_codes: int = 0
    """Image ids, which are the tokenizer's codes."""
    tokens_per_frame: int = 0
    """Of the tokenizer."""
    hidden_size: int = 0
    """Width."""
    intermediate_size: int = 0
    """Width of the MLP."""
    num_layers: int = 0
    """Decoder layers."""
    num_heads: int = 0
    """Query heads."""
    num_key_value_heads: int = 0
    """Key-value heads."""
    max_positions: int = 0
    """Tokens of the longest sequence."""
    latent_channels: int = 0
    """Of the autoencoder (flow models)."""
    patch_size: int = 0
    """A token stands for so many latents squared (flow models)."""

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            _at_least(0, **{f"architecture__{entry.name}": getattr(self, entry.name)})


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptsConfig:
    source: str = "doom"
    """`doom`: recorded from the game at the start; `recordings`: VPT pairs of your own; or package.module:Class."""
    args: dict[str, Any] = field(default_factory=dict)
    """Arguments of a source of your own, beside the configuration: {NAME: VALUE}."""
    path: str = ""
    """Recordings for training prompts, with source=recordings: a folder, or a published index (JSON)."""
    heldout_path: str = ""
    """The same for evaluation prompts."""
    actions: str = "recorded"
    """Commanded actions: `recorded` ones, or `sampled`: the scripted player's, with recordings another clip's."""
    num_train: int = 1024
    """Training prompts; they are used again, in another order, when they run out."""
    num_heldout: int = 128
    """Evaluation prompts, from recordings that training never shows."""
    min_wall_distance: float = 96.0
    """Leave out clips whose first frame faces a wall nearer than this (map units): they carry no cue of motion."""

    def __post_init__(self) -> None:
        check_name("sources", self.source)
        _one_of(("recorded", "sampled"), prompts__actions=self.actions)
        _at_least(1, prompts__num_train=self.num_train, prompts__num_heldout=self.num_heldout)
        if self.source == "recordings":
            require(
                bool(self.path),
                "prompts.path",
                "must name a folder of recordings or an index",
                self.path,
                "set prompts.path=PATH",
            )
            require(
                self.heldout_path not in ("", self.path), "prompts.heldout_path",
                "must name another folder than prompts.path", self.heldout_path, "set prompts.heldout_path=DIR",
            )  # fmt: skip
        elif self.source == "doom":
            for key in ("path", "heldout_path"):
                require(
                    not getattr(self, key), f"prompts.{key}", f"must be empty with prompts.source={self.source}",
                    getattr(self, key), f"set prompts.source=recordings, or prompts.{key}= for the embedded world",
                )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """How recordings are read."""

    strict: bool = False
    """A broken recording is an error; otherwise it is left out, counted and named."""
    resize: str = "area"
    """To the world's size: `area`: the average; `bilinear`: without antialiasing, as MineWorld's and VPT's loaders."""
    action_shift: int = 0
    """Event k + action_shift leads INTO frame k; -1: the order of a Gymnasium loop (observation, then its action)."""

    def __post_init__(self) -> None:
        _one_of(("area", "bilinear"), data__resize=self.resize)
        require(
            abs(self.action_shift) <= MAX_ACTION_SHIFT, "data.action_shift",
            f"must be -{MAX_ACTION_SHIFT}..{MAX_ACTION_SHIFT}", self.action_shift,
            "use -1 for the order of a Gymnasium loop, 0 for VPT's",
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutConfig:
    engine: str = "torch"
    """What samples tokens, with policy.family=autoregressive: `torch`: our sampler, batched; `vllm`: vLLM's."""
    num_actors: int = 1
    """Rollout actors."""
    num_cpus: float = 0.5
    """Logical CPUs that Ray sets aside for an actor."""
    num_gpus: float = 0.0
    """GPUs for an actor."""
    resources: dict[str, float] = field(default_factory=dict)
    """Custom resources that an actor takes of its node, which say where it runs: {rollout_node: 0.01}."""
    num_threads: int = 1
    """Torch threads of an actor."""
    prompts_per_call: int = 8
    """Groups sampled together; always the same ones together, whatever the number of actors."""
    temperature: float = 1.0
    """Of sampling tokens, and of rescoring them; 1 with policy.family=flow."""
    timeout_s: float = 0.0
    """A call that takes longer ends its actor; another one repeats it. 0: train.wait_timeout_s / 5."""
    max_logprob_difference: float = 0.05
    """A step whose mean |engine - learner's model| log-probability is larger ends the run; 0: it is not compared."""

    def __post_init__(self) -> None:
        if self.engine == "flow":
            raise ValueError("rollout.engine=flow is policy.family=flow now; set that and leave rollout.engine out")
        _one_of(("torch", "vllm"), rollout__engine=self.engine)
        _at_least(1, rollout__num_actors=self.num_actors, rollout__num_threads=self.num_threads)
        _at_least(1, rollout__prompts_per_call=self.prompts_per_call)
        _at_least(0, rollout__num_cpus=self.num_cpus, rollout__num_gpus=self.num_gpus)
        _at_least(0, rollout__timeout_s=self.timeout_s, rollout__max_logprob_difference=self.max_logprob_difference)
        _check_resources("rollout.resources", self.resources)
        require(self.temperature > 0, "rollout.temperature", "must be > 0", self.temperature, "use 1.0")


@dataclass(frozen=True, kw_only=True, slots=True)
class VllmConfig:
    """How vLLM samples an autoregressive world model; read with rollout.engine=vllm."""

    dtype: str = "float32"
    """Of its weights and cache: `float32`, or `bfloat16`, whose log-probabilities are off the learner's by rounding."""
    max_num_seqs: int = 256
    """Clips that it decodes at a time; the rest wait for a place."""
    kv_cache_bytes: int = 1 << 30
    """Of its key-value cache on a CPU."""
    gpu_memory_utilization: float = 0.7
    """Share of a GPU's memory that it takes; the policy's weights in float32 are there besides."""
    enforce_eager: bool = False
    """On a GPU: decode without CUDA graphs; a CPU always does."""

    def __post_init__(self) -> None:
        _one_of(("float32", "bfloat16"), vllm__dtype=self.dtype)
        _at_least(1, vllm__max_num_seqs=self.max_num_seqs, vllm__kv_cache_bytes=self.kv_cache_bytes)
        require(
            0 < self.gpu_memory_utilization < 1, "vllm.gpu_memory_utilization", "must be in (0, 1)",
            self.gpu_memory_utilization, "use 0.7",
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowConfig:
    """How a flow world model is sampled and rescored; read with policy.family=flow."""

    num_steps: int = 10
    """Denoising steps of a frame."""
    shift: float = 1.0
    """Above 1 more of them are at high noise levels (Stable Diffusion 3)."""
    sde: str = "flow_grpo"
    """Form of the exploring steps: `flow_grpo`, `dance_grpo`, or `cps` (coefficients-preserving)."""
    noise_level: float = 0.7
    """Strength of their noise: Flow-GRPO's a, DanceGRPO's eta (0.3), or CPS's share of a right angle."""
    window: int = 3
    """Steps of each frame that explore and train (MixGRPO); the others follow the ODE."""
    window_moves: str = "random"
    """`random`: drawn for each group; `sliding`: from noisy to clean with the policy's version; `first`: never."""
    window_interval: int = 5
    """Versions between two moves of a sliding window."""
    skip_last: bool = True
    """The last step, whose noise stays in the picture, never explores."""
    shared_noise: bool = True
    """The clips of a group start from the same noise (DanceGRPO), and their history gets the same."""
    history_noise: float = 0.05
    """Noise level of finished frames as later ones see them, against drift."""

    def __post_init__(self) -> None:
        _one_of(("flow_grpo", "dance_grpo", "cps"), flow__sde=self.sde)
        _one_of(("random", "sliding", "first"), flow__window_moves=self.window_moves)
        _at_least(2, flow__num_steps=self.num_steps)
        _at_least(1, flow__window=self.window, flow__window_interval=self.window_interval)
        require(self.shift > 0, "flow.shift", "must be > 0", self.shift, "use 1.0")
        require(
            self.noise_level > 0, "flow.noise_level", "must be > 0, or no clip differs from the others",
            self.noise_level, "use 0.7, or train.objective=nft, which does not explore by steps",
        )  # fmt: skip
        if self.sde == "cps":
            require(
                self.noise_level < 1, "flow.noise_level", "must be < 1 with flow.sde=cps", self.noise_level, "use 0.7"
            )
        require(
            self.window <= self.num_sde_steps, "flow.window",
            f"must be at most the {self.num_sde_steps} steps that may explore", self.window,
            f"set flow.window={self.num_sde_steps}, raise flow.num_steps or set flow.skip_last=false",
        )  # fmt: skip
        require(0 <= self.history_noise < 1, "flow.history_noise", "must be in [0, 1)", self.history_noise, "use 0.05")

    @property
    def num_sde_steps(self) -> int:
        """Steps that may explore."""
        return self.num_steps - self.skip_last


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig:
    """Low-rank adapters (https://arxiv.org/abs/2106.09685): only they are trained, published and saved."""

    rank: int = 0
    """Of a fresh adapter; 0: the whole policy is trained. models.adapter keeps its own rank, alpha and targets."""
    alpha: float = 0.0
    """Their outputs are multiplied by alpha / rank; 0: alpha is the rank."""
    targets: tuple[str, ...] = ()
    """Names of the linear layers that get one; empty: those of attention and MLP."""

    def __post_init__(self) -> None:
        _at_least(0, lora__rank=self.rank, lora__alpha=self.alpha)


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardConfig:
    name: str = "inverse"
    """`inverse`: agreement with what an inverse dynamics model reads; or package.module:Class, your own."""
    args: dict[str, Any] = field(default_factory=dict)
    """Arguments of a reward of your own: {NAME: VALUE}."""
    address: str = ""
    """`serve://NAME`: a reward service of the cluster, which other runs use too; empty: a pool of the run's own."""
    num_replicas: int = 1
    """Replicas at the start."""
    min_replicas: int = 0
    """Fewest that the pool shrinks to by itself; 0: num_replicas."""
    max_replicas: int = 0
    """Most that the pool grows to by itself; 0: num_replicas. As many as min_replicas: the number is fixed."""
    target_queue: float = 8.0
    """Groups a replica, in work and waiting, towards which the pool scales by itself."""
    num_cpus: float = 0.25
    """Logical CPUs that Ray sets aside for a replica."""
    num_gpus: float = 0.0
    """GPUs for a replica."""
    resources: dict[str, float] = field(default_factory=dict)
    """Custom resources that a replica takes of its node, which say where it runs: {reward_node: 0.01}."""
    num_threads: int = 1
    """Torch threads of a replica."""
    rule: str = "groups"
    """What agrees: `groups`: mean over exclusive groups; `joint`: all at once; `fields`: mean over buttons and axes."""
    camera: str = "exact"
    """Camera bins: `exact`, `within` camera_tolerance, in the commanded quantiser's `cell`, or `ignore` them."""
    camera_tolerance: int = 1
    """Bins, for camera=within."""
    match: str = "soft"
    """`exact`: recovered class equals the commanded one; `soft`: the IDM's probability of the commanded class."""
    balance: str = "none"
    """`class`: weigh a frame's group by the inverse frequency of the commanded class; `none`."""
    credit: str = "frame"
    """`clip`: all of a clip's decisions get its mean reward; `frame`: a frame's get the rewards from it on."""
    discount: float = 0.5
    """Of later frames' rewards, for credit=frame."""
    max_frames: int = 576
    """Frames decoded and read at once by a replica, which gathers as many of the groups that wait."""
    timeout_s: float = 0.0
    """Groups that take longer to read (of a shared service: to answer) are read again alone. 0: wait_timeout_s / 5."""

    def __post_init__(self) -> None:
        check_name("rewards", self.name)
        _one_of(RULES, reward__rule=self.rule)
        _one_of(CAMERA_MATCHES, reward__camera=self.camera)
        _one_of(("exact", "soft"), reward__match=self.match)
        _one_of(("none", "class"), reward__balance=self.balance)
        _one_of(("clip", "frame"), reward__credit=self.credit)
        _at_least(1, reward__num_replicas=self.num_replicas, reward__num_threads=self.num_threads)
        _at_least(1, reward__max_frames=self.max_frames)
        _at_least(0, reward__num_cpus=self.num_cpus, reward__num_gpus=self.num_gpus)
        _at_least(0, reward__timeout_s=self.timeout_s)
        _check_resources("reward.resources", self.resources)
        _at_least(0, reward__camera_tolerance=self.camera_tolerance)
        require(0 <= self.discount <= 1, "reward.discount", "must be in [0, 1]", self.discount, "use 0.5")
        self._check_scaling()

    @property
    def bounds(self) -> tuple[int, int]:
        """Fewest and most replicas; the same number where the pool does not scale by itself."""
        return self.min_replicas or self.num_replicas, self.max_replicas or self.num_replicas

    def _check_scaling(self) -> None:
        _at_least(0, reward__min_replicas=self.min_replicas, reward__max_replicas=self.max_replicas)
        require(self.target_queue > 0, "reward.target_queue", "must be > 0", self.target_queue, "use 8")
        fewest, most = self.bounds
        require(
            fewest <= self.num_replicas <= most, "reward.num_replicas",
            f"must lie between reward.min_replicas={fewest} and reward.max_replicas={most}", self.num_replicas,
            f"set reward.num_replicas={max(self.min_replicas, min(self.num_replicas, most))} or move the bounds",
        )  # fmt: skip
        if self.address:
            require(
                self.address.startswith("serve://") and len(self.address) > 8, "reward.address",
                "must be serve://NAME, the name of a Serve application", self.address, "use serve://rlir_reward",
            )  # fmt: skip
            require(
                self.balance == "none", "reward.balance", "must be none with reward.address, which serves many runs",
                self.balance, "set reward.balance=none or leave out reward.address",
            )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnerConfig:
    engine: str = "deepspeed"
    """`deepspeed`: ZeRO in a Ray Train worker group; `torch`: plain AdamW in the same group (one worker)."""
    num_workers: int = 1
    """Ranks."""
    num_cpus: float = 0.5
    """Logical CPUs that Ray sets aside for a rank."""
    use_gpu: bool = False
    """One GPU a rank, NCCL; otherwise gloo."""
    resources: dict[str, float] = field(default_factory=dict)
    """Custom resources that a rank takes of its node, which say where it runs: {learner_node: 0.01}."""
    num_threads: int = 1
    """Torch threads of a rank."""
    zero_stage: int = 1
    """DeepSpeed ZeRO stage."""
    offload_optimizer: bool = False
    """Keep optimiser states in host memory (GPU learners)."""
    precision: str = "fp32"
    """`fp32` or `bf16`; with bf16 the ratio is 1 only within rounding."""
    decision_budget: int = 12288
    """Decisions in one forward and backward pass; the rest of a step is accumulated."""
    gradient_checkpointing: bool = False
    """Keep no activations inside a layer and compute them again in the backward pass: less memory, a third slower."""
    max_restarts: int = 3
    """Times that ranks which were lost are started anew from the latest checkpoint."""

    def __post_init__(self) -> None:
        _one_of(("deepspeed", "torch"), learner__engine=self.engine)
        _one_of(("fp32", "bf16"), learner__precision=self.precision)
        require(self.zero_stage in (0, 1, 2, 3), "learner.zero_stage", "must be 0..3", self.zero_stage, "use 1")
        _at_least(1, learner__num_workers=self.num_workers, learner__num_threads=self.num_threads)
        _at_least(1, learner__decision_budget=self.decision_budget)
        _at_least(0, learner__max_restarts=self.max_restarts)
        _at_least(0, learner__num_cpus=self.num_cpus)
        _check_resources("learner.resources", self.resources)
        require(
            self.zero_stage > 0 or self.precision == "fp32" or self.engine == "torch", "learner.zero_stage",
            "must be 1..3 with learner.precision=bf16: without ZeRO DeepSpeed adds up gradients in bfloat16",
            self.zero_stage, "use 1",
        )  # fmt: skip
        if self.engine == "torch":
            require(
                self.num_workers == 1, "learner.num_workers", "must be 1 with learner.engine=torch", self.num_workers,
                "use learner.engine=deepspeed",
            )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightsConfig:
    """How published weights reach the rollout pool."""

    transfer: str = "auto"
    """`store`: Ray's object store; `broadcast`: NCCL or gloo, else the store; `auto`: NCCL where both have GPUs."""
    bucket_bytes: int = 256 << 20
    """Broadcast at a time; sender and receivers each hold such a buffer."""

    def __post_init__(self) -> None:
        _one_of(("auto", "broadcast", "store"), weights__transfer=self.transfer)
        _at_least(1, weights__bucket_bytes=self.bucket_bytes)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    num_steps: int = 40
    """Optimiser steps."""
    max_minutes: float = 0.0
    """Stop after the step that passes this many minutes; 0: no limit."""
    group_size: int = 8
    """G, trajectories of a prompt."""
    prompts_per_step: int = 8
    """Groups of one optimiser step."""
    max_staleness: int = 1
    """Versions that a group may lag behind the learner when it is consumed; 0: synchronous."""
    stale_policy: str = "wait"
    """`wait`: groups train in the order of admission, none grows too old; `drop`: as they come, too old ones go."""
    learning_rate: float = 1e-4
    """AdamW."""
    warmup_steps: int = 3
    """Steps over which the learning rate rises from 0."""
    weight_decay: float = 0.0
    """AdamW."""
    max_grad_norm: float = 1.0
    """Gradient clipping."""
    objective: str = "grpo"
    """`grpo`: the clipped surrogate; `nft`: DiffusionNFT, for flow policies; or package.module:Class, your own."""
    objective_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of an objective of your own, beside what every objective gets: {NAME: VALUE}."""
    ratio: str = "plain"
    """`plain`: policy over behavior; `guard`: GRPO-Guard's normalised one, for SDE steps."""
    importance: str = "auto"
    """Weights of stale groups: `none`: the clip acts instead; by `token` or `sequence`; `auto`: token for tokens."""
    max_importance: float = 2.0
    """Importance weights are truncated here."""
    min_ratio: float = 0.125
    """With importance weights: decisions (or clips) whose ratio to the behavior policy is lower do not train ..."""
    max_ratio: float = 8.0
    """... nor those whose ratio is higher."""
    clip_low: float = 0.2
    """Stale groups without importance weights: the ratio is clipped at 1 - clip_low ..."""
    clip_high: float = 0.28
    """... and 1 + clip_high (DAPO's separate upper clip)."""
    kl_coefficient: float = 0.0
    """Of KL(policy || reference): k3 for tokens, of means for SDE steps, of velocities for `nft`; 0: no reference."""
    advantage: str = "grpo"
    """Minus the group's mean; `grpo`: over its deviation; `batch_std`: the step's (Flow-GRPO); `dr_grpo`: no more."""
    max_advantage: float = 0.0
    """Advantages are clamped to ± this; 0: they are not. `nft` needs it."""
    best_and_worst: int = 0
    """Train only this many best and as many worst clips of each group (DanceGRPO); 0: all."""
    nft_beta: float = 1.0
    """How far DiffusionNFT's implicit policies lie from the sampling one."""
    nft_levels: int = 2
    """Noise levels at which DiffusionNFT compares each frame in a step."""
    nft_decay: float = 0.5
    """Highest decay of the sampling policy, a moving average of the trained one; it rises by 0.001 a step to it."""
    max_failed_fraction: float = 0.1
    """More failed groups than this share of any hundred end the run; fewer are counted and replaced."""
    max_skipped_updates: int = 3
    """So many updates in a row that are skipped, because a loss or a gradient is not finite, end the run."""
    min_reward_std: float = 1e-6
    """A group whose rewards vary less carries no signal: it is dropped and replaced."""
    wait_timeout_s: float = 600.0
    """Bound of every wait for a pool."""

    @property
    def importance_level(self) -> str:
        """`none`, `token` or `sequence`: what `auto` means here."""
        if self.importance != "auto":
            return self.importance
        return "token" if self.max_staleness and self.objective == "grpo" and self.ratio == "plain" else "none"

    def __post_init__(self) -> None:
        _at_least(1, train__num_steps=self.num_steps, train__prompts_per_step=self.prompts_per_step)
        require(
            self.group_size >= 2, "train.group_size", "must be >= 2 for group-relative advantages", self.group_size,
            "set train.group_size=2 or more",
        )  # fmt: skip
        _at_least(1, train__max_skipped_updates=self.max_skipped_updates)
        _at_least(0, train__max_staleness=self.max_staleness, train__warmup_steps=self.warmup_steps)
        _at_least(0, train__max_minutes=self.max_minutes, train__kl_coefficient=self.kl_coefficient)
        _at_least(0, train__weight_decay=self.weight_decay, train__min_reward_std=self.min_reward_std)
        _one_of(("grpo", "batch_std", "dr_grpo"), train__advantage=self.advantage)
        check_name("objectives", self.objective)
        _one_of(("wait", "drop"), train__stale_policy=self.stale_policy)
        self._check_importance()
        _one_of(("plain", "guard"), train__ratio=self.ratio)
        _at_least(0, train__max_advantage=self.max_advantage, train__best_and_worst=self.best_and_worst)
        require(
            2 * self.best_and_worst <= self.group_size, "train.best_and_worst",
            f"must be at most half of train.group_size={self.group_size}", self.best_and_worst,
            f"set train.best_and_worst={self.group_size // 2}",
        )  # fmt: skip
        _at_least(1, train__nft_levels=self.nft_levels)
        require(self.nft_beta > 0, "train.nft_beta", "must be > 0", self.nft_beta, "use 1.0")
        require(0 <= self.nft_decay < 1, "train.nft_decay", "must be in [0, 1)", self.nft_decay, "use 0.5")
        require(
            0 <= self.max_failed_fraction < 1, "train.max_failed_fraction", "must be in [0, 1)",
            self.max_failed_fraction, "use 0.1",
        )  # fmt: skip
        if self.objective == "nft":
            require(
                self.max_advantage > 0, "train.max_advantage",
                "must be > 0 with train.objective=nft, whose weights are shares of it", self.max_advantage, "use 5.0",
            )  # fmt: skip
        for key in ("learning_rate", "max_grad_norm", "clip_low", "clip_high", "wait_timeout_s"):
            require(getattr(self, key) > 0, f"train.{key}", "must be > 0", getattr(self, key), "see the recipe's value")
        require(self.clip_low < 1, "train.clip_low", "must be < 1", self.clip_low, "use 0.2")

    def _check_importance(self) -> None:
        _one_of(("auto", "none", "token", "sequence"), train__importance=self.importance)
        if self.importance in ("token", "sequence"):
            for key, usual in (("objective", "grpo"), ("ratio", "plain")):
                require(
                    getattr(self, key) == usual, f"train.{key}",
                    f"must be {usual} with train.importance, which weighs ratios of log-probabilities",
                    getattr(self, key), f"set train.{key}={usual} or leave importance out",
                )  # fmt: skip
        require(self.max_importance >= 1, "train.max_importance", "must be >= 1", self.max_importance, "use 2.0")
        require(0 <= self.min_ratio < 1, "train.min_ratio", "must be in [0, 1)", self.min_ratio, "use 0.125")
        require(self.max_ratio > 1, "train.max_ratio", "must be > 1", self.max_ratio, "use 8.0")


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    every: int = 10
    """Steps between two checkpoints; 0: only at the end of the run, or when it is stopped."""
    keep: int = 2
    """Checkpoints that stay; each holds the trained weights in float32 three times, four for train.objective=nft."""

    def __post_init__(self) -> None:
        _at_least(0, checkpoint__every=self.every)
        _at_least(1, checkpoint__keep=self.keep)


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    temperatures: tuple[float, ...] = (1.0,)
    """Both models are sampled at each of these, the first is the headline; it scales a flow model's first noise."""
    top_p: float = 1.0
    """Sample from the likeliest tokens that hold this share of the probability; MineWorld reports 0.8."""
    judge_context: bool = True
    """The inverse dynamics models see the context frames too; false: generated ones alone, as MineWorld's evaluator."""
    every: int = 0
    """Judge the policy on the held-out prompts every so many steps; 0: before and after only."""
    num_videos: int = 6
    """Side-by-side videos in the report."""
    num_gpus: float = 0.0
    """GPUs for the evaluation, which holds the policy, the tokenizer and both inverse dynamics models."""

    def __post_init__(self) -> None:
        require(len(self.temperatures) > 0, "evaluation.temperatures", "must name one", self.temperatures, "use [1.0]")
        for value in self.temperatures:
            require(value > 0, "evaluation.temperatures", "must be > 0", value, "use 1.0")
        require(0 < self.top_p <= 1, "evaluation.top_p", "must be in (0, 1]", self.top_p, "use 1.0")
        _at_least(0, evaluation__every=self.every, evaluation__num_videos=self.num_videos)
        _at_least(0, evaluation__num_gpus=self.num_gpus)


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    recipe: str = ""
    """Name of the recipe it came from."""
    seed: int = 0
    """Of everything random; a group's seed comes from it and the group's number, never from a worker."""
    object_store_budget_bytes: int = 0
    """Bytes of groups in flight, above which sampling waits; 0: as many as the object store has free."""
    run: RunConfig = field(default_factory=RunConfig)
    world: WorldConfig = field(default_factory=WorldConfig)
    models: ModelsConfig = field(default_factory=ModelsConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    architecture: ArchitectureConfig = field(default_factory=ArchitectureConfig)
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    data: DataConfig = field(default_factory=DataConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    vllm: VllmConfig = field(default_factory=VllmConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        # A run without a name is called after it.
        _check_name("recipe", self.recipe)
        _at_least(0, object_store_budget_bytes=self.object_store_budget_bytes)
        _at_least(0, seed=self.seed)
        self._check_timeouts()
        self._check_adapter()
        self._check_reward()
        if self.policy.family != "autoregressive":
            require(
                self.rollout.engine == "torch", "rollout.engine",
                f"must be torch with policy.family={self.policy.family}", self.rollout.engine,
                "leave it out, or set policy.family=autoregressive",
            )  # fmt: skip
        if self.policy.family == "flow":
            self._check_flow()
        elif self.policy.family == "autoregressive":
            rule = "without policy.family=flow"
            require(
                self.train.objective != "nft", "train.objective", f"must be grpo {rule}", "nft",
                "set train.objective=grpo",
            )  # fmt: skip
            require(
                self.train.ratio == "plain", "train.ratio", f"must be plain {rule}", self.train.ratio,
                "set train.ratio=plain",
            )  # fmt: skip

    @property
    def importance_level(self) -> str:
        """`none`, `token` or `sequence`: how stale groups are weighed."""
        return "none" if self.policy.family == "flow" else self.train.importance_level

    @property
    def has_clip(self) -> bool:
        """Whether ratios can leave 1: there is one update for each set of groups, and weights take the ratio out."""
        return self.train.objective == "grpo" and self.train.max_staleness > 0 and self.importance_level == "none"

    @property
    def uses_nccl(self) -> bool:
        """Whether weights can go from GPU to GPU; NCCL takes no GPU that two actors share."""
        return self.learner.use_gpu and self.rollout.num_gpus >= 1

    @property
    def broadcasts_weights(self) -> bool:
        return self.weights.transfer == "broadcast" or (self.weights.transfer == "auto" and self.uses_nccl)

    @property
    def rollout_timeout_s(self) -> float:
        """Of a sampling call. All attempts together end before the wait for them does."""
        return self.rollout.timeout_s or self.train.wait_timeout_s / (MAX_ATTEMPTS + 1)

    @property
    def reward_timeout_s(self) -> float:
        """Of groups that are read together; as `rollout_timeout_s`."""
        return self.reward.timeout_s or self.train.wait_timeout_s / (MAX_ATTEMPTS + 1)

    def _check_timeouts(self) -> None:
        longest = max(self.rollout_timeout_s, self.reward_timeout_s)
        require(
            MAX_ATTEMPTS * longest < self.train.wait_timeout_s, "train.wait_timeout_s",
            f"must be above {MAX_ATTEMPTS} attempts of rollout.timeout_s and of reward.timeout_s",
            self.train.wait_timeout_s, f"set train.wait_timeout_s={(MAX_ATTEMPTS + 1) * longest:g} or lower those",
        )  # fmt: skip

    def _check_adapter(self) -> None:
        if self.lora.rank and self.train.kl_coefficient and not self.models.adapter:
            # The reference is the policy without its adapter, which no rank holds whole at stage 3.
            require(
                self.learner.zero_stage < 3, "learner.zero_stage", "must be < 3 with lora.rank and a KL penalty",
                self.learner.zero_stage, "set learner.zero_stage=2",
            )  # fmt: skip

    def _check_reward(self) -> None:
        if self.reward.name != "inverse":
            require(
                not self.reward.address, "reward.address", f"must be empty with reward.name={self.reward.name}",
                self.reward.address, "leave it out: a service shares the inverse reward",
            )  # fmt: skip
            return
        require(
            bool(self.models.reward_idm), "models.reward_idm", "must name a folder with reward.name=inverse", "",
            "set models.reward_idm=PATH, or reward.name=package.module:Class for a reward of your own",
        )  # fmt: skip
        require(
            not self.reward.args, "reward.args", "must be empty with reward.name=inverse", self.reward.args,
            "use the other reward.* keys",
        )  # fmt: skip

    def _check_flow(self) -> None:
        train, flow = self.train, self.flow
        require(
            self.rollout.temperature == 1, "rollout.temperature", "must be 1 with policy.family=flow",
            self.rollout.temperature, "explore with flow.noise_level",
        )  # fmt: skip
        require(
            train.importance in ("auto", "none"), "train.importance",
            "must be none with policy.family=flow, whose log-probabilities are means over a latent's numbers",
            train.importance, "leave it out",
        )  # fmt: skip
        require(
            self.evaluation.top_p == 1, "evaluation.top_p", "must be 1 with policy.family=flow", self.evaluation.top_p,
            "vary evaluation.temperatures instead",
        )  # fmt: skip
        if train.objective == "nft":
            require(
                not flow.shared_noise, "flow.shared_noise",
                "must be false with train.objective=nft, or the clips of a group are one and the same",
                flow.shared_noise, "set flow.shared_noise=false",
            )  # fmt: skip
            require(
                train.ratio == "plain", "train.ratio", "must be plain with train.objective=nft, which has no ratio",
                train.ratio, "set train.ratio=plain",
            )  # fmt: skip
        elif flow.sde == "cps":
            # Its log-probabilities are no densities, and its last step has no noise to divide by.
            require(
                train.ratio == "plain", "train.ratio", "must be plain with flow.sde=cps", train.ratio,
                "set flow.sde=flow_grpo or train.ratio=plain",
            )  # fmt: skip
            require(
                flow.skip_last or not train.kl_coefficient, "flow.skip_last",
                "must be true with flow.sde=cps and a KL penalty", flow.skip_last, "set flow.skip_last=true",
            )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def asset_path(path: str) -> Path:
    """A checkpoint folder; `asset:NAME` resolves into the package.

    Raises:
        ValueError: the folder does not exist.
    """
    folder = (
        Path(str(importlib.resources.files("rlir_ray") / "assets" / path[6:])) if path[:6] == "asset:" else Path(path)
    )
    require(folder.is_dir(), "a checkpoint", "must be an existing folder", str(path), "check the models.* paths")
    return folder
