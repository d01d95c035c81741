"""The rule for verdicts: known cases, each kind of verdict, planted nulls and effects, and intervals against SciPy."""

import math
import statistics

import numpy as np
import pytest

from experiments import intervals
from experiments.rule import (
    DEPENDS,
    FAILS,
    HOLDS,
    KINDS,
    SHOWN,
    UNDER,
    UNTOLD,
    Check,
    Effect,
    Result,
)
from jaxgpt.vectors.word_tests import Estimate

stats = pytest.importorskip("scipy.stats")  # comes with jax

# --- intervals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("df", [1, 2, 3, 4, 5, 9, 10, 39, 120])
def test_students_t_is_scipys(df):
    assert intervals.t_quantile(df) == pytest.approx(stats.t.ppf(0.975, df), rel=1e-9)
    for t in (0.1, 1.0, 5.0, 30.0):
        assert intervals.student_t(t, df) == pytest.approx(1 - 2 * stats.t.sf(t, df), abs=1e-12)


def test_an_interval_of_ten_seeds_covers_the_truth_19_times_in_20():
    draws = np.random.default_rng(0).normal(3.0, 2.0, (4000, 10))
    covered = statistics.fmean(found.low <= 3.0 <= found.high for found in map(intervals.mean, draws))
    assert covered == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / 4000))


def test_differences_are_paired_and_ratios_geometric():
    base = [1.0, 5.0, 9.0]
    found = intervals.difference([b + x for b, x in zip(base, (0.9, 1.0, 1.1), strict=True)], base)
    assert (found.value, found.count) == (pytest.approx(1.0), 3)
    assert found.high - found.value == pytest.approx(4.3027 * 0.1 / math.sqrt(3), abs=1e-5)
    found = intervals.ratio([2.0, 8.0], [1.0, 1.0])
    assert found.value == pytest.approx(4.0)
    assert found.low * found.high == pytest.approx(16.0)


def test_the_fastest_of_each_group_counts():
    assert intervals.fastest([3.0, 1.0, 2.0, 5.0, 4.0], 2) == [1.0, 2.0]


def test_one_value_and_nan_have_no_interval():
    assert math.isnan(intervals.mean([1.0]).low)
    assert math.isnan(intervals.mean([1.0, math.nan]).value)
    assert math.isnan(intervals.p_value(intervals.mean([1.0]), 0.0))


def test_p_and_q_are_scipys():
    rng = np.random.default_rng(0)
    draws = rng.normal(0.02, 0.02, (60, 7))
    p = [intervals.p_value(intervals.mean(row), 0.01) for row in draws]
    np.testing.assert_allclose(p, stats.ttest_1samp(draws, 0.01, axis=1).pvalue, rtol=1e-6, atol=1e-12)
    ratios = intervals.ratio(np.exp(draws[0]), np.ones(7))
    assert intervals.p_value(ratios, 1.01, logarithms=True) == pytest.approx(
        stats.ttest_1samp(draws[0], math.log(1.01)).pvalue, rel=1e-6
    )
    np.testing.assert_allclose(intervals.q_values(p), stats.false_discovery_control(p), rtol=1e-12)
    with_nan = intervals.q_values([*p[:5], math.nan, *p[5:]])
    assert math.isnan(with_nan.pop(5)) and with_nan == intervals.q_values(p)


def test_numbers_are_shown_with_the_decimals_that_their_interval_justifies():
    assert intervals.show(Estimate(0.12345, 0.1, 0.15, 5), "nats") == "0.123 [0.100, 0.150] nats"
    assert intervals.show(Estimate(168.4, 98.2, 290.1, 5)) == "168 [98, 290]"
    assert intervals.show(Estimate(0.5, math.nan, math.nan, 1)) == "0.50"


# --- verdicts -------------------------------------------------------------------------------------------

OPPOSITE, SMALL, EITHER = "the opposite", "too small to matter", "too small to matter, or the opposite"


@pytest.mark.parametrize(
    ("low", "value", "high", "verdict", "reason"),
    [
        (0.11, 0.2, 0.3, HOLDS, ""),
        (0.09, 0.2, 0.3, UNTOLD, ""),  # above 0, but a size that does not matter is possible
        (0.01, 0.05, 0.09, FAILS, SMALL),  # surely there, and surely too small
        (-0.09, 0.0, 0.09, FAILS, SMALL),
        (-0.3, -0.2, -0.11, FAILS, OPPOSITE),
        (-0.3, -0.1, 0.05, FAILS, EITHER),
        (-0.9, 0.0, 0.9, UNTOLD, ""),
        (math.nan, 0.2, math.nan, UNTOLD, ""),
        (0.2, math.nan, 0.3, UNTOLD, ""),
    ],
)
def test_the_rule_of_verdicts(low, value, high, verdict, reason):
    for above in (0.0, 1.0):
        found = Effect("", Estimate(above + value, above + low, above + high, 5), above=above, margin=0.1)
        assert (found.verdict, found.reason) == (verdict, reason)


