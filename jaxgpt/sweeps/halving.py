"""Successive halving: at given steps only the better half of a sweep's members continues."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from jaxgpt.config import UserError
from jaxgpt.sweeps.members import Sweep


def check_halving(sweep: Sweep, rungs: Sequence[int]) -> None:
    """Raises UserError unless every member is evaluated at each of these steps."""
    for before, step in itertools.pairwise([0, *rungs]):
        if step <= before:
            raise UserError(f"--halving {','.join(map(str, rungs))}: give increasing steps above 0")
    for member in sweep.members:
        train = member.cfg.train
        for step in rungs:
            if step >= train.num_steps or not train.eval_every or step % train.eval_every:
                raise UserError(
                    f"--halving {step}: member {member.name} is evaluated every train.eval_every={train.eval_every} of "
                    f"train.num_steps={train.num_steps} steps: give multiples of eval_every below num_steps"
                )


def with_halving(
    sweep: Sweep, rungs: Sequence[int], train: Callable[[int | None], None], until: int | None = None
) -> None:
    """Call `train(step)` and halve at each of these steps, then call `train(until)`."""
    for rung in rungs:
        train(rung)
        halve(sweep, rung)
    train(until)


def halve(sweep: Sweep, rung: int) -> None:
    """Stop the worse half of the members that reached step `rung`: successive halving (Jamieson and Talwalkar 2016)."""
    ranked = []
    for member in sweep.members:
        loss, outcome = member.losses().get(rung), sweep.outcome(member)
        status, reason = (outcome["status"], outcome["reason"]) if outcome else ("", "")
        stopped_earlier = status == "stopped" and not reason.startswith(f"step {rung}:")
        if loss is not None and status != "failed" and not stopped_earlier:
            ranked.append((loss, member.name, member))
    ranked.sort()
    for place, (loss, _, member) in enumerate(ranked, 1):
        if place > math.ceil(len(ranked) / 2) and sweep.outcome(member) is None:
            reason = f"step {rung}: validation loss {loss:.4f}, place {place} of {len(ranked)}"
            sweep.end(member, "stopped", reason)
