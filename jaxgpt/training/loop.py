"""Train a model: the wiring of config, data, model and optimizer, and the loop.

    python -m jaxgpt.train --config configs/char.py [--config.model.d_model=256 ...] [--workdir runs/char]

The same command goes on where a run stopped. Stopped anywhere, by a signal or by a kill, and started again, a
run gives bit for bit what it gives uninterrupted: a batch and a dropout mask are functions of the step.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Collection, Sequence
from concurrent.futures import Future
from pathlib import Path

import jax
import numpy as np

from jaxgpt.common import processes
from jaxgpt.common.progress import Interrupt, Progress, StepClock, conclusion, introduction, stopped
from jaxgpt.config import Config, UserError
from jaxgpt.data import baselines, batches, prompts
from jaxgpt.data.dataset import check_windows, prepare_dataset
from jaxgpt.model import generation, sharding
from jaxgpt.model.attention import uses_fused_attention
from jaxgpt.model.gpt import GPT
from jaxgpt.model.parameters import count_params
from jaxgpt.runs import records
from jaxgpt.runs.state import TrainState
from jaxgpt.training import optim, preflight, trainable
from jaxgpt.training.evaluation import Evaluation
from jaxgpt.training.guard import Watchdog
from jaxgpt.training.profile_steps import ProfileSteps
from jaxgpt.training.programs import Lanes, One
from jaxgpt.training.run_folder import RunFolder
from jaxgpt.training.starting import resolve


@dataclasses.dataclass(frozen=True)
class Result:
    """How a call of `train` ended."""

    state: TrainState
    valid_loss: float | None  # of the last evaluation, nats a token
    signal: int | None  # the signal that stopped it, or None: it came to its end
    failed: str = ""  # of one of several: why it came to an early end


class Uneven(UserError):
    """Runs that are to go on together have come to different steps."""


class Trainer:
    """One run in one folder: `Trainer([(cfg, workdir)]).run()`; or several, as lanes of one program (see members.py).

    For lanes give `width`, how many of them each device works on at once. They have one `members.program_of` and go on
    from one step; one that comes to an early end disturbs no other.
    """

    def __init__(
        self,
        runs: Sequence[tuple[Config, str | Path]],
        profile_steps: str | None = None,
        width: int | None = None,
    ) -> None:
        (cfg, workdir), *_ = runs
        self.alone = width is None
        self._profile = ProfileSteps(
            profile_steps if processes.is_first() else None, Path(workdir) / "profile"
        )
        if cfg.train.tensorboard:
            records.require_tensorboard()
        self.dataset = prepare_dataset(cfg.data)
        check_windows(self.dataset, cfg.model.context_length)
        self.tokenizer = self.dataset.tokenizer
        cfgs = [resolve(cfg, self.tokenizer) for cfg, _ in runs]
        self.cfg = cfg = cfgs[0]
        preflight.check_memory(cfg)
        if cfg.train.sample_tokens:
            self._sample_prompt = prompts.sample_ids(
                self.tokenizer, cfg.train.sample_prompt, cfg.model.context_length
            )
        uses_fused_attention(cfg.model, cfg.train.attention)  # refuses what this machine can't do
        self.program = One(cfg, self.dataset) if self.alone else Lanes(cfgs, self.dataset, width)
        K = cfg.train.steps_per_dispatch
        self._snapshots = [
            {-(-step // K) * K for step in records.snapshot_steps(own.num_steps, own.embedding_snapshots)}
            for own in (own.train for own in cfgs)
        ]
        self.runs: list[RunFolder] = []
        try:
            for (_, workdir), own in zip(runs, cfgs, strict=True):
                self.runs.append(RunFolder(own, workdir, self.dataset))
        except BaseException:
            self._release()
            raise

    def _release(self) -> None:
        for run in self.runs:
            run.release()

    @property
    def _going(self) -> list[RunFolder]:
        """The runs that have not come to an early end."""
        return [run for run in self.runs if not run.failed]

    # --- the parts of the loop --------------------------------------------------------------------------

    def _fresh_state(self) -> TrainState:
        return self.program.fresh([run.first_params(GPT(run.cfg.model)) for run in self.runs])

    def _newest_state(self) -> tuple[TrainState, int]:
        """What is gone on from, the newest whole checkpoints or step 0; and its step."""
        found = [run.newest(self.program.shapes) for run in self.runs]
        steps = sorted({0 if state is None else int(state.step) for state in found})
        if len(steps) > 1:
            raise Uneven(f"the runs have come to different steps ({', '.join(map(str, steps))})")
        return self._fresh_state() if found[0] is None else self.program.state(found), steps[0]

    @functools.cached_property
    def _compiled(self) -> Future:
        return self.program.compile()

    def _batches(self, step: int) -> np.ndarray | jax.Array:
        """What the next dispatch is fed."""
        return self.program.batches(step)

    def _evaluate(self, params: dict) -> list[Evaluation]:
        """Of every run."""
        train = self.cfg.train
        windows = batches.eval_batches(
            self.dataset.valid.ids,
            context_length=self.cfg.model.context_length,
            batch_size=train.eval_batch_size,
            max_tokens=train.eval_tokens,
        )
        return self.program.evaluate(params, windows)

    def _sample(self, params: dict, cfg: Config) -> str:
        pieces = generation.generate_ids(
            self.program.model,
            params,
            [self._sample_prompt],
            cfg.train.sample_tokens,
            sampler=generation.Sampler(temperature=0.8),
            seed=cfg.train.seed,
        )
        return self.tokenizer.decode(np.concatenate([piece[0] for piece in pieces]))

    # --- the loop ---------------------------------------------------------------------------------------

    def run(self, stop_at: int | None = None) -> list[Result]:
        """Train to the end, or until `stop_at` steps are done, or until a signal; save; say what was reached by each."""
        try:
            with Interrupt() as interrupt, self.program.context():
                if self.cfg.train.num_steps not in self.runs[0].checkpoints.steps():
                    _ = self._compiled  # starts now
                state, step = self._newest_state()
                for run in self.runs:
                    run.open_log(step)
                with Watchdog(self.cfg.train.watchdog_seconds) as watchdog:
                    return self._loop(state, step, interrupt, watchdog, stop_at)
        finally:
            self._close()

    def _close(self) -> None:
        with contextlib.ExitStack() as stack:  # all are closed, whatever one of them raises
            for run in self.runs:
                stack.callback(run.close)

    def _introduce(self, state: TrainState, step: int, progress: Progress) -> None:
        """Write and say what each run is."""
        cfg, params = self.cfg, self.program.shapes.params
        losses = baselines.losses(
            self.dataset.train.ids, self.dataset.valid.ids, cfg.model.vocab_size, cfg.train.eval_tokens
        )
        self._bigram = losses["bigram"]
        facts = self.dataset.facts() | {
            "num_params": count_params(params),
            "num_trainable": count_params(trainable.select(cfg.optim, params)),
            "baselines": losses,
        }
        progress.say(introduction(cfg.model, facts))
        if self.alone and self.program.mesh.size > 1:
            progress.say(f"{self.program.mesh.size} devices: {sharding.as_text(self.program.mesh.shape)}")
        for run in self.runs:
            if run.start is not None and self.alone:
                progress.say(run.start.text)
            run.write_facts(facts, step)
        first = self.runs[0].workdir
        place = f"{first}" if self.alone else f"{len(self.runs)} folders from {first} on"
        progress.say(f"goes on from step {step} in {place}" if step else f"writes to {place}")

    def _loop(
        self, state: TrainState, start: int, interrupt: Interrupt, watchdog: Watchdog, stop_at: int | None
    ) -> list[Result]:
        cfg = self.cfg.train
        step = start
        # Lanes may have ends of their own: all stop at the first.
        end = min(run.cfg.train.num_steps for run in self.runs)
        until = end if stop_at is None else min(stop_at, end)
        progress = Progress(end, start, processes.is_first())
        self._introduce(state, start, progress)
        tokens_a_step = self.cfg.data.batch_size * self.cfg.model.context_length
        count = cfg.steps_per_dispatch
        pending: tuple[int, dict] | None = None  # the last dispatch, read once the next is under way
        clock = StepClock(step)
        signalled: int | None = None  # what all processes know of

        def read_pending() -> None:
            nonlocal pending, signalled
            if pending is None:
                return
            (done, metrics), pending = pending, None
            if "signal" in metrics:
                signalled = int(metrics.pop("signal")) or None
            metrics = self.program.on_host(metrics)
            steps = np.arange(done - count + 1, done + 1)
            logged = (steps % cfg.log_every == 0) | np.isin(steps, (1, end))
            seconds = clock.seconds_a_step(done) if (logged | metrics["bad"]).any() else 1.0
            for n, run in enumerate(self.runs):
                for i, at in enumerate(steps.tolist()):
                    bad = bool(metrics["bad"][n, i])
                    if bad and not run.failed:
                        self._bad_step(n, at, metrics, i, state, progress)
                    elif not bad:
                        run.guard.good()
                    if (logged[i] or bad) and not run.failed:
                        facts = (
                            float(metrics[name][n, i]) for name in ("loss", "learning_rate", "grad_norm")
                        )
                        run.log_step(at, *facts, bad, tokens_a_step / seconds)
            if logged.any() and done > start + count:  # the first dispatch's time is that of compiling
                going = [n for n, run in enumerate(self.runs) if not run.failed]
                loss = float(metrics["loss"][going, -1].mean()) if going else math.nan
                progress.losses(done, loss, len(self.runs) * tokens_a_step / seconds, seconds)

        try:
            while True:
                if processes.is_alone():
                    signalled = interrupt.signal
                stopping = signalled is not None or step >= until or not self._going
                improved: set[RunFolder] = set()
                if signalled is None and (due := self._due("eval_every", step, again=False)):
                    read_pending()
                    clock.pause()
                    watchdog.doing(f"the evaluation at step {step}")
                    improved = self._evaluate_and_sample(
                        self.program.evaluation_params(state), step, due, progress
                    )
                    clock.go_on()
                self._keep_tables(state, step)
                due = self._due("checkpoint_every", step) if step > 0 else []
                if stopping or due or improved:
                    read_pending()
                    clock.pause()
                    watchdog.doing(f"saving step {step}")
                    self._save(state, step, self._going if stopping else {*due, *improved})
                    clock.go_on()
                if stopping:
                    break
                self._profile.at(step)
                watchdog.doing(f"step {step + 1}" + (" (with compiling)" if step == start else ""))
                dispatch = self._compiled.result()
                arguments = self.program.feed(interrupt.signal or 0, self._batches(step))
                state, metrics = dispatch(state, *arguments)
                step += count
                read_pending()
                pending = (step, metrics)
                progress.step(count)
            watchdog.doing("the end of saving")
            for run in self.runs:
                run.checkpoints.wait()
        finally:
            self._profile.close()
            progress.close()
        if self.alone and processes.is_first():
            self._conclude(step, signalled)
        results, states = [], self.program.split(state)
        for n, run in enumerate(self.runs):
            evaluated = run.log.valid_losses()
            last = evaluated[max(evaluated)] if evaluated else None
            results.append(Result(states[n], last, signalled, run.failed))
        return results

    def _conclude(self, step: int, signalled: int | None) -> None:
        """The last word of a run."""
        (run,) = self.runs
        evaluated = run.log.valid_losses()
        if signalled is not None:
            print(stopped(signalled, step, run.workdir))
        elif step == self.cfg.train.num_steps and evaluated:
            prompt = prompts.first_words(self.tokenizer, self.dataset.valid.ids)
            print(conclusion(evaluated, self._bigram, run.workdir, prompt))

    def _due(self, every: str, step: int, again: bool = True) -> list[RunFolder]:
        """The runs whose field of this name says that now is the time, or that are at their end."""
        return [
            run
            for run in self._going
            if step == run.cfg.train.num_steps or ((n := getattr(run.cfg.train, every)) and step % n == 0)
            if again or step not in run.log.valid_losses()
        ]

    def _bad_step(
        self, n: int, at: int, metrics: dict, i: int, state: TrainState, progress: Progress
    ) -> None:
        """Raises UserError where a bad step is the end of the run; of one of several it is the end of that one."""
        run = self.runs[n]
        params = self.program.split(state.params)[n]
        norms = np.asarray(metrics["grad_norms"][n, i])
        try:
            said = run.guard.bad(at, float(metrics["loss"][n, i]), norms, params, run.last_checkpoint())
        except UserError as error:
            said = self._end_early(run, error)
        progress.say(f"{run.workdir}: {said}" if not self.alone else said)

    def _end_early(self, run: RunFolder, error: UserError) -> str:
        """One run alone raises its error; one of several is left out from now on."""
        if self.alone:
            raise error
        run.failed = str(error)
        return run.failed

    def _keep_tables(self, state: TrainState, step: int) -> None:
        """The embedding tables, of the runs that want them at this step."""
        if wanted := [n for n, run in enumerate(self.runs) if step in self._snapshots[n] and not run.failed]:
            params = self.program.evaluation_params(state)
            tables = self.program.split(sharding.gather(records.embedding_tables(params)))
            for n in wanted:
                self.runs[n].keep_tables(step, tables[n])

    def _save(self, state: TrainState, step: int, runs: Collection[RunFolder]) -> None:
        averaged = self.program.evaluation_params(state) if optim.averages(self.cfg.optim) else None
        parts = self.program.split((state, averaged))
        for run, (own, average) in zip(self.runs, parts, strict=True):
            if run in runs and not run.failed:
                run.save(own, step, average)

    def _evaluate_and_sample(
        self, params: dict, step: int, due: list[RunFolder], progress: Progress
    ) -> set[RunFolder]:
        """Add "valid" lines; show a sample. The runs whose loss is their lowest so far, step 0 apart."""
        began = time.perf_counter()
        results = dict(zip(self.runs, self._evaluate(params), strict=False))
        seconds = time.perf_counter() - began
        improved, losses = set(), []
        own_params = self.program.split(params) if self.cfg.train.sample_tokens else []
        for n, run in enumerate(self.runs):
            if run not in due or run.failed:
                continue
            result = results[run]
            if not math.isfinite(result.loss):
                text = (
                    f"the validation loss of step {step} is {result.loss}; the last good checkpoint is "
                    f"{run.last_checkpoint()}. Lower optim.learning_rate (now {run.cfg.optim.learning_rate}) in another "
                    "--workdir"
                )
                progress.say(f"{run.workdir}: {self._end_early(run, UserError(text))}")
                continue
            losses.append((result.loss, run))
            if run.log_evaluation(step, result, seconds):
                improved.add(run)
            if self.alone:
                perplexity = result.perplexity
                progress.say(
                    f"step {step:>6}  validation loss {result.loss:.4f}  perplexity {perplexity:.2f}"
                )
            if run.cfg.train.sample_tokens:
                text = self._sample(own_params[n], run.cfg)
                run.keep_sample(step, text)
                if self.alone:
                    progress.say("    " + text.strip("\n").replace("\n", "\n    "))
        if losses and not self.alone:
            losses.sort(key=lambda found: found[0])
            (low, best), (high, _) = losses[0], losses[-1]
            progress.say(f"step {step:>6}  validation loss {low:.4f} ({best.workdir.name}) to {high:.4f}")
        return improved


def train(
    cfg: Config, workdir: str | Path, stop_at: int | None = None, profile_steps: str | None = None
) -> Result:
    """Train, or go on training, the run in `workdir`. Raises UserError for whatever the user can mend."""
    return Trainer([(cfg, workdir)], profile_steps).run(stop_at)[0]
