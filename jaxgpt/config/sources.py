"""Several texts in one field: named texts, and the weights of a mixture.

    data.valid_paths    kjv=texts/kjv.txt, code="a, b.txt"
    data.mixture        web=shards/web_*.bin:0.7, code=my/code:0.3
                        web=shards/web_*.bin:0.9@0 0.5@1000, code=my/code:0.1@0 0.5@1000

Entries are separated by commas: NAME=TEXT, in a mixture NAME=TEXT:WEIGHT. A name has letters, digits, `_`, `-` and `.`.
TEXT is what data.path may be, or `corpus:NAME` for a corpus by name. In double quotes it may have any characters (`""` is a
quote). Without quotes it has no comma, and the last colon of a mixture's entry is that before the weight. WEIGHT is a number,
or WEIGHT@STEP several times with increasing steps: linear in between, constant before the first and after the last. The share
of a source is its weight as a part of the sum of all weights.
"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass

from jaxgpt.config.errors import UserError

CORPUS = "corpus:"
MOST_STEPS = 2**31 - 1

Schedule = tuple[tuple[int, float], ...]  # (step, weight), with increasing steps


@dataclass(frozen=True)
class NamedText:
    """A text and its name. `schedule` is empty outside of a mixture."""

    name: str
    place: str  # what data.path may be, or corpus:NAME
    schedule: Schedule = ()

    @property
    def path(self) -> str:
        """Its path; empty for a corpus."""
        return "" if self.corpus else self.place

    @property
    def corpus(self) -> str:
        """The name of its corpus; empty for a path."""
        return self.place.removeprefix(CORPUS) if self.place.startswith(CORPUS) else ""


def named_texts(text: str, given: str = "data.valid_paths") -> tuple[NamedText, ...]:
    """The texts of `NAME=TEXT, ...`. Raises UserError."""
    return _distinct([NamedText(name, _unquoted(rest, given)) for name, rest in _entries(text, given)], given)


def mixture(text: str, given: str = "data.mixture") -> tuple[NamedText, ...]:
    """The sources of `NAME=TEXT:WEIGHT, ...`. Raises UserError."""
    found = []
    for name, rest in _entries(text, given):
        place, colon, weights = rest.rpartition(":")
        if not colon or weights.count('"') % 2:  # the colon is a part of a quoted text
            raise UserError(
                f"{given}: {name}={rest} has no weight: give NAME=TEXT:WEIGHT, such as {name}={rest}:0.5"
            )
        found.append(NamedText(name, _unquoted(place.strip(), given), _schedule(weights, name, given)))
    for step in sorted({step for source in found for step, _ in source.schedule}):
        if not sum(weight_at(source.schedule, step) for source in found) > 0:
            raise UserError(f"{given}: all weights are 0 at step {step:,}: give one of them a weight above 0")
    return _distinct(found, given)


def identity(text: str) -> tuple:
    """What of a mixture may not change when a run is resumed: names and weights, not the places of the texts."""
    return tuple((source.name, source.schedule) for source in mixture(text)) if text else ()


def weight_at(schedule: Schedule, step: int) -> float:
    """The weight at a step."""
    if step <= schedule[0][0]:
        return schedule[0][1]
    for (start, before), (end, after) in itertools.pairwise(schedule):
        if step < end:
            return before + (after - before) * ((step - start) / (end - start))
    return schedule[-1][1]


def _entries(text: str, given: str) -> list[tuple[str, str]]:
    """(NAME, the rest) of each entry."""
    if text.count('"') % 2:
        raise UserError(f'{given}={text!r} has a quote without its end: write NAME="TEXT"')
    found = []
    for entry in re.findall(r'(?:[^,"]|"[^"]*")+', text):
        name, equals, rest = (part.strip() for part in entry.partition("="))
        if not entry.strip():
            continue
        if not equals or not re.fullmatch(r"[\w.-]+", name, re.ASCII) or not rest:
            raise UserError(
                f"{given}: {entry.strip()!r} is not NAME=TEXT: give a name of letters and digits and a text, and put a text "
                "with commas in double quotes"
            )
        found.append((name, rest))
    if not found:
        raise UserError(f"{given}={text!r} names no text: give NAME=TEXT, ... or leave it empty")
    return found


def _unquoted(place: str, given: str) -> str:
    if '"' not in place:
        found = place
    elif len(place) > 1 and place[0] == place[-1] == '"':
        found = place[1:-1].replace('""', '"')
    else:
        raise UserError(f"{given}: {place!r} has a quote within: put the complete text in double quotes")
    if not found.removeprefix(CORPUS).strip():
        raise UserError(f"{given}: {place!r} is no text: give a path, or {CORPUS}NAME")
    return found


def _schedule(text: str, name: str, given: str) -> Schedule:
    example = "give a number such as 0.5, or weights at steps such as 0.9@0 0.5@1000"
    words = text.split()
    if len(words) == 1 and "@" not in words[0]:
        words = [f"{words[0]}@0"]
    points: list[tuple[int, float]] = []
    for word in words:
        of_weight, _, of_step = word.partition("@")
        try:
            points.append((int(of_step), float(of_weight)))
        except ValueError:
            raise UserError(f"{given}: {text.strip()!r} is not a weight of {name}: {example}") from None
    if not points:
        raise UserError(f"{given}: {name} has no weight: {example}")
    for step, weight in points:
        if not 0 <= weight <= 1e9 or not 0 <= step <= MOST_STEPS:
            raise UserError(f"{given}: {weight:g}@{step} of {name}: give a weight and a step of 0 or more")
    if any(a >= b for (a, _), (b, _) in itertools.pairwise(points)):
        raise UserError(f"{given}: the steps of {name} ({text.strip()}) do not increase: give them in order")
    if not math.fsum(weight for _, weight in points) > 0:
        raise UserError(f"{given}: the weight of {name} is 0 at every step: leave it out")
    return tuple(points)


def _distinct(found: list[NamedText], given: str) -> tuple[NamedText, ...]:
    names = [text.name for text in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{given} has two texts with the name {twice[0]!r}: give each a name of its own")
    return tuple(found)
