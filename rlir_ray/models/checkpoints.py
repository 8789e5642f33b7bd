"""Loading of checkpoints: never execute code of an untrusted pickle, and name each key that does not fit."""

from __future__ import annotations

import inspect
import logging
import pickle
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import torch
from torch import Tensor, nn

from rlir_ray.data.files import Json

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=nn.Module)

# Most keys that an error or a warning names; the message always gives the total number.
NUM_NAMED = 6


def read_state_dict(path: Path | str) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint to the CPU, in their stored precision.

    Args:
        path: safetensors, or a torch file that holds a state dict, itself or under `state_dict`. Torch files are read
            with `weights_only=True`.

    Raises:
        ValueError: the file is missing or broken, or holds other objects than tensors and plain containers.
    """
    path = Path(path)
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no file"
        raise ValueError(f"a checkpoint must be an existing file, got {found} at {path}; check the path")
    content: object = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not state or not all(isinstance(key, str) for key in state):
        kind = "none" if isinstance(state, Mapping) and not state else type(content).__name__
        raise ValueError(f"a checkpoint must hold named tensors, got {kind} in {path}; check the file")
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"a checkpoint must be whole, got {error} in {path}; copy the file again") from None


def _read_torch(path: Path) -> object:
    try:
        # Files in torch's zip format can be memory-mapped: only the used tensors are read.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        # Torch's message is a page long and suggests to run the file's code; extract only the rejected name.
        refused = re.search(r"GLOBAL (\S+)", str(error))
        found = refused.group(1).rstrip(":") if refused else "other objects"
        raise ValueError(
            f"a checkpoint must hold tensors and plain containers only, got {found} in {path}; if you trust the "
            "file, save only its state dict: torch.save({'state_dict': ...}, FILE)"
        ) from None
    except (RuntimeError, EOFError, OSError) as error:
        if "TorchScript" in str(error):
            raise ValueError(
                f"a checkpoint must hold tensors, got a TorchScript program in {path}; save its state dict"
            ) from None
        found = re.split(r"[.:;]\s", str(error))[0]
        raise ValueError(f"a checkpoint must be whole, got {found} in {path}; copy the file again") from None


class _PlainUnpickler(pickle.Unpickler):
    """Unpickler for containers, numbers and strings; rejects globals, because a global can run code."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise ValueError(f"{module}.{name}")


def read_plain_pickle(path: Path | str) -> object:
    """Read a pickle of dicts, lists, tuples, numbers and strings, such as VPT's `.model` files.

    Raises:
        ValueError: the file is missing or broken, or holds other objects; the error names the object, which is never
        created.
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
                "trust this file, or write its net kwargs into a JSON file and give that with --config"
            ) from None
        except Exception as error:
            # A pickle is a program, so that a broken file can raise almost any exception.
            found = re.split(r"[.,:;]\s", str(error))[0]
            raise ValueError(f"a .model file must be a whole pickle, got {found} in {path}; copy it again") from None


def open_library_model(load: Callable[..., Model], folder: Path | str, what: str) -> Model:
    """Open a model folder of transformers or diffusers, and reject missing or unknown weights.

    By default both libraries draw random weights for missing names and ignore unknown names.

    Args:
        load: the class's `from_pretrained` with its options.
        folder: holds config.json and safetensors.
        what: name of the model in error messages.

    Raises:
        ValueError: names are missing, unexpected or of another shape, or weights are not finite; the error lists them.
    """
    from safetensors import SafetensorError

    try:
        with only_errors("transformers"), only_errors("diffusers"):
            opened: object = load(folder, output_loading_info=True, ignore_mismatched_sizes=True)
    except (OSError, SafetensorError) as error:
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{what} must be whole, got {cause} in {folder}; copy the folder again") from error
    # `load` is annotated to return the model alone, which it does without output_loading_info.
    model, found = cast("tuple[Model, dict[str, Iterable[Any]]]", opened)
    _check_names(
        f"{what} in {folder}",
        missing=sorted(found["missing_keys"]),
        # Older versions of transformers stored this buffer, which is computed from the config.
        unexpected=(name for name in sorted(found["unexpected_keys"]) if not name.endswith("rotary_emb.inv_freq")),
        wrong=(f"{name} {list(got)} instead of {list(own)}" for name, got, own in sorted(found["mismatched_keys"])),
    )
    check_finite(model.state_dict(), f"all weights of {what} in {folder}")
    return model


def open_diffusers_model(kind: type[Model], folder: Path | str, what: str) -> Model:
    """Open a folder of one of our `diffusers` models, in float32 and evaluation mode, on the CPU.

    Args:
        kind: the model's class.
        folder: what its `save_pretrained` wrote.
        what: name of the model in error messages.

    Raises:
        ValueError: the config has unknown fields, or the weights do not fit the config or are not finite.
    """
    # Any: diffusers' mixins, which are not annotated.
    library: Any = kind
    known = inspect.signature(library.__init__).parameters
    settings: Json = library.load_config(folder, local_files_only=True)
    if unknown := [name for name in settings if name not in known and not name.startswith("_")]:
        raise ValueError(
            f"the config.json of {what} must set only fields of {kind.__name__}, got {unknown[0]}="
            f"{settings[unknown[0]]!r} in {folder}; use a model that this version can read"
        )
    load: Callable[..., Model] = partial(
        library.from_pretrained,
        torch_dtype=torch.float32,
        low_cpu_mem_usage=False,
        local_files_only=True,
        use_safetensors=True,
    )
    model = open_library_model(load, folder, what)
    # nn.Module's own, because diffusers' `eval` is not annotated.
    return nn.Module.eval(model)


@contextmanager
def only_errors(library: str) -> Iterator[None]:
    """Hide the library's warnings, which are tables of many lines; our error names the keys."""
    log = logging.getLogger(library)
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def check_finite(state: Mapping[str, Tensor], what: str) -> None:
    """Check that all tensors are finite.

    Raises:
        ValueError: a tensor holds NaN or infinity; the error names the first one.
    """
    for name, value in state.items():
        if not bool(value.isfinite().all()):
            num_bad = int((~value.isfinite()).sum())
            raise ValueError(
                f"{what} must be finite, got NaN or infinity in {name} ({num_bad} of {value.numel()} numbers); use an "
                "earlier checkpoint, and lower train.learning_rate if a training made them"
            )


