"""The steps that train.snapshots names."""

import pytest

from jaxgpt.config import UserError, snapshots


def test_the_steps_of_each_kind():
    assert snapshots.steps("", 100) == []
    assert snapshots.steps("log:24", 1500) == [
        0, 1, 2, 3, 4, 5, 7, 10, 14, 20, 28, 39, 54, 75, 105, 146, 204, 285, 397, 553, 772, 1076, 1500,
    ]  # fmt: skip
    powers = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
    assert snapshots.steps("pythia", 2500) == [*powers, 1000, 2000, 2500]
    assert snapshots.steps("pythia", 5) == [0, 1, 2, 4, 5]
    assert snapshots.steps("every:500", 1200) == [0, 500, 1000, 1200]
    assert snapshots.steps("every:500", 1000) == [0, 500, 1000]
    assert snapshots.steps("log:1", 7) == [0, 1, 7]
    assert snapshots.steps("every:9", 5) == [0, 5]


def test_a_step_within_a_dispatch_is_rounded_up_to_its_end():
    assert snapshots.steps("pythia", 12, steps_per_dispatch=3) == [0, 3, 6, 9, 12]
    assert snapshots.steps("every:5", 12, steps_per_dispatch=4) == [0, 8, 12]


@pytest.mark.parametrize(
    "text",
    [
        "log",
        "log:",
        "log:0",
        "log:-3",
        "log:2.5",
        "every:0",
        "every:1e3",
        "pythia:3",
        "Log:3",
        "every: 5",
        "often",
        "log:٣",
    ],
)
def test_other_values_are_refused_with_what_is_possible(text):
    with pytest.raises(UserError, match="give log:NUMBER"):
        snapshots.steps(text, 100)


def test_more_than_can_be_meant_are_refused_before_they_are_listed():
    for text, steps in (("every:1", 2**31 - 1), ("log:999999999", 2**31 - 1)):
        with pytest.raises(UserError, match="at most 100,000"):
            snapshots.steps(text, steps)
    assert snapshots.steps("log:999999999", 9) == list(range(10))
