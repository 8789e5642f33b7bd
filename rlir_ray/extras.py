"""Optional libraries: the extra of the package that installs each, and what a run lacks without it."""

from __future__ import annotations

import functools
import importlib.util
import logging

logger = logging.getLogger(__name__)

# Library -> extra of setup.cfg, and what happens without the library.
EXTRAS = {
    "vizdoom": ("doom", "nothing can record the Doom world"),
    "gym_pusht": ("pusht", "nothing can record PushT"),
    "tensorboard": ("tensorboard", "metrics go to metrics.jsonl only"),
    "numba": ("numba", "torch computes the sampler's attention on a CPU, which takes longer"),
}

# Source of prompts -> library that records it.
SOURCE_LIBRARIES = {"doom": "vizdoom", "pusht": "gym_pusht"}


def is_installed(library: str) -> bool:
    return importlib.util.find_spec(library) is not None


def install_command(library: str) -> str:
    return f'pip install "rlir_ray[{EXTRAS[library][0]}]"'


def missing_text(library: str) -> str:
    """Format what a run lacks without the library, and how to install it."""
    return f"{library} is not installed: {EXTRAS[library][1]}; {install_command(library)}"


def require_library(library: str, user: str) -> None:
    """Check that a library is installed.

    Args:
        library: key of `EXTRAS`.
        user: what needs the library, for the error.

    Raises:
        ValueError: the library is missing.
    """
    if not is_installed(library):
        raise ValueError(f"{user} needs {library}, which is not installed; {install_command(library)}")


@functools.cache
def has_library(library: str) -> bool:
    """Return whether a library is installed; if not, log once in this process how to install it."""
    if not (found := is_installed(library)):
        logger.warning("%s", missing_text(library))
    return found
