"""MineWorld's checkpoints against outputs of the published code (tests/golden)."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlir_ray.models.tokenizer import FrameTokenizer
from rlir_ray.published.mineworld import load_mineworld, transformer_settings

GOLDEN = Path(__file__).parent.parent / "golden"
LM, LM_CONFIG = GOLDEN / "mineworld_lm_small.ckpt", GOLDEN / "mineworld_lm_small.config.json"
VQ, VQ_CONFIG = GOLDEN / "mineworld_vq_small.ckpt", GOLDEN / "mineworld_vq_small_cfg" / "config.json"


def test_published_weights_give_the_published_logits() -> None:
    llama = load_mineworld(LM, LM_CONFIG).llama
    golden = load_file(GOLDEN / "mineworld_lm_small.io.safetensors")
    assert llama is not None
    with torch.inference_mode():
        logits = llama(golden["input_ids"]).logits
    assert (logits - golden["logits"]).abs().max() < 1e-4


def test_published_tokenizer_gives_the_published_tokens_and_pixels() -> None:
    vq_model = load_mineworld(VQ, VQ_CONFIG).vq_model
    golden = load_file(GOLDEN / "mineworld_vq_small.io.safetensors")
    assert vq_model is not None
    tokenizer = FrameTokenizer(vq_model, height=32, width=48)
    with torch.inference_mode():
        tokens = tokenizer.nearest_codes(tokenizer.latents(golden["pixels"]))
        pixels = tokenizer.pixels(tokenizer.lookup(tokens))
    assert torch.equal(tokens, golden["tokens"].flatten(1))
    assert (pixels - golden["decoded"]).abs().max() < 1e-4


def _whole(folder: Path, **changes: torch.Tensor | None) -> tuple[Path, Path]:
    """A checkpoint of both models with its YAML as published, and the VQ config where the repository has it."""
    state = torch.load(LM, weights_only=True)["state_dict"]
    state |= {f"tokenizer.{name}": value for name, value in torch.load(VQ, weights_only=True)["state_dict"].items()}
    for name, value in changes.items():
        del state[name]
        if value is not None:
            state[name] = value
    checkpoint, config = folder / "checkpoints" / "300M_16f.ckpt", folder / "configs" / "300M_16f.yaml"
    for place in (checkpoint.parent / "vae", config.parent):
        place.mkdir(parents=True)
    torch.save({"state_dict": state}, checkpoint)
    (checkpoint.parent / "vae" / "config.json").write_text(VQ_CONFIG.read_text())
    llama = json.loads(LM_CONFIG.read_text()) | {
        "torch_dtype": "bfloat16",
        "token_num": 395,
        "image_num": 384,
        "frame": 3,
    }
    vae = {"config_path": "checkpoints/vae/config.json", "ckpt_path": "checkpoints/vae/vae.ckpt"}
    parameters = {
        "tokenizer_config": {"target": "vae.VAE", "params": vae},
        "transformer_config": {"target": "transformers.LlamaConfig", "params": llama},
    }
    config.write_text(json.dumps({"model": {"target": "lvm.LlamaLVM", "params": parameters}}))
    return checkpoint, config


def test_the_published_layout_holds_both_models(tmp_path: Path) -> None:
    found = load_mineworld(*_whole(tmp_path))
    assert found.llama is not None and found.vq_model is not None
    assert found.llama.config.tokens_per_frame == 384 and not hasattr(found.llama.config, "image_num")


def test_missing_and_misshaped_tensors_are_listed(tmp_path: Path) -> None:
    head, norm = "transformer.lm_head.weight", "transformer.model.norm.weight"
    checkpoint, config = _whole(tmp_path, **{head: None, norm: torch.ones(63)})
    with pytest.raises(
        ValueError, match=r"1 missing: lm_head\.weight and 1 of .* model\.norm\.weight \[63\] .* \[64\]"
    ):
        load_mineworld(checkpoint, config)


def test_extra_tensors_are_named_in_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = torch.load(LM, weights_only=True)["state_dict"] | {"transformer.model.causal_mask": torch.ones(2)}
    torch.save({"state_dict": state}, tmp_path / "lm.ckpt")
    with caplog.at_level(logging.WARNING):
        assert load_mineworld(tmp_path / "lm.ckpt", LM_CONFIG).llama is not None
    assert "skipped: 1 tensors that the world model does not have: model.causal_mask" in caplog.text


def test_files_of_another_layout_are_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"weights": torch.ones(2)}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"must hold transformer\.\* or tokenizer\.model\.\*, got weights"):
        load_mineworld(tmp_path / "other.ckpt", LM_CONFIG)
    with pytest.raises(ValueError, match="published transformer_config, got no hidden_size"):
        load_mineworld(LM, VQ_CONFIG)
    with pytest.raises(ValueError, match="--tokenizer-config"):
        load_mineworld(VQ, LM_CONFIG)
    (tmp_path / "broken.yaml").write_text("model: [")
    with pytest.raises(ValueError, match="readable YAML or JSON"):
        load_mineworld(LM, tmp_path / "broken.yaml")


def test_the_published_configs_inner_parts_are_found() -> None:
    settings = {"hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 80}
    outer = {"transformer_config": {"target": "transformers.LlamaConfig", "params": settings}}
    for content in (settings, outer, {"model": {"params": outer}}):
        assert transformer_settings(content, "c.yaml") == settings
