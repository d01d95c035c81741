"""The compiled computation that the loop drives: one run over a mesh of devices, or several runs as lanes.

`Program` is its interface to the loop. `SingleRun` and `VmappedRuns` implement it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxgpt.common import processes
from jaxgpt.config import Config
from jaxgpt.data.batches import Batches
from jaxgpt.data.packing import PackedBatches, training_batches
from jaxgpt.data.shards import Ids
from jaxgpt.model import sharding
from jaxgpt.model.gpt import GPT
from jaxgpt.model.parameters import param_shapes
from jaxgpt.runs.state import TrainState
from jaxgpt.training import lanes, optim
from jaxgpt.training.evaluation import Evaluation, evaluate, evaluate_lanes
from jaxgpt.training.steps import (
    build,
    compiler_options,
    init_state,
    make_dispatch,
    make_eval_step,
    state_shapes,
    with_signals,
)

Dispatch = Callable[..., tuple[TrainState, dict[str, jax.Array]]]


class Program(Protocol):
    """The computation of one or several runs, on one or several devices.

    A state is the state of all runs together. Everything is called within `context()`.
    """

    mesh: jax.sharding.Mesh
    shapes: TrainState  # shapes of the state of one run
    all_shapes: TrainState  # shapes of the state, that of all runs together
    model: GPT  # for evaluation and sampling

    @property
    def batches(self) -> Sequence[Batches | PackedBatches]:
        """Of each run."""

    def context(self) -> contextlib.AbstractContextManager:
        """The context for everything below."""

    def compile(self) -> Future[Dispatch]:
        """Start to compile a dispatch: (state, *feed(...)) -> (state, metrics). The state passed in is donated."""

    def feed(self, step: int, signal: int = 0) -> tuple[Any, ...]:
        """The arguments of the dispatch that starts at a step, except the state.

        `signal` is the number of a signal that this process received, or 0.
        """

    def per_run(self, function: Callable) -> Callable:
        """The function (arrays of one run, ids) -> tree as a function of all runs' arrays, such as the state. Not compiled."""

    def init(self, params: Sequence[dict]) -> TrainState:
        """The state at step 0, from the initial parameters of each run."""

    def stack(self, states: Sequence[TrainState]) -> TrainState:
        """One state from the restored states of the runs."""

    def take(self, tree: Any, which: Sequence[int]) -> list[Any]:
        """The parts of a state, or of its parameters, that belong to these runs (by index)."""

    def evaluation_params(self, state: TrainState) -> dict:
        """The parameters to evaluate and export: the trained ones, or their average where the config keeps one."""

    def evaluate(self, params: dict, windows: Iterable) -> list[Evaluation]:
        """One evaluation for each run."""

    def on_host(self, metrics: dict) -> dict[str, np.ndarray]:
        """The metrics of a dispatch as NumPy arrays [runs, steps, ...]."""


def _compile(
    cfg: Config, dispatch: Callable, arguments: Callable[[], tuple], context: Callable
) -> Future[Dispatch]:
    """Compile in a thread, next to what comes first: initial parameters, evaluation, sample."""

    def compiled():
        with context():
            lowered = jax.jit(dispatch, donate_argnums=0).lower(*arguments())
            return lowered.compile(compiler_options=compiler_options(cfg))

    pool = ThreadPoolExecutor(1)
    future = pool.submit(compiled)
    pool.shutdown(wait=False)
    return future


class SingleRun:
    """One run over a mesh of devices, which may belong to several processes. `ids` are the tokens to train on.

    `lengths` are the numbers of tokens of the sources of a mixture, in this order in `ids`.
    """

    def __init__(self, cfg: Config, ids: Ids, lengths: Sequence[int] = ()) -> None:
        self._cfg, self.batches = cfg, training_batches([cfg], ids, lengths)
        self.model, _, self._optimizer, train_step = build(cfg)
        self.mesh = sharding.make_mesh(cfg.mesh)
        sharding.check(self.mesh.shape, param_shapes(cfg.model), cfg)
        shapes = state_shapes(self.model, self._optimizer)
        self.shapes = self.all_shapes = sharding.with_shardings(self.mesh, shapes.params, shapes)
        dispatch = make_dispatch(train_step, cfg)
        self.dispatch = dispatch if processes.is_alone() else with_signals(dispatch)
        self._root_key = jax.random.key(cfg.train.seed)
        self._ids = None
        if cfg.data.on_device:
            self._ids = sharding.put_replicated(self.mesh, self.batches[0].for_device())

    def context(self) -> contextlib.AbstractContextManager:
        return sharding.use_mesh(self.mesh)

    def compile(self) -> Future[Dispatch]:
        return _compile(self._cfg, self.dispatch, lambda: (self.shapes, *self.feed(0)), self.context)

    def feed(self, step: int, signal: int = 0) -> tuple[Any, ...]:
        cfg = self._cfg
        B, T, count = cfg.data.batch_size, cfg.model.context_length, cfg.train.steps_per_dispatch
        shape = (count, B) if cfg.data.on_device else (count, B, T + 1)
        stack = functools.partial(self.batches[0].stack, step, count, starts_only=cfg.data.on_device)
        rows = sharding.put_batch(self.mesh, shape, lambda rows: stack(rows=rows), axis=1)
        flags = () if processes.is_alone() else (sharding.put_flag(self.mesh, signal),)
        return self._ids, rows, self._root_key, *flags

    def per_run(self, function: Callable) -> Callable:
        return lambda run, ids: sharding.replicate(function(run, ids))

    def init(self, params: Sequence[dict]) -> TrainState:
        return init_state(self.model, self._optimizer, params[0])

    def stack(self, states: Sequence[TrainState]) -> TrainState:
        return states[0]

    def take(self, tree: Any, which: Sequence[int]) -> list[Any]:
        return [tree for _ in which]

    def evaluation_params(self, state: TrainState) -> dict:
        return optim.evaluation_params(self._cfg.optim, state.params, state.opt_state)

    def evaluate(self, params: dict, windows: Iterable) -> list[Evaluation]:
        return [evaluate(self.model, params, windows, self._cfg.train.loss_chunk)]

    def on_host(self, metrics: dict) -> dict[str, np.ndarray]:
        return {name: np.asarray(x)[None] for name, x in metrics.items()}


