"""What a run will be, told before it starts: parameters, operations, memory, time, and what looks wrong.

    python -m jaxgpt.train --config configs/gpt2.py --dry_run

Nothing is compiled but one small matrix product, which measures how fast the device multiplies.
"""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxgpt.config import Config
from jaxgpt.data import batches
from jaxgpt.data.dataset import prepare_dataset
from jaxgpt.model import sharding
from jaxgpt.model.attention import uses_fused_attention
from jaxgpt.model.parameters import param_shapes
from jaxgpt.model.paths import named_leaves
from jaxgpt.training import costs, starting, traffic, trainable

# Assumed shares of the measured matrix speed that a whole step keeps, and said to be so in the report. On 2 CPU
# cores the toy model kept 0.45 and 6 x 384 0.7 of it; published single-GPU trainings of GPT-2 keep 0.3 to 0.45.
ASSUMED_UTILISATION = {"cpu": 0.5, "gpu": 0.35}
MANY_EPOCHS = 20  # more passes over the same text than this mostly learn it by heart
LARGE_VOCABULARY = 16_384


@dataclass(frozen=True)
class Facts:
    """What is known of the data once it is prepared."""

    train_tokens: int
    valid_tokens: int


@dataclass(frozen=True)
class Row:
    """A parameter, or the same one of several like blocks."""

    path: str
    shape: tuple[int, ...]
    copies: int  # how many blocks it stands for
    moves: bool = True  # not frozen

    @property
    def count(self) -> int:
        return self.copies * math.prod(self.shape)


@dataclass(frozen=True)
class Preflight:
    """The report of a dry run. Bytes, operations of matrix products, seconds."""

    rows: list[Row]
    num_params: int
    num_trainable: int
    mesh: dict[str, int]  # devices along each of its axes
    cost: costs.StepCost
    memory_per_device: costs.Memory  # cost.memory's, as the mesh spreads it
    traffic: traffic.Traffic  # bytes that each device sends in a step
    flops_per_token: int
    tokens_per_step: int
    tokens: int
    epochs: float | None  # None: the data is not known yet
    device: str
    device_bytes: int
    matmul_flops_per_second: float
    utilisation: float  # assumed
    warnings: list[str]

    @property
    def seconds_per_step(self) -> float:
        """An estimate, by the measured matrix speed and the assumed utilisation; nothing counted for sending."""
        # Several CPU devices share one CPU.
        devices = 1 if self.device == "cpu" else math.prod(self.mesh.values())
        return self.cost.hardware_flops / (devices * self.matmul_flops_per_second * self.utilisation)


def matmul_speed(dtype: str, size: int, seconds: float = 0.3) -> float:
    """Operations a second of a product of two square matrices, the best of several within `seconds`."""
    a = jax.jit(lambda: jnp.ones((size, size), dtype))()
    product = jax.jit(lambda a: a @ a)
    jax.block_until_ready(product(a))
    best, end = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < end or best == math.inf:
        began = time.perf_counter()
        # Several a reading, so that what a dispatch costs is shared.
        jax.block_until_ready([product(a) for _ in range(4)])
        best = min(best, (time.perf_counter() - began) / 4)
    return 2 * size**3 / best


def param_rows(shapes: dict, moves: Callable[[str], bool] = lambda _: True) -> list[Row]:
    """All parameters, what is the same in neighbouring blocks folded: `block_0..11/mlp/up/kernel`."""
    blocks: dict[str, list[tuple[int, tuple[int, ...], bool]]] = {}
    order: list[tuple[str, tuple[int, ...]]] = []
    for path, leaf in named_leaves(shapes):
        if match := re.fullmatch(r"block_(\d+)/(.+)", path):
            if match[2] not in blocks:
                order.append((match[2], ()))
            blocks.setdefault(match[2], []).append((int(match[1]), leaf.shape, moves(path)))
        else:
            order.append((path, leaf.shape))
    rows = []
    for path, shape in order:
        if path not in blocks:
            rows.append(Row(path, shape, 1, moves(path)))
            continue
        numbers = sorted(blocks[path])
        while numbers:  # one run of like blocks after another
            first, shape, moving = numbers[0]
            run = 1
            while run < len(numbers) and numbers[run] == (first + run, shape, moving):
                run += 1
            name = f"block_{first}" if run == 1 else f"block_{first}..{first + run - 1}"
            rows.append(Row(f"{name}/{path}", shape, run, moving))
            numbers = numbers[run:]
    return rows


