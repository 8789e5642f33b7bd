"""Rewards of several terms in the pools, also a term in another Python environment."""

from __future__ import annotations

import sys
import sysconfig
import textwrap
import venv
from pathlib import Path

import numpy as np
import pytest

from actors.pipeline import Pipeline
from actors.rollout.actor import build_sampler
from rlir_ray.config.load import load_config
from rlir_ray.data.prompts import encoded_real, prepare_prompts
from rlir_ray.evaluation.report import write_report
from rlir_ray.families import cells_of, make_objective, open_codec, open_policy
from rlir_ray.learner.step import Learner
from rlir_ray.learner.torch_engine import TorchEngine
from rlir_ray.local import train_local
from rlir_ray.rewards.base import RewardContext
from rlir_ray.rewards.construction import open_reward
from tests.world import MakeConfig

pytestmark = [pytest.mark.slow, pytest.mark.ray]

EVERY_TERM = """
reward:
  audit: warn
  combine: advantages
  terms:
  - {name: inverse}
  - {name: recorded, weight: 0.5, args: {error: mse, over: discounted}}
  - {name: motion, weight: 0.2}
  - {name: brightness, weight: 0.2, args: {tolerance: 0.5}}
  - {name: sharpness, weight: 0.2}
  - {name: context, weight: 0.1}
  - {name: smoothness, weight: 0.1, args: {jerk: 0}}
  - {name: "docs.examples.term:BrightnessTarget", weight: -0.1, args: {target: 0.9}}
  schedule: [{from_step: 1, rule: joint}]
prompts: {source: "docs.examples.source:Square", num_train: 24}
"""


def test_all_terms_train_in_the_pools_as_in_one_process(ray_cluster, make_config: MakeConfig, tmp_path: Path) -> None:
    plain, recipe = make_config(), tmp_path / "terms.yaml"
    recipe.write_text(f"base: {_saved(plain, tmp_path)}\n{EVERY_TERM}", encoding="utf-8")
    config = load_config(str(recipe))
    result = Pipeline(config).train()
    labels = ("inverse", "recorded", "motion", "brightness", "sharpness", "context", "smoothness", "BrightnessTarget")
    assert result.groups["trained"] == 8 and {f"term/{label}" for label in labels} <= result.metrics[1].keys()
    # Frames are compared with their own recorded future, through the codec: some error, but below that of noise.
    assert -0.5 < result.metrics[0]["term/recorded"] < 0 and result.metrics[0]["term/context"] < 0
    prompts = prepare_prompts(config, "train", open_codec(config), tmp_path)
    codec, policy = open_codec(config), open_policy(config)
    context = RewardContext(
        config=config,
        device="cpu",
        class_shares=None,
        open_codec=lambda: codec,
        cells=cells_of(config),
        real=lambda: encoded_real(prompts, codec),
    )
    engine = TorchEngine(policy, config.train, config.learner)
    learner = Learner(engine, make_objective(config, policy), config.train, config.learner)
    local = train_local(config, prompts.prompts, build_sampler(config), open_reward(context), learner)
    for here, pooled in zip(local, result.metrics, strict=True):
        for name in ("loss/policy", *(f"term/{label}" for label in labels)):
            assert pooled[name] == pytest.approx(here[name], rel=1e-4, abs=1e-6), name
    assert "recorded" in write_report(result.folder).read_text(encoding="utf-8")


def _saved(config, folder: Path) -> Path:
    from omegaconf import OmegaConf

    path = folder / "plain.yaml"
    OmegaConf.save(OmegaConf.create(config.to_dict()), path)
    return path


TERM = """
import numpy as np
import palette

class Palette:
    def score(self, clips):
        assert palette.VERSION == 2 and isinstance(clips.frames, np.ndarray)
        return clips.generated.mean((2, 3, 4)) * palette.VERSION
"""


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A second virtual environment, with version 2 of a package of which this one has version 1."""
    folder = tmp_path / "venv"
    venv.create(folder, with_pip=False)
    own = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    # Ray and numpy come from this environment: installing them again would take minutes.
    (own / "zz_shared.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n", encoding="utf-8")
    (own / "palette.py").write_text("VERSION = 2\n", encoding="utf-8")
    (own / "palette_term.py").write_text(textwrap.dedent(TERM), encoding="utf-8")
    return folder / "bin" / "python"


def test_a_term_runs_in_another_python_environment(ray_cluster, make_config: MakeConfig, environment: Path) -> None:
    terms = (
        "reward.terms=[{name: inverse}, {name: 'palette_term:Palette', weight: 0.01, runtime_env: "
        f"{{py_executable: '{environment}'}}}}]"
    )
    result = Pipeline(make_config(terms, "prompts.source=docs.examples.source:Square", "reward.audit=warn")).train()
    means = [step["term/Palette"] for step in result.metrics]
    assert result.groups["trained"] == 8 and np.isfinite(means).all() and min(means) > 0


def test_an_environment_without_the_term_ends_the_run_in_one_line(
    ray_cluster, make_config: MakeConfig, environment: Path
) -> None:
    terms = f"reward.terms=[{{name: 'of_nobody:Term', runtime_env: {{py_executable: '{environment}'}}}}]"
    with pytest.raises(RuntimeError, match="the term of_nobody:Term must start in its runtime_env") as refusal:
        Pipeline(make_config(terms, "prompts.source=docs.examples.source:Square", "reward.audit=warn")).train()
    assert "\n" not in str(refusal.value)
