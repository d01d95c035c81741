"""How a run learned: planted changes are named at the right step, and an untrained run has nothing to say."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxgpt import config
from jaxgpt.config import UserError
from jaxgpt.data import baselines, tokenizers
from jaxgpt.data.id_files import Dataset, Split
from jaxgpt.inspect import analysis, changes, heads, learning, moving_picture, token_kinds
from jaxgpt.inspect.capture import capture
from jaxgpt.inspect.plain import Names
from jaxgpt.inspect.subject import Subject
from jaxgpt.model.gpt import GPT
from jaxgpt.model.parameters import init_params
from jaxgpt.runs.load import Run
from tests.planted import INDUCTION, PREVIOUS, induction_model

TEXT = "the king sees the queen and the fool, then the ghost fears the duke.\n" * 60
STEPS = (0, 10, 20, 40, 80)


@pytest.fixture(scope="module")
def planted():
    """The parts of a run whose parameters are given, not trained: its config, planted and fresh parameters."""
    cfg, params = induction_model(vocab_size=24, context_length=24)
    fresh = init_params(GPT(cfg), jax.random.key(3))
    return cfg, jax.tree.map(np.asarray, params), jax.tree.map(np.asarray, fresh)


def subject_of(cfg, params, text: str = TEXT) -> Subject:
    tokenizer = tokenizers.CharTokenizer("".join(sorted(set(text)))[:24].ljust(24, "~"))
    ids = tokenizer.encode(text)
    dataset = Dataset(Split(ids), Split(ids), tokenizer, "text", "", "")
    run = Run(config.Config(model=cfg), GPT(cfg), params, tokenizer, STEPS[-1], Path("none"))
    return Subject(run, {"starts": []}, [], dataset, ())


def learn(cfg, by_step: dict, text: str = TEXT) -> dict:
    subject = subject_of(cfg, by_step[max(by_step)], text)
    ids = subject.train_ids()
    names = Names(subject.run.tokenizer, np.bincount(ids, minlength=cfg.vocab_size))
    got = learning.learning(subject, by_step, names, baselines.fit_bigram(ids, cfg.vocab_size), [])
    return json.loads(json.dumps(got, allow_nan=False))


def test_heads_that_are_put_in_at_known_steps_are_named_between_the_right_steps(planted):
    """Head 0.0 comes at step 20 and head 1.0 at step 80: a fresh model until then."""
    cfg, params, fresh = planted

    def at(step: int) -> dict:
        have = jax.tree.map(np.copy, fresh)
        have["token_embedding"], have["position_embedding"] = (
            params["token_embedding"],
            params["position_embedding"],
        )
        if step >= 20:
            have["block_0"]["attention"] = params["block_0"]["attention"]
        if step >= 80:
            have["block_1"] = params["block_1"]
            have["block_0"] = params["block_0"]
        return have

    got = learn(cfg, {step: at(step) for step in STEPS})
    found = {(one["layer"], one["head"]): one for one in got["events"] if one["kind"] == "head"}
    assert (found[PREVIOUS]["pattern"], found[PREVIOUS]["from"], found[PREVIOUS]["to"]) == (
        "previous_token",
        10,
        20,
    )
    assert (found[INDUCTION]["pattern"], found[INDUCTION]["from"], found[INDUCTION]["to"]) == (
        "induction",
        40,
        80,
    )
    assert (
        "Layer 0, head 0 turned into a previous-token head between steps 10 and 20" in found[PREVIOUS]["text"]
    )
    assert set(found) <= {PREVIOUS, INDUCTION, (0, 1), (1, 1)}


def test_a_table_that_is_frozen_until_a_known_step_is_named_there(planted):
    cfg, _, fresh = planted

    def at(step: int) -> dict:
        have = jax.tree.map(np.copy, fresh)
        if step >= 10:
            have["block_0"]["mlp"]["up"]["kernel"] += 0.01 * step
        if step >= 40:
            have["token_embedding"]["embedding"] += 0.001 * step
        return have

    events = learn(cfg, {step: at(step) for step in STEPS})["events"]
    frozen = {one["part"]: (one["from"], one["to"]) for one in events if one["kind"] == "frozen"}
    assert frozen["token table"] == (20, 40)
    assert frozen["position table"] == (0, 80) and "block 0 mlp" not in frozen
    assert next(one["text"] for one in events if one.get("part") == "position table").endswith(
        "never changed."
    )


def test_in_context_loss_that_falls_at_a_known_step_is_named_there(planted):
    """An induction model from step 40 on reads lines that repeat themselves: it knows a token by what followed it before."""
    cfg, params, fresh = planted
    rng = np.random.default_rng(0)
    lines = ("".join(rng.permutation(list("abcdefghijklmnopqrstuvwx"))[:8]) * 6 for _ in range(60))
    text = "".join(lines)
    got = learn(cfg, {step: params if step >= 40 else fresh for step in STEPS}, text)
    (event,) = [one for one in got["events"] if one["kind"] == "late"]
    assert (event["from"], event["to"]) == (20, 40) and event["value"] == got["late"][-1] < -1
    assert event["text"].startswith(
        "At least half of the fall of its in-context loss came between steps 20 and 40 "
    )
    assert not [
        one for one in learn(cfg, dict.fromkeys(STEPS, fresh), text)["events"] if one["kind"] == "late"
    ]
    # Not more than its noise: nothing is said.
    noisy = got | {"late_change_error": [2.0] * len(STEPS)}
    assert not [one for one in changes.events(noisy) if one["kind"] == "late"]


def test_an_untrained_run_has_nothing_to_say(planted):
    cfg, _, fresh = planted
    assert learn(cfg, dict.fromkeys(STEPS, fresh))["events"] == []
    others = {step: jax.tree.map(np.asarray, init_params(GPT(cfg), jax.random.key(step))) for step in STEPS}
    assert [one for one in learn(cfg, others)["events"] if one["kind"] != "frozen"] == []


def test_scores_and_losses_equal_numpys_own(planted):
    cfg, params, fresh = planted
    got = learn(cfg, {0: fresh, 80: params})
    subject = subject_of(cfg, params)
    windows = learning.windows(subject.dataset.valid.ids, learning.TEXTS, cfg.context_length + 1)
    for i, have in enumerate((fresh, params)):
        seen = [capture(cfg, have, window[:-1]) for window in windows]
        statistics = [analysis.head_statistics(one) for one in seen[: learning.HEADS]]
        own = np.mean([one.previous_token_LH for one in statistics], axis=0)
        np.testing.assert_allclose(got["patterns"]["previous_token"]["scores"][i], own, rtol=2e-3, atol=1e-4)
        losses = [
            -np.log(analysis.softmax(one.logits_TV)[np.arange(len(window) - 1), window[1:]])
            for one, window in zip(seen, windows, strict=True)
        ]
        np.testing.assert_allclose(got["loss"][i], np.mean(losses), atol=1e-4, rtol=1e-4)
        np.testing.assert_allclose(
            got["by_position"][i][0], np.mean([x[:1] for x in losses]), atol=2e-4, rtol=1e-3
        )


def test_the_map_keeps_its_orientation_and_fills_its_frame(planted):
    """A table that does not change stays where it is, and one that only grows too."""
    cfg, _, fresh = planted
    grown = jax.tree.map(np.copy, fresh)
    grown["token_embedding"]["embedding"] *= 3
    xy = np.array(learn(cfg, {0: fresh, 10: fresh, 80: grown})["map"]["xy"])
    np.testing.assert_allclose(xy[0], xy[2], atol=2e-3)
    np.testing.assert_allclose(np.sqrt(np.square(xy).mean(axis=(1, 2))), 1, rtol=1e-2)


@pytest.mark.parametrize(
    "values, expected",
    [
        ([0, 0, 0, 1, 1], (20, 40)), ([0, 0.1, 0.5, 0.9, 1], (10, 40)), ([0, 1, 0, 1, 1], (20, 40)),
        ([3, 3, 3, 3, 3], None), ([1, 1, 0, 0, 0], (10, 20)), ([0, None, 1, 1, 1], None),
    ],
)  # fmt: skip
def test_a_change_is_between_its_first_and_its_last_quarter(values, expected):
    assert changes.span(STEPS, values) == expected


def test_a_level_is_crossed_where_the_loss_stays_below_it():
    assert changes.crossing(STEPS, [4, 2, 4, 2, 1], 3) == (20, 40)
    assert (
        changes.crossing(STEPS, [4, 4, 4, 4, 3.5], 3) is None
        and changes.crossing(STEPS, [2, 2, 2, 2, 2], 3) is None
    )


def test_many_steps_are_thinned_over_their_logarithm():
    assert learning.chosen_steps([0, 1, 2, 4, 8, 16, 32, 64], 4) == [0, 4, 16, 64]
    assert learning.chosen_steps([0, 5], 2) == [0, 5]


# --- kinds of tokens ------------------------------------------------------------------------------------


def test_kinds_of_tokens():
    assert token_kinds.kinds(["e", "t", "T", "7", ",", " ", "\n"]) == [
        "vowel", "consonant", "capital", "digit", "punctuation", "space", "space",
    ]  # fmt: skip
    assert token_kinds.kinds([" the", " king", " he", "ing", " London", " 12", "."]) == [
        "small word", "other word", "pronoun", "piece of a word", "capitalized word", "digit", "punctuation",
    ]  # fmt: skip
    masks = token_kinds.key_masks(tokenizers.CharTokenizer("a ,\nB"), 6)
    assert masks.astype(int).T.tolist() == [
        [0] * 4 if c == "a" else [int(c == k) for k in " \n,B"] for c in "a ,\nB"
    ] + [[0] * 4]


@pytest.mark.parametrize("name, key", [("newline", 2), ("first", 0), ("two_back", None)])
def test_the_weight_on_a_kind_of_keys_is_that_of_the_weights(name, key, planted):
    """By its definition, position by position, from NumPy's weights."""
    cfg, params, _ = planted
    masks = np.zeros((4, cfg.vocab_size), bool)
    masks[1, 2] = True  # token 2 is the newline
    texts = np.random.default_rng(0).integers(0, 6, (3, 12)).astype(np.int32)
    got = heads.measure(*learning.in_float32(cfg, params), texts, None, masks)
    rows = []
    for text in texts:
        seen = capture(cfg, params, text)
        for t in range(len(text)):
            keys = {
                "newline": (text[: t + 1] == 2) & (np.arange(t + 1) > 0),
                "first": np.arange(t + 1) == 0,
                "two_back": t - np.arange(t + 1) == 2,
            }[name]
            if 0 < keys.sum() < t + 1:
                rows.append(
                    (
                        [
                            [layer.weights_HTS[h, t, : t + 1][keys].sum() for h in range(2)]
                            for layer in seen.layers
                        ],
                        keys.mean(),
                    )
                )
    np.testing.assert_allclose(got.patterns[name], np.mean([row for row, _ in rows], axis=0), atol=1e-5)
    np.testing.assert_allclose(got.shares[name], np.mean([share for _, share in rows]), rtol=1e-5)


def test_the_moving_picture_has_a_frame_for_each_step(report_payload, tmp_path):
    image = pytest.importorskip("PIL.Image")
    path = moving_picture.write(report_payload, tmp_path)
    with image.open(path) as picture:
        assert picture.n_frames == len(report_payload["learning"]["steps"]) and picture.size == (810, 380)
    with pytest.raises(UserError, match=r"train\.snapshots=log:24"):
        moving_picture.write(report_payload | {"learning": None}, tmp_path)
