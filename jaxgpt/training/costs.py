"""The cost of a run before it runs: operations of its matrix products, and memory of a training step.

Operations are counted as in PaLM (Chowdhery et al. 2022, appendix B) and nanoGPT: the multiplications and additions of
matrix products, with attention as the full T x T square, though a causal mask discards half of it. Elementwise work is
not counted. "Model" operations are those of the formula; "hardware" operations include recomputation by a remat policy.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxgpt import config
from jaxgpt.common.backend import backend as traced_for
from jaxgpt.config import Config
from jaxgpt.model import linear
from jaxgpt.model.attention import uses_fused_attention, uses_query_blocks
from jaxgpt.model.parameters import param_shapes
from jaxgpt.model.sharding import BATCH
from jaxgpt.training import liveness, trainable
from jaxgpt.training.lanes import with_values
from jaxgpt.training.state_memory import state_bytes
from jaxgpt.training.steps import build, state_shapes

# --- operations of matrix products ----------------------------------------------------------------------


@dataclass(frozen=True)
class ForwardFlops:
    """Operations per token of one pass over a full window, by part of the model."""

    projections: int  # queries, keys, values, and the mix of the heads
    attention: int  # scores and weighted values; the only part that depends on T
    mlp: int
    head: int  # the logits of all rows of the table, padding included
    embedding: int = 0  # from the width of a narrow token table to d_model

    @property
    def total(self) -> int:
        return self.projections + self.attention + self.mlp + self.head + self.embedding


def matmul_params(cfg: config.ModelConfig) -> int:
    """The number of parameters in matrix products: no biases, norms or tables used for lookup only.

    The projection of a narrow tied table counts twice: it is used at both ends.
    """
    return forward_flops(dataclasses.replace(cfg, context_length=0)).total // 2


def forward_flops(cfg: config.ModelConfig) -> ForwardFlops:
    """Operations per token of a forward pass over windows of context_length tokens."""

    def products(layer: linear.Linear) -> int:
        """Operations of a linear layer with its low-rank change."""
        fan_in, fan_out = layer.fans(cfg)
        return 2 * (fan_in * fan_out + layer.rank(cfg) * (fan_in + fan_out))

    flops: collections.Counter[str] = collections.Counter()
    for layer in linear.present(cfg):
        flops[layer.module or layer.name] += products(layer)
    L, E = cfg.num_layers, cfg.table_width
    projected = flops["embedding_projection"]
    return ForwardFlops(
        projections=L * flops["attention"],
        attention=L * 4 * cfg.num_heads * cfg.head_width * cfg.context_length,
        mlp=L * flops["mlp"],
        head=2 * E * cfg.table_rows + projected if cfg.tie_embeddings else flops["head"],
        embedding=projected,
    )


def train_flops_per_token(cfg: config.ModelConfig) -> int:
    """Model operations per token of a training step: 6 x matmul_params + 12 L H K T.

    Three forward passes: the backward pass has two products of the same size for each of the forward's.
    """
    return 3 * forward_flops(cfg).total


def train_flops_per_step(cfg: Config) -> int:
    """Model operations of a step over all accumulation parts, without those of the optimizer."""
    return train_flops_per_token(cfg.model) * cfg.data.batch_size * cfg.model.context_length


# --- decoding -------------------------------------------------------------------------------------------


def decode_bytes(cfg: config.ModelConfig, batch_size: int) -> tuple[int, int]:
    """Bytes of parameters and of the cache that one more token for each of `batch_size` rows reads.

    The complete cache of context_length tokens is read: its size is static, the mask hides empty slots. Parameters are
    stored in float32 for any model.dtype.
    """
    itemsize = jnp.dtype(cfg.dtype).itemsize
    per_row = 2 * cfg.num_layers * cfg.context_length * cfg.kv_heads * cfg.head_width * itemsize
    return 4 * matmul_params(cfg), batch_size * per_row


# --- a training step, abstractly ------------------------------------------------------------------------


def abstract_step(cfg: Config) -> tuple[Callable, tuple[Any, Any, Any]]:
    """The train step of a config and the shapes of its arguments (state, batch, key)."""
    parts = build(cfg)
    state = state_shapes(parts.model, parts.optimizer)
    batch = jax.ShapeDtypeStruct((cfg.data.batch_size, cfg.model.context_length + 1), jnp.int32)
    return parts.train_step, (state, batch, jax.eval_shape(lambda: jax.random.key(0)))


def tree_bytes(tree: Any) -> int:
    """Bytes of a tree of arrays or shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@dataclass(frozen=True)
class Memory:
    """Bytes of a training step on one device, at the peak."""

    params: int
    opt_state: int
    batch: int
    gradients: int
    logits: int  # arrays with an axis of the vocabulary, except gradients
    activations: int  # everything else

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))

    @property
    def temporary(self) -> int:
        """Bytes that the step allocates in addition to its arguments."""
        return self.gradients + self.logits + self.activations


def memory_per_device(cfg: Config, memory: Memory, sizes: Mapping[str, int]) -> Memory:
    """A step's memory on each device of a mesh of these sizes.

    Parameters, optimizer and gradients are split as sharding.specs says; batch, logits and activations by rows; logits
    also by vocabulary. Not modelled: activations split over `tensor`, and the gathered copy of a layer.
    """
    state = state_bytes(cfg, sizes)
    rows = math.prod(sizes[axis] for axis in BATCH)
    return Memory(
        params=state.params,
        opt_state=state.opt_state,
        batch=memory.batch // rows,
        gradients=int(memory.gradients * state.params / memory.params),
        logits=memory.logits // (rows * sizes["tensor"]),
        activations=memory.activations // rows,
    )


