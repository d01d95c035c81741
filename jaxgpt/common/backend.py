"""The kind of device that programs are traced for: JAX's own, or one that is not in this machine.

What a program is made of may depend on the device: attention is fused on a GPU. Ask here, not jax.default_backend(), so
that training/target/ can trace the program of another device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

import jax


@dataclass(frozen=True)
class Backend:
    """A kind of device: "cpu", "gpu" or "tpu", and the compute capability of an NVIDIA GPU, such as (9, 0)."""

    kind: str
    compute_capability: tuple[int, int] | None = None


_other: ContextVar[Backend | None] = ContextVar("other_backend", default=None)


def backend() -> str:
    """The kind of device that programs are traced for: "cpu", "gpu" or "tpu"."""
    other = _other.get()
    return jax.default_backend() if other is None else other.kind


def compute_capability() -> tuple[int, int] | None:
    """The compute capability of the GPU that programs are traced for; None: not an NVIDIA GPU."""
    other = _other.get()
    if other is not None:
        return other.compute_capability
    version = getattr(jax.local_devices()[0], "compute_capability", None) if backend() == "gpu" else None
    if version is None or "." not in version:  # an AMD GPU has the name of its architecture there
        return None
    major, minor = version.split(".")
    return int(major), int(minor)


@contextlib.contextmanager
def trace_for(other: Backend) -> Iterator[None]:
    """Within this context and this thread programs are traced for another device. They can't run here."""
    token = _other.set(other)
    try:
        yield
    finally:
        _other.reset(token)
