"""One run on disk while it trains: its lock, config, metrics, samples and checkpoints, and what became of it."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxgpt.common import processes
from jaxgpt.config import Config, to_json
from jaxgpt.data import tokenizers
from jaxgpt.data.dataset import Dataset
from jaxgpt.model.gpt import GPT
from jaxgpt.model.parameters import init_params
from jaxgpt.runs import checkpoint, records
from jaxgpt.runs.state import TrainState
from jaxgpt.training import starting
from jaxgpt.training.evaluation import Evaluation
from jaxgpt.training.guard import Guard


class RunFolder:
    """Takes a folder for one run. Raises UserError where it holds another, or cannot be had."""

    def __init__(self, cfg: Config, workdir: str | Path, dataset: Dataset) -> None:
        self.cfg, self.workdir = cfg, Path(workdir)
        self._dataset = dataset
        # A run that goes on does not read again what it began as.
        self.start = None if starting.begun(workdir) else starting.prepare(cfg, dataset.tokenizer)
        self.root_key = jax.random.key(cfg.train.seed)
        self.guard = Guard(cfg)
        self.failed = ""  # why it came to an early end
        self.log: records.MetricsLog | None = None
        self._lock: records.FolderLock | None = None
        self._writes = processes.is_first()
        try:
            processes.on_first(self._open)
            self.checkpoints = checkpoint.Checkpoints(self.workdir, keep=cfg.train.keep_checkpoints)
        except BaseException:
            self.release()
            raise

    def _open(self) -> None:
        """Take the folder for this run alone; refuse one that holds another; write what the run is."""
        records.make_folder(self.workdir)
        self._lock = records.FolderLock(self.workdir)
        records.check_same_config(self.workdir, self.cfg)
        records.check_same_text(
            self.workdir, text_sha256=self._dataset.text_sha256, tokenizer_sha256=self._dataset.fingerprint
        )
        records.write_json(self.workdir / "config.json", to_json(self.cfg))
        tokenizers.save(self._dataset.tokenizer, self.workdir / "tokenizer.json")

    def release(self) -> None:
        """Let go of the folder."""
        if self._lock is not None:
            self._lock.release()

    def close(self) -> None:
        """Finish all saves and let go of the folder."""
        try:
            if self.log is not None:
                self.log.close()
            self.checkpoints.close()
        finally:
            self.release()

    def first_params(self, model: GPT) -> dict:
        """The parameters of step 0."""
        key = jax.random.fold_in(self.root_key, 2**32 - 1)  # not a key that a step draws its masks with
        self.start = self.start or starting.prepare(self.cfg, self._dataset.tokenizer)
        if self.start is None:
            return init_params(model, key)
        records.check_same_source(self.workdir, self.start.record)
        return self.start.params(model, key)

    def newest(self, shapes: TrainState) -> TrainState | None:
        """Its newest whole checkpoint, or None."""
        return self.checkpoints.newest(self.cfg, self._dataset.tokenizer, shapes)

    # --- what is written --------------------------------------------------------------------------------

    def open_log(self, step: int) -> None:
        """Go on with metrics.jsonl after a step."""
        self.log = records.MetricsLog(self.workdir, step, self.cfg.train.tensorboard, self._writes)

    def write_facts(self, facts: dict[str, Any], step: int) -> None:
        """Write run.json. What the run was begun from need not be kept any longer."""
        if self.start is not None:
            facts = facts | {"started_from": self.start.record}
        if self._writes:
            records.write_run_json(self.workdir, facts, step)
        self.start = None

    def log_step(
        self,
        step: int,
        loss: float,
        learning_rate: float,
        grad_norm: float,
        bad: bool,
        tokens_per_second: float,
    ) -> None:
        """A "train" line."""
        self.log.write(
            step,
            "train",
            loss=loss if math.isfinite(loss) else None,  # JSON has no nan
            learning_rate=learning_rate,
            grad_norm=grad_norm if math.isfinite(grad_norm) else None,
            tokens_per_second=round(tokens_per_second, 1),
            time=round(time.time(), 3),
            **({"skipped": True} if bad else {}),
        )

    def log_evaluation(self, step: int, result: Evaluation, seconds: float) -> bool:
        """A "valid" line. True where the loss is the run's lowest so far, step 0 apart."""
        earlier = [loss for at, loss in self.log.valid_losses().items() if at > 0]
        self.log.write(
            step,
            "valid",
            loss=result.loss,
            standard_error=result.standard_error,
            tokens=result.tokens,
            seconds=round(seconds, 3),
            time=round(time.time(), 3),
        )
        return step > 0 and result.loss < min(earlier, default=math.inf)

    def keep_sample(self, step: int, text: str) -> None:
        """The text that the model wrote at a step."""
        if self._writes:
            records.write_sample(self.workdir, step, text)

    def keep_tables(self, step: int, tables: dict[str, np.ndarray]) -> None:
        """The embedding tables of a step."""
        if self._writes:
            records.write_embeddings(self.workdir, step, tables, self.cfg.model.vocab_size)

    def save(self, state: TrainState, step: int, averaged: dict | None) -> None:
        """A checkpoint."""
        loss = self.log.valid_losses().get(step)
        # Those of several runs come from the host; those of several processes stay where they are.
        state, averaged = jax.tree.map(
            lambda x: x if isinstance(x, jax.Array) else jax.device_put(x), (state, averaged)
        )
        self.checkpoints.save(state, self.cfg, self._dataset.tokenizer, loss, averaged, before=self.log.sync)

    def last_checkpoint(self) -> str:
        saved = self.checkpoints.steps()
        return f"step {saved[-1]}" if saved else "none"
