"""A report on a run before it starts: parameters, operations, memory, time, and what looks wrong.

    python -m jaxgpt.train --config configs/gpt2.py --dry_run

Only one matrix product is compiled, to measure the speed of the device.
"""

from __future__ import annotations

import itertools
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxgpt.common.numbers import as_bytes, as_duration, as_flop
from jaxgpt.config import Config
from jaxgpt.data import batches
from jaxgpt.data.dataset import check_documents, check_windows, prepare_dataset
from jaxgpt.data.id_files import Dataset
from jaxgpt.data.packing import PackedBatches, Packing, training_batches
from jaxgpt.model import sharding
from jaxgpt.model.attention import fused_obstacle, uses_fused_attention
from jaxgpt.model.parameters import param_shapes
from jaxgpt.model.paths import named_leaves
from jaxgpt.runs import snapshots
from jaxgpt.training import costs, starting, traffic, trainable

# Assumed speed of a training step, as a fraction of the measured speed of matrix products. On 2 CPU cores it was 0.45
# for the toy model and 0.7 for 6 layers of width 384; published single-GPU trainings of GPT-2 reach 0.3 to 0.45.
ASSUMED_UTILISATION = {"cpu": 0.5, "gpu": 0.35}
MANY_EPOCHS = 20  # with more passes a model mostly memorizes the text
REPEATED = 4  # passes over a source; more of them are worth much less than new text (Muennighoff et al. 2023)
LARGE_VOCABULARY = 16_384


@dataclass(frozen=True)
class SourceUse:
    """How much a run reads of a source of its mixture."""

    name: str
    tokens: int
    share: float  # of all rows of the run
    epochs: float


@dataclass(frozen=True)
class DataSizes:
    """The sizes of the prepared data."""

    train_tokens: int
    valid_tokens: int
    sources: tuple[SourceUse, ...] = ()  # of a mixture
    packing: Packing | None = None  # with data.windows="documents"

    @classmethod
    def of(cls, cfg: Config, dataset: Dataset) -> DataSizes:
        """The sizes of a dataset, and what a run takes of it. The config is resolved: see `starting.resolve`."""
        steps, uses = cfg.train.num_steps, []
        if dataset.sources:
            check_windows(dataset, cfg.model.context_length)
        packing = None
        if dataset.sources or cfg.data.windows == "documents":
            (read,) = training_batches([cfg], dataset.train.ids, dataset.lengths)
            packing = read.packing if isinstance(read, PackedBatches) else None
            if read.order is not None:
                rows, epochs = read.order.rows_before(steps), read.order.epochs(steps)
                uses = [
                    SourceUse(source.name, source.num_ids, float(n / rows.sum()), times)
                    for source, n, times in zip(dataset.sources, rows, epochs, strict=True)
                ]
        return cls(len(dataset.train.ids), len(dataset.valid.ids), tuple(uses), packing)


@dataclass(frozen=True)
class Row:
    """A parameter, or the parameter of this name in several equal blocks."""

    path: str
    shape: tuple[int, ...]
    copies: int  # number of blocks
    moves: bool = True  # trained, not frozen

    @property
    def count(self) -> int:
        return self.copies * math.prod(self.shape)


def best_seconds(once: Callable[[], Any], seconds: float) -> float:
    """The shortest time of a call, waited for, among those that fit into `seconds`. The first call is not timed."""
    jax.block_until_ready(once())
    best, end = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < end or best == math.inf:
        start = time.perf_counter()
        jax.block_until_ready(once())
        best = min(best, time.perf_counter() - start)
    return best


def matmul_speed(dtype: str, size: int, seconds: float = 0.3) -> float:
    """FLOP/s of products of two square matrices, the best within `seconds`."""
    a = jax.jit(lambda: jnp.ones((size, size), dtype))()
    product = jax.jit(lambda a: a @ a)
    count = 4  # per measurement, to share the cost of a dispatch
    return count * 2 * size**3 / best_seconds(lambda: [product(a) for _ in range(count)], seconds)


