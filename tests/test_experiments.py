"""Claims: the page of results, what does not follow from the measurements, and each claim at its smallest."""

import importlib
import inspect
import json
import math
import os
import re
import string
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import __main__ as every
from experiments import (
    analogy,
    claim,
    columns,
    heads_add_up,
    ids,
    later_words,
    meaning,
    mup,
    neurons,
    overfitting,
    page,
    recompute,
    static_dynamic,
    trained,
)
from experiments.claim import Check, Effect, Outdated, Result, Setting
from jaxgpt.config import UserError
from jaxgpt.vectors import tables
from jaxgpt.vectors.word_tests import Estimate
from jaxgpt.vectors.word_vectors import Vectors

# --- the table ------------------------------------------------------------------------------------------

MODULE = {
    "NOTE": "Rows | and columns.",
    "PREDICTION": "As said.",
    "REFUTED_BY": "The contrary.",
    "DESIGN": "As designed.",
}


def module_of(name: str, **changes) -> SimpleNamespace:
    def conclude(measurements: dict) -> Result:
        if "loss" not in measurements:
            raise Outdated("the loss")
        loss = claim.estimate(measurements["loss"])
        parts = (Effect("loss", loss, "nats", margin=0.05), Check("error", 0.0, 1e-6))
        return Result(parts, f"It is {loss.value}.", headline=f"{name} is {loss.value}.")

    fields = MODULE | {"CLAIM": f"{name} is so.", "MARGINS": {"loss": 0.05}, "__file__": f"{name}.py"}
    return SimpleNamespace(**fields | {"conclude": conclude} | changes)


def record(name: str, value: float = 0.2, **changes) -> dict:
    module = module_of(name, **changes)
    before = claim.registered(module)
    measured = {"loss": Estimate(value, value - 0.1, value + 0.1, 5)}
    return claim.record_of(module, before, measured, Setting(), {"seconds": 12.0, "cpu_seconds": 9.0})


def test_the_table_has_every_claim_its_verdict_and_its_plot(tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    first, second, third, old, *rest = every.CLAIMS
    (results / f"{first}.json").write_text(json.dumps(record(first)))
    failed = {
        "name": second,
        "claim": second,
        "failed": "no space",
        "seconds": 1.0,
        "command": f"python -m experiments.{second}",
    }
    (results / f"{second}.json").write_text(json.dumps(failed))
    (results / f"{third}.json").write_text(json.dumps(record(third, -0.4)))
    before = record(old) | {"measurements": {}}
    del before["registered"]
    (results / f"{old}.json").write_text(json.dumps(claim.concluded(module_of(old), before)))
    text = page.write(results, every.CLAIMS).read_text()
    assert f"| Rows \\| and columns. | loss: 0.20 [0.10, 0.30] nats | [**holds**](#{first}) |" in text
    assert "| loss | 0.20 [0.10, 0.30] nats (n = 5) | above 0.05 | 0.014 | 0.014 | holds |" in text
    assert "| does not hold: the opposite |" in text
    assert text.index(f"- {third} is -0.4.") < text.index(f"- {first} is 0.2.")  # surprises first
    assert f"![{first}](results/{first}.png)" in text and f"![{old}]" not in text
    assert f"| {second} | no space | **failed** |" in text
    assert f"[**measure again**](#{old})" in text and "which needs the loss." in text
    for name in rest:
        assert f"| {name} | not measured yet: `python -m experiments.{name}` | |" in text
    assert "3 of" in text and "JAX" in text and "commit" in text and "2 effects; 2 are" in text
    assert (results / "forest.png").read_bytes().startswith(b"\x89PNG")


def test_a_claim_that_fails_leaves_its_reason_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(every, "CLAIMS", ["no_such_claim", "lookup"])
    assert every.main(["--quick", "--runs", str(tmp_path), "--results", str(tmp_path / "results")]) == 1
    text = (tmp_path / "README.md").read_text()
    assert "No module named experiments.no_such_claim" in text
    found = json.loads((tmp_path / "results" / "lookup.json").read_text())
    assert found["kind"] in claim.KINDS and found["registered"]["margins"]


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
    with pytest.raises(UserError, match="--jobs=0: give 1 or more"):
        every.main(["--jobs", "0"])


def test_claims_that_measure_times_run_alone_after_the_others(tmp_path, monkeypatch):
    running, seen, on = set(), [], {}
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: {0, 1, 5}, raising=False)

    def run_one(name, setting, results, cores=()):
        running.add(name)
        time.sleep(0.02)
        seen.append((name, len(running)))
        on[name] = tuple(cores)
        running.remove(name)
        return name != "ids"

    monkeypatch.setattr(every, "run_one", run_one)
    assert every.run_all(["lookup", "ids", "width", "sizes", "meaning"], Setting(), tmp_path, jobs=2) == [
        "ids"
    ]
    assert [name for name, _ in seen[-2:]] == ["lookup", "width"] and all(n == 1 for _, n in seen[-2:])
    assert max(n for _, n in seen) == 2
    assert {on[name] for name in ("ids", "sizes", "meaning")} <= {(0, 5), (1,)} and on["width"] == ()
    timed = {
        name
        for name in every.CLAIMS
        if re.search(
            r"import .*\btiming\b", inspect.getsource(importlib.import_module(f"experiments.{name}"))
        )
    }
    assert timed == every.TIMED


