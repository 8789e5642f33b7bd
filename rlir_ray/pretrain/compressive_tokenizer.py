"""Training of a world's compressive tokenizer on recordings; actions are not used.

Each clip of a batch is a keyframe and two neighbouring frames of the same recording, not long after the keyframe. Both
quantizers round in training too, with straight-through gradients, and have no codebook to learn.
Legend: B clips, n frames of a clip, H W pixels.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlir_ray.data.files import Json
from rlir_ray.models.compressive_codec import CompressiveCodec
from rlir_ray.models.rlvr_compressive import RlvrCompressiveTokenizer
from rlir_ray.pretrain.arguments import Chosen, read_chosen
from rlir_ray.pretrain.encode import encode_splits
from rlir_ray.pretrain.loop import train
from rlir_ray.pretrain.reconstruction import Clips, reconstruction_loss, reconstruction_metrics
from rlir_ray.pretrain.settings import CompressiveTokenizerTraining
from rlir_ray.pretrain.state import finished_report
from rlir_ray.pretrain.task import Autocast, Every, Length, Progress, Task
from rlir_ray.run.progress import figure_words

logger = logging.getLogger(__name__)

CURVE_STEPS = 20


def train_compressive_tokenizer(
    clips: Clips, validation: Clips, out_dir: Path | str, settings: CompressiveTokenizerTraining
) -> CompressiveCodec:
    """Train a compressive tokenizer, and write the model and its held-out metrics.

    Resume from the last saved state, and leave a finished training as it is.

    Args:
        clips: recordings, uint8 [F, H, W, 3] each, of one size.
        validation: held-out recordings.
        out_dir: receives the tokenizer (float16), `curve.jsonl`, `training.json` and, until it is done, `state-*`.
        settings: see `CompressiveTokenizerTraining`.

    Returns:
        The tokenizer as read back from `out_dir`.

    Raises:
        ValueError: no recording has `settings.clip_frames` frames, or the folder holds a state or a training of other
            settings.
    """
    out_dir = Path(out_dir)
    if not finished_report(out_dir, settings):
        train(CompressiveTokenizerTask(clips, validation, settings), out_dir)
    return CompressiveCodec.from_pretrained(out_dir)


class CompressiveTokenizerTask(Task):
    """Training task: a compressive tokenizer on keyframes and pairs of neighbouring later frames."""

    name = "compressive tokenizer"
    model: CompressiveCodec

    def __init__(self, clips: Clips, validation: Clips, settings: CompressiveTokenizerTraining) -> None:
        self.clips = _long_enough(clips, settings.clip_frames)
        self.validation = cut(_long_enough(validation, settings.clip_frames), settings.clip_frames)
        torch.manual_seed(settings.seed)
        height, width = self.clips[0].shape[1:3]
        super().__init__(
            settings,
            build_compressive_tokenizer(height, width, settings).train(),
            length=Length.of(settings),
            curve_every=Every(steps=CURVE_STEPS),
            save_every=Every(steps=settings.checkpoint_every),
            device=settings.device,
        )

    def build_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            self.model.parameters(), lr=self.settings.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4
        )

    def learning_rate(self, share: float) -> float:
        rate = self.settings.learning_rate
        return float(rate * min(1.0, share / 0.02 + 0.01) * 0.5 * (1 + math.cos(math.pi * share)))

    def loss(self, progress: Progress, autocast: Autocast) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        settings = self.settings
        drawn = draw_clips(self.clips, settings.batch_clips, settings.clip_frames, settings.seed, progress.step)
        pictures = self.model.pixels(torch.from_numpy(drawn))  # [B, 3, C, H, W]
        with autocast():
            decoded = self.model.model.reconstruct(pictures)
        # The first halves are the first frames of the pairs, as `reconstruction_loss` needs them; pixels in [-1, 1].
        pairs, target = (2 * part[:, 1:].transpose(0, 1).flatten(0, 1).float() - 1 for part in (decoded, pictures))
        keyframes, real = (2 * part[:, 0].float() - 1 for part in (decoded, pictures))
        weights = {"squared_weight": settings.squared_weight, "gradient_weight": settings.gradient_weight}
        loss = reconstruction_loss(pairs, target, **weights, change_weight=settings.change_weight)
        loss = loss + settings.keyframe_weight * reconstruction_loss(keyframes, real, **weights, change_weight=0.0)
        metrics = {"psnr": _psnr(pairs, target), "keyframe_psnr": _psnr(keyframes, real)}
        return loss, metrics

    def save(self, folder: Path, final: Json, steps: int, elapsed_s: float) -> Json:
        # Evaluate the stored float16 weights, because users load those.
        self.model.save_pretrained(folder, torch.float16)
        figures = evaluate_compressive_tokenizer(CompressiveCodec.from_pretrained(folder), self.validation)
        logger.info("%s: %s", folder, figure_words(figures))
        frames = {"train_frames": sum(map(len, self.clips)), "validation_clips": len(self.validation)}
        return {**frames, "validation": figures}


def build_compressive_tokenizer(height: int, width: int, settings: CompressiveTokenizerTraining) -> CompressiveCodec:
    """Return a fresh tokenizer with random weights (drawn from torch's global generator) for frames of a size.

    Raises:
        ValueError: the patches do not fill the frames.
    """
    unshuffle, blocks = settings.pixel_unshuffle, len(settings.block_channels)
    step = unshuffle * 2 ** (blocks - 1)
    rows, columns = step * settings.patch_height, step * settings.patch_width
    if height % rows or width % columns:
        raise ValueError(
            f"height and width of frames must be multiples of {rows} and {columns}, so that the tokens fill them, got "
            f"{height}x{width}; resize with --size, or lower --pixel-unshuffle, --patch-height or --patch-width"
        )
    channels = 3 * unshuffle**2
    model = RlvrCompressiveTokenizer(
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=settings.block_channels,
        layers_per_block=1,
        latent_channels=settings.latent_channels,
        vq_fsq_levels=settings.keyframe_levels,
        dyn_fsq_levels=settings.levels,
        norm_num_groups=settings.norm_groups,
        mid_block_add_attention=True,
        # Only features of the grid's size attend to the keyframe, as at the published size.
        max_att_resolution=height // step,
        resolution=height // unshuffle,
        width=width // unshuffle,
        patch_size=settings.patch_height,
        patch_width=settings.patch_width,
    )
    return CompressiveCodec(model.without_dropout(), pixel_unshuffle=unshuffle, clip_frames=settings.clip_frames)


def draw_clips(clips: Clips, num_clips: int, clip_frames: int, seed: int, step: int) -> npt.NDArray[np.uint8]:
    """Draw keyframes, each with two neighbouring frames of the `clip_frames` from the keyframe on.

    The draws depend on seed and step only, so that a resumed training draws the same clips.

    Returns:
        uint8 [num_clips, 3, H, W, 3].
    """
    random = np.random.default_rng([seed, step])
    starts = np.array([len(clip) - clip_frames + 1 for clip in clips])
    found = []
    for index in random.choice(len(clips), num_clips, p=starts / starts.sum()):
        start = int(random.integers(starts[index]))
        first = start + int(random.integers(clip_frames - 1))
        found.append(clips[index][[start, first, first + 1]])
    return np.stack(found)


def cut(clips: Clips, clip_frames: int) -> npt.NDArray[np.uint8]:
    """Cut recordings into clips without overlap, uint8 [B, n, H, W, 3]; a shorter rest is left out."""
    wholes = [clip[: len(clip) // clip_frames * clip_frames] for clip in clips]
    return np.concatenate([whole.reshape(-1, clip_frames, *whole.shape[1:]) for whole in wholes])


def _long_enough(clips: Clips, clip_frames: int) -> Clips:
    if found := [clip for clip in clips if len(clip) >= clip_frames]:
        return found
    longest = max((len(clip) for clip in clips), default=0)
    raise ValueError(
        f"a compressive tokenizer trains on recordings of at least --clip-frames {clip_frames} frames, got at most "
        f"{longest}; give a smaller --clip-frames, or make longer recordings with: python -m rlir_ray collect"
    )


def _psnr(decoded: Tensor, real: Tensor) -> Tensor:
    """Return the mean PSNR in dB of pixels in [-1, 1], whose largest squared error is 4."""
    error = (decoded.detach().clamp(-1, 1) - real).square().mean((1, 2, 3))
    return 10 * torch.log10(4 / error.clamp(min=1e-6)).mean()


@torch.no_grad()
def evaluate_compressive_tokenizer(codec: CompressiveCodec, clips: npt.NDArray[np.uint8]) -> dict[str, float]:
    """Compute metrics of clips uint8 [B, n, H, W, 3] that are encoded and decoded.

    Returns:
        `reconstruction_metrics` over all frames; `psnr_last` (dB, of the last frames of the clips, farthest from the
        keyframe); `codes_used` and `keyframe_codes_used` (share of the ids that are chosen at least once).
    """
    parts: Sequence[Tensor] = torch.from_numpy(np.ascontiguousarray(clips)).split(64)
    encoded = [codec.encode_clips(part) for part in parts]
    decoded = torch.cat([codec.decode_clips(part).cpu() for part in encoded])
    real = torch.cat(list(parts))
    keyframes = torch.cat([part.keyframes for part in encoded if part.keyframes is not None])
    return {
        **reconstruction_metrics(decoded.flatten(0, 1), real.flatten(0, 1)),
        "psnr_last": reconstruction_metrics(decoded[:, -1], real[:, -1])["psnr"],
        "codes_used": len(torch.cat([part.codes.flatten() for part in encoded]).unique()) / codec.num_codes,
        "keyframe_codes_used": len(keyframes.unique()) / codec.num_keyframe_codes,
    }


def run_command(chosen: Chosen, settings: CompressiveTokenizerTraining) -> None:
    """Run `pretrain tokenizer --form compressive`: train on recordings, then encode them if asked to."""
    recordings = read_chosen(chosen)
    train_clips, validation = ([one.frames for one in recordings[split]] for split in ("train", "validation"))
    codec = train_compressive_tokenizer(train_clips, validation, chosen["out"], settings)
    if chosen["tokens"]:
        encode_splits(codec, recordings, chosen["tokens"], settings.clip_frames)
