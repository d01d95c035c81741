"""What the devices run: the steps of one run, spread over many devices; or those of several runs, as lanes.

`One` and `Lanes` have the same methods, so that one loop (train.py) drives both.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxgpt.common import processes
from jaxgpt.config import Config
from jaxgpt.data.batches import Batches
from jaxgpt.data.dataset import Dataset
from jaxgpt.model import sharding
from jaxgpt.model.gpt import GPT
from jaxgpt.model.parameters import param_shapes
from jaxgpt.runs.state import TrainState
from jaxgpt.training import lanes, optim
from jaxgpt.training.evaluation import Evaluation, evaluate, evaluate_lanes
from jaxgpt.training.steps import build, init_state, make_dispatch, make_eval_step, state_shapes, with_signals


def _compile(dispatch: Callable, arguments: Callable[[], tuple], context: Callable) -> Future:
    """The dispatch, compiled in a thread beside what comes first: the first parameters, evaluation, sample."""

    def compiled():
        with context():
            return jax.jit(dispatch, donate_argnums=0).lower(*arguments()).compile()

    pool = ThreadPoolExecutor(1)
    future = pool.submit(compiled)
    pool.shutdown(wait=False)
    return future


class One:
    """One run, spread over a mesh of devices, which may belong to several processes."""

    def __init__(self, cfg: Config, dataset: Dataset) -> None:
        self._cfg, self._batches = cfg, Batches.of(cfg, dataset.train.ids)
        self.model, _, self._optimizer, train_step = build(cfg)
        self.mesh = sharding.make_mesh(cfg.mesh)
        sharding.check(self.mesh.shape, param_shapes(cfg.model), cfg)
        shapes = state_shapes(self.model, self._optimizer)
        self.shapes = sharding.with_shardings(self.mesh, shapes.params, shapes)  # of a run's state
        dispatch = make_dispatch(
            train_step, cfg.train.steps_per_dispatch, cfg.model.context_length, cfg.data.on_device
        )
        self._dispatch = dispatch if processes.is_alone() else with_signals(dispatch)
        self._root_key = jax.random.key(cfg.train.seed)
        self._ids = None
        if cfg.data.on_device:
            self._batches.check_on_device()
            self._ids = sharding.put_replicated(self.mesh, dataset.train.ids)

    def context(self) -> contextlib.AbstractContextManager:
        """What all is to be done in."""
        return sharding.use_mesh(self.mesh)

    def compile(self) -> Future:
        """The call of `feed`'s arguments after a state, which is used up: (state, ...) -> (state, metrics)."""
        return _compile(self._dispatch, lambda: (self.shapes, *self.feed(0, self.batches(0))), self.context)

    def batches(self, step: int) -> jax.Array | np.ndarray:
        """Each step's batch, or where its windows begin."""
        B, T = self._cfg.data.batch_size, self._cfg.model.context_length
        count, on_device = self._cfg.train.steps_per_dispatch, self._cfg.data.on_device
        shape = (count, B) if on_device else (count, B, T + 1)
        stack = functools.partial(self._batches.stack, step, count, starts_only=on_device)
        return sharding.put_batch(self.mesh, shape, lambda rows: stack(rows=rows), axis=1)

    def feed(self, signal: int, rows: jax.Array | np.ndarray) -> tuple[Any, ...]:
        """All that a dispatch takes beside the state: ids, batches, keys, and the signal that this process got, or 0."""
        told = () if processes.is_alone() else (sharding.put_flag(self.mesh, signal),)
        return self._ids, rows, self._root_key, *told

    def state(self, found: Sequence[TrainState]) -> TrainState:
        """What is trained, of the states of the runs."""
        return found[0]

    def fresh(self, params: Sequence[dict]) -> TrainState:
        """Step 0, of the first parameters of the runs."""
        return init_state(self.model, self._optimizer, None, params[0])

    def evaluation_params(self, state: TrainState) -> dict:
        """What is evaluated and kept for use: the parameters, or their average where the config has one."""
        return optim.evaluation_params(self._cfg.optim, state.params, state.opt_state)

    def evaluate(self, params: dict, windows: Iterable) -> list[Evaluation]:
        """Of each run."""
        return [evaluate(self.model, params, windows, self._cfg.train.loss_chunk)]

    def split(self, tree: Any) -> list[Any]:
        """Each run's part of a tree of arrays."""
        return [tree]

    def on_host(self, metrics: dict) -> dict[str, np.ndarray]:
        """Metrics with leading axes [runs, steps]."""
        return {name: np.asarray(x)[None] for name, x in metrics.items()}


