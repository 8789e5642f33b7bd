"""Keys, metrics, files and modules that pages name exist."""

import argparse
import ast
import importlib.util
import re
from pathlib import Path

import pytest

from actors.learner.actor import build_learner
from actors.reward.replica import build_reward
from actors.rollout.actor import build_sampler
from rlir_ray.algorithm.ledger import END_STATES
from rlir_ray.cli.parser import build_parser
from rlir_ray.config import AXIS_MATCHES, Config
from rlir_ray.config.load import keys
from rlir_ray.config.schema import sections
from rlir_ray.local import train_local
from tests.docs.pages import NAMES, ROOT, inline, text_of
from tests.world import flow_overrides, tiny_config, tiny_flow_prompt_set, tiny_prompt_set

KEYS = keys()
SECTIONS = {key.partition(".")[0] for key in KEYS if "." in key}
METRICS = "docs/reference/metrics.md"
# Sums that the learner logs under other names: quantiles, the effective sample size.
INTERNAL = {"ratio/histogram", "correction/mean_square"}


@pytest.mark.parametrize("name", NAMES)
def test_keys_exist(name):
    for code in inline(name):
        for key in re.findall(r"(?<![\w./])[a-z]+\.[a-z_.]*[a-z_](?![\w/(])", code):
            section, _, rest = key.partition(".")
            if section in SECTIONS and rest.rpartition(".")[2] not in ("json", "jsonl", "log", "md", "py", "yaml"):
                is_key = any(key == known or key.startswith(f"{known}.") for known in KEYS)
                assert is_key or key in sections(Config), key


@pytest.mark.parametrize("name", NAMES)
def test_files_and_modules_exist(name):
    for code in inline(name):
        for path in re.findall(r"^(?:rlir_ray|actors|deploy|benchmarks|tests|docs)/[\w./]*$", code):
            assert (ROOT / path).exists(), path
        for module in re.findall(r"\b(?:rlir_ray|actors)(?:\.[a-z_]+)+", code):
            parent, _, last = module.rpartition(".")
            # The last part may be a module or a name in one.
            found = importlib.util.find_spec(module if _is_folder(module) else parent)
            assert found is not None and found.origin is not None, module
            if found.name == parent:
                assert re.search(rf"\b{last}\b", Path(found.origin).read_text(encoding="utf-8")), module


def _is_folder(module):
    path = ROOT / module.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


@pytest.fixture(scope="module")
def documented():
    """Names of the page, those of the evaluation apart."""
    table = text_of(METRICS).partition("## Evaluation")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    names = [name.replace("LABEL", "inverse") for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    assert len(names) == len(set(names)) > 40
    axes = [name.replace("AXIS", kind) for name in names if "AXIS" in name for kind in AXIS_MATCHES]
    # An evaluation gives these, and no step of a run without one.
    judged = {name for name in names if name.startswith(("heldout/", "sign/"))}
    return {name for name in names if "AXIS" not in name} - judged | set(axes)


def written_in_code():
    """Names of metrics that the code spells out."""
    rooms = ("time", "ratio", "correction", "loss", "nft", "matching", "dpo", "rwr", "overlap", "object_store")
    prefix = f"({'|'.join(rooms)}|staleness|throughput|updates|follow|credit)"
    sources = [*ROOT.glob("rlir_ray/**/*.py"), *ROOT.glob("actors/**/*.py")]
    found = {f"groups/{state}" for state in END_STATES}
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and re.fullmatch(rf"{prefix}/[a-z_0-9]+", str(node.value)):
                found.add(node.value)
    return found - INTERNAL


def local_metrics(config, prompts):
    return train_local(config, prompts, build_sampler(config), build_reward(config, None), build_learner(config))[-1]


@pytest.fixture(scope="module")
def logged(checkpoints, tmp_path_factory):
    """Names that tiny runs of both families and of all corrections log."""
    flow = flow_overrides(checkpoints)
    runs = [
        ("train.kl_coefficient=0.1",),
        ("train.max_staleness=1",),
        ("train.max_staleness=1", "train.off_policy.importance=none"),
        (*flow, "train.objective=nft", "train.max_advantage=5", "flow.shared_noise=false", "train.kl_coefficient=0.1"),
    ]
    names = set()
    for overrides in runs:
        config = tiny_config(checkpoints, tmp_path_factory.mktemp("runs"), *overrides, "train.num_steps=1")
        prompts = (tiny_flow_prompt_set if "policy.family=flow" in overrides else tiny_prompt_set)("train").prompts
        names |= local_metrics(config, prompts).keys()
    return names


def test_every_metric_that_a_run_logs_is_documented(documented, logged):
    assert logged >= {"reward/mean", "ratio/q50", "nft/drift", "ratio/clip_fraction", "effective_sample_size"}
    assert logged - documented == set()


def test_every_metric_that_the_code_spells_out_is_documented(documented):
    assert written_in_code() - documented == set()


def test_every_documented_metric_is_logged(documented, logged):
    written = written_in_code() | {f"time/{stage}_idle_s" for stage in ("sample", "score", "learn")}
    assert {name for name in documented - logged - written if not name.startswith("rule/")} == set()


def test_the_generated_pages_hold_every_key_and_every_command():
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs/hooks.py")
    assert spec is not None and spec.loader is not None
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    configuration, commands = hooks.configuration_page(), hooks.cli_page()
    assert [key for key in KEYS if f"`{key}`" not in configuration] == []
    (subparsers,) = (each for each in build_parser()._actions if isinstance(each, argparse._SubParsersAction))
    missing = [name for name in subparsers.choices if f"## {name}\n" not in commands]
    assert missing == [] and "## pretrain flow\n" in commands and "--hidden-size" in commands