def report(cfg: Config, facts: Facts | None) -> Preflight:
    """The report of a config whose model.vocab_size is known; without facts nothing is said of the data."""
    backend = jax.default_backend()
    shapes = param_shapes(cfg.model)
    rows = param_rows(shapes, trainable.moves(cfg.optim, shapes))
    cost = costs.step_cost(cfg, backend)
    tokens_per_step = cfg.data.batch_size * cfg.model.context_length
    epochs = None
    if facts is not None and facts.train_tokens > cfg.model.context_length:
        epochs = cfg.train.num_steps / batches.steps_per_epoch(
            facts.train_tokens, context_length=cfg.model.context_length, batch_size=cfg.data.batch_size
        )
    memory = sharding.device_memory()
    sizes = sharding.mesh_sizes(cfg.mesh, jax.device_count())
    sharding.check(sizes, shapes, cfg)
    a_device = costs.memory_per_device(cfg, cost.memory, sizes)
    return Preflight(
        rows=rows,
        mesh=sizes,
        memory_per_device=a_device,
        traffic=traffic.traffic(cfg, sizes),
        num_params=sum(row.count for row in rows),
        num_trainable=sum(row.count for row in rows if row.moves),
        cost=cost,
        flops_per_token=cost.model_flops // tokens_per_step,
        tokens_per_step=tokens_per_step,
        tokens=tokens_per_step * cfg.train.num_steps,
        epochs=epochs,
        device=jax.devices()[0].device_kind,
        device_bytes=memory,
        matmul_flops_per_second=matmul_speed(cfg.model.dtype, 1024 if backend == "cpu" else 8192),
        utilisation=ASSUMED_UTILISATION.get(backend, ASSUMED_UTILISATION["gpu"]),
        warnings=warnings(cfg, facts, epochs, a_device, memory, backend),
    )


def warnings(
    cfg: Config, facts: Facts | None, epochs: float | None, memory: costs.Memory, limit: int, backend: str
) -> list[str]:
    """What can be run but is hardly meant, one line each with what to do."""
    model, optim, train = cfg.model, cfg.optim, cfg.train
    found = []
    if memory.total > limit:
        found.append(
            f"a step needs about {_bytes(memory.total)}, the device has {_bytes(limit)}: raise "
            "train.grad_accumulation_steps, lower data.batch_size or the model"
            + ("" if backend == "cpu" else ", or set train.remat and train.loss_chunk")
        )
    if facts is not None and facts.train_tokens <= model.context_length:
        found.append(
            f"{facts.train_tokens:,} training tokens are fewer than one window of {model.context_length + 1}: "
            "give more text or lower model.context_length"
        )
    if facts is not None and facts.valid_tokens < 20 * model.context_length:
        found.append(
            f"{facts.valid_tokens:,} validation tokens are fewer than 20 windows: the validation loss will be "
            "noisy, raise data.valid_fraction"
        )
    if epochs is not None and epochs < 1:
        found.append(f"the run sees {epochs:.2f} of the data: raise train.num_steps if all is to be seen")
    if epochs is not None and epochs > MANY_EPOCHS:
        found.append(
            f"the run sees the data {epochs:,.0f} times: watch the validation loss, or give more text, "
            "model.dropout_rate or fewer steps"
        )
    if optim.warmup_steps >= train.num_steps:
        found.append(
            f"optim.warmup_steps={optim.warmup_steps} is the whole run of {train.num_steps} steps: the rate never "
            "reaches optim.learning_rate"
        )
    elif optim.schedule == "wsd" and optim.warmup_steps > (1 - optim.decay_fraction) * train.num_steps:
        found.append(
            f"optim.decay_fraction={optim.decay_fraction} begins its decay before the {optim.warmup_steps} steps "
            "of warm-up are over: lower one of them"
        )
    if backend == "gpu" and model.table_rows % 128:
        found.append(
            f"the tables have {model.table_rows:,} rows, not a multiple of 128: set model.vocab_multiple=128"
        )
    if backend == "gpu" and model.dtype == "float32":
        found.append("model.dtype='float32' leaves most of a GPU's speed unused: set model.dtype='bfloat16'")
    if backend == "gpu" and train.attention == "auto" and not uses_fused_attention(model, "auto"):
        found.append(f"attention is not fused: {model.cudnn_obstacle}")
    if model.vocab_size > LARGE_VOCABULARY and not train.loss_chunk and memory.logits > 0.1 * memory.total:
        found.append(
            f"logits take {_bytes(memory.logits)}: set train.loss_chunk, a divisor of model.context_length"
        )
    if backend == "cpu" and train.remat != "none":
        found.append(
            f"train.remat={train.remat!r} costs time and frees no memory on CPU, where XLA keeps what it computes "
            "twice: set train.remat='none'"
        )
    if train.eval_every > train.num_steps:
        found.append(f"train.eval_every={train.eval_every} is longer than the run: only the end is evaluated")
    return found


