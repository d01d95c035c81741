"""The health of a run at the steps of train.stats_every: norms, update ratios, activations.

The training step does not change: at a step that is due, two programs of their own run before and after it. So the step is bit for bit
that of a run without statistics, and a step that is not due costs nothing. The metrics, by block and table:

    stats/NAME/gradient_norm        of its parameters, before clipping; none where nothing of it is trained
    stats/NAME/parameter_norm       before the step
    stats/NAME/update_norm          of the change that the step made
    stats/NAME/update_ratio         update_norm / parameter_norm
    stats/block_I/residual_rms      root mean square of the residual stream after the block
    stats/block_I/attention_max     largest attention score (query times key, scaled and capped) that the mask allows
    stats/block_I/dead              share of the neurons that fire at no position of the batch; relu and relu_squared only
    stats/logsumexp                 of the logits: the mean over the targets that count
    stats/logsumexp_max             the largest

NAME is a block, or another top level name of the parameters (token_embedding, final_norm, head, ...). Activations are those of the step's batch and
of the parameters before the step, without dropout, from a forward pass with explicit attention: a fused kernel has no scores.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp

from jaxgpt.config import Config
from jaxgpt.model.gpt import GPT, logits, output_side
from jaxgpt.model.paths import named_leaves
from jaxgpt.model.sharding import BATCH, constrain
from jaxgpt.runs.checksums import copied
from jaxgpt.runs.state import TrainState
from jaxgpt.training import trainable
from jaxgpt.training.programs import Dispatch, Program
from jaxgpt.training.steps import windows_at

PREFIX = "stats/"
MOST_BYTES = 256 << 20  # of the scores of a layer, and of the logits, that are computed at once
_FIRES_OR_NOT = ("relu", "relu_squared")  # activations with neurons that are exactly 0


class Stats:
    """Computes the statistics of one run, or of each lane. They are compiled in the background, after the training step."""

    def __init__(self, cfg: Config, program: Program, compiled: Future[Dispatch]) -> None:
        self._every, self._num_steps = cfg.train.stats_every, cfg.train.num_steps
        on_device, shards = cfg.data.on_device, math.prod(_rows(program.mesh))

        def activations(run: tuple[dict, jax.Array], ids: Any) -> dict[str, jax.Array]:
            """Of the one step of a dispatch. `rows` are [1, B, T + 1], or the starts [1, B] of windows in `ids`."""
            params, rows = run
            batch = windows_at(ids, rows[0], cfg.model.context_length) if on_device else rows[0]
            return of_activations(cfg, params, batch, shards)

        def norms(run: tuple[dict, dict, jax.Array], _ids: None) -> dict[str, jax.Array]:
            before, after, grad_norms = run
            return of_parameters(cfg, before, after, grad_norms[0])

        params, step = program.all_shapes.params, program.all_shapes.step
        trained = len(named_leaves(trainable.select(cfg.optim, program.shapes.params)))
        # Of each lane, if there are lanes, and of the one step of a dispatch.
        grads = jax.ShapeDtypeStruct((*step.shape, 1, trained), jnp.float32, sharding=step.sharding)

        def compile() -> tuple[Callable, Callable]:
            compiled.result()
            with program.context():
                ids, rows, *_ = program.feed(0)
                return (
                    jax.jit(program.per_run(activations)).lower((params, rows), ids).compile(),
                    jax.jit(program.per_run(norms)).lower((params, params, grads), None).compile(),
                )

        pool = ThreadPoolExecutor(1)
        self._programs = pool.submit(compile)
        pool.shutdown(wait=False)

    def due(self, step: int) -> bool:
        """Whether statistics are due of the step that follows `step` steps: the first, each multiple, the last."""
        return (step + 1) % self._every == 0 or step + 1 in (1, self._num_steps)

    def around(self, dispatch: Dispatch) -> Dispatch:
        """The dispatch, with the statistics of its step among its metrics."""

        def with_stats(state: TrainState, ids: Any, rows: Any, *rest: Any):
            activations, norms = self._programs.result()
            before = copied(state.params)  # the dispatch reuses the memory of the state
            found = activations((before, rows), ids)
            state, metrics = dispatch(state, ids, rows, *rest)
            found |= norms((before, state.params, metrics["grad_norms"]), None)
            # With the axis of steps, here of one, that every metric has: before it there may be one of lanes.
            return state, metrics | {PREFIX + name: value[..., None] for name, value in found.items()}

        return with_stats


def _rows(mesh: jax.sharding.Mesh) -> list[int]:
    return [mesh.shape[axis] for axis in BATCH if axis in mesh.shape]


# --- parameters -----------------------------------------------------------------------------------------


def _group_norms(tree: dict, of: Callable[[Any], jax.Array]) -> dict[str, jax.Array]:
    """The root of the sum of `of(leaf)` for each top level name."""
    return {
        name: jnp.sqrt(sum(map(of, jax.tree.leaves(part)), jnp.float32(0))) for name, part in tree.items()
    }


def _square(x: jax.Array) -> jax.Array:
    return jnp.square(x.astype(jnp.float32)).sum()


def of_parameters(cfg: Config, before: dict, after: dict, grad_norms: jax.Array) -> dict[str, jax.Array]:
    """Norms of parameters and updates by top level name, and of gradients from those of each trained parameter [P]."""
    trained = trainable.select(cfg.optim, before)
    norms = _group_norms(before, _square)
    updates = _group_norms(jax.tree.map(jnp.subtract, after, before), _square)
    tree = jax.tree.unflatten(jax.tree.structure(trained), list(grad_norms))
    found = {f"{name}/gradient_norm": x for name, x in _group_norms(tree, _square).items()}
    for name in norms:
        found[f"{name}/parameter_norm"] = norms[name]
        found[f"{name}/update_norm"] = updates[name]
        found[f"{name}/update_ratio"] = updates[name] / norms[name]
    return found


# --- activations ----------------------------------------------------------------------------------------


def of_activations(
    cfg: Config, params: dict, batch: jax.Array, shards: int = 1, most_bytes: int = MOST_BYTES
) -> dict[str, jax.Array]:
    """The statistics of a forward pass over windows [B, T + 1], a part of the rows at a time.

    The parts do not change a maximum or a share; `shards` is the number of devices that the rows are split over.
    """
    model, B = GPT(cfg.model, attention="explicit"), batch.shape[0]
    counts = _num_parts(cfg, B, shards, most_bytes)
    # Every part has rows of all devices.
    parts = jnp.moveaxis(batch.reshape(B // counts, counts, -1), 1, 0)
    one = functools.partial(_of_part, model, params)
    if counts == 1:
        sums, most, fires = one(parts[0])
    else:
        empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, parts[0]))
        empty = (empty[0], jax.tree.map(lambda x: x - jnp.inf, empty[1]), empty[2])

        def add(so_far, part):
            sums, most, fires = one(part)
            return (
                jax.tree.map(jnp.add, so_far[0], sums),
                jax.tree.map(jnp.maximum, so_far[1], most),
                jax.tree.map(jnp.logical_or, so_far[2], fires),
            ), None

        (sums, most, fires), _ = jax.lax.scan(add, empty, parts)
    found = {name: jnp.sqrt(total / B) for name, total in sums.items() if name.endswith("residual_rms")}
    found |= most | {"logsumexp": sums["logsumexp"] / jnp.maximum(sums["count"], 1)}
    return found | {name: 1 - x.mean(dtype=jnp.float32) for name, x in fires.items()}


def _num_parts(cfg: Config, B: int, shards: int, most_bytes: int) -> int:
    """How many parts the rows are computed in: few enough, of equal size, with equally many rows for each device."""
    model = cfg.model
    a_row = 4 * model.context_length * max(model.num_heads * model.context_length, model.table_rows)
    possible = [n for n in range(1, B + 1) if B % n == 0 and (B // n) % shards == 0] or [1]
    return next((n for n in possible if B // n // shards * a_row <= most_bytes), possible[-1])


def _of_part(model: GPT, params: dict, windows: jax.Array):
    """Sums, maxima, and the neurons [F] that fire, of windows [B, T + 1] with targets that may be marked as none."""
    cfg = model.cfg
    inputs_BT, counts_BT = windows[:, :-1], windows[:, 1:] >= 0
    inputs_BT = constrain(jnp.where(inputs_BT < 0, ~inputs_BT, inputs_BT), BATCH)
    (x_BTD, _), shown = model.apply(
        {"params": params}, inputs_BT, method=GPT.features, mutable="intermediates"
    )
    sums, most, fires = {}, {}, {}
    for i in range(cfg.num_layers):
        block = shown["intermediates"][f"block_{i}"]
        (after_BTD,), attention = block["after"], block["attention"]
        (scores_BHTS,), (mask_BTS,) = attention["scores"], attention["mask"]
        sums[f"block_{i}/residual_rms"] = jnp.square(after_BTD.astype(jnp.float32)).mean(axis=(1, 2)).sum()
        most[f"block_{i}/attention_max"] = jnp.where(mask_BTS[:, None], scores_BHTS, -jnp.inf).max()
        if cfg.activation in _FIRES_OR_NOT and cfg.mlp_width:
            fires[f"block_{i}/dead"] = (block["mlp"]["hidden"][0] > 0).any(axis=(0, 1))
    lse_BT = jax.nn.logsumexp(logits(cfg, *output_side(cfg, params, x_BTD)), axis=-1)
    sums["logsumexp"] = jnp.where(counts_BT, lse_BT, 0.0).sum()
    sums["count"] = counts_BT.sum(dtype=jnp.float32)
    most["logsumexp_max"] = jnp.where(counts_BT, lse_BT, -jnp.inf).max()
    return sums, most, fires