def param_rows(shapes: dict, moves: Callable[[str], bool] = lambda _: True) -> list[Row]:
    """A row for each parameter. Neighbouring blocks with equal parameters share one: `block_0..11/mlp/up/kernel`."""
    numbers: dict[tuple[str, tuple[int, ...], bool, bool], list[int]] = {}
    for path, leaf in named_leaves(shapes):
        block = re.fullmatch(r"block_(\d+)/(.+)", path)
        key = (block[2] if block else path, leaf.shape, moves(path), block is not None)
        numbers.setdefault(key, []).append(int(block[1]) if block else 0)
    rows = []
    for (path, shape, moving, in_block), found in numbers.items():
        # number - index is the same for neighbours.
        for _, group in itertools.groupby(enumerate(sorted(found)), lambda pair: pair[1] - pair[0]):
            first, *others = [number for _, number in group]
            prefix = f"block_{first}..{others[-1]}/" if others else f"block_{first}/"
            rows.append(Row(prefix * in_block + path, shape, 1 + len(others), moving))
    return rows


class Preflight:
    """The report on a resolved config, in bytes, FLOPs of matrix products, and seconds; without `data` not on the data."""

    def __init__(self, cfg: Config, data: DataSizes | None) -> None:
        backend, shapes = jax.default_backend(), param_shapes(cfg.model)
        self.cfg = cfg
        self.rows = param_rows(shapes, trainable.moves(cfg.optim, shapes))
        self.num_params = sum(row.count for row in self.rows)
        self.num_trainable = sum(row.count for row in self.rows if row.moves)
        self.tokens_per_step = cfg.data.batch_size * cfg.model.context_length
        self.epochs: float | None = None  # None: the data is not known, or too short
        self.sources = () if data is None else data.sources
        if data is not None and not data.sources and data.train_tokens > cfg.model.context_length:
            steps = batches.steps_per_epoch(
                data.train_tokens, context_length=cfg.model.context_length, batch_size=cfg.data.batch_size
            )
            if data.packing is not None:
                steps = len(data.packing) / cfg.data.batch_size
            self.epochs = cfg.train.num_steps / steps
        self.windows = "" if data is None or data.packing is None else data.packing.as_text()
        self.mesh = sharding.mesh_sizes(cfg.mesh, jax.device_count())  # number of devices along each axis
        sharding.check(self.mesh, shapes, cfg)
        self.cost = costs.step_cost(cfg, backend)
        self.memory_per_device = costs.memory_per_device(cfg, self.cost.memory, self.mesh)
        self.traffic = traffic.traffic(cfg, self.mesh)
        self.device, self.device_bytes = jax.devices()[0].device_kind, sharding.device_memory()
        self.matmul_flops_per_second = matmul_speed(cfg.model.dtype, 1024 if backend == "cpu" else 8192)
        self.utilisation = ASSUMED_UTILISATION.get(backend, ASSUMED_UTILISATION["gpu"])
        limit = self.device_bytes // sharding.taken(1, self.mesh)  # of each device
        self.warnings = warnings(cfg, data, self.epochs, self.memory_per_device, limit, backend)

    @property
    def seconds_per_step(self) -> float:
        """Estimated from the measured matrix speed and the assumed utilisation, without communication."""
        # Several CPU devices share one CPU.
        devices = 1 if self.device == "cpu" else math.prod(self.mesh.values())
        return self.cost.hardware_flops / (devices * self.matmul_flops_per_second * self.utilisation)