def _check_names(what: str, *, missing: Iterable[str], wrong: Iterable[str], unexpected: Iterable[str] = ()) -> None:
    """Check that no names are given.

    Raises:
        ValueError: there are missing, wrong or unexpected names; the error lists the first ones.
    """
    faults = {"missing": list(missing), "unexpected": list(unexpected), "of another shape": list(wrong)}
    if any(faults.values()):
        found = " and ".join(f"{len(names)} {fault}: {_named(names)}" for fault, names in faults.items() if names)
        raise ValueError(f"the weights of {what} must fit its config, got {found}; give the config of these weights")


def check_fit(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], what: str) -> None:
    """Check that a checkpoint has exactly the tensors of a model, and that all are finite.

    Raises:
        ValueError: names are missing, unexpected or of another shape, or weights are not finite; the error lists them.
    """
    _check_names(
        what,
        missing=(name for name in wanted if name not in found),
        unexpected=(name for name in found if name not in wanted),
        wrong=_wrong_shapes(wanted, found),
    )
    check_finite(found, f"all weights of {what}")


def _wrong_shapes(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    return [
        f"{name} {list(found[name].shape)} instead of {list(value.shape)}"
        for name, value in wanted.items()
        if name in found and found[name].shape != value.shape
    ]


def assign_weights(model: nn.Module, state: Mapping[str, Tensor], what: str, dtype: torch.dtype | None = None) -> None:
    """Assign weights to a model, which may be on the meta device; tensors that already have `dtype` are not copied.

    Args:
        model: all its parameters and persistent buffers must be among the weights.
        state: name -> tensor; names that the model lacks are skipped with a warning.
        what: name of the model in the error and the warning.
        dtype: type of floating-point weights in the model; None: the stored type.

    Raises:
        ValueError: keys are missing or of another shape, or weights are not finite; the error lists them.
    """
    wanted = model.state_dict()
    _check_names(what, missing=(name for name in wanted if name not in state), wrong=_wrong_shapes(wanted, state))
    if extra := [name for name in state if name not in wanted]:
        logger.warning("skipped: %d tensors that %s does not have: %s", len(extra), what, _named(extra))
    kept = {name: state[name] for name in wanted}
    check_finite(kept, f"all weights of {what}")
    model.load_state_dict(
        {name: value.to(dtype) if value.is_floating_point() and dtype else value for name, value in kept.items()},
        assign=True,
    )


def _named(names: list[str]) -> str:
    more = f", and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else ""
    return ", ".join(names[:NUM_NAMED]) + more
