"""What the loop does between two steps: evaluate, keep embedding tables, save.

An action has two methods. `due(step)` gives the runs that want it at this step, `run(...)` does it for them. A new action
is one class here and one entry in `make_actions`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from jaxgpt.common.progress import Progress, describe_evaluation
from jaxgpt.config import Config, UserError
from jaxgpt.data import batches, prompts
from jaxgpt.data.dataset import Dataset
from jaxgpt.model import generation, sharding
from jaxgpt.runs import records
from jaxgpt.runs.state import TrainState
from jaxgpt.training import optim
from jaxgpt.training.programs import Program
from jaxgpt.training.run_folder import RunFolder

SAMPLE_TEMPERATURE = 0.8


class Action(Protocol):
    """Something that the loop does at certain steps. Actions run in the order of `make_actions`."""

    name: str  # for the warning that something takes long

    def due(self, step: int) -> list[RunFolder]:
        """The runs that want it at this step."""
        ...

    def run(self, state: TrainState, step: int, due: Sequence[RunFolder]) -> None:
        """Do it for these runs."""
        ...


def make_actions(
    cfg: Config, dataset: Dataset, program: Program, runs: Sequence[RunFolder], progress: Progress
) -> list[Action]:
    """All actions, in the order in which the loop runs them: a step's evaluation comes before its checkpoint."""
    return [
        Evaluate(cfg, dataset, program, runs, progress),
        KeepTables(program, runs),
        Save(cfg, program, runs),
    ]


def _indices(runs: Sequence[RunFolder], some: Sequence[RunFolder]) -> list[int]:
    return [runs.index(run) for run in some]


def _every(run: RunFolder, every: int, step: int) -> bool:
    """Whether a run that has not failed is at a multiple of `every` steps (0: never), or at its end."""
    return not run.failed and (step == run.cfg.train.num_steps or (every > 0 and step % every == 0))


class Evaluate:
    """Validation losses every `train.eval_every` steps, and a sample of text by each model."""

    name = "evaluation"

    def __init__(
        self, cfg: Config, dataset: Dataset, program: Program, runs: Sequence[RunFolder], progress: Progress
    ) -> None:
        self._cfg, self._dataset, self._program, self._runs = cfg, dataset, program, runs
        self._progress = progress
        if cfg.train.sample_tokens:
            self._prompt = prompts.sample_ids(
                dataset.tokenizer, cfg.train.sample_prompt, cfg.model.context_length
            )

    def due(self, step: int) -> list[RunFolder]:
        """A run that resumes does not repeat the evaluation of its step."""
        return [
            run
            for run in self._runs
            if _every(run, run.cfg.train.eval_every, step) and step not in run.log.valid_losses()
        ]

    def run(self, state: TrainState, step: int, due: Sequence[RunFolder]) -> None:
        params = self._program.evaluation_params(state)
        start = time.perf_counter()
        windows = batches.eval_batches(
            self._dataset.valid.ids,
            context_length=self._cfg.model.context_length,
            batch_size=self._cfg.train.eval_batch_size,
            max_tokens=self._cfg.train.eval_tokens,
        )
        results = self._program.evaluate(params, windows)
        seconds = time.perf_counter() - start
        evaluated = []
        for run in due:
            result = results[self._runs.index(run)]
            if math.isfinite(result.loss):
                run.log_evaluation(step, result, seconds)
                evaluated.append((run.workdir.name, result))
            else:
                self._progress.say(run.fail(_not_finite(run, step, result.loss)))
        if evaluated:
            self._progress.say(describe_evaluation(step, evaluated))
        self._sample(params, step, [run for run in due if not run.failed])

    def _sample(self, params: dict, step: int, due: Sequence[RunFolder]) -> None:
        sampling = [run for run in due if run.cfg.train.sample_tokens]
        for run, own in zip(
            sampling, self._program.take(params, _indices(self._runs, sampling)), strict=True
        ):
            pieces = generation.generate_ids(
                self._program.model,
                own,
                [self._prompt],
                run.cfg.train.sample_tokens,
                sampler=generation.Sampler(temperature=SAMPLE_TEMPERATURE),
                seed=run.cfg.train.seed,
            )
            text = self._dataset.tokenizer.decode(np.concatenate([piece[0] for piece in pieces]))
            run.keep_sample(step, text)
            if len(self._runs) == 1:
                self._progress.say("    " + text.strip("\n").replace("\n", "\n    "))


def _not_finite(run: RunFolder, step: int, loss: float) -> UserError:
    return UserError(
        f"the validation loss of step {step} is {loss}; the last good checkpoint is {run.last_checkpoint()}. "
        f"Lower optim.learning_rate (now {run.cfg.optim.learning_rate}) in another --workdir"
    )


class KeepTables:
    """The embedding tables at step 0 and at `train.embedding_snapshots` log-spaced steps."""

    name = "embedding tables"

    def __init__(self, program: Program, runs: Sequence[RunFolder]) -> None:
        self._program, self._runs = program, runs
        self._steps = [_snapshot_steps(run.cfg) for run in runs]

    def due(self, step: int) -> list[RunFolder]:
        return [
            run
            for run, steps in zip(self._runs, self._steps, strict=True)
            if step in steps and not run.failed
        ]

    def run(self, state: TrainState, step: int, due: Sequence[RunFolder]) -> None:
        params = self._program.evaluation_params(state)
        tables = sharding.gather(records.embedding_tables(params))
        for run, own in zip(due, self._program.take(tables, _indices(self._runs, due)), strict=True):
            run.keep_tables(step, own)


def _snapshot_steps(cfg: Config) -> set[int]:
    """Rounded up to the ends of dispatches."""
    count = cfg.train.steps_per_dispatch
    steps = records.snapshot_steps(cfg.train.num_steps, cfg.train.embedding_snapshots)
    return {-(-step // count) * count for step in steps}


class Save:
    """A checkpoint every `train.checkpoint_every` steps, and of each validation loss that is the lowest so far."""

    name = "saving"

    def __init__(self, cfg: Config, program: Program, runs: Sequence[RunFolder]) -> None:
        self._cfg, self._program, self._runs = cfg, program, runs

    def due(self, step: int) -> list[RunFolder]:
        return [
            run
            for run in self._runs
            if step > 0
            and (_every(run, run.cfg.train.checkpoint_every, step) or run.improved_at == step)
            and not run.failed
        ]

    def run(self, state: TrainState, step: int, due: Sequence[RunFolder]) -> None:
        """A step that is saved already is left as it is."""
        averaged = self._program.evaluation_params(state) if optim.averages(self._cfg.optim) else None
        parts = self._program.take((state, averaged), _indices(self._runs, due))
        for run, (own, average) in zip(due, parts, strict=True):
            run.save(own, step, average)
