"""Send a run's log to a tracker without ever stopping or slowing the run.

metrics.jsonl is the queue. A daemon thread reads it, at most once a second, and hands the tracker the steps that its store
lacks. So training waits for nothing and keeps nothing in memory for a tracker; one that is slow or was away catches up; and a
resumed run has no step twice: the store says which step it has, and the steps after it are in the file.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxgpt.common.say import warn
from jaxgpt.config import first_line
from jaxgpt.runs import metrics_log, records
from jaxgpt.runs.trackers import tracker
from jaxgpt.runs.trackers.tracker import Row, TrackedRun

PAUSE = 1.0  # seconds between two looks at the log
RETRY, LONGEST_RETRY = 15.0, 600.0  # seconds from an error to the next try; doubled by each error
LONGEST_WAIT = 30.0  # seconds that the end of all runs of a process waits for their trackers
MOST_ROWS = 200  # in one call of a tracker
NO_NUMBERS = ("step", "split", "time", "skipped")  # entries of a line that are not metrics

_warned: set[str] = set()  # names of trackers: one warning each, however many runs a process has


class Feed:
    """One tracker of one run. `written` is the last step of which all lines are in the log: set it as training goes on."""

    def __init__(self, name: str, run: TrackedRun) -> None:
        self._name, self._run = name, run
        self._started = time.time()
        self._resumed_at = (run.workdir / metrics_log.NAME).stat().st_size  # MetricsLog made the file
        self.written = run.step - 1
        self._no_more = threading.Event()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """All lines are written. Does not wait."""
        self._no_more.set()

    def wait(self, seconds: float) -> None:
        """Wait until the tracker has everything, or has failed, or this long. Warns where it does not have everything."""
        self._thread.join(max(0.0, seconds))
        if not self._done.is_set():
            self._warn(f"it is not ready {LONGEST_WAIT:g} s after the end")

    def _work(self) -> None:
        pause, first = RETRY, True
        while True:
            last_try = self._no_more.is_set()
            try:
                self._send_all(first)
                self._done.set()
                return
            except BaseException as error:  # SystemExit too: it would end this thread without a word
                self._warn(f"{type(error).__name__}: {first_line(error)}")
            if last_try:
                return
            self._no_more.wait(pause)
            pause, first = min(2 * pause, LONGEST_RETRY), False

    def _send_all(self, first: bool) -> None:
        store = tracker.make(self._name)
        position = store.start(self._run)
        # Lines of the step that the run resumed from, written since, are new, also where the store has this step.
        new_from = self._resumed_at if first else None
        offset = 0
        while True:
            at_end = self._no_more.wait(PAUSE)
            rows: list[Row] = []
            for lines, end in self._steps(offset, at_end):
                offset = end
                step = lines[0][0]["step"]
                fresh = [
                    line
                    for line, stop in lines
                    if step > position
                    or (new_from is not None and stop > new_from and step == self._run.step)
                ]
                if fresh:
                    rows.append(self._row(step, fresh))
                if len(rows) == MOST_ROWS:
                    store.log(rows)
                    rows = []
            if rows:
                store.log(rows)
            if at_end:
                store.finish(self._report())
                return

    def _steps(self, offset: int, at_end: bool) -> Iterator[tuple[list[tuple[dict, int]], int]]:
        """The complete steps in the log from a byte on: their lines, each with its end, and the end of the last."""
        written = self.written
        found: list[tuple[dict, int]] = []
        for line, end in metrics_log.lines_from(self._run.workdir, offset):
            if not at_end and line["step"] > written:
                break
            if found and line["step"] != found[0][0]["step"]:
                yield found, found[-1][1]
                found = []
            found.append((line, end))
        if found:
            yield found, found[-1][1]

    def _row(self, step: int, lines: Sequence[dict]) -> Row:
        numbers = {
            f"{line['split']}/{name}": value
            for line in lines
            for name, value in line.items()
            if name not in NO_NUMBERS and isinstance(value, int | float)
        }
        times = [line["time"] for line in lines if isinstance(line.get("time"), int | float)]
        evaluated = any(line["split"] == "valid" for line in lines)
        sample = records.read_sample(self._run.workdir, step) if evaluated else None
        return Row(
            step, times[0] if times else time.time(), numbers, {} if sample is None else {"sample": sample}
        )

    def _report(self) -> Path | None:
        """The report that this process wrote, if any."""
        path = self._run.workdir / "report.html"
        return path if path.exists() and path.stat().st_mtime >= self._started - 1 else None

    def _warn(self, problem: str) -> None:
        if self._name not in _warned:
            _warned.add(self._name)
            warn(
                f"tracker {self._name}: {problem}; the run goes on, and what the tracker lacks is sent when it works again, at "
                "the latest when the run is resumed"
            )


def finish(feeds: Sequence[Feed]) -> None:
    """End all feeds, and wait for them, at most LONGEST_WAIT in total."""
    for feed in feeds:
        feed.end()
    until = time.monotonic() + LONGEST_WAIT
    for feed in feeds:
        feed.wait(until - time.monotonic())
