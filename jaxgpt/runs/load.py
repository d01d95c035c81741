"""Open a run folder for use, and write one for a model that was not trained there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp

from jaxgpt import config
from jaxgpt.common import door
from jaxgpt.common.files import expand, new_folder, write_json
from jaxgpt.config import Config, UserError
from jaxgpt.data import tokenizers
from jaxgpt.model.gpt import GPT
from jaxgpt.model.parameters import count_params, param_shapes
from jaxgpt.runs import records, snapshots
from jaxgpt.runs.checkpoint import FOLDER, Checkpoints, saved_steps, warn
from jaxgpt.runs.damage import DamagedCheckpoint
from jaxgpt.runs.state import TrainState


@dataclass(frozen=True)
class Run:
    """A trained model with its config and tokenizer.

    `run.model.apply({"params": run.params}, tokens_BT)` gives logits [B, T, V].
    """

    config: Config
    model: GPT
    params: dict
    tokenizer: tokenizers.Tokenizer
    step: int
    workdir: Path


def load(workdir: str | Path, step: int | str | None = None) -> Run:
    """Open a run folder: its latest valid checkpoint, a given step, or `step="best"`.

    A given step is one with a checkpoint or a snapshot (train.snapshots; `snapshots.saved_steps` lists them).

    Needs no config and no flags of the training, and works on any device. If the latest checkpoint is damaged, a
    warning is printed and the previous one is used. Raises UserError if the folder or the step does not exist, if the
    requested step is damaged, or if a checkpoint can't be read for another reason, such as missing rights.
    """
    folder = expand(workdir)
    if not folder.is_dir():
        raise UserError(f"no run folder {folder}: train a run first, or give another --workdir")
    door.check(folder)
    if not (folder / FOLDER).is_dir():
        raise UserError(f"{folder} is not a run folder: it has no {FOLDER}/")
    if isinstance(step, int) and step not in saved_steps(folder) and step in snapshots.saved_steps(folder):
        return _load_snapshot(folder, step)
    with Checkpoints(folder, read_only=True) as checkpoints:
        steps = checkpoints.steps()
        if not steps:
            raise UserError(f"{folder} has no checkpoint yet: train it for longer")
        if step == "best":
            step = checkpoints.best_step()
            if step is None:
                raise UserError(f"{folder} has no checkpoint with a validation loss: the steps are {steps}")
        if step is not None:
            if step not in steps:
                kept = snapshots.saved_steps(folder)
                what = "checkpoint or snapshot" if kept else "checkpoint"
                raise UserError(
                    f"{folder} has no {what} of step {step}: the steps are {sorted({*steps, *kept})}"
                )
            return _load_step(folder, checkpoints, int(step))
        for candidate in reversed(steps):
            try:
                return _load_step(folder, checkpoints, candidate)
            except DamagedCheckpoint as error:
                warn(f"{error}; trying the one before")
    raise UserError(f"every checkpoint of {folder} is damaged: {steps}")


def _load_snapshot(folder: Path, step: int) -> Run:
    cfg, tokenizer, params = snapshots.read(folder, step)
    return Run(cfg, GPT(cfg.model), params, tokenizer, step, folder)


def _load_step(folder: Path, checkpoints: Checkpoints, step: int) -> Run:
    cfg, tokenizer, sums = checkpoints.read_facts(step)
    item = "averaged" if "averaged" in sums else "params"
    params = checkpoints.restore(step, **{item: param_shapes(cfg.model)})[item]
    return Run(cfg, GPT(cfg.model), params, tokenizer, step, folder)


def write_run(
    workdir: Path,
    cfg: Config,
    params: dict,
    tokenizer: tokenizers.Tokenizer,
    step: int,
    facts: dict[str, Any],
    more: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """Write a run folder with one checkpoint, of a model that was not trained there: completely or not at all.

    `facts["imported"]` tells run.json where the model comes from. Such a folder can be used and trained from (init_from),
    but not trained in. `more` are files by name that are stored too. `workdir` must be absent or empty.
    """
    facts = facts | {
        "tokenizer": tokenizer.kind,
        "tokenizer_sha256": tokenizers.fingerprint(tokenizer),
        "vocab_size": tokenizer.vocab_size,
        "num_params": count_params(params),
    }
    records.make_folder(workdir.parent)
    with new_folder(workdir) as temporary:
        write_json(temporary / "config.json", config.to_json(cfg))
        records.write_run_json(temporary, facts, step)
        tokenizers.save(tokenizer, temporary / "tokenizer.json")
        for name, content in more.items():
            (temporary / name).write_bytes(content)
        with Checkpoints(temporary) as checkpoints:
            checkpoints.save(TrainState(jnp.int32(step), params, None), cfg, tokenizer)
