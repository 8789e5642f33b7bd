"""Rooms: heavy libraries stay where they belong."""

import pkgutil
import subprocess
import sys

import rlir_ray
from rlir_ray.extras import EXTRAS

MADE_OF_A_LIBRARY = {
    "rlir_ray.__main__",
    "rlir_ray.learner.deepspeed",
    *(f"rlir_ray.models.{name}" for name in ("flow", "oasis", "oasis_autoencoder", "oasis_codec", "oasis_policy")),
    *(f"rlir_ray.models.rlvr_{name}" for name in ("codec", "compressive", "tokenizer")),
    *(f"rlir_ray.models.{name}" for name in ("compressive", "compressive_codec", "compressive_networks")),
    *(f"rlir_ray.models.ivideogpt_{name}" for name in ("tokenizer", "transformer")),
    *(f"rlir_ray.models.{name}" for name in ("diamond", "diamond_policy")),
    *(f"rlir_ray.published.{name}" for name in ("diamond", "ivideogpt", "oasis", "rlvr")),
    "rlir_ray.pretrain.compressive_tokenizer",
    "rlir_ray.samplers.vllm",
}


def test_no_module_of_rlir_ray_loads_ray_vllm_deepspeed_or_diffusers_or_needs_an_extra():
    modules = [
        name for _, name, _ in pkgutil.walk_packages(rlir_ray.__path__, "rlir_ray.") if name not in MADE_OF_A_LIBRARY
    ]
    assert len(modules) > 20
    # Nor does it need the extras: Python takes a module that is None for one that is not installed.
    code = f"""
import importlib, sys
sys.modules.update(dict.fromkeys({list(EXTRAS)}))
for name in {modules!r}:
    importlib.import_module(name)
print("loaded:", [m for m in ("ray", "vllm", "deepspeed", "diffusers") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "loaded: []" in done.stdout, done.stdout + done.stderr