@pytest.mark.parametrize("margin", [0.0, -0.1, math.nan, math.inf])
def test_an_effect_needs_a_margin(margin):
    with pytest.raises(ValueError, match="give the smallest size that matters"):
        Effect("loss", Estimate(0.2, 0.1, 0.3, 5), margin=margin)


def test_p_is_below_5_percent_exactly_where_there_is_a_verdict():
    rng = np.random.default_rng(1)
    for draws in rng.normal(0.02, 0.03, (200, 6)):
        effects = [
            Effect("", intervals.mean(draws), margin=0.02),
            Effect("", intervals.ratio(np.exp(draws), np.ones(6)), above=1.0, margin=0.02),
        ]
        for effect in effects:
            assert (effect.p < 0.05) == (effect.verdict != UNTOLD)


# Measurements whose verdict is known: of ten seeds that differ by 0.01, as those of small character models do.
SIZES = {HOLDS: 0.06, FAILS: 0.0, UNTOLD: 0.02}


def planted(verdict: str, under: str = "") -> Effect:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.01, 10)
    found = Effect("", intervals.mean(SIZES[verdict] + noise - noise.mean()), under=under, margin=0.02)
    assert found.verdict == verdict
    return found


@pytest.mark.parametrize(
    ("always", "by_condition", "kind"),
    [
        ((HOLDS,), (), HOLDS),
        ((HOLDS, UNTOLD), (), UNTOLD),
        ((HOLDS, UNTOLD, FAILS), (), FAILS),
        ((), (HOLDS, HOLDS), HOLDS),
        ((), (FAILS, FAILS), FAILS),
        ((), (HOLDS, FAILS), DEPENDS),
        ((), (HOLDS, FAILS, UNTOLD), DEPENDS),
        ((), (HOLDS, UNTOLD), UNDER),
        ((), (FAILS, UNTOLD), UNTOLD),
        ((), (UNTOLD, UNTOLD), UNTOLD),
        ((HOLDS,), (HOLDS, FAILS), DEPENDS),
        ((FAILS,), (HOLDS, HOLDS), FAILS),
        ((UNTOLD,), (HOLDS, FAILS), UNTOLD),
    ],
)
def test_each_verdict_of_a_claim_arises_from_its_parts(always, by_condition, kind):
    parts = [planted(verdict) for verdict in always]
    parts += [planted(verdict, f"on text {i}") for i, verdict in enumerate(by_condition)]
    found = Result(tuple(parts), "", varies="the text")
    assert found.kind == kind in KINDS
    assert found.verdict.startswith(kind)
    assert Result(tuple(parts), "", untold="the control failed").kind == UNTOLD


def test_the_verdict_names_the_conditions():
    parts = (planted(HOLDS, "on a"), planted(FAILS, "on a"), planted(HOLDS, "on b"), planted(UNTOLD, "on c"))
    assert Result(parts, "", varies="the text").verdict == (
        "depends on the text: holds (on b), does not hold (on a), cannot be told (on c)"
    )
    assert Result(parts[2:], "").verdict == "holds, but only on b, cannot be told (on c)"
    refuted = (*parts[:2], parts[3])
    assert (
        Result(refuted, "").verdict
        == "cannot be told at this size: does not hold (on a), cannot be told (on c)"
    )
    assert Result(refuted, "", untold="the control failed").verdict == UNTOLD


def test_what_cannot_fail_is_a_demonstration():
    good, bad = Check("", 0.0, 0.0), Check("", 1.0, 0.5)
    assert Result((good, good), "").kind == SHOWN
    assert Result((good, planted(HOLDS)), "").kind == HOLDS
    assert Result((good, bad), "").kind == FAILS
    assert Result((Check("", math.nan, 1.0),), "").kind == UNTOLD
    assert Result((), "").kind == UNTOLD


@pytest.mark.parametrize("spread", [0.005, 0.01, 0.015])
def test_a_planted_null_is_called_null_and_twice_the_margin_is_found(spread):
    """Ten seeds, a margin of 0.02 nats, and differences that vary from seed to seed as those of our models do."""
    rng, margin = np.random.default_rng(0), 0.02

    def shares(size: float) -> dict[str, float]:
        draws = rng.normal(size, spread, (1000, 10))
        found = [Effect("", intervals.mean(row), margin=margin).verdict for row in draws]
        return {verdict: found.count(verdict) / len(found) for verdict in (HOLDS, FAILS, UNTOLD)}

    null, twice, at_the_margin = shares(0.0), shares(2 * margin), shares(margin)
    assert null[FAILS] >= 0.95 and null[HOLDS] == 0
    assert twice[HOLDS] >= 0.80 and twice[FAILS] == 0
    # At the margin itself neither is right, and each is said in 2.5 of 100 cases.
    assert at_the_margin[HOLDS] < 0.045 and at_the_margin[FAILS] < 0.045


def test_with_too_much_noise_nothing_is_told():
    draws = np.random.default_rng(0).normal(0.0, 0.1, (500, 10))
    found = [Effect("", intervals.mean(row), margin=0.02).verdict for row in draws]
    assert found.count(UNTOLD) > 400 and found.count(HOLDS) < 25
