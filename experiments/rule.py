"""The rule that turns numbers into verdicts.

An Effect is a number that the claim says is above 0 (for a ratio: above 1, and 1 is subtracted from everything below), with
its 95 % interval [low, high] and a margin, the smallest size that matters, which is written down before measuring:

    holds                        low > margin: the complete interval is beyond the margin
    does not hold                high < margin: the opposite (high < -margin), too small to matter (low > -margin), or one of
                                 the two
    cannot be told at this size  the interval contains the margin, or there is no interval

A Check has no noise: it holds if the number is at most its limit. A part may have a condition ("on 4,000 characters"). The
verdict of a claim, from the verdicts of its parts:

    cannot be told               a control failed; or a part without a condition cannot be told, and no such part fails; or no
                                 condition holds and at least one cannot be told: the verdict then names those that fail
    does not hold                a part without a condition does not hold, or no condition holds and none is open
    depends on X                 it holds under some conditions and does not hold under others; X is what differs
    holds, but only under        it holds under some conditions, and under the others it cannot be told
    holds                        everything holds
    a demonstration              everything holds and nothing is an Effect: an identity, a size, a definition

The p of an Effect is that of the margin (two-sided): below 0.05 exactly where the interval does not contain the margin. As
there are many effects, q is the false-discovery rate (Benjamini and Hochberg 1995) over all effects of the table: of the
verdicts with q up to 0.05, at most one in twenty is expected to be wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from experiments.intervals import p_value
from jaxgpt.vectors.word_tests import Estimate

HOLDS, FAILS, UNTOLD = "holds", "does not hold", "cannot be told at this size"
DEPENDS, UNDER, SHOWN = "depends on", "holds, but only", "a demonstration"
AGAIN = "measure again"  # stored measurements of an earlier design do not suffice
KINDS = (FAILS, DEPENDS, UNDER, UNTOLD, HOLDS, SHOWN, AGAIN)  # surprises first


@dataclass(frozen=True)
class Effect:
    """A number that the claim says is above `above`, with its interval and the smallest size that matters."""

    what: str
    found: Estimate
    unit: str = ""
    above: float = 0.0  # 1 for ratios
    under: str = ""  # the condition: "on 4,000 characters"
    margin: float = field(kw_only=True)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.margin) and self.margin > 0):
            raise ValueError(
                f"{self.what}: margin={self.margin}: give the smallest size that matters, above 0"
            )

    @property
    def verdict(self) -> str:
        """See the rule in the module's docstring."""
        low, high = self._interval
        if math.isfinite(low) and math.isfinite(high):
            if low > self.margin:
                return HOLDS
            if high < self.margin:
                return FAILS
        return UNTOLD

    @property
    def reason(self) -> str:
        """Why it does not hold, or ""."""
        low, high = self._interval
        if self.verdict != FAILS:
            return ""
        if high < -self.margin:
            return "the opposite"
        return "too small to matter" if low > -self.margin else "too small to matter, or the opposite"

    @property
    def p(self) -> float:
        """Two-sided, of the margin."""
        return p_value(self.found, self.above + self.margin, logarithms=self.above == 1)

    @property
    def _interval(self) -> tuple[float, float]:
        if not math.isfinite(self.found.value):
            return math.nan, math.nan
        return self.found.low - self.above, self.found.high - self.above

    def to_json(self) -> dict[str, Any]:
        found = {"what": self.what, **asdict(self.found), "unit": self.unit, "above": self.above}
        rule = {"margin": self.margin, "under": self.under, "p": self.p}
        return found | rule | {"verdict": self.verdict, "reason": self.reason}


@dataclass(frozen=True)
class Check:
    """A number that the claim says is at most `at_most`: an error, or a count of exceptions."""

    what: str
    value: float
    at_most: float
    under: str = ""

    @property
    def verdict(self) -> str:
        """Within the limit, or not: there is no noise."""
        if not math.isfinite(self.value):
            return UNTOLD
        return HOLDS if self.value <= self.at_most else FAILS

    def to_json(self) -> dict[str, Any]:
        found = {"what": self.what, "value": self.value, "at_most": self.at_most, "under": self.under}
        return found | {"verdict": self.verdict}


def worded(part: Effect | Check, holds: str, fails: str, untold: str) -> str:
    """The words that fit a part's verdict: a sentence never says more than the rule does."""
    return {HOLDS: holds, FAILS: fails}.get(part.verdict, untold)


@dataclass(frozen=True)
class Amendment:
    """A change of a claim or its design after something had been measured."""

    when: str  # a date or a commit
    what: str
    why: str
    before: str  # the verdict before
    margins: Mapping[str, float] = field(default_factory=dict)  # the earlier margins, if any changed


def worst(verdicts: Iterable[str]) -> str:
    """Does not hold, before cannot be told, before holds."""
    return min(verdicts, key=(FAILS, UNTOLD, HOLDS).index)


@dataclass(frozen=True)
class Result:
    """What the measurements say about one claim."""

    parts: tuple[Effect | Check, ...]  # the most important one first
    says: str  # one or two sentences with the measured numbers
    untold: str = ""  # the control that failed, so that nothing can be concluded
    seeds: int | None = None  # trained models per variant; None if no model was trained
    varies: str = ""  # what differs between the conditions: "the amount of text"
    headline: str = ""  # one sentence, for the top of the page

    @property
    def conditions(self) -> dict[str, str]:
        """The verdict under each condition, that of its worst part."""
        by_condition: dict[str, list[str]] = {}
        for part in self.parts:
            by_condition.setdefault(part.under, []).append(part.verdict)
        return {condition: worst(found) for condition, found in by_condition.items()}

    @property
    def kind(self) -> str:
        """One of KINDS; see the rule in the module's docstring."""
        by_condition = self.conditions
        always = by_condition.pop("", HOLDS)
        if self.untold or not self.parts:
            return UNTOLD
        if always != HOLDS:
            return always
        found = set(by_condition.values())
        if found <= {HOLDS}:
            return HOLDS if any(isinstance(part, Effect) for part in self.parts) else SHOWN
        if HOLDS in found:
            return DEPENDS if FAILS in found else UNDER
        return UNTOLD if UNTOLD in found else FAILS

    @property
    def verdict(self) -> str:
        """The kind, with the conditions where it has some."""
        where = {
            verdict: "; ".join(name for name, found in self.conditions.items() if name and found == verdict)
            for verdict in (HOLDS, FAILS, UNTOLD)
        }
        rest = f", cannot be told ({where[UNTOLD]})" if where[UNTOLD] else ""
        if self.kind == DEPENDS:
            return f"{DEPENDS} {self.varies}: holds ({where[HOLDS]}), does not hold ({where[FAILS]}){rest}"
        if (
            self.kind == UNTOLD
            and where[FAILS]
            and not self.untold
            and self.conditions.get("", HOLDS) == HOLDS
        ):
            return f"{UNTOLD}: does not hold ({where[FAILS]}){rest}"
        return f"{UNDER} {where[HOLDS]}{rest}" if self.kind == UNDER else self.kind
