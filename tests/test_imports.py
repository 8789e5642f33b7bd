"""Rooms: heavy libraries stay where they belong."""

import pkgutil
import subprocess
import sys

import rlir_ray
from rlir_ray.extras import EXTRAS


def test_no_module_of_rlir_ray_loads_ray_vllm_deepspeed_or_diffusers_or_needs_an_extra():
    modules = [
        name
        for _, name, _ in pkgutil.walk_packages(rlir_ray.__path__, "rlir_ray.")
        # Three files are made of a library.
        if name
        not in ("rlir_ray.__main__", "rlir_ray.learner.deepspeed", "rlir_ray.models.flow", "rlir_ray.samplers.vllm")
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
