"""Training and saving come before saying: no stream, encoding or signal stops a run, and Ctrl-C is no traceback."""

import io
import os
import re
import signal
import subprocess
import sys
import time

import pytest

import jaxgpt
from jaxgpt.common import causes, say
from jaxgpt.runs.checkpoint import saved_steps
from tests.commands import CONFIG
from tests.small_runs import write_text

PACKAGE = re.escape(os.path.dirname(jaxgpt.__file__))  # a clone of this name may hold the environment too
TRAIN = [sys.executable, "-m", "jaxgpt.train", "--config", "config.py", "--workdir", "run"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("say")
    (place / "config.py").write_text(CONFIG)
    write_text(place / "text.txt")
    return place


def gone() -> io.TextIOWrapper:
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w")


def test_a_line_never_raises(monkeypatch):
    closed = io.StringIO()
    closed.close()
    for stream in (
        gone(),
        closed,
        io.TextIOWrapper(io.FileIO("/dev/full", "w")) if os.path.exists("/dev/full") else closed,
    ):
        say.say("a line", stream)
        quiet = say.QuietStream(stream)
        assert quiet.write("more") == 4
        quiet.flush()
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    say.prepare()
    say.say("to nowhere")
    say.warn("\u00e9\u6f22")
    assert sys.stderr.buffer.getvalue() == b"warning: \\xe9\\u6f22\n"


def test_a_run_ends_well_whatever_listens(folder):
    """Streams that are closed, and an encoding that lacks what the model writes."""
    shell = " ".join(TRAIN)
    (folder / "text.txt").write_text(
        (folder / "text.txt").read_text().replace("e", "\u00e9"), encoding="utf-8"
    )
    commands = [
        f"{shell}1 >&- 2>&-",
        f"{shell}2 | true",
        f"PYTHONIOENCODING=ascii LC_ALL=C {shell}3 >out 2>&1",
    ]
    if os.path.exists("/dev/full"):
        commands.append(f"{shell}4 >/dev/full 2>/dev/full")
    running = [
        subprocess.Popen(["bash", "-c", f"set -o pipefail; {command}"], cwd=folder) for command in commands
    ]
    assert [process.wait(timeout=120) for process in running] == [0] * len(commands)
    for number in range(1, len(commands) + 1):
        assert jaxgpt.load(folder / f"run{number}").step == 20
    assert "\\xe9" in (folder / "out").read_text()


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there is no SIGHUP here")
def test_a_terminal_that_is_closed_saves(folder):
    process = subprocess.Popen(
        [*TRAIN[:-1], "closed", "--config.train.num_steps=1000000", "--config.train.sample_tokens=0"],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # also where these tests run under nohup
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not saved_steps(folder / "closed") and time.monotonic() < deadline:
            time.sleep(0.1)
        process.stdout.close()
        process.send_signal(signal.SIGHUP)
        assert process.wait(timeout=60) == 128 + signal.SIGHUP
        assert process.stderr.read() == ""
    finally:
        process.kill()
    assert jaxgpt.load(folder / "closed").step > 0


def test_ctrl_c_at_the_start_is_no_traceback(folder):
    """From the first import of the package on."""
    commands = [TRAIN, [sys.executable, "-m", "jaxgpt.generate", "--workdir", "none"]]
    for delay in (0.05, 0.15, 0.3, 0.6):
        running = []
        for command in commands:
            running.append(
                subprocess.Popen(
                    command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
                )
            )
        time.sleep(delay)
        for process in running:
            process.send_signal(signal.SIGINT)
        for process in running:
            _, err = process.communicate(timeout=60)
            # Before the first lines of the package have run, Python itself is interrupted, which nobody can help.
            started = re.search(rf"{PACKAGE}/(?!__init__)", err) or not err
            assert not started or ("Traceback" not in err and process.returncode in (-2, 0, 2, 130)), err


def test_a_cause_is_what_the_system_said():
    """RESOURCE_EXHAUSTED is a full disk for TensorStore, and no memory for XLA."""
    full = ValueError("RESOURCE_EXHAUSTED: Error writing local file: No space left on device [OS error 28]")
    assert causes.describe(full).endswith("(free some space)") and not causes.is_out_of_memory(full)
    memory = RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes")
    assert causes.is_out_of_memory(memory) and "free some space" not in causes.describe(memory)
    for number, words in ((13, "rights"), (24, "ulimit -n"), (5, "")):
        described = causes.describe(OSError(number, os.strerror(number), "file"))
        assert described.startswith(f"{os.strerror(number)}: file") and words in described
        assert "free some space" not in described
    ring = ValueError("one")
    ring.__cause__ = KeyError("two")
    ring.__cause__.__cause__ = ring
    assert causes.system_error(ring) is None and causes.describe(ring) == "'two'"


def test_ctrl_c_ends_serve_while_it_compiles(folder):
    subprocess.run([*TRAIN[:-1], "served"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    command = [sys.executable, "-m", "jaxgpt.serve", "--workdir", "served", "--port", "0"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert "http://127.0.0.1:" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
