"""Each arm of a comparison at its own best learning rate, chosen with other seeds than those that are compared."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from experiments import comparing
from experiments.claim import Setting
from experiments.trained import changed
from jaxgpt import config
from jaxgpt.config import Config
from jaxgpt.sweeps.members import Row

FIRST_SEED = 1000  # of those that choose the rate
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of each arm's rate
WIDER = 3  # by so many factors of two the grid is widened if the best rate is at its edge
Fields = dict[str, Any]


def tuning_setting(setting: Setting) -> Setting:
    """The seeds that choose the rate."""
    return dataclasses.replace(setting, seeds=setting.pick(1, 2, 3), first_seed=FIRST_SEED)


def rates_of(base: Config, overrides: Fields, scaled: Sequence[str], factor: float) -> Fields:
    """The fields of an arm whose rates are multiplied by a factor."""
    values = config.to_json(changed(base, overrides))
    found = {}
    for dotted in scaled:
        group, _, name = dotted.rpartition(".")
        found[dotted] = factor * values[group][name]
    return overrides | found


def best_factor(means: dict[float, float]) -> tuple[float, bool]:
    """The factor with the lowest loss, and whether it is at the edge of the grid."""
    best = min(sorted(means), key=means.get)  # the lowest, if all diverge
    return best, len(means) > 1 and best in (min(means), max(means))


def choose(
    losses_at: Callable[[dict[str, float]], dict[str, list[float]]],
    arms: Sequence[str],
    factors: Sequence[float],
    wider: int,
) -> dict[str, Any]:
    """For each arm: its losses by factor, the best factor, and whether that is at the edge of the (widened) grid.

    losses_at: {arm: factor} -> {arm: losses of the tuning seeds}; a training that diverges has the loss infinity.
    """
    found: dict[str, dict[float, list[float]]] = {arm: {} for arm in arms}
    for factor in factors:
        for arm, losses in losses_at(dict.fromkeys(arms, factor)).items():
            found[arm][factor] = losses
    for _ in range(wider):
        wanted = {}
        for arm, by_factor in found.items():
            best, edge = best_factor({factor: statistics.fmean(x) for factor, x in by_factor.items()})
            if edge:
                wanted[arm] = best * 2 if best == max(by_factor) else best / 2
        for arm, losses in (losses_at(wanted) if wanted else {}).items():
            found[arm][wanted[arm]] = losses
    chosen = {}
    for arm, by_factor in found.items():
        best, edge = best_factor({factor: statistics.fmean(x) for factor, x in by_factor.items()})
        chosen[arm] = {
            "losses": {f"{f:g}": by_factor[f] for f in sorted(by_factor)},
            "best": best,
            "edge": edge,
        }
    return chosen


def best_rates(
    setting: Setting,
    name: str,
    base: Config,
    variants: dict[str, Fields],
    by_seed: Callable[[Setting], Sequence[Fields]] = lambda setting: (),
    scaled: Sequence[str] = ("optim.learning_rate",),
    factors: Sequence[float] = FACTORS,
) -> dict[str, Any]:
    """How each variant's best rate was chosen, see `choose`; and its `rates`, by field.

    by_seed: the fields that differ by seed, for the seeds of a setting.
    """
    tuning = tuning_setting(setting)

    def losses_at(by_arm: dict[str, float]) -> dict[str, list[float]]:
        arms = {arm: rates_of(base, variants[arm], scaled, factor) for arm, factor in by_arm.items()}
        rows = comparing.train(tuning, f"{name}_tuning", base, arms, by_seed(tuning), diverging=True)
        return {arm: comparing.losses(found) for arm, found in rows.items()}

    chosen = choose(
        losses_at, list(variants), setting.pick((1.0,), factors, factors), setting.pick(0, WIDER, WIDER)
    )
    for arm, found in chosen.items():
        found["rates"] = rates_of(base, variants[arm], scaled, found["best"])
        found["rates"] = {dotted: found["rates"][dotted] for dotted in scaled}
    return chosen


def train(
    setting: Setting,
    name: str,
    base: Config,
    variants: dict[str, Fields],
    by_seed: Callable[[Setting], Sequence[Fields]] = lambda setting: (),
    **choosing: Any,
) -> tuple[dict[str, list[Row]], dict[str, Any]]:
    """Every variant with every seed at the variant's best rate; and how it was chosen. See comparing.train, and `best_rates`
    for the other arguments.
    """
    chosen = best_rates(setting, name, base, variants, by_seed, **choosing)
    arms = {arm: fields | chosen[arm]["rates"] for arm, fields in variants.items()}
    return comparing.train(setting, name, base, arms, by_seed(setting)), chosen


def at_the_edge(chosen: dict[str, Any]) -> str:
    """Which arms have their best rate at the edge of the grid; "" if none. Their comparison cannot be concluded."""
    arms = [arm for arm, found in chosen.items() if found["edge"]]
    return f"the best rate of {', '.join(arms)} is at the edge of its grid" if arms else ""


def says(chosen: dict[str, Any]) -> str:
    """The chosen rates, in a sentence."""
    listed = ", ".join(f"{next(iter(found['rates'].values())):.2g} ({arm})" for arm, found in chosen.items())
    count = min(len(found["losses"]) for found in chosen.values())
    return f"Best of at least {count} rates each: {listed}."
