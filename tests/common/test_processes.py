"""Several processes as one run: the curve of one process, logs written once, a signal to one stops all."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import jaxgpt
from jaxgpt.common import processes
from jaxgpt.config import UserError
from jaxgpt.model.paths import named_leaves
from tests.small_runs import metrics, write_text

ROOT = Path(__file__).parents[2]
FLAGS = [
    "--config.model.context_length=16", "--config.model.d_model=32", "--config.model.num_layers=1",
    "--config.model.num_heads=2", "--config.model.dropout_rate=0.1", "--config.model.use_bias=false",
    "--config.data.batch_size=8", "--config.optim.warmup_steps=5", "--config.train.eval_every=10",
    "--config.train.eval_tokens=512", "--config.train.checkpoint_every=5", "--config.train.log_every=1",
    "--config.train.sample_tokens=4", "--config.optim.learning_rate=1e-3",
]  # fmt: skip


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def start(folder: Path, count: int, devices: int, *flags: str) -> list[subprocess.Popen]:
    """`count` processes with so many devices each, one run in folder/run."""
    port = free_port()
    command = [
        sys.executable, "-m", "jaxgpt.train", "--config", "configs/char.py", "--workdir", str(folder / "run"),
        f"--config.data.path={folder.parent / 'text.txt'}", *FLAGS, *flags,
    ]  # fmt: skip
    if count > 1:
        command += [f"--coordinator=localhost:{port}", f"--num_processes={count}"]
    return [
        subprocess.Popen(
            [*command, f"--process_id={i}"] if count > 1 else command,
            cwd=ROOT,
            env={**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(count)
    ]


def finish(started: list[subprocess.Popen], code: int = 0) -> list[str]:
    """The lines that each process printed, after all have ended with `code`."""
    ends = [process.communicate(timeout=300) for process in started]
    for process, (_, err) in zip(started, ends, strict=True):
        assert process.returncode == code, err[-3000:]
    # Gloo, the transport between CPUs, reports its connections on stdout, from several threads at once.
    lines = [out.splitlines(True) for out, _ in ends]
    return ["".join(x for x in out if not re.search(r"\[Gloo\]|peer ranks", x)) for out in lines]


def wait_for_step(folder: Path, step: int, started: list[subprocess.Popen], starts: int) -> None:
    """Until the start of this number has a line of the step; those of an earlier start are dropped by then."""
    until = time.monotonic() + 200
    path, facts = folder / "run/metrics.jsonl", folder / "run/run.json"
    while time.monotonic() < until and all(process.poll() is None for process in started):
        started_again = facts.exists() and len(json.loads(facts.read_text())["starts"]) >= starts
        if started_again and f'"step": {step},' in path.read_text():
            return
        time.sleep(0.02)
    for process in started:
        process.kill()
    raise AssertionError([process.communicate()[1][-2000:] for process in started])


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    write_text(folder / "text.txt")
    return folder


STEPS = "--config.train.num_steps=40"


@pytest.fixture(scope="module")
def alone(place) -> Path:
    """The run of one process with one device."""
    finish(start(place / "alone", 1, 1, STEPS))
    return place / "alone/run"


def assert_near(one: Path, other: Path) -> None:
    """The same lines in the same order, losses and parameters but for the order of sums."""
    a, b = metrics(one), metrics(other)
    assert [(line["step"], line["split"]) for line in a] == [(line["step"], line["split"]) for line in b]
    np.testing.assert_allclose([x["loss"] for x in b], [x["loss"] for x in a], rtol=0, atol=5e-6)
    pairs = zip(named_leaves(jaxgpt.load(one).params), named_leaves(jaxgpt.load(other).params), strict=True)
    for (path, x), (_, y) in pairs:
        assert np.linalg.norm(x - y) < 1e-5 * np.linalg.norm(x), path


@pytest.mark.parametrize(
    ("count", "devices", "mesh"),
    [
        (2, 2, ("--config.mesh.fsdp=2",)),
        pytest.param(4, 1, ("--config.mesh.tensor=2",), marks=pytest.mark.slow),
    ],
)
def test_several_processes_give_the_curve_of_one_and_write_once(place, alone, count, devices, mesh):
    folder = place / f"{count}x{devices}"
    first, *others = finish(start(folder, count, devices, STEPS, *mesh))
    assert "4 devices: data 2 x" in first and "done: step 40" in first
    assert others == [""] * (count - 1)
    assert_near(alone, folder / "run")
    assert len(json.loads((folder / "run/run.json").read_text())["starts"]) == 1


@pytest.mark.slow
@pytest.mark.ci
def test_a_run_that_was_killed_and_stopped_resumes_with_another_count(place, alone):
    """Two processes are killed; two more get one SIGTERM between them; one alone comes to the end."""
    folder, two = place / "stopped", (2, 1, STEPS, "--config.mesh.data=1", "--config.mesh.fsdp=2")
    started = start(folder, *two)
    wait_for_step(folder, 1, started, starts=1)
    for process in started:
        process.send_signal(signal.SIGKILL)
    finish(started, -signal.SIGKILL)
    started = start(folder, *two)
    wait_for_step(folder, 11, started, starts=2)
    started[1].send_signal(signal.SIGTERM)
    first, _ = finish(started, 128 + signal.SIGTERM)
    saved = re.search(r"stopped by SIGTERM: saved step (\d+)", first)
    assert saved, first
    (out,) = finish(start(folder, 1, 1, STEPS))
    assert f"resumes from step {saved[1]} in" in out
    assert_near(alone, folder / "run")


def test_an_error_of_one_process_is_raised_in_all(place):
    folder = place / "wrong"
    (folder / "run").mkdir(parents=True)
    (folder / "run/config.json").write_text("[]")
    started = start(folder, 2, 1, STEPS)
    errors = [process.communicate(timeout=200)[1].strip().splitlines() for process in started]
    assert [process.returncode for process in started] == [2, 2], errors
    for lines in errors:
        assert any(line.startswith("error: ") and "config.json can't be read" in line for line in lines), (
            lines
        )


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--coordinator=localhost:1"],
            "give --coordinator HOST:PORT, --num_processes and --process_id together",
        ),
        (["--distributed", "--process_id=0"], "together, or --distributed alone"),
        (["--coordinator=x:1", "--num_processes=2", "--process_id=2"], "process_id=2: give 0 to 1"),
        (["--distributed"], "could not join the other processes"),
    ],
)
def test_flags_that_do_not_belong_together_are_refused(flags, words):
    from jaxgpt.common import cli

    parser = cli.Parser(prog="x")
    cli.add_process_flags(parser)
    with pytest.raises(UserError, match=words):
        processes.join(parser.parse_args(flags))
