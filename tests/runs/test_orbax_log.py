"""Orbax's own messages are dropped while checkpoints are open; messages of others never are."""

from __future__ import annotations

import logging
import sys
import types
from types import SimpleNamespace

import pytest

from jaxgpt.runs import orbax_log
from jaxgpt.runs.checkpoint import Checkpoints
from tests.python_process import run_python


@pytest.fixture
def absl(caplog, monkeypatch):
    """The logger, as a program has it that uses absl for its own messages."""
    monkeypatch.setattr(orbax_log, "_users", 0)  # other tests leave checkpoints with an error
    logger = logging.getLogger("absl")
    state = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = True
    yield logger
    logger.level, logger.propagate = state


def orbax_code(logger: logging.Logger):
    """A function that logs, and one that raises, from a module of Orbax."""
    module = types.ModuleType("orbax.checkpoint.example")
    module.logger = logger
    exec("def log(): logger.error('from Orbax')\ndef fail(): raise OSError('array index')", module.__dict__)
    return module


def test_loading_a_run_leaves_logging_as_it_was(here):
    """In a process of its own: checkpoints that other tests leave open keep the filter."""
    done = run_python(
        "import logging, sys, jaxgpt\n"
        "absl, asyncio = (logging.getLogger(name) for name in ('absl', 'asyncio'))\n"
        "def state(): return absl.level, list(absl.filters), asyncio.level, list(asyncio.filters), sys.unraisablehook\n"
        "import orbax.checkpoint\n"
        "before = state()\n"
        "jaxgpt.load('run')\n"
        "assert state() == before, (state(), before)"
    )
    assert done.returncode == 0, done.stderr


def test_only_orbax_is_silent_while_checkpoints_are_open(here, absl, caplog):
    code = orbax_code(absl)
    with Checkpoints("run", read_only=True), Checkpoints("run", read_only=True):
        absl.error("from the program")
        code.log()
        try:
            code.fail()
        except OSError:
            logging.getLogger("asyncio").exception("a task of Orbax")
        try:
            raise OSError
        except OSError:
            logging.getLogger("asyncio").exception("a task of the program")
    assert [r.getMessage() for r in caplog.records] == ["from the program", "a task of the program"]
    code.log()
    assert caplog.messages[-1] == "from Orbax"


def test_only_what_orbax_abandons_is_not_reported(monkeypatch):
    def unraisable(path: str, text: str) -> SimpleNamespace:
        coroutine = SimpleNamespace(cr_code=SimpleNamespace(co_filename=path))
        return SimpleNamespace(object=coroutine, exc_value=OSError(text))

    reported = []
    monkeypatch.setattr(sys, "unraisablehook", reported.append)
    own = unraisable("program.py", "array index")
    orbax_log.start()
    for given in (
        unraisable("site-packages/orbax/checkpoint/serialization.py", "array index"),
        SimpleNamespace(object=None, exc_value=RuntimeError("Event loop is closed")),
        own,
    ):
        sys.unraisablehook(given)
    orbax_log.stop()
    assert reported == [own]
