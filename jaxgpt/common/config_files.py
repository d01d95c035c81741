"""Config files: your own by path, the shipped ones by name from any folder.

`char`, `sweeps/char_lr` and `configs/char.py` name shipped configs; an argument follows a colon: `gpt2:gpt2-medium`.
"""

from __future__ import annotations

from pathlib import Path

from jaxgpt.common.files import expand
from jaxgpt.config import UserError

_PACKAGE = Path(__file__).parents[1]
_INSTALLED = _PACKAGE / "configs"  # in a wheel
_CHECKOUT = _PACKAGE.parent / "configs"  # in a checkout, which `pip install -e` uses in place


def shipped() -> dict[str, Path]:
    """The shipped config files by name."""
    folder = _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT
    files = sorted(folder.rglob("*.py"))
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}


def split_argument(text: str) -> tuple[str, str]:
    """A config file and its argument, of `FILE:ARGUMENT`. A file whose own path has a colon comes first."""
    if expand(text).is_file():
        return text, ""
    name, _, argument = text.rpartition(":")
    if name and expand(name).is_file():
        return name, argument
    name, _, argument = text.partition(":")
    return name, argument


def find(name: str) -> Path:
    """The file of a path or a shipped config's name; an existing file comes first. Raises UserError."""
    if expand(name).is_file():
        return expand(name)
    known = shipped()
    path = Path(name)
    if path.parts[:1] == ("configs",):  # configs/char.py, where the current folder has no such file
        path = path.relative_to("configs").with_suffix("")
    if path.as_posix() in known:
        return known[path.as_posix()]
    raise UserError(f"no config file {name}: give a file, or one of {', '.join(known)}")
