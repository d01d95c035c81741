"""Measure every claim, and write the table of results.

    python -m experiments [--only lookup neurons] [--quick | --full] [--seeds 10] [--jobs 2]
    python -m experiments --table    # sentences, verdicts, plots and the table again, from results/*.json
    python -m experiments --check    # one line for each number that does not follow from results/*.json

Each claim runs in a process of its own, so that a failure does not stop the others. The table then shows its reason, and
the exit code is 1. A small model keeps little more than one core busy: with --jobs 2 two claims are measured at once, each on
half of the cores; those that measure times follow, one at a time on all.
"""

from __future__ import annotations

import importlib
import os
import queue
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent import futures
from pathlib import Path

from experiments import claim, page, recompute
from jaxgpt.common import cli
from jaxgpt.common.files import write_json
from jaxgpt.config import UserError
from jaxgpt.runs import records

# Questions of the field, and a published model.
QUESTIONS = [
    "distribution",
    "pseudowords",
    "superposition",
    "seed_lottery",
    "induction",
    "scaling_law",
    "norm_order",
    "rare_tokens",
    "repeated_data",
    "tokenizer_bits",
    "real_model",
]
# Modules, in the order of the learning notes.
CLAIMS = [
    "lookup",
    "sizes",
    "ids",
    "meaning",
    "near_far",
    "columns",
    "analogy",
    "width",
    "richer_features",
    "overfitting",
    "powers_of_two",
    "matched_width",
    "positions",
    "no_mask",
    "static_dynamic",
    "later_words",
    "heads_add_up",
    "number_of_heads",
    "neurons",
    "mlp_width",
    "residual",
    "character_loss",
    "gradient_rows",
    "fine_tuning",
    "parallel_positions",
    # The documents of this project.
    "recipe",
    "mup",
    *QUESTIONS,
]
# Measure times, and so run alone.
TIMED = {
    "lookup",
    "width",
    "powers_of_two",
    "number_of_heads",
    "mlp_width",
    "fine_tuning",
    "parallel_positions",
}


def conclude_again(name: str, results: Path) -> None:
    """Write a measured claim's sentences, verdict and plot again, from its measurements."""
    record = page.read(results, name)
    if record is not None and "failed" not in record:
        module = importlib.import_module(f"experiments.{name}")
        claim.write(module, claim.concluded(module, record), results)


def run_one(name: str, setting: claim.Setting, results: Path, cores: Sequence[int] = ()) -> bool:
    """Measure one claim in a process of its own, on these cores or all. A failure is written in place of the result."""
    command = [sys.executable, "-m", f"experiments.{name}", *claim.flags_of(setting)]
    start = time.perf_counter()
    with subprocess.Popen(
        [*command, "--runs", str(setting.runs), "--results", str(results)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        if cores:
            os.sched_setaffinity(process.pid, cores)  # before it starts threads
        _, errors = process.communicate()
    seconds = time.perf_counter() - start
    if not process.returncode:
        record = page.read(results, name)
        print(f"{name:<20} {record['verdict']:<28} {seconds:5.0f} s  {record['says']}", flush=True)
        return True
    lines = errors.strip().splitlines()
    reason = lines[-1] if lines else f"ended by signal {-process.returncode}"
    print(f"{name:<20} {'failed':<28} {seconds:5.0f} s  {reason}", flush=True)
    records.make_folder(results)
    failed = {"name": name, "claim": name, "failed": reason, "seconds": round(seconds, 1)}
    write_json(results / f"{name}.json", failed | {"command": " ".join(["python", *command[1:]])})
    return False


def run_all(names: list[str], setting: claim.Setting, results: Path, jobs: int) -> list[str]:
    """Measure these claims, `jobs` at a time, then those that measure times; returns the names of those that failed."""
    shares: queue.SimpleQueue[Sequence[int]] = queue.SimpleQueue()
    for cores in shares_of_cores(jobs):
        shares.put(cores)

    def one(name: str) -> bool:
        cores = shares.get()
        try:
            return run_one(name, setting, results, cores)
        finally:
            shares.put(cores)

    together = [name for name in names if jobs == 1 or name not in TIMED]
    with futures.ThreadPoolExecutor(jobs) as pool:
        done = dict(zip(together, pool.map(one, together), strict=True))
    done |= {name: run_one(name, setting, results) for name in names if name not in done}
    return [name for name in names if not done[name]]


def shares_of_cores(jobs: int) -> list[Sequence[int]]:
    """The cores of each of several processes; () is all. Two processes that share two cores take 1.3 times as long as on one each."""
    if jobs == 1 or not hasattr(os, "sched_getaffinity"):
        return [()] * jobs
    cores = sorted(os.sched_getaffinity(0))
    return [cores[job::jobs] for job in range(jobs)] if len(cores) >= jobs else [()] * jobs


def main(argv: list[str]) -> int:
    """Run the command line; see --help."""
    flags = claim.parser("python -m experiments", __doc__.splitlines()[0])
    flags.add_argument("--only", nargs="+", default=CLAIMS, metavar="NAME", help="only these claims")
    flags.add_argument("--jobs", type=int, default=1, help="claims that are measured at once; default 1")
    flags.add_argument(
        "--table",
        action="store_true",
        help="measure nothing: write sentences, verdicts, plots and the table again from the stored measurements",
    )
    flags.add_argument(
        "--check",
        action="store_true",
        help="measure nothing: say which stored sentences, numbers and verdicts do not follow from the measurements",
    )
    args = flags.parse_args(argv)
    if unknown := [name for name in args.only if name not in CLAIMS]:
        raise UserError(f"--only {' '.join(unknown)}: choose from {', '.join(CLAIMS)}")
    if args.jobs < 1:
        raise UserError(f"--jobs={args.jobs}: give 1 or more; one for each core is best")
    setting, results = claim.setting_of(args)
    if args.check:
        found = list(recompute.differences(results, args.only, CLAIMS))
        print("\n".join(found) or "every number follows from the stored measurements")
        return 1 if found else 0
    failed = []
    if args.table:
        for name in args.only:
            conclude_again(name, results)
    else:
        failed = run_all(args.only, setting, results, args.jobs)
    print(page.write(results, CLAIMS))
    return 1 if failed else 0


if __name__ == "__main__":
    cli.run(main)
