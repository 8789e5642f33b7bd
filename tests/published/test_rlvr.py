"""`convert rlvr-world`: folders from published folders, and one line for any other folder."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlir_ray.cli.commands import main
from rlir_ray.models.autoregressive import WorldModel
from rlir_ray.models.checkpoints import open_diffusers_model
from rlir_ray.models.rlvr_codec import RlvrCodec
from rlir_ray.models.rlvr_compressive import RlvrCompressiveTokenizer
from rlir_ray.published.rlvr import FORMS

GOLDEN = Path(__file__).parents[1] / "golden"
FRAME, COMPRESSIVE = GOLDEN / "rlvr_frame", GOLDEN / "rlvr_compressive"
WEIGHTS = "diffusion_pytorch_model.safetensors"


def convert(folder: Path, out: Path) -> None:
    main(["convert", "rlvr-world", str(folder), "--out", str(out)])


def write(folder: Path, source: Path, state: Mapping[str, Tensor] | None = None, **settings: object) -> Path:
    """Write a tokenizer's folder as published, with other weights or settings."""
    folder.mkdir(parents=True)
    content = json.loads((source / "config.json").read_text()) | settings
    (folder / "config.json").write_text(json.dumps(content))
    save_file(dict(load_file(source / WEIGHTS) if state is None else state), folder / WEIGHTS)
    return folder


