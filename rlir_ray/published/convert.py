"""The `convert` command: published checkpoints to folders of `transformers`, vLLM, `diffusers` and this project."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rlir_ray.data.files import give_usual_mode, new_folder
from rlir_ray.idm.vpt import load_vpt
from rlir_ray.published.mineworld import load_mineworld

if TYPE_CHECKING:
    from rlir_ray.published.folders import PublishedPart

TOKENIZER_FOLDER = "tokenizer"
OASIS_FOLDERS = {"dit": "world_model", "vae": "autoencoder"}
DIAMOND_FOLDERS = ("world_model", "pixels")


def convert_vpt_idm(out: Path, *, weights: Path, model: str = "", config: str = "") -> list[str]:
    """Write config.json and model.safetensors, for `VptInverseDynamics.from_pretrained` and `models.*_idm`.

    Args:
        out: a new folder.
        weights, model, config: see `rlir_ray.idm.vpt.load_vpt`.

    Returns:
        Lines for the user that name the written files.

    Raises:
        ValueError: an input is invalid; then no file is written.
    """
    with new_folder(out) as folder:
        found = load_vpt(weights, model=model, config=config)
        found.save_pretrained(folder)
    size = sum(parameter.numel() for parameter in found.parameters())
    return [
        f"inverse dynamics model, {size / 1e6:.1f} M parameters: {out}   (models.reward_idm={out})",
        checksum_line(weights),
    ]


def convert_mineworld(out: Path, *, checkpoint: Path, config: Path, tokenizer_config: str = "") -> list[str]:
    """Convert all models of a checkpoint, in their stored precision.

    The world model goes to `out` as a LlamaForCausalLM folder, its VQ model to `out`/tokenizer; a VQ model alone to
    `out` itself.

    Args:
        out: a new folder.
        checkpoint, config, tokenizer_config: see `rlir_ray.published.mineworld.load_mineworld`.

    Returns:
        Lines for the user that name the written files.

    Raises:
        ValueError: an input is invalid; then no file is written.
    """
    from transformers.utils.logging import disable_progress_bar

    lines = []
    with new_folder(out) as folder:
        found = load_mineworld(checkpoint, config, tokenizer_config=tokenizer_config)
        disable_progress_bar()
        if found.llama is not None:
            found.llama.save_pretrained(folder)
            give_usual_mode(folder)
            size = sum(parameter.numel() for parameter in found.llama.parameters())
            lines.append(f"world model, {size / 1e6:.1f} M parameters: {out}   (models.policy={out})")
            if not hasattr(found.llama.config, "tokens_per_frame"):
                lines.append('the config has no image_num: add "tokens_per_frame" to config.json before training')
            if found.vq_model is None:
                lines.append(f"no tokenizer in this checkpoint: convert the tokenizer to {out / TOKENIZER_FOLDER}")
        if found.vq_model is not None:
            place = Path(TOKENIZER_FOLDER) if found.llama is not None else Path()
            found.vq_model.save_pretrained(folder / place)
            give_usual_mode(folder / place)
            lines.append(f"tokenizer: {out / place}   (models.tokenizer={out / place})")
    return [*lines, checksum_line(checkpoint)]


def convert_oasis(out: Path, *, dit: Path, vae: Path, config: str = "") -> list[str]:
    """Write the `diffusers` folders `out`/world_model and `out`/autoencoder, in their stored precision.

    Args:
        out: a new folder.
        dit, vae: the published files of world model and autoencoder.
        config: see `rlir_ray.published.oasis.load_oasis`.

    Returns:
        Lines for the user that name the written files.

    Raises:
        ValueError: an input is invalid; then no file is written.
    """
    from rlir_ray.published.oasis import load_oasis

    lines = []
    with new_folder(out) as folder:
        for part, weights in (("dit", dit), ("vae", vae)):
            model, name = load_oasis(part, weights, config), OASIS_FOLDERS[part]
            model.save_pretrained(folder / name)
            give_usual_mode(folder / name)
            size = sum(parameter.numel() for parameter in model.parameters())
            lines.append(f"{name.replace('_', ' ')}, {size / 1e6:.1f} M parameters: {out / name}")
    return [*lines, checksum_line(dit), checksum_line(vae)]


def convert_rlvr(out: Path, *, folder: Path) -> list[str]:
    """Write the models of a folder of RLVR-World to the same places of `out`, in their stored precision.

    Args:
        out: a new folder.
        folder: see `rlir_ray.published.rlvr.load_rlvr`.

    Returns:
        Lines for the user that name the written files.

    Raises:
        ValueError: an input is invalid; then no file is written.
    """
    from rlir_ray.published.rlvr import load_rlvr

    return _convert_parts(out, folder, load_rlvr)


def convert_ivideogpt(out: Path, *, folder: Path) -> list[str]:
    """Write tokenizer and transformer of a folder of iVideoGPT to the same places of `out`, in their stored precision.

    Args:
        out: a new folder.
        folder: see `rlir_ray.published.ivideogpt.load_ivideogpt`.

    Returns:
        Lines for the user that name the written files.

    Raises:
        ValueError: an input is invalid; then no file is written.
    """
    from rlir_ray.published.ivideogpt import load_ivideogpt

    return _convert_parts(out, folder, load_ivideogpt)


def _convert_parts(out: Path, folder: Path, load: Callable[[Path], list[PublishedPart]]) -> list[str]:
    from transformers.utils.logging import disable_progress_bar

    lines, checksums = [], []
    with new_folder(out) as part_folder:
        disable_progress_bar()
        for part in load(folder):
            place = out / part.place
            part.model.save_pretrained(part_folder / part.place)
            give_usual_mode(part_folder / part.place)
            size = sum(parameter.numel() for parameter in part.model.parameters())
            use = f"   ({part.setting}={place})" if part.setting else ""
            lines.append(f"{part.name}, {size / 1e6:.1f} M parameters: {place}{use}")
            checksums += [checksum_line(path) for path in part.files]
    return lines + checksums


def convert_diamond(out: Path, *, agent: Path) -> list[str]:
    """Write the `diffusers` folder `out`/world_model, in its stored precision, and the codec `out`/pixels.

    Args:
        out: a new folder.
        agent: a published file; of its tensors, only the world model's are kept.

    Returns:
        Lines for the user that name the written files.

    Raises:
        ValueError: an input is invalid; then no file is written.
    """
    from rlir_ray.models.pixel_codec import PixelCodec
    from rlir_ray.published.diamond import load_diamond

    model_folder, codec_folder = DIAMOND_FOLDERS
    with new_folder(out) as folder:
        model = load_diamond(agent)
        height, width, num_actions = (model.config[name] for name in ("height", "width", "num_actions"))
        model.save_pretrained(folder / model_folder)
        give_usual_mode(folder / model_folder)
        PixelCodec(height, width).save_pretrained(folder / codec_folder)
    size = sum(parameter.numel() for parameter in model.parameters())
    return [
        f"world model, {size / 1e6:.1f} M parameters, {num_actions} actions: {out / model_folder}   "
        f"(models.policy={out / model_folder})",
        f"codec of {height}x{width} pixels: {out / codec_folder}   (models.tokenizer={out / codec_folder})",
        checksum_line(agent),
    ]


def checksum_line(path: Path) -> str:
    """Name the SHA-256 of a published file, so that users of mirrors can compare their copies."""
    with path.open("rb") as file:
        return f"sha256 of {path.name}: {hashlib.file_digest(file, 'sha256').hexdigest()}"
