"""Models that differ in one or two fields, trained alike with the same seeds: what several claims compare."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import trained
from experiments.claim import Setting, mean
from experiments.trained import changed
from jaxgpt import config
from jaxgpt.config import Config, UserError
from jaxgpt.data.batches import Batches, eval_batches
from jaxgpt.data.dataset import prepare_dataset
from jaxgpt.model.gpt import GPT
from jaxgpt.model.parameters import init_params
from jaxgpt.runs import metrics_log
from jaxgpt.sweeps import groups
from jaxgpt.sweeps.members import Row
from jaxgpt.training import costs, evaluation, starting, steps

# For comparisons of widths: learning rates that suit every d_model alike (muP; Yang et al. 2022).
WIDTHS_ALIKE = {
    "optim.parametrization": "mup", "optim.mup_base_width": 64, "optim.weight_decay": 0.0, "optim.b2": 0.95,
    "optim.learning_rate": 2.0**-6, "optim.final_learning_rate_ratio": 0.0064, "model.init": "fan_in", "model.tie_embeddings": False, "model.zero_init": True,
}  # fmt: skip


LONG_LABEL = 7  # characters; labels below an axis that are longer would overlap


def base(setting: Setting, **overrides: Any) -> Config:
    """A character model of Shakespeare that learns in seconds; overrides by dotted name with `__` for the dot.

    Positions are rotary: with these a model attends within a hundred steps; with learned ones it stays near a bigram
    table's loss for most of so short a training.
    """
    pick = setting.pick
    small = Config(
        model=config.ModelConfig(
            context_length=pick(8, 32, 256), d_model=pick(8, 64, 384), num_layers=pick(1, 2, 6), num_heads=pick(2, 4, 6),
            activation="relu", position="rotary",
        ),
        data=dataclasses.replace(
            trained.text_of(setting, "shakespeare", pick(40_000, None, None)), batch_size=pick(2, 16, 64)
        ),
        optim=config.OptimConfig(
            learning_rate=pick(1e-2, 4e-3, 1e-3), final_learning_rate_ratio=pick(0.01, 0.025, 0.1), warmup_steps=pick(1, 20, 100)
        ),
        train=config.TrainConfig(
            num_steps=pick(3, 300, 3_000), eval_every=0, eval_tokens=pick(64, 16_384, 65_536), eval_batch_size=pick(8, 64, 64),
            log_every=pick(1, 20, 100), checkpoint_every=0, keep_checkpoints=1, sample_tokens=0, embedding_snapshots=0,
        ),
    )  # fmt: skip
    return changed(small, {name.replace("__", "."): value for name, value in overrides.items()})


def train(
    setting: Setting,
    name: str,
    base: Config,
    variants: dict[str, dict[str, Any]],
    by_seed: Sequence[dict[str, Any]] = (),
    diverging: bool = False,
) -> dict[str, list[Row]]:
    """Train every variant (fields by dotted name) with every seed; returns rows by label, in the order of the seeds.

    `by_seed` holds fields that differ by seed, in the order of the seeds. Raises UserError if a training failed; with
    `diverging`, a row whose loss became infinite stays, with that loss.
    """
    members = [
        {**overrides, "train.seed": seed, **(by_seed[place] if by_seed else {})}
        for overrides in variants.values()
        for place, seed in enumerate(setting.seed_numbers)
    ]
    what = json.dumps([config.to_json(base), members], sort_keys=True)
    folder = setting.folder / f"{name}_{hashlib.sha256(what.encode()).hexdigest()[:8]}"
    options = groups.Options()
    if jax.default_backend() == "cpu":
        # One lane at a time: batching the matrices of small models is slower on a CPU.
        options = groups.Options(width=1, group_size=len(members))
    rows = groups.run(base, members, folder, options)
    if diverging:
        rows = [row if row.done else _diverged(row) for row in rows]
    if failed := [f"{row.workdir}: {row.status}" for row in rows if not row.done]:
        raise UserError(f"training failed: {'; '.join(failed)}")
    each = iter(rows)
    return {label: [next(each) for _ in range(setting.seeds)] for label in variants}


def _diverged(row: Row) -> Row:
    """A row that failed because its loss was not finite, as one that is done; others unchanged."""
    if row.status.startswith("failed") and "finite" in row.status:
        return dataclasses.replace(row, status="done", valid_loss=math.inf)
    return row


def losses(rows: Sequence[Row]) -> list[float]:
    """Final validation losses."""
    return [float(row.valid_loss) for row in rows]


def curve(workdir: Path) -> dict[int, float]:
    """The validation loss by step."""
    lines = metrics_log.read(workdir, sys.maxsize)
    return {line["step"]: line["loss"] for line in lines if line["split"] == "valid"}


def last(workdir: Path, name: str) -> float:
    """A number of the last validation."""
    lines = metrics_log.read(workdir, sys.maxsize)
    return [line[name] for line in lines if line["split"] == "valid"][-1]


def resolved(cfg: Config) -> Config:
    """The config with the vocabulary size of its text."""
    return starting.resolve(cfg, prepare_dataset(cfg.data).tokenizer)


def size(cfg: Config) -> dict[str, int]:
    """The number of parameters, and the predicted bytes of a training step."""
    cost = costs.step_cost(resolved(cfg), "cpu")
    return {"parameters": cost.memory.params // 4, "bytes": cost.memory.total}


def loss_on(
    model: GPT, params: dict, ids: np.ndarray, tokens: int, batch_size: int = 64
) -> evaluation.Evaluation:
    """The evaluation on the first `tokens` tokens."""
    windows = eval_batches(
        ids, context_length=model.cfg.context_length, batch_size=batch_size, max_tokens=tokens
    )
    return evaluation.evaluate(model, params, windows)


def step_times(configs: dict[str, Config], rounds: int) -> dict[str, list[float]]:
    """Seconds of a training step in each round, one step of each config in turns, so that other load on the machine
    affects all alike. The first round, which compiles, is not counted."""
    calls, times = {}, {label: [] for label in configs}
    for label, cfg in configs.items():
        cfg = resolved(cfg)
        ids, parts = prepare_dataset(cfg.data).train.ids, steps.build(cfg)
        params = init_params(parts.model, jax.random.key(0))
        state = steps.init_state(parts.model, parts.optimizer, params)
        batch = Batches(ids, 0, cfg.data.batch_size, cfg.model.context_length).at(0)
        calls[label] = [jax.jit(parts.train_step, donate_argnums=0), state, batch]
    for number in range(rounds + 1):
        for label, call in calls.items():
            step, state, batch = call
            start = time.perf_counter()
            call[1], metrics = step(state, batch, jax.random.key(0))
            jax.block_until_ready(metrics["loss"])
            if number:
                times[label].append(time.perf_counter() - start)
    return times


def draw_seeds(axis: Any, by_label: dict[str, list[float]], what: str, long: bool | None = None) -> None:
    """For each label: a point per seed, and the mean with its 95 % interval. Long labels stand in a column at the left."""
    if long is None:
        long = max(map(len, by_label)) > LONG_LABEL
    for place, values in enumerate(by_label.values()):
        found, places = mean(values), [place] * len(values)
        points = np.array(values, float)
        axis.plot(*((points, places) if long else (places, points)), "o", color="#9db8d6", markersize=4)
        if math.isfinite(found.low):
            error = [[found.value - found.low], [found.high - found.value]]
            at, spread = ((found.value, place), "xerr") if long else ((place, found.value), "yerr")
            axis.errorbar(*at, **{spread: error}, fmt="s", color="#1f5fa8", markersize=5, capsize=4)
    if long:
        axis.set_yticks(range(len(by_label)), list(by_label), fontsize=7)
        axis.set_ylim(len(by_label) - 0.5, -0.5)
        axis.set_xlabel(what)
    else:
        axis.set_xticks(range(len(by_label)), list(by_label))
        axis.set_xlim(-0.5, len(by_label) - 0.5)
        axis.set_ylabel(what)
