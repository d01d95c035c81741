"""The output, the step clock and the signal handler of a training loop."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxgpt import config
from jaxgpt.common.cli import command_line
from jaxgpt.common.say import QuietStream, say


class Progress:
    """A progress bar in a terminal, plain lines elsewhere. Silent unless it `speaks`."""

    def __init__(self, num_steps: int, step: int, speaks: bool = True) -> None:
        self._bar = None
        self._num_steps = num_steps
        self._speaks = speaks
        if speaks and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=num_steps, initial=step, unit="step", dynamic_ncols=True, file=QuietStream(sys.stderr)
            )
        self._next_line = time.monotonic()

    def step(self, count: int) -> None:
        """Count more dispatched steps."""
        if self._bar is not None:
            self._bar.update(count)

    def losses(self, step: int, loss: float, tokens_per_second: float, seconds_a_step: float) -> None:
        """Show a logged step; outside of a terminal at most one line every ten seconds."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.3f}, {tokens_per_second:,.0f} tokens/s")
        elif time.monotonic() >= self._next_line:
            left = (self._num_steps - step) * seconds_a_step
            self.say(
                f"step {step:>6}/{self._num_steps}  loss {loss:.4f}  "
                f"{tokens_per_second:>9,.0f} tokens/s  {_clock(left)} left"
            )
            self._next_line = time.monotonic() + 10

    def say(self, text: str) -> None:
        """Print a line, above the bar."""
        if self._bar is not None:
            self._bar.write(text, file=QuietStream(sys.stdout))
        elif self._speaks:
            say(text)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


@contextlib.contextmanager
def reported(
    what: str,
    state: Callable[[], str],
    part: Callable[[], float] | None = None,
    first: float = 2.0,
    every: float = 10.0,
) -> Iterator[None]:
    """Show on stderr what the block does, its state and the time left: in a terminal one line that changes, elsewhere a line
    after two seconds and then one every ten. A short block is silent.

    part: the part of the work that is done, from 0 to 1, where it is known. Both are called from another thread.
    """
    start, over = time.monotonic(), threading.Event()

    def line() -> str:
        passed, done = time.monotonic() - start, 0.0 if part is None else part()
        left = f", {_clock(passed * (1 - done) / done)} left" if 0 < done <= 1 else ""
        return f"{what}: {state()} after {_clock(passed)}{left}"

    def speak() -> None:
        if over.wait(first):
            return
        if sys.stderr.isatty():
            from tqdm import tqdm

            with tqdm(
                bar_format="{desc}", dynamic_ncols=True, leave=False, file=QuietStream(sys.stderr)
            ) as bar:
                bar.set_description_str(line())
                while not over.wait(1.0):
                    bar.set_description_str(line())
            return
        say(line(), sys.stderr)
        while not over.wait(every):
            say(line(), sys.stderr)

    thread = threading.Thread(target=speak, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def introduction(model: config.ModelConfig, facts: dict[str, Any]) -> str:
    """The model and the text."""
    moving = facts["num_trainable"]
    sources = [
        f"\n  {name}: {source['train_tokens']:,} tokens" for name, source in facts.get("sources", {}).items()
    ]
    others = [f"{name} ({text['tokens']:,} tokens)" for name, text in facts.get("valid_texts", {}).items()]
    trained = f", {moving:,} of them trained" if moving != facts["num_params"] else ""
    return (
        f"{facts['num_params']:,} parameters{trained}: {model.num_layers} layers, {model.num_heads} heads, "
        f"d_model {model.d_model}, context {model.context_length}, vocabulary {model.vocab_size:,}\n"
        f"{facts['corpus']}: {facts['train_tokens']:,} tokens to train on, {facts['valid_tokens']:,} to validate"
        + "".join(sources)
        + (f"\nalso validated: {', '.join(others)}" if others else "")
    )


def describe_evaluation(step: int, evaluated: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """A line for an evaluation of one run, or of several with their (name, results).

    Results are those of the validation split, by the name "", and of other validation texts.
    """
    if len(evaluated) == 1:
        results = evaluated[0][1]
        found = results[""]
        others = "".join(f"  {name} {other.loss:.4f}" for name, other in results.items() if name)
        return f"step {step:>6}  validation loss {found.loss:.4f}  perplexity {found.perplexity:.2f}{others}"
    ordered = sorted((results[""].loss, name) for name, results in evaluated)
    (low, best), (high, _) = ordered[0], ordered[-1]
    return f"step {step:>6}  validation loss {low:.4f} ({best}) to {high:.4f}"


def stopped(signal_number: int, step: int, workdir: Path) -> str:
    """The last line of a run that a signal stopped."""
    name = signal.Signals(signal_number).name
    return f"stopped by {name}: saved step {step} in {workdir}; the same command resumes there"


def conclusion(valid_losses: dict[int, float], bigram: float, workdir: Path, prompt: str) -> str:
    """The last lines of a completed run: its losses, and a command that continues `prompt`."""
    last, best = max(valid_losses), min(valid_losses, key=valid_losses.__getitem__)
    return (
        f"done: step {last}, validation loss {valid_losses[last]:.4f} "
        f"(best {valid_losses[best]:.4f} at step {best}; bigram {bigram:.4f})\n"
        f"try: {command_line('generate', workdir=workdir, prompt=prompt)}"
    )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Interrupt:
    """A context manager that turns the first SIGTERM, SIGHUP or Ctrl-C into a flag: the current step is completed.

    A second Ctrl-C stops at once.
    """

    SIGNALS = tuple(
        getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)
    )

    def __init__(self) -> None:
        self.signal: int | None = None
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        for number in self.SIGNALS:
            if number != signal.SIGINT and signal.getsignal(number) == signal.SIG_IGN:
                continue  # `nohup` asks for a run that survives its terminal
            self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: object) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number


class StepClock:
    """Seconds per step since the last reading, without pauses for evaluation and saving."""

    def __init__(self, step: int) -> None:
        self._step, self._since = step, time.perf_counter()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time within."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._since += time.perf_counter() - start

    def seconds_a_step(self, step: int) -> float:
        now = time.perf_counter()
        seconds = max(now - self._since, 1e-9) / max(1, step - self._step)
        self._step, self._since = step, now
        return seconds
