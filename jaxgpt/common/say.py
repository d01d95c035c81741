"""Output that never stops a program: lines, warnings, and streams that can't be written to.

Training and saving come before saying. A closed pipe, a closed or full terminal and a character that an encoding lacks
are no reason to stop a run.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Any, TextIO


def prepare() -> None:
    """Make stdout and stderr of this process usable: a missing stream becomes one that drops, and no encoding fails."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed before Python started
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - as long as the process
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a line, on stdout unless another stream is given. Never raises; once a stream is gone, it stays silent."""
    stream = sys.stdout if stream is None else stream
    try:
        print(text, file=stream, flush=True)
    except (OSError, ValueError):  # a closed pipe, a full disk behind it, a closed stream
        silence(stream)


class QuietStream:
    """A stream that drops what it can't write, for code that writes by itself, such as progress bars."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def warn(message: str) -> None:
    """Print a warning on stderr. Never raises."""
    say(f"warning: {message}", sys.stderr)


def silence(stream: TextIO) -> None:
    """Send what follows to nowhere, also what is still buffered: Python would raise at its end."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def count(number: int, what: str) -> str:
    """A number and a noun, as in "1 token" or "2,000 tokens"."""
    return f"{number:,} {what}" + "s" * (number != 1)
