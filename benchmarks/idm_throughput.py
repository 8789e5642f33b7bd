"""Clips per second of the VPT inverse dynamics model beside a straight loop over the clips, and the memory of both.

The loop is the network as it was published, one clip after the other: a 3D convolution, then the frames' CNN and the
transformer, in torch's own layout. Both run on the same weights and clips, turn about in one process; memory is the
growth of a fresh process of each. Writes JSON with the machine and the load average.
Run: `python benchmarks/idm_throughput.py`.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rlir_ray.data.files import write_json
from rlir_ray.idm.vpt import VptInverseDynamics
from rlir_ray.idm.vpt_config import VPT_CONFIG
from rlir_ray.run.environment import versions

# The size of the small golden checkpoint: 32 x 32 pixels, CNN channels 4, 8, 8.
SMALL = {
    "attention_heads": 4,
    "attention_memory_size": 16,
    "timesteps": 16,
    "img_shape": [32, 32, 8],
    "conv3d_params": {"inchan": 3, "outchan": 8, "kernel_size": [5, 1, 1], "padding": [2, 0, 0]},
    "impala_chans": [4, 8, 8],
    "impala_width": 1,
}


def small_model(width: int) -> VptInverseDynamics:
    """The small golden network with a transformer of the given width, random weights of seed 0."""
    config = copy.deepcopy(VPT_CONFIG)
    config["net"] |= {**SMALL, "hidsize": width}
    torch.manual_seed(0)
    return VptInverseDynamics(config).eval()


def straight_loop(model: VptInverseDynamics, clips: Tensor) -> dict[str, Tensor]:
    """The published forward pass on uint8 clips [B, F, H, W, 3] of the network's size, one by one."""
    net, found = model.net, []
    for clip in clips.split(1):
        video = clip.permute(0, 4, 1, 2, 3).float() / 255  # [1, 3, F, H, W]
        if hasattr(net, "conv3d_layer"):
            video = net.conv3d_layer(video)
        x = net.img_process(video.transpose(1, 2).flatten(0, 1).contiguous())[None]  # [1, F, E]
        found.append(model.pi_head(net.final_ln(F.relu(net.recurrent_layer["blocks"](x)))))
    return {head: torch.cat([logits[head] for logits in found]) for head in found[0]}


def seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


@torch.inference_mode()
def measure(model: VptInverseDynamics, clips: Tensor, repeats: int) -> dict[str, float]:
    """Clips per second, best of the repeats, taken turn about so that both see the same machine."""
    forms = {"batched": lambda: model.logits(clips), "straight_loop": lambda: straight_loop(model, clips)}
    for form in forms.values():
        form()
    times = [{name: seconds(form) for name, form in forms.items()} for _ in range(repeats)]
    rates = {name: len(clips) / min(each[name] for each in times) for name in forms}
    return {**rates, "ratio": rates["batched"] / rates["straight_loop"]}


def peak_memory(form: str, width: int, num_clips: int, num_frames: int) -> int:
    """Bytes by which the largest resident size of a fresh process grows while it reads the clips."""
    command = [sys.executable, __file__, "--only", form, "--clips", str(num_clips), "--frames", str(num_frames)]
    done = subprocess.run([*command, "--widths", str(width)], check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


@torch.inference_mode()
def read_once(form: str, width: int, clips: Tensor) -> int:
    model = small_model(width)
    read = model.logits if form == "batched" else lambda some: straight_loop(model, some)
    read(clips[:1, :4])
    # Forgets the peak that importing torch left.
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_bytes("VmRSS")
    read(clips)
    return resident_bytes("VmHWM") - before


def resident_bytes(field: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256], help="of the transformer")
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--frames", type=int, default=16, help="of a clip")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", choices=("batched", "straight_loop"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(0)
    shape = (arguments.clips, arguments.frames, 32, 32, 3)
    clips = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    if arguments.only:
        print(read_once(arguments.only, arguments.widths[0], clips))
        return
    content: dict[str, Any] = {
        "versions": versions(),
        "load_average": os.getloadavg(),
        "threads": arguments.threads,
        "clips": arguments.clips,
        "frames": arguments.frames,
        "pixels": [32, 32],
        "widths": {},
    }
    for width in arguments.widths:
        found = measure(small_model(width), clips, arguments.repeats)
        sizes = {
            form: peak_memory(form, width, arguments.clips, arguments.frames) for form in ("batched", "straight_loop")
        }
        content["widths"][str(width)] = {**found, "peak_memory_bytes": sizes}
        print(
            f"width {width}: {found['batched']:.0f} clips/s batched, {found['straight_loop']:.0f} one by one: "
            f"{found['ratio']:.2f}x; peak memory {sizes['batched'] / 1e6:.0f} and {sizes['straight_loop'] / 1e6:.0f} MB"
        )
    out = Path(__file__).parent / "results" / "idm_throughput.json"
    write_json(out, content)
    print(json.dumps({"file": str(out)}))


if __name__ == "__main__":
    main()