def warnings(
    cfg: Config,
    data: DataSizes | None,
    epochs: float | None,
    memory: costs.Memory,
    limit: int,
    backend: str,
) -> list[str]:
    """Settings that work but are probably not intended: one line each, with what to do."""
    model, optim, train = cfg.model, cfg.optim, cfg.train
    found = []
    if memory.total > limit:
        found.append(
            f"a step needs about {as_bytes(memory.total)}, but the device has {as_bytes(limit)}: raise "
            "train.grad_accumulation_steps, lower data.batch_size or the size of the model"
            + ("" if backend == "cpu" else ", or set train.remat and train.loss_chunk")
        )
    if data is not None and data.train_tokens <= model.context_length:
        found.append(
            f"{data.train_tokens:,} training tokens are fewer than one window of {model.context_length + 1}: "
            "give more text or lower model.context_length"
        )
    if data is not None and data.valid_tokens < 20 * model.context_length:
        found.append(
            f"{data.valid_tokens:,} validation tokens are fewer than 20 windows: the validation loss will be "
            "noisy, raise data.valid_fraction"
        )
    if epochs is not None and epochs < 1:
        found.append(f"the run sees only {epochs:.2f} of the data: raise train.num_steps to see all of it")
    if epochs is not None and epochs > MANY_EPOCHS:
        found.append(
            f"the run sees the data {epochs:,.0f} times: watch the validation loss, give more text, raise "
            "model.dropout_rate or lower train.num_steps"
        )
    for source in data.sources if data is not None else ():
        if source.epochs > REPEATED:
            found.append(
                f"source {source.name!r} is read {source.epochs:,.1f} times: give more of its text, lower its weight in "
                "data.mixture or train.num_steps"
            )
    if optim.warmup_steps >= train.num_steps:
        found.append(
            f"optim.warmup_steps={optim.warmup_steps} is not below train.num_steps={train.num_steps}: lower it, else the "
            "learning rate never reaches optim.learning_rate"
        )
    elif optim.schedule == "wsd" and optim.warmup_steps > (1 - optim.decay_fraction) * train.num_steps:
        found.append(
            f"optim.decay_fraction={optim.decay_fraction} starts the decay before the end of "
            f"optim.warmup_steps={optim.warmup_steps}: lower one of them"
        )
    if backend == "gpu" and model.table_rows % 128:
        found.append(
            f"the token table has {model.table_rows:,} rows, not a multiple of 128: set model.vocab_multiple=128"
        )
    if backend == "gpu" and model.dtype == "float32":
        found.append("model.dtype='float32' leaves most of a GPU's speed unused: set model.dtype='bfloat16'")
    if backend == "gpu" and train.attention == "auto" and not uses_fused_attention(model, "auto"):
        found.append(f"attention is not fused: {fused_obstacle(model)}")
    if model.num_tokens > LARGE_VOCABULARY and not train.loss_chunk and memory.logits > 0.1 * memory.total:
        found.append(
            f"logits take {as_bytes(memory.logits)}: set train.loss_chunk, a divisor of model.context_length"
        )
    if backend == "cpu" and train.remat != "none":
        found.append(
            f"train.remat={train.remat!r} costs time and frees no memory on CPU: set train.remat='none'"
        )
    if train.eval_every > train.num_steps:
        found.append(
            f"train.eval_every={train.eval_every} is above train.num_steps: lower it, else only the end is evaluated"
        )
    return found


def dry_run(cfg: Config) -> str:
    """The report on a run, as text. Only the token ids in the cache are written."""
    dataset = prepare_dataset(cfg.data)
    cfg = starting.resolve(cfg, dataset.tokenizer)
    if cfg.finds_documents:
        check_documents(dataset, cfg.model.end_id)
    data = DataSizes.of(cfg, dataset)
    start = starting.prepare(cfg, dataset.tokenizer)
    text = as_text(Preflight(cfg, data))
    return text if start is None else f"{start.text}\n\n{text}"


# --- text -----------------------------------------------------------------------------------------------