class VmappedRuns:
    """Several runs that share one `lanes.program_of`; each local device computes `width` of them at once."""

    def __init__(self, cfgs: Sequence[Config], ids: Ids, width: int, lengths: Sequence[int] = ()) -> None:
        self._cfgs, self._cfg, self._width = cfgs, cfgs[0], width
        self.batches = training_batches(cfgs, ids, lengths)
        self.mesh = lanes.lane_mesh(len(cfgs))
        self._padding = -len(cfgs) % (self.mesh.size * width)  # lanes whose results are not used
        parts = build(self._cfg)
        self._optimizer = parts.optimizer
        self.shapes = state_shapes(parts.model, parts.optimizer)
        where, count = NamedSharding(self.mesh, P(lanes.LANE)), len(cfgs) + self._padding
        self.all_shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype, sharding=where), self.shapes
        )
        train = self._cfg.train
        # Evaluation does not use dropout, in which the runs may differ.
        without_dropout = dataclasses.replace(self._cfg.model, dropout_rate=0.0, attention_dropout_rate=0.0)
        self.model = GPT(without_dropout, attention=train.attention, remat=train.remat)
        eval_step = make_eval_step(self.model, train.loss_chunk)
        self._losses = jax.jit(self.per_run(eval_step))
        many = self.per_run(lanes.make_lane_dispatch(self._cfg))
        self._dispatch = lambda state, ids, rows, keys, numbers: many((numbers, state, rows, keys), ids)
        numbers = lanes.numbers_of(cfgs)
        self._numbers = lanes.put(self.mesh, {name: self._padded(x) for name, x in numbers.items()})
        seeds = self._padded(np.array([cfg.train.seed for cfg in cfgs]))
        self._root_keys = lanes.put(self.mesh, jnp.stack([jax.random.key(seed) for seed in seeds.tolist()]))
        self._ids = None
        if self._cfg.data.on_device:
            self._ids = lanes.put_shared(self.mesh, self.batches[0].for_device())

    def _padded(self, rows: np.ndarray) -> np.ndarray:
        """The last lane repeated until every device has the same number of lanes."""
        return np.concatenate([rows, np.repeat(rows[-1:], self._padding, axis=0)])

    def _stacked(self, trees: Sequence[Any]) -> Any:
        """One tree with a leading axis of lanes, on the host."""
        return jax.tree.map(lambda *leaves: self._padded(np.stack(leaves)), *jax.device_get(list(trees)))

    def context(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def compile(self) -> Future[Dispatch]:
        return _compile(self._cfg, self._dispatch, lambda: (self.all_shapes, *self.feed(0)), self.context)

    def feed(self, step: int, signal: int = 0) -> tuple[Any, ...]:
        count, on_device = self._cfg.train.steps_per_dispatch, self._cfg.data.on_device
        stacks = [batches.stack(step, count, starts_only=on_device) for batches in self.batches]
        rows = lanes.put(self.mesh, self._padded(np.stack(stacks)))
        return self._ids, rows, self._root_keys, self._numbers

    def per_run(self, function: Callable) -> Callable:
        return lanes.map_lanes(function, self.mesh, self._width)

    def init(self, params: Sequence[dict]) -> TrainState:
        init = jax.vmap(lambda p: init_state(self.model, self._optimizer, p))
        return lanes.put(self.mesh, init(self._stacked(params)))

    def stack(self, states: Sequence[TrainState]) -> TrainState:
        return lanes.put(self.mesh, self._stacked(states))

    def take(self, tree: Any, which: Sequence[int]) -> list[Any]:
        if len(which) == 1:  # one lane is copied without the others
            return [lanes.take(tree, which[0])]
        tree = jax.device_get(tree)
        return [jax.tree.map(lambda x, n=n: x[n], tree) for n in which]

    def evaluation_params(self, state: TrainState) -> dict:
        if not optim.averages(self._cfg.optim):
            return state.params
        used = functools.partial(optim.evaluation_params, self._cfg.optim)
        return jax.vmap(used)(state.params, state.opt_state)

    def evaluate(self, params: dict, windows: Iterable) -> list[Evaluation]:
        return evaluate_lanes(lambda tokens: self._losses(params, tokens), windows)[: len(self._cfgs)]

    def on_host(self, metrics: dict) -> dict[str, np.ndarray]:
        return jax.device_get(metrics)
