"""The training loop. It drives one run in one folder, or several runs as lanes of one compiled program.

A run that was stopped anywhere, by a signal or a kill, and resumed gives bit for bit the result of an uninterrupted run:
a batch and a dropout mask are functions of the step.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxgpt.common import door, processes
from jaxgpt.common.progress import Interrupt, Progress, conclusion, introduction, stopped
from jaxgpt.common.say import say
from jaxgpt.config import Config, UserError
from jaxgpt.data import baselines, prompts
from jaxgpt.data.dataset import check_documents, check_windows, prepare_dataset
from jaxgpt.data.packing import PackedBatches
from jaxgpt.model import sharding
from jaxgpt.model.attention import uses_fused_attention
from jaxgpt.model.gpt import GPT
from jaxgpt.model.parameters import count_params
from jaxgpt.runs import records, snapshots
from jaxgpt.runs.state import TrainState
from jaxgpt.training import trainable
from jaxgpt.training.actions import ACTIONS, Action
from jaxgpt.training.guard import Watchdog
from jaxgpt.training.profile_steps import ProfileSteps
from jaxgpt.training.programs import Dispatch, Program, SingleRun, VmappedRuns
from jaxgpt.training.run_folder import RunFolder
from jaxgpt.training.starting import resolve, with_sources_at_hand
from jaxgpt.training.state_memory import check_memory
from jaxgpt.training.step_log import StepLog

if TYPE_CHECKING:
    from jaxgpt.training.stats import Stats


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended."""

    state: TrainState
    valid_loss: float | None  # of the last evaluation, nats per token
    signal: int | None  # the signal that stopped it, or None
    failed: str = ""  # one of several runs: the error that ended it early


class StepMismatch(UserError):
    """Runs that share a program are at different steps."""


