"""Claims: intervals and verdicts against known cases, the table of results, and each claim at its smallest."""

import importlib
import json
import math
import statistics

import numpy as np
import pytest

from experiments import __main__ as every
from experiments import claim
from experiments.claim import FAILS, HOLDS, NOISE, UNTOLD, Check, Effect, Result, Setting
from jaxgpt.config import UserError
from jaxgpt.word_tests import Estimate

# --- intervals ------------------------------------------------------------------------------------------


# Student's table for a two-sided 95 %, in any book.
@pytest.mark.parametrize(
    ("df", "t"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (5, 2.5706), (10, 2.2281), (120, 1.9799)],
)
def test_quantiles_of_students_t(df, t):
    assert claim.t_quantile(df) == pytest.approx(t, abs=5e-5)


def test_an_interval_of_five_seeds_covers_the_truth_19_times_in_20():
    draws = np.random.default_rng(0).normal(3.0, 2.0, (4000, 5))
    covered = statistics.fmean(found.low <= 3.0 <= found.high for found in map(claim.mean, draws))
    assert covered == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / 4000))


def test_differences_are_paired_and_ratios_geometric():
    base = [1.0, 5.0, 9.0]
    found = claim.difference([b + x for b, x in zip(base, (0.9, 1.0, 1.1), strict=True)], base)
    assert (found.value, found.count) == (pytest.approx(1.0), 3)
    assert found.high - found.value == pytest.approx(4.3027 * 0.1 / math.sqrt(3), abs=1e-5)
    found = claim.ratio([2.0, 8.0], [1.0, 1.0])
    assert found.value == pytest.approx(4.0)
    assert found.low * found.high == pytest.approx(16.0)


def test_one_value_and_nan_have_no_interval():
    assert math.isnan(claim.mean([1.0]).low)
    assert math.isnan(claim.mean([1.0, math.nan]).value)


# --- verdicts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "value", "high", "margin", "verdict"),
    [
        (0.1, 0.2, 0.3, 0.0, HOLDS),
        (-0.1, 0.2, 0.5, 0.0, NOISE),
        (-0.3, -0.2, -0.1, 0.0, FAILS),
        (0.1, 0.2, 0.3, 0.15, HOLDS),
        (0.1, 0.2, 0.3, 0.5, FAILS),  # surely there, surely too small to matter
        (-0.1, 0.0, 0.1, 0.5, FAILS),
        (0.1, 0.4, 0.7, 0.5, NOISE),
        (-0.1, 0.4, 0.9, 0.5, NOISE),
        (-0.9, 0.0, 0.9, 0.5, UNTOLD),  # may be as large either way
        (math.nan, 0.2, math.nan, 0.0, UNTOLD),
    ],
)
def test_the_rule_of_verdicts(low, value, high, margin, verdict):
    assert Effect("", Estimate(value, low, high, 5), margin=margin).verdict == verdict
    ratio = Estimate(1 + value, 1 + low, 1 + high, 5)
    assert Effect("", ratio, margin=margin, above=1.0).verdict == verdict


def test_a_claim_is_as_good_as_its_worst_part():
    good, bad = Check("", 0.0, 0.0), Check("", 1.0, 0.5)
    noise = Effect("", Estimate(0.1, -1.0, 1.0, 5))
    assert Result((good,), "", {}).verdict == HOLDS
    assert Result((good, noise), "", {}).verdict == NOISE
    assert Result((good, noise, bad), "", {}).verdict == FAILS
    assert Result((good,), "", {}, untold="the control failed").verdict == UNTOLD
    assert Check("", math.nan, 1.0).verdict == UNTOLD


def test_numbers_are_shown_to_the_decimals_that_their_interval_calls_for():
    assert claim.show(Estimate(0.12345, 0.1, 0.15, 5), "nats") == "0.123 [0.100, 0.150] nats"
    assert claim.show(Estimate(168.4, 98.2, 290.1, 5)) == "168 [98, 290]"
    assert claim.show(Estimate(0.5, math.nan, math.nan, 1)) == "0.50"


# --- the table ------------------------------------------------------------------------------------------


def record(name: str, **fields) -> dict:
    parts = (Effect("loss", Estimate(0.2, 0.1, 0.3, 5), "nats", 0.1), Check("error", 0.0, 1e-6))
    module = type("Module", (), {"CLAIM": f"{name} | is so.", "DESIGN": "As said.", "__file__": f"{name}.py"})
    return claim.record_of(module, Result(parts, "It is 0.2.", {}), Setting(), 12.0) | fields


def test_the_table_has_every_claim_its_verdict_and_its_plot(tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    first, second, *rest = every.CLAIMS
    (results / f"{first}.json").write_text(json.dumps(record(first)))
    failed = {
        "name": second,
        "claim": second,
        "failed": "no space",
        "seconds": 1.0,
        "command": f"python -m experiments.{second}",
    }
    (results / f"{second}.json").write_text(json.dumps(failed))
    text = every.write_table(results).read_text()
    assert (
        f"| {first} \\| is so. | It is 0.2. | **holds** | [plot](#{first}) | 12 s | `python -m experiments.{first}` |"
        in text
    )
    assert "| loss | 0.20 [0.10, 0.30] nats (n = 5) | above 0 by 0.1 | holds |" in text
    assert f"![{first}](results/{first}.png)" in text
    assert f"| {second} | no space | **failed** |" in text
    for name in rest:
        assert f"| {name} | | not measured yet |" in text
    assert "2 of" in text and "JAX" in text and "commit" in text


def test_a_claim_that_fails_leaves_its_reason_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(every, "CLAIMS", ["no_such_claim", "gradient_rows"])
    assert every.main(["--quick", "--runs", str(tmp_path), "--results", str(tmp_path / "results")]) == 1
    text = (tmp_path / "README.md").read_text()
    assert "No module named experiments.no_such_claim" in text
    assert json.loads((tmp_path / "results" / "gradient_rows.json").read_text())["verdict"] in claim.VERDICTS


def test_wrong_names_and_seeds_get_one_line(tmp_path):
    with pytest.raises(UserError, match="choose among lookup"):
        every.main(["--only", "nothing"])
    with pytest.raises(UserError, match="--seeds=0: give 1 or more"):
        every.main(["--seeds", "0"])


# --- the claims -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> Setting:
    """All claims share the models that are trained for them."""
    return Setting("quick", 2, tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("name", every.CLAIMS)
def test_every_claim_gives_a_result_and_a_plot(name, quick):
    module = importlib.import_module(f"experiments.{name}")
    found = claim.measure(module, quick, quick.folder / "results")
    assert found == json.loads((quick.folder / "results" / f"{name}.json").read_text())
    assert found["verdict"] in claim.VERDICTS
    assert found["parts"] and found["says"].endswith(".") and found["claim"].endswith(".")
    assert "nan" not in found["says"]
    assert any("at_most" in part or part["low"] is not None for part in found["parts"])
    assert found["machine"]["cores"] >= 1 and found["seconds"] >= 0
    png = (quick.folder / "results" / f"{name}.png").read_bytes()
    assert png.startswith(b"\x89PNG") and len(png) < 60_000
