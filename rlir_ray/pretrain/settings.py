"""Settings of the trainings of base models. Imports no heavy library, so that --help is instant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlir_ray.pretrain.arguments import check_settings
from rlir_ray.registry import check_name

FLOW_FORMS = ("nfd", "oasis")
QUANTIZERS = (8, 10, 12, 14, 16)
"""Keys of `models.fsq.LEVELS`."""
SPLITS: tuple[Literal["train", "validation"], ...] = ("train", "validation")
"""Fields that the embedded world uses."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerTraining:
    """Settings of a tokenizer's training."""

    form: str = "vq"
    """`vq`: each frame alone; `compressive`: a keyframe in full and few tokens a frame (--form compressive --help)."""
    num_codes: int = 512
    """Size of the codebook, which is the world model's image vocabulary."""
    code_size: int = 16
    """Dimensions of a code."""
    pixel_unshuffle: int = 4
    """Pixels folded into channels before the first convolution."""
    block_channels: tuple[int, ...] = (48, 96)
    """Channels of each block; every block but the last halves the picture."""
    norm_groups: int = 4
    """Groups of each group norm; few groups are far faster on a CPU."""
    batch_pairs: int = 16
    """Pairs of neighbouring frames in one step."""
    num_steps: int = 4000
    """Optimizer steps; used if minutes is 0."""
    minutes: float = 0.0
    """Wall-clock length of the training; the schedule then follows the clock, not num_steps."""
    learning_rate: float = 2e-3
    """Highest learning rate; it rises for 2 % of the training and falls to zero along a cosine."""
    unquantized_share: float = 0.2
    """Share of the training, at its start, without a codebook: the tokenizer is a plain autoencoder."""
    restart_until: float = 0.8
    """Share of the training after which unused codes are not restarted."""
    codebook_decay: float = 0.98
    """Decay of the codebook's moving averages in one step."""
    commitment_weight: float = 0.25
    """Weight of the commitment loss, which pulls the encoder towards its codes."""
    squared_weight: float = 4.0
    """Weight of the squared error; the absolute error has weight 1."""
    gradient_weight: float = 0.25
    """Weight of the error of image gradients at two scales, which keeps edges and texture."""
    change_weight: float = 0.5
    """Weight of the error of the change between neighbouring frames, which shows the actions."""
    checkpoint_every: int = 200
    """Steps between two checkpoints."""
    seed: int = 0
    """Seed of the weights and of the order of the frames."""
    device: str = ""
    """Torch device; empty: a GPU if there is one, else the CPU."""

    def __post_init__(self) -> None:
        check_settings(self)
        if self.form != "vq":
            raise ValueError(f"--form must be vq or compressive, got {self.form!r}; choose one of them")