def test_models_that_two_claims_share_are_trained_by_one_while_the_other_waits(tmp_path):
    entered = []

    def enter(name):
        with trained.alone_in(tmp_path / "models"):
            entered.append(name)

    with trained.alone_in(tmp_path / "models"):
        other = threading.Thread(target=enter, args=["other"])
        other.start()
        time.sleep(0.1)
        entered.append("first")
    other.join(timeout=10)
    assert entered == ["first", "other"]


def test_every_number_of_the_page_follows_from_the_stored_measurements(capsys):
    assert every.main(["--check"]) == 0, capsys.readouterr().out


def outside() -> list[tuple[str, str, list[float]]]:
    """Claims, parts, and what their values are the mean of: taken from the stored measurements by hand."""

    def of(name: str) -> dict:
        return json.loads((claim.RESULTS / f"{name}.json").read_text())["measurements"]

    def less(a: list[float], b: list[float]) -> list[float]:
        return np.subtract(a, b).tolist()

    mlp, heads, mask, order = (of(name) for name in ("mlp_width", "number_of_heads", "no_mask", "positions"))
    found = [
        (
            "number_of_heads",
            f"loss with 1 head minus loss with {n}",
            less(heads["losses"]["1"], heads["losses"][n]),
        )
        for n in heads["losses"]
        if n != "1"
    ]
    found += [
        (
            "mlp_width",
            f"loss with {n} x d_model minus loss with 4 x d_model",
            less(mlp["losses"][n], mlp["losses"]["4"]),
        )
        for n in ("1", "2", "8")
    ]
    found += [
        (
            "mlp_width",
            "loss with no MLP minus loss with 4 x d_model",
            less(mlp["losses"]["0"], mlp["losses"]["4"]),
        ),
        (
            "no_mask",
            "apparent loss with the mask minus without",
            less(mask["apparent"]["mask"], mask["apparent"]["no mask"]),
        ),
        (
            "no_mask",
            "true loss without the mask minus with",
            less(mask["true"]["no mask"], mask["true"]["mask"]),
        ),
    ]
    found += [
        (
            "positions",
            f"loss without positions minus loss with, on text, {kind}",
            less(order["losses"]["none"], x),
        )
        for kind, x in order["losses"].items()
        if kind != "none"
    ]
    found += [
        (
            "meaning",
            f"rise of the AUC for {kind} in 600 steps",
            [end[1] - start[1] for start, *_, end in curves],
        )
        for kind, curves in of("meaning")["curves"].items()
    ]
    return found  # fmt: skip


def test_numbers_of_the_page_are_those_of_scipy():
    """Means, intervals and p by SciPy's t-test from the stored measurements, without the code of intervals.py."""
    from scipy import stats

    checked = outside()
    assert len(checked) >= 10
    for name, what, values in checked:
        parts = json.loads((claim.RESULTS / f"{name}.json").read_text())["parts"]
        (part,) = (part for part in parts if what in (part["what"], page.named(part)))
        test = stats.ttest_1samp(values, part["margin"] + part["above"])
        interval = test.confidence_interval(0.95)
        again = [np.mean(values), interval.low, interval.high, test.pvalue]
        np.testing.assert_allclose(
            [part[k] for k in ("value", "low", "high", "p")], again, rtol=1e-6, atol=1e-9, err_msg=what
        )


def test_an_auc_is_that_of_scipy():
    """U of the test of Mann and Whitney, over the number of pairs."""
    from scipy import stats

    letters, values = list(string.ascii_lowercase), np.random.default_rng(0).normal(size=(26, 3))
    lengths = np.linalg.norm(values, axis=1)
    cosines = values @ values.T / np.outer(lengths, lengths)
    alike = np.equal.outer(*[[letter in meaning.VOWELS for letter in letters]] * 2)
    pairs = np.triu(np.ones((26, 26), bool), 1)
    same, other = cosines[pairs & alike], cosines[pairs & ~alike]
    expected = stats.mannwhitneyu(same, other).statistic / (len(same) * len(other))
    assert meaning.vowel_auc(tables.Table("random", Vectors(letters, values))) == pytest.approx(expected)


