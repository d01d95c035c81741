"""Each arm's own learning rate, and times from several processes: on cases whose answer is known."""

import math

import pytest

from experiments import comparing, timing, tuning
from experiments.claim import Setting
from jaxgpt.config import UserError


def bowl(best: dict[str, float]):
    """Losses with a minimum at a known factor, which diverge far above it."""

    def losses_at(factors: dict[str, float]) -> dict[str, list[float]]:
        return {
            arm: [
                math.inf if f > 8 * best[arm] else abs(math.log2(f / best[arm])) + noise for noise in (0, 0.1)
            ]
            for arm, f in factors.items()
        }

    return losses_at


def test_each_arm_gets_its_own_best_factor_and_an_edge_is_widened_or_said():
    found = tuning.choose(
        bowl({"slow": 0.5, "far": 16.0, "gone": 1024.0, "low": 0.01}),
        ["slow", "far", "gone", "low"],
        tuning.FACTORS,
        3,
    )
    assert found["slow"]["best"] == 0.5 and not found["slow"]["edge"]
    assert len(found["slow"]["losses"]) == 5
    assert found["far"]["best"] == 16.0 and not found["far"]["edge"]  # 8, 16 and 32 were added
    assert found["gone"]["edge"] and found["gone"]["best"] == 32.0
    assert found["low"]["edge"]
    assert tuning.at_the_edge(found) == "the best rate of gone, low is at the edge of its grid"
    assert tuning.at_the_edge({"slow": found["slow"]}) == ""


def test_a_rate_that_diverges_is_not_chosen():
    found = tuning.choose(bowl({"a": 0.25}), ["a"], tuning.FACTORS, 3)
    assert found["a"]["best"] == 0.25 and found["a"]["losses"]["4"] == [math.inf, math.inf]


def test_rates_are_chosen_with_other_seeds_and_scale_all_fields(tmp_path, monkeypatch):
    setting = Setting("standard", 3, tmp_path)
    assert not set(setting.seed_numbers) & set(tuning.tuning_setting(setting).seed_numbers)
    base = comparing.base(Setting("quick", 2, tmp_path))
    fields = tuning.rates_of(
        base, {"optim.learning_rate": 0.5}, ["optim.learning_rate", "optim.muon_learning_rate"], 2.0
    )
    assert fields == {
        "optim.learning_rate": 1.0,
        "optim.muon_learning_rate": 2 * base.optim.muon_learning_rate,
    }


def test_times_come_from_processes_of_their_own(monkeypatch, tmp_path):
    monkeypatch.setattr(timing, "PROCESSES", 2)
    monkeypatch.setattr(timing, "PAUSE", 0)
    first, second = timing.in_processes(Setting("standard", 2, tmp_path), "intervals", "numbers", [1, None])
    assert first[0] == second[0] == 1.0 and math.isnan(first[1])
    with pytest.raises(UserError, match=r"a process that measures times failed: .*float"):
        timing.in_processes(Setting("standard", 2, tmp_path), "intervals", "numbers", ["no number"])
