"""What a loop shows and hears while it runs: a bar or lines, a clock without the pauses, signals."""

from __future__ import annotations

import signal
import sys
import time
from typing import Any


class Progress:
    """A bar in a terminal, plain lines elsewhere."""

    def __init__(self, num_steps: int, step: int) -> None:
        self._bar = None
        self._num_steps = num_steps
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=num_steps, initial=step, unit="step", dynamic_ncols=True)
        self._next_line = time.monotonic()

    def step(self, count: int) -> None:
        """So many more steps are on their way."""
        if self._bar is not None:
            self._bar.update(count)

    def losses(self, step: int, loss: float, tokens_per_second: float, seconds_a_step: float) -> None:
        """Show a logged step; elsewhere than in a terminal at most one line every ten seconds."""
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
        """A line of its own, above the bar."""
        if self._bar is not None:
            self._bar.write(text)
        else:
            print(text, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Interrupt:
    """Turns the first SIGTERM or Ctrl-C into a flag, so that the step under way comes to its end.

    A second Ctrl-C stops at once. Use as a context manager; the old handlers come back at its end.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        for number in (signal.SIGTERM, signal.SIGINT):
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
    """Seconds a step since the last reading, pauses (evaluation, saving) left out."""

    def __init__(self, step: int) -> None:
        self._step, self._since, self._paused_at = step, time.perf_counter(), 0.0

    def pause(self) -> None:
        self._paused_at = time.perf_counter()

    def go_on(self) -> None:
        self._since += time.perf_counter() - self._paused_at

    def seconds_a_step(self, step: int) -> float:
        now = time.perf_counter()
        seconds = max(now - self._since, 1e-9) / max(1, step - self._step)
        self._step, self._since = step, now
        return seconds
