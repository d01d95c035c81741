"""Train a model: the wiring of config, data, model and optimizer, and the loop.

    python -m jaxgpt.train --config configs/char.py [--config.model.d_model=256 ...] [--workdir runs/char]

The same command goes on where a run stopped. Stopped anywhere, by a signal or by a kill, and started again, a
run gives bit for bit what it gives uninterrupted: a batch and a dropout mask are functions of the step.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np

from jaxgpt import (
    baselines,
    batches,
    checkpoint,
    cli,
    data,
    generate,
    optim,
    preflight,
    processes,
    records,
    sharding,
    starting,
    tokenizers,
    trainable,
)
from jaxgpt.attention import uses_cudnn
from jaxgpt.config import Config, UserError, to_json
from jaxgpt.evaluate import Evaluation, evaluate
from jaxgpt.guard import Guard, Watchdog
from jaxgpt.model import count_params, param_shapes
from jaxgpt.profile_steps import ProfileSteps
from jaxgpt.progress import Interrupt, Progress, StepClock, conclusion, introduction, stopped
from jaxgpt.starting import resolve
from jaxgpt.steps import TrainState, build, init_state, make_dispatch, state_shapes, with_signals


@dataclasses.dataclass(frozen=True)
class Result:
    """How a call of `train` ended."""

    state: TrainState
    valid_loss: float | None  # of the last evaluation, nats a token
    signal: int | None  # the signal that stopped it, or None: it came to its end


class Trainer:
    """One run in one folder: `Trainer(cfg, workdir).run()`."""

    def __init__(self, cfg: Config, workdir: str | Path, profile_steps: str | None = None) -> None:
        self._profile = ProfileSteps(
            profile_steps if processes.is_first() else None, Path(workdir) / "profile"
        )
        if cfg.train.tensorboard:
            records.require_tensorboard()
        self.dataset = data.prepare(cfg.data)
        data.check_windows(self.dataset, cfg.model.context_length)
        self.tokenizer = self.dataset.tokenizer
        self.cfg = cfg = resolve(cfg, self.tokenizer)
        preflight.check_memory(cfg)
        self.mesh = sharding.make_mesh(cfg.mesh)
        sharding.check(self.mesh.shape, param_shapes(cfg.model), cfg)
        if cfg.train.sample_tokens:
            T, first = cfg.model.context_length, int(self.dataset.valid.ids[0])
            self._sample_prompt = generate.prompt_ids(self.tokenizer, cfg.train.sample_prompt, T, first)
        self.workdir = Path(workdir)
        # A run that goes on does not read again what it began as.
        self._start = None if starting.begun(workdir) else starting.prepare(cfg, self.tokenizer)
        self._lock: records.FolderLock | None = None
        try:
            processes.on_first(self._open_folder)
            self.model, _, self.optimizer, train_step = build(cfg)
            uses_cudnn(cfg.model, cfg.train.attention)  # refuses what this machine can't do
            self.checkpoints = checkpoint.Checkpoints(self.workdir, keep=cfg.train.keep_checkpoints)
        except BaseException:
            self._release()
            raise
        self._writes = processes.is_first()
        K = cfg.train.steps_per_dispatch
        snapshots = records.snapshot_steps(cfg.train.num_steps, cfg.train.embedding_snapshots)
        self._snapshots = {-(-step // K) * K for step in snapshots}
        self._root_key = jax.random.key(cfg.train.seed)
        self._dispatch = make_dispatch(train_step, K, cfg.model.context_length, cfg.data.on_device)
        if not processes.is_alone():
            self._dispatch = with_signals(self._dispatch)
        shapes = state_shapes(self.model, self.optimizer)
        self._shapes = sharding.placed(self.mesh, shapes.params, shapes)
        self._ids = None
        if cfg.data.on_device:
            batches.check_on_device(self.dataset.train.ids)
            self._ids = sharding.put_whole(self.mesh, self.dataset.train.ids)

    def _open_folder(self) -> None:
        """Take the folder for this run alone; refuse one that holds another; write what the run is."""
        records.make_folder(self.workdir)
        self._lock = records.FolderLock(self.workdir)
        records.check_same_config(self.workdir, self.cfg)
        records.check_same_text(
            self.workdir, text_sha256=self.dataset.text_sha256, tokenizer_sha256=self.dataset.fingerprint
        )
        records.write_json(self.workdir / "config.json", to_json(self.cfg))
        tokenizers.save(self.tokenizer, self.workdir / "tokenizer.json")

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()

    # --- state ------------------------------------------------------------------------------------------

    def _fresh_state(self) -> TrainState:
        key = jax.random.fold_in(self._root_key, 2**32 - 1)  # not a key that a step draws its masks with
        start = self._start = self._start or starting.prepare(self.cfg, self.tokenizer)
        if start is None:
            return init_state(self.model, self.optimizer, key)
        records.check_same_source(self.workdir, start.record)
        return init_state(self.model, self.optimizer, key, start.params(self.model, key))

    def _signals(self, number: int | None) -> tuple[jax.Array, ...]:
        """What this process has to say to the others with the next dispatch: a signal that it got, or 0."""
        return () if processes.is_alone() else (sharding.put_flag(self.mesh, number or 0),)

    def _newest_state(self) -> TrainState:
        """What the run goes on from: its newest whole checkpoint, or step 0."""
        return self.checkpoints.newest(self.cfg, self.tokenizer, self._shapes) or self._fresh_state()

    @functools.cached_property
    def _compiled(self) -> Future:
        """The dispatch, compiled in a thread beside what comes first: the first parameters, evaluation, sample."""

        def compiled():
            with sharding.using(self.mesh):
                arguments = (self._shapes, self._ids, self._batches(0), self._root_key, *self._signals(0))
                return jax.jit(self._dispatch, donate_argnums=0).lower(*arguments).compile()

        pool = ThreadPoolExecutor(1)
        future = pool.submit(compiled)
        pool.shutdown(wait=False)
        return future

    # --- the parts of the loop --------------------------------------------------------------------------

    def _batches(self, step: int) -> np.ndarray | jax.Array:
        """What the next dispatch is fed: each step's batch, or where its windows begin."""
        B, T = self.cfg.data.batch_size, self.cfg.model.context_length
        count, on_device = self.cfg.train.steps_per_dispatch, self.cfg.data.on_device
        cut = functools.partial(
            batches.for_dispatch, self.dataset.train.ids, step, count, on_device,
            seed=self.cfg.train.seed, batch_size=B, context_length=T,
        )  # fmt: skip
        shape = (count, B) if on_device else (count, B, T + 1)
        return sharding.put_batch(self.mesh, shape, lambda rows: cut(rows=rows), axis=1)

    def evaluation_params(self, state: TrainState) -> dict:
        """What is evaluated and kept for use: the parameters, or their average where the config has one."""
        return optim.evaluation_params(self.cfg.optim, state.params, state.opt_state)

    def _evaluate(self, params: dict) -> Evaluation:
        return evaluate(
            self.model,
            params,
            batches.eval_batches(
                self.dataset.valid.ids,
                context_length=self.cfg.model.context_length,
                batch_size=self.cfg.train.eval_batch_size,
                max_tokens=self.cfg.train.eval_tokens,
            ),
            self.cfg.train.loss_chunk,
        )

    def _sample(self, params: dict) -> str:
        pieces = generate.generate_ids(
            self.model,
            params,
            [self._sample_prompt],
            self.cfg.train.sample_tokens,
            sampler=generate.Sampler(temperature=0.8),
            seed=self.cfg.train.seed,
        )
        return self.tokenizer.decode(np.concatenate([piece[0] for piece in pieces]))

    def _last_checkpoint(self) -> str:
        saved = self.checkpoints.steps()
        return f"step {saved[-1]}" if saved else "none"

    # --- the loop ---------------------------------------------------------------------------------------

    def run(self, stop_at: int | None = None) -> Result:
        """Train to the end, or until `stop_at` steps are done, or until a signal; save; say what was reached."""
        try:
            with Interrupt() as interrupt, sharding.using(self.mesh):
                if self.cfg.train.num_steps not in self.checkpoints.steps():
                    _ = self._compiled  # starts now
                state = self._newest_state()
                start = int(state.step)
                seconds = self.cfg.train.watchdog_seconds
                tensorboard, writes = self.cfg.train.tensorboard, processes.is_first()
                with (
                    records.MetricsLog(self.workdir, start, tensorboard, writes) as log,
                    Watchdog(seconds) as watchdog,
                ):
                    return self._loop(state, log, interrupt, watchdog, stop_at)
        finally:
            try:
                self.checkpoints.close()
            finally:
                self._release()

    def _loop(
        self,
        state: TrainState,
        log: records.MetricsLog,
        interrupt: Interrupt,
        watchdog: Watchdog,
        stop_at: int | None,
    ) -> Result:
        cfg = self.cfg.train
        step = start = int(state.step)
        baseline_losses = baselines.losses(
            self.dataset.train.ids, self.dataset.valid.ids, self.cfg.model.vocab_size, cfg.eval_tokens
        )
        facts = self.dataset.facts() | {
            "num_params": count_params(state.params),
            "num_trainable": count_params(trainable.select(self.cfg.optim, state.params)),
            "baselines": baseline_losses,
        }
        if self._start is not None:
            facts["started_from"] = self._start.record
        if self._writes:
            records.write_run_json(self.workdir, facts, start)
        progress = Progress(cfg.num_steps, start, self._writes)
        progress.say(introduction(self.cfg.model, facts))
        if self.mesh.size > 1:
            progress.say(f"{self.mesh.size} devices: {sharding.as_text(self.mesh.shape)}")
        if self._start is not None:
            progress.say(self._start.text)
            self._start = None  # the arrays need not be kept
        progress.say(f"goes on from step {start} in {self.workdir}" if start else f"writes to {self.workdir}")

        tokens_a_step = self.cfg.data.batch_size * self.cfg.model.context_length
        count = cfg.steps_per_dispatch
        pending: tuple[int, dict] | None = None  # the last dispatch, read once the next is under way
        clock = StepClock(step)
        guard = Guard(self.cfg)
        signalled: int | None = None  # what all processes know of

        def read_pending() -> None:
            nonlocal pending, signalled
            if pending is None:
                return
            (done, metrics), pending = pending, None
            losses, grad_norms, rates, bad = (
                np.asarray(metrics[name]).tolist() for name in ("loss", "grad_norm", "learning_rate", "bad")
            )
            if "signal" in metrics:
                signalled = int(metrics["signal"]) or None
            steps = range(done - count + 1, done + 1)
            for i, at in enumerate(steps):
                if not bad[i]:
                    guard.good()
                    continue
                norms = np.asarray(metrics["grad_norms"][i])
                progress.say(guard.bad(at, losses[i], norms, state.params, self._last_checkpoint()))
            logged = [
                i
                for i, at in enumerate(steps)
                if at % cfg.log_every == 0 or at in (1, cfg.num_steps) or bad[i]
            ]
            if not logged:
                return
            seconds = clock.seconds_a_step(done)
            for i in logged:
                log.write(
                    steps[i],
                    "train",
                    loss=losses[i] if math.isfinite(losses[i]) else None,  # JSON has no nan
                    learning_rate=rates[i],
                    grad_norm=grad_norms[i] if math.isfinite(grad_norms[i]) else None,
                    tokens_per_second=round(tokens_a_step / seconds, 1),
                    time=round(time.time(), 3),
                    **({"skipped": True} if bad[i] else {}),
                )
            if done > start + count:  # the first dispatch's time is that of compiling
                progress.losses(done, losses[-1], tokens_a_step / seconds, seconds)

        def due(every: int) -> bool:
            return step == cfg.num_steps or (every > 0 and step % every == 0)

        try:
            while True:
                if processes.is_alone():
                    signalled = interrupt.signal
                stopping = signalled is not None or (stop_at is not None and step >= stop_at)
                evaluated = log.valid_losses()
                improved = False
                if due(cfg.eval_every) and step not in evaluated and not stopping:
                    read_pending()
                    clock.pause()
                    watchdog.doing(f"the evaluation at step {step}")
                    improved = self._evaluate_and_sample(self.evaluation_params(state), step, log, progress)
                    clock.go_on()
                    evaluated = log.valid_losses()
                if step in self._snapshots:
                    tables = sharding.gathered(records.embedding_tables(self.evaluation_params(state)))
                    if self._writes:
                        records.write_embeddings(self.workdir, step, tables, self.cfg.model.vocab_size)
                if (due(cfg.checkpoint_every) and step > 0) or improved or stopping or step == cfg.num_steps:
                    read_pending()
                    clock.pause()
                    watchdog.doing(f"saving step {step}")
                    averaged = self.evaluation_params(state) if optim.averages(self.cfg.optim) else None
                    self.checkpoints.save(
                        state, self.cfg, self.tokenizer, evaluated.get(step), averaged, before=log.sync
                    )
                    clock.go_on()
                if stopping or step == cfg.num_steps:
                    break
                self._profile.at(step)
                watchdog.doing(f"step {step + 1}" + (" (with compiling)" if step == start else ""))
                dispatch = self._compiled.result()
                arguments = (self._ids, self._batches(step), self._root_key, *self._signals(interrupt.signal))
                state, metrics = dispatch(state, *arguments)
                step += count
                read_pending()
                pending = (step, metrics)
                progress.step(count)
            watchdog.doing("the end of saving")
            self.checkpoints.wait()
        finally:
            self._profile.close()
            progress.close()
        if signalled is not None and self._writes:
            print(stopped(signalled, step, self.workdir))
        elif step == cfg.num_steps and evaluated and self._writes:
            print(conclusion(evaluated, baseline_losses["bigram"], self.workdir))
        last = evaluated[max(evaluated)] if evaluated else None
        return Result(state, last, signalled)

    def _evaluate_and_sample(self, params, step: int, log: records.MetricsLog, progress: Progress) -> bool:
        """Add a "valid" line; show a sample. True where the loss is the run's lowest so far, step 0 apart."""
        earlier = [loss for at, loss in log.valid_losses().items() if at > 0]
        began = time.perf_counter()
        result = self._evaluate(params)
        if not math.isfinite(result.loss):
            raise UserError(
                f"the validation loss of step {step} is {result.loss}; the last good checkpoint is "
                f"{self._last_checkpoint()}. Lower optim.learning_rate (now "
                f"{self.cfg.optim.learning_rate}) in another --workdir"
            )
        log.write(
            step,
            "valid",
            loss=result.loss,
            standard_error=result.standard_error,
            tokens=result.tokens,
            seconds=round(time.perf_counter() - began, 3),
            time=round(time.time(), 3),
        )
        progress.say(f"step {step:>6}  validation loss {result.loss:.4f}  perplexity {result.perplexity:.2f}")
        if self.cfg.train.sample_tokens:
            text = self._sample(params)
            if self._writes:
                records.write_sample(self.workdir, step, text)
            progress.say("    " + text.strip("\n").replace("\n", "\n    "))
        return step > 0 and result.loss < min(earlier, default=math.inf)


