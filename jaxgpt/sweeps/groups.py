"""Train many models: those that differ only in numbers as lanes of one compiled step, the others one group after another.

    python -m jaxgpt.sweep --config configs/sweeps/char_lr.py [--config.train.num_steps=500 ...] --workdir runs/char_lr

Every member gets a run folder of its own. The same command goes on where a sweep stopped: what is done is left alone, what
is half done goes on from its checkpoint, and a member that fails does not keep the others from their end.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax

from jaxgpt.config import Config, UserError, first_line
from jaxgpt.data.dataset import Dataset, prepare_dataset
from jaxgpt.inspect.write import write_or_warn
from jaxgpt.model import sharding
from jaxgpt.sweeps.members import Member, Row, Sweep
from jaxgpt.sweeps.search_space import Overrides
from jaxgpt.training import costs, lanes
from jaxgpt.training.loop import Trainer, Uneven
from jaxgpt.training.programs import Lanes
from jaxgpt.training.starting import resolve

MEMORY_SHARE = 0.7  # of a device's memory that a group may be predicted to take
WORTH = 0.9  # a width is taken where a step takes less than this of the time at half of it
TIMED = 0.5  # seconds by which two widths are compared: little beside compiling them
FEW = 4  # lanes a device, at least, by which a width is judged: each step has a cost of its own
GAIN = 0.3  # the share of a group's time that a better width may save: measuring must cost less


@dataclass(frozen=True)
class Options:
    """How a sweep is run; none of it changes a result."""

    width: int | None = None  # lanes at once on a device; None: as many as pay
    group_size: int | None = None  # lanes in one program; None: as many as fit
    halving: tuple[int, ...] = ()  # at each of these steps the better half goes on
    part: int = 0  # of `parts` processes: this one takes every parts-th group
    parts: int = 1


def use_all_cores(cores: int | None = None) -> None:
    """Make each CPU core a device of its own, which takes its part of the lanes; GPUs stay as they are.

    A small model's operations leave all but one core idle; lanes of their own do not wait for each other. Where JAX has
    been used already, its devices are what they are.
    """
    cores = cores or len(os.sched_getaffinity(0))
    # Twice as many threads as devices, or those of one device wait for each other's.
    os.environ.setdefault("PJRT_NPROC", str(2 * cores))
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", cores)


# --- groups ---------------------------------------------------------------------------------------------


def most_lanes(cfg: Config, width: int = 1) -> int:
    """How many members fit into the devices' memory together, as predicted; at least one a device.

    Each lane keeps its state twice (the step's argument and result); what a step computes is there for `width` lanes.
    """
    memory = costs.step_cost(cfg).memory
    devices = jax.local_device_count()
    room = sharding.device_memory() * MEMORY_SHARE
    if jax.default_backend() == "cpu":
        # Devices share the machine's, and so do processes that a launcher gave some of its cores each.
        room /= max(devices, len(os.sched_getaffinity(0)))
    state = memory.params + memory.opt_state + memory.batch
    return devices * max(1, int((room - width * (memory.total - state)) / (2 * state)))


def plan(todo: Sequence[Member], most: int | None, parts: int = 1) -> list[list[Member]]:
    """The members in groups that one program can train, in order: equal ones of at most `most`, `parts` groups at least."""
    groups: dict[Config, list[Member]] = {}
    for member in todo:
        groups.setdefault(lanes.program_of(member.cfg), []).append(member)
    planned = []
    for group in groups.values():
        count = math.ceil(len(group) / (most or len(group)))
        size = math.ceil(len(group) / count)
        planned += [group[i : i + size] for i in range(0, len(group), size)]
    # Every part gets a group, as long as there are members for it.
    while len(planned) < parts and (largest := max(planned, key=len, default=[]))[1:]:
        at, half = planned.index(largest), math.ceil(len(largest) / 2)
        planned[at : at + 1] = [largest[:half], largest[half:]]
    return planned


def best_width(group: Sequence[Member], dataset: Dataset) -> int:
    """How many lanes a device should work on at once, measured: doubled while a step gets faster by a tenth.

    1 where the group's steps are too few for measuring to pay.
    """
    cfgs = [resolve(member.cfg, dataset.tokenizer) for member in group]
    steps, devices = max(cfg.train.num_steps for cfg in cfgs), jax.local_device_count()

    def may_be_wider(width: int) -> bool:
        # To be compared, both programs are there at once.
        both = 2 * min(len(group), _judged_by(2 * width))
        return width * devices < len(group) and both <= most_lanes(cfgs[0], 2 * width)

    if not may_be_wider(1):
        return 1
    began = time.perf_counter()
    best, timer = 1, step_timer(cfgs, dataset, 1)
    seconds, cost = timer(), time.perf_counter() - began
    while may_be_wider(best) and GAIN * len(cfgs) * steps * seconds > 2 * cost:
        began = time.perf_counter()
        wider = step_timer(cfgs, dataset, 2 * best)
        if _relative_time(wider, timer) > WORTH:
            break
        best, timer = 2 * best, wider
        seconds, cost = timer(), time.perf_counter() - began
    return best


def _relative_time(one: Callable[[], float], other: Callable[[], float]) -> float:
    """The time of one over that of another, in turns: a busy machine slows both. The median of three turns or more."""
    for timed in (one, other):
        timed()  # the first step also fetches pages
    ratios: list[float] = []
    began = time.perf_counter()
    while len(ratios) < 3 or time.perf_counter() - began < TIMED:
        ratios.append(one() / other())
    return statistics.median(ratios)


def _judged_by(width: int) -> int:
    """How many lanes a width is measured with."""
    return max(2 * width, FEW) * jax.local_device_count()


def step_timer(cfgs: Sequence[Config], dataset: Dataset, width: int) -> Callable[[], float]:
    """A function that makes one step of a few lanes, and says how many seconds of it were one lane's."""
    few = [lanes.with_values(cfg, {"train.steps_per_dispatch": 1}) for cfg in cfgs]
    few = few[: _judged_by(width)]
    program = Lanes(few, dataset, width)
    first = [jax.tree.map(lambda x: jax.numpy.zeros(x.shape, x.dtype), program.shapes.params)] * len(few)
    step, state = program.compile().result(), program.fresh(first)

    def timed() -> float:
        nonlocal state
        arguments = program.feed(0, program.batches(0))
        began = time.perf_counter()
        state, metrics = step(state, *arguments)
        jax.block_until_ready(metrics)
        return (time.perf_counter() - began) / len(few)

    return timed


# --- running --------------------------------------------------------------------------------------------


def run(
    base: Config, overrides: Iterable[Overrides], folder: str | Path, options: Options | None = None
) -> list[Row]:
    """Train every member that is not done, in this process. Raises UserError where the sweep itself is wrong.

    Stopped by a signal it raises KeyboardInterrupt, with everything saved.
    """
    options = options or Options()
    found = Sweep(base, overrides, folder)
    found.open()
    check_halving(found, options.halving)
    with_halving(found, options.halving, lambda until: train_members(found, options, until))
    return found.rows()


def train_members(sweep: Sweep, options: Options, until: int | None = None) -> None:
    """Train this part's members to their end, or to a step."""
    planned = plan(sweep.members, options.group_size, options.parts)
    for group in planned[options.part :: options.parts]:
        while todo := [m for m in group if sweep.outcome(m) is None and (until is None or m.step < until)]:
            # A kill may have left some a checkpoint further than others: those that stand together go on together.
            steps = {member.workdir: member.step for member in todo}
            least = min(steps.values())
            together = [member for member in todo if steps[member.workdir] == least]
            stop = min([step for step in steps.values() if step > least], default=None)
            ends = [step for step in (stop, until) if step is not None]
            _train_group(sweep, together, options, min(ends, default=None))


def _train_group(sweep: Sweep, group: list[Member], options: Options, stop_at: int | None) -> None:
    """Train members that stand at one step; say of each that ends how. Raises KeyboardInterrupt after a signal."""
    try:
        cfg = group[0].cfg
        dataset = prepare_dataset(cfg.data)
        if len(group) > jax.local_device_count():  # so many fit, or none does
            most = options.group_size or most_lanes(resolve(cfg, dataset.tokenizer), options.width or 1)
            group = group[:most]
        width = options.width or best_width(group, dataset)
        trainer = Trainer([(member.cfg, member.workdir) for member in group], width=width)
    except UserError as error:
        if len(group) == 1:
            sweep.end(group[0], "failed", first_line(error))
            print(f"member {group[0].name} failed: {first_line(error)}", flush=True)
            return
        for member in group:  # one of them is at fault: which?
            _train_group(sweep, [member], options, stop_at)
        return
    print(_which(group, width), flush=True)
    try:
        results = trainer.run(stop_at)
    except Uneven:
        for member in group:  # a damaged checkpoint took one of them further back: each from where it stands
            _train_group(sweep, [member], options, stop_at)
        return
    for member, result in zip(group, results, strict=True):
        if result.failed:
            sweep.end(member, "failed", result.failed)
        elif int(result.state.step) >= member.cfg.train.num_steps:
            sweep.end(member, "done")
            if member.cfg.train.report:
                write_or_warn(member.workdir)
    if any(result.signal is not None for result in results):
        raise KeyboardInterrupt(results[0].signal)


def _which(group: Sequence[Member], width: int) -> str:
    """Who is trained now, and how many at a time."""
    devices = min(len(group), jax.local_device_count())
    kind = "CPU core" if jax.default_backend() == "cpu" else "device"
    where = f"each of {devices} {kind}s" if devices > 1 else f"one {kind}"
    if len(group) == 1:
        return f"member {group[0].name}, on {where}"
    return f"members {group[0].name} to {group[-1].name}, {len(group)} in one program, {width} at once on {where}"


# --- successive halving ---------------------------------------------------------------------------------


def check_halving(sweep: Sweep, rungs: Sequence[int]) -> None:
    """Raises UserError for steps at which nothing can be compared."""
    for before, step in itertools.pairwise([0, *rungs]):
        if step <= before:
            raise UserError(f"--halving {','.join(map(str, rungs))}: give steps above 0 that rise")
    for member in sweep.members:
        train = member.cfg.train
        for step in rungs:
            if step >= train.num_steps or not train.eval_every or step % train.eval_every:
                raise UserError(
                    f"--halving {step}: member {member.name} is evaluated every train.eval_every={train.eval_every} of "
                    f"train.num_steps={train.num_steps} steps: give multiples below its end"
                )


def with_halving(
    sweep: Sweep, rungs: Sequence[int], train: Callable[[int | None], None], until: int | None = None
) -> None:
    """Train to each of these steps and halve there, then to a last step, or to the end."""
    for rung in rungs:
        train(rung)
        halve(sweep, rung)
    train(until)


def halve(sweep: Sweep, rung: int) -> None:
    """Of the members that have come to a step, the better half goes on (Jamieson and Talwalkar 2016)."""
    losses = {}
    for member in sweep.members:
        loss = member.losses().get(rung)
        if loss is not None and (outcome := sweep.outcome(member) or {}).get("status") != "failed":
            if "stopped" in outcome.get("status", "") and f"step {rung}:" not in outcome["reason"]:
                continue  # at an earlier one
            losses[member.name] = (loss, member)
    ranked = sorted(losses.values(), key=lambda found: (found[0], found[1].name))
    for place, (loss, member) in enumerate(ranked, 1):
        if place > math.ceil(len(ranked) / 2) and sweep.outcome(member) is None:
            reason = f"step {rung}: validation loss {loss:.4f}, place {place} of {len(ranked)}"
            sweep.end(member, "stopped", reason)