class Trainer:
    """Trains one run: `Trainer([(cfg, workdir)]).run()`. With `width`, trains several runs as lanes of one program.

    `width` is how many lanes each device computes at once. Lanes share one `lanes.program_of` and start from one step. A
    lane that fails does not disturb the others. `num_workers` processes tokenize the text (0: this one). With
    `restart`, runs that the folders hold are moved aside. `group` names the sweep of the runs, for trackers.
    """

    def __init__(
        self,
        runs: Sequence[tuple[Config, str | Path]],
        profile_steps: str | None = None,
        width: int | None = None,
        num_workers: int = 0,
        restart: bool = False,
        group: str = "",
    ) -> None:
        for _, workdir in runs:
            door.check(Path(workdir))
        if not restart:
            runs = [(with_sources_at_hand(cfg, Path(workdir)), workdir) for cfg, workdir in runs]
        (cfg, workdir), *_ = runs
        self._profile = ProfileSteps(
            profile_steps if processes.is_first() else None, Path(workdir) / "profile"
        )
        # Refuse what can't be trained before any folder is made.
        if cfg.train.tracker_names:
            from jaxgpt.runs.trackers import tracker

            tracker.require(cfg.train.tracker_names)
        self.dataset = prepare_dataset(cfg.data, num_workers)
        check_windows(self.dataset, cfg.model.context_length)
        cfgs = [resolve(cfg, self.dataset.tokenizer) for cfg, _ in runs]
        self.cfg = cfg = cfgs[0]
        if cfg.finds_documents:
            check_documents(self.dataset, cfg.model.end_id)
        check_memory(cfg)
        snapshots.check_room([(own, Path(workdir)) for own, (_, workdir) in zip(cfgs, runs, strict=True)])
        uses_fused_attention(cfg.model, cfg.train.attention)
        if cfg.train.sample_tokens:
            prompts.sample_ids(self.dataset.tokenizer, cfg.train.sample_prompt, cfg.model.context_length)
        alone = width is None
        ids, lengths = self.dataset.train.targets, self.dataset.lengths
        self.program: Program = (
            SingleRun(cfg, ids, lengths) if width is None else VmappedRuns(cfgs, ids, width, lengths)
        )
        self.runs: list[RunFolder] = []
        with contextlib.ExitStack() as opened:  # all folders, or none
            for (_, workdir), own in zip(runs, cfgs, strict=True):
                self.runs.append(RunFolder(own, workdir, self.dataset, alone, restart, group))
                opened.callback(self.runs[-1].release)
            opened.pop_all()

    def init(self) -> TrainState:
        """The state at step 0."""
        return self.program.init([run.first_params(GPT(run.cfg.model)) for run in self.runs])

    def restore_or_init(self) -> tuple[TrainState, int]:
        """Restore the latest valid checkpoint of each run, or initialize at step 0. Returns (state, step)."""
        found = [run.newest(self.program.shapes) for run in self.runs]
        steps = sorted({0 if state is None else int(state.step) for state in found})
        if len(steps) > 1:
            raise StepMismatch(f"the runs are at different steps: {', '.join(map(str, steps))}")
        restored = [state for state in found if state is not None]
        return self.program.stack(restored) if restored else self.init(), steps[0]

    def run(self, stop_at: int | None = None) -> list[Result]:
        """Train to the end, to `stop_at` steps or to a signal, then save. Returns how each run ended. `finish` comes after."""
        program, train = self.program, self.cfg.train
        end = min(run.cfg.train.num_steps for run in self.runs)  # lanes stop together
        until = end if stop_at is None else min(stop_at, end)
        with contextlib.ExitStack() as stack:  # closes everything, whatever one of them raises
            stack.push(lambda error, *_: self.finish() if error else None)
            for run in self.runs:
                stack.callback(run.close)
            interrupt = stack.enter_context(Interrupt())
            stack.enter_context(program.context())
            facts = self._introduce()  # first: what follows takes seconds
            finished = train.num_steps in self.runs[0].checkpoints.steps()
            compiled = None if finished else program.compile()  # in a thread, next to what comes first
            stats = None if compiled is None else self._stats(compiled)
            facts["baselines"] = self._baselines()
            state, step = self.restore_or_init()
            for run in self.runs:
                run.checkpoints.open_in_background()
                run.open_log(step)
            progress = Progress(end, step, processes.is_first())
            stack.callback(progress.close)
            stack.callback(self._profile.close)
            watchdog = stack.enter_context(Watchdog(train.watchdog_seconds))
            log = StepLog(program, self.runs, progress, step, end)
            actions = [kind(self.dataset, program, self.runs, progress) for kind in ACTIONS]
            save = actions[-1]
            for run in self.runs:
                run.write_facts(facts, step)
            first = self.runs[0].workdir
            place = f"{first}" if len(self.runs) == 1 else f"{len(self.runs)} folders from {first} on"
            progress.say(f"resumes from step {step} in {place}" if step else f"writes to {place}")

            def act(action: Action, due: Sequence[RunFolder]) -> None:
                log.flush(state)
                watchdog.doing(f"{action.name} at step {step}")
                with log.clock.paused():
                    action.run(state, step, due)

            while True:
                signal = interrupt.signal if processes.is_alone() else log.signal
                for action in actions if signal is None else ():
                    if due := action.due(step):
                        act(action, due)
                if signal is not None or step >= until or not self._going:
                    break
                self._profile.at(step)
                watchdog.doing(f"step {step + 1}")
                compiled = compiled or program.compile()
                dispatch = compiled.result()
                if stats is not None and stats.due(step):
                    dispatch = stats.around(dispatch)
                state, metrics = dispatch(state, *program.feed(step, interrupt.signal or 0))
                step += train.steps_per_dispatch
                log.flush(state)  # the dispatch before this one: the device never waits
                log.add(step, metrics)
                progress.step(train.steps_per_dispatch)
            if unsaved := [run for run in self._going if step not in run.checkpoints.steps()]:
                act(save, unsaved)
            watchdog.doing("the end of saving")
            for run in self.runs:
                run.wait_for_saves()
            states = program.take(state, range(len(self.runs)))
            return [
                Result(own, run.last_valid_loss(), signal, run.failed)
                for run, own in zip(self.runs, states, strict=True)
            ]

    def finish(self) -> None:
        """End the trackers, which get the runs' reports. Waits for them, but not long."""
        if feeds := [feed for run in self.runs for feed in run.feeds]:
            from jaxgpt.runs.trackers import feed

            feed.finish(feeds)

    @property
    def _going(self) -> list[RunFolder]:
        """The runs that have not failed."""
        return [run for run in self.runs if not run.failed]

    def _stats(self, compiled: Future[Dispatch]) -> Stats | None:
        """What train.stats_every asks for."""
        if not self.cfg.train.stats_every:
            return None
        from jaxgpt.training.stats import Stats

        return Stats(self.cfg, self.program, compiled)

    def _introduce(self) -> dict[str, Any]:
        """Print what is about to be trained. Returns the facts of it for run.json."""
        cfg, params = self.cfg, self.program.shapes.params
        facts: dict[str, Any] = self.dataset.facts() | {
            "num_params": count_params(params),
            "num_trainable": count_params(trainable.select(cfg.optim, params)),
        }
        lines = [introduction(cfg.model, facts)]
        if isinstance(batches := self.program.batches[0], PackedBatches):
            facts |= batches.packing.facts()
            lines.append(batches.packing.as_text())
        if isinstance(self.program, SingleRun) and self.program.mesh.size > 1:
            lines.append(f"{self.program.mesh.size} devices: {sharding.as_text(self.program.mesh.shape)}")
        if len(self.runs) == 1 and self.runs[0].start is not None:
            lines.append(self.runs[0].start.text)
        if text := snapshots.describe(cfg):
            lines.append(f"snapshots: {text}" + (", of each run" if len(self.runs) > 1 else ""))
        if processes.is_first():
            say("\n".join(lines))
        return facts

    def _baselines(self) -> dict[str, float]:
        """Print the losses to beat, and return them."""
        cfg, data = self.cfg, self.dataset
        ids = data.first_train_ids(baselines.MOST_IDS)
        losses = baselines.losses(ids, data.valid.targets, cfg.model.num_tokens, cfg.train.eval_tokens)
        if processes.is_first():
            say(f"to beat: {', '.join(f'{name} {x:.3f}' for name, x in losses.items())} nats per token")
        return losses


