"""Claims: intervals and verdicts against known cases, the table of results, and each claim at its smallest."""

import importlib
import json
import math
import re
import statistics
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import __main__ as every
from experiments import analogy, claim, heads_add_up, neurons, static_dynamic
from experiments.claim import FAILS, HOLDS, NOISE, UNTOLD, Check, Effect, Result, Setting
from jaxgpt.config import UserError
from jaxgpt.vectors import tables
from jaxgpt.vectors.word_tests import Estimate
from jaxgpt.vectors.word_vectors import Vectors

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


def test_the_fastest_of_each_group_counts():
    assert claim.fastest([3.0, 1.0, 2.0, 5.0, 4.0], 2) == [1.0, 2.0]


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
    assert Result((good,), "").verdict == HOLDS
    assert Result((good, noise), "").verdict == NOISE
    assert Result((good, noise, bad), "").verdict == FAILS
    assert Result((good,), "", untold="the control failed").verdict == UNTOLD
    assert Check("", math.nan, 1.0).verdict == UNTOLD


def test_numbers_are_shown_with_the_decimals_that_their_interval_justifies():
    assert claim.show(Estimate(0.12345, 0.1, 0.15, 5), "nats") == "0.123 [0.100, 0.150] nats"
    assert claim.show(Estimate(168.4, 98.2, 290.1, 5)) == "168 [98, 290]"
    assert claim.show(Estimate(0.5, math.nan, math.nan, 1)) == "0.50"


# --- the table ------------------------------------------------------------------------------------------


def record(name: str, **fields) -> dict:
    def conclude(measurements: dict) -> Result:
        loss = claim.estimate(measurements["loss"])
        parts = (Effect("loss", loss, "nats", 0.1), Check("error", 0.0, 1e-6))
        return Result(parts, f"It is {loss.value}.")

    module = SimpleNamespace(
        CLAIM=f"{name} | is so.", DESIGN="As designed.", __file__=f"{name}.py", conclude=conclude
    )
    return claim.record_of(module, {"loss": Estimate(0.2, 0.1, 0.3, 5)}, Setting(), 12.0) | fields


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
    monkeypatch.setattr(every, "CLAIMS", ["no_such_claim", "lookup"])
    assert every.main(["--quick", "--runs", str(tmp_path), "--results", str(tmp_path / "results")]) == 1
    text = (tmp_path / "README.md").read_text()
    assert "No module named experiments.no_such_claim" in text
    assert json.loads((tmp_path / "results" / "lookup.json").read_text())["verdict"] in claim.VERDICTS


