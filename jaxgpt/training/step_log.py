"""The metrics of the steps, on their way from the device to every log."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import numpy as np

from jaxgpt.common.progress import Progress, StepClock
from jaxgpt.runs.state import TrainState
from jaxgpt.training.programs import Program
from jaxgpt.training.run_folder import RunFolder


class StepLog:
    """Reads each dispatch's metrics once the next dispatch is under way, so that the device never waits.

    A metric is an entry of the dict that a train step returns. Every metric that is one number a step goes to every log of
    its run (metrics.jsonl, trackers) under its own name, at the steps that `train.log_every` chooses. One with the name
    GROUP/NAME, which only some steps have, is logged whenever it is there.
    """

    def __init__(
        self,
        program: Program,
        runs: Sequence[RunFolder],
        progress: Progress,
        start: int,
        end: int,
    ) -> None:
        self._program, self._runs, self._progress = program, runs, progress
        self._start, self._end = start, end
        self._unread: tuple[int, dict[str, jax.Array]] | None = None
        self.clock = StepClock(start)
        self.signal: int | None = None  # a signal that all processes of the run know of

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """The metrics of the dispatch that ended with this step; to be read later. All before it is logged."""
        for run in self._runs:
            run.step_is_logged(step - run.cfg.train.steps_per_dispatch)
        self._unread = step, metrics

    def flush(self, state: TrainState) -> None:
        """Read and log what was added. Raises UserError where a bad step ends a single run.

        `state` is the newest state; it is only looked at to describe a bad step.
        """
        if self._unread is None:
            return
        (done, unread), self._unread = self._unread, None
        if "signal" in unread:
            self.signal = int(unread.pop("signal")) or None
        metrics = self._program.on_host(unread)
        cfg = self._runs[0].cfg
        count = cfg.train.steps_per_dispatch
        steps = np.arange(done - count + 1, done + 1)
        logged = (steps % cfg.train.log_every == 0) | np.isin(steps, (1, self._end))
        seconds = self.clock.seconds_a_step(done) if (logged | metrics["bad"]).any() else 1.0
        tokens_per_second = cfg.data.batch_size * cfg.model.context_length / seconds
        for n, run in enumerate(self._runs):
            for i, step in enumerate(steps.tolist()):
                own = {name: values[n, i] for name, values in metrics.items()}
                if text := run.check_step(step, own, functools.partial(self._params, state, n)):
                    self._progress.say(text)
                if not run.failed and (logged[i] or own["bad"]):
                    run.log_step(step, own, tokens_per_second)
                if not run.failed:
                    run.log_groups(step, own)
        if logged.any() and done > self._start + count:  # the first dispatch's time is that of compiling
            going = [n for n, run in enumerate(self._runs) if not run.failed]
            loss = float(metrics["loss"][going, -1].mean()) if going else math.nan
            self._progress.losses(done, loss, len(self._runs) * tokens_per_second, seconds)

    def _params(self, state: TrainState, n: int) -> dict:
        (params,) = self._program.take(state.params, [n])
        return params
