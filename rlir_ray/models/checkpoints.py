"""Reading other people's checkpoints: nothing untrusted is unpickled, and what does not fit is named key by key."""

from __future__ import annotations

import logging
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

# Keys named in an error or a warning; the number of all is always said.
NUM_NAMED = 6


def read_state_dict(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a checkpoint, on the CPU in the precision that they have there.

    Args:
        path: safetensors, or a torch file that holds a state dict, itself or under `state_dict`. Torch files are read
            with `weights_only=True`.

    Raises:
        ValueError: no such file, a broken one, or one that holds more than tensors and plain containers.
    """
    path = Path(path)
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no file"
        raise ValueError(f"a checkpoint must be an existing file, got {found} at {path}; check the path")
    content: Any = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not state or not all(isinstance(key, str) for key in state):
        raise ValueError(
            f"a checkpoint must hold named tensors, got {type(content).__name__} in {path}; check the file"
        )
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"a checkpoint must be whole, got {error} in {path}; copy the file again") from None


def _read_torch(path: Path) -> Any:
    try:
        # Of files in torch's zip form only what is used is read.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        # Torch's own text is a page long and names a way to run the file's code; what it refused is in it.
        refused = re.search(r"GLOBAL (\S+)", str(error))
        found = refused.group(1).rstrip(":") if refused else "something else"
        raise ValueError(
            f"a checkpoint must hold tensors and plain containers only, got {found} in {path}; where you trust it, "
            "save its state dict alone: torch.save({'state_dict': ...}, FILE)"
        ) from None
    except (RuntimeError, EOFError, OSError) as error:
        if "TorchScript" in str(error):
            raise ValueError(f"a checkpoint must hold tensors, got a TorchScript program in {path}") from None
        found = re.split(r"[.:;]\s", str(error))[0]
        raise ValueError(f"a checkpoint must be whole, got {found} in {path}; copy the file again") from None


class _PlainUnpickler(pickle.Unpickler):
    """Admits containers, numbers and strings: everything else needs a global, and a global is code."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise ValueError(f"{module}.{name}")


def read_plain_pickle(path: Path | str) -> Any:
    """A pickle of dicts, lists, tuples, numbers and strings, as VPT's `.model` files are.

    Raises:
        ValueError: no such file, a broken one, or one that holds anything else, which is named and never made.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"a .model file must exist, got {path}; check the path")
    with path.open("rb") as file:
        try:
            return _PlainUnpickler(file).load()
        except ValueError as error:
            raise ValueError(
                f"a .model file must hold plain containers, numbers and strings only, got {error} in {path}; do not "
                "trust it, or write its net kwargs into a JSON file and give that with --config"
            ) from None
        except Exception as error:
            # A pickle is a program: what is no pickle fails in as many ways as there are instructions.
            found = re.split(r"[.,:;]\s", str(error))[0]
            raise ValueError(f"a .model file must be a whole pickle, got {found} in {path}; copy it again") from None


def assign_weights(model: nn.Module, state: Mapping[str, Tensor], what: str, dtype: torch.dtype | None = None) -> None:
    """Puts weights into a model, which may be on the meta device; they are not copied where `dtype` is theirs.

    Args:
        model: all its parameters and persistent buffers must be among the weights.
        state: name -> tensor; what the model has no place for is left out with a warning.
        what: of the error and the warning.
        dtype: of floating weights in the model; None: as stored.

    Raises:
        ValueError: keys are missing or of another shape; they are listed.
    """
    wanted = model.state_dict()
    missing = [name for name in wanted if name not in state]
    wrong = [
        f"{name} {list(state[name].shape)} instead of {list(value.shape)}"
        for name, value in wanted.items()
        if name in state and state[name].shape != value.shape
    ]
    if missing or wrong:
        faults = {"missing": missing, "of another shape": wrong}
        found = " and ".join(f"{len(keys)} {fault}: {_named(keys)}" for fault, keys in faults.items() if keys)
        raise ValueError(
            f"the weights of {what} must fit its config, got {found}; give the config that belongs to them"
        )
    if extra := [name for name in state if name not in wanted]:
        logger.warning("left out: %d tensors that %s has no place for: %s", len(extra), what, _named(extra))
    kept = {name: state[name] for name in wanted}
    model.load_state_dict(
        {name: value.to(dtype) if value.is_floating_point() and dtype else value for name, value in kept.items()},
        assign=True,
    )


def _named(names: list[str]) -> str:
    more = f", and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else ""
    return ", ".join(names[:NUM_NAMED]) + more
