"""The actions of the loop between two steps: evaluate, keep embedding tables, save.

An action has two methods: `due(step)` gives the runs for which it is due at this step, `run(...)` does it for them. A new
action is one class here and one entry in `ACTIONS`.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from jaxgpt.common.progress import Progress, describe_evaluation
from jaxgpt.config import Config, UserError, snapshots
from jaxgpt.data import batches, prompts
from jaxgpt.data.id_files import Dataset, Split
from jaxgpt.model import generation, sharding
from jaxgpt.model.stopping import Stops, TextUntil
from jaxgpt.runs import records
from jaxgpt.runs.snapshots import planned
from jaxgpt.runs.state import TrainState
from jaxgpt.training import optim
from jaxgpt.training.evaluation import Evaluation, Lengths
from jaxgpt.training.programs import Program
from jaxgpt.training.run_folder import Lines, RunFolder

SAMPLE_TEMPERATURE = 0.8


@dataclasses.dataclass
class Action(abc.ABC):
    """Something that the loop does at certain steps."""

    dataset: Dataset
    program: Program
    runs: Sequence[RunFolder]
    progress: Progress
    name: ClassVar[str]  # for the warning that something takes long

    @abc.abstractmethod
    def due(self, step: int) -> list[RunFolder]:
        """The runs for which the action is due at this step."""
        ...

    @abc.abstractmethod
    def run(self, state: TrainState, step: int, due: Sequence[RunFolder]) -> None:
        """Do it for these runs."""
        ...

    def with_parts(self, tree: Any, due: Sequence[RunFolder]) -> Iterator[tuple[RunFolder, Any]]:
        """Each of these runs with its part of a state, or of its parameters."""
        return zip(due, self.program.take(tree, [self.runs.index(run) for run in due]), strict=True)


def _every(run: RunFolder, every: int, step: int) -> bool:
    """Whether a run that has not failed is at a multiple of `every` steps (0: never), or at its end."""
    return not run.failed and (step == run.cfg.train.num_steps or (every > 0 and step % every == 0))


class Evaluate(Action):
    """Validation losses every `train.eval_every` steps, and a sample of text by each model."""

    name = "evaluation"

    def due(self, step: int) -> list[RunFolder]:
        """A run that resumes does not repeat the evaluation of its step."""
        return [
            run
            for run in self.runs
            if _every(run, run.cfg.train.eval_every, step) and step not in run.log.valid_losses()
        ]

    def run(self, state: TrainState, step: int, due: Sequence[RunFolder]) -> None:
        params = self.program.evaluation_params(state)
        start = time.perf_counter()
        results = {name: self._evaluate(params, split) for name, split in self._texts.items()}
        seconds = time.perf_counter() - start
        evaluated = []
        for run in due:
            n = self.runs.index(run)
            own = {name: found[n] for name, found in results.items()}
            if math.isfinite(own[""].loss):
                bits = {name: found.total_bits / self._num_bytes[name] for name, found in own.items()}
                run.log_evaluation(
                    step, {name: (own[name], bits[name]) for name in own}, seconds, self._sources(n, step)
                )
                evaluated.append((run.workdir.name, own))
            else:
                self.progress.say(run.fail(_not_finite(run, step, own[""].loss)))
        if evaluated:
            self.progress.say(describe_evaluation(step, evaluated))
        self._sample(params, step, [run for run in due if not run.failed])

    def _evaluate(self, params: dict, split: Split) -> list[Evaluation]:
        """A split's evaluation by each run."""
        cfg = self.runs[0].cfg
        windows = batches.eval_batches(
            split.targets,
            context_length=cfg.model.context_length,
            batch_size=cfg.eval_batch_size,
            max_tokens=cfg.train.eval_tokens,
        )
        return self.program.evaluate(params, windows)

    def _sources(self, n: int, step: int) -> Lines:
        """A line for each source of run n's mixture: its share at this step, and its rows and epochs so far."""
        data, order = self.dataset, self.program.batches[n].order
        if order is None:
            return []
        figures = zip(order.shares(step), order.rows_before(step).tolist(), order.epochs(step), strict=True)
        return [
            (f"source/{source.name}", {"share": share, "rows": rows, "epochs": epochs})
            for source, (share, rows, epochs) in zip(data.sources, figures, strict=True)
        ]

    @functools.cached_property
    def _texts(self) -> dict[str, Split]:
        """The validation split, as "", and the named validation texts."""
        return {"": self.dataset.valid} | {text.name: text.split for text in self.dataset.named}

    @functools.cached_property
    def _num_bytes(self) -> dict[str, int]:
        """The bytes of the text of each that is predicted."""
        most, tokenizer = self.runs[0].cfg.train.eval_tokens, self.dataset.tokenizer
        return {name: Lengths.of(split, tokenizer, most).num_bytes for name, split in self._texts.items()}

    def _sample(self, params: dict, step: int, due: Sequence[RunFolder]) -> None:
        sampling = [run for run in due if run.cfg.train.sample_tokens]
        for run, own in self.with_parts(params, sampling):
            train, tokenizer = run.cfg.train, self.dataset.tokenizer
            pieces = generation.generate_ids(
                self.program.model,
                own,
                [prompts.sample_ids(tokenizer, train.sample_prompt, run.cfg.model.context_length)],
                train.sample_tokens,
                sampler=generation.Sampler(temperature=SAMPLE_TEMPERATURE),
                seed=train.seed,
            )
            written = TextUntil(tokenizer, Stops(tokenizer.eos_id))
            text = "".join(written.add(piece[0]) for piece in pieces) + written.rest()
            run.keep_sample(step, text)
            if len(self.runs) == 1:
                self.progress.say("    " + text.strip("\n").replace("\n", "\n    "))


