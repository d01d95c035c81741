"""Does a run survive being killed? One run, killed 100 times at random moments, and one that was not.

    python -m experiments.torture [--kills 100] [--seed 0] [--workdir runs/torture] [--json FILE]

Each life of the run is a process that ends itself with SIGKILL, SIGTERM or SIGINT at a random moment of start-up, restore,
a step, an evaluation or a save. Saves start every four steps and continue in the background. The table counts what was
really going on, as reported by the dying process. The run must end equal, bit for bit, to the one that was not killed:
every loss and every parameter.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

PHASES = ("start-up", "restore", "step", "evaluation", "save")
# The relative frequency of each aim, and the most calls of it that a life may last. A save continues during later steps.
AIMS = {"start-up": (3, 1), "restore": (2, 1), "step": (7, 10), "evaluation": (4, 2), "save": (7, 3)}
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# The exit codes of a life: it ended, or a signal ended it, before or after the handler was installed.
CODES = {0, *(-number for number in SIGNALS), *(128 + number for number in SIGNALS[1:])}


def config(num_steps: int):
    """A run with steps of milliseconds on a text that comes with Python, with dropout, evaluations and samples."""
    from jaxgpt.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig

    return Config(
        model=ModelConfig(context_length=16, d_model=16, num_layers=2, num_heads=2, dropout_rate=0.1),
        data=DataConfig(corpus="python_docs", batch_size=4),
        optim=OptimConfig(learning_rate=3e-3, warmup_steps=5),
        train=TrainConfig(
            num_steps=num_steps, eval_every=8, log_every=1, checkpoint_every=4, sample_tokens=8, eval_tokens=512
        ),
    )  # fmt: skip


# --- one life -------------------------------------------------------------------------------------------


def live(folder: Path, num_steps: int, aim: str, call: int, delay: float, number: int) -> None:
    """Train in `folder` and send itself a signal `delay` seconds after the `call`-th start of the aim.

    Writes the phase and the time of that moment to the file `hit` next to the folder.
    """
    now, calls, reached = "start-up", Counter(), threading.Event()

    def end() -> None:
        reached.wait()
        time.sleep(delay)
        saving = any((folder / "checkpoints").glob("*.orbax-checkpoint-tmp*"))
        phase = "save" if saving and now == "step" else now
        with (folder.parent / "hit").open("w") as file:
            json.dump({"phase": phase, "time": time.time()}, file)
            file.flush()
        os.kill(os.getpid(), number)

    def begin(phase: str) -> None:
        nonlocal now
        now = phase
        calls[phase] += 1
        if phase == aim and calls[phase] == call:
            reached.set()

    def watched(phase: str, function):
        def called(*args, **kwargs):
            nonlocal now
            before = now
            begin(phase)
            try:
                return function(*args, **kwargs)
            finally:
                now = "step" if phase != "step" and before == "start-up" else before

        return called

    threading.Thread(target=end, daemon=True).start()
    begin("start-up")
    from jaxgpt.common.cli import set_up_process
    from jaxgpt.runs import checkpoint
    from jaxgpt.training import actions, loop, programs

    for phase, owner, name in (
        ("restore", loop.Trainer, "restore_or_init"),
        ("step", programs.SingleRun, "feed"),
        ("evaluation", actions.Evaluate, "run"),
        ("save", checkpoint.Checkpoints, "save"),
        ("save", checkpoint.Checkpoints, "wait"),
    ):
        setattr(owner, name, watched(phase, getattr(owner, name)))
    set_up_process()
    result = loop.train(config(num_steps), folder)
    sys.exit(0 if result.signal is None else 128 + result.signal)


# --- the run --------------------------------------------------------------------------------------------


def start(
    folder: Path, num_steps: int, aim: str = "never", call: int = 0, delay: float = 0.0, number: int = 9
) -> int:
    """Run one life; returns its exit code."""
    life = [str(folder), str(num_steps), aim, str(call), str(delay), str(number)]
    command = [sys.executable, "-m", "experiments.torture", "--life", *life]
    root = Path(__file__).parent.parent
    return subprocess.run(
        command, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=600
    ).returncode


def newest(folder: Path) -> int:
    """The step of the newest complete checkpoint; 0 if there is none."""
    return max((int(p.name) for p in (folder / "checkpoints").glob("*") if p.name.isdigit()), default=0)


def torture(folder: Path, num_steps: int, kills: int, rng: random.Random) -> dict:
    """Kill a run `kills` times, then let it end. Raises RuntimeError if a life ended otherwise, or a save was lost."""
    hits: Counter[tuple[str, str]] = Counter()
    seconds, hit = [], folder.parent / "hit"
    while hits.total() < kills:
        aim = rng.choices(PHASES, [AIMS[phase][0] for phase in PHASES])[0]
        number = rng.choice(SIGNALS)
        longest = 3.0 if aim == "start-up" else 0.05
        hit.unlink(missing_ok=True)
        saved = newest(folder)
        code = start(folder, num_steps, aim, 1 + rng.randrange(AIMS[aim][1]), rng.uniform(0, longest), number)
        if code not in CODES:
            raise RuntimeError(f"a life ended with exit code {code}")
        if newest(folder) < saved:
            raise RuntimeError(f"step {saved} was saved and is lost")
        if not hit.exists():  # the run ended before the signal
            break
        reported = json.loads(hit.read_text())
        hits[reported["phase"], signal.Signals(number).name] += 1
        if code == 128 + number:
            seconds.append(time.time() - reported["time"])
    if code := start(folder, num_steps):
        raise RuntimeError(f"the last life ended with exit code {code}")
    return {"hits": hits, "seconds_from_signal_to_exit": seconds}


def same(one: Path, other: Path) -> dict:
    """Whether two runs have equal losses, and parameters that are equal bit for bit."""
    import numpy as np

    import jaxgpt
    from jaxgpt.model.paths import named_leaves
    from jaxgpt.runs.curves import curve

    a, b = (named_leaves(jaxgpt.load(folder).params) for folder in (one, other))
    return {
        "losses": len(curve(one)),
        "equal_losses": curve(one) == curve(other),
        "equal_parameters": all(
            np.asarray(x).tobytes() == np.asarray(y).tobytes() for (_, x), (_, y) in zip(a, b, strict=True)
        ),
    }


def table(hits: Counter) -> str:
    """Kills by phase and by signal, as Markdown."""
    names = [signal.Signals(number).name for number in SIGNALS]
    lines = [f"| killed during | {' | '.join(names)} | all |", "| --- |" + " --- |" * (len(names) + 1)]
    for phase in PHASES:
        counts = [hits[phase, name] for name in names]
        lines.append(f"| {phase} | {' | '.join(map(str, counts))} | {sum(counts)} |")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.torture", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument(
        "--seed", type=int, default=0, help="of the random moments; what is hit also depends on the machine"
    )
    parser.add_argument("--workdir", type=Path, default=Path("runs/torture"), help="is emptied first")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--life", nargs=6, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.life:
        folder, num_steps, aim, call, delay, number = args.life
        live(Path(folder), int(num_steps), aim, int(call), float(delay), int(number))
    num_steps = max(24, args.kills * 16)  # more than all lives together can train
    shutil.rmtree(args.workdir, ignore_errors=True)
    args.workdir.mkdir(parents=True)
    start_time = time.perf_counter()
    if start(args.workdir / "not_killed", num_steps):
        raise RuntimeError("the run that is not killed failed")
    undisturbed_seconds = time.perf_counter() - start_time
    found = torture(args.workdir / "killed", num_steps, args.kills, random.Random(args.seed))
    hits, seconds = found["hits"], found["seconds_from_signal_to_exit"]
    equal = same(args.workdir / "not_killed", args.workdir / "killed")
    print(f"{hits.total()} kills of one run of {num_steps} steps, {time.perf_counter() - start_time:.0f} s "
          f"({undisturbed_seconds:.0f} s of them for the run that was not killed)\n\n{table(hits)}\n")  # fmt: skip
    if seconds:
        print(
            f"from SIGTERM or SIGINT to a saved exit: median {statistics.median(seconds):.1f} s, most {max(seconds):.1f} s"
        )
    print(
        f"{equal['losses']:,} losses equal: {equal['equal_losses']}; parameters equal: {equal['equal_parameters']}"
    )
    if args.json:
        counts = {f"{phase} {name}": count for (phase, name), count in hits.items()}
        args.json.write_text(
            json.dumps({"hits": counts, "seconds": seconds, **equal}, indent=2) + "\n", "utf-8"
        )
    return 0 if equal["equal_losses"] and equal["equal_parameters"] and hits.total() == args.kills else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
