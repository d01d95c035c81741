"""The settings of JAX that a command can't run with, refused by name when a command starts JAX.

JAX reads them from the environment: JAX_ENABLE_X64=1. All others of its documentation work, those for debugging
included (JAX_DEBUG_NANS, JAX_CHECK_TRACER_LEAKS, JAX_LOG_COMPILES, ...).
"""

from __future__ import annotations

import importlib.util
import os
import sys
import types

from jaxgpt.config import UserError, first_line

# Name in jax.config: (the values that work, why no other does).
_TRANSFERS = (
    (None, "allow", "log", "log_explicit"),
    "batches and losses move between the host and the device",
)
_ALLOWED: dict[str, tuple[tuple, str]] = {
    "jax_enable_x64": ((False,), "checkpoints and models are float32 or bfloat16"),
    "jax_disable_jit": ((False,), "steps are compiled before they run"),
    "jax_numpy_rank_promotion": (("allow", "warn"), "layers add vectors to batches of them"),
    "jax_numpy_dtype_promotion": (("standard",), "layers multiply numbers of bfloat16 and float32"),
    "jax_no_tracing": ((False,), "steps are traced and compiled before they run"),
    "jax_transfer_guard": _TRANSFERS,
    "jax_transfer_guard_host_to_device": _TRANSFERS,
    "jax_transfer_guard_device_to_host": _TRANSFERS,
    "jax_transfer_guard_device_to_device": _TRANSFERS,
    "jax_no_execution": ((False,), "nothing would be computed"),
}


def check(compiles: bool = False) -> None:
    """Import JAX and check its settings. Raises UserError with the name of one that does not work.

    compiles: the process compiles for devices that are not here (training/target/).
    """
    try:
        import jax
    except (ValueError, TypeError) as error:
        raise UserError(
            f"JAX does not start with its settings in the environment: {first_line(error)}"
        ) from None
    for name, (allowed, why) in _ALLOWED.items():
        value = jax.config.values.get(name, allowed[0])
        if value not in allowed:
            choice = f"unset it, or set it to {' or '.join(_text(x) for x in allowed if x is not None)}"
            raise UserError(f"{name.upper()}={_text(value)} is not possible here, because {why}: {choice}")
    (keep_compilers if compiles else skip_compilers)()


# JAX's packages for GPUs: the compiler, and what else a device needs. The extra gpu-compile has the first alone.
_PLUGINS = {
    "jax_plugins.xla_cuda12": ("jax_cuda12_plugin", "jaxlib.cuda"),
    "jax_plugins.xla_cuda13": ("jax_cuda13_plugin", "jaxlib.cuda"),
}


def compilers_alone() -> list[str]:
    """The compilers for GPUs that are installed without what else a device needs."""
    return [name for name, others in _PLUGINS.items() if _found(name) and not any(map(_found, others))]


def skip_compilers() -> None:
    """Keep JAX from starting a compiler as a device.

    It would print a traceback and continue on the CPU, and jax.profiler would end the process.
    """
    for name in compilers_alone():
        if name not in sys.modules:
            stub = types.ModuleType(name)
            vars(stub)["initialize"] = lambda: None
            stub.__spec__ = importlib.util.find_spec(name)
            sys.modules[name] = stub


def keep_compilers() -> None:
    """Let JAX load a compiler for a device that is not here, and compute on the CPU."""
    import jax

    if compilers_alone() and not jax.config.values["jax_platforms"]:
        jax.config.update("jax_platforms", "cpu")


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # nor its package
        return False


def check_platform() -> None:
    """Start JAX's devices where the environment names a platform. Raises UserError if there is no such device.

    Several processes join before this call.
    """
    import jax

    named = {
        name: os.environ[name]
        for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME", "JAX_DEFAULT_DEVICE")
        if os.environ.get(name)
    }
    if not named:
        return
    try:
        jax.devices()
        if device := named.get("JAX_DEFAULT_DEVICE"):
            jax.devices(device.partition(":")[0])
    except (RuntimeError, AssertionError, KeyError) as error:
        given = ", ".join(f"{name}={value}" for name, value in named.items())
        said = f" ({first_line(error)})" if str(error) else ""
        raise UserError(
            f"{given}: JAX finds no such device{said}: unset it, or install JAX for this device and check its driver"
        ) from None


def _text(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)
