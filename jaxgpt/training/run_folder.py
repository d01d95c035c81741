"""One run on disk while it trains: its lock, config, metrics, samples and checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxgpt.common import door, processes
from jaxgpt.common.files import write_atomically, write_json
from jaxgpt.common.say import say
from jaxgpt.config import Config, UserError, changed_values, to_json
from jaxgpt.data import tokenizers
from jaxgpt.data.dataset import Dataset
from jaxgpt.model.gpt import GPT
from jaxgpt.model.parameters import init_params
from jaxgpt.runs import checkpoint, metrics_log, records, snapshots
from jaxgpt.runs.state import TrainState
from jaxgpt.training import starting
from jaxgpt.training.evaluation import Evaluation
from jaxgpt.training.guard import Guard
from jaxgpt.training.steps import compiler_options

if TYPE_CHECKING:
    from jaxgpt.runs.trackers.feed import Feed

Lines = list[tuple[str, dict[str, float | None]]]


class RunFolder:
    """Takes a folder for one run. Raises UserError where the folder holds another run or can't be used.

    With `restart`, what the folder has is moved aside and the run starts at step 0. A run that is `alone` raises the
    error that ends it early. One of several keeps it in `failed`, and the others continue. `group` is the sweep that it is a
    member of, for trackers.
    """

    def __init__(
        self,
        cfg: Config,
        workdir: str | Path,
        dataset: Dataset,
        alone: bool = True,
        restart: bool = False,
        group: str = "",
    ) -> None:
        self.cfg, self.workdir, self._group = cfg, Path(workdir), group
        self._dataset, self._alone, self._restart = dataset, alone, restart
        door.check(self.workdir)
        # A run that resumes does not read its source again.
        resumes = checkpoint.saved_steps(self.workdir) and not restart
        self.start = None if resumes else starting.prepare(cfg, dataset.tokenizer)
        self._guard = Guard(cfg)
        self.failed = ""  # the error that ended it early
        self.improved_at: int | None = None  # the last step whose validation loss was the lowest so far
        self.log: metrics_log.MetricsLog  # from `open_log` on
        self.snapshots: snapshots.Snapshots | None = None  # from `open_log` on
        self.feeds: list[Feed] = []  # one for each tracker, from `open_log` on
        self._lock: records.FolderLock | None = None
        self._writes = processes.is_first()
        try:
            processes.on_first(self._open)
            self.checkpoints = checkpoint.Checkpoints(
                self.workdir, keep=cfg.train.keep_checkpoints, hold=alone or not processes.is_alone()
            )
        except BaseException:
            self.release()
            raise

    def _open(self) -> None:
        """Lock the folder, refuse one that holds another run, write the config and the tokenizer."""
        records.make_folder(self.workdir)
        self._lock = records.FolderLock(self.workdir)
        if self._restart and (place := records.set_aside(self.workdir)):
            say(f"starts over: what {self.workdir} had is in {place}")
        steps_done = max(checkpoint.saved_steps(self.workdir), default=0)
        old = records.check_same_config(self.workdir, self.cfg, steps_done)
        self._check_not_lost(steps_done)
        self._changes = {} if old is None else changed_values(old, self.cfg)
        if steps_done and self._changes.keys() & {"init_from", "init_vectors"}:
            found = starting.prepare(self.cfg, self._dataset.tokenizer)
            if found is not None:
                records.check_same_source(self.workdir, found.record)
        records.check_same_text(
            self.workdir,
            text_sha256=self._dataset.text_sha256,
            valid_text_sha256=self._dataset.valid_sha256,
            tokenizer_sha256=self._dataset.fingerprint,
        )
        records.check_same_validation(self.workdir, {text.name: text.sha256 for text in self._dataset.named})
        if old is None:
            self._write_config()
        tokenizers.save(self._dataset.tokenizer, self.workdir / "tokenizer.json")
        if self.cfg.data.template == "tokenizer":
            from jaxgpt.data import chat_templates

            source = chat_templates.of_path(self.cfg.data.tokenizer_path).source
            write_atomically(self.workdir / chat_templates.FILE, source.encode())

    def _check_not_lost(self, steps_done: int) -> None:
        """Raise UserError where the log says that steps were done and the folder of checkpoints is not there."""
        place = self.workdir / checkpoint.FOLDER
        if steps_done or place.exists() or not any(x["step"] for x in metrics_log.lines(self.workdir)):
            return
        raise UserError(
            f"{self.workdir} has a log of steps and no folder {checkpoint.FOLDER}: bring it back (a disk that is missing?); to start from "
            f"step 0 move {self.workdir} away, or let train do it with --restart"
        )

    def _write_config(self) -> None:
        write_json(self.workdir / "config.json", to_json(self.cfg))

    def release(self) -> None:
        """Unlock the folder."""
        if self._lock is not None:
            self._lock.release()

    def close(self) -> None:
        """Finish all saves and unlock the folder."""
        try:
            if self.snapshots is not None:
                self.snapshots.wait()
        finally:
            try:
                self.checkpoints.close()
            finally:
                self.release()

    def first_params(self, model: GPT) -> dict:
        """The parameters at step 0."""
        root_key = jax.random.key(self.cfg.train.seed)
        key = jax.random.fold_in(root_key, 2**32 - 1)  # no step draws its dropout masks with this key
        self.start = self.start or starting.prepare(self.cfg, self._dataset.tokenizer)
        if self.start is None:
            return init_params(model, key)
        records.check_same_source(self.workdir, self.start.record)
        return self.start.params(model, key)

    def newest(self, shapes: TrainState) -> TrainState | None:
        """The newest complete checkpoint, or None."""
        return self.checkpoints.restore_latest(self.cfg, self._dataset.tokenizer, shapes)

    # --- what is written --------------------------------------------------------------------------------

    def open_log(self, step: int) -> None:
        """Open metrics.jsonl and the snapshots to append after a step, and start the trackers, which read the log."""
        self.snapshots = snapshots.Snapshots(self.workdir, step)
        self.log = metrics_log.MetricsLog(self.workdir, step, self._writes)
        if self._writes and (names := self.cfg.train.tracker_names):
            from jaxgpt.runs.trackers import tracker
            from jaxgpt.runs.trackers.feed import Feed

            run = tracker.describe(self.cfg, self.workdir, self._group, step)
            self.feeds = [Feed(name, run) for name in names]

    def step_is_logged(self, step: int) -> None:
        """Everything up to a step is in the log: trackers may have it."""
        for feed in self.feeds:
            feed.written = step

    def write_facts(self, facts: dict[str, Any], step: int) -> None:
        """Write run.json. After that, the initial parameters from elsewhere need no memory."""
        if self.start is not None:
            facts = facts | {"started_from": self.start.record}
        if self._writes:
            (self.workdir / checkpoint.FOLDER).mkdir(exist_ok=True)  # before the first step is logged
            options = compiler_options(self.cfg)
            records.write_run_json(self.workdir, facts, step, self._changes, options)
            if "train.num_steps" in self._changes:
                before, after = self._changes["train.num_steps"]
                self.log.write(step, "change", num_steps=after, num_steps_before=before)
            self._write_config()  # last: a change is recorded before it is in force
        self.start = None

    def check_step(self, step: int, metrics: dict[str, np.ndarray], params: Callable[[], dict]) -> str:
        """Let the guard see a step's metrics. Returns a line to print, "" where the step is fine."""
        if self.failed:
            return ""
        try:
            text = self._guard.check(step, metrics, params, self.last_checkpoint)
        except UserError as error:
            return self.fail(error)
        return self._labelled(text) if text else ""

    def fail(self, error: UserError) -> str:
        """End the run early. Raises the error where the run is alone, else returns a line to print."""
        if self._alone:
            raise error
        self.failed = str(error)
        return self._labelled(self.failed)

    def _labelled(self, text: str) -> str:
        return text if self._alone else f"{self.workdir}: {text}"

    def log_step(self, step: int, metrics: dict[str, np.ndarray], tokens_per_second: float) -> None:
        """A "train" line with every metric that is one number; JSON has no nan, so null stands for it."""
        numbers = {
            name: float(x)
            for name, x in metrics.items()
            if x.ndim == 0 and x.dtype != bool and "/" not in name
        }
        self.log.write(
            step,
            "train",
            **{name: _finite(x) for name, x in numbers.items()},
            tokens_per_second=round(tokens_per_second, 1),
            time=round(time.time(), 3),
            **({"skipped": True} if metrics["bad"] else {}),
        )

    def log_groups(self, step: int, metrics: dict[str, np.ndarray]) -> None:
        """A line of the split GROUP with the numbers that are named GROUP/NAME."""
        groups: dict[str, dict[str, float | None]] = {}
        for name, x in metrics.items():
            group, slash, rest = name.partition("/")
            if slash:
                groups.setdefault(group, {})[rest] = _finite(float(x))
        if groups:
            self.log.write_lines(step, list(groups.items()))

    def log_evaluation(
        self, step: int, texts: dict[str, tuple[Evaluation, float]], seconds: float, more: Lines
    ) -> None:
        """A "valid" line, of the text "", and a "valid/NAME" line for each other: (result, bits per byte) by name.

        `more` are other lines of the evaluation. Notes whether the loss is the lowest so far; step 0 does not count.
        """
        result, _ = texts[""]
        earlier = [loss for at, loss in self.log.valid_losses().items() if at > 0]
        if step > 0 and result.loss < min(earlier, default=math.inf):
            self.improved_at = step
        lines: Lines = [
            (
                f"valid/{name}" if name else "valid",
                {
                    "loss": _finite(found.loss),
                    "standard_error": _finite(found.standard_error),
                    "tokens": found.tokens,
                    "bits_per_byte": _finite(bits),
                },
            )
            for name, (found, bits) in texts.items()
        ]
        lines[0][1].update(seconds=round(seconds, 3), time=round(time.time(), 3))
        self.log.write_lines(step, [*lines, *more])

    def keep_sample(self, step: int, text: str) -> None:
        """Keep the text that the model wrote at a step."""
        if self._writes:
            records.write_sample(self.workdir, step, text)

    def keep_tables(self, step: int, tables: dict[str, np.ndarray]) -> None:
        """Keep the embedding tables of a step."""
        if self._writes:
            records.write_embeddings(self.workdir, step, tables, self.cfg.model.num_tokens)

    def save(self, state: TrainState, step: int, averaged: dict | None) -> None:
        """Save a checkpoint, in the background."""
        loss = self.log.valid_losses().get(step)
        # Lanes come from the host. Arrays of several processes stay on their devices.
        state, averaged = jax.tree.map(
            lambda x: x if isinstance(x, jax.Array) else jax.device_put(x), (state, averaged)
        )
        earlier = [] if self.snapshots is None else self.snapshots.pending()

        def before() -> None:
            """No checkpoint is ahead of its metrics and snapshots."""
            self.log.sync()
            for saving in earlier:
                saving.result()

        self.checkpoints.save(state, self.cfg, self._dataset.tokenizer, loss, averaged, before=before)

    def keep_params(self, step: int, params: dict) -> None:
        """Keep the parameters of a step as a snapshot, in the background."""
        if self.snapshots is not None:
            self.snapshots.save(step, params, self.cfg, self._dataset.tokenizer)

    def wait_for_saves(self) -> None:
        """Wait until everything that was saved is complete and read back."""
        if self.snapshots is not None:
            self.snapshots.wait()
        self.checkpoints.wait()

    def last_valid_loss(self) -> float | None:
        """The validation loss of the last evaluation, in nats per token."""
        losses = self.log.valid_losses()
        return losses[max(losses)] if losses else None

    def last_checkpoint(self) -> str:
        """The newest saved step, for error messages."""
        saved = self.checkpoints.steps()
        return f"step {saved[-1]}" if saved else "none"


def _finite(x: float) -> float | None:
    """A number for a log: JSON has no nan and no infinity."""
    return x if math.isfinite(x) else None
