"""Errors of the system while a run is read: nothing moves, nothing is cut, nothing starts over.

    python -m experiments.errnos [--only load/meta] [--workdir runs/errnos] [--json FILE]

A small run is trained to step 20 of 40. Then 20 errors of the system x 6 kinds of its files x 4 commands, 480 tries: a
library in front of libc (errnos.c, compiled with gcc; Linux) makes every open of such a file fail with that error. Each
try is a fork of one process that has imported everything. A try is right where it ends with exit code 2 and one line, or
with success because the file is not needed or is read again, and every file of the run has its bytes as before; training
may add to them from step 20 on.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

ERRORS = (
    "EPERM", "EINTR", "EIO", "ENXIO", "EAGAIN", "ENOMEM", "EACCES", "EBUSY", "ENODEV", "ENFILE", "EMFILE", "ENOSPC", "EROFS",
    "ELOOP", "ENAMETOOLONG", "ENOENT", "ESTALE", "ETIMEDOUT", "EDQUOT", "EREMOTEIO",
)  # fmt: skip
COMMANDS = ("train", "load", "evaluate", "report")
STEP, SECONDS = 20, 120  # the step of the newest checkpoint; a try that takes longer is a hang
TIMES = 1_000_000  # opens that fail: Python repeats an open that a signal interrupts (EINTR) for ever
FINE = ("one line", "not opened", "read again")


def config(text: str) -> Any:
    """A run of milliseconds a step, with two checkpoints."""
    from jaxgpt.config import Config, DataConfig, ModelConfig, TrainConfig

    return Config(
        model=ModelConfig(context_length=16, d_model=16, num_layers=1, num_heads=2),
        data=DataConfig(path=text, batch_size=4),
        train=TrainConfig(
            num_steps=2 * STEP, eval_every=10, eval_tokens=200, checkpoint_every=10, keep_checkpoints=9, sample_tokens=4,
            embedding_snapshots=2,
        ),
    )  # fmt: skip


# --- one try, in a process of its own ---------------------------------------------------------------------


def command(name: str) -> int | None:
    """Run a command on the folder `run`, as its module does."""
    from jaxgpt import evaluate, load, report
    from jaxgpt.common import cli
    from jaxgpt.training.loop import train

    if name in ("evaluate", "report"):
        return {"evaluate": evaluate.main, "report": report.main}[name](["--workdir", "run"])
    cli.set_up_process()
    if name == "load":
        print(f"step {load('run').step}")
    else:
        train(config("text.txt"), "run")
    return 0


def attempt(name: str, part: str, number: int) -> None:
    """Run a command while opens of paths with `part` in them fail. Writes to the files out, err and count; never returns."""
    from jaxgpt.common import cli

    for descriptor, file in ((1, "out"), (2, "err")):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    shim, code = ctypes.CDLL(None), 1
    shim.errnos_arm(part.encode(), number, TIMES)
    try:
        cli.run(lambda _: command(name))
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        failed = shim.errnos_failed()
        shim.errnos_arm(b"", 0, 0)
        Path("count").write_text(str(failed))
        os._exit(code)


def wait(pid: int) -> int | None:
    """The exit code of a process, or None if it had to be stopped."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


