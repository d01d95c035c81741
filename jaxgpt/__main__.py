"""All commands under one name: `jaxgpt train --config char` is `python -m jaxgpt.train --config char`."""

from __future__ import annotations

import importlib
import pkgutil

import jaxgpt
from jaxgpt.common import cli
from jaxgpt.config import UserError
from jaxgpt.config.errors import unknown


def commands() -> list[str]:
    """The files at the top of the package."""
    modules = pkgutil.iter_modules(jaxgpt.__path__)
    return sorted(m.name for m in modules if not m.ispkg and not m.name.startswith("_"))


def help_text() -> str:
    """Every command with the first line of its docstring."""
    lines = ["usage: jaxgpt COMMAND [FLAG ...]", "", jaxgpt.__doc__ or "", "", "commands:"]
    for name in commands():
        doc = importlib.import_module(f"jaxgpt.{name}").__doc__ or ""
        lines.append(f"  {name:<11} {doc.partition(chr(10))[0]}")
    return "\n".join([*lines, "", "jaxgpt COMMAND --help lists the flags of a command."])


def main(argv: list[str]) -> int | None:
    """Run the command that the first argument names. Raises UserError for an unknown one."""
    if not argv or argv[0] in ("-h", "--help"):
        print(help_text())
        return 0
    if argv[0] == "--version":
        print(f"jaxgpt {jaxgpt.__version__}")
        return 0
    name, *rest = argv
    if name not in commands():
        raise UserError(unknown("command", name, commands()))
    return importlib.import_module(f"jaxgpt.{name}").main(rest)


def console() -> None:
    """The entry point of the console command."""
    cli.run(main)


if __name__ == "__main__":
    console()
