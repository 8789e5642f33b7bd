"""OpenAI's published VPT inverse dynamics model: `4x_idm.model` (a pickle of kwargs) and `4x_idm.weights`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlir_ray.data.files import Json
from rlir_ray.idm.inverse_dynamics import InverseDynamicsModel
from rlir_ray.idm.vpt_config import NUM_BINS
from rlir_ray.models.checkpoints import read_plain_pickle, read_state_dict


def load_vpt(weights: Path | str, *, model: Path | str = "", config: Path | str = "") -> InverseDynamicsModel:
    """Load the published model, in evaluation mode on the CPU.

    Args:
        weights: the `.weights` file, or the same tensors as safetensors.
        model: the `.model` file that belongs to it, or
        config: a JSON file with the same kwargs: `{"net": {...}, "pi_head": {"temperature": ...}}`.

    Raises:
        ValueError: not exactly one of model and config, a file that is not what it should be, or weights that do not
            fit.
    """
    if bool(model) == bool(config):
        raise ValueError("a VPT model needs its .model file or a config, got both or neither; give one of them")
    settings = read_kwargs(model) if model else read_config(config)
    return InverseDynamicsModel.from_state(settings, read_state_dict(weights))


def read_kwargs(path: Path | str) -> Json:
    """Return the config that a published `.model` file describes.

    Raises:
        ValueError: it is no pickle of plain values, or has another layout than the published one.
    """
    return _layout(read_plain_pickle(path), path)


def read_config(path: Path | str) -> Json:
    """Read the config from a JSON file: ours, or the published file's content as JSON.

    Raises:
        ValueError: no such file, no JSON, or neither layout.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"a VPT config must be a readable JSON file, got {error}; check the path") from None
    return content if isinstance(content, dict) and "net" in content else _layout(content, path)


# Any: parsed from a file of another program; what it lacks is an error in here.
def _layout(content: Any, path: Path | str) -> Json:
    try:
        arguments = content["model"]["args"]
        net, head = arguments["net"]["args"], arguments["pi_head_opts"]
        temperature = float(head["temperature"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} must hold model.args.net.args and model.args.pi_head_opts.temperature, got no {error}; give the "
            "file that belongs to the inverse dynamics model's weights"
        ) from None
    # As JSON keeps it: tuples become lists, so that a saved config reads back the same.
    layout: Json = json.loads(
        json.dumps({"net": net, "pi_head": {"temperature": temperature}, "n_camera_bins": NUM_BINS})
    )
    return layout
