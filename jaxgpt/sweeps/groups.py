"""Train a sweep: members that differ only in numbers as lanes of one compiled program, one group after another.

A sweep resumes: finished members are skipped, started ones resume from their checkpoints, and a member that fails does
not stop the others.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax

from jaxgpt.common import causes, machine
from jaxgpt.common.say import say
from jaxgpt.config import Config, UserError, first_line
from jaxgpt.data.dataset import prepare_dataset
from jaxgpt.inspect.write import write_or_warn
from jaxgpt.model import sharding
from jaxgpt.sweeps.halving import check_halving, with_halving
from jaxgpt.sweeps.members import Member, Row, Sweep
from jaxgpt.sweeps.search_space import Overrides
from jaxgpt.training import costs, lanes
from jaxgpt.training.loop import StepMismatch, Trainer
from jaxgpt.training.starting import resolve

MEMORY_SHARE = 0.7  # of a device's memory that the prediction for a group may use
GPU_WIDTH = 32  # the default width's cap on a GPU; not tuned


@dataclass(frozen=True)
class Options:
    """How to run a sweep. None of it changes what a member computes."""

    width: int | None = None  # lanes that a device computes at once; None: default_width
    group_size: int | None = None  # members in one program; None: as many as fit in memory
    halving: tuple[int, ...] = ()  # at each of these steps only the better half continues
    part: int = 0  # this process trains the groups part, part + parts, part + 2 parts, ...
    parts: int = 1


def use_all_cores(cores: int | None = None) -> None:
    """Make each CPU core a JAX device, so that each core trains its own lanes. GPUs are unaffected.

    The operations of a small model are too small to share among cores. Has no effect once JAX has devices.
    """
    cores = cores or machine.available_cores()
    # Two threads per device: with one, a device waits for the threads of another.
    os.environ.setdefault("PJRT_NPROC", str(2 * cores))
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", cores)


# --- groups ---------------------------------------------------------------------------------------------


def most_lanes(cfg: Config, width: int = 1) -> int:
    """How many members are predicted to fit in the memory of all devices, at least one per device.

    A lane's state is stored twice (the step's argument and its result). Activations are stored for `width` lanes only.
    """
    state, activations, memory = _lane_memory(cfg)
    return jax.local_device_count() * max(1, int((memory - width * activations) / (2 * state)))


def default_width(cfg: Config, count: int) -> int:
    """How many of `count` members each device computes at once: 1 on a CPU, else as many as fit, at most GPU_WIDTH.

    Wider did not pay on any CPU measured (docs/sweeps.md).
    """
    if jax.default_backend() == "cpu":
        return 1
    state, activations, memory = _lane_memory(cfg)
    fit = int(memory / (2 * state + activations))
    return max(1, min(fit, GPU_WIDTH, math.ceil(count / jax.local_device_count())))


def _lane_memory(cfg: Config) -> tuple[int, int, float]:
    """Bytes of one lane's state, of the rest of its step, and of the memory that a device may use."""
    memory = costs.step_cost(cfg).memory
    state = memory.params + memory.opt_state + memory.batch
    available = sharding.device_memory() * MEMORY_SHARE
    if jax.default_backend() == "cpu":
        # The CPU devices share the machine's memory, also with the other processes of a launcher.
        available /= max(jax.local_device_count(), machine.available_cores())
    return state, memory.total - state, available


def plan(members: Sequence[Member], most: int | None, parts: int = 1) -> list[list[Member]]:
    """The members in groups that one program can train, in order.

    Groups have similar sizes, at most `most` members each. There are at least `parts` groups if there are enough members.
    """
    by_program: dict[Config, list[Member]] = {}
    for member in members:
        by_program.setdefault(lanes.program_of(member.cfg), []).append(member)
    groups = []
    for group in by_program.values():
        count = math.ceil(len(group) / (most or len(group)))
        size = math.ceil(len(group) / count)
        groups += [group[i : i + size] for i in range(0, len(group), size)]
    while len(groups) < parts and (largest := max(groups, key=len, default=[]))[1:]:
        at, half = groups.index(largest), math.ceil(len(largest) / 2)
        groups[at : at + 1] = [largest[:half], largest[half:]]
    return groups


