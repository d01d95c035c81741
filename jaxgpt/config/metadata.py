"""The metadata of a field: its default, bounds, meaning, and when it may change.

All other code reads it from here: the checks, the command line, `--help_config`, which fields
may change when a run is resumed, and which a sweep may vary within one program.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

LARGEST_FREE = 2**63 - 1
INT32_MAX = 2**31 - 1  # steps, seeds and token ids are 32-bit
LARGEST = {int: INT32_MAX, float: 3e38}  # of every number in a config: 32 bits


@dataclass(frozen=True)
class Meaning:
    """The metadata of a field."""

    doc: str
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    # When a run is resumed. "same": the field is part of what the run is; another value is another run. "free": it only
    # observes, keeps or places, and may change. "length": the number of steps, which may change (see runs/records.py).
    # "source": where something is read, which may move; run.json has the hash of its content.
    resume: Literal["same", "free", "length", "source"] = "same"
    # What of the value of a "source" may not change.
    identity: Callable[[Any], Any] | None = None
    # When several runs are lanes of one program. "argument": the compiled step takes it as a number. "outside": the step
    # does not use it. "fixed": runs that differ in it need programs of their own.
    lane: Literal["fixed", "argument", "outside"] = "fixed"
    switch: bool = False  # 0 turns a part of the step off, so lanes agree on whether it is 0
    # The value in configs that were stored before the field existed, where it is not the default.
    before: Any = None
    # Whether init_from needs the same value in the model that it takes parameters from.
    same_in_source: bool = True


def field(default: Any, doc: str, **facts: Any) -> Any:
    """A dataclass field with a `Meaning`: `field(0.1, "decay of matrices", at_least=0, lane="argument")`."""
    return dataclasses.field(default=default, metadata={"meaning": Meaning(doc, **facts)})


@dataclass(frozen=True)
class Field:
    """A field of the config: its dotted name, its type and its meaning."""

    name: str  # "model.d_model"
    hint: Any
    default: Any
    meaning: Meaning

    def same_run(self, old: Any, new: Any) -> bool:
        """Whether a run with one value may be resumed with the other."""
        if self.meaning.resume == "same":
            return old == new
        same = self.meaning.identity
        return same is None or same(old) == same(new)

    @property
    def optional(self) -> bool:
        """Whether None is a value."""
        return isinstance(self.hint, types.UnionType)

    @property
    def type(self) -> type:
        """`int` of `int | None`, `str` of choices, `tuple` of strings."""
        if self.optional:
            return next(t for t in typing.get_args(self.hint) if t is not types.NoneType)
        return {Literal: str, tuple: tuple}.get(typing.get_origin(self.hint), self.hint)

    @property
    def choices(self) -> tuple[str, ...]:
        """The possible values of a field, or of the texts in a tuple, where they are a fixed list; else empty."""
        hint = typing.get_args(self.hint)[0] if self.type is tuple else self.hint
        return typing.get_args(hint) if typing.get_origin(hint) is Literal else ()

    @property
    def kind(self) -> str:
        """The kind of its values: `a whole number or None`."""
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", tuple: "texts"}
        return words[self.type] + (" or None" if self.optional else "")

    @property
    def bounds(self) -> str:
        """`1 or more`, `a number from 0 to below 1`; empty where every value of the type is possible."""
        at_least, above = self.meaning.at_least, self.meaning.above
        at_most, below = self.meaning.at_most, self.meaning.below
        if above is not None and below is not None:
            return f"a number between {above:g} and {below:g}"
        if above is not None:
            return f"a number above {above:g}" + ("" if at_most is None else f" and at most {at_most:g}")
        if at_most is not None:
            return f"{at_least:,} to {at_most:,}" if at_least is not None else f"at most {at_most:,}"
        if below is not None:
            return f"a number from {at_least:g} to below {below:g}"
        return "" if at_least is None else f"{at_least:g} or more"

    def problem(self, value: Any) -> str | None:
        """The problem of a value of the right type, or None. NaN is never within bounds."""
        meaning = self.meaning
        if value is None:
            return None
        good = (
            (meaning.at_least is None or value >= meaning.at_least)
            and (meaning.above is None or meaning.above < value < float("inf"))
            and (meaning.at_most is None or value <= meaning.at_most)
            and (meaning.below is None or value < meaning.below)
        )
        text = str(value)
        given = (
            f"{self.name}={value!r}" if len(text) < 40 else f"{self.name}={text[:10]}... ({len(text)} digits)"
        )
        # What only observes has no effect on the program: 10**12 stands for never, or for all.
        most = LARGEST_FREE if self.type is int and meaning.resume == "free" else LARGEST.get(self.type)
        if good and most is not None and not -most <= value <= most:
            return f"{given}: give a number of at most {most:,}"
        return None if good else f"{given}: give {self.bounds}"


def fields_of(config_class: type) -> dict[str, Field]:
    """Every field of a dataclass and of the dataclasses in it, by dotted name and in order."""
    found: dict[str, Field] = {}
    hints = typing.get_type_hints(config_class)
    for f in dataclasses.fields(config_class):
        hint = hints[f.name]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            found |= {
                f"{f.name}.{name}": dataclasses.replace(inner, name=f"{f.name}.{name}")
                for name, inner in fields_of(hint).items()
            }
        else:
            found[f.name] = Field(f.name, hint, f.default, f.metadata["meaning"])
    return found