def write_transformer(folder: Path, vocab_size: int = 4633, max_shard_size: str = "1GB") -> dict[str, Tensor]:
    """Write a small transformer of the published form; return its weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8192,
        bos_token_id=vocab_size - 2,
        eos_token_id=vocab_size - 1,
        pad_token_id=vocab_size - 1,
    )
    llama = LlamaForCausalLM(config)
    llama.save_pretrained(folder, max_shard_size=max_shard_size)
    state: dict[str, Tensor] = llama.state_dict()
    return state


def test_a_frame_tokenizer_becomes_the_tokenizer_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert(FRAME, tmp_path / "out")
    said = capsys.readouterr().out
    assert f"frame tokenizer, 0.1 M parameters: {tmp_path}/out   (models.tokenizer={tmp_path}/out)" in said
    assert f"sha256 of {WEIGHTS}: {hashlib.sha256((FRAME / WEIGHTS).read_bytes()).hexdigest()}" in said
    golden = load_file(FRAME / "io.safetensors")
    codec = RlvrCodec.from_pretrained(tmp_path / "out", height=64, width=80)
    tokens = codec.encode(golden["pixels_u8"][0].permute(0, 2, 3, 1))
    assert torch.equal(tokens, golden["encode.ids"][0].long().flatten(1))
    assert not (tmp_path / "out.part").exists()


def test_a_compressive_tokenizer_keeps_its_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert(COMPRESSIVE, tmp_path / "out")
    assert "compressive tokenizer, 0.1 M parameters" in capsys.readouterr().out
    golden = load_file(COMPRESSIVE / "io.safetensors")
    model = open_diffusers_model(RlvrCompressiveTokenizer, tmp_path / "out", "the tokenizer")
    with torch.inference_mode():
        context_ids, ids = model.tokenize(golden["pixels_u8"].float() / 255)
    assert torch.equal(context_ids, golden["tokenize.context_ids"].long())
    assert torch.equal(ids, golden["tokenize.dynamics_ids"].long())


@pytest.mark.parametrize(("vocab_size", "name", "num_tokens"), [(4633, "single", 320), (9008, "multi", 80)])
def test_a_transformer_in_parts_becomes_a_llama_that_says_its_sequences(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], vocab_size: int, name: str, num_tokens: int
) -> None:
    state = write_transformer(tmp_path / "in" / "transformer", vocab_size, max_shard_size="200KB")
    assert len(list((tmp_path / "in" / "transformer").glob("*.safetensors"))) > 1
    write(tmp_path / "in" / "tokenizer", FRAME)
    convert(tmp_path / "in", tmp_path / "out")
    said = capsys.readouterr().out
    assert f"{name}-step world model, " in said and f"(models.tokenizer={tmp_path}/out/tokenizer)" in said
    from transformers import AutoModelForCausalLM

    llama = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "transformer")
    assert all(torch.equal(value, state[key]) for key, value in llama.state_dict().items())
    wanted = FORMS[f"{name}-step"]
    assert (wanted.shape.tokens_per_frame, WorldModel(llama).sequence.settings()) == (num_tokens, wanted.settings())
    assert llama.config.eos_token_id == vocab_size - 1
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        assert bool(llama(ids).logits.isfinite().all())


def test_half_precision_and_torch_files_are_read(tmp_path: Path) -> None:
    half = {name: value.bfloat16() for name, value in load_file(FRAME / WEIGHTS).items()}
    folder = write(tmp_path / "in", FRAME)
    (folder / WEIGHTS).unlink()
    torch.save(half, folder / "diffusion_pytorch_model.bin")
    convert(folder, tmp_path / "out")
    found = load_file(tmp_path / "out" / WEIGHTS)
    assert found.keys() == half.keys() and all(torch.equal(value, half[name]) for name, value in found.items())


def test_other_folders_are_refused_with_the_first_wrong_tensor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = load_file(FRAME / WEIGHTS)
    without = {name: value for name, value in state.items() if name != "quant_linear.bias"}
    wide = state | {"decoder.conv_out.bias": torch.zeros(4)}
    broken = state | {"encoder.conv_in.bias": torch.full((8,), torch.inf)}
    write_transformer(tmp_path / "other_size", 4634)
    write_transformer(tmp_path / "headless")
    weights = load_file(tmp_path / "headless" / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, tmp_path / "headless" / "model.safetensors")
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "config.json").write_text("[]")
    bare = write(tmp_path / "bare", FRAME)
    (bare / WEIGHTS).unlink()
    run = write(tmp_path / "run", FRAME)
    (run / WEIGHTS).unlink()
    torch.save({"weights": Path()}, run / "diffusion_pytorch_model.bin")
    for folder, message in (
        (write(tmp_path / "without", FRAME, without), "1 missing: quant_linear.bias"),
        (write(tmp_path / "wide", FRAME, wide), r"1 of another shape: decoder.conv_out.bias \[4\] instead of \[3\]"),
        (write(tmp_path / "more", FRAME, state | {"x": torch.ones(1)}), "1 unexpected: x"),
        (write(tmp_path / "broken", FRAME, broken), "NaN or infinity in encoder.conv_in.bias"),
        (
            write(tmp_path / "swapped", COMPRESSIVE, _class_name="CNNFSQModel256"),
            "must hold the arguments of RlvrTokenizer, got: .*unexpected keyword argument",
        ),
        (write(tmp_path / "vq", FRAME, _class_name="VQModel"), "must be of a CNNFSQModel256.* got VQModel in"),
        (tmp_path / "other_size", "vocab_size of RLVR-World's transformers must be 4633 or 9008, got 4634"),
        (tmp_path / "headless", "1 missing: lm_head.weight"),
        (tmp_path / "list", "must map names to values, got a list"),
        (tmp_path / "none", "must hold a config.json, itself or in tokenizer or transformer, got none"),
        (bare, "got no diffusion_pytorch_model.safetensors in"),
        (run, "must hold tensors and plain containers only, got pathlib"),
    ):
        with pytest.raises(SystemExit):
            convert(folder, tmp_path / "out")
        said = capsys.readouterr().err
        assert len(said.strip().splitlines()) == 1 and re.search(message, said), said
        assert not (tmp_path / "out").exists() and not (tmp_path / "out.part").exists()


def test_a_second_folder_that_is_refused_leaves_nothing_of_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "in" / "tokenizer", FRAME)
    write_transformer(tmp_path / "in" / "transformer", 16)
    with pytest.raises(SystemExit):
        convert(tmp_path / "in", tmp_path / "out")
    assert "got 16 in" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_a_written_folder_has_the_published_names_and_weights_and_is_read_again(tmp_path: Path) -> None:
    convert(FRAME, tmp_path / "first")
    convert(tmp_path / "first", tmp_path / "second")
    first, second = (load_file(tmp_path / name / WEIGHTS) for name in ("first", "second"))
    published = load_file(FRAME / WEIGHTS)
    assert first.keys() == second.keys() == published.keys()
    assert all(
        torch.equal(first[name], value) and torch.equal(second[name], value) for name, value in published.items()
    )
