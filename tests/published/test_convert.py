"""`convert`: folders that the libraries open without our code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlir_ray.cli.commands import main
from rlir_ray.idm.vpt import VptInverseDynamics
from rlir_ray.published.convert import checksum_line

GOLDEN = Path(__file__).parents[1] / "golden"
LM = ["mineworld", "--checkpoint", str(GOLDEN / "mineworld_lm_small.ckpt")]
LM_CONFIG = ["--config", str(GOLDEN / "mineworld_lm_small.config.json")]

# Run where nothing of ours can be imported.
OPEN_ALONE = """
import sys, torch, safetensors.torch
from transformers import AutoModelForCausalLM
from diffusers import VQModel
llama = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
VQModel.from_pretrained(sys.argv[1], subfolder="tokenizer")
golden = safetensors.torch.load_file(sys.argv[2])
with torch.inference_mode():
    print(float((llama(golden["input_ids"]).logits - golden["logits"]).abs().max()))
assert "rlir_ray" not in sys.modules
"""


def test_a_checkpoint_of_both_becomes_folders_that_the_libraries_open(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = torch.load(GOLDEN / "mineworld_lm_small.ckpt", weights_only=True)["state_dict"]
    tokenizer = torch.load(GOLDEN / "mineworld_vq_small.ckpt", weights_only=True)["state_dict"]
    torch.save({"state_dict": state | {f"tokenizer.{k}": v for k, v in tokenizer.items()}}, tmp_path / "both.ckpt")
    vq_config = str(GOLDEN / "mineworld_vq_small_cfg" / "config.json")
    command = ["mineworld", "--checkpoint", str(tmp_path / "both.ckpt"), *LM_CONFIG, "--tokenizer-config", vq_config]
    main(["convert", *command, "--out", str(tmp_path / "out")])
    assert f"models.tokenizer={tmp_path / 'out' / 'tokenizer'}" in capsys.readouterr().out
    modes = {path.stat().st_mode for path in (tmp_path / "out").rglob("*.*")}
    assert len(modes) == 1
    script = tmp_path / "open.py"
    script.write_text(OPEN_ALONE)
    golden = str(GOLDEN / "mineworld_lm_small.io.safetensors")
    done = subprocess.run(
        [sys.executable, script, tmp_path / "out", golden], check=True, capture_output=True, text=True, cwd=tmp_path
    )
    assert float(done.stdout.split()[-1]) < 1e-4


def test_a_tokenizer_alone_goes_to_the_folder_itself(tmp_path: Path) -> None:
    from diffusers import VQModel

    config = str(GOLDEN / "mineworld_vq_small_cfg" / "config.json")
    checkpoint = str(GOLDEN / "mineworld_vq_small.ckpt")
    main(["convert", "mineworld", "--checkpoint", checkpoint, "--config", config, "--out", str(tmp_path / "vq")])
    weights = VQModel.from_pretrained(tmp_path / "vq").state_dict()
    published = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(weights[name.removeprefix("model.")], value) for name, value in published.items())


def test_a_vpt_model_becomes_a_folder_of_ours(tmp_path: Path) -> None:
    weights = str(GOLDEN / "vpt_idm_small.weights.safetensors")
    config = str(GOLDEN / "vpt_idm_small.config.json")
    main(["convert", "vpt-idm", "--config", config, "--weights", weights, "--out", str(tmp_path / "idm")])
    golden = load_file(GOLDEN / "vpt_idm_small.io.safetensors")
    with torch.inference_mode():
        logits = VptInverseDynamics.from_pretrained(tmp_path / "idm").logits(golden["img"])
    assert (logits["buttons"] - golden["logits.buttons"]).abs().max() < 1e-4


def test_bad_input_ends_with_one_line_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "out")]
    (tmp_path / "half.ckpt").write_bytes((GOLDEN / "mineworld_lm_small.ckpt").read_bytes()[:5000])
    for command, cause in (
        ([*LM[:2], str(tmp_path / "half.ckpt"), *LM_CONFIG], "must be whole"),
        ([*LM, "--config", str(GOLDEN / "vpt_idm_small.config.json")], "transformer_config"),
        (["vpt-idm", "--model", str(GOLDEN / "mineworld_lm_small.ckpt"), "--weights", "w"], "whole pickle|plain"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["convert", *command, *out])
        (line,) = capsys.readouterr().err.splitlines()
        assert ended.value.code == 2
        assert any(part in line for part in cause.split("|"))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["half.ckpt"]


def test_a_folder_with_content_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(SystemExit):
        main(["convert", *LM, *LM_CONFIG, "--out", str(tmp_path)])
    assert "--out must be a new folder" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == "kept"


def test_the_checksum_of_a_published_file_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert checksum_line(tmp_path / "model.ckpt") == f"sha256 of model.ckpt: {digest}"
