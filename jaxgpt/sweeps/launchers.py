"""Launch a sweep's groups in several processes, as Ray tasks, or as a SLURM array that the user submits.

Each process runs the same command with `--part=I/N`, which trains the groups I, I + N, I + 2N, ... The processes share only
the sweep's folder. Queues, hosts, retries and the devices of a task are the launcher's job.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxgpt.common import cli, machine
from jaxgpt.common.files import write_atomically
from jaxgpt.common.progress import Interrupt
from jaxgpt.common.say import say
from jaxgpt.config import UserError


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags for launching."""
    group = parser.add_argument_group("launching")
    group.add_argument("--launcher", default="local", help=f"one of {', '.join(LAUNCHERS)}")
    group.add_argument(
        "--workers", type=int, default=1, help="processes; with ray or slurm the least number of tasks"
    )
    group.add_argument("--cores", type=int, help="CPU cores per process; default: an equal share")
    group.add_argument("--gpus", type=float, default=0, help="ray and slurm: GPUs per task")
    group.add_argument("--part", metavar="I/N", help="train only part I of N, counted from 0")
    group.add_argument("--until", type=int, help="stop every member at this step")


def check(args: argparse.Namespace, halving: bool) -> tuple[int, int]:
    """--part as (part, parts). Raises UserError for invalid flags."""
    if args.launcher not in LAUNCHERS:
        raise UserError(f"--launcher={args.launcher}: choose one of {', '.join(LAUNCHERS)}")
    cli.check_at_least(1, args, "workers", "cores", "until")
    if halving and args.launcher == "slurm":
        raise UserError("--halving compares all members at each step, but the jobs of a SLURM array do not wait for each "
                        "other: use another --launcher")  # fmt: skip
    if args.part is None:
        return 0, 1
    try:
        part, parts = (int(number) for number in args.part.split("/"))
    except ValueError:
        raise UserError(f"--part={args.part}: give the part and the number of parts, such as 0/4") from None
    if not 0 <= part < parts:
        raise UserError(f"--part={args.part}: give 0/{parts} to {parts - 1}/{parts}")
    if halving or args.workers > 1 or args.launcher != "local":
        raise UserError("--part trains in this process: leave --halving, --workers and --launcher out")
    return part, parts


def own_flags(argv: Sequence[str]) -> list[str]:
    """The command's flags without those for launching."""
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
    """Run the commands at the same time on this machine. Returns the signal that stopped them, or None."""
    workers = [subprocess.Popen(command) for command in commands]
    stopped: int | None = None

    def forward(number: int, _frame: Any) -> None:
        nonlocal stopped
        stopped = number
        for worker in workers:
            if worker.poll() is None:
                worker.send_signal(number)

    old = {number: signal.signal(number, forward) for number in Interrupt.SIGNALS}
    try:
        codes = [worker.wait() for worker in workers]
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    return stopped or _raise_for(codes)


def _raise_for(codes: list[int]) -> int | None:
    """The signal in the exit codes, or None. Raises UserError if a process itself failed (not 0 and not 1, a failed member)."""
    wrong = [code for code in codes if code not in (0, 1)]
    if signals := [code - 128 for code in wrong if code > 128]:
        return signals[0]
    if wrong:
        raise UserError(f"{len(wrong)} of {len(codes)} processes ended with exit code {wrong[0]}: see their output for "
                        "the cause, then run the same command to resume")  # fmt: skip
    return None


def in_ray(commands: list[list[str]], args: argparse.Namespace) -> int | None:
    """Run the commands as Ray tasks, here or on the cluster at RAY_ADDRESS, whose hosts must share the sweep's folder."""
    try:
        import ray
    except ImportError:
        raise UserError('--launcher=ray needs Ray: pip install "jaxgpt[ray]"') from None
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=True, logging_level="ERROR", include_dashboard=False)
    try:
        # A task runs on one host, so it can't ask for more cores than the largest host has.
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


def _quoted(text: str) -> str:
    """A value of an #SBATCH line, in double quotes where it has more than plain characters."""
    if re.fullmatch(r"[\w./%+=:,@-]+", text):
        return text
    return '"' + re.sub(r'(["\\\\])', r"\\\1", text.replace("\n", " ")) + '"'


def write_slurm(commands: list[list[str]], folder: Path, args: argparse.Namespace) -> Path:
    """Write a script for `sbatch`: an array with one job per part."""
    command = shlex.join(part for part in commands[0] if not part.startswith("--part="))
    cores = args.cores or 4
    lines = [
        "#!/usr/bin/env bash",
        f"#SBATCH --job-name={_quoted(folder.name)}",
        f"#SBATCH --array=0-{len(commands) - 1}",
        f"#SBATCH --cpus-per-task={cores}",
        *([f"#SBATCH --gpus-per-task={args.gpus:g}"] if args.gpus else []),
        f"#SBATCH --output={_quoted(str(folder).replace('%', '%%') + '/slurm-%a.log')}",
        "# SLURM sends SIGTERM two minutes before the time limit: the job saves, is requeued and resumes.",
        "#SBATCH --signal=TERM@120",
        "#SBATCH --requeue",
        f"cd {shlex.quote(os.getcwd())} || exit",
        f'srun {command} --part="$SLURM_ARRAY_TASK_ID/{len(commands)}"',
    ]
    path = folder / "slurm.sh"
    write_atomically(path, ("\n".join(lines) + "\n").encode())
    path.chmod(0o755)
    return path


LAUNCHERS: dict[str, Callable[[list[list[str]], argparse.Namespace], int | None] | None] = {
    "local": in_processes,
    "ray": in_ray,
    "slurm": None,  # only writes a script
}


def launch(
    args: argparse.Namespace, argv: Sequence[str], groups: int, folder: Path, until: int | None = None
) -> int | None:
    """Train all groups in other processes, to their end or to a step. Returns the signal that stopped them, or None.

    Ray and SLURM get one task per group and queue them. On this machine `--workers` processes share the groups.
    """
    parts, cores = groups, args.cores
    if args.launcher == "local":
        parts = min(groups, args.workers)
        cores = cores or max(1, machine.available_cores() // parts)
    until = until or args.until
    commands = [_command(argv, part, parts, cores, until) for part in range(parts)]
    if args.launcher == "slurm":
        path = write_slurm(commands, folder, args)
        say(
            f"wrote {path}: submit it with `sbatch {shlex.quote(str(path))}`; `--table` shows the status of the members"
        )
        return None
    return LAUNCHERS[args.launcher](commands, args)
