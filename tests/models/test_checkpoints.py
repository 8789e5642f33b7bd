from __future__ import annotations

import collections
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from rlir_ray.models.checkpoints import assign_weights, read_plain_pickle, read_state_dict


class Touch:
    """Unpickled, it makes a file: the code that a stranger's pickle may run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("protocol", range(2, 6))
def test_plain_values_are_read(tmp_path: Path, protocol: int) -> None:
    content = {"net": {"a": [1, 2.5, None, True], "b": (3, "text")}, "temperature": "2.0"}
    (tmp_path / "x.model").write_bytes(pickle.dumps(content, protocol))
    assert read_plain_pickle(tmp_path / "x.model") == content


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (np.float64(2.0), r"numpy\S*scalar|_core\.multiarray|numpy"),
        (collections.OrderedDict(a=1), r"collections\.OrderedDict"),
        (torch.ones(2), r"torch\._utils\._rebuild_tensor"),
        (eval, r"builtins\.eval"),
    ],
    ids=["numpy", "ordered", "tensor", "function"],
)
def test_anything_else_is_refused_by_name(tmp_path: Path, content: object, name: str) -> None:
    (tmp_path / "x.model").write_bytes(pickle.dumps({"net": content}))
    with pytest.raises(ValueError, match=name):
        read_plain_pickle(tmp_path / "x.model")


def test_code_in_a_pickle_never_runs(tmp_path: Path) -> None:
    (tmp_path / "x.model").write_bytes(pickle.dumps({"net": Touch(tmp_path / "owned")}))
    with pytest.raises(ValueError, match=r"io\.open"):
        read_plain_pickle(tmp_path / "x.model")
    torch.save({"state_dict": {"a": torch.ones(1), "b": Touch(tmp_path / "owned")}}, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match="tensors and plain containers only"):
        read_state_dict(tmp_path / "x.ckpt")
    assert not (tmp_path / "owned").exists()


def test_broken_and_absent_files_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.model").write_bytes(pickle.dumps({"net": 1})[:-3])
    torch.save({"state_dict": {"a": torch.ones(1000)}}, tmp_path / "x.ckpt")
    (tmp_path / "x.ckpt").write_bytes((tmp_path / "x.ckpt").read_bytes()[:900])
    save_file({"a": torch.ones(1000)}, tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").write_bytes((tmp_path / "x.safetensors").read_bytes()[:900])
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    for read, file in (
        (read_plain_pickle, "x.model"),
        (read_state_dict, "x.ckpt"),
        (read_state_dict, "x.safetensors"),
        (read_state_dict, "text.ckpt"),
        (read_plain_pickle, "absent"),
        (read_state_dict, "absent"),
    ):
        with pytest.raises(ValueError, match="must") as refused:
            read(tmp_path / file)
        assert file in str(refused.value) and "\n" not in str(refused.value)


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match="named tensors, got list"):
        read_state_dict(tmp_path / "x.ckpt")


def test_weights_of_another_precision_are_converted_where_asked() -> None:
    model = nn.Linear(2, 3)
    state = {"weight": torch.ones(3, 2, dtype=torch.float16), "bias": torch.zeros(3, dtype=torch.float16)}
    assign_weights(model, state, "the model")
    assert model.weight.dtype == torch.float16
    assign_weights(model, state, "the model", torch.float32)
    assert model.weight.dtype == torch.float32 and model.weight.requires_grad


def test_long_lists_of_keys_are_counted_and_cut() -> None:
    model = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(20)))
    with pytest.raises(ValueError, match=r"20 missing: 0\.weight, .*, 5\.weight, and 14 more"):
        assign_weights(model, {}, "the model")
