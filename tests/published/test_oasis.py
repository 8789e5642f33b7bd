"""`convert oasis`: folders from published files, and one line for any other file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlir_ray.cli.commands import main
from rlir_ray.models.oasis import OasisAutoencoder, OasisWorldModel
from rlir_ray.published.oasis import load_oasis
from tests.models.test_oasis import CONFIG, WEIGHTS


def convert(out: Path, dit: Path = WEIGHTS["dit"], vae: Path = WEIGHTS["vae"], config: Path = CONFIG) -> None:
    arguments = ["--dit", str(dit), "--vae", str(vae), "--config", str(config), "--out", str(out)]
    main(["convert", "oasis", *arguments])


def test_published_files_become_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert(tmp_path / "oasis")
    assert f"autoencoder, 0.2 M parameters: {tmp_path / 'oasis' / 'autoencoder'}" in capsys.readouterr().out
    world_model = OasisWorldModel.from_pretrained(tmp_path / "oasis" / "world_model")
    autoencoder = OasisAutoencoder.from_pretrained(tmp_path / "oasis" / "autoencoder")
    for model, part in ((world_model, "dit"), (autoencoder, "vae")):
        held = {name: value for name, value in load_file(WEIGHTS[part]).items() if "rotary" not in name}
        assert held.keys() == model.state_dict().keys()
        assert all(torch.equal(value, held[name]) for name, value in model.state_dict().items())


def test_any_names_of_the_shared_rotary_tensors_are_read(tmp_path: Path) -> None:
    state = load_file(WEIGHTS["dit"])
    across, along = state.pop("blocks.0.s_attn.rotary_emb.freqs"), state.pop("blocks.0.t_attn.rotary_emb.freqs")
    other = state | {"spatial_rotary_emb.freqs": across, "temporal_rotary_emb.freqs": along}
    torch.save(other | {"blocks.1.t_attn.rotary_emb.freqs": along}, tmp_path / "oasis.pt")
    wanted = load_oasis("dit", WEIGHTS["dit"], CONFIG).state_dict()
    found = load_oasis("dit", tmp_path / "oasis.pt", CONFIG).state_dict()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_half_precision_stays_half(tmp_path: Path) -> None:
    save_file({name: value.half() for name, value in load_file(WEIGHTS["dit"]).items()}, tmp_path / "half.safetensors")
    convert(tmp_path / "out", dit=tmp_path / "half.safetensors")
    (path,) = (tmp_path / "out" / "world_model").glob("*.safetensors")
    assert {value.dtype for value in load_file(path).values()} == {torch.float16}


def test_other_files_are_refused_with_the_first_wrong_tensor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = load_file(WEIGHTS["dit"])
    wide = state | {"external_cond.weight": torch.zeros(64, 26)}
    turned = state | {"blocks.0.s_attn.rotary_emb.freqs": torch.ones(4)}
    broken = state | {"final_layer.linear.bias": torch.full((16,), torch.nan)}
    for name, content in (("wide", wide), ("turned", turned), ("broken", broken)):
        save_file(content, tmp_path / f"{name}.safetensors")
    settings = json.loads(CONFIG.read_text())
    (tmp_path / "more.json").write_text(json.dumps({"dit": {**settings["dit"], "layers": 3}}))
    (tmp_path / "list.json").write_text("[]")
    for options, message in (
        ({"dit": tmp_path / "wide.safetensors"}, r"external_cond.weight \[64, 26\] instead of \[64, 25\]"),
        ({"dit": tmp_path / "turned.safetensors"}, "blocks.0.s_attn.rotary_emb.freqs .* must hold Oasis' rotary"),
        ({"dit": tmp_path / "broken.safetensors"}, "NaN or infinity in final_layer.linear.bias"),
        ({"dit": WEIGHTS["vae"]}, "missing: x_embedder.proj.weight"),
        ({"vae": WEIGHTS["dit"]}, "missing: patch_embed.proj.weight"),
        ({"config": tmp_path / "more.json"}, "unexpected keyword argument 'layers'"),
        ({"config": tmp_path / "list.json"}, "must map names to values, got a list"),
        ({"config": tmp_path / "none.json"}, "must be a readable JSON file"),
    ):
        with pytest.raises(SystemExit):
            convert(tmp_path / "out", **options)
        said = capsys.readouterr().err
        assert len(said.strip().splitlines()) == 1

        assert re.search(message, said), said
        assert not (tmp_path / "out").exists()