def test_the_column_of_the_real_model_is_its_own_part_for_the_claim():
    part = Effect("AUC minus 0.5", Estimate(0.4, 0.3, 0.5, 60), under="meaning", margin=0.02).to_json()
    assert page.in_real_model("meaning", {"parts": [part]}) == "AUC minus 0.5: 0.40 [0.30, 0.50] (holds)"
    assert (
        page.in_real_model("meaning", None)
        == page.in_real_model("induction", {"parts": [part]})
        == "not measured"
    )
    assert page.in_real_model("width", {"parts": [part]}) == ""
    assert set(page.REAL) <= set(every.CLAIMS)


def test_what_does_not_follow_is_one_line_each(tmp_path, monkeypatch):
    results = tmp_path / "results"
    results.mkdir()
    stored = json.loads((claim.RESULTS / "character_loss.json").read_text())
    stored["parts"][1]["low"] += 0.001
    stored["verdict"] = "holds everywhere"
    stored["registered"] = {"margins": {"loss": 0.5}}
    (results / "character_loss.json").write_text(json.dumps(stored))
    page.write(results, ["character_loss"])
    found = list(recompute.differences(results, ["character_loss"], ["character_loss"]))
    assert len(found) == 3, found
    assert "margin of 'loss': 0.5 before measuring, 0.02 now, and no amendment says so" in found[0]
    assert "character_loss: verdict: the file has 'holds everywhere'" in found[1]
    assert "character_loss: parts[1].low: the file has" in found[2]
    readme = tmp_path / "README.md"
    readme.write_text(readme.read_text().replace("1 of 1 measured", "2 of 1 measured"))
    *_, before, now = recompute.differences(results, ["character_loss"], ["character_loss"])
    assert "the file has '2 of 1" in before and "the records give '1 of 1" in now


def test_an_amendment_says_what_a_margin_was():
    stored = record("some")
    changed = module_of("some", MARGINS={"loss": 0.1})
    assert len(list(recompute.changed_margins(changed, stored))) == 1
    changed.AMENDMENTS = (claim.Amendment("today", "A margin.", "Too small.", "holds", {"loss": 0.01}),)
    assert len(list(recompute.changed_margins(changed, stored))) == 1  # not what it was
    changed.AMENDMENTS = (claim.Amendment("today", "A margin.", "Too small.", "holds", {"loss": 0.05}),)
    assert not list(recompute.changed_margins(changed, stored))


# The headline of these is numbers alone; the words of any other follow from the verdicts.
NUMBERS_ALONE = {
    "richer_features",
    "sizes", "ids", "meaning", "near_far", "columns", "analogy", "width", "overfitting", "powers_of_two", "matched_width", "positions", "no_mask",
    "static_dynamic", "later_words", "number_of_heads", "neurons", "mlp_width", "residual", "fine_tuning", "parallel_positions", "recipe", "mup",
    "pseudowords", "superposition", "seed_lottery", "scaling_law", "norm_order", "rare_tokens", "repeated_data", "tokenizer_bits", "real_model",
}  # fmt: skip
# What numbers do not say.
OUTCOME = re.compile(
    r"\b(shows?|needs?|becomes?|only if|depends? on|starts when|ends without|must|worth|costs between|better than|worse than)\b"
)


def test_no_headline_says_more_than_the_verdict(monkeypatch):
    checked = 0
    for name in every.CLAIMS:
        stored = page.read(claim.RESULTS, name)
        if stored is None or not stored.get("headline"):
            continue
        module, found = importlib.import_module(f"experiments.{name}"), {}
        for verdict in (claim.HOLDS, claim.FAILS):
            for part in (Effect, Check):
                monkeypatch.setattr(part, "verdict", property(lambda self, verdict=verdict: verdict))
            found[verdict] = module.conclude(stored["measurements"]).headline
        same = found[claim.HOLDS] == found[claim.FAILS]
        assert same == (name in NUMBERS_ALONE), (name, found)
        assert not same or not OUTCOME.search(found[claim.HOLDS]), (name, found)
        checked += 1
    assert checked >= 10


def test_stored_records_name_no_folder_of_a_machine():
    for file in claim.RESULTS.glob("*.json"):
        found = re.search(r'(?<![\w.])/(?:home|root|tmp|work|Users|mnt)/[^"]*', file.read_text("utf-8"))
        assert found is None, (file.name, found)


