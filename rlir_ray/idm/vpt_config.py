"""The published kwargs of the VPT inverse dynamics model (arXiv 2206.11795), and which of them this project builds."""

from __future__ import annotations

from rlir_ray.data.files import Json
from rlir_ray.idm.vpt_heads import NUM_BINS

# The published sizes (4x_idm.model, which leaves impala_chans and pointwise_ratio to the code's defaults).
VPT_CONFIG: Json = {
    "net": {
        "attention_heads": 32,
        "attention_mask_style": "none",
        "attention_memory_size": 128,
        "timesteps": 128,
        "conv3d_params": {"inchan": 3, "outchan": 128, "kernel_size": [5, 1, 1], "padding": [2, 0, 0]},
        "hidsize": 4096,
        "img_shape": [128, 128, 128],
        "impala_chans": [16, 32, 32],
        "impala_width": 16,
        "impala_kwargs": {"post_pool_groups": 1},
        "init_norm_kwargs": {"batch_norm": False, "group_norm_groups": 1},
        "n_recurrence_layers": 2,
        "only_img_input": True,
        "pointwise_ratio": 4,
        "pointwise_use_activation": False,
        "recurrence_is_residual": True,
        "recurrence_type": "transformer",
        "single_output": True,
        "use_pointwise_layer": True,
        "use_pre_lstm_ln": False,
    },
    "pi_head": {"temperature": 2.0},
    "n_camera_bins": 11,
}

# Defaults of the published code for kwargs that a config does not give.
DEFAULTS: Json = {
    "attention_heads": 8,
    "attention_mask_style": "clipped_causal",
    "attention_memory_size": 2048,
    "conv3d_params": None,
    "hidsize": 512,
    "impala_chans": [16, 32, 32],
    "impala_kwargs": {},
    "impala_width": 1,
    "init_norm_kwargs": {},
    "n_recurrence_layers": 1,
    "only_img_input": False,
    "pointwise_ratio": 4,
    "pointwise_use_activation": False,
    "recurrence_is_residual": True,
    "recurrence_type": "lstm",
    "single_output": False,
    "use_pointwise_layer": True,
    "use_pre_lstm_ln": True,
}
REQUIRED = ("img_shape", "timesteps")
# Any other kwarg must be off, or have the value that is built into the network.
UNREAD = {"scale_input_img": True}

# Values that this network has built in; a config with other values describes another network.
FIXED = {
    "attention_mask_style": "none",
    "impala_kwargs": {"post_pool_groups": 1},
    "only_img_input": True,
    "init_norm_kwargs": {"batch_norm": False, "group_norm_groups": 1},
    "recurrence_is_residual": True,
    "recurrence_type": "transformer",
    "single_output": True,
    "use_pointwise_layer": True,
    "use_pre_lstm_ln": False,
}


def complete_net(net: Json) -> Json:
    """Fill in the published code's defaults for missing `net` kwargs.

    Raises:
        ValueError: the kwargs describe a network that `VptInverseDynamics` cannot build.
    """
    if missing := [key for key in REQUIRED if key not in net]:
        raise ValueError(f"net must give {' and '.join(REQUIRED)}, got no {missing[0]}; take the published kwargs")
    known = {*DEFAULTS, *REQUIRED}
    if unknown := [key for key, value in net.items() if key not in known and value and UNREAD.get(key) != value]:
        raise ValueError(
            f"net must give only kwargs of the published IDM form, got {unknown[0]}={net[unknown[0]]!r}; take the "
            "published kwargs"
        )
    complete = {**DEFAULTS, **net}
    for key, value in FIXED.items():
        if complete[key] != value:
            raise ValueError(f"net.{key} must be {value}, got {complete[key]}; only the published IDM form is built")
    if complete["attention_memory_size"] != complete["timesteps"]:
        raise ValueError(
            "net.attention_memory_size must equal net.timesteps (no memory between windows), got "
            f"{complete['attention_memory_size']} and {complete['timesteps']}; take the published kwargs"
        )
    if complete["hidsize"] % complete["attention_heads"]:
        raise ValueError(
            f"net.hidsize must be a multiple of net.attention_heads, got {complete['hidsize']} and "
            f"{complete['attention_heads']}; take the published kwargs"
        )
    conv3d, channels = complete["conv3d_params"], complete["img_shape"][2]
    form = {"inchan": 3, "outchan": channels}
    if conv3d is None:
        if channels != 3:
            raise ValueError(f"net.img_shape must end in 3 without conv3d_params, got {channels}; add conv3d_params")
    elif {key: conv3d.get(key) for key in form} != form or not _keeps_size(conv3d):
        raise ValueError(
            f"net.conv3d_params must have inchan 3, outchan {channels} (the end of img_shape), an odd kernel_size and "
            f"half of it as padding, got {conv3d}; take the published kwargs"
        )
    return complete


def _keeps_size(conv3d: Json) -> bool:
    kernel, padding = conv3d["kernel_size"], conv3d["padding"]
    return len(kernel) == len(padding) == 3 and all(
        size == 2 * half + 1 for size, half in zip(kernel, padding, strict=True)
    )


def small_vpt_config(height: int = 48, width: int = 64) -> Json:
    """Return a config of VPT's form for small worlds, of about 2 M parameters.

    The temperature is 1, because soft rewards use the probabilities.
    """
    net = {
        **VPT_CONFIG["net"],
        "attention_heads": 4,
        "attention_memory_size": 16,
        "timesteps": 16,
        "hidsize": 256,
        "conv3d_params": {"inchan": 3, "outchan": 16, "kernel_size": [5, 1, 1], "padding": [2, 0, 0]},
        "img_shape": [height, width, 16],
        "impala_chans": [16, 32, 32],
        "impala_width": 1,
    }
    return {"net": net, "pi_head": {"temperature": 1.0}, "n_camera_bins": NUM_BINS}
