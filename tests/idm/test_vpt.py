"""The published VPT files: a pickle of kwargs and a torch file of weights."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rlir_ray.idm.vpt import VptInverseDynamics, load_vpt, read_kwargs

GOLDEN = Path(__file__).parent.parent / "golden"
CONFIG = GOLDEN / "vpt_idm_small.config.json"
WEIGHTS = GOLDEN / "vpt_idm_small.weights.safetensors"


def _published(folder: Path, **changes: Any) -> tuple[Path, Path]:
    """The golden model as OpenAI publishes its own."""
    config = json.loads(CONFIG.read_text())
    # Tuples and a temperature as text occur in the published files.
    net = {**config["net"], "img_shape": tuple(config["net"]["img_shape"]), **changes}
    arguments = {
        "net": {"args": net, "function": "a name that nothing imports"},
        "pi_head_opts": {"temperature": "2.0"},
    }
    (folder / "small.model").write_bytes(pickle.dumps({"version": 1361, "model": {"args": arguments}}, protocol=2))
    torch.save(load_file(WEIGHTS), folder / "small.weights")
    return folder / "small.model", folder / "small.weights"


def test_the_published_pair_gives_the_published_logits(tmp_path: Path) -> None:
    model_file, weights_file = _published(tmp_path)
    model = load_vpt(weights_file, model=model_file)
    golden = load_file(GOLDEN / "vpt_idm_small.io.safetensors")
    with torch.inference_mode():
        logits = model.logits(golden["img"])
    for head in ("buttons", "camera"):
        assert (logits[head] - golden[f"logits.{head}"]).abs().max() < 1e-4
        assert torch.equal(logits[head].argmax(-1), golden[f"action.{head}"])


def test_what_was_loaded_is_saved_and_opened_again(tmp_path: Path) -> None:
    model_file, weights_file = _published(tmp_path)
    load_vpt(weights_file, model=model_file).save_pretrained(tmp_path / "saved")
    again = VptInverseDynamics.from_pretrained(tmp_path / "saved")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in load_file(WEIGHTS).items())
    assert not again.training


def test_a_config_and_safetensors_load_as_the_pair_does(tmp_path: Path) -> None:
    model_file, _ = _published(tmp_path)
    (tmp_path / "published.json").write_text(json.dumps(pickle.loads(model_file.read_bytes())))
    for config in (CONFIG, tmp_path / "published.json"):
        assert load_vpt(WEIGHTS, config=config).config["net"]["hidsize"] == 64


def test_weights_of_another_size_are_named(tmp_path: Path) -> None:
    model_file, weights_file = _published(tmp_path, hidsize=32)
    with pytest.raises(ValueError, match=r"of another shape: net\.img_process\.linear\.layer\.weight \[64, 256\]"):
        load_vpt(weights_file, model=model_file)


def test_another_layout_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.model").write_bytes(pickle.dumps({"model": {"args": {}}}))
    with pytest.raises(ValueError, match=r"must hold model\.args\.net\.args"):
        read_kwargs(tmp_path / "x.model")
    with pytest.raises(ValueError, match="give exactly one"):
        load_vpt(WEIGHTS)
    with pytest.raises(ValueError, match="readable JSON"):
        load_vpt(WEIGHTS, config=WEIGHTS)


def test_a_network_that_is_none_of_ours_is_refused(tmp_path: Path) -> None:
    for changes in (
        {"recurrence_type": "lstm"},
        {"attention_memory_size": 256},
        {"attention_mask_style": "clipped_causal"},
    ):
        model_file, weights_file = _published(tmp_path, **changes)
        with pytest.raises(ValueError, match=f"net.{next(iter(changes))} must"):
            load_vpt(weights_file, model=model_file)