@dataclass(frozen=True, kw_only=True, slots=True)
class CompressiveTokenizerTraining:
    """Settings of a compressive tokenizer's training."""

    form: str = "compressive"
    """`compressive`: a keyframe in full, and few tokens for each frame; `vq`: each frame alone, with other options."""
    levels: int = 12
    """Quantizer of the frames, by the binary logarithm of its ids: 8, 10, 12, 14 or 16."""
    keyframe_levels: int = 12
    """Quantizer of the keyframes, as levels."""
    patch_height: int = 2
    """Rows of the keyframe's grid that are one token of a frame."""
    patch_width: int = 1
    """Columns of the keyframe's grid that are one token of a frame."""
    latent_channels: int = 16
    """Channels of the features that are quantized."""
    pixel_unshuffle: int = 4
    """Pixels folded into channels before the first convolution."""
    block_channels: tuple[int, ...] = (48, 96)
    """Channels of each block; every block but the last halves the picture."""
    norm_groups: int = 4
    """Groups of each group norm; few groups are far faster on a CPU."""
    clip_frames: int = 9
    """Most frames that share a keyframe; --tokens encodes clips of this length, so give the world model's."""
    batch_clips: int = 16
    """Keyframes in one step, each with two neighbouring frames."""
    num_steps: int = 4000
    """Optimizer steps; used if minutes is 0."""
    minutes: float = 0.0
    """Wall-clock length of the training; the schedule then follows the clock, not num_steps."""
    learning_rate: float = 2e-3
    """Highest learning rate; it rises for 2 % of the training and falls to zero along a cosine."""
    keyframe_weight: float = 0.5
    """Weight of the keyframe's error."""
    squared_weight: float = 4.0
    """Weight of the squared error; the absolute error has weight 1."""
    gradient_weight: float = 0.25
    """Weight of the error of image gradients at two scales, which keeps edges and texture."""
    change_weight: float = 0.5
    """Weight of the error of the change between neighbouring frames, which shows the actions."""
    checkpoint_every: int = 200
    """Steps between two checkpoints."""
    seed: int = 0
    """Seed of the weights and of the order of the clips."""
    device: str = ""
    """Torch device; empty: a GPU if there is one, else the CPU."""

    def __post_init__(self) -> None:
        check_settings(self)
        for option, levels in (("--levels", self.levels), ("--keyframe-levels", self.keyframe_levels)):
            if levels not in QUANTIZERS:
                raise ValueError(f"{option} must be one of {', '.join(map(str, QUANTIZERS))}, got {levels}; choose one")
        if self.clip_frames < 2:
            raise ValueError(f"--clip-frames must be at least 2, got {self.clip_frames}; give the world model's frames")


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderTraining:
    """Settings of an autoencoder's training."""

    latent_channels: int = 8
    """Channels of a latent."""
    pixel_unshuffle: int = 4
    """Pixels folded into channels before the first convolution."""
    block_channels: tuple[int, ...] = (48, 96)
    """Channels of each block; every block but the last halves the picture."""
    norm_groups: int = 4
    """Groups of each group norm; few groups are far faster on a CPU."""
    batch_pairs: int = 16
    """Pairs of neighbouring frames in one step."""
    minutes: float = 0.0
    """Wall-clock length of the training; the schedule then follows the clock, not num_steps."""
    num_steps: int = 4000
    """Optimizer steps; used if minutes is 0."""
    learning_rate: float = 2e-3
    """Highest learning rate; it rises for 2 % of the training and falls to a hundredth along a cosine."""
    kl_weight: float = 1e-4
    """Weight of the KL divergence from a normal distribution, which makes decoding robust to small latent errors."""
    squared_weight: float = 4.0
    """Weight of the squared error; the absolute error has weight 1."""
    gradient_weight: float = 0.25
    """Weight of the error of image gradients at two scales, which keeps edges and texture."""
    change_weight: float = 0.5
    """Weight of the error of the change between neighbouring frames, which shows the actions."""
    evaluate_every_s: float = 120.0
    """Seconds between two evaluations, each with a checkpoint."""
    seed: int = 0
    """Seed of the weights and of the order of the frames."""
    device: str = ""
    """Torch device; empty: a GPU if there is one, else the CPU."""

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class InverseDynamicsTraining:
    """Settings of an inverse dynamics model's training."""

    architecture: str = "vpt"
    """`vpt`: VPT's published form, for the reward; `correlation`: another design, for the evaluation; or
    package.module:Class of your own design."""
    groups: tuple[str, ...] = ()
    """Fields of the recordings' action space that the world uses; none: all that the model can read."""
    init: str = ""
    """Checkpoint folder to start from; the checkpoint sets architecture and sizes."""
    hidden_size: int = 256
    """Size of a frame's features."""
    num_layers: int = 2
    """`vpt`: transformer blocks; `correlation`: convolutions over time."""
    num_heads: int = 4
    """Attention heads; `vpt` only."""
    convolution_width: int = 1
    """Channels of the convolutions, in multiples of the small model's."""
    seed: int = 1
    """Seed of weights, windows and augmentation."""
    minutes: float = 15.0
    """Training time, the time before a resume included; used if num_steps is 0."""
    num_steps: int = 0
    """Optimizer steps; 0: train for `minutes`."""
    clips_per_step: int = 20
    """Windows in one optimizer step."""
    window_frames: tuple[int, ...] = (9, 9, 16)
    """Window lengths; each step draws one of them."""
    learning_rate: float = 1.5e-3
    """Highest learning rate, after the warm-up; it falls to 0 along a cosine."""
    weight_decay: float = 0.02
    """Weight decay of AdamW."""
    warmup: float = 0.03
    """Share of the training in which the learning rate rises."""
    max_grad_norm: float = 1.0
    """Clip the gradients to this norm."""
    idle_heads_weight: float = 0.05
    """Loss weight of the heads outside `groups`."""
    augmentation: float = 1.0
    """Strength of random brightness, blur and noise; 0: none."""
    reconstructed_share: float = 0.5
    """Share of the windows that are encoded and decoded with the tokenizer, if one is given."""
    evaluate_every_s: float = 60.0
    """Seconds between two evaluations."""
    checkpoint_every_s: float = 60.0
    """Seconds between two checkpoints."""
    threads: int = 1
    """Torch threads."""
    device: str = ""
    """Torch device; empty: a GPU if there is one, else the CPU."""

    def __post_init__(self) -> None:
        check_settings(self)
        check_name("idms", self.architecture)