def as_text(found: Preflight) -> str:
    """The report as text."""
    cfg, tokens = found.cfg, found.tokens_per_step * found.cfg.train.num_steps
    width = max(len(row.path) for row in found.rows)
    lines = ["parameters"]
    for row in found.rows:
        shape = f"[{', '.join(map(str, row.shape))}]"
        times = f" x {row.copies}" if row.copies > 1 else ""
        frozen = "" if row.moves else "  frozen"
        lines.append(f"  {row.path:<{width}}  {shape + times:<24} {row.count:>17,}{frozen}")
    lines.append(f"  {'all':<{width}}  {'':<24} {found.num_params:>17,}")
    all_move = found.num_trainable == found.num_params
    if not all_move:
        lines.append(f"  {'trained':<{width}}  {'':<24} {found.num_trainable:>17,}")

    if found.sources:
        longest = max(len(source.name) for source in found.sources)
        lines += ["", "sources"]
        lines += [
            f"  {source.name:<{longest}}  {source.tokens:>17,} tokens  {source.share:>6.1%} of the rows  "
            f"{source.epochs:>8.3g} epochs"
            for source in found.sources
        ]
    cost, devices = found.cost, math.prod(found.mesh.values())
    spread = sharding.as_text(found.mesh)
    tied = " (the table is also the head)" if cfg.model.tie_embeddings else ""
    lines += [
        "",
        f"work                   {as_flop(cost.model_flops // found.tokens_per_step)} per trained token"
        + (
            f" = 6 x {costs.matmul_params(cfg.model):,} matrix parameters{tied} + 12 L H K T for attention"
            if all_move
            else ", without the gradients of frozen parameters"
        ),
        f"  a step               {as_flop(cost.model_flops)}"
        + (f" + {as_flop(cost.recomputed_flops)} recomputed (remat)" if cost.recomputed_flops else "")
        + (f" + {as_flop(cost.optimizer_flops)} of the optimizer" if cost.optimizer_flops else ""),
        f"  tokens               {found.tokens_per_step:,} per step x {cfg.train.num_steps:,} steps = "
        f"{tokens:,}" + ("" if found.epochs is None else f", {found.epochs:.3g} times the data"),
        *([f"  windows              {found.windows}"] if found.windows else []),
        f"  the run              {as_flop(cost.hardware_flops * cfg.train.num_steps)}",
        "",
        f"memory of a step       {as_bytes(found.memory_per_device.total)} predicted"
        + (f" on each of {devices} devices ({spread})" if devices > 1 else "")
        + f", {found.device} has {as_bytes(found.device_bytes)}",
    ]
    names = {
        "params": "parameters",
        "opt_state": "optimizer",
        "batch": "batch",
        "gradients": "gradients and copies",
        "logits": "logits",
        "activations": "activations",
    }
    for name, words in names.items():
        total, part = getattr(cost.memory, name), getattr(found.memory_per_device, name)
        lines.append(f"  {words:<20} {as_bytes(part)}" + (f" of {as_bytes(total)}" if devices > 1 else ""))
    if devices > 1:
        sent = found.traffic
        lines += [
            "",
            f"traffic of a step      {as_bytes(sent.total)} sent by each device: data {as_bytes(sent.data)}, fsdp {as_bytes(sent.fsdp)}, "
            f"tensor {as_bytes(sent.tensor)} (see jaxgpt/training/traffic.py)",
        ]
    if kept := snapshots.describe(cfg):
        lines += ["", f"snapshots              {kept}, on disk"]
    speed, seconds = found.matmul_flops_per_second, found.seconds_per_step
    lines += [
        "",
        f"time                   {as_duration(seconds * cfg.train.num_steps)} for the run, {as_duration(seconds)} per "
        "step, without compilation and evaluation",
        f"  measured             {as_flop(speed)}/s in a product of square {cfg.model.dtype} matrices",
        f"  assumed              {found.utilisation:.0%} of that for a step; python -m jaxgpt.bench measures it",
        "",
    ]
    lines += [f"warning: {line}" for line in found.warnings] or ["nothing looks wrong"]
    return "\n".join(lines)