def train(
    cfg: Config, workdir: str | Path, stop_at: int | None = None, profile_steps: str | None = None
) -> Result:
    """Train, or go on training, the run in `workdir`. Raises UserError for whatever the user can mend."""
    result = Trainer(cfg, workdir, profile_steps).run(stop_at)
    if cfg.train.report and processes.is_alone() and int(result.state.step) == cfg.train.num_steps:
        from jaxgpt.report.write import write_or_warn

        write_or_warn(Path(workdir))
    return result


def dry_run(cfg: Config) -> str:
    """What the run would be, in a text: see `preflight`. Nothing is written but the cache of the text's ids."""
    dataset = data.prepare(cfg.data)
    facts = preflight.Facts(len(dataset.train.ids), len(dataset.valid.ids))
    cfg = resolve(cfg, dataset.tokenizer)
    start = starting.prepare(cfg, dataset.tokenizer)
    text = preflight.as_text(cfg, preflight.report(cfg, facts))
    return text if start is None else f"{start.text}\n\n{text}"


def main(argv: list[str]) -> int:
    """The command line: see --help."""
    parser = cli.Parser(
        prog="python -m jaxgpt.train",
        description="Train a model, or go on with a run that was stopped.",
        epilog="Any field of the config: --config.model.d_model=256",
    )
    parser.add_argument("--config", metavar="FILE", help="a config file, such as configs/char.py (required)")
    parser.add_argument(
        "--workdir", default=None, help="the run's folder; by default runs/<name of the config>"
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="say what the run would be: shapes, memory, time; train nothing",
    )
    parser.add_argument(
        "--profile_steps",
        metavar="START:STOP",
        help="write a trace of these steps to the run's folder profile",
    )
    processes.add_flags(parser)
    file, overrides, rest = cli.split_config_flags(argv)
    args = parser.parse_args(rest)
    cfg = cli.read_config(file, overrides)
    cli.set_up_process()
    processes.join(args)
    if args.dry_run:
        print(dry_run(cfg))
        return 0
    workdir = args.workdir or Path("runs") / Path(file.partition(":")[0]).stem
    result = train(cfg, workdir, profile_steps=args.profile_steps)
    return 0 if result.signal is None else 128 + result.signal


if __name__ == "__main__":
    cli.run(main)
