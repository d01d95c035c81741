"""Every field says what it means, and everything that is known of fields is read from there."""

import dataclasses
import math
import types
import typing
from typing import Literal

import pytest

from jaxgpt.config import FIELDS, Config, ModelConfig, value_of
from jaxgpt.config.metadata import Field, Meaning, field, fields_of


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_has_a_doc_of_one_line_and_a_default_within_its_bounds(name):
    found = FIELDS[name]
    assert len(found.meaning.doc) > 8 and "\n" not in found.meaning.doc
    assert found.problem(found.default) is None
    assert found.default == value_of(Config(), name)
    defaults = found.default if found.type is tuple else (found.default,)
    assert not found.choices or set(defaults) <= set(found.choices)
    # A switch is off at 0, and only numbers are arguments.
    assert not found.meaning.switch or (found.meaning.at_least == 0 and found.meaning.lane == "argument")
    assert found.meaning.lane != "argument" or found.type in (int, float)


def test_every_field_of_the_dataclasses_is_listed_in_order():
    names = []
    for name, hint in typing.get_type_hints(Config).items():
        if dataclasses.is_dataclass(hint):
            names += [f"{name}.{f.name}" for f in dataclasses.fields(hint)]
        else:
            names.append(name)
    assert list(FIELDS) == names


def test_a_new_field_is_one_line():
    """It is converted, checked and described from what it says of itself."""

    @dataclasses.dataclass(frozen=True)
    class Group:
        depth: int | None = field(3, "how deep", at_least=1, lane="argument")
        kind: Literal["a", "b"] = field("a", "which one")

    Group.__annotations__ = {"depth": int | None, "kind": Literal["a", "b"]}
    depth, kind = fields_of(Group).values()
    assert (depth.name, depth.type, depth.optional, depth.default) == ("depth", int, True, 3)
    assert depth.problem(0) == "depth=0: give 1 or more" and depth.problem(None) is None
    assert (kind.type, kind.choices, kind.kind) == (str, ("a", "b"), "text")


@pytest.mark.parametrize(
    ("hint", "bounds", "text", "good", "bad"),
    [
        (int, {"at_least": 1}, "1 or more", (1, 9), (0, -1)),
        (float, {"at_least": 0}, "0 or more", (0.0, 3e38), (-0.1, math.nan)),
        (float, {"above": 0}, "a number above 0", (0.1,), (0.0, math.inf, math.nan)),
        (
            float,
            {"above": 0, "at_most": 1},
            "a number above 0 and at most 1",
            (0.1, 1.0),
            (0.0, 1.1, math.nan),
        ),
        (float, {"above": 0, "below": 1}, "a number between 0 and 1", (0.1,), (0.0, 1.0, math.nan)),
        (float, {"at_least": 0, "below": 1}, "a number from 0 to below 1", (0.0, 0.9), (-0.1, 1.0, math.nan)),
        (int, {"at_least": 0, "at_most": 2**31 - 1}, "0 to 2,147,483,647", (0, 2**31 - 1), (-1, 2**31)),
    ],
)
def test_bounds_hold_and_are_described(hint, bounds, text, good, bad):
    found = Field("x", hint, 0, Meaning("", **bounds))
    assert [found.problem(value) for value in good] == [None] * len(good)
    if hint is float:
        assert found.problem(math.inf).startswith("x=inf: give ")
    assert found.problem(10**400).startswith("x=1000000000... (401 digits): give ")
    assert [found.problem(value) for value in bad] == [f"x={value!r}: give {text}" for value in bad]


def test_types_and_meanings_are_those_of_the_annotations():
    assert isinstance(FIELDS["model.d_ff"].hint, types.UnionType) and FIELDS["model.d_ff"].type is int
    assert FIELDS["optim.trainable"].type is tuple
    free = {name for name, f in FIELDS.items() if f.meaning.resume == "free"}
    assert {"train.log_every", "train.eval_every", "train.report", "mesh.fsdp"} <= free
    assert not any(name.startswith(("model.", "data.", "optim.", "init")) for name in free)
    assert {name for name, f in FIELDS.items() if f.meaning.resume == "length"} == {"train.num_steps"}
    assert all(isinstance(f.metadata["meaning"], Meaning) for f in dataclasses.fields(ModelConfig))
