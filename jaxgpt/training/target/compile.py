"""The dispatch of a run, compiled for a card that is not in this machine.

XLA's compilers for GPUs (package jax-cuda12-pjrt) and TPUs (libtpu) need a description of the device, not the device.
Nothing runs. What they would measure on the device is not known: which of several kernels for a matrix product is fastest.
So cuBLAS is taken for every product that it can compute.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxgpt.common import backend
from jaxgpt.config import Config, UserError, first_line
from jaxgpt.model import sharding
from jaxgpt.model.parameters import param_shapes
from jaxgpt.runs.state import TrainState
from jaxgpt.training.steps import build, compiler_options, make_dispatch, state_shapes
from jaxgpt.training.target.cards import CUDNN, TOPOLOGIES, Card, Target

# Without a device nothing can be timed, and XLA's own kernels for products depend on timing.
GPU_OPTIONS: dict[str, Any] = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
ON_DEVICE_TOKENS = 1_000_000  # where the number of ids is not known


@dataclass(frozen=True)
class Compiled:
    """A dispatch for a target, in the compiler's own words, and its sizes in bytes on each device."""

    target: Target
    sizes: dict[str, int]  # of the mesh
    text: str  # optimized HLO
    arguments: int
    outputs: int
    aliased: int  # outputs that are written over arguments: donated
    temporaries: int
    seconds: float  # to trace, lower and compile

    @property
    def memory(self) -> int:
        """Bytes that the dispatch needs on each device."""
        return self.arguments + self.outputs - self.aliased + self.temporaries


def compile_dispatch(cfg: Config, target: Target, tokens: int = ON_DEVICE_TOKENS) -> Compiled:
    """Compile a resolved config's dispatch (see `steps.make_dispatch`) for a target.

    `tokens` is the number of training ids, which a run with data.on_device keeps on the device. Raises UserError without
    the compiler, and for a mesh that does not fit.
    """
    start = time.perf_counter()
    sizes = mesh_sizes(cfg, target)
    with quiet(), tracing(target.card):
        mesh = Mesh(
            np.array(devices(target)).reshape(tuple(sizes.values())), sharding.AXES,
            axis_types=(AxisType.Auto,) * len(sharding.AXES),
        )  # fmt: skip
        parts = build(cfg)
        dispatch = make_dispatch(parts.train_step, cfg)
        state = placed(mesh, state_shapes(parts.model, parts.optimizer))
        with sharding.use_mesh(mesh):
            lowered = jax.jit(dispatch, donate_argnums=0).lower(state, *feed_shapes(cfg, mesh, tokens))
            options = {} if target.card.is_tpu else GPU_OPTIONS | compiler_options(cfg)
            compiled = lowered.compile(compiler_options=options)
        memory: Any = compiled.memory_analysis()
    return Compiled(
        target=target,
        sizes=sizes,
        text=compiled.as_text() or "",
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        seconds=time.perf_counter() - start,
    )


def mesh_sizes(cfg: Config, target: Target) -> dict[str, int]:
    """The sizes of a config's mesh on a target. Raises UserError for a mesh that does not fit it."""
    sizes = sharding.mesh_sizes(cfg.mesh, target.count)
    if (total := int(np.prod(list(sizes.values())))) != target.count:
        raise UserError(
            f"mesh {sharding.as_text(sizes)} is {total} devices, --target={target} has {target.count}: "
            f"give --target={target.card.name}x{total}, or mesh sizes whose product is {target.count}"
        )
    sharding.check(sizes, param_shapes(cfg.model), cfg)
    return sizes


def placed(mesh: Mesh, state: TrainState) -> TrainState:
    """The shapes of a state with the sharding of each, also on one device."""
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, where)),
        state,
        sharding.specs(state.params, state),
    )