def dry_run(cfg: Config) -> str:
    """What the run would be, as text. Nothing is written but the cache of the text's ids."""
    dataset = prepare_dataset(cfg.data)
    facts = Facts(len(dataset.train.ids), len(dataset.valid.ids))
    cfg = starting.resolve(cfg, dataset.tokenizer)
    start = starting.prepare(cfg, dataset.tokenizer)
    text = as_text(cfg, report(cfg, facts))
    return text if start is None else f"{start.text}\n\n{text}"


# --- text -----------------------------------------------------------------------------------------------


def as_text(cfg: Config, found: Preflight) -> str:
    """The report as lines to read."""
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

    cost, devices = found.cost, math.prod(found.mesh.values())
    spread = sharding.as_text(found.mesh)
    tied = " (the table is also the head)" if cfg.model.tie_embeddings else ""
    lines += [
        "",
        f"work                   {_number(found.flops_per_token)}FLOP a token of training"
        + (
            f" = 6 x {costs.matmul_params(cfg.model):,} matrix parameters{tied} + 12 L H K T for attention"
            if all_move
            else ", without the gradients of what is frozen"
        ),
        f"  a step               {_number(cost.model_flops)}FLOP"
        + (f" + {_number(cost.recomputed_flops)}FLOP computed again (remat)" if cost.recomputed_flops else "")
        + (f" + {_number(cost.optimizer_flops)}FLOP of the optimizer" if cost.optimizer_flops else ""),
        f"  tokens               {found.tokens_per_step:,} a step x {cfg.train.num_steps:,} steps = "
        f"{found.tokens:,}" + ("" if found.epochs is None else f", {found.epochs:.3g} times the data"),
        f"  the run              {_number(cost.hardware_flops * cfg.train.num_steps)}FLOP",
        "",
        f"memory of a step       {_bytes(found.memory_per_device.total)} predicted"
        + (f" on each of {devices} devices ({spread})" if devices > 1 else "")
        + f", {found.device} has {_bytes(found.device_bytes)}",
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
        whole, part = getattr(cost.memory, name), getattr(found.memory_per_device, name)
        lines.append(f"  {words:<20} {_bytes(part)}" + (f" of {_bytes(whole)}" if devices > 1 else ""))
    if devices > 1:
        sent = found.traffic
        lines += [
            "",
            f"traffic of a step      {_bytes(sent.total)} sent by each device: data {_bytes(sent.data)}, fsdp {_bytes(sent.fsdp)}, "
            f"tensor {_bytes(sent.tensor)} (see jaxgpt/traffic.py)",
        ]
    speed, seconds = found.matmul_flops_per_second, found.seconds_per_step
    lines += [
        "",
        f"time                   {_duration(seconds * cfg.train.num_steps)} for the run, {_duration(seconds)} a "
        "step, without compiling and evaluating",
        f"  measured             {_number(speed)}FLOP/s in a product of square {cfg.model.dtype} matrices",
        f"  assumed              {found.utilisation:.0%} of that for a whole step; python -m jaxgpt.bench measures it",
        "",
    ]
    lines += [f"warning: {line}" for line in found.warnings] or ["nothing looks wrong"]
    return "\n".join(lines)


def _bytes(count: float) -> str:
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:,.2f} {unit}"
    return f"{count:.0f} B"


def _number(count: float) -> str:
    """`3.2 T` of 3.2e12."""
    for unit, size in (("Z", 1e21), ("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:.0f} "


def _duration(seconds: float) -> str:
    for unit, size in (("years", 365 * 86_400), ("days", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds * 1000:.1f} ms"


def to_json(found: Preflight) -> dict[str, Any]:
    """The report as plain values."""
    return {**dataclasses.asdict(found), "seconds_per_step": found.seconds_per_step}