def train(
    cfg: Config,
    workdir: str | Path,
    stop_at: int | None = None,
    profile_steps: str | None = None,
    num_workers: int = 0,
    restart: bool = False,
    report: Callable[[Path], None] | None = None,
) -> Result:
    """Train, or resume, the run in `workdir`, and print how it ended. Raises UserError for what the user can fix.

    `report` writes the report of a run that is complete, where the config asks for one.
    """
    trainer = Trainer([(cfg, workdir)], profile_steps, num_workers=num_workers, restart=restart)
    (result,) = trainer.run(stop_at)
    try:
        if processes.is_first():
            _say_end(trainer, result)
        complete = int(result.state.step) == cfg.train.num_steps
        if report is not None and cfg.train.report and complete and processes.is_alone():
            report(trainer.runs[0].workdir)
    finally:
        trainer.finish()
    return result


def _say_end(trainer: Trainer, result: Result) -> None:
    """Print how a single run ended."""
    (run,), step = trainer.runs, int(result.state.step)
    if result.signal is not None:
        say(stopped(result.signal, step, run.workdir))
    elif step == run.cfg.train.num_steps and result.valid_loss is not None:
        bigram = records.read_run_json(run.workdir)["baselines"]["bigram"]
        prompt = prompts.first_words(
            trainer.dataset.tokenizer, trainer.dataset.valid.ids, trainer.cfg.model.context_length
        )
        say(conclusion(run.log.valid_losses(), bigram, run.workdir, prompt))
