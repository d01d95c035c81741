"""Signals of a training loop, and what a block that takes time shows."""

import io
import signal
import threading

import pytest

from jaxgpt.common import progress
from jaxgpt.common.progress import Interrupt


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there is no SIGHUP here")
def test_a_hang_up_is_a_flag_unless_nohup_asks_to_go_on():
    old = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with Interrupt() as interrupt:
            signal.raise_signal(signal.SIGHUP)
        assert interrupt.signal == signal.SIGHUP
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with Interrupt() as interrupt:
            signal.raise_signal(signal.SIGHUP)
        assert interrupt.signal is None and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, old)


def test_time_left_follows_from_the_part_that_is_done(monkeypatch, capsys):
    clock = iter([100.0, 130.0, 160.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock, 160.0))
    lines = threading.Semaphore(0)

    def state():
        lines.release()
        return "3 documents"

    parts = iter([0.25, 0.0])
    with progress.reported("reading a.txt", state, lambda: next(parts, 0.0), first=0.0, every=0.001):
        for _ in range(3):
            assert lines.acquire(timeout=10)
    first, second, *_ = capsys.readouterr().err.splitlines()
    assert first == "reading a.txt: 3 documents after 0:30, 1:30 left"
    assert second == "reading a.txt: 3 documents after 1:00"


def test_a_terminal_has_one_line_that_changes(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = Terminal()
    monkeypatch.setattr(progress.sys, "stderr", shown)
    seen = threading.Event()
    with progress.reported("reading a.txt", lambda: seen.set() or "3 documents", first=0.0):
        assert seen.wait(10)
    assert "\n" not in shown.getvalue() and "\rreading a.txt: 3 documents" in shown.getvalue()