@dataclass(frozen=True)
class StepCost:
    """The cost of one optimizer step, from its trace. Operations are those of matrix products."""

    model_flops: int  # by formula; with frozen parameters, as traced without remat
    recomputed_flops: int  # by the remat policy
    optimizer_flops: int  # Muon's products
    memory: Memory

    @property
    def hardware_flops(self) -> int:
        return self.model_flops + self.recomputed_flops + self.optimizer_flops


def step_cost(cfg: Config, backend: str | None = None) -> StepCost:
    """The cost of a step on a backend ("cpu", "gpu"; None: JAX's), without compiling or allocating anything.

    Memory is within 15 % of the compiler's plan on a CPU for the shapes of tests/training/test_costs.py, and a fifth too
    low with dropout in explicit attention.

    A model of more than four layers is traced with two and with three: every layer after the first adds the same.
    Accumulation counts as one part of the batch and a second set of gradients.
    """
    backend = backend or traced_for()
    parts = cfg.train.grad_accumulation_steps
    part = {"data.batch_size": cfg.data.batch_size // parts, "train.grad_accumulation_steps": 1}
    layers = cfg.model.num_layers
    # Rules for single blocks: the blocks differ.
    by_block = any(re.search(r"block_[^*]", rule) for rule in cfg.optim.trainable)
    counts = [layers] if layers <= 4 or by_block else [2, 3]

    def read(**changes: Any) -> _Reading:
        """A step at full depth, by extrapolation."""
        first, *second = (
            _read_step(with_values(cfg, part | {"model.num_layers": n} | changes), backend) for n in counts
        )
        if not second:
            return first
        return jax.tree.map(lambda two, three: two + (layers - 2) * (three - two), first, *second)

    reading = read()
    flops, optimizer_flops = reading.flops
    params, opt_state, batch = reading.arguments
    gradients, logits, activations = max(reading.phases, key=sum)
    model_flops = train_flops_per_step(cfg)
    shapes = param_shapes(cfg.model)
    if trainable.select(cfg.optim, shapes) is not shapes:
        plain = reading if cfg.train.remat == "none" else read(**{"train.remat": "none"})
        model_flops = parts * plain.flops[0]
    return StepCost(
        model_flops=model_flops,
        recomputed_flops=flops * parts - model_flops,
        optimizer_flops=optimizer_flops,
        memory=Memory(
            params=params,
            opt_state=opt_state,
            batch=batch * parts,
            gradients=gradients + (params if parts > 1 else 0),
            logits=logits,
            activations=activations,
        ),
    )


class _Reading(NamedTuple):
    """The costs in one trace. In each phase memory is linear in the number of layers."""

    flops: tuple[int, int]  # of forward and backward; of the optimizer
    arguments: tuple[int, int, int]  # bytes of params, opt_state, batch
    phases: tuple[tuple[int, ...], ...]  # bytes of gradients, logits, activations at each phase's peak


def _read_step(cfg: Config, backend: str) -> _Reading:
    # The formula counts the products of explicit attention: fused attention is one operation in a trace, and in blocks
    # some products are left out.
    model, attention = cfg.model, cfg.train.attention
    fused = uses_fused_attention(model, attention)
    blocks = backend == "cpu" and uses_query_blocks(model, attention, model.context_length, train=True)
    explicit = with_values(cfg, {"train.attention": "explicit"})
    fuses_broadcasts = backend != "cpu"
    step, abstract = abstract_step(explicit)
    counted = program = liveness.trace(step, *abstract)
    if backend == "cpu" and cfg.train.remat != "none":
        # XLA's CPU backend merges recomputed values with the first ones: remat frees no memory there.
        plain = with_values(cfg if blocks else explicit, {"train.remat": "none"})
        program = liveness.trace(abstract_step(plain)[0], *abstract)
    elif fused or blocks:
        program = liveness.trace(abstract_step(cfg)[0], *abstract)
    state, batch, _ = abstract
    # A gradient has the shape of its parameter, possibly transposed.
    matrix_shapes = {tuple(sorted(leaf.shape)) for leaf in jax.tree.leaves(state.params) if leaf.ndim > 1}
    rows = {cfg.model.table_rows, cfg.model.vocab_size}

    def kind(shape: tuple[int, ...]) -> int:
        return 0 if tuple(sorted(shape)) in matrix_shapes else 1 if rows.intersection(shape) else 2

    # Two peaks: in the last layer's backward pass, with all activations alive, and later, with few.
    last = f"block_{cfg.model.num_layers - 1}/"
    middle = max((i for i, op in enumerate(program.operations) if last in op.scope + "/"), default=0)
    peaks: list[tuple[int, tuple[int, ...]]] = [(-1, (0, 0, 0)), (-1, (0, 0, 0))]
    for i, alive in enumerate(liveness.alive(program, fuses_broadcasts)):
        phase = int(i > middle)
        if alive.total > peaks[phase][0]:
            found = [0, 0, alive.transient]
            for shape, size in alive.arrays.values():
                found[kind(shape)] += size
            peaks[phase] = (alive.total, tuple(found))
    in_model = sum(op.flops for op in counted.operations if "jvp(" in op.scope)
    return _Reading(
        flops=(in_model, counted.flops - in_model),
        arguments=(tree_bytes(state.params), tree_bytes(state.opt_state), tree_bytes(batch)),
        phases=tuple(found for _, found in peaks),
    )