def _check_dropout(probability: float) -> None:
    if probability >= 1:
        raise ValueError(
            f"--action-dropout must be < 1, or the model never sees an action, got {probability:g}; use 0.2"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldModelTraining:
    """Settings of an autoregressive world model's training."""

    hidden_size: int = 192
    """Size of the hidden states."""
    intermediate_size: int = 512
    """Inner size of the SwiGLU MLP."""
    num_layers: int = 5
    """Decoder layers."""
    num_heads: int = 3
    """Query heads."""
    num_key_value_heads: int = 1
    """Key-value heads."""
    num_frames: int = 9
    """Frames of a window, context included."""
    batch_size: int = 16
    """Windows in a step."""
    learning_rate: float = 2e-3
    """Highest learning rate; it rises for 2 % of the training and falls to a twentieth along a cosine."""
    weight_decay: float = 0.1
    """Weight decay of AdamW, for matrices."""
    max_grad_norm: float = 1.0
    """Clip the gradients to this norm."""
    action_dropout: float = 0.0
    """Share of the actions that are hidden, each alone; a run can guide a model only if this is above 0, as 0.2."""
    context_weight: float = 0.1
    """Loss weight of the first frame's tokens; low, because every rollout gets the first frame as context."""
    minutes: float = 0.0
    """Wall-clock length of the training; the schedule then follows the clock, not num_steps."""
    num_steps: int = 1000
    """Optimizer steps; used if minutes is 0."""
    precision: str = "bf16"
    """`bf16` (autocast) or `fp32`."""
    evaluate_every_s: float = 150.0
    """Seconds between two evaluations, each with a checkpoint."""
    num_validation: int = 48
    """Held-out windows, evenly spaced over the recordings."""
    init: str = ""
    """Checkpoint folder to start from."""
    seed: int = 0
    """Seed of the weights and of the order of the windows."""
    device: str = ""
    """Torch device; empty: a GPU if there is one, else the CPU."""

    def __post_init__(self) -> None:
        check_settings(self)
        _check_dropout(self.action_dropout)


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowTraining:
    """Settings of a flow world model's training."""

    form: str = "nfd"
    """Form of the model: `nfd` (Next-Frame Diffusion), or `oasis`, for VPT's actions and with history_noise 0."""
    patch_size: int = 2
    """Side of a patch in latents; one token is one patch."""
    hidden_size: int = 224
    """Size of the hidden states."""
    num_layers: int = 6
    """Transformer blocks."""
    num_heads: int = 4
    """Attention heads."""
    num_frames: int = 9
    """Frames of a window."""
    batch_size: int = 16
    """Windows in a step."""
    history_noise: float = 0.3
    """Highest noise level of a history frame; each frame's level is uniform between 0 and this value."""
    action_dropout: float = 0.0
    """Share of the actions that are hidden, each alone; a run can guide a model only if this is above 0, as 0.2."""
    level_mean: float = 0.0
    """Mean of the logit of a denoised frame's noise level."""
    level_std: float = 1.0
    """Standard deviation of this logit (logit-normal distribution, as in Stable Diffusion 3)."""
    learning_rate: float = 1e-3
    """Highest learning rate; it rises for 2 % of the training and falls to a twentieth along a cosine."""
    weight_decay: float = 0.01
    """Weight decay of AdamW."""
    max_grad_norm: float = 1.0
    """Clip the gradients to this norm."""
    average_decay: float = 0.999
    """Decay of the moving average of the weights, which is saved."""
    minutes: float = 0.0
    """Wall-clock length of the training; the schedule then follows the clock, not num_steps."""
    num_steps: int = 1000
    """Optimizer steps; used if minutes is 0."""
    precision: str = "bf16"
    """`bf16` (autocast) or `fp32`."""
    evaluate_every_s: float = 240.0
    """Seconds between two evaluations, each with a checkpoint."""
    num_validation: int = 192
    """Held-out windows, evenly spaced over the recordings."""
    init: str = ""
    """Checkpoint folder to start from."""
    seed: int = 0
    """Seed of the weights, of the order of the windows and of the noise."""
    device: str = ""
    """Torch device; empty: a GPU if there is one, else the CPU."""

    def __post_init__(self) -> None:
        check_settings(self)
        _check_dropout(self.action_dropout)
        if self.form not in FLOW_FORMS:
            raise ValueError(f"form must be one of {', '.join(FLOW_FORMS)}, got {self.form!r}; choose one of them")
        if self.form == "oasis" and self.history_noise:
            raise ValueError(
                f"history_noise must be 0 with form oasis, which reads earlier frames without noise, got "
                f"{self.history_noise:g}; give --history-noise 0"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferenceTraining:
    """Settings of a preference head's training."""

    idm: str = ""
    """Folder of the inverse dynamics model whose features are read; a run needs the same as models.reward_idm."""
    validation_share: float = 0.2
    """Share of the pairs that are held out."""
    batch_pairs: int = 64
    """Pairs in one step."""
    minutes: float = 0.0
    """Wall-clock length of the training; the schedule then follows the clock, not num_steps."""
    num_steps: int = 500
    """Optimizer steps; used if minutes is 0."""
    learning_rate: float = 1e-2
    """Highest learning rate; it rises for 2 % of the training and falls to a twentieth along a cosine."""
    weight_decay: float = 3.0
    """Weight decay of AdamW; high, because there are often fewer pairs than features."""
    seed: int = 0
    """Seed of the held-out pairs and of the order of the others."""
    device: str = ""
    """Torch device; empty: a GPU if there is one, else the CPU."""

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.idm:
            raise ValueError("--idm must be the folder of an inverse dynamics model, got none; train one: pretrain idm")
        if not 0 < self.validation_share < 1:
            raise ValueError(
                f"--validation-share must lie between 0 and 1, got {self.validation_share:g}; use for example 0.2"
            )