class Lanes:
    """Several runs with one `lanes.program_of`, `width` of them at once on each of this process's devices."""

    def __init__(self, cfgs: Sequence[Config], dataset: Dataset, width: int) -> None:
        self._cfgs, self._cfg = cfgs, cfgs[0]
        self._batches = [Batches.of(cfg, dataset.train.ids) for cfg in cfgs]
        self.mesh = lanes.lane_mesh(len(cfgs))
        self._padding = -len(cfgs) % (self.mesh.size * width)  # lanes whose results are not used
        parts = build(self._cfg)
        self._optimizer = parts.optimizer
        self.shapes = state_shapes(parts.model, parts.optimizer)  # of a run's state
        train = self._cfg.train
        # Evaluation knows nothing of dropout, in which runs may differ.
        still = dataclasses.replace(self._cfg.model, dropout_rate=0.0)
        self.model = GPT(still, attention=train.attention, remat=train.remat)
        eval_step = make_eval_step(self.model, train.loss_chunk)
        self._losses = jax.jit(lanes.spread(eval_step, self.mesh, width))
        many = lanes.spread(lanes.make_lane_dispatch(self._cfg), self.mesh, width)
        self._dispatch = lambda state, ids, rows, keys, numbers: many((numbers, state, rows, keys), ids)
        numbers = lanes.numbers_of(cfgs)
        self._numbers = self._put({name: self._padded(x) for name, x in numbers.items()})
        seeds = self._padded(np.array([cfg.train.seed for cfg in cfgs]))
        self._root_keys = self._put(jnp.stack([jax.random.key(seed) for seed in seeds.tolist()]))
        self._ids = None
        if self._cfg.data.on_device:
            self._batches[0].check_on_device()
            self._ids = lanes.put_shared(self.mesh, dataset.train.ids)

    def _padded(self, rows: np.ndarray) -> np.ndarray:
        """With as many more lanes, like the last, as make the devices' shares equal."""
        return np.concatenate([rows, np.repeat(rows[-1:], self._padding, axis=0)])

    def _stacked(self, trees: Sequence[Any]) -> Any:
        """The runs' trees as one of lanes, on the host."""
        return jax.tree.map(lambda *leaves: self._padded(np.stack(leaves)), *jax.device_get(list(trees)))

    def _put(self, stacked: Any) -> Any:
        return lanes.put(self.mesh, stacked)

    def context(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def compile(self) -> Future:
        where, count = NamedSharding(self.mesh, P(lanes.LANE)), len(self._cfgs) + self._padding
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype, sharding=where), self.shapes
        )
        return _compile(self._dispatch, lambda: (shapes, *self.feed(0, self.batches(0))), self.context)

    def batches(self, step: int) -> jax.Array:
        count, on_device = self._cfg.train.steps_per_dispatch, self._cfg.data.on_device
        stacks = [batches.stack(step, count, starts_only=on_device) for batches in self._batches]
        return self._put(self._padded(np.stack(stacks)))

    def feed(self, signal: int, rows: jax.Array) -> tuple[Any, ...]:
        return self._ids, rows, self._root_keys, self._numbers

    def state(self, found: Sequence[TrainState]) -> TrainState:
        return self._put(self._stacked(found))

    def fresh(self, params: Sequence[dict]) -> TrainState:
        init = jax.vmap(lambda p: init_state(self.model, self._optimizer, None, p))
        return self._put(init(self._stacked(params)))

    def evaluation_params(self, state: TrainState) -> dict:
        if not optim.averages(self._cfg.optim):
            return state.params
        used = functools.partial(optim.evaluation_params, self._cfg.optim)
        return jax.vmap(used)(state.params, state.opt_state)

    def evaluate(self, params: dict, windows: Iterable) -> list[Evaluation]:
        return evaluate_lanes(lambda tokens: self._losses(params, tokens), windows)[: len(self._cfgs)]

    def split(self, tree: Any) -> list[Any]:
        tree = jax.device_get(tree)
        return [jax.tree.map(lambda x, n=n: x[n], tree) for n in range(len(self._cfgs))]

    def on_host(self, metrics: dict) -> dict[str, np.ndarray]:
        return jax.device_get(metrics)
