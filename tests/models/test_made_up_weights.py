"""Nothing is made up: what a checkpoint lacks, has besides or has in another shape is named, whoever opens it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaForCausalLM

from rlir_ray.config import LoraConfig
from rlir_ray.idm.base import load_inverse_dynamics
from rlir_ray.idm.correlation_idm import CorrelationInverseDynamics
from rlir_ray.models.adapters import add_adapter, save_policy
from rlir_ray.models.autoencoder import FrameAutoencoder
from rlir_ray.models.autoregressive import WorldModel
from rlir_ray.models.flow import open_flow_model
from rlir_ray.models.tokenizer import FrameTokenizer
from tests.fakes import (
    tiny_autoencoder,
    tiny_flow_model,
    tiny_idm,
    tiny_tokenizer,
    tiny_world_model,
)

State = dict[str, Tensor]


def tiny_correlation_idm() -> CorrelationInverseDynamics:
    return CorrelationInverseDynamics(
        {
            "img_shape": [16, 16],
            "channels": 8,
            "hidden": 16,
            "reach": [1, 1],
            "num_temporal_blocks": 1,
            "temperature": 1.0,
        }
    )


OPENERS: dict[str, tuple[Callable[[], Any], Callable[[Path], Any]]] = {
    "policy": (tiny_world_model, WorldModel.from_pretrained),
    "flow policy": (tiny_flow_model, open_flow_model),
    "tokenizer": (tiny_tokenizer, FrameTokenizer.from_pretrained),
    "autoencoder": (tiny_autoencoder, FrameAutoencoder.from_pretrained),
    "vpt idm": (tiny_idm, load_inverse_dynamics),
    "correlation idm": (tiny_correlation_idm, load_inverse_dynamics),
}


def adapter_of(model: Any, folder: Path) -> None:
    """A saved adapter whose two sides are random."""
    add_adapter(model, LoraConfig(rank=2))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.normal_()
    save_policy(model, folder)


def open_adapter(make: Callable[[], Any]) -> Callable[[Path], None]:
    return lambda folder: add_adapter(make(), LoraConfig(), str(folder))


ADAPTERS = {"llama adapter": tiny_world_model, "flow adapter": tiny_flow_model}


def saved(kind: str, folder: Path) -> tuple[Path, Callable[[Path], Any]]:
    """The file of the weights in a new folder, and what opens the folder."""
    if kind in ADAPTERS:
        adapter_of(ADAPTERS[kind](), folder)
        opener: Callable[[Path], Any] = open_adapter(ADAPTERS[kind])
    else:
        make, opener = OPENERS[kind]
        make().save_pretrained(folder)
    opener(folder)
    (weights,) = folder.glob("*.safetensors")
    return weights, opener


def change(weights: Path, edit: Callable[[State], State]) -> None:
    save_file({name: value.contiguous() for name, value in edit(load_file(weights)).items()}, weights, {"format": "pt"})


def refusal(opener: Callable[[Path], Any], folder: Path) -> str:
    with pytest.raises(ValueError) as error:
        opener(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


KINDS = [*OPENERS, *ADAPTERS]


@pytest.mark.parametrize("kind", KINDS)
def test_prefixed_names_are_refused_with_the_names(kind: str, tmp_path: Path) -> None:
    weights, opener = saved(kind, tmp_path)
    change(weights, lambda state: {f"module.{name}": value for name, value in state.items()})
    text = refusal(opener, tmp_path)
    assert "must fit" in text and ("missing" in text or "module." in text)


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_that_is_missing_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    weights, opener = saved(kind, tmp_path)
    name = sorted(load_file(weights))[-1]
    change(weights, lambda state: {other: value for other, value in state.items() if other != name})
    assert name.removeprefix("base_model.model.") in refusal(opener, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_of_another_shape_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    weights, opener = saved(kind, tmp_path)
    name = sorted(load_file(weights))[-1]
    change(weights, lambda state: state | {name: torch.zeros(3, 3, 3)})
    assert name.removeprefix("base_model.model.").removesuffix(".weight") in refusal(opener, tmp_path)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "idm" not in kind])
def test_a_weight_that_nothing_takes_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    weights, opener = saved(kind, tmp_path)
    name = sorted(load_file(weights))[0].replace(".weight", "_more.weight")
    change(weights, lambda state: state | {name: torch.zeros(2)})
    assert name.removeprefix("base_model.model.") in refusal(opener, tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_that_is_not_finite_is_refused_by_name(kind: str, value: float, tmp_path: Path) -> None:
    weights, opener = saved(kind, tmp_path)
    name = sorted(load_file(weights))[0]

    def spoil(state: State) -> State:
        state[name].view(-1)[-1] = value
        return state

    change(weights, spoil)
    text = refusal(opener, tmp_path)
    assert "must be finite" in text and name.removeprefix("base_model.model.") in text


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_without_weights_is_refused(kind: str, tmp_path: Path) -> None:
    weights, opener = saved(kind, tmp_path)
    change(weights, lambda state: {})
    assert "must hold named tensors" in refusal(opener, tmp_path)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_with_other_parts_than_two_matrices_is_refused(kind: str, tmp_path: Path) -> None:
    weights, opener = saved(kind, tmp_path)
    name = sorted(load_file(weights))[0].replace(".lora_A.weight", ".lora_magnitude_vector.weight")
    change(weights, lambda state: state | {name: torch.ones(4)})
    assert "plain LoRA" in refusal(opener, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_cut_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    weights, opener = saved(kind, tmp_path)
    weights.write_bytes(weights.read_bytes()[:-10])
    assert "must be whole" in refusal(opener, tmp_path)


def test_tied_embeddings_are_not_missing(tmp_path: Path) -> None:
    llama = tiny_world_model().llama
    llama.config.tie_word_embeddings = True
    llama.tie_weights()
    WorldModel(llama).save_pretrained(tmp_path)
    change(tmp_path / "model.safetensors", lambda state: {n: v for n, v in state.items() if n != "lm_head.weight"})
    model = WorldModel.from_pretrained(tmp_path)
    torch.testing.assert_close(model.llama.lm_head.weight, llama.model.embed_tokens.weight)


def test_a_policy_in_several_files_opens(tmp_path: Path) -> None:
    model = tiny_world_model()
    model.llama.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again = WorldModel.from_pretrained(tmp_path)
    torch.testing.assert_close(again.llama.state_dict(), model.llama.state_dict())
    assert isinstance(again.llama, LlamaForCausalLM)


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("policy", "model_type", "qwen2"),
        ("policy", "qk_norm", True),
        ("flow policy", "num_registers", 4),
        ("vpt idm", "net", {"diff_mlp_embedding": True}),
    ],
)
def test_a_configuration_with_a_field_that_is_not_computed_is_refused_by_name(
    kind: str, field: str, value: Any, tmp_path: Path
) -> None:
    _, opener = saved(kind, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config[field] = config[field] | value if isinstance(value, dict) else value
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert (next(iter(value)) if isinstance(value, dict) else field) in refusal(opener, tmp_path)