def test_without_matplotlib_a_line_says_so_before_anything_is_measured(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    module = SimpleNamespace(measure=lambda setting: pytest.fail("measured"))
    with pytest.raises(UserError, match=r'pip install "jaxgpt\[plots\]"'):
        claim.measure(module, Setting(), tmp_path)


def test_wrong_names_and_seeds_get_one_line(tmp_path):
    with pytest.raises(UserError, match="choose from lookup"):
        every.main(["--only", "nothing"])
    with pytest.raises(UserError, match="--seeds=0: give 1 or more"):
        every.main(["--seeds", "0"])


def test_stored_sentences_and_verdicts_follow_from_the_stored_measurements():
    for name in every.CLAIMS:
        stored = every.read(claim.RESULTS, name)
        found = claim.concluded(importlib.import_module(f"experiments.{name}"), stored)
        assert found.keys() == stored.keys(), name
        for key in found.keys() - {"parts"}:
            assert found[key] == stored[key], (name, key)
        for part, old in zip(found["parts"], stored["parts"], strict=True):
            assert part.keys() == old.keys()
            for key, value in part.items():
                same = pytest.approx(old[key], rel=1e-9) if isinstance(value, float) else old[key]
                assert value == same, (name, part["what"], key)


def test_the_stored_table_is_the_one_of_the_stored_results():
    readme = claim.RESULTS.parent / "README.md"
    assert readme.read_text("utf-8") == every.table(claim.RESULTS, "results")


# --- the claims -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> Setting:
    """All claims share the models that are trained for them."""
    return Setting("quick", 2, tmp_path_factory.mktemp("runs"))


# Several programs each, which are all compiled.
LONG = {
    "width",
    "overfitting",
    "matched_width",
    "positions",
    "no_mask",
    "number_of_heads",
    "mlp_width",
    "residual",
    "fine_tuning",
}
# Half as much, and run by .ci/run.
MIDDLE = {"meaning", "gradient_rows", "powers_of_two"}
SLOW, CI = [pytest.mark.slow], [pytest.mark.slow, pytest.mark.ci]
MARKS = dict.fromkeys(LONG, SLOW) | dict.fromkeys(MIDDLE, CI)
EACH = [pytest.param(name, marks=MARKS.get(name, [])) for name in every.CLAIMS]


@pytest.mark.parametrize("name", EACH)
def test_every_claim_gives_a_result_and_a_plot(name, quick):
    module = importlib.import_module(f"experiments.{name}")
    found = claim.measure(module, quick, quick.folder / "results")
    assert found == json.loads((quick.folder / "results" / f"{name}.json").read_text())
    assert found["verdict"] in claim.VERDICTS
    assert found["parts"] and found["says"].endswith(".") and found["claim"].endswith(".")
    assert not re.search(r"\bnan\b", found["says"])
    assert any("at_most" in part or part["low"] is not None for part in found["parts"])
    assert found["machine"]["cores"] >= 1 and found["seconds"] >= 0
    png = (quick.folder / "results" / f"{name}.png").read_bytes()
    assert png.startswith(b"\x89PNG") and len(png) < 60_000


# --- what they measure with -----------------------------------------------------------------------------


def test_a_neuron_that_waits_for_one_pattern_is_selective_and_a_random_one_is_not():
    rng = np.random.default_rng(0)
    windows_WT = rng.integers(6, size=(200, 42))
    patterns_N = neurons.patterns_at(windows_WT, 6)
    assert patterns_N[1] == (windows_WT[0, 1] * 6 + windows_WT[0, 2]) * 6 + windows_WT[0, 3]
    rare = patterns_N == patterns_N[0]
    active_NF = np.stack(
        [rare + 0.01 * rng.random(len(rare)), rng.random(len(rare)), np.zeros(len(rare))], axis=1
    )
    (one, random, silent), top = neurons.selectivity(active_NF, patterns_N)
    assert one > 0.4 and patterns_N[0] in top[0]  # it fires on 1 % of the positions, the pattern is 1 in 216
    assert abs(random) < 0.05
    assert math.isnan(silent)


def test_exact_arithmetic_is_near_and_a_random_table_is_at_chance():
    words = sorted(
        {word for kind in analogy.KINDS.values() for pair in kind.split(",") for word in pair.split()}
    )
    rng = np.random.default_rng(0)
    values = rng.standard_normal((len(words) + 2000, 40)).astype(np.float32)
    names = [*words, *(f"other{i}" for i in range(2000))]
    found = analogy.ask(tables.Table("random", Vectors(names, values)))
    assert found["arithmetic"]["place"] == pytest.approx(0.5, abs=0.1)
    turned = values.copy()
    for kind in analogy.KINDS.values():
        step = 6 * rng.standard_normal(40)
        for pair in kind.split(","):
            one, other = (words.index(word) for word in pair.split())
            turned[other] = turned[one] + step
    found = analogy.ask(tables.Table("exact", Vectors(names, turned)))
    assert found["arithmetic"]["near"] > 0.9 > found["c alone"]["near"]
    assert found["queen"] <= 3


def test_without_a_head_only_its_part_is_gone():
    params = {"block_0": {"attention": {"out": {"kernel": np.ones((2, 3, 4)), "bias": np.ones(4)}}, "mlp": 1}}
    found = heads_add_up.without(params, [(0, 1)])["block_0"]["attention"]["out"]
    np.testing.assert_array_equal(found["kernel"][0], 1)
    np.testing.assert_array_equal(found["kernel"][1], 0)
    assert (params["block_0"]["attention"]["out"]["kernel"] == 1).all() and (found["bias"] == 1).all()


def test_contexts_end_in_their_word():
    ids = np.random.default_rng(0).integers(5, size=500)
    windows = static_dynamic.contexts(ids, 3, 8, 10)
    assert windows.shape == (10, 8) and (windows[:, -1] == 3).all()
    assert static_dynamic.contexts(ids, 7, 8, 10).shape == (0, 8)
