"""What fits on a card: how many windows a device computes at once, and what to change where too many do not."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from jaxgpt.config import Config, UserError
from jaxgpt.model.sharding import BATCH
from jaxgpt.training.lanes import with_values
from jaxgpt.training.state_memory import state_bytes
from jaxgpt.training.target.cards import Card
from jaxgpt.training.target.compile import Compiled

# The share of a GPU's memory that JAX takes when it starts, by its default; and the most that it can take: the driver and
# the libraries need some too.
DEFAULT_SHARE, LARGEST_SHARE = 0.75, 0.95


def share_of_memory(card: Card) -> float:
    """The share of a card's memory that JAX may use there: XLA_PYTHON_CLIENT_MEM_FRACTION, where it is set."""
    if card.is_tpu:
        return 1.0
    try:
        return float(os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"])
    except (KeyError, ValueError):
        return DEFAULT_SHARE


def usable(card: Card) -> int:
    """Bytes of a card that JAX may use."""
    return int(card.memory * share_of_memory(card))


def windows(cfg: Config, sizes: dict[str, int]) -> int:
    """The windows that a device computes at once."""
    rows = cfg.data.batch_size // cfg.train.grad_accumulation_steps
    return rows // math.prod(sizes[axis] for axis in BATCH)


def choices(cfg: Config, sizes: dict[str, int]) -> dict[int, int]:
    """The possible numbers of windows at once, and the train.grad_accumulation_steps of each."""
    per_device = cfg.data.batch_size // math.prod(sizes[axis] for axis in BATCH)
    return {per_device // parts: parts for parts in range(1, per_device + 1) if per_device % parts == 0}


def with_windows(cfg: Config, sizes: dict[str, int], count: int) -> Config:
    """The config with another number of windows at once, and the same batch."""
    return with_values(cfg, {"train.grad_accumulation_steps": choices(cfg, sizes)[count]})


@dataclass(frozen=True)
class Line:
    """Memory as a function of the windows at once: fixed + slope x windows. Bytes."""

    fixed: float
    slope: float

    def at(self, count: int) -> float:
        return self.fixed + self.slope * count

    @classmethod
    def through(cls, cfg: Config, first: Compiled, second: tuple[int, Compiled] | None = None) -> Line:
        """The line through one or two compiled steps. With one, all but the state is taken to grow with the windows."""
        count = windows(cfg, first.sizes)
        if second is not None:
            slope = (first.memory - second[1].memory) / (count - second[0])
            return cls(first.memory - slope * count, slope)
        state = state_bytes(cfg, first.sizes)
        fixed = min(first.memory, first.arguments + state.gradients)
        return cls(fixed, (first.memory - fixed) / count)


def largest(line: Line, possible: dict[int, int], limit: int) -> int | None:
    """The most windows at once whose memory is below a limit, by the line; None: not even one fits."""
    return max((count for count in possible if line.at(count) <= limit), default=None)


def check(cfg: Config, compiled: Compiled) -> None:
    """Raises UserError for a step that needs more than the memory of the card: by how much, and what to change."""
    card = compiled.target.card
    limit = card.memory * (1.0 if card.is_tpu else LARGEST_SHARE)
    if compiled.memory <= limit:
        return
    GiB = 2**30
    sizes, count = compiled.sizes, windows(cfg, compiled.sizes)
    line = Line.through(cfg, compiled)
    fewer = largest(line, choices(cfg, sizes), usable(card))
    if fewer is not None and fewer < count:
        what = (
            f"set train.grad_accumulation_steps={choices(cfg, sizes)[fewer]} ({fewer} windows at once, about "
            f"{line.at(fewer) / GiB:,.1f} GiB)"
        )
    else:
        more = cfg.train.remat != "full", "train.remat=full", not cfg.train.loss_chunk, "train.loss_chunk"
        options = [name for wanted, name in zip(more[::2], more[1::2], strict=True) if wanted]
        cards = 2 * compiled.target.count
        options.append(f"more cards with --target={card.name}x{cards} and mesh.fsdp={cards}")
        what = "set " + ", ".join(options) + ", or take a smaller model"
    raise UserError(
        f"a step of {count} windows at once needs {compiled.memory / GiB:,.1f} GiB on each {card.name}, which has "
        f"{card.memory / GiB:,.1f} GiB and can use {limit / GiB:,.1f}: {(compiled.memory - limit) / GiB:,.1f} GiB too much; {what}"
    )
