"""What the README shows in Python runs as it stands, on fewer prompts and steps."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SMALL = ("prompts.num_train=16", "prompts.num_heldout=8", "evaluation.num_videos=1", "train.prompts_per_step=2")


@pytest.mark.slow
def test_the_pipeline_of_the_readme_runs(tmp_path):
    section = (ROOT / "README.md").read_text().split("## Use it from Python")[1]
    found = re.search(r"```python\n(.*?)```", section, re.S)
    assert found is not None
    program = found.group(1).replace(
        '"train.num_steps=10"', ", ".join(f'"{each}"' for each in (*SMALL, "train.num_steps=2"))
    )
    assert "train.num_steps=2" in program and len(program.splitlines()) <= 10
    # A process of its own, as a user's: it starts its own Ray.
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "from-python" / "policy" / "model.safetensors").is_file()
    last = done.stdout.splitlines()[-1]
    assert "from-python" in last and "'trained': 4" in last
