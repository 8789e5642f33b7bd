"""`convert ivideogpt`: folders from published folders, and one line for any other folder."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlir_ray.cli.commands import main
from rlir_ray.models.autoregressive import WorldModel
from rlir_ray.models.checkpoints import open_diffusers_model
from rlir_ray.models.ivideogpt_sequences import IvideogptSequences
from rlir_ray.models.ivideogpt_tokenizer import IvideogptTokenizer
from rlir_ray.models.ivideogpt_transformer import IvideogptTransformer
from rlir_ray.run.resolved import resolve
from tests.world import MakeConfig

FOLDER = Path(__file__).parents[1] / "golden" / "ivideogpt"
WEIGHTS = {"tokenizer": "diffusion_pytorch_model.safetensors", "transformer": "model.safetensors"}
State = dict[str, Tensor]


def convert(folder: Path, out: Path) -> None:
    main(["convert", "ivideogpt", str(folder), "--out", str(out)])


def write(
    folder: Path, place: str = "tokenizer", change: Callable[[State], State] | None = None, **settings: object
) -> Path:
    """Write the published folder with other weights or settings of the model at `place`."""
    for name, weights in WEIGHTS.items():
        (folder / name).mkdir(parents=True)
        for file in ("config.json", weights):
            shutil.copyfile(FOLDER / name / file, folder / name / file)
    config = folder / place / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))
    if change is not None:
        save_file(change(load_file(FOLDER / place / WEIGHTS[place])), folder / place / WEIGHTS[place])
    return folder


def test_a_published_folder_becomes_a_tokenizer_and_a_transformer_with_actions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(FOLDER, tmp_path / "out")
    said = capsys.readouterr().out
    assert f"compressive tokenizer, 0.1 M parameters: {tmp_path}/out/tokenizer\n" in said
    assert f"\nworld model, 0.0 M parameters: {tmp_path}/out/transformer\n" in said
    for place, weights in WEIGHTS.items():
        digest = hashlib.sha256((FOLDER / place / weights).read_bytes()).hexdigest()
        assert f"sha256 of {weights}: {digest}" in said
    golden = load_file(FOLDER / "io.safetensors")
    tokenizer = open_diffusers_model(IvideogptTokenizer, tmp_path / "out" / "tokenizer", "the tokenizer")
    transformer, form = IvideogptTransformer.open(tmp_path / "out" / "transformer"), IvideogptSequences.of(tokenizer)
    with torch.inference_mode():
        ids = form.sequence(*tokenizer.tokenize(golden["pixels_u8"].float() / 255)).input_ids
        actions, positions = form.read_actions(golden["actions"]), form.action_positions(ids.shape[1])
        logits = transformer.logits(ids, actions, positions)[:, -34:]
    assert torch.equal(ids, golden["tokenize.ids"].long())
    assert float((logits - golden["forward.logits_last_frames"]).abs().max()) < 1e-4


def test_a_written_folder_is_read_again_with_the_same_weights(tmp_path: Path) -> None:
    convert(FOLDER, tmp_path / "first")
    convert(tmp_path / "first", tmp_path / "second")
    for place, weights in WEIGHTS.items():
        first, second = (load_file(tmp_path / name / place / weights) for name in ("first", "second"))
        published = {name.removeprefix("llm."): value for name, value in load_file(FOLDER / place / weights).items()}
        assert first.keys() == second.keys() == published.keys()
        assert all(
            torch.equal(first[name], each) and torch.equal(second[name], each) for name, each in published.items()
        )


def test_a_transformer_without_actions_becomes_a_llama(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def without_actions(state: State) -> State:
        return {name.removeprefix("llm."): value for name, value in state.items() if name.startswith("llm.")}

    convert(write(tmp_path / "in", "transformer", without_actions), tmp_path / "out")
    assert "world model without actions, 0.0 M parameters" in capsys.readouterr().out
    from transformers import AutoModelForCausalLM

    llama = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "transformer")
    published = load_file(FOLDER / "transformer" / WEIGHTS["transformer"])
    assert all(torch.equal(value, published[f"llm.{name}"]) for name, value in llama.state_dict().items())
    with pytest.raises(ValueError, match=r"must have action_size in its config.json, got none"):
        IvideogptTransformer.open(tmp_path / "out" / "transformer")


def test_a_transformer_is_no_policy_of_a_run(tmp_path: Path, make_config: MakeConfig) -> None:
    convert(FOLDER, tmp_path / "out")
    rule = "a policy must have sequences of frames and action tokens, got sequence='ivideogpt'"
    with pytest.raises(ValueError, match=rule):
        WorldModel.from_pretrained(tmp_path / "out" / "transformer")
    with pytest.raises(ValueError, match=rule):
        resolve(make_config(f"models.policy={tmp_path / 'out' / 'transformer'}"))


def test_other_folders_are_refused_with_the_first_wrong_tensor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def without(name: str) -> Callable[[State], State]:
        return lambda state: {each: value for each, value in state.items() if each != name}

    def added(name: str, value: Tensor) -> Callable[[State], State]:
        return lambda state: state | {name: value}

    half = write(tmp_path / "half")
    shutil.rmtree(half / "transformer")
    for folder, message in (
        (write(tmp_path / "a", change=without("quantize.embedding.weight")), "1 missing: quantize.embedding.weight"),
        (
            write(tmp_path / "b", change=added("quant_conv.bias", torch.zeros(5))),
            r"1 of another shape: quant_conv.bias \[5\] instead of \[8\]",
        ),
        (write(tmp_path / "c", "transformer", without("llm.lm_head.weight")), "1 missing: lm_head.weight"),
        (write(tmp_path / "d", "transformer", without("action_linear.bias")), "1 missing: action_linear.bias"),
        (
            write(tmp_path / "e", "transformer", added("reward_linear.bias", torch.zeros(1))),
            "1 unexpected: reward_linear.bias",
        ),
        (
            write(tmp_path / "f", "transformer", added("action_linear.bias", torch.full((32,), torch.nan))),
            "NaN or infinity in action_linear.bias",
        ),
        (
            write(tmp_path / "g", _class_name="CompressiveVQModelFSQ"),
            "iVideoGPT's tokenizer must be a CompressiveVQModel, got CompressiveVQModelFSQ",
        ),
        (
            write(tmp_path / "h", dyn_fsq_levels=12),
            "must hold the arguments of IvideogptTokenizer, got: .*unexpected keyword argument",
        ),
        (
            write(tmp_path / "i", "transformer", vocab_size=163),
            "must be a llama with vocab_size=162, the ids of its tokenizer, got llama with 163",
        ),
        (half, "must hold tokenizer/config.json and .* got no transformer/config.json in"),
        (FOLDER / "tokenizer", "got no tokenizer/config.json in"),
    ):
        with pytest.raises(SystemExit):
            convert(folder, tmp_path / "out")
        said = capsys.readouterr().err
        assert len(said.strip().splitlines()) == 1 and re.search(message, said), said
        assert not (tmp_path / "out").exists() and not (tmp_path / "out.part").exists()