# --- the claims -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> Setting:
    """All claims share the models that are trained for them."""
    return Setting("quick", 2, tmp_path_factory.mktemp("runs"))


# Several programs each, which are all compiled.
LONG = {
    "width",
    "richer_features",
    "overfitting",
    "matched_width",
    "positions",
    "no_mask",
    "number_of_heads",
    "mlp_width",
    "residual",
    "fine_tuning",
    "recipe",
    "mup",
    *every.QUESTIONS,
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
    assert found["kind"] in claim.KINDS and found["verdict"].startswith(found["kind"])
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
    assert (top[2] == -1).all()  # it never fires: no pattern is made up for it
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


def test_random_directions_replace_the_neurons_of_one_layer_and_keep_their_length():
    rng = np.random.default_rng(0)
    params = {
        f"block_{i}": {
            "mlp": {"up": {"kernel": rng.normal(size=(4, 6)).astype(np.float32), "bias": i}},
            "attention": i,
        }
        for i in range(2)
    }
    found = neurons.random_directions(params, 1, seed=0)
    own, new = (np.asarray(p["block_1"]["mlp"]["up"]["kernel"]) for p in (params, found))
    np.testing.assert_allclose(np.linalg.norm(new, axis=0), np.linalg.norm(own, axis=0), rtol=1e-6)
    assert not np.allclose(new, own) and found["block_0"] is params["block_0"]
    assert found["block_1"]["mlp"]["up"]["bias"] == 1 and found["block_1"]["attention"] == 1


def test_the_nearest_numbers_of_pairs_and_ids_without_a_meaning():
    by_pair = ids.auc_by_pair(np.array([[0, 1], [100, 101], [200, 202]]))
    assert by_pair == [1.0, 1.0, 1.0]
    assert ids.auc_by_pair(np.array([[0, 200], [100, 101], [200, 0]])) == [0.0, 1.0, 0.0]
    assert meaning.nearest_in(np.array([1, 10, 100, 1000, 12]), np.arange(5), 1)[0] == 4


def test_a_property_in_one_column_is_found_there_and_is_lost_by_a_rotation():
    rng = np.random.default_rng(0)
    have, others = rng.normal(size=(2, 16, 12))
    have[:, 5] -= 6
    assert columns.best_column(have, others) == 1.0 == columns.direction(have, others)
    spread = np.ones(12) / np.sqrt(12)
    slanted = rng.normal(size=(16, 12)) + 4 * spread
    assert columns.direction(slanted, others) > columns.best_column(slanted, others)


def test_a_causal_mask_allows_no_weight_on_a_later_word():
    scores = np.log([[0.3, 0.1, 0.6]])
    np.testing.assert_allclose(later_words.weights_of(scores, causal=False), [[0.3, 0.1, 0.6]], rtol=1e-6)
    np.testing.assert_allclose(later_words.weights_of(scores, causal=True), [[0.75, 0.25, 0.0]], rtol=1e-6)


def test_the_best_rate_and_its_slope_are_those_of_a_parabola():
    powers = list(range(-12, -3))
    curves = {str(w): [[(p + np.log2(w)) ** 2 for p in powers]] * 3 for w in (64, 128, 256)}
    assert [mup.best_power(rows[0], powers) for rows in curves.values()] == [-6.0, -7.0, -8.0]
    np.testing.assert_allclose(mup.slopes(curves, powers), [-1.0] * 3)
    assert mup.transfer_costs(curves) == [4.0] * 3  # two powers of two away from the best
    assert mup.best_power([1.0, 2.0, None], [-3, -2, -1]) == -3.0


def test_early_stopping_is_chosen_on_one_half_and_scored_on_the_other():
    assert overfitting.early([[1, 3.0, 3.5], [2, 2.0, 2.5], [3, 2.5, 2.0]]) == 2.5


def test_no_difference_is_an_effect_that_can_hold():
    found = claim.within(Estimate(0.51, 0.48, 0.54, 60), 0.5, 0.05)
    assert (found.value, found.low, found.high) == pytest.approx((0.09, 0.06, 0.1))
    assert Effect("", found, margin=0.05).verdict == claim.HOLDS
    assert (
        Effect("", claim.within(Estimate(0.7, 0.6, 0.8, 60), 0.5, 0.05), margin=0.05).verdict == claim.FAILS
    )
    assert (
        Effect("", claim.within(Estimate(0.5, 0.4, 0.6, 60), 0.5, 0.05), margin=0.05).verdict == claim.UNTOLD
    )
