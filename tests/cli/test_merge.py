"""A saved adapter merged into its policy, by the command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rlir_ray.cli.commands import main
from rlir_ray.config import LoraConfig
from rlir_ray.families.merging import merge_adapter
from rlir_ray.models.adapters import add_adapter, has_adapter, save_policy
from rlir_ray.models.autoregressive import WorldModel
from rlir_ray.models.flow import open_flow_model
from tests.fakes import NUM_CODES, tiny_flow_model, tiny_world_model


def token_outputs(model: nn.Module) -> Tensor:
    length = 12 + 2 * (11 + 12)
    return model(torch.arange(2 * length).view(2, length) % NUM_CODES, 24)


def flow_outputs(model: nn.Module) -> Tensor:
    latents = torch.linspace(-1, 1, 2 * 2 * 4 * 6 * 8).view(2, 2, 4, 6, 8)
    return model(latents, torch.full((2, 2), 0.5), torch.ones(2, 2, 9, dtype=torch.int64))


FAMILIES: dict[str, tuple[Callable[[], Any], Callable[[Path], Any], Callable[[nn.Module], Tensor]]] = {
    "autoregressive": (tiny_world_model, WorldModel.from_pretrained, token_outputs),
    "flow": (tiny_flow_model, open_flow_model, flow_outputs),
}


def save_both(policy: Any, folder: Path, rank: int = 2) -> Any:
    """Save the policy, then a random adapter on it, scaled by alpha / rank = 3; return the policy with the adapter."""
    save_policy(policy, folder / "policy")
    add_adapter(policy, LoraConfig(rank=rank, alpha=3.0 * rank))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for name, weight in policy.named_parameters():
            if ".lora_" in name:
                weight.normal_(0, 0.1)
    save_policy(policy, folder / "adapter")
    return policy


def command(folder: Path) -> list[str]:
    return ["merge", *(f"--{name}={folder / name}" for name in ("policy", "adapter", "out"))]


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_policy_computes_what_policy_and_adapter_compute(family: str, tmp_path: Path, capsys: Any) -> None:
    make, open_policy, outputs = FAMILIES[family]
    adapted = save_both(make(), tmp_path)
    main(command(tmp_path))
    assert f"models.policy={tmp_path / 'out'}" in capsys.readouterr().out
    merged = open_policy(tmp_path / "out")
    assert not has_adapter(merged)
    with torch.no_grad():
        expected = outputs(adapted)
        torch.testing.assert_close(outputs(merged), expected, atol=1e-5, rtol=1e-5)
        assert (outputs(make()) - expected).abs().max() > 1e-2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "out", "policy"]
    files = ["config.json", *(path.name for path in (tmp_path / "policy").iterdir())]
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(files)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapter_of_another_policy_is_refused_and_nothing_is_written(family: str, tmp_path: Path, capsys: Any) -> None:
    make, _, _ = FAMILIES[family]
    save_both(make(), tmp_path)
    other = tiny_world_model(num_heads=2) if family == "autoregressive" else wide_flow_model()
    save_policy(other, tmp_path / "policy")
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(command(tmp_path))
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and "adapter" in error and "got" in error
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.part").exists()


def wide_flow_model() -> Any:
    from rlir_ray.models.flow import FlowWorldModel

    return FlowWorldModel(latent_channels=4, latent_height=6, latent_width=8, hidden_size=32, num_layers=2, num_heads=2)


@pytest.mark.parametrize(
    ("removed", "rule"),
    [
        ("policy/config.json", "--policy must hold a readable config.json"),
        ("policy/model.safetensors", "the policy must be whole"),
        ("adapter/adapter_config.json", "models.adapter must fit"),
        ("adapter/adapter_model.safetensors", "models.adapter must hold adapter_model.safetensors"),
        ("adapter", "--adapter must be an existing folder"),
        ("policy", "--policy must be an existing folder"),
    ],
)
def test_missing_files_are_named_in_one_line(removed: str, rule: str, tmp_path: Path) -> None:
    save_both(tiny_world_model(), tmp_path)
    (tmp_path / removed).rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=rule) as caught:
        merge_adapter(tmp_path / "out", policy=tmp_path / "policy", adapter=tmp_path / "adapter")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_folder_with_content_is_refused_and_an_empty_one_taken(tmp_path: Path) -> None:
    save_both(tiny_world_model(), tmp_path)
    folders = {"policy": tmp_path / "policy", "adapter": tmp_path / "adapter"}
    (tmp_path / "out").mkdir()
    merge_adapter(tmp_path / "out", **folders)
    before = load_file(tmp_path / "out" / "model.safetensors")
    with pytest.raises(ValueError, match="--out must be a new folder"):
        merge_adapter(tmp_path / "out", **folders)
    torch.testing.assert_close(load_file(tmp_path / "out" / "model.safetensors"), before)
