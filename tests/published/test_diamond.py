"""`convert diamond`: folders from a published agent, and one line for any other file."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlir_ray.cli.commands import main
from rlir_ray.models.diamond import DiamondWorldModel
from rlir_ray.models.pixel_codec import PixelCodec
from tests.models.test_diamond import PREFIX, SETTINGS, WEIGHTS

OTHER_PARTS = {"rew_end_model.lstm.weight": torch.zeros(2, 2), "actor_critic.bias": torch.full((2,), torch.nan)}


@pytest.fixture
def state() -> dict[str, Tensor]:
    return load_file(WEIGHTS)


def test_a_published_agent_becomes_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], state: dict[str, Tensor]
) -> None:
    torch.save(state | OTHER_PARTS, tmp_path / "Game.pt")
    out = tmp_path / "game"
    main(["convert", "diamond", str(tmp_path / "Game.pt"), "--out", str(out)])
    said = capsys.readouterr().out
    assert "world model, 0.1 M parameters, 6 actions" in said
    assert f"(models.policy={out / 'world_model'})" in said and f"(models.tokenizer={out / 'pixels'})" in said
    model = DiamondWorldModel.from_pretrained(out / "world_model")
    for name, value in SETTINGS["inner_model"].items():
        assert model.config[name] == value, name
    assert (model.config["height"], model.config["width"]) == (64, 64)
    assert model.state_dict().keys() == {name.removeprefix(PREFIX) for name in state}
    assert all(torch.equal(value, state[PREFIX + name]) for name, value in model.state_dict().items())
    assert PixelCodec.from_pretrained(out / "pixels").latent_shape == (3, 64, 64)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Game.pt", "game"]


def test_half_precision_stays_half(tmp_path: Path, state: dict[str, Tensor]) -> None:
    save_file({name: value.half() for name, value in state.items()}, tmp_path / "half.safetensors")
    main(["convert", "diamond", str(tmp_path / "half.safetensors"), "--out", str(tmp_path / "out")])
    (path,) = (tmp_path / "out" / "world_model").glob("*.safetensors")
    assert {value.dtype for value in load_file(path).values()} == {torch.float16}


class Code:
    """A pickle of it would make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return os.mkdir, (self.folder,)


def without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if key != PREFIX + name}


def test_other_files_are_refused_with_the_first_wrong_tensor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], state: dict[str, Tensor]
) -> None:
    norm, added = "unet.d_blocks.1.resblocks.0.norm1.linear.bias", PREFIX + "noise_cond_emb.weight"
    for content, message in (
        (OTHER_PARTS, r"must hold tensors named denoiser.inner_model.\*, got rew_end_model.lstm.weight first"),
        (without(state, norm), rf"must hold {PREFIX}{norm} \[16\], got none"),
        (state | {PREFIX + norm: torch.zeros(8)}, rf"must hold {PREFIX}{norm} \[16\], got \[8\]"),
        (without(state, "act_emb.0.weight"), r"act_emb.0.weight with 2 dimensions, got none"),
        (state | {PREFIX + "conv_in.weight": torch.zeros(8, 3, 3, 3)}, "got: cond_channels must be a multiple"),
        (state | {PREFIX + "conv_out.bias": torch.zeros(3).long()}, "conv_out.bias in floating point, got torch.int64"),
        (state | {PREFIX + "conv_out.bias": torch.tensor([0, torch.nan, 0])}, "NaN or infinity in conv_out.bias"),
        (state | {added: torch.zeros(1, 16)}, rf"these tensors alone, got {added} too"),
        ({"agent": Code(tmp_path / "ran")}, "must hold tensors and plain containers only, got .*mkdir"),
    ):
        torch.save(content, tmp_path / "Game.pt")
        with pytest.raises(SystemExit):
            main(["convert", "diamond", str(tmp_path / "Game.pt"), "--out", str(tmp_path / "out")])
        said = capsys.readouterr().err
        assert len(said.strip().splitlines()) == 1
        assert re.search(message, said), said
        assert [path.name for path in tmp_path.iterdir()] == ["Game.pt"]