def feed_shapes(cfg: Config, mesh: Mesh, tokens: int) -> tuple[Any, Any, Any]:
    """The shapes of what `programs.SingleRun.feed` gives: ids or None, rows, root key."""
    everywhere = NamedSharding(mesh, P())
    B, T, count = cfg.data.batch_size, cfg.model.context_length, cfg.train.steps_per_dispatch
    shape = (count, B) if cfg.data.on_device else (count, B, T + 1)
    rows = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=NamedSharding(mesh, P(None, sharding.BATCH)))
    ids = None
    if cfg.data.on_device:
        dtype = jnp.uint16 if cfg.model.num_tokens <= 2**16 else jnp.uint32
        ids = jax.ShapeDtypeStruct((tokens,), dtype, sharding=everywhere)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return ids, rows, jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=everywhere)


# --- the compilers --------------------------------------------------------------------------------------

# The package of the compiler, and how to install it.
_PACKAGES = {
    False: (("jax-cuda12-pjrt", "jax-cuda13-pjrt"), 'pip install "jax-cuda12-pjrt=={jaxlib}"'),
    True: (("libtpu",), "pip install libtpu"),
}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def check_installed(card: Card) -> None:
    """Raises UserError without the compiler for a card, or with one of another version than JAX's."""
    packages, install = _PACKAGES[card.is_tpu]
    jaxlib = metadata.version("jaxlib")
    found = {name: version for name in packages if (version := _version(name))}
    if not found:
        raise UserError(
            f"--target={card.name} needs a compiler that is not installed, {packages[0]}: {install.format(jaxlib=jaxlib)}"
        )
    if not card.is_tpu and jaxlib not in found.values():
        name, version = next(iter(found.items()))
        raise UserError(f"{name} {version} does not match jaxlib {jaxlib}: pip install {name}=={jaxlib}")


def devices(target: Target) -> list[Any]:
    """The devices of a target, to compile for. Raises UserError."""
    check_installed(target.card)
    from jax.experimental import topologies

    try:
        if target.card.is_tpu:
            return _tpu_devices(target)
        # Machines of one pod, pods, devices of a machine.
        found = topologies.get_topology_desc(
            platform="cuda", target_config=target.card.target_config, topology=f"1x1x{target.count}"
        )
        return found.devices
    except (RuntimeError, NotImplementedError) as error:
        raise UserError(f"--target={target}: the compiler does not start ({first_line(error)})") from None


def _tpu_devices(target: Target) -> list[Any]:
    from jax.experimental import topologies

    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # ask no server what this machine is
    name = f"{target.card.generation}:{TOPOLOGIES[target.count]}"
    return topologies.get_topology_desc(platform="tpu", topology_name=name).devices


@contextlib.contextmanager
def tracing(card: Card) -> Iterator[None]:
    """Within this context programs are traced as they are on the card."""
    with backend.trace_for(card.backend), _as_on(card):
        yield


@contextlib.contextmanager
def _as_on(card: Card) -> Iterator[None]:
    """JAX asks the device for the versions of cuDNN and of the card when it traces fused attention: answer for the card."""
    if card.is_tpu:
        yield
        return
    module = importlib.import_module("jax._src.cudnn.fused_attention_stablehlo")

    def capability(text: str) -> tuple[int, ...]:
        return tuple(map(int, text.split(".")))

    answers = {
        "check_cudnn_version": lambda: CUDNN[0] * 10_000 + CUDNN[1] * 100,
        "check_compute_capability": lambda text: card.capability >= capability(text),
        "is_cuda_compute_capability_equal": lambda text: card.capability == capability(text),
    }
    if lost := [name for name in answers if not hasattr(module, name)]:
        raise UserError(
            f"jax {jax.__version__} traces fused attention in a way that is not known here ({', '.join(lost)}): "
            "set train.attention=explicit, or install jax 0.10.2"
        )
    before = {name: getattr(module, name) for name in answers}
    vars(module).update(answers)
    try:
        yield
    finally:
        vars(module).update(before)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what the compilers write to stderr, about devices that are not there, in a file; on an error, it is shown."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        except BaseException as error:
            os.dup2(kept, 2)
            if not isinstance(error, UserError | KeyboardInterrupt):
                file.seek(0)
                sys.stderr.write(file.read().decode("utf-8", "replace"))
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
