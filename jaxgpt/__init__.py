"""GPT language models in JAX: small enough to read, fast enough to use."""

__version__ = "0.1.0"


def __getattr__(name: str):
    # Lazy, so that `import jaxgpt` (and with it every command's --help) does not pay for JAX and Orbax.
    if name == "load":
        from jaxgpt.runs.load import load

        return load
    if name == "capture":
        from jaxgpt.inspect.capture import of_run

        return of_run
    raise AttributeError(f"module 'jaxgpt' has no attribute {name!r}")