def _not_finite(run: RunFolder, step: int, loss: float) -> UserError:
    return UserError(
        f"the validation loss of step {step} is {loss}; the last good checkpoint is {run.last_checkpoint()}. "
        f"Lower optim.learning_rate (now {run.cfg.optim.learning_rate}) in another --workdir"
    )


class KeepTables(Action):
    """The embedding tables at step 0 and at `train.embedding_snapshots` log-spaced steps."""

    name = "embedding tables"

    @functools.cached_property
    def _steps(self) -> list[set[int]]:
        return [_table_steps(run.cfg) for run in self.runs]

    def due(self, step: int) -> list[RunFolder]:
        return [
            run for run, steps in zip(self.runs, self._steps, strict=True) if step in steps and not run.failed
        ]

    def run(self, state: TrainState, step: int, due: Sequence[RunFolder]) -> None:
        params = self.program.evaluation_params(state)
        tables = sharding.gather(records.embedding_tables(params))
        for run, own in self.with_parts(tables, due):
            run.keep_tables(step, own)


def _table_steps(cfg: Config) -> set[int]:
    """Rounded up to the ends of dispatches."""
    count = cfg.train.steps_per_dispatch
    steps = snapshots.log_spaced(cfg.train.num_steps, cfg.train.embedding_snapshots)
    return {-(-step // count) * count for step in steps}


class KeepParams(Action):
    """The parameters at the steps of `train.snapshots`, as evaluated: the average, where the run keeps one."""

    name = "snapshot"

    @functools.cached_property
    def _steps(self) -> list[set[int]]:
        return [set(planned(run.cfg)) for run in self.runs]

    def due(self, step: int) -> list[RunFolder]:
        return [
            run for run, steps in zip(self.runs, self._steps, strict=True) if step in steps and not run.failed
        ]

    def run(self, state: TrainState, step: int, due: Sequence[RunFolder]) -> None:
        if step > 0:
            self.dataset.check_verified()
        for run, own in self.with_parts(self.program.evaluation_params(state), due):
            run.keep_params(step, own)


class Save(Action):
    """A checkpoint every `train.checkpoint_every` steps, and of each validation loss that is the lowest so far."""

    name = "saving"

    def due(self, step: int) -> list[RunFolder]:
        return [
            run
            for run in self.runs
            if step > 0
            and (_every(run, run.cfg.train.checkpoint_every, step) or run.improved_at == step)
            and not run.failed
        ]

    def run(self, state: TrainState, step: int, due: Sequence[RunFolder]) -> None:
        """A step that is saved already is left as it is. Nothing is saved of training on damaged ids."""
        self.dataset.check_verified()
        averaged = self.program.evaluation_params(state) if optim.averages(self.runs[0].cfg.optim) else None
        for run, (own, average) in self.with_parts((state, averaged), due):
            run.save(own, step, average)


# In the order in which the loop runs them: a step's evaluation comes before its checkpoint. `Save` is the last.
ACTIONS: tuple[type[Action], ...] = (Evaluate, KeepTables, KeepParams, Save)