# --- what a try did ---------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, str]:
    """The hash of each file by its path. The lock has no content."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def harm(name: str, before: dict[str, str], log: bytes) -> list[str]:
    """What a try should not have done to the folder `run`."""
    after = contents(Path("run"))
    grows = {"metrics.jsonl", "run.json", "report.html"}  # of training and report
    found = [f"changed {file}" for file in before if file not in grows and after.get(file) != before[file]]
    found += [f"made {file}" for file in after if file.startswith(("damaged/", "before/", "metrics.removed"))]
    metrics = Path("run/metrics.jsonl")
    if not metrics.exists() or not metrics.read_bytes().startswith(log):
        found.append("cut metrics.jsonl")
    output = Path("out").read_text(errors="replace")
    if re.search(r"^step +0\b", output, re.MULTILINE):
        found.append("started over")
    if name != "train" and f"step {STEP // 2}" in output:
        found.append("served an older step")
    return found


def outcome(code: int | None) -> str:
    """How a try ended, in words."""
    lines = Path("err").read_text(errors="replace").splitlines()
    if code is None:
        return "hang"
    if any(line.startswith("Traceback") for line in lines):
        return "traceback"
    if code == 2:
        return "one line" if len(lines) == 1 and lines[0].startswith("error: ") else "several lines"
    if code != 0:
        return f"exit code {code}"
    if Path("count").read_text() == "0":
        return "not opened"
    return "success with a warning" if lines else "read again"


def tries(only: str) -> list[dict[str, Any]]:
    """All tries in the current folder, which has the run as `pristine`."""
    ids = next(Path("cache").rglob("train.bin")).parent.absolute()
    kinds = {
        "meta": f"/{STEP}/meta/", "params": f"/{STEP}/params/", "opt_state": f"/{STEP}/opt_state/",
        "metrics": "metrics.jsonl", "config": "run/config.json", "ids": f"{ids}/",
    }  # fmt: skip
    before, log = contents(Path("pristine")), Path("pristine/metrics.jsonl").read_bytes()
    found = []
    for name, kind, error in ((n, k, e) for n in COMMANDS for k in kinds for e in ERRORS):
        if only not in f"{name}/{kind}/{error}":
            continue
        if not Path("run").exists() or contents(Path("run")) != before:
            shutil.rmtree("run", ignore_errors=True)
            shutil.copytree("pristine", "run")
        pid = os.fork()
        if pid == 0:
            attempt(name, kinds[kind], getattr(errno, error))
        result = outcome(wait(pid))
        text = (Path("err").read_text(errors="replace").splitlines() or [""])[-1]
        one = {
            "command": name, "file": kind, "error": error, "result": result, "harm": harm(name, before, log),
            "text": text.replace(str(Path.cwd()), "..."),
        }  # fmt: skip
        found.append(one)
        right = result in FINE and not one["harm"]
        print(
            f"{'' if right else 'WRONG '}{name} {kind} {error}: {result} {one['harm'] or ''} {text[:150]}",
            flush=True,
        )
    return found


# --- all tries --------------------------------------------------------------------------------------------


def with_library(folder: Path) -> None:
    """Start this program again with errnos.c in front of libc."""
    library = folder / "errnos.so"
    source = Path(__file__).with_suffix(".c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    os.environ |= {"LD_PRELOAD": str(library), "JAXGPT_CACHE": str(folder / "cache")}
    os.execv(sys.executable, sys.orig_argv)


def train_pristine() -> None:
    """Train the run to STEP in a process of its own: this one must not start a backend, which a fork can't use."""
    nouns, verbs = ["king", "queen", "fool", "ghost", "duke"], ["loves", "sees", "fears", "kills"]
    lines = [
        f"the {nouns[i * i % 5]} {verbs[i * 7 % 11 % 4]} the {nouns[i * 3 % 7 % 5]}.\n" for i in range(600)
    ]
    Path("text.txt").write_text("".join(lines))
    shutil.rmtree("run", ignore_errors=True)
    program = (
        "from experiments.errnos import config; from jaxgpt.common import cli; from jaxgpt.training.loop import train;"
        f"cli.set_up_process(); train(config('text.txt'), 'run', stop_at={STEP})"
    )
    path = str(Path(__file__).parents[1])
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, "PYTHONPATH": path})
    os.rename("run", "pristine")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", default="", help="a part of command/file/error, such as load/meta or ENOENT"
    )
    parser.add_argument("--workdir", type=Path, default=Path("runs/errnos"))
    parser.add_argument("--json", type=Path, help="a file for the tries")
    args = parser.parse_args()
    folder, record = args.workdir.absolute(), args.json and args.json.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if os.environ.get("LD_PRELOAD") != str(folder / "errnos.so"):
        with_library(folder)
    from experiments import claim

    commit = claim.commit()
    os.chdir(folder)
    if not Path("pristine").exists():
        train_pristine()
    # Imported once, for all forks. No backend starts.
    import orbax.checkpoint  # noqa: F401
    import tensorstore  # noqa: F401

    import jaxgpt.evaluate
    import jaxgpt.inspect.write
    import jaxgpt.report
    import jaxgpt.training.loop  # noqa: F401

    found = tries(args.only)
    results = dict(Counter(one["result"] for one in found))
    harmed = sum(bool(one["harm"]) for one in found)
    print(f"{len(found)} tries: {results}; {harmed} did harm")
    if record:
        # Only now: asking for the machine starts a backend, after which no fork works.
        facts = {
            "commit": commit,
            "machine": claim.machine(),
            "tries": len(found),
            "results": results,
        }
        wrong = [one for one in found if one["result"] not in FINE or one["harm"]]
        texts = {
            f"{one['command']}/{one['file']}/{one['error']}": one["text"] for one in found if one["text"]
        }
        record.write_text(
            json.dumps({**facts, "harmed": harmed, "wrong": wrong, "texts": texts}, indent=1) + "\n"
        )
    sys.exit(int(any(one["result"] not in FINE or one["harm"] for one in found)))


if __name__ == "__main__":
    main()
