"""Where a sweep's groups are trained: in this process, in several, as Ray tasks, or as a SLURM array that the user submits.

All are the same command with `--part=I/N`, which trains every N-th group from the I-th on. What they share is the sweep's
folder. Queues, hosts, retries and devices a task are the launcher's own business.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxgpt.common.files import write_atomically
from jaxgpt.config import UserError


@dataclass(frozen=True)
class Place:
    """Which part of a sweep this process trains."""

    part: int
    parts: int


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that say where."""
    group = parser.add_argument_group("where")
    group.add_argument("--launcher", default="local", help=f"one of {', '.join(LAUNCHERS)}")
    group.add_argument(
        "--workers", type=int, default=1, help="processes; Ray tasks or jobs of the array at least"
    )
    group.add_argument("--cores", type=int, help="CPU cores of this process; by default its share of all")
    group.add_argument("--gpus", type=float, default=0, help="ray: GPUs of a task")
    group.add_argument("--part", metavar="I/N", help="train the I-th of N parts only, from 0")
    group.add_argument("--until", type=int, help="train to this step only")


def check(args: argparse.Namespace, halving: bool) -> Place:
    """The part that is asked for. Raises UserError for flags that make no sense."""
    if args.launcher not in LAUNCHERS:
        raise UserError(f"--launcher={args.launcher}: choose one of {', '.join(LAUNCHERS)}")
    for name in ("workers", "cores", "until"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise UserError(f"--{name}={value}: give 1 or more")
    if halving and args.launcher == "slurm":
        raise UserError("--halving compares all members at each step, an array's jobs do not wait for each other: "
                        "use another --launcher")  # fmt: skip
    if args.part is None:
        return Place(0, 1)
    try:
        part, parts = (int(number) for number in args.part.split("/"))
    except ValueError:
        raise UserError(f"--part={args.part}: give a part and their number, such as 0/4") from None
    if not 0 <= part < parts:
        raise UserError(f"--part={args.part}: give 0/{parts} to {parts - 1}/{parts}")
    if halving or args.workers > 1 or args.launcher != "local":
        raise UserError("--part trains in this process: leave --halving, --workers and --launcher out")
    return Place(part, parts)


def own_flags(argv: Sequence[str]) -> list[str]:
    """The command's flags for a process that trains one part."""
    kept, skip = [], False
    for argument in argv:
        name, equals, _ = argument.partition("=")
        if skip:
            skip = False
        elif name in ("--launcher", "--workers", "--cores", "--gpus", "--halving", "--until"):
            skip = not equals
        elif name != "--retry_failed":
            kept.append(argument)
    return kept


def _command(argv: Sequence[str], part: int, parts: int, cores: int | None, until: int | None) -> list[str]:
    flags = [f"--part={part}/{parts}"]
    flags += [f"--cores={cores}"] if cores else []
    flags += [f"--until={until}"] if until else []
    return [sys.executable, "-m", "jaxgpt.sweep", *own_flags(argv), *flags]


def in_processes(commands: list[list[str]], args: argparse.Namespace) -> int | None:
    """Side by side on this machine; the signal that stopped them, or None."""
    workers = [subprocess.Popen(command) for command in commands]
    stopped: int | None = None

    def tell(number: int, _frame: Any) -> None:
        nonlocal stopped
        stopped = number
        for worker in workers:
            if worker.poll() is None:
                worker.send_signal(number)

    old = {number: signal.signal(number, tell) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        codes = [worker.wait() for worker in workers]
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    return stopped or _raise_for(codes)


def _raise_for(codes: list[int]) -> int | None:
    """0: done. 1: some members failed, which the table tells. Else the process itself did not come to its end."""
    wrong = [code for code in codes if code not in (0, 1)]
    if signals := [code - 128 for code in wrong if code > 128]:
        return signals[0]
    if wrong:
        raise UserError(f"{len(wrong)} of {len(codes)} processes ended with exit code {wrong[0]}: what they printed says "
                        "why; the same command goes on")  # fmt: skip
    return None


def in_ray(commands: list[list[str]], args: argparse.Namespace) -> int | None:
    """As Ray tasks, here or on the cluster of RAY_ADDRESS, whose hosts share the sweep's folder."""
    try:
        import ray
    except ImportError:
        raise UserError('--launcher=ray needs Ray: pip install "jaxgpt[ray]"') from None
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=True, logging_level="ERROR", include_dashboard=False)
    try:
        # A task runs on one host: it can't ask for more than the largest has.
        largest = max(node["Resources"].get("CPU", 1) for node in ray.nodes() if node["Alive"])
        share = ray.cluster_resources().get("CPU", 1) // min(args.workers, len(commands))
        cpus = args.cores or max(1, int(min(share, largest)))
        commands = [[*command, f"--cores={cpus}"] for command in commands]
        task = ray.remote(num_cpus=cpus, num_gpus=args.gpus, max_retries=3)(subprocess.run)
        here = {"cwd": os.getcwd(), "env": {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}}
        codes = [done.returncode for done in ray.get([task.remote(command, **here) for command in commands])]
    except KeyboardInterrupt:
        return int(signal.SIGINT)
    finally:
        if started:
            ray.shutdown()
    return _raise_for(codes)


def write_slurm(commands: list[list[str]], folder: Path, args: argparse.Namespace) -> Path:
    """A script for `sbatch`, one job of an array for each part."""
    command = shlex.join(part for part in commands[0] if not part.startswith("--part="))
    cores = args.cores or 4
    lines = [
        "#!/usr/bin/env bash",
        f"#SBATCH --job-name={folder.name}",
        f"#SBATCH --array=0-{len(commands) - 1}",
        f"#SBATCH --cpus-per-task={cores}",
        *([f"#SBATCH --gpus-per-task={args.gpus:g}"] if args.gpus else []),
        f"#SBATCH --output={folder}/slurm-%a.log",
        "# Told two minutes before its time is up, a job saves; queued again, it goes on.",
        "#SBATCH --signal=TERM@120",
        "#SBATCH --requeue",
        f"cd {shlex.quote(os.getcwd())}",
        f'srun {command} --part="$SLURM_ARRAY_TASK_ID/{len(commands)}"',
    ]
    path = folder / "slurm.sh"
    write_atomically(path, ("\n".join(lines) + "\n").encode())
    path.chmod(0o755)
    return path


LAUNCHERS: dict[str, Callable[[list[list[str]], argparse.Namespace], int | None] | None] = {
    "local": in_processes,
    "ray": in_ray,
    "slurm": None,  # a script is written, nothing is started
}


def launch(
    args: argparse.Namespace, argv: Sequence[str], groups: int, folder: Path, until: int | None = None
) -> int | None:
    """Train all groups in processes of their own, to their end or to a step; the signal that stopped them, or None.

    Ray and SLURM queue what is more than they have room for; on this machine `--workers` processes share the groups.
    """
    parts, cores = groups, args.cores
    if args.launcher == "local":
        parts = min(groups, args.workers)
        cores = cores or max(1, len(os.sched_getaffinity(0)) // parts)
    until = until or args.until
    commands = [_command(argv, part, parts, cores, until) for part in range(parts)]
    if args.launcher == "slurm":
        path = write_slurm(commands, folder, args)
        print(f"wrote {path}: submit it with `sbatch {path}`; `--table` shows how the members stand")
        return None
    return LAUNCHERS[args.launcher](commands, args)
