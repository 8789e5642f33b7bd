"""Tokens per second of the rollout engines beside transformers' `generate`, on the same weights, prompts and G.

vLLM is measured where it is installed (`make install-vllm`). Writes JSON with the machine, the commit and the load
average. Rates are given per second of wall-clock and per second of processor time: on a busy machine the second one is
the steadier. Run: `python benchmarks/rollout_engines.py`.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlir_ray.config import VllmConfig
from rlir_ray.data.files import write_json
from rlir_ray.models.autoregressive import WorldModel
from rlir_ray.run.environment import versions
from rlir_ray.samplers.torch_sampler import TorchSampler
from rlir_ray.testing import sample_actions
from rlir_ray.trajectory import Prompt

Run = Callable[[list[Prompt]], object]
"""Samples groups of some prompts."""


def random_prompts(model: WorldModel, num_prompts: int, num_frames: int) -> list[Prompt]:
    """One context frame each, and random actions."""
    random = np.random.default_rng(0)
    return [
        Prompt(
            prompt_id=str(index),
            context=random.integers(0, model.num_codes, (1, model.tokens_per_frame), dtype=np.uint16),
            actions=sample_actions(num_frames, index),
        )
        for index in range(num_prompts)
    ]


@torch.inference_mode()
def generate_with_transformers(model: WorldModel, prompts: Sequence[Prompt], group_size: int, cache: str) -> Tensor:
    """The same rollouts by `generate`, frame after frame over one cache, image ids only."""
    from transformers import DynamicCache, StaticCache

    device, per_frame = model.llama.device, model.tokens_per_frame
    context = torch.from_numpy(np.stack([p.context[0] for p in prompts]).astype(np.int64)).to(device)
    actions = np.stack([model.layout.tokens(prompt.actions, model.num_codes) for prompt in prompts])
    actions = torch.from_numpy(actions).to(device).repeat_interleave(group_size, 0)
    tokens = context.repeat_interleave(group_size, 0)
    num_frames = actions.shape[1]
    past = DynamicCache(config=model.config)
    if cache == "static":
        past = StaticCache(config=model.config, max_cache_len=(num_frames + 1) * (per_frame + actions.shape[2]))
    suppressed = list(range(model.num_codes, model.config.vocab_size))
    for frame in range(num_frames):
        tokens = torch.cat([tokens, actions[:, frame]], 1)
        tokens = model.llama.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            past_key_values=past,
            max_new_tokens=per_frame,
            do_sample=True,
            top_k=0,
            top_p=1.0,
            temperature=1.0,
            suppress_tokens=suppressed,
            pad_token_id=0,
        )
    return tokens


def rates(run: Callable[[], object], num_tokens: int, repeats: int) -> dict[str, float]:
    """The best of some repeats, after a short one by the caller."""
    walls, processors = [], []
    for _ in range(repeats):
        wall, processor = time.perf_counter(), time.process_time()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        walls.append(time.perf_counter() - wall)
        processors.append(time.process_time() - processor)
    return {
        "tokens_per_s": round(num_tokens / min(walls), 1),
        "tokens_per_processor_s": round(num_tokens / min(processors), 1),
    }


def product_rate(dtype: torch.dtype, device: torch.device, size: int = 1536) -> float:
    """Floating-point operations per processor second (per second on a GPU) of the best of some large products."""
    left, right = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    times = []
    for _ in range(8):
        start = clock()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(clock() - start)
    return 2 * size**3 / min(times[1:])


def operations_per_token(model: WorldModel, length: int) -> float:
    """Of decoding one token at the mean position of a clip of `length` tokens: products with weights and cache."""
    layers = sum(weight.numel() for weight in model.llama.model.layers.parameters() if weight.ndim > 1)
    head = model.num_codes * model.config.hidden_size
    attention = 2 * model.config.num_hidden_layers * model.config.num_attention_heads * model.config.head_dim
    return 2 * (layers + head + attention * length / 2)


def torch_engine(model: WorldModel, group_size: int, dtype: torch.dtype) -> Run:
    """Our sampler."""
    sampler = TorchSampler(model, temperature=1.0, dtype=dtype, compares=False)
    return lambda prompts: sampler.sample(prompts, range(len(prompts)), range(len(prompts)), group_size)


def generate_engine(model: WorldModel, group_size: int, cache: str) -> Run:
    """Transformers."""
    return lambda prompts: generate_with_transformers(model, prompts, group_size, cache)


def vllm_engine(model: WorldModel, group_size: int, num_frames: int) -> Run:
    """vLLM in float32; it reads the shapes of the weights from a folder."""
    from rlir_ray.samplers.vllm import VllmSampler

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        sampler = VllmSampler(
            model, Path(folder), VllmConfig(), temperature=1.0, num_frames=num_frames + 1, compares=False
        )
    return lambda prompts: sampler.sample(prompts, range(len(prompts)), range(len(prompts)), group_size)


def measure(model: WorldModel, num_prompts: int, group_size: int, num_frames: int, repeats: int) -> dict[str, Any]:
    prompts, short = random_prompts(model, num_prompts, num_frames), random_prompts(model, 1, 1)
    num_tokens = num_prompts * group_size * num_frames * model.tokens_per_frame
    dtypes = {f"torch {name}": getattr(torch, name) for name in ("float32", "bfloat16")}
    engines: dict[str, Callable[[], Run]] = {
        name: partial(torch_engine, model, group_size, dtype) for name, dtype in dtypes.items()
    }
    for cache in ("dynamic", "static"):
        engines[f"generate {cache} float32"] = partial(generate_engine, model, group_size, cache)
    if importlib.util.find_spec("vllm"):
        # The last one: it changes settings of its whole process.
        engines["vllm float32"] = partial(vllm_engine, model, group_size, num_frames)
    found: dict[str, Any] = {}
    for name, make in engines.items():
        engine = make()
        engine(short)
        found[name] = rates(lambda run=engine: run(prompts), num_tokens, repeats)
        print(name, found[name], flush=True)
    length = (num_frames + 1) * (model.tokens_per_frame + 11)
    on_gpu = model.llama.device.type == "cuda"
    for name, dtype in dtypes.items():
        peak = product_rate(dtype, model.llama.device)
        rate = found[name]["tokens_per_s" if on_gpu else "tokens_per_processor_s"]
        found[name]["product_gflops"] = round(peak / 1e9, 1)
        found[name]["share_of_products"] = round(operations_per_token(model, length) * rate / peak, 3)
    found["ratios"] = ratios(found)
    return found


def ratios(found: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Of the float32 engines to each other, by either clock; `generate` stands for the faster of its two caches."""
    compared: dict[str, dict[str, float]] = {}
    for clock in ("tokens_per_s", "tokens_per_processor_s"):
        rate = {name.split()[0]: each[clock] for name, each in found.items() if name.endswith("float32")}
        rate["generate"] = max(each[clock] for name, each in found.items() if name.startswith("generate"))
        pairs = [("torch", "generate"), ("vllm", "generate"), ("vllm", "torch")]
        compared[clock] = {f"{a} / {b}": round(rate[a] / rate[b], 2) for a, b in pairs if a in rate}
    return compared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model", default="", help="world model folder; empty: random weights of the Doom world's size"
    )
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/rollout_engines.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    create = WorldModel.create
    model = WorldModel.from_pretrained(options.model) if options.model else create(num_codes=512, tokens_per_frame=48)
    model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    load = os.getloadavg()
    engines = measure(model, options.prompts, options.group_size, options.frames, options.repeats)
    report = {
        "versions": versions(),
        "threads": options.threads,
        "load_average": load,
        "load_average_after": os.getloadavg(),
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "clips": options.prompts * options.group_size,
        "frames": options.frames,
        "engines": engines,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.out, report)


if __name__ == "__main__":
    main()
