"""A program run by a fresh Python."""

import os
import subprocess
import sys

import jaxgpt


def run_python(program: str, *arguments: str) -> subprocess.CompletedProcess:
    """The finished process, with what it printed as text."""
    package = os.path.dirname(os.path.dirname(jaxgpt.__file__))
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "PYTHONPATH": package},
        capture_output=True,
        text=True,
    )
