"""The memory that a run's state takes on each device: from its config, its mesh and its optimizer, before any of it exists."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import jax

from jaxgpt.config import Config, UserError
from jaxgpt.model import sharding
from jaxgpt.model.gpt import GPT
from jaxgpt.model.parameters import count_params, param_shapes
from jaxgpt.training import trainable
from jaxgpt.training.optim import make_optimizer, make_schedule
from jaxgpt.training.steps import state_shapes


@dataclass(frozen=True)
class StateBytes:
    """Bytes on each device of a mesh."""

    params: int
    opt_state: int  # moments and averages, of the trained parameters only
    gradients: int  # of the trained parameters; twice where parts of a batch are added up

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))


def state_bytes(cfg: Config, sizes: Mapping[str, int]) -> StateBytes:
    """The state of a resolved config on each device of a mesh of these sizes, split as sharding.specs says."""
    state = state_shapes(
        GPT(cfg.model), make_optimizer(cfg.optim, make_schedule(cfg.optim, cfg.train.num_steps))
    )
    moving = trainable.select(cfg.optim, state.params)
    sets = 2 if cfg.train.grad_accumulation_steps > 1 else 1
    return StateBytes(
        params=sharding.bytes_per_device(sizes, state.params, state.params),
        opt_state=sharding.bytes_per_device(sizes, state.params, state.opt_state),
        gradients=sets * sharding.bytes_per_device(sizes, state.params, moving),
    )


def check_memory(cfg: Config) -> None:
    """Raises UserError for a model whose training state alone is larger than the memory of a device of its mesh.

    Without this check XLA's CPU backend hangs instead of failing.
    """
    sizes = sharding.mesh_sizes(cfg.mesh, jax.device_count())
    needed = sharding.taken(state_bytes(cfg, sizes).total, sizes)
    memory = sharding.device_memory()
    if needed > memory:
        params = count_params(param_shapes(cfg.model))
        on_each = f" on a mesh of {sharding.as_text(sizes)}" if max(sizes.values()) > 1 else ""
        raise UserError(
            f"a model of {params:,} parameters needs {needed / 2**30:,.1f} GiB for parameters, gradients and optimizer"
            f"{on_each}, but the device has {memory / 2**30:,.1f} GiB: lower model.d_model or model.num_layers, or use more "
            "devices with mesh.fsdp"
        )
