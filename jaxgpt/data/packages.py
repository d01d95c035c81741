"""Data files inside installed packages. A package is found, not imported: only its files are wanted."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from jaxgpt.config import UserError


def find_package(module: str, wanted: str, install: str, instead: str = "") -> Path:
    """The folder of an installed package that holds what is `wanted`.

    Raises UserError where it is missing: `install` are the arguments of pip, `instead` another way.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"{wanted} is read from the package {module}, which is not installed: "
            f"pip install {install}" + (f", or {instead}" if instead else "")
        )
    return Path(next(iter(spec.submodule_search_locations)))
