"""Activations in files are those of `capture`, in parts or not; probes find what is planted, and no more."""

import numpy as np
import pytest

import jaxgpt
from jaxgpt.config import UserError
from jaxgpt.inspect import activation_files, probes
from jaxgpt.inspect.activation_files import ActivationFiles
from jaxgpt.inspect.capture import capture


def test_activations_of_a_text_are_those_of_its_windows(plain_run, tmp_path, monkeypatch):
    run = jaxgpt.load(plain_run / "run")
    text = (plain_run / "text.txt").read_text()[:200]
    sites = ["block_1/after", "block_0/attention/heads", "block_1/mlp/hidden", "start"]
    monkeypatch.setattr(activation_files, "BATCH_TOKENS", 48)  # 3 windows
    monkeypatch.setattr(activation_files, "SHARD_BYTES", 100 * 4 * (16 + 16 + 64 + 16 + 2))
    kept = ActivationFiles(jaxgpt.inspect.activations(run, text, sites, tmp_path / "acts"))
    assert kept.counts == [96, 96, 8] and kept.step == 24
    assert kept.sites == {
        "block_1/after": 16,
        "block_0/attention/heads": 16,
        "block_1/mlp/hidden": 64,
        "start": 16,
    }
    ids = run.tokenizer.encode(text)
    assert (kept.read("tokens") == ids).all() and (kept.read("positions") == np.arange(200) % 16).all()
    for first in (0, 96, 192):
        seen = capture(run.config.model, run.params, ids[first : first + 16])
        rows = slice(first, first + len(seen.tokens_T))
        for site, wanted in (
            ("block_1/after", seen.layers[1].after_TD),
            ("block_0/attention/heads", seen.layers[0].heads_THK.reshape(-1, 16)),
            ("block_1/mlp/hidden", seen.layers[1].hidden_TF),
            ("start", seen.start_TD),
        ):
            np.testing.assert_allclose(kept.read(site)[rows], wanted, atol=1e-5)
    assert kept.read("start", most=100).shape == (100, 16)
    bad = [
        ({"sites": ["block_7/after"]}, "no site 'block_7/after': choose among"),
        ({"sites": ["block_0/attention/scores"]}, "choose among"),
        ({"sites": []}, "no site is given"),
        ({"text": ""}, "the text is empty"),
        ({"out": plain_run}, "is not empty"),
    ]
    for change, words in bad:
        arguments = {"text": text, "sites": ["start"], "out": tmp_path / "new"} | change
        with pytest.raises(UserError, match=words):
            jaxgpt.inspect.activations(run, **arguments)
    assert not (tmp_path / "new").exists()
    for wrong in (plain_run, tmp_path / "none"):
        with pytest.raises(UserError, match="is not a folder of activations"):
            ActivationFiles(wrong)
    with pytest.raises(UserError, match="it has tokens, positions, block_1/after"):
        kept.read("end")


def test_ridge_is_the_closed_form_of_least_squares():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 4)), rng.normal(size=(50, 2))
    l2 = 0.3
    own = probes.fit_ridge(x, y, l2)
    # The penalty as further rows of a plain least squares problem, the bias as a column of ones.
    rows = np.sqrt(50 * l2) * np.eye(4)
    ones = np.concatenate([x, np.ones((50, 1))], axis=1)
    padded = np.concatenate([ones, np.concatenate([rows, np.zeros((4, 1))], axis=1)])
    wanted = np.linalg.lstsq(padded, np.concatenate([y, np.zeros((4, 2))]), rcond=None)[0]
    np.testing.assert_allclose(own, wanted, atol=1e-10)


def test_logistic_regression_is_at_its_minimum():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(200, 3))
    y = (x @ rng.normal(size=(3, 3)) + rng.gumbel(size=(200, 3))).argmax(axis=1)
    l2 = 0.01
    w = probes.fit_logistic(x, y, 3, l2).astype(np.float64)
    logits = x @ w[:-1] + w[-1]
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    error = (p - np.eye(3)[y]) / 200
    gradient = np.concatenate([x.T @ error + 2 * l2 * w[:-1], error.sum(axis=0)[None]])
    assert np.abs(gradient).max() < 1e-4  # the loss is convex: it has one minimum


def test_a_probe_finds_what_is_planted_and_its_control_does_not():
    rng = np.random.default_rng(2)
    groups = np.repeat(np.arange(60), 10)
    x = rng.normal(size=(600, 8)).astype(np.float32)
    there = (x[:, 3] > 0).astype(int)
    found = probes.probe(x, there, groups, bootstrap=200)
    assert found.kind == "logistic" and found.score > 0.95 and found.low <= found.score <= found.high
    assert 0.3 < found.control < 0.7 and 0.4 < found.baseline < 0.65
    assert found.fitted == 420 and found.scored == 180
    names = probes.probe(x, np.where(there, "vowel", "other"), groups, bootstrap=20)
    assert names.classes.tolist() == ["other", "vowel"] and names.score == found.score
    absent = probes.probe(x, rng.integers(0, 2, 600), groups, bootstrap=200)
    assert absent.low < 0.55 and absent.score < 0.65
    linear = probes.probe(x, 2.0 * x[:, 0] - x[:, 1] + 0.1 * rng.normal(size=600), groups, bootstrap=200)
    assert linear.kind == "ridge" and linear.score > 0.98 and linear.control < 0.1


def test_whole_groups_are_held_out_and_the_interval_is_that_of_groups():
    """The label is that of the group, and nothing else tells it: tokens of seen windows would give it away."""
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(40), 25)
    x = (rng.normal(size=(40, 100))[groups] + 0.1 * rng.normal(size=(1000, 100))).astype(np.float32)
    labels = rng.integers(0, 2, 40)[groups]
    assert probes.probe(x, labels, None, bootstrap=10).score > 0.95
    found = probes.probe(x, labels, groups, bootstrap=200)
    assert found.score < 0.9 and found.high - found.low > 0.1
    for wrong in ((x[:5], labels), (x, labels[:, None]), (x, np.zeros(1000, int)), (x[:1], labels[:1])):
        with pytest.raises(UserError):
            probes.probe(*wrong)
