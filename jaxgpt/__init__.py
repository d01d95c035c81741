"""GPT language models in JAX: small enough to read, fast enough to use."""

import contextlib as _contextlib
import signal as _signal
import sys as _sys

__version__ = "0.1.0"

# Started as `python -m jaxgpt.COMMAND` or `jaxgpt COMMAND`: until the command line is ready there is nothing to lose, and
# Ctrl-C ends the process without a traceback of imports. See common/cli.py.
if _sys.argv[:1] == ["-m"] or "".join(_sys.argv[:1]).endswith(("/jaxgpt", "\\jaxgpt.exe")):
    with _contextlib.suppress(ValueError):  # in another thread than the main one
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)


def __getattr__(name: str):
    # Lazy, so that `import jaxgpt` (and with it every command's --help) does not pay for JAX and Orbax.
    if name == "load":
        from jaxgpt.runs.load import load

        return load
    if name == "capture":
        from jaxgpt.inspect.capture import of_run

        return of_run
    raise AttributeError(f"module 'jaxgpt' has no attribute {name!r}")