# --- running --------------------------------------------------------------------------------------------


def run(
    base: Config, overrides: Iterable[Overrides], folder: str | Path, options: Options | None = None
) -> list[Row]:
    """Train every unfinished member in this process. Raises UserError if the sweep itself is wrong.

    A signal saves everything and raises KeyboardInterrupt.
    """
    options = options or Options()
    sweep = Sweep(base, overrides, folder)
    sweep.open()
    check_halving(sweep, options.halving)
    with_halving(sweep, options.halving, lambda until: train_members(sweep, options, until))
    return sweep.rows()


def train_members(sweep: Sweep, options: Options, until: int | None = None) -> None:
    """Train this part's members to their end, or up to step `until`."""
    groups = plan(sweep.members, options.group_size, options.parts)
    for group in groups[options.part :: options.parts]:
        while todo := [m for m in group if sweep.outcome(m) is None and (until is None or m.step < until)]:
            # After a kill, members may be at different steps. Train those at the lowest step until they reach the next.
            steps = {member.workdir: member.step for member in todo}
            least = min(steps.values())
            together = [member for member in todo if steps[member.workdir] == least]
            stop = min([step for step in steps.values() if step > least], default=None)
            ends = [step for step in (stop, until) if step is not None]
            _train_group(sweep, together, options, min(ends, default=None))


def _train_group(sweep: Sweep, group: list[Member], options: Options, stop_at: int | None) -> None:
    """Train members that are at the same step, and record how each ends. Raises KeyboardInterrupt after a signal."""
    try:
        cfg = group[0].cfg
        dataset = prepare_dataset(cfg.data)
        width = options.width or 1
        if len(group) > jax.local_device_count():  # one member per device must fit anyway
            resolved = resolve(cfg, dataset.tokenizer)
            width = options.width or default_width(resolved, len(group))
            group = group[: options.group_size or most_lanes(resolved, width)]
        runs = [(member.cfg, member.workdir) for member in group]
        trainer = Trainer(runs, width=width, group=sweep.folder.resolve().name)
    except (UserError, OSError) as error:
        if len(group) == 1:
            sweep.end(group[0], "failed", first_line(error))
            say(f"member {group[0].name} failed: {first_line(error)}")
            return
        for member in group:  # one of them is at fault: find out which
            _train_group(sweep, [member], options, stop_at)
        return
    say(_introduction(group, width))
    try:
        results = trainer.run(stop_at)
    except StepMismatch:
        for member in group:  # one of them has a damaged checkpoint and restarts from an earlier step
            _train_group(sweep, [member], options, stop_at)
        return
    except (UserError, OSError) as error:  # of one member's folder, or of too many at once
        if len(group) == 1:
            cause = causes.describe(error) if isinstance(error, OSError) else first_line(error)
            sweep.end(group[0], "failed", cause)
            say(f"member {group[0].name} failed: {cause}")
            return
        for member in group:
            _train_group(sweep, [member], options, stop_at)
        return
    try:
        for member, result in zip(group, results, strict=True):
            if result.failed:
                sweep.end(member, "failed", result.failed)
            elif int(result.state.step) >= member.cfg.train.num_steps:
                sweep.end(member, "done")
                if member.cfg.train.report:
                    write_or_warn(member.workdir)
    finally:
        trainer.finish()
    if any(result.signal is not None for result in results):
        raise KeyboardInterrupt(results[0].signal)


def _introduction(group: Sequence[Member], width: int) -> str:
    """Which members are trained now, and how."""
    devices = min(len(group), jax.local_device_count())
    kind = "CPU core" if jax.default_backend() == "cpu" else "device"
    where = f"each of {devices} {kind}s" if devices > 1 else f"one {kind}"
    if len(group) == 1:
        return f"member {group[0].name}, on {where}"
    return f"members {group[0].name} to {group[-1].name}, {len(group)} in one program, {width} at once on {where}"
