"""Config files: your own by path, the shipped ones by name from any folder.

`char`, `sweeps/char_lr` and `configs/char.py` name shipped configs; an argument follows a colon: `gpt2:gpt2-medium`.
"""

from __future__ import annotations

from pathlib import Path

from jaxgpt.config import UserError

_PACKAGE = Path(__file__).parents[1]
_INSTALLED = _PACKAGE / "configs"  # in a wheel
_CHECKOUT = _PACKAGE.parent / "configs"  # in a checkout, which `pip install -e` uses in place


def shipped() -> dict[str, Path]:
    """The shipped config files by name."""
    folder = _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT
    files = sorted(folder.rglob("*.py"))
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}


def find(name: str) -> Path:
    """The file of a path or a shipped config's name; an existing file comes first. Raises UserError."""
    if Path(name).is_file():
        return Path(name)
    known = shipped()
    path = Path(name)
    if path.parts[:1] == ("configs",):  # configs/char.py, where the current folder has no such file
        path = path.relative_to("configs").with_suffix("")
    if path.as_posix() in known:
        return known[path.as_posix()]
    raise UserError(f"no config file {name}: give a file, or one of {', '.join(known)}")
